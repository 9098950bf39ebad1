"""What a call costs the host: Python and dispatcher time of our functions beside torch's own convolution.

On a GPU the calls are real and the clock stops before the device is done. On a CPU the kernels' launches are left
out, while torch's convolution of a few pixels is not: what it computes there takes some 3 us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from bench.conftest import lab_of
from bench.options import chosen
from bench.timing import REPLAY, Samples, record, turns
from triton_dirac import DiracConv2d, conv2d, dirac_conv2d
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime import launch

SUITE = "host_overhead"
PROBLEM = ConvProblem(1, 8, 4, 4, 8, 3, 3, padding=(1, 1, 1, 1))
CALLS, ROUNDS = 200, 25
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


def calls_of(device: torch.device) -> dict[str, Callable[[], object]]:
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


def host_samples(calls: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, Samples]:
    """Seconds per call on the host, contenders interleaved; a GPU's queue is drained between samples."""

    def sample(call: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - start) / CALLS

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waking others for a few pixels would be torch's convolution's loss
    with launches_left_out(device):
        for call in calls.values():
            sample(call)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for name in turns(calls, ROUNDS):
            seconds[name].append(sample(calls[name]))
    torch.set_num_threads(threads)
    return {name: Samples(seconds[name], CALLS) for name in calls}


@pytest.fixture(scope="module")
def samples(pytestconfig: pytest.Config) -> dict[str, Samples]:
    device = lab_of(pytestconfig).device
    return host_samples(calls_of(device), device)


@pytest.mark.benchmark(timer=REPLAY, group=SUITE)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_host_overhead(benchmark, pytestconfig, samples, contender):
    lab = lab_of(pytestconfig)
    if not chosen(contender, lab.selection.contenders) or lab.selection.layers or lab.selection.nets:
        pytest.skip("not selected")
    benchmark.extra_info.update(
        {
            "suite": SUITE,
            "pass": "forward",
            "net": "any net",
            "layer": "8x4x4-8 3x3",
            "dtype": "float32",
            "contender": contender,
            "count": 1,
            "device": lab.device.type,
            "label": "measured",
            "clock": "wall clock of the host" + ("" if lab.on_gpu else ", launches left out"),
            "problem": {"N": 1, "C": 8, "H": 4, "W": 4, "K": 8, "R": 3, "S": 3},
            "calls_per_sample": CALLS,
        }
    )
    record(benchmark, samples[contender])
