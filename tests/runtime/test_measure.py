"""The times of candidates, on a scripted GPU: how many samples, what failures cost, what is raised."""

import math

import pytest
import torch
from triton.errors import TritonError
from triton.runtime.errors import OutOfResources

from tests.scripted_gpu import Clock, FakeGpu
from triton_dirac.runtime.measure import RUNGS, measure


class Gpu(FakeGpu):
    """Counts the calls of each candidate; may refuse to answer, as after an illegal access."""

    def __init__(self):
        super().__init__(Clock())
        self.calls, self.error = {}, None

    def synchronize(self):
        if self.error is not None:
            raise self.error
        super().synchronize()

    def candidates(self, times, host=100e-6):
        return {name: self.candidate(name, time, host) for name, time in times.items()}

    def candidate(self, name, seconds, host=100e-6):
        kernel = self.kernel(host, seconds)

        def call():
            self.calls[name] = self.calls.get(name, 0) + 1
            if isinstance(seconds, Exception):
                raise seconds
            kernel()

        return call

    def measure(self, times, **options):
        return measure(self.candidates(times), "problem", gpu=lambda: self, clock=self.clock, **options)


@pytest.fixture
def gpu():
    return Gpu()


MANY = {f"config {i}": (50 + i) * 1e-6 for i in range(24)}


def test_times_are_the_devices_with_a_cold_cache_however_slow_the_host_is(gpu):
    """One clear of 90 us was queued before a call: the host, 100 us, was timed instead of kernels below it."""
    times = gpu.measure({"fast": 10e-6, "slow": 12e-6})
    assert times == pytest.approx({"fast": 0.015, "slow": 0.017})


def test_few_samples_of_all_and_more_of_the_best(gpu):
    times = gpu.measure(MANY)
    assert min(times, key=times.__getitem__) == "config 0"
    once = 2  # to load it, and for the host's time
    samples = [gpu.calls[name] - once for name in MANY]
    assert samples == [23] * 3 + [8] * 5 + [3] * 16
    assert sum(samples) == 157
    assert [count for count, _ in RUNGS] == [3, 5, 15]


def test_the_time_of_24_candidates_is_as_stated(gpu):
    gpu.measure(MANY)
    assert gpu.clock.now < 0.1, "0.08 s of samples and 2.4 ms of first runs, kernels being loaded"


def test_a_late_hiccup_of_the_device_decides_nothing(gpu):
    runs = gpu.candidates(MANY)
    slow = iter([0.0] * 10 + [5e-3] + [0.0] * 1000)
    plain = runs["config 0"]

    def hiccup():
        gpu.queue(next(slow))
        plain()

    times = measure(runs | {"config 0": hiccup}, "problem", gpu=lambda: gpu, clock=gpu.clock)
    assert min(times, key=times.__getitem__) == "config 0"


def test_a_slow_problem_stays_in_the_budget_and_each_candidate_has_a_time(gpu):
    times = gpu.measure({name: 1000 * time for name, time in MANY.items()}, budget=1.0)
    assert len(times) == 24
    assert gpu.clock.now < 5.5, "two first runs and a sample of each: 24 * 3 * 0.06 s"


DOES_NOT_FIT = [
    OutOfResources(300000, 232448, "shared memory"),
    TritonError("PTXAS error"),
    RuntimeError("PassManager::run failed"),
    RuntimeError("Triton Error [CUDA]: too many resources requested for launch"),
]


@pytest.mark.parametrize("error", DOES_NOT_FIT)
def test_what_does_not_fit_is_infinite(gpu, error):
    with pytest.warns(UserWarning, match="problem: bad is left out for good"):
        times = gpu.measure({"good": 1e-5, "bad": error})
    assert times["bad"] == math.inf
    assert times["good"] < 1
    assert gpu.calls["bad"] == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("launch failed")])
def test_what_may_work_another_time_has_no_time(gpu, error):
    with pytest.warns(UserWarning, match=r"problem: bad is left out this time: \w+: \w+") as said:
        times = gpu.measure({"good": 1e-5, "bad": error})
    assert set(times) == {"good"}
    assert len(said) == 1


def test_all_failing_raises_nothing(gpu):
    with pytest.warns(UserWarning, match="left out"):
        assert gpu.measure({"a": torch.OutOfMemoryError("a"), "b": DOES_NOT_FIT[0]}) == {"b": math.inf}


def test_no_memory_to_clear_the_cache_is_said_once(gpu):
    def flush():
        raise torch.OutOfMemoryError("CUDA out of memory")

    gpu.flush = flush
    with pytest.warns(UserWarning, match="not measured") as said:
        assert gpu.measure({"a": 1e-5, "b": 1e-5}) == {}
    assert len(said) == 1


def test_a_fault_of_the_device_is_raised_as_what_it_is(gpu):
    fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    runs = gpu.candidates({"good": 1e-5, "later": 1e-5})

    def bad():
        gpu.error = fault  # every call from now on fails so

    with pytest.raises(RuntimeError, match="illegal memory access") as raised:
        measure({"good": runs["good"], "bad": bad, "later": runs["later"]}, "problem", gpu=lambda: gpu)
    assert raised.value is fault
    assert "later" not in gpu.calls
    assert getattr(fault, "__notes__", ["while bad was measured for problem"]) == ["while bad was measured for problem"]


def test_a_candidate_that_fails_only_later_is_left_out(gpu):
    runs = gpu.candidates({"a": 1e-5, "b": 1e-5})
    answers = iter([None] * 6)

    def flaky():
        if next(answers, "end") == "end":
            raise torch.OutOfMemoryError("CUDA out of memory")
        runs["b"]()

    with pytest.warns(UserWarning, match="flaky is left out this time"):
        times = measure({"a": runs["a"], "flaky": flaky}, "problem", gpu=lambda: gpu, clock=gpu.clock)
    assert set(times) == {"a"}
