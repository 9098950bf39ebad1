"""What a bare ``pytest`` collects: the tests; with ``--benchmark-only`` the suites of bench/ in their place.

A folder named on the command line is always collected: ``pytest bench`` runs the suites too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.options import add_options

ROOT = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)  # here, since options must be known before bench/ is collected


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    suites_only = config.getoption("benchmark_only", default=False)  # absent without pytest-benchmark
    return True if collection_path == ROOT / ("tests" if suites_only else "bench") else None
