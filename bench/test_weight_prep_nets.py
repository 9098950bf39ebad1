"""Weight preparation of whole nets: all Dirac layers of DiracNet-28-10, 34-2 and ImageNet-34, one call each.

Beside times, the results hold what is counted (``counted``): kernel launches, and bytes moved beside the least.
On a CPU only float32 is timed; the Triton contenders run on shrunk nets in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench import counting
from bench.net_contenders import NET_WEIGHT_PREP, layers_of, layout_on
from bench.net_weights import Shape, whole_nets
from bench.suite import Results, Suite, Work, call_of
from triton_dirac import reference
from triton_dirac.runtime.launch import Launch
from triton_dirac.weight_prep import single as weight_prep


def draw(problem: tuple[Shape, ...], normal, storage: torch.dtype) -> dict[str, Any]:
    """As after some training: alpha about 1, beta about 0.1, W of kaiming_normal_'s size."""
    tensors: dict[str, list[Tensor]] = {name: [] for name in ("weight", "alpha", "beta", "grad")}
    for shape in map(torch.Size, problem):
        tensors["weight"].append(normal(*shape) * (2 / shape[1:].numel()) ** 0.5)
        tensors["alpha"].append(1 + 0.1 * normal(shape[0]))
        tensors["beta"].append(0.1 + 0.02 * normal(shape[0]))
        grad = normal(*shape)
        tensors["grad"].append(grad.to(storage, memory_format=layout_on(grad.device)))
    return {name: tuple(of_layers) for name, of_layers in tensors.items()}


def definition(work: Work) -> Results:
    of_layers = []
    for layer, grad in zip(layers_of(work), work.inputs["grad"], strict=True):

        def prepare(*leaves: Tensor, dtype: torch.dtype = grad.dtype) -> Tensor:
            return reference.dirac_weight(*leaves).to(dtype)

        of_layers.append(call_of(prepare, layer, grad, work.direction)())
    return tuple(zip(*of_layers, strict=True))


def cost(problem: tuple[Shape, ...], storage: torch.dtype, direction: str) -> tuple[int, int]:
    """The least (flops, bytes): W read once and What written once; backward G and W read, dW written."""
    flops = sum(weight_prep.prep_flops(shape) for shape in problem)
    moved = sum(weight_prep.prep_bytes(shape, torch.float32, storage) for shape in problem)
    if direction == "forward_backward":
        flops += sum(weight_prep.prep_backward_flops(shape) for shape in problem)
        moved += sum(weight_prep.prep_backward_bytes(shape, torch.float32, storage) for shape in problem)
    return flops, moved


def launch_bytes(launch: Launch, work: Work) -> int:
    """Bytes of all that a launch of ours reads and writes, each once: no row here is too long for that.

    The launch for a whole net finds parameters and gradients through addresses in its table.
    """
    moved = counting.tensor_bytes(launch.args.values())
    if "table_ptr" in launch.args:
        moved += counting.tensor_bytes(layers_of(work))
        if "dweight_ptr" in launch.args:
            moved += counting.tensor_bytes(work.inputs["grad"]) - counting.tensor_bytes(work.inputs["alpha"])
    return moved


SUITE = Suite(
    name="weight_prep_nets",
    passes={"forward": ("output",), "forward_backward": ("output", "weight", "alpha", "beta")},
    draw=draw,
    definition=definition,
    cost=cost,
    contenders=NET_WEIGHT_PREP,
    subjects=whole_nets,
    multiplies=False,
    launch_bytes=launch_bytes,
)


def test_weight_prep_nets(benchmark, lab, net, layer, dtype, direction, contender):
    lab.run(benchmark, SUITE, net, layer, dtype, direction, contender)
