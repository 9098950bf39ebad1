"""Every contender computes what its suite says, on a miniature; Triton's in the interpreter without a GPU."""

from dataclasses import replace

import pytest
import torch

from bench import suite as suites
from bench import test_conv, test_dirac_block, test_weight_prep
from bench.accuracy import failures
from bench.checker import Checker
from bench.contenders import eager_weight, weight_norm_weight
from bench.gpu.stages import STAGES
from bench.layers import dirac_layers, layers, shrink
from bench.net_contenders import NET_WEIGHT_PREP
from bench.net_inference import NET_INFERENCE
from bench.net_training import TRAINING_STEP
from bench.options import chosen
from bench.suite import float32_products
from reports import verdict
from triton_dirac.conv.problem import ConvProblem

SUITES = (test_weight_prep.SUITE, test_conv.SUITE, test_dirac_block.SUITE)
WIDENING = ConvProblem(2, 16, 5, 6, 24, 3, 3, padding=(1, 1, 1, 1))  # K > C: filters without an identity term
NARROWING = ConvProblem(2, 24, 5, 6, 16, 3, 3, padding=(1, 1, 1, 1))
STEM = shrink(layers("DiracNet-18")[0].problem)


@pytest.mark.parametrize("problem", [WIDENING, NARROWING])
def test_a_definition_that_is_rewritten_is_the_same(problem, device):
    suite = test_dirac_block.SUITE
    work = suite.work(problem, "float32", "forward_backward", device)
    truth = suite.truth(work)
    again = suite.named(work.direction, suite.rewritten[0](work.with_inputs(torch.Tensor.double)))
    for name, tensor in truth.items():
        torch.testing.assert_close(again[name], tensor)
    alone = replace(suite, rewritten=()).torch_errors(work, truth)
    assert all(error >= alone[name] for name, error in suite.torch_errors(work, truth).items())


def cases(problems, dtypes, engines):
    for suite in SUITES:
        for problem in problems if suite.subjects is dirac_layers else (*problems, STEM):
            for dtype in dtypes:
                for direction in suite.passes:
                    for contender in suite.contenders:
                        lacking = contender.lacks(problem, dtype, direction, torch.device("cpu"))
                        if contender.engine in engines and lacking is None:
                            names = (suite.name, direction, contender.name, dtype, f"{problem.C}-{problem.K}")
                            yield pytest.param(suite, problem, dtype, direction, contender, id=" ".join(names))


def assert_right(suite, problem, dtype, direction, contender, device):
    with float32_products(dtype):
        work = suite.work(problem, dtype, direction, device)
        results = contender.build(work)()
        reason = failures(Checker(suite, work).errors(results))
    assert reason is None, f"{suite.name} {direction} {contender.name} {dtype}: {reason}"


@pytest.mark.parametrize(
    "suite, problem, dtype, direction, contender",
    [
        *cases((WIDENING, NARROWING), ("float32",), ("eager", "cpu", "cudnn")),
        *cases((WIDENING,), ("bfloat16",), ("eager", "cpu")),
    ],
)
def test_torch_contenders_are_right(suite, problem, dtype, direction, contender, device):
    assert_right(suite, problem, dtype, direction, contender, device)


@pytest.mark.parametrize(
    "suite, problem, dtype, direction, contender",
    list(cases((WIDENING,), ("float32", "float16"), ("triton",))),
)
def test_triton_contenders_are_right(suite, problem, dtype, direction, contender, device):
    assert_right(suite, problem, dtype, direction, contender, device)


@pytest.mark.parametrize("contenders", [NET_WEIGHT_PREP, TRAINING_STEP, NET_INFERENCE])
def test_what_replays_a_graph_is_named_so_and_is_timed_with_the_baselines_graph(contenders):
    """By this name reports compare it with the baseline's graph, and not with an eager call."""
    assert suites.GRAPH == verdict.GRAPH
    names = {contender.name for contender in contenders}
    graphed = {contender.name for contender in contenders if contender.graph}
    assert graphed == {name for name in names if name.endswith(suites.GRAPH)}
    assert {name.removesuffix(suites.GRAPH) for name in graphed} <= names
    assert "reference-graph" in graphed
    asked = [stage.command[1].split(",") for stage in STAGES if stage.suite and stage.command]
    for patterns in asked:
        timed = {name for name in graphed if chosen(name, patterns)}
        assert not timed or "reference-graph" in timed


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_inputs_are_the_same_for_every_pass_and_every_run(suite, device):
    first, *others = [suite.work(WIDENING, "float32", direction, device) for direction in suite.passes]
    for other in others:
        assert all(torch.equal(first.inputs[name], other.inputs[name]) for name in first.inputs)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_costs_grow_with_the_pass_and_shrink_with_the_dtype(suite):
    for direction in suite.passes:
        wide = suite.cost(WIDENING, torch.float32, direction)
        half = suite.cost(WIDENING, torch.bfloat16, direction)
        assert wide[0] == half[0] > 0
        assert wide[1] > half[1] > 0
    forward, *backward = (suite.cost(WIDENING, torch.float32, direction) for direction in suite.passes)
    if "forward_backward" in suite.passes:
        assert all(more > less for more, less in zip(backward[0], forward, strict=True))


def test_prepared_weights_come_in_the_layout_and_dtype_that_the_convolution_wants():
    weight, one = torch.randn(WIDENING.weight_shape), torch.ones(WIDENING.K)
    delta = torch.nn.init.dirac_(torch.empty_like(weight))
    for prepared in (
        eager_weight(weight, one, one, delta, torch.bfloat16, torch.channels_last),
        weight_norm_weight(weight, one, one, torch.bfloat16, torch.channels_last),
    ):
        assert prepared.dtype == torch.bfloat16
        assert prepared.is_contiguous(memory_format=torch.channels_last)


def test_uneven_padding_is_refused_by_torch_contenders(device):
    uneven = ConvProblem(1, 4, 5, 5, 4, 2, 2, padding=(0, 1, 0, 1))
    with pytest.raises(ValueError, match="torch pads both sides alike"):
        test_conv.SUITE.truth(test_conv.SUITE.work(uneven, "float32", "fprop", device))
