"""The times of several calls that do the same: few samples of all, more of the best few (successive halving).

A sample is the lab's (``device_time``): cold L2, behind a queue that hides the host. On an H200 it costs about 0.5 ms:
0.1 to clear the L2, 0.2 to 0.4 for the host to queue the call, and the kernel. Beside it a candidate costs 13 ms: 3 to
look it up in Triton's cache, 10 to load it and run it once. Of 24 candidates that is 24 * 3 + 8 * 5 + 3 * 15 = 157
samples, 0.08 s, and 24 * 0.013 = 0.3 s. A 16-bit layer has 11 candidates a pass (``conv.cycles.promising``; 537 of 51
problems): 118 samples and 11 * 0.013 s, 0.2 s, so 0.6 s for its three passes where all are compiled. Measured there
with 17 candidates a pass, by the same sum 0.9 s, three passes took 2.9 s, which leaves 2 s (not timed apart) to cuDNN's
search among all its plans, made where ``torch.backends.cudnn.benchmark`` is on. Compiling took 3 s more (16 cores).
``BUDGET`` bounds the samples of slow problems.

A candidate that fails costs only itself. What fails for good, because it does not compile or needs more than the GPU
has, gets an infinite time; what may work another time (no memory left just now) gets none. An error after which the
device answers no more, as an illegal access, is raised.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import torch
from triton.errors import TritonError

from triton_dirac.runtime.device_time import Call, Device, Gpu, device_seconds, host_seconds, no_collection, turns

RUNGS = ((3, 1000), (5, 8), (15, 3))  # samples of each, of how many of the best
BUDGET = 0.5  # seconds of samples for one problem; every candidate gets one sample all the same
# What Triton's passes and the driver say of a kernel that asks too much, where they have no class of their own for it.
FOR_GOOD = ("PassManager::run failed", "too many resources")


def measure(
    runs: Mapping[str, Call],
    what: str,
    *,
    gpu: Callable[[], Device] = Gpu,
    clock: Callable[[], float] = time.perf_counter,
    budget: float = BUDGET,
) -> dict[str, float]:
    """Milliseconds of each run, infinity for one that fails for good, none for one that may work another time.

    ``runs`` launch on the current GPU; what they return is dropped at once. ``what`` names the problem in warnings.
    Raises the error of a run that left the device unusable.
    """
    device = gpu()
    attempt = partial(_ends_well, device, what)
    times: dict[str, float] = {}
    able = [name for name, call in runs.items() if attempt(name, call, times)]
    try:
        device.flush()
    except torch.OutOfMemoryError as error:
        _warn(f"{what}: not measured, no memory is left to clear the L2 with", error)
        return times
    samples: dict[str, list[float]] = {name: [] for name in able}
    lead: dict[str, float] = {}

    def sample(name: str) -> None:
        if name not in lead:
            lead[name] = 2 * host_seconds(device, runs[name], clock)
        seconds, lead[name] = device_seconds(device, runs[name], lead[name])
        samples[name].append(seconds * 1e3)

    start = clock()
    with no_collection():
        for count, most in RUNGS:
            able = sorted(able, key=lambda name: statistics.median(samples[name] or [0.0]))[:most]
            for name in turns(able, count):
                in_time = clock() - start < budget or not samples[name]
                if in_time and name in able and not attempt(name, partial(sample, name), times):
                    able.remove(name)
                    del samples[name]
    return times | {name: statistics.median(found) for name, found in samples.items()}


def _ends_well(device: Device, what: str, name: str, call: Call, times: dict[str, float]) -> bool:
    """Whether a call and all it launched end without an error; one that is for good becomes an infinite time."""
    try:
        call()
        device.synchronize()  # a kernel's fault shows when the host waits for it
    except Exception as error:
        if isinstance(error, TritonError) or any(words in str(error) for words in FOR_GOOD):
            times[name] = math.inf
            _warn(f"{what}: {name} is left out for good", error)
        else:
            _raise_if_sticky(device, error, f"while {name} was measured for {what}")
            _warn(f"{what}: {name} is left out this time", error)
        return False
    return True


def _raise_if_sticky(device: Device, error: Exception, when: str) -> None:
    """Raise ``error`` if the device answers no more: all that follows would fail alike, and say less."""
    try:
        device.synchronize()
    except Exception:
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(when)
        raise error from None


def _warn(what: str, error: Exception) -> None:
    first, *_ = str(error).splitlines() or [""]
    warnings.warn(f"{what}: {type(error).__name__}: {first}", stacklevel=2)
