"""How long a call takes: by the wall clock on a CPU, by the device's own events on a GPU.

Both samplers take all contenders of one row together and interleave them, in an order that turns by one place
every round, so that drifting clocks and neighbours meet all of them alike.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch

Call = Callable[[], Any]

SHORTEST_SAMPLE = 3e-4  # seconds of wall clock: 1000 times what reading the clock costs
FLUSH_BYTES = 256 * 2**20  # at least; several times the largest L2 (RTX 5090: 96 MiB)
LONGEST_BACKLOG = 512  # flushes in the queue; the driver blocks the host at about 1000 launches


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


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """All names, ``rounds`` times, each round starting one place further on."""
    order = list(names)
    for number in range(rounds):
        start = number % len(order)
        yield from order[start:] + order[:start]


@contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector's pauses belong to no contender."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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

    with _no_collection():
        estimates = {name: min(elapsed(call, 1) for _ in range(2)) for name, call in calls.items()}
        repeats = {
            name: max(1, math.ceil(SHORTEST_SAMPLE / max(estimate, 1e-9))) for name, estimate in estimates.items()
        }
        one_round = sum(estimates[name] * repeats[name] for name in calls)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for name in turns(calls, rounds_for(budget, one_round, least, most)):
            seconds[name].append(elapsed(calls[name], repeats[name]) / repeats[name])
    return {name: Samples(seconds[name], repeats[name]) for name in calls}


class Event(Protocol):
    """What is used of ``torch.cuda.Event``."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Any) -> float: ...


class Device(Protocol):
    """What the sampler needs of a GPU."""

    def event(self) -> Event: ...
    def flush(self) -> None: ...
    def synchronize(self) -> None: ...


class Gpu:
    """The current GPU. ``flush`` queues a write of a buffer several times as large as the L2."""

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties().L2_cache_size
        self._buffer = torch.empty(max(FLUSH_BYTES, 4 * l2_bytes), dtype=torch.int8, device="cuda")

    def event(self) -> Event:
        return torch.cuda.Event(enable_timing=True)

    def flush(self) -> None:
        self._buffer.zero_()

    def synchronize(self) -> None:
        torch.cuda.synchronize()


def device_samples(
    calls: Mapping[str, Call],
    device: Device,
    clock: Callable[[], float] = time.perf_counter,
    budget: float = 1.0,
    least: int = 10,
    most: int = 30,
) -> dict[str, Samples]:
    """Device-time samples of each call with a cold L2, and the host time per call beside them.

    Before each sample several flushes are queued: they evict the L2, and while the device is busy with them
    the host queues the whole call, so that no gap between its kernels is the host's. Whether that succeeded
    is checked sample by sample, and what failed is measured again behind a longer queue.
    """
    with _no_collection():
        flush_seconds = min(_device_seconds(device, device.flush, 2)[0] for _ in range(3))
        host, backlog, estimate = {}, {}, {}
        for name, call in calls.items():
            host[name] = statistics.median(_host_seconds(device, call, clock) for _ in range(5))
            wanted = 1 + math.ceil(2 * host[name] / max(flush_seconds, 1e-9))
            estimate[name], backlog[name] = _device_seconds(device, call, min(wanted, LONGEST_BACKLOG))
        one_round = sum(estimate[name] + backlog[name] * flush_seconds for name in calls)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for name in turns(calls, rounds_for(budget, one_round, least, most)):
            sample, backlog[name] = _device_seconds(device, calls[name], backlog[name])
            seconds[name].append(sample)
    return {name: Samples(seconds[name], 1, host[name] * 1e6) for name in calls}


def _host_seconds(device: Device, call: Call, clock: Callable[[], float]) -> float:
    """How long the host is busy with one call, the device being idle."""
    device.synchronize()
    start = clock()
    call()
    return clock() - start


def _device_seconds(device: Device, call: Call, backlog: int) -> tuple[float, int]:
    """(seconds on the device, the number of flushes that were enough of a queue)."""
    while True:
        start, end = device.event(), device.event()
        for _ in range(backlog):
            device.flush()
        start.record()
        call()
        end.record()
        host_was_ahead = not start.query()  # the device has not reached the call: all of it is queued
        device.synchronize()
        if host_was_ahead:
            return start.elapsed_time(end) * 1e-3, backlog
        if backlog >= LONGEST_BACKLOG:
            raise RuntimeError("the call waits for the device, so device events cannot time it")
        backlog = min(2 * backlog, LONGEST_BACKLOG)
