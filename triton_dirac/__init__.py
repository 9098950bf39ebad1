"""Triton kernels for Dirac-parameterised convolutions (DiracNets, arXiv 1706.00388)."""

from triton_dirac.functional import conv2d, dirac_conv2d, dirac_weight
from triton_dirac.modules import DiracConv2d

__version__ = "0.1.0"
__all__ = ["DiracConv2d", "conv2d", "dirac_conv2d", "dirac_weight"]
