"""Triton kernels for Dirac-parameterised convolutions (DiracNets, arXiv 1706.00388)."""

from triton_dirac.branches import from_repvgg
from triton_dirac.conversion import from_conv
from triton_dirac.folding import fold
from triton_dirac.functional import conv2d, dirac_conv2d, dirac_weight, dirac_weights
from triton_dirac.modules import DiracConv1d, DiracConv2d, DiracConv3d, parameter_groups
from triton_dirac.moved import install
from triton_dirac.prepared import prepared

install()
del install

__version__ = "0.1.0"
__all__ = [
    "DiracConv1d",
    "DiracConv2d",
    "DiracConv3d",
    "conv2d",
    "dirac_conv2d",
    "dirac_weight",
    "dirac_weights",
    "fold",
    "from_conv",
    "from_repvgg",
    "parameter_groups",
    "prepared",
]
