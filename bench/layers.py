"""The layers that are compared, read from the nets themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import nn

from triton_dirac import models
from triton_dirac.conv.problem import ConvProblem


@dataclass(frozen=True)
class Net:
    """A net as published (arXiv 1706.00388): how to build it, its images' size, its training batch."""

    build: Callable[[], nn.Module]
    image_size: int
    batch: int


NETS = {
    "DiracNet-28-10": Net(lambda: models.diracnet(28, 10, 10), 32, 128),
    "DiracNet-28-5": Net(lambda: models.diracnet(28, 5, 10), 32, 128),
    "DiracNet-34-2": Net(lambda: models.diracnet(34, 2, 10), 32, 128),
    "DiracNet-18": Net(models.diracnet18, 224, 256),
    "DiracNet-34": Net(models.diracnet34, 224, 256),
}


@dataclass(frozen=True)
class Layer:
    """One distinct convolution; ``counts`` is how often each net has it, ``dirac`` False for the stem."""

    counts: Mapping[str, int] = field(hash=False)
    dirac: bool
    published_batch: int
    problem: ConvProblem

    @property
    def net(self) -> str:
        """The nets that have it, e.g. ``DiracNet-18, DiracNet-34``"""
        return ", ".join(self.counts)

    @property
    def count(self) -> int:
        """How often it occurs in all of them."""
        return sum(self.counts.values())

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
    return tuple(Layer({net: count}, dirac, description.batch, problem) for (dirac, problem), count in counts.items())


def shared_layers(nets: Iterable[str], batch: int | None = None) -> list[Layer]:
    """The layers of several nets, each distinct convolution once: what two nets have in common is one Layer."""
    merged: dict[tuple, Layer] = {}
    for layer in (layer for net in nets for layer in layers(net, batch)):
        key = (layer.dirac, layer.published_batch, layer.problem)
        counts = {**merged[key].counts, **layer.counts} if key in merged else layer.counts
        merged[key] = replace(layer, counts=counts)
    return list(merged.values())


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
