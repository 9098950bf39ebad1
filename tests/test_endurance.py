"""Long runs and many callers: 10,000 steps cost the same at their end; 64 threads and worker processes."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from triton.runtime.interpreter import GridExecutor

import triton_dirac as td

pytestmark = [pytest.mark.cpu, pytest.mark.slow]  # the host's work and memory
CHUNKS = 20


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_steps(step: Callable[[int], None], steps: int) -> tuple[list[float], list[int], list[int]]:
    """(CPU seconds, Python objects, resident bytes) of each of CHUNKS chunks of so many steps in all."""
    seconds, objects, memory = [], [], []
    size = steps // CHUNKS
    for chunk in range(CHUNKS):
        begin = time.process_time()
        for index in range(size):
            step(chunk * size + index)
        seconds.append(time.process_time() - begin)
        gc.collect()
        objects.append(len(gc.get_objects()))
        memory.append(resident())
    return seconds, objects, memory


def calls_in(work: Callable[[], None]) -> int:
    """Python functions that work enters."""
    entered = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return entered


def training_step(layer: nn.Module, images: Callable[[int], torch.Tensor]) -> Callable[[int], None]:
    """Forward and backward; an optimiser's time is torch's."""
    parameters = list(layer.parameters())

    def step(index: int) -> None:
        torch.autograd.grad(layer(images(index)).square().mean(), parameters)

    return step


@pytest.fixture(autouse=True)
def one_core():
    """Time is the host's, and workers of torch's own that wait for a core would count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_launches(monkeypatch):
    """Kernels are planned and launched as ever, and do nothing."""
    monkeypatch.setattr(GridExecutor, "__call__", lambda self, *args, **kwargs: None)


@pytest.mark.parametrize("shapes", ["one shape", "changing shapes"])
@pytest.mark.parametrize("backend, steps", [("torch", 2_500), ("triton", 10_000)])
def test_thousands_of_steps_are_flat(backend, steps, shapes, no_launches):
    layer = td.DiracConv2d(3, 4, 3, padding=1, backend=backend)
    sizes = random.Random(0)
    fixed = torch.randn(2, 3, 5, 5)

    def images(index: int) -> torch.Tensor:
        if shapes == "one shape":
            return fixed
        # A new shape now and then, old ones in between, as of a data set's images.
        seen = sizes.randrange(1 + index // 5)
        return torch.zeros(1 + seen % 3, 3, 3 + seen // 3 % 29, 3 + seen // 87)

    step = training_step(layer, images)
    for index in range(500):
        step(index)
    calls = calls_in(lambda: step(0))
    seconds, objects, memory = run_steps(step, steps)
    # What is remembered of shapes is bounded, and may grow until then.
    half = len(objects) // 2
    allowed = 500 if shapes == "one shape" else 60_000
    assert max(objects[half:]) - max(objects[:half]) < allowed, f"Python objects: {objects}"
    assert memory[-1] - memory[half] < 2**20 * (8 if shapes == "one shape" else 32), f"resident bytes: {memory}"
    if shapes == "one shape":
        assert calls_in(lambda: step(0)) == calls
        # What no count of calls sees, such as a longer and longer search. The least of several, and a wide limit: a
        # neighbour on the machine has made half as much again of the same steps.
        first, last = min(seconds[:5]), min(seconds[-5:])
        assert last < 2.5 * first, f"CPU seconds of a chunk: {first:.3f} at first, {last:.3f} in the end"


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_sixty_four_threads_call_one_layer(backend):
    layer = td.DiracConv2d(1, 2, 2, backend=backend)
    parameters = list(layer.parameters())
    images = [torch.randn(1 + index % 2, 1, 2 + index % 3, 2) for index in range(6)]

    def call(image: torch.Tensor) -> list[torch.Tensor]:
        output = layer(image)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), parameters)]

    alone = [call(image) for image in images]
    together: list[list[torch.Tensor] | Exception] = [Exception("not run")] * 64
    start = threading.Barrier(64)

    def work(index: int) -> None:
        start.wait()
        try:
            together[index] = call(images[index % len(images)])
        except Exception as error:  # a thread's own goes nowhere
            together[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, results in enumerate(together):
        assert not isinstance(results, Exception), f"thread {index}: {results!r}"
        for result, right in zip(results, alone[index % len(images)], strict=True):
            torch.testing.assert_close(result, right)


class Filtered(Dataset):
    """Images that each worker convolves, as an augmentation would; ``made`` here, before there are workers."""

    def __init__(self, backend: str) -> None:
        self.layer = td.DiracConv2d(3, 4, 3, backend=backend).requires_grad_(False)
        self.images = torch.randn(6, 3, 5, 5)
        self.made = [self.layer(image) for image in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.layer(self.images[index])


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_data_loader_workers(backend, start):
    data = Filtered(backend)
    workers = 2 if start == "fork" else 1  # one that is spawned imports torch
    loader = DataLoader(data, batch_size=2, num_workers=workers, multiprocessing_context=start, timeout=300)
    torch.testing.assert_close(torch.cat(list(loader)), torch.stack(data.made))
