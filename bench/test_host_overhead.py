"""What a call costs the host: Python and dispatcher time of our functions beside torch's own convolution.

On a GPU the calls are real and the clock stops before the device is done. On a CPU the kernels' launches are left
out, while torch's convolution of a few pixels is not: what it computes there takes some 3 us.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from bench.options import chosen
from bench.results import KINDS, Entries, sizes
from bench.suite import names
from bench.timing import Call, Outcomes, Samples, interleaved
from triton_dirac import DiracConv2d, conv2d, dirac_conv2d
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime import launch

SUITE = "host_overhead"
PROBLEM = ConvProblem(1, 8, 4, 4, 8, 3, 3, padding=(1, 1, 1, 1))
CALLS, ROUNDS = 200, 25
KEY = (SUITE, "forward", "any net", "8x4x4-8 3x3", "float32")
CONTENDERS = ("torch", "conv2d", "dirac_conv2d", "DiracConv2d")


@contextmanager
def launches_left_out(device: torch.device) -> Iterator[None]:
    """Nothing on a GPU. On a CPU kernels would run in the interpreter, whose time means nothing."""
    run = launch.Launch.run
    if device.type == "cpu":
        launch.Launch.run = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        launch.Launch.run = run  # type: ignore[method-assign]


def calls_of(device: torch.device) -> dict[str, Call]:
    """Training calls in float32: the input and all parameters want gradients."""
    layer = DiracConv2d(8, 8, 3, padding=1, bias=False, backend="triton").to(device)
    image = torch.randn(PROBLEM.input_shape, device=device).to(memory_format=torch.channels_last).requires_grad_()
    weight, alpha, beta = layer.weight, layer.alpha, layer.beta
    return {
        "torch": lambda: F.conv2d(image, weight, None, 1, 1),
        "conv2d": lambda: conv2d(image, weight, None, 1, 1, backend="triton"),
        "dirac_conv2d": lambda: dirac_conv2d(image, weight, alpha, beta, None, 1, 1, backend="triton"),
        "DiracConv2d": lambda: layer(image),
    }


class HostTimer:
    """Seconds per call on the host; a GPU's queue is drained between samples."""

    estimate = 0.0  # as many samples as there are rounds, however long they take

    def __init__(self, call: Call, device: torch.device) -> None:
        self._call, self._device, self._seconds = call, device, list[float]()
        self._elapsed()

    def sample(self) -> None:
        self._seconds.append(self._elapsed())

    def samples(self) -> Samples:
        return Samples(self._seconds, CALLS)

    def _elapsed(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        for _ in range(CALLS):
            self._call()
        return (time.perf_counter() - start) / CALLS


def host_samples(calls: Mapping[str, Call], device: torch.device) -> Outcomes:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waking others for a few pixels would be torch's convolution's loss
    try:
        with launches_left_out(device):
            return interleaved(calls, lambda call: HostTimer(call, device), 0.0, ROUNDS, ROUNDS)
    finally:
        torch.set_num_threads(threads)


def entries(outcomes: Outcomes, device: torch.device) -> Entries:
    """What the row adds to the results file."""
    found: Entries = {kind: [] for kind in KINDS}
    for contender, outcome in outcomes.items():
        row = names(KEY, contender)
        if isinstance(outcome, Exception):
            found["not_run"].append({**row, "failed": True, "reason": f"{type(outcome).__name__}: {outcome}"})
            continue
        info = {
            **row,
            "count": 1,
            "device": device.type,
            "label": "measured",
            "clock": "wall clock of the host" + ("" if device.type == "cuda" else ", launches left out"),
            "problem": sizes(PROBLEM),
            "calls_per_sample": CALLS,
        }
        data = [round(seconds, 10) for seconds in outcome.seconds]
        found["benchmarks"].append({"name": " ".join((*KEY, contender)), "extra_info": info, "stats": {"data": data}})
    return found


@pytest.mark.benchmark(group=SUITE)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_host_overhead(benchmark, lab, contender):
    if not chosen(contender, lab.selection.contenders) or lab.selection.layers or lab.selection.nets:
        pytest.skip("not selected")
    row = lab.once(KEY, CONTENDERS, lambda: entries(host_samples(calls_of(lab.device), lab.device), lab.device))
    lab.give(benchmark, row, contender)
