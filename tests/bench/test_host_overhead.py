"""The host-overhead suite: real calls of every contender, kernels compiled and launched as far as the driver."""

import pytest
import torch

from bench import host_calls
from bench import test_host_overhead as suite
from bench.host_calls import HOST_PASSES, ONE_LAYER, Subject, calls_of, subjects
from bench.timing import Samples
from tests.placement import DEVICE
from triton_dirac.runtime.launch import Launch

LAYER = Subject(ONE_LAYER, 1)
NET = Subject("DiracNet-34-2", 2)


def test_rows_are_one_layer_and_the_published_nets():
    found = {subject.net: subject for subject in subjects()}
    assert list(found) == [ONE_LAYER, "DiracNet-28-10", "DiracNet-34-2", "DiracNet-18"]
    assert found["DiracNet-34-2"].layers == 30
    assert found["DiracNet-28-10"].layers == 24
    assert found["DiracNet-18"].layers == 16
    named = {"torch", "reference", "weight_norm", "conv2d", "dirac_conv2d", "DiracConv2d", "prepared"}
    assert named <= set(found[ONE_LAYER].contenders)


@pytest.mark.parametrize("subject", [LAYER, NET], ids=lambda subject: subject.net)
@pytest.mark.parametrize("direction", HOST_PASSES)
def test_every_contender_is_sampled(subject, direction, monkeypatch):
    monkeypatch.setattr(Launch, "run", lambda self: None)  # samples of the interpreter would take minutes
    monkeypatch.setattr(host_calls, "ROUNDS", 3)
    monkeypatch.setattr(host_calls, "SAMPLE", 1e-6)
    threads = torch.get_num_threads()
    eager = [name for name in subject.contenders if not name.endswith("-compile")]
    samples = host_calls.host_samples(subject, direction, torch.device(DEVICE), eager.__contains__)
    assert torch.get_num_threads() == threads
    assert list(samples) == eager
    assert all(isinstance(s, Samples) and len(s.seconds) == 3 and min(s.seconds) > 0 for s in samples.values())


@pytest.mark.parametrize("contender", ["reference", "weight_norm", "dirac_conv2d", "DiracConv2d", "prepared"])
def test_what_is_timed_computes_the_dirac_convolution(contender):
    """At the start of a training alpha is 1 and beta 0.1; the calls, with their launches, give the layer's numbers."""
    torch.manual_seed(0)
    output = calls_of(LAYER, "forward", torch.device(DEVICE))[contender]()()
    torch.manual_seed(0)
    again = calls_of(LAYER, "forward", torch.device(DEVICE))["DiracConv2d"]()()
    torch.testing.assert_close(output, again, rtol=1e-2, atol=1e-2)


def test_one_that_raises_costs_itself_alone(monkeypatch):
    def fails(contender, *rest):
        if contender == "conv2d":
            raise ValueError("not today")
        return lambda: None

    monkeypatch.setattr(host_calls, "_of_layer", fails)
    outcomes = host_calls.host_samples(LAYER, "forward", torch.device("cpu"), {"torch", "conv2d"}.__contains__)
    assert isinstance(outcomes["torch"], Samples)
    assert str(outcomes["conv2d"]) == "not today"
    found = suite.entries(LAYER, "forward", outcomes, "cpu")
    (left_out,) = found["not_run"]
    assert (left_out["contender"], left_out["failed"], left_out["reason"]) == ("conv2d", True, "ValueError: not today")
    (row,) = found["benchmarks"]
    assert row["extra_info"]["clock"] == "host, driver stubbed"
    assert row["extra_info"]["layers"] == 1


@pytest.mark.cpu
def test_a_worker_launches_compiled_kernels_to_the_stub(monkeypatch):
    outcomes = suite.in_a_worker(LAYER, "forward_backward", ["torch", "DiracConv2d"])
    assert set(outcomes) == {"torch", "DiracConv2d"}
    assert all(isinstance(outcome, Samples) for outcome in outcomes.values()), outcomes
    monkeypatch.setattr(suite.sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"bench\.host_worker one layer forward torch ended with 1"):
        suite.in_a_worker(LAYER, "forward", ["torch"])
