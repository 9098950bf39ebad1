"""The Triton kernels as PyTorch operators: ``torch.ops.triton_dirac.*``.

Each operator has an exact schema, a fake kernel (shapes without data, for torch.compile and export) and a gradient,
and is opaque to the compiler: eager, compiled and interpreted runs all take the same path. Gradients of gradients
come from the operator's twin in ``torch_backend``. Convolutions have an autocast rule and a FLOP formula.

The functions below are the eager entry points: they skip PyTorch's dispatcher, which costs more host time than
the launch, when nothing needs it.
"""

from triton_dirac.ops.conv import conv2d
from triton_dirac.ops.dirac import Settings, SteadyLayer, dirac_conv2d, replay
from triton_dirac.ops.prep import may_batch, weight_prep, weight_preps
from triton_dirac.ops.register import is_plain

__all__ = [
    "Settings",
    "SteadyLayer",
    "conv2d",
    "dirac_conv2d",
    "is_plain",
    "may_batch",
    "replay",
    "weight_prep",
    "weight_preps",
]
