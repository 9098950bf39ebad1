"""For tests of the lab: a suite of twice a vector, by contenders that are right, wrong, or break, and a fixture."""

import torch

from bench.layers import Layer
from bench.suite import Contender, Suite
from bench.timing import REPLAY
from triton_dirac.conv.problem import ConvProblem

PROBLEM = ConvProblem(2, 160, 32, 32, 160, 3, 3, padding=(1, 1, 1, 1))
LAYER = Layer({"DiracNet-28-10": 8}, True, True, 128, PROBLEM)
NAMES = {
    "suite": "doubling",
    "pass": "forward",
    "net": "DiracNet-28-10",
    "layer": "160x32x32-160 3x3",
    "dtype": "float32",
}
WHERE = ("DiracNet-28-10", "160x32x32-160 3x3")
built = []


def doubling(factor=2.0):
    def build(work):
        built.append(work.problem)
        return lambda: (work.inputs["x"] * factor,)

    return build


def breaks(work):
    raise ArithmeticError("no such kernel")


def breaks_in_lacks(*_):
    raise ArithmeticError("no such target")


def out_of_memory(work):
    raise torch.OutOfMemoryError("Tried to allocate 20 GiB.\nAnd more.")


SUITE = Suite(
    name="doubling",
    subjects=lambda nets, batch: [LAYER] if "DiracNet-28-10" in nets else [],
    passes={"forward": ("output",)},
    draw=lambda problem, normal, storage: {"x": normal(problem.C).to(storage)},
    definition=lambda work: (2 * work.inputs["x"],),
    cost=lambda problem, storage, direction: (problem.C, 2 * problem.C * storage.itemsize),
    contenders=(
        Contender("torch", "eager", doubling()),
        Contender("wrong", "eager", doubling(2.001)),
        Contender("nan", "eager", doubling(float("nan"))),
        Contender("broken", "eager", breaks),
        Contender("large", "eager", out_of_memory),
        Contender("cudnn", "cudnn", doubling()),
        Contender("triton", "triton", doubling()),
        Contender("triton-wrong", "triton", doubling(3.0)),
        Contender("triton-wide", "triton", doubling(), lambda problem, *_: None if problem.C > 64 else "too narrow"),
        Contender("lacking", "eager", doubling(), lambda *_: "has no such pass"),
        Contender("peer", "flag_gems", breaks),
    ),
)


class Benchmark:
    """The part of pytest-benchmark's fixture that is used."""

    def __init__(self, enabled=True):
        self.enabled, self.group, self.extra_info, self.rounds = enabled, None, {}, None

    def pedantic(self, target, rounds=1):
        for _ in range(rounds):
            target()
            if self.enabled:
                REPLAY(), REPLAY()
        self.rounds = rounds
