"""Without a GPU, kernels run in Triton's interpreter; the variable must be set before they are imported."""

import os
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from bench.options import add_options

BENCH = Path(__file__).parents[1] / "bench"


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)  # a bare ``pytest --benchmark-only --nets A`` loads this file before any of bench/


def pytest_configure(config: pytest.Config) -> None:
    """A bare ``pytest`` runs the tests, ``pytest --benchmark-only`` the suites in their place."""
    bare = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if bare and config.getoption("benchmark_only", default=False):  # absent without pytest-benchmark
        config.args[:] = [str(BENCH)]


@pytest.fixture
def device() -> torch.device:
    """Where kernels are tested: the GPU if there is one, else the CPU through Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every floating tensor that ``torch.empty`` hands out is full of NaN: what is not written shows."""
    for name in ("empty", "empty_like", "empty_strided"):
        original = getattr(torch, name)

        def poisoned(*args, _original=original, **kwargs):
            tensor = _original(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, poisoned)
