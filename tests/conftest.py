"""Tests run where kernels do: on the GPU if there is one, else on the CPU in Triton's interpreter.

The interpreter's variable must be set before kernels are imported.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from bench.options import add_options
from bench.suite import float32_products
from tests import interpreter, memory, placement
from tests.placement import DEVICE

BENCH = Path(__file__).parents[1] / "bench"
if DEVICE.type == "cpu":
    interpreter.quicken()
else:
    placement.place()
CPU_ONLY = ("bench", "reports")  # folders whose tests read files, script devices and never need a GPU


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)  # a bare ``pytest --benchmark-only --nets A`` loads this file before any of bench/


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in CPU_ONLY:
            item.add_marker(pytest.mark.cpu)
        if DEVICE.type != "cpu" and item.get_closest_marker("interpreted"):
            item.add_marker(pytest.mark.skip(reason="about Triton's interpreter: a GPU runs compiled kernels"))


def pytest_collection_finish(session: pytest.Session) -> None:
    memory.settle()


def pytest_configure(config: pytest.Config) -> None:
    """A bare ``pytest`` runs the tests, ``pytest --benchmark-only`` the suites in their place."""
    bare = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if bare and config.getoption("benchmark_only", default=False):  # absent without pytest-benchmark
        config.args[:] = [str(BENCH)]


@pytest.fixture
def device() -> torch.device:
    """Where kernels are tested: the GPU if there is one, else the CPU through Triton's interpreter."""
    return DEVICE


@pytest.fixture(autouse=True)
def _where_kernels_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a GPU machine tensors lie on the GPU, float32 is multiplied in full, and nothing is tuned: a test that is
    about one of these says so itself. Tests marked ``cpu`` see the machine as it is."""
    torch.manual_seed(0)
    if request.node.get_closest_marker("cpu"):
        with placement.as_it_is():
            yield
        return
    if DEVICE.type == "cpu":
        placement.watch(monkeypatch)
        yield
        return
    monkeypatch.setenv("TRITON_DIRAC_AUTOTUNE", "0")
    with float32_products("float32"):
        yield


@pytest.fixture(autouse=True)
def _memory_tells(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _where_kernels_run: None) -> None:
    """Memory is poisoned, and in the interpreter every address that a kernel takes is checked; see ``tests.memory``."""
    if request.node.get_closest_marker("cpu"):
        return
    memory.poison(monkeypatch)
    if DEVICE.type == "cpu":
        memory.guard(monkeypatch)
