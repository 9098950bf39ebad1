"""How long a call takes: by the wall clock on a CPU, by the device's own events on a GPU.

Both samplers take all contenders of one row together and interleave them, in an order that turns by one place
every round, so that drifting clocks and neighbours meet all of them alike.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from triton_dirac.runtime.device_time import Call, Device, device_seconds, host_seconds, no_collection, turns
from triton_dirac.runtime.device_time import Gpu as Gpu  # what device_samples is given

SHORTEST_SAMPLE = 3e-4  # seconds of wall clock: 1000 times what reading the clock costs


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one for each sample; calls made per sample; on a GPU the host's us per call."""

    seconds: list[float]
    calls: int = 1
    host_us: float | None = None


class Replay:
    """A clock that makes pytest-benchmark record samples taken elsewhere: it reads 0, s1, 0, s2, ..."""

    __name__ = "samples"  # how pytest-benchmark names its timer

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, seconds: Iterable[float]) -> None:
        self._readings = chain.from_iterable((0.0, value) for value in seconds)

    def __call__(self) -> float:
        return next(self._readings)


REPLAY = Replay()


def record(benchmark: Any, samples: Samples) -> None:
    """Hand ``samples``, to the tenth of a nanosecond, to a ``benchmark`` fixture whose timer is REPLAY."""
    REPLAY.load(round(seconds, 10) for seconds in samples.seconds)
    benchmark.pedantic(lambda: None, rounds=len(samples.seconds))


def rounds_for(budget: float, one_round: float, least: int, most: int) -> int:
    """How many rounds fit into ``budget`` seconds, between ``least`` and ``most``."""
    return max(least, min(most, int(budget / max(one_round, 1e-9))))


def wall_samples(
    calls: Mapping[str, Call],
    clock: Callable[[], float] = time.perf_counter,
    budget: float = 0.5,
    least: int = 10,
    most: int = 20,
) -> dict[str, Samples]:
    """Wall-clock samples of each call, caches warm; short calls are repeated within a sample."""

    def elapsed(call: Call, repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return clock() - start

    with no_collection():
        estimates = {name: min(elapsed(call, 1) for _ in range(2)) for name, call in calls.items()}
        repeats = {
            name: max(1, math.ceil(SHORTEST_SAMPLE / max(estimate, 1e-9))) for name, estimate in estimates.items()
        }
        one_round = sum(estimates[name] * repeats[name] for name in calls)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for name in turns(calls, rounds_for(budget, one_round, least, most)):
            seconds[name].append(elapsed(calls[name], repeats[name]) / repeats[name])
    return {name: Samples(seconds[name], repeats[name]) for name in calls}


def device_samples(
    calls: Mapping[str, Call],
    device: Device,
    clock: Callable[[], float] = time.perf_counter,
    budget: float = 1.0,
    least: int = 10,
    most: int = 30,
) -> dict[str, Samples]:
    """Device-time samples of each call with a cold L2, and the host time per call beside them.

    How a sample is taken: see ``triton_dirac.runtime.device_time``.
    """
    with no_collection():
        flush = min(device_seconds(device, device.flush, 0.0)[0] for _ in range(3))
        host, lead, estimate = {}, {}, {}
        for name, call in calls.items():
            host[name] = statistics.median(host_seconds(device, call, clock) for _ in range(5))
            estimate[name], lead[name] = device_seconds(device, call, 2 * host[name])
        one_round = sum(estimate[name] + lead[name] + flush for name in calls)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for name in turns(calls, rounds_for(budget, one_round, least, most)):
            sample, lead[name] = device_seconds(device, calls[name], lead[name])
            seconds[name].append(sample)
    return {name: Samples(seconds[name], 1, host[name] * 1e6) for name in calls}
