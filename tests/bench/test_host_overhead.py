"""The host-overhead suite: real calls, launches left out on a CPU and only while it measures."""

import torch

from bench import test_host_overhead as suite
from triton_dirac.runtime.launch import Launch


def test_every_contender_is_sampled_and_launches_come_back(monkeypatch):
    monkeypatch.setattr(suite, "CALLS", 2)
    monkeypatch.setattr(suite, "ROUNDS", 3)
    run, threads = Launch.run, torch.get_num_threads()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples = suite.host_samples(suite.calls_of(device), device)
    assert Launch.run is run
    assert torch.get_num_threads() == threads
    assert tuple(samples) == suite.CONTENDERS
    assert all(len(s.seconds) == 3 and min(s.seconds) > 0 for s in samples.values())


def test_what_is_timed_computes_the_convolution_it_says():
    """The calls, with their launches, give torch's numbers or the layer's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    calls = suite.calls_of(device)
    torch.testing.assert_close(calls["conv2d"](), calls["torch"](), rtol=1e-2, atol=1e-2)
    assert torch.equal(calls["DiracConv2d"](), calls["dirac_conv2d"]())
