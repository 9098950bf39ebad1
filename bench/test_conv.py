"""The convolution alone, given its filters: fprop, dgrad, wgrad."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contenders import CONV
from bench.layers import every_layer
from bench.suite import Results, Suite, Work
from triton_dirac import reference
from triton_dirac.conv.problem import ConvProblem


def draw(problem: ConvProblem, normal, storage: torch.dtype) -> dict[str, Tensor]:
    """Filters scaled so that outputs are of size 1, as batch-norm leaves them."""
    fan_in = problem.C // problem.groups * problem.R * problem.S
    tensors = {
        "x": normal(*problem.input_shape),
        "w": normal(*problem.weight_shape) / fan_in**0.5,
        "dy": normal(*problem.output_shape),
    }
    return {name: t.to(storage, memory_format=torch.channels_last) for name, t in tensors.items()}


def definition(work: Work) -> Results:
    x, w = (work.inputs[name].detach().requires_grad_() for name in ("x", "w"))
    y = reference.conv2d(x, w, None, **work.geometry)
    if work.direction == "fprop":
        return (y.detach(),)
    return torch.autograd.grad(y, x if work.direction == "dgrad" else w, work.inputs["dy"])


def cost(problem: ConvProblem, storage: torch.dtype, direction: str) -> tuple[int, int]:
    return problem.flops, problem.elements * storage.itemsize


SUITE = Suite(
    name="conv",
    passes={"fprop": ("output",), "dgrad": ("input",), "wgrad": ("weight",)},
    draw=draw,
    definition=definition,
    cost=cost,
    contenders=CONV,
    subjects=every_layer,
)


def test_conv(benchmark, lab, net, layer, dtype, direction, contender):
    lab.run(benchmark, SUITE, net, layer, dtype, direction, contender)
