"""How long a GPU is busy with a call: by the device's own events, with a cold L2, behind a queue that hides the host.

Before a sample the L2 is evicted, then the device idles for a while in which the host queues the whole call: no gap
between its kernels is the host's. Whether that succeeded is checked sample by sample, and what failed is measured again
behind a longer idling. The lab and the tuner measure by these same lines.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

Call = Callable[[], Any]

FLUSH_BYTES = 256 * 2**20  # at least; several times the largest L2 (RTX 5090: 96 MiB)
SHORTEST_LEAD, LONGEST_LEAD = 20e-6, 0.2  # seconds that the device idles before a sample
CALIBRATION_CYCLES = 200_000  # about 0.1 ms


class CallWaits(RuntimeError):
    """No lead is long enough: the call waits for the device, or launches more than the driver's queue takes."""


class Event(Protocol):
    """What is used of ``torch.cuda.Event``."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Any) -> float: ...


class Device(Protocol):
    """What measuring needs of a GPU."""

    def event(self) -> Event: ...
    def flush(self) -> None: ...
    def idle(self, seconds: float) -> None: ...
    def synchronize(self) -> None: ...


class Gpu:
    """The current GPU. ``flush`` queues a write of a buffer several times as large as the L2, ``idle`` one thread that
    waits: a call of a thousand launches finds room in the queue behind these two. The buffer is made when needed."""

    @cached_property
    def _buffer(self) -> Tensor:
        l2_bytes = torch.cuda.get_device_properties().L2_cache_size
        return torch.empty(max(FLUSH_BYTES, 4 * l2_bytes), dtype=torch.int8, device="cuda")

    @cached_property
    def _cycles_per_second(self) -> float:
        return CALIBRATION_CYCLES / min(self._seconds_of_cycles(CALIBRATION_CYCLES) for _ in range(3))

    def event(self) -> Event:
        return torch.cuda.Event(enable_timing=True)

    def flush(self) -> None:
        self._buffer.zero_()

    def idle(self, seconds: float) -> None:
        """About so long: the clock that is counted moves. ``device_seconds`` checks whether it was long enough."""
        torch.cuda._sleep(round(seconds * self._cycles_per_second))

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def _seconds_of_cycles(self, cycles: int) -> float:
        start, end = self.event(), self.event()
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        self.synchronize()
        return start.elapsed_time(end) * 1e-3


def host_seconds(device: Device, call: Call, clock: Callable[[], float]) -> float:
    """How long the host is busy with one call, the device being idle."""
    device.synchronize()
    start = clock()
    call()
    return clock() - start


def device_seconds(device: Device, call: Call, lead: float) -> tuple[float, float]:
    """(seconds on the device, the lead that was enough); ``lead``: seconds that the device idles before the call."""
    while True:
        start, end = device.event(), device.event()
        device.flush()
        device.idle(lead)
        start.record()
        call()
        end.record()
        host_was_ahead = not start.query()  # the device has not reached the call: all of it is queued
        device.synchronize()
        if host_was_ahead:
            return start.elapsed_time(end) * 1e-3, lead
        if lead >= LONGEST_LEAD:
            raise CallWaits("the call waits for the device, so device events cannot time it")
        lead = min(max(2 * lead, SHORTEST_LEAD), LONGEST_LEAD)


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """All names, ``rounds`` times, each round starting one place further on."""
    order = list(names)
    for number in range(rounds):
        start = number % max(len(order), 1)
        yield from order[start:] + order[:start]


@contextmanager
def no_collection() -> Iterator[None]:
    """The garbage collector's pauses belong to no contender."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
