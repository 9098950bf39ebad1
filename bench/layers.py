"""The layers that are compared, read from the nets themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from bench.nets import NETS, convolutions, structure
from bench.results import sizes
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.models.problems import of_shapes


@dataclass(frozen=True)
class Layer:
    """One distinct convolution of one net or of several.

    ``counts`` is how often each net has it; ``has_identity`` whether it is a Dirac convolution;
    ``needs_input_grad`` False where its input is the image, which no training differentiates.
    """

    counts: Mapping[str, int] = field(hash=False)
    has_identity: bool
    needs_input_grad: bool
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
        """C x H x W - K RxS, and what is not as usual, e.g. ``160x32x32-160 3x3``, ``3x224x224-64 7x7 /2``

        /2 is a stride, d2 a dilation, g32 groups, p0 a padding that does not keep the size at stride 1.
        """
        p = self.problem
        same = tuple(d * (w - 1) // 2 for d, w in zip(p.dilation, (p.R, p.S), strict=True) for _ in range(2))
        unusual = [
            f"{mark}{_short(value)}"
            for mark, value, usual in (
                ("/", p.stride, (1, 1)), ("d", p.dilation, (1, 1)), ("g", (p.groups,), (1,)), ("p", p.padding, same),
            )
            if value != usual
        ]  # fmt: skip
        return " ".join([f"{p.C}x{p.H}x{p.W}-{p.K} {p.R}x{p.S}", *unusual])

    @property
    def sizes(self) -> dict[str, Any]:
        """The problem as results files state it."""
        return sizes(self.problem)

    def shrunk(self) -> Layer:
        return replace(self, problem=shrink(self.problem))


def _short(values: tuple[int, ...]) -> str:
    """(2, 2) is 2, (2, 1) is 2x1."""
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


@cache
def layers(net: str, batch: int | None = None) -> tuple[Layer, ...]:
    """The distinct convolutions of ``net`` in the order they first run, at ``batch`` or the published one."""
    description = NETS[net]
    found = convolutions(net, batch or description.batch)
    stems = _on_the_image(net)
    counts = Counter((kind == "dirac", name not in stems, problem) for name, kind, problem in found)
    return tuple(
        Layer({net: count}, has_identity, needs_input_grad, description.batch, problem)
        for (has_identity, needs_input_grad, problem), count in counts.items()
    )


def _on_the_image(net: str) -> set[str]:
    """The convolutions whose input depends on no parameter: its gradient is never asked for."""
    found = set()

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: found.add(name) if not inputs[0].requires_grad else None

    model, size = of_shapes(structure(net)), NETS[net].image_size
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(look(name))
    with torch.enable_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return found


def every_layer(nets: Iterable[str], batch: int | None = None) -> list[Layer]:
    """The layers of several nets, each distinct convolution once: what two nets have in common is one Layer."""
    merged: dict[Layer, Layer] = {}
    for layer in (layer for net in nets for layer in layers(net, batch)):
        key = replace(layer, counts={})
        counts = {**merged[key].counts, **layer.counts} if key in merged else layer.counts
        merged[key] = replace(layer, counts=counts)
    return list(merged.values())


def dirac_layers(nets: Iterable[str], batch: int | None = None) -> list[Layer]:
    """Those of ``every_layer`` that have an identity term."""
    return [layer for layer in every_layer(nets, batch) if layer.has_identity]


def shrink(problem: ConvProblem) -> ConvProblem:
    """A small problem like ``problem``: two images of 5 x 6 outputs, channels halved until none exceed 64.

    Window, stride, padding and K / C stay, depthwise stays depthwise, and what is no power of two stays so (160
    becomes 40). For the interpreter, which needs a second for what a GPU does in a microsecond.
    """
    filters, channels = problem.K, problem.C
    while max(filters, channels) > 64:
        filters //= 2
        channels = channels // 2 if channels % 2 == 0 else channels
    top, bottom, left, right = problem.padding
    height = 4 * problem.stride[0] + problem.dilation[0] * (problem.R - 1) + 1 - top - bottom
    width = 5 * problem.stride[1] + problem.dilation[1] * (problem.S - 1) + 1 - left - right
    H, W = min(problem.H, height), min(problem.W, width)
    return replace(problem, N=2, C=channels, K=filters, H=H, W=W, groups=gcd(problem.groups, channels, filters))
