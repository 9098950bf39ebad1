"""The block that DiracNets repeat: ReLU, Dirac convolution, batch-norm (training mode, running averages off).

Every contender runs the same ReLU and batch-norm, fused or not; what differs is the Dirac convolution. flops
and bytes are those of the Dirac convolution alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contenders import DIRAC_BLOCK, convolution_and_identity
from bench.suite import Results, Suite, Work, call_of
from bench.test_conv import cost as conv_cost
from bench.test_weight_prep import cost as prep_cost
from bench.test_weight_prep import parameters
from triton_dirac import reference
from triton_dirac.conv.problem import ConvProblem

LEAVES = ("x", "weight", "alpha", "beta")


def draw(problem: ConvProblem, normal, storage: torch.dtype) -> dict[str, Tensor]:
    def image(shape: tuple[int, ...]) -> Tensor:
        return normal(*shape).to(storage, memory_format=torch.channels_last)

    return {
        "x": image(problem.input_shape),
        **parameters(problem, normal),
        "gamma": 1 + 0.1 * normal(problem.K),
        "shift": 0.1 * normal(problem.K),
        "dy": image(problem.output_shape),
    }


def definition(work: Work) -> Results:
    return _block(work, partial(reference.dirac_conv2d, **work.geometry))


def with_the_identity_apart(work: Work) -> Results:
    """As the split form does it, in operations of torch. Batch-norm's gradients are small differences of what was
    rounded: in bfloat16 alpha's is off by 1 % of the largest, and by half or twice as much where the identity's term is
    added to the convolution's result and not to its filters."""
    return _block(work, partial(convolution_and_identity, **work.geometry))


def _block(work: Work, convolve: Callable[..., Tensor]) -> Results:
    def block(x: Tensor, *parameters: Tensor) -> Tensor:
        y = convolve(F.relu(x), *parameters)
        return F.batch_norm(y, None, None, work.inputs["gamma"], work.inputs["shift"], training=True)

    leaves = [work.inputs[name] for name in LEAVES]
    return call_of(block, leaves, work.inputs["dy"], work.direction)()


def cost(problem: ConvProblem, storage: torch.dtype, direction: str) -> tuple[int, int]:
    parts = [
        prep_cost(problem, storage, direction),
        *(
            conv_cost(problem, storage, part)
            for part in (("fprop",) if direction == "forward" else ("fprop", "dgrad", "wgrad"))
        ),
    ]
    return sum(flops for flops, _ in parts), sum(moved for _, moved in parts)


SUITE = Suite(
    name="dirac_block",
    passes={"forward": ("output",), "forward_backward": ("output", "input", "weight", "alpha", "beta")},
    draw=draw,
    definition=definition,
    rewritten=(with_the_identity_apart,),
    cost=cost,
    contenders=DIRAC_BLOCK,
)


def test_dirac_block(benchmark, lab, net, layer, dtype, direction, contender):
    lab.run(benchmark, SUITE, net, layer, dtype, direction, contender)
