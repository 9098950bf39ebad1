"""DiracNets as trainable modules, the nets they are compared with, and the convolutions they are made of."""

from triton_dirac.models.checkpoints import load_official, read_official, to_official
from triton_dirac.models.diracnet import diracnet, diracnet18, diracnet34
from triton_dirac.models.named import net_named
from triton_dirac.models.plain import delta_orthogonal_, plain
from triton_dirac.models.problems import NamedProblem, conv_problems
from triton_dirac.models.published import DIRACNETS, PUBLISHED, Published, Result
from triton_dirac.models.resnet import resnet, resnet18, resnet34, wide_resnet
from triton_dirac.models.version1 import diracnet18_v1, diracnet34_v1, diracnet_v1
from triton_dirac.models.vgg import vgg16

__all__ = [
    "DIRACNETS",
    "PUBLISHED",
    "NamedProblem",
    "Published",
    "Result",
    "conv_problems",
    "delta_orthogonal_",
    "diracnet",
    "diracnet18",
    "diracnet18_v1",
    "diracnet34",
    "diracnet34_v1",
    "diracnet_v1",
    "load_official",
    "net_named",
    "plain",
    "read_official",
    "resnet",
    "resnet18",
    "resnet34",
    "to_official",
    "vgg16",
    "wide_resnet",
]
