"""Nets with their published results (arXiv 1706.00388, tables 2 and 3), by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from triton_dirac.models.diracnet import diracnet, diracnet18, diracnet34
from triton_dirac.models.resnet import resnet, resnet18, resnet34, wide_resnet
from triton_dirac.models.vgg import vgg16

PAPER = "arXiv 1706.00388, table 2"
IMAGENET_TABLE = "arXiv 1706.00388, table 3"


@dataclass(frozen=True)
class Result:
    """An error in percent on ``dataset``, its spread if one is printed, and where it is printed."""

    dataset: str
    error: float
    spread: float | None = None
    source: str = PAPER


@dataclass(frozen=True)
class Published:
    """How to build a net, its square images' size, its batch in training, and what is printed of it.

    ``millions``: of parameters, as printed; the net that is built has its own count, and ``note`` says where and why
    they differ. ``results`` is empty where the tables have none.
    """

    build: Callable[[], nn.Module]
    image_size: int
    batch: int
    depth: int
    width: int = 1
    millions: float | None = None
    results: tuple[Result, ...] = ()
    note: str = ""

    @property
    def is_dirac(self) -> bool:
        return self.build in (diracnet18, diracnet34) or getattr(self.build, "func", None) is diracnet


def _cifar(ten: float, hundred: float, spreads: tuple[float, float] | None = None) -> tuple[Result, ...]:
    first, second = spreads or (None, None)
    return Result("CIFAR-10", ten, first), Result("CIFAR-100", hundred, second)


def _imagenet(top1: float, top5: float) -> tuple[Result, ...]:
    return Result("ImageNet top-1", top1, None, IMAGENET_TABLE), Result("ImageNet top-5", top5, None, IMAGENET_TABLE)


_OF_THE_RESNETS = "the paper prints the ResNet's count beside the DiracNet"
PUBLISHED = {
    "DiracNet-28-10": Published(
        partial(diracnet, 28, 10), 32, 128, 28, 10, 36.5, _cifar(4.75, 21.54, (0.16, 0.18))
    ),
    "DiracNet-28-5": Published(partial(diracnet, 28, 5), 32, 128, 28, 5, 9.1, _cifar(5.16, 23.44, (0.14, 0.14))),
    "DiracNet-34-2": Published(partial(diracnet, 34, 2), 32, 128, 34, 2, note="the official README's training example"),
    "DiracNet-18": Published(diracnet18, 224, 256, 18, 1, 11.7, _imagenet(30.37, 10.88), _OF_THE_RESNETS),
    "DiracNet-34": Published(diracnet34, 224, 256, 34, 1, 21.8, _imagenet(27.79, 9.34), _OF_THE_RESNETS),
    "VGG-16": Published(
        vgg16, 32, 128, 16, 1, 20.0, _cifar(6.09, 25.92, (0.11, 0.09)),
        "the paper does not describe its net; VGG-16's convolutions and one linear layer are 14.7M",
    ),
    "ResNet-1001": Published(
        partial(resnet, 1001, bottleneck=True), 32, 128, 1001, 1, 10.2,
        (*_cifar(4.92, 22.71), Result("CIFAR-10", 4.62, None, "He et al., arXiv 1603.05027")),
        "10.18M without batch-norm's parameters, 10.33M with them",
    ),
    "Wide-ResNet-28-10": Published(partial(wide_resnet, 28, 10), 32, 128, 28, 10, 36.5, _cifar(4.00, 19.25)),
    "ResNet-18": Published(resnet18, 224, 256, 18, 1, 11.7, _imagenet(29.62, 10.62)),
    "ResNet-34": Published(resnet34, 224, 256, 34, 1, 21.8, _imagenet(27.17, 8.91)),
}  # fmt: skip
# Those whose layers are benchmarked and tuned ahead unless others are asked for.
DIRACNETS = {name: net for name, net in PUBLISHED.items() if net.is_dirac}
