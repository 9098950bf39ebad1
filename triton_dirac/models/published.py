"""The DiracNets as published (arXiv 1706.00388), by name: how to build one, its images' size, its training batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from triton_dirac.models.diracnet import diracnet, diracnet18, diracnet34


@dataclass(frozen=True)
class Published:
    """``image_size``: of the square images; ``batch``: in training."""

    build: Callable[[], nn.Module]
    image_size: int
    batch: int


PUBLISHED = {
    "DiracNet-28-10": Published(lambda: diracnet(28, 10, 10), 32, 128),
    "DiracNet-28-5": Published(lambda: diracnet(28, 5, 10), 32, 128),
    "DiracNet-34-2": Published(lambda: diracnet(34, 2, 10), 32, 128),
    "DiracNet-18": Published(diracnet18, 224, 256),
    "DiracNet-34": Published(diracnet34, 224, 256),
}
