"""The Triton kernels as PyTorch operators: ``torch.ops.triton_dirac.*``.

Each operator has an exact schema, a fake kernel (shapes without data, for torch.compile and export) and a gradient,
and is opaque to the compiler: eager, compiled and interpreted runs all take the same path. Gradients of gradients
come from the operator's twin in ``torch_backend``. Convolutions have an autocast rule and a FLOP formula.

The functions below are the eager entry points: they skip PyTorch's dispatcher, which costs more host time than
the launch, when nothing needs it.
"""

from triton_dirac.ops.conv import ConvSettings, conv2d, replay_conv2d
from triton_dirac.ops.dirac import DiracSettings, dirac_conv2d, replay_dirac_conv2d
from triton_dirac.ops.prep import may_batch, weight_prep, weight_preps
from triton_dirac.ops.replay import find

__all__ = [
    "ConvSettings",
    "DiracSettings",
    "conv2d",
    "dirac_conv2d",
    "find",
    "may_batch",
    "replay_conv2d",
    "replay_dirac_conv2d",
    "weight_prep",
    "weight_preps",
]
