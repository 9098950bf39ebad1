"""The layers that are compared, read from the nets themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from triton_dirac import models
from triton_dirac.problem import ConvProblem


@dataclass(frozen=True)
class Net:
    """A net as published (arXiv 1706.00388): how to build it, its images' size, its training batch."""

    build: Callable[[], nn.Module]
    image_size: int
    batch: int


NETS = {
    "DiracNet-28-10": Net(lambda: models.diracnet(28, 10, 10), 32, 128),
    "DiracNet-34-2": Net(lambda: models.diracnet(34, 2, 10), 32, 128),
    "DiracNet-18": Net(models.diracnet18, 224, 256),
}


@dataclass(frozen=True)
class Layer:
    """One distinct convolution of a net; ``count`` is how often it occurs, ``dirac`` False for the stem."""

    net: str
    dirac: bool
    count: int
    published_batch: int
    problem: ConvProblem

    @property
    def name(self) -> str:
        """C x H x W - K RxS, e.g. ``160x32x32-160 3x3``"""
        p = self.problem
        return f"{p.C}x{p.H}x{p.W}-{p.K} {p.R}x{p.S}"


@cache
def layers(net: str, batch: int | None = None) -> tuple[Layer, ...]:
    """The distinct convolutions of ``net`` in the order they first run, at ``batch`` or the published one."""
    description = NETS[net]
    with torch.device("meta"):
        model = description.build()
    found = models.conv_problems(model, description.image_size, batch or description.batch)
    counts = Counter((kind == "dirac", problem) for _, kind, problem in found)
    return tuple(Layer(net, dirac, count, description.batch, problem) for (dirac, problem), count in counts.items())


def crop(problem: ConvProblem) -> ConvProblem:
    """A small problem like ``problem``: two images of 5 x 6 outputs, channels halved until none exceed 64.

    Window, stride, padding and K / C stay, and what is no power of two stays so (160 becomes 40). For the
    interpreter, which needs a second for what a GPU does in a microsecond.
    """
    filters, channels = problem.K, problem.C
    while max(filters, channels) > 64:
        filters //= 2
        channels = channels // 2 if channels % 2 == 0 else channels
    top, bottom, left, right = problem.padding
    height = 4 * problem.stride[0] + problem.dilation[0] * (problem.R - 1) + 1 - top - bottom
    width = 5 * problem.stride[1] + problem.dilation[1] * (problem.S - 1) + 1 - left - right
    return replace(problem, N=2, C=channels, K=filters, H=min(problem.H, height), W=min(problem.W, width))
