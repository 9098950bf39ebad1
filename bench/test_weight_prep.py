"""Weight preparation: What = diag(alpha) * I + diag(beta) * W / ||W||, float32 to channels-last ``dtype``."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contenders import WEIGHT_PREP
from bench.suite import Results, Suite, Work, call_of
from triton_dirac import reference
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.weight_prep import single as weight_prep


def parameters(problem: ConvProblem, normal) -> dict[str, Tensor]:
    """As after some training: alpha about 1, beta about 0.1, W of kaiming_normal_'s size."""
    fan_in = problem.C // problem.groups * problem.R * problem.S
    return {
        "weight": normal(*problem.weight_shape) * (2 / fan_in) ** 0.5,
        "alpha": 1 + 0.1 * normal(problem.K),
        "beta": 0.1 + 0.02 * normal(problem.K),
    }


def draw(problem: ConvProblem, normal, storage: torch.dtype) -> dict[str, Tensor]:
    grad = normal(*problem.weight_shape).to(storage, memory_format=torch.channels_last)
    return {**parameters(problem, normal), "grad": grad}


def definition(work: Work) -> Results:
    grad = work.inputs["grad"]

    def prepare(weight: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return reference.dirac_weight(weight, alpha, beta).to(grad.dtype)

    leaves = [work.inputs[name] for name in ("weight", "alpha", "beta")]
    return call_of(prepare, leaves, grad, work.direction)()


def cost(problem: ConvProblem, storage: torch.dtype, direction: str) -> tuple[int, int]:
    shape = problem.weight_shape
    flops, moved = weight_prep.prep_flops(shape), weight_prep.prep_bytes(shape, torch.float32, storage)
    if direction == "forward_backward":
        flops += weight_prep.prep_backward_flops(shape)
        moved += weight_prep.prep_backward_bytes(shape, torch.float32, storage)
    return flops, moved


SUITE = Suite(
    name="weight_prep",
    passes={"forward": ("output",), "forward_backward": ("output", "weight", "alpha", "beta")},
    draw=draw,
    definition=definition,
    cost=cost,
    contenders=WEIGHT_PREP,
    multiplies=False,
)


def test_weight_prep(benchmark, lab, net, layer, dtype, direction, contender):
    lab.run(benchmark, SUITE, net, layer, dtype, direction, contender)
