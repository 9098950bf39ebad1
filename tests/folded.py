"""What the tests of folding share: nets as after a training, and what a folded one must look like."""

import torch
from torch import nn

from triton_dirac.modules import DiracConv1d, DiracConv2d, DiracConv3d

DIRAC = {1: DiracConv1d, 2: DiracConv2d, 3: DiracConv3d}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def randomised(model):
    """Every per-channel parameter and statistic as after a training: none is left at 0 or 1."""
    for module in model.modules():
        if isinstance(module, (*NORMS.values(), nn.SyncBatchNorm)) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, tuple(DIRAC.values())):
            nn.init.uniform_(module.alpha, 0.5, 1.2)
            nn.init.uniform_(module.beta, 0.1, 1)
    return model.eval()


def assert_same(actual, expected, relative=None):
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= (RELATIVE[expected.dtype] if relative is None else relative), error.item()


def kinds(model):
    return [type(module).__name__ for module in model.modules() if not list(module.children())]


def assert_plain(model):
    assert all(
        type(module).__module__.startswith("torch.nn") for module in model.modules() if not list(module.children())
    )
    assert not [name for name in model.state_dict() if name.endswith(("alpha", "beta", "delta"))]


def block(*layers):
    return nn.Sequential(*layers)
