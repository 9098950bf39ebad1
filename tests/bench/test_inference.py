"""The suite of whole nets' inference: all contenders compute one function."""

import pytest
import torch

from bench import net_inference
from bench.net_training import trainings
from bench.nets import NETS
from bench.suite import Work
from bench.test_inference import inferences
from bench.test_training_step import draw
from triton_dirac.models import DIRACNETS

pytestmark = pytest.mark.cpu
EAGER = [contender for contender in net_inference.NET_INFERENCE if contender.name in (
    "reference", "weight_norm", "DiracConv2d", "prepared", "folded"
)]  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(0)
    problem = inferences(["DiracNet-34-2"], batch=1)[0]
    inputs = draw(problem, torch.randn, torch.float32)
    exact = {name: _to(value, torch.float64) for name, value in inputs.items()}
    return problem, inputs, net_inference.definition(_work(problem, exact))[0]


def _work(problem, inputs):
    return Work("forward", problem, "float32", torch.device("cpu"), inputs)


def _to(value, dtype):
    return tuple(part.to(dtype) for part in value) if isinstance(value, tuple) else value.to(dtype)


@pytest.mark.parametrize("contender", EAGER, ids=lambda contender: contender.name)
def test_each_contender_computes_the_nets_logits(contender, drawn):
    problem, inputs, expected = drawn
    (logits,) = contender.build(_work(problem, inputs))()
    assert not logits.requires_grad
    torch.testing.assert_close(logits.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_training_steps_and_inference_are_of_every_published_diracnet_and_of_no_other_net():
    for subjects, name in ((trainings, "training step"), (inferences, "inference")):
        found = subjects(list(NETS), batch=2)
        assert [problem.net for problem in found] == list(DIRACNETS)
        assert {(problem.batch, problem.name) for problem in found} == {(2, name)}
