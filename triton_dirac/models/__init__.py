"""DiracNets as trainable modules, and the convolutions they are made of."""

from triton_dirac.models.checkpoints import load_official
from triton_dirac.models.diracnet import diracnet, diracnet18, diracnet34
from triton_dirac.models.problems import NamedProblem, conv_problems
from triton_dirac.models.published import PUBLISHED, Published

__all__ = [
    "PUBLISHED",
    "NamedProblem",
    "Published",
    "conv_problems",
    "diracnet",
    "diracnet18",
    "diracnet34",
    "load_official",
]
