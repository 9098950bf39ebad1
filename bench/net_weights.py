"""The weights of all Dirac layers of a net, as one subject of a suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from bench.nets import convolutions

# The widest, the narrowest and the deepest: a net takes a CPU half a minute, and the other two lie between these.
WHOLE_NETS = ("DiracNet-28-10", "DiracNet-34-2", "DiracNet-34")
SHRUNK_CHANNELS = 8  # of the largest layer in a shrunk net: the interpreter takes a millisecond a row

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NetWeights:
    """All Dirac layers of ``net``; ``problem`` are their weights' shapes (K, C, R, S) in the order they run."""

    net: str
    problem: tuple[Shape, ...]
    name: str = "all Dirac layers"  # what stands for a layer's name in results
    count: int = 1
    has_identity: bool = True
    needs_input_grad: bool = True
    published_batch: None = None  # weights know no batch

    @property
    def counts(self) -> Mapping[str, int]:
        return {self.net: self.count}

    @property
    def sizes(self) -> dict[str, Any]:
        return {"layers": len(self.problem), "weights": sum(torch.Size(shape).numel() for shape in self.problem)}

    def shrunk(self) -> NetWeights:
        """As many layers with fewer channels, all divided by one power of two."""
        divisor = 1
        while max(max(shape[:2]) for shape in self.problem) // divisor > SHRUNK_CHANNELS:
            divisor *= 2
        return replace(
            self,
            problem=tuple((max(1, k // divisor), max(1, c // divisor), *window) for k, c, *window in self.problem),
        )


@cache
def shapes(net: str) -> tuple[Shape, ...]:
    """The weights' shapes (K, C, R, S) of all Dirac layers of ``net``, in the order they run."""
    return tuple(problem.weight_shape for _, kind, problem in convolutions(net, 1) if kind == "dirac")


def whole_nets(nets: Iterable[str], batch: int | None = None) -> list[NetWeights]:
    """One subject for each of ``nets`` that is among WHOLE_NETS."""
    return [NetWeights(net, shapes(net)) for net in nets if net in WHOLE_NETS]
