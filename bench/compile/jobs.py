"""What to compile, as plain data: it crosses to a worker process, which makes tensors and launches of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.layers import Layer
from triton_dirac.conv.problem import ConvProblem


@dataclass(frozen=True)
class Job:
    """One kernel at one layer, dtype and target.

    ``planner`` is "module:function": called in the worker as ``function(job)``, it returns the config's name
    and the launches. ``arguments`` are the planner's own; ``count`` is how often the layer occurs in the net, and
    ``has_identity`` whether its convolution adds one.
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
    has_identity: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        sizes: dict[str, Any] = {
            name: tuple(size) if isinstance(size, list) else size for name, size in data["problem"].items()
        }
        return cls(**{**data, "problem": ConvProblem(**sizes)})


# Every kernel of the table: its planner and the planner's arguments.
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv_fprop": ("bench.compile.plans:fprop", {}),
    "conv_fprop gather": ("bench.compile.plans:fprop", {"loader": "gather"}),
    "conv_fprop batch": ("bench.compile.plans:fprop", {"loader": "batch"}),
    "conv_fprop tile": ("bench.compile.plans:fprop", {"loader": "tile"}),
    "conv_dgrad": ("bench.compile.plans:dgrad", {}),
    "conv_dgrad gather": ("bench.compile.plans:dgrad", {"loader": "gather"}),
    "conv_dgrad batch": ("bench.compile.plans:dgrad", {"loader": "batch"}),
    "conv_dgrad tile": ("bench.compile.plans:dgrad", {"loader": "tile"}),
    "conv_wgrad": ("bench.compile.plans:wgrad", {}),
    "conv_wgrad gather": ("bench.compile.plans:wgrad", {"loader": "gather"}),
    "conv_wgrad batch": ("bench.compile.plans:wgrad", {"loader": "batch"}),
    "conv_direct fprop": ("bench.compile.plans:direct", {"pass": "fprop"}),
    "conv_direct dgrad": ("bench.compile.plans:direct", {"pass": "dgrad"}),
    "conv_direct wgrad": ("bench.compile.plans:direct", {"pass": "wgrad"}),
    "weight_prep": ("bench.compile.plans:prep", {"backward": False}),
    "weight_prep backward": ("bench.compile.plans:prep", {"backward": True}),
    "weight_prep_multi": ("bench.compile.plans:prep_multi", {"backward": False}),
    "weight_prep_multi backward": ("bench.compile.plans:prep_multi", {"backward": True}),
}
# Other projects' kernels.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Inductor template": ("bench.compile.peers:plan_inductor", {}),
    "FlagGems NHWC": ("bench.compile.peers:plan_flag_gems", {"layout": "NHWC"}),
    "FlagGems NCHW": ("bench.compile.peers:plan_flag_gems", {"layout": "NCHW"}),
}


def jobs_of_layer(layer: Layer, kernels: Sequence[str], dtype: str, target: str) -> list[Job]:
    """A job for each of ``kernels`` that runs for such a layer, on the problem that the kernel is meant for.

    Only Dirac weights are prepared, and images have no gradient. No net has a depthwise convolution, so the
    direct kernels get a depthwise one of the layer's size.
    """
    jobs = []
    for kernel in kernels:
        planner, arguments = (KERNELS | PEERS)[kernel]
        problem, name = layer.problem, layer.name
        if kernel.startswith(("weight_prep", "conv_direct")) and not (layer.has_identity and dtype != "tf32"):
            continue
        if kernel.startswith("conv_dgrad") and not layer.needs_input_grad:
            continue
        if kernel.startswith("conv_direct"):
            problem, name = replace(problem, K=problem.C, groups=problem.C), f"{name} depthwise"
        if kernel.startswith("weight_prep_multi"):
            name = "all Dirac layers"
        names = (kernel, planner, layer.net, name, dtype, target)
        jobs.append(Job(*names, problem, layer.count, arguments, layer.has_identity))
    return jobs
