"""How long calls take: by the wall clock on a CPU, by the device's own events on a GPU.

All contenders of one row are timed together and interleaved, in an order that turns by one place every round, so that
drifting clocks and neighbours meet all of them alike. One that raises is left out of what follows; the others go on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from triton_dirac.runtime.device_time import Call, CallWaits, Device, device_seconds, host_seconds, no_collection, turns
from triton_dirac.runtime.device_time import Gpu as Gpu  # what device_samples is given

SHORTEST_SAMPLE = 3e-4  # seconds of wall clock: 1000 times what reading the clock costs
WALL, WALL_COLD, EVENTS = "wall clock", "wall clock, cold L2", "device events, cold L2"


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one for each sample; calls made per sample; on a GPU the host's us per call; whose clock; the
    most memory that a call holds."""

    seconds: list[float]
    calls: int = 1
    host_us: float | None = None
    clock: str = WALL
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


Outcomes = dict[str, Samples | Exception]  # those that raised stand last, in the order in which they did


class Replay:
    """A clock that makes pytest-benchmark record samples taken elsewhere: it reads 0, s1, 0, s2, ..."""

    __name__ = "samples"  # how pytest-benchmark names its timer

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, seconds: Iterable[float]) -> None:
        self._readings = chain.from_iterable((0.0, value) for value in seconds)

    def __call__(self) -> float:
        return next(self._readings)

    def is_read(self) -> bool:
        return next(self._readings, None) is None


REPLAY = Replay()


def record(benchmark: Any, seconds: list[float]) -> None:
    """Hand samples to a ``benchmark`` fixture whose timer is REPLAY; with another timer it would keep that one's time
    of a call that does nothing, which is an error."""
    REPLAY.load(seconds)
    benchmark.pedantic(lambda: None, rounds=len(seconds))
    if not REPLAY.is_read():
        raise RuntimeError("pytest-benchmark kept other times than the samples: the timer of this test is not REPLAY")


def rounds_for(budget: float, one_round: float, least: int, most: int) -> int:
    """How many rounds fit into ``budget`` seconds, between ``least`` and ``most``."""
    return max(least, min(most, int(budget / max(one_round, 1e-9))))


class Timer(Protocol):
    """One call being timed. ``estimate``: about how many seconds a sample takes."""

    estimate: float

    def sample(self) -> None: ...
    def samples(self) -> Samples: ...


def interleaved(
    calls: Mapping[str, Call], timer: Callable[[Call], Timer], budget: float, least: int, most: int
) -> Outcomes:
    """A timer made for each call, then so many rounds of samples as take ``budget`` seconds."""
    timers: dict[str, Timer] = {}
    broken: dict[str, Exception] = {}
    with no_collection():
        for name, call in calls.items():
            try:
                timers[name] = timer(call)
            except Exception as error:
                broken[name] = error
        one_round = sum(known.estimate for known in timers.values())
        for name in turns(timers, rounds_for(budget, one_round, least, most)):
            if name in broken:
                continue
            try:
                timers[name].sample()
            except Exception as error:
                broken[name] = error
    return {name: known.samples() for name, known in timers.items() if name not in broken} | broken


class WallTimer:
    """Wall clock with warm caches; a short call is repeated within a sample."""

    def __init__(self, call: Call, clock: Callable[[], float]) -> None:
        self._call, self._clock, self._seconds = call, clock, list[float]()
        once = min(self._elapsed(1) for _ in range(2))
        self._repeats = max(1, math.ceil(SHORTEST_SAMPLE / max(once, 1e-9)))
        self.estimate = once * self._repeats

    def sample(self) -> None:
        self._seconds.append(self._elapsed(self._repeats) / self._repeats)

    def samples(self) -> Samples:
        return Samples(self._seconds, self._repeats)

    def _elapsed(self, repeats: int) -> float:
        start = self._clock()
        for _ in range(repeats):
            self._call()
        return self._clock() - start


class DeviceTimer:
    """Device events around one call, with a cold L2: see ``triton_dirac.runtime.device_time``.

    The driver's queue takes about 1000 launches: a call of more, or one that waits for the device itself, cannot be
    queued as a whole. It is timed by the wall clock, which its samples say, so that no report compares the two.
    """

    def __init__(self, call: Call, device: Device, clock: Callable[[], float]) -> None:
        self._call, self._device, self._clock, self._seconds = call, device, clock, list[float]()
        self._host = statistics.median(host_seconds(device, call, clock) for _ in range(5))
        self._lead, self._by_events = 2 * self._host, True
        self.estimate = self._sample() + self._lead

    def sample(self) -> None:
        by_events = self._by_events
        sample = self._sample()
        if by_events != self._by_events:  # another clock: the samples before must be by the same
            self._seconds = [self._sample() for _ in self._seconds]
        self._seconds.append(sample)

    def samples(self) -> Samples:
        return Samples(self._seconds, 1, self._host * 1e6, EVENTS if self._by_events else WALL_COLD)

    def _sample(self) -> float:
        if self._by_events:
            try:
                seconds, self._lead = device_seconds(self._device, self._call, self._lead)
                return seconds
            except CallWaits:
                self._by_events = False
        self._device.flush()
        self._device.synchronize()
        start = self._clock()
        self._call()
        self._device.synchronize()
        return self._clock() - start


def wall_samples(
    calls: Mapping[str, Call],
    clock: Callable[[], float] = time.perf_counter,
    budget: float = 0.5,
    least: int = 10,
    most: int = 20,
) -> Outcomes:
    """Wall-clock samples of each call."""
    return interleaved(calls, lambda call: WallTimer(call, clock), budget, least, most)


def device_samples(
    calls: Mapping[str, Call],
    device: Device,
    clock: Callable[[], float] = time.perf_counter,
    budget: float = 1.0,
    least: int = 10,
    most: int = 30,
) -> Outcomes:
    """Device-time samples of each call with a cold L2, and the host time per call beside them."""
    return interleaved(calls, lambda call: DeviceTimer(call, device, clock), budget, least, most)
