"""What to compile, as plain data: it crosses to a worker process, which makes tensors and launches of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from triton_dirac.problem import ConvProblem


@dataclass(frozen=True)
class Job:
    """One kernel at one layer, dtype and target.

    ``planner`` is "module:function": called in the worker as ``function(job)``, it returns the config's name
    and the launches. ``arguments`` are the planner's own; ``count`` is how often the layer occurs in the net.
    """

    kernel: str
    planner: str
    net: str
    layer: str
    dtype: str
    target: str
    problem: ConvProblem
    count: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        sizes: dict[str, Any] = {
            name: tuple(size) if isinstance(size, list) else size for name, size in data["problem"].items()
        }
        return cls(**{**data, "problem": ConvProblem(**sizes)})


KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv_fprop gather": ("bench.compile.plans:fprop", {"loader": "gather"}),
    "conv_fprop tile": ("bench.compile.plans:fprop", {"loader": "tile"}),
    "conv_dgrad gather": ("bench.compile.plans:dgrad", {"loader": "gather"}),
    "conv_dgrad tile": ("bench.compile.plans:dgrad", {"loader": "tile"}),
    "conv_wgrad": ("bench.compile.plans:wgrad", {}),
    "conv_direct": ("bench.compile.plans:direct", {}),
    "weight_prep": ("bench.compile.plans:prep", {"backward": False}),
    "weight_prep backward": ("bench.compile.plans:prep", {"backward": True}),
    "weight_prep_multi": ("bench.compile.plans:prep_multi", {"backward": False}),
    "weight_prep_multi backward": ("bench.compile.plans:prep_multi", {"backward": True}),
}


def applies(kernel: str, dirac: bool, problem: ConvProblem, dtype: str) -> bool:
    """Whether the kernel runs for such a layer: only Dirac weights are prepared, images have no gradient."""
    if kernel.startswith("weight_prep"):
        return dirac and dtype != "tf32"
    if kernel.startswith("conv_dgrad") and problem.C == 3:
        return False
    return not (kernel.endswith("tile") and problem.stride != (1, 1))
