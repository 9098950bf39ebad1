"""Whole nets' times, and their peak memory beside them."""

import pytest
import torch

from bench import net_training
from bench.net_training import StepTimer
from bench.peak_memory import peak_bytes
from reports.intervals import FEWEST_SAMPLES

pytestmark = pytest.mark.cpu
MIB = 2**20


def test_the_peak_is_what_is_held_at_once():
    held = torch.zeros(MIB, device="cpu")  # 4 MiB, before the call
    assert 8 * MIB <= peak_bytes(lambda: ((held + 1) + 1).sum()) < 9 * MIB
    assert 4 * MIB <= peak_bytes(lambda: [(held + 1).sum() for _ in range(3)]) < 5 * MIB


def test_a_call_that_allocates_nothing_has_none():
    held = torch.zeros(4, device="cpu")
    assert peak_bytes(lambda: held.data_ptr()) is None


def test_steps_are_timed_beside_their_peak():
    timer = StepTimer(lambda: torch.ones(MIB, device="cpu"))
    timer.sample()
    assert 4 * MIB <= timer.samples().peak_bytes < 5 * MIB


def test_steps_of_seconds_have_as_many_samples_as_a_verdict_needs(monkeypatch):
    class OfSeconds(StepTimer):
        def __init__(self, call):
            super().__init__(call)
            self.estimate = 30.0

    monkeypatch.setattr(net_training, "StepTimer", OfSeconds)
    (samples,) = net_training.step_samples({"a step": lambda: None}).values()
    assert len(samples.seconds) == FEWEST_SAMPLES
