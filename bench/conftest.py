"""Ties the lab into pytest: which rows there are, what runs them, what goes into the results file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # before triton_dirac is imported: kernels read it when they are defined
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bench import environment, networks, results
from bench.contenders import CONTENDERS
from bench.lab import Lab
from bench.layers import NETS, layers
from bench.options import Selection, add_options, chosen, require_known
from bench.timing import REPLAY
from triton_dirac.runtime import files

LAB = pytest.StashKey[Lab]()
PARAMETERS = ("net", "layer", "dtype", "direction", "contender")


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def lab_of(config: pytest.Config) -> Lab:
    if LAB not in config.stash:
        if not config.pluginmanager.hasplugin("benchmark"):
            raise pytest.UsageError("the suites need pytest-benchmark: pip install 'triton-dirac[bench]'")
        selection = Selection.of(config)
        require_known("--nets", selection.nets, tuple(NETS))
        nets = (net for net in NETS if chosen(net, selection.nets))
        require_known("--layers", selection.layers, [layer.name for net in nets for layer in layers(net)])
        names = [contender.name for contender in CONTENDERS] + [contender.name for contender in networks.CONTENDERS]
        require_known("--contenders", selection.contenders, names)
        _require_writable(config)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config.stash[LAB] = Lab(selection, device)
    return config.stash[LAB]


def _results_file(config: pytest.Config) -> Path | None:
    """``--benchmark-json``: a path, in older versions of pytest-benchmark an open file."""
    target = config.getoption("benchmark_json", default=None)
    return None if target is None else Path(getattr(target, "name", target) if not isinstance(target, Path) else target)


def _require_writable(config: pytest.Config) -> None:
    """The results file is tried before hours of measuring, and its folder is made."""
    path = _results_file(config)
    if path is None:
        return
    try:
        if path.parts[:1] == ("~",):  # no shell expands it after an =
            raise NotADirectoryError("a folder named ~ is not the home directory")
        files.require_writable(path)
    except OSError as error:
        problem = f"cannot be written ({error}); accepted is a file, there or to be made"
        raise pytest.UsageError(f"--benchmark-json {path}: {problem}") from None


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Lab:
    return lab_of(pytestconfig)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lab" not in metafunc.fixturenames:
        return
    rows = list(lab_of(metafunc.config).rows(metafunc.module.SUITE))
    values = [(layer.net, layer.name, *rest) for layer, *rest in rows]
    metafunc.parametrize(PARAMETERS, values, ids=[" ".join(row) for row in values])


def pytest_itemcollected(item: pytest.Item) -> None:
    if "lab" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.benchmark(timer=REPLAY))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict) -> None:
    lab = lab_of(config)
    command = shlex.join(["pytest", *config.invocation_params.args])
    clocks_after = environment.clocks() if lab.on_gpu else None
    output_json["environment"] = environment.environment(command, lab.clocks_before, clocks_after, lab.load_before)
    output_json["not_run"] = lab.not_run
    output_json["accuracy"] = lab.accuracy
    output_json["counted"] = lab.counted


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """One entry a line in the results file: a third of the size, and a diff that can be read."""
    path = _results_file(session.config)
    if LAB in session.config.stash and path is not None and path.exists():
        results.compact(path)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Options that are each known and select nothing together would pass: pytest skips an empty set of parameters."""
    if LAB in session.config.stash and not any(_measures(item) for item in session.items):
        raise pytest.UsageError("the options together select no measurement in the suites that are named")


def _measures(item: pytest.Item) -> bool:
    reasons = [str(mark.kwargs.get("reason", "")) for mark in item.iter_markers("skip")]
    return "lab" in getattr(item, "fixturenames", ()) and not any("empty parameter set" in text for text in reasons)
