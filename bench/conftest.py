"""Ties the lab into pytest: which rows there are, what runs them, what goes into the results file."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import threading
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # before triton_dirac is imported: kernels read it when they are defined
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bench import ceilings, processes
from bench.budget import Budget, worth
from bench.host_calls import subjects
from bench.journal import Journal, JournalError
from bench.lab import Lab
from bench.layers import layers
from bench.nets import NETS
from bench.options import Selection, add_options, chosen, require_known
from bench.results import ResultsFile
from bench.suite import Suite
from bench.timing import REPLAY
from triton_dirac.runtime import files

LAB = pytest.StashKey[Lab]()
PARAMETERS = ("net", "layer", "dtype", "direction", "contender")


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def lab_of(config: pytest.Config) -> Lab:
    if LAB not in config.stash:
        config.stash[LAB] = _make_lab(config)
    return config.stash[LAB]


def contender_names() -> list[str]:
    """Of all suites, each once, whichever of them pytest collects."""
    modules = [import_module(f"bench.{file.stem}") for file in sorted(Path(__file__).parent.glob("test_*.py"))]
    suites = [suite for module in modules if isinstance(suite := getattr(module, "SUITE", None), Suite)]
    of_the_host = [name for subject in subjects() for name in subject.contenders]
    return list(dict.fromkeys([*(contender.name for suite in suites for contender in suite.contenders), *of_the_host]))


def _make_lab(config: pytest.Config) -> Lab:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("the suites need pytest-benchmark: pip install 'triton-dirac[bench]'")
    selection = Selection.of(config)
    require_known("--nets", selection.nets, tuple(NETS))
    nets = (net for net in NETS if chosen(net, selection.nets))
    require_known("--layers", selection.layers, [layer.name for net in nets for layer in layers(net)])
    for option, patterns in (("--contenders", selection.contenders), ("--without", selection.without)):
        require_known(option, patterns, contender_names())
    minutes = config.getoption("budget")
    is_timed = not any(config.getoption(option, None) for option in ("benchmark_disable", "numprocesses"))
    if selection.processes > 1 and not is_timed:
        raise pytest.UsageError("--processes takes times: not with --benchmark-disable, nor with -n")
    path = _results_path(config) if is_timed else None
    _require_writable("--benchmark-json", path)
    journal = _journal(config, path) if is_timed else None
    if selection.processes > 1 and journal is None:
        raise pytest.UsageError("--processes needs --benchmark-json FILE or --journal FILE, beside which theirs are")
    known = config.getoption("ceilings")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    stated = ceilings.of_run(known, gpu) if known else None
    if known and not stated:
        raise pytest.UsageError(f"--ceilings {known}: accepted is a results file or journal with ceilings of {gpu}")
    lab = Lab(
        selection,
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        journal=journal,
        budget=None if minutes is None or selection.processes > 1 else Budget(minutes),
        file=ResultsFile(path) if path else None,
        command=shlex.join(["pytest", *config.invocation_params.args]),
    )
    lab.ceilings = lab.ceilings or stated
    if journal and journal.environment and (differences := journal.differences(lab.environment())):
        raise pytest.UsageError(
            f"--resume: {journal.path} cannot be gone on with: {'; '.join(differences)}. Without --resume it moves "
            "aside and everything is measured anew"
        )
    return lab


def _results_path(config: pytest.Config) -> Path | None:
    """``--benchmark-json``: a path, in older versions of pytest-benchmark an open file."""
    target = config.getoption("benchmark_json", None)
    return None if target is None else Path(getattr(target, "name", target) if not isinstance(target, Path) else target)


def _require_writable(option: str, path: Path | None) -> None:
    """A file is tried before hours of measuring, and its folder is made."""
    if path is None:
        return
    try:
        if path.parts[:1] == ("~",):  # no shell expands it after an =
            raise NotADirectoryError("a folder named ~ is not the home directory")
        files.require_writable(path)
    except OSError as error:
        problem = f"cannot be written ({error}); accepted is a file, there or to be made"
        raise pytest.UsageError(f"{option} {path}: {problem}") from None


def _write_alone(config: pytest.Config) -> None:
    """From now on no other run writes this one's files: it would move its journal aside and replace its results."""
    lab, held = lab_of(config), contextlib.ExitStack()
    config.add_cleanup(held.close)
    for written in (lab.file, lab.journal):
        if written:
            try:
                held.enter_context(files.alone(written.path))
            except TimeoutError as error:
                raise pytest.UsageError(f"{error}; wait for it, or name other files") from None


def _journal(config: pytest.Config, results: Path | None) -> Journal | None:
    beside = results.with_suffix(".journal.jsonl") if results else None
    path, resume = config.getoption("journal") or beside, config.getoption("resume")
    has_more = config.getoption("processes") > 1  # then each of the others has a journal to go on with
    _require_writable("--journal", path)
    if path is None:
        if resume:
            raise pytest.UsageError("--resume needs --benchmark-json FILE or --journal FILE: what is to go on?")
        return None
    try:
        return Journal(path, resume and not has_more)
    except JournalError as error:
        raise pytest.UsageError(f"--resume: {error}") from None


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Lab:
    return lab_of(pytestconfig)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layer" not in metafunc.fixturenames or "lab" not in metafunc.fixturenames:
        return
    suite = metafunc.module.SUITE
    rows = [(row.subject.net, row.subject.name, row.dtype, row.direction, contender)
            for row, contender in lab_of(metafunc.config).rows(suite)]  # fmt: skip
    metafunc.parametrize(PARAMETERS, rows, ids=[" ".join(row) for row in rows])


def pytest_itemcollected(item: pytest.Item) -> None:
    if "lab" in getattr(item, "fixturenames", ()):
        # In front: of several marks pytest-benchmark reads the first alone.
        item.add_marker(pytest.mark.benchmark(timer=REPLAY), append=False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a budget, the most worth first; what is no row of a suite keeps its order, behind them."""
    if LAB not in config.stash or config.getoption("budget") is None:
        return
    lab = lab_of(config)

    def order(item: pytest.Item) -> tuple[Any, ...]:
        suite, place = getattr(getattr(item, "module", None), "SUITE", None), getattr(item, "callspec", None)
        if not isinstance(suite, Suite) or place is None or not isinstance(place.params.get("layer"), str):
            return (True,)  # not one of ours, or of a suite that the selected nets have nothing for
        net, layer, dtype, direction, _ = (place.params[name] for name in PARAMETERS)
        return False, *worth(lab.row(suite, net, layer, dtype, direction), lab.on_gpu)

    items.sort(key=order)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """With ``--processes`` others measure first; the tests then say what they found."""
    config = session.config
    if LAB not in config.stash or config.option.collectonly or session.testsfailed:
        return
    lab = lab_of(config)
    if lab.selection.processes > 1 and lab.journal:
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        say = terminal.write_line if terminal else print
        minutes = config.getoption("budget")
        try:
            lab.take(processes.run(
                config.invocation_params.args, lab.selection.processes, lab.journal.path, minutes, say
            ))  # fmt: skip
        except (processes.ProcessesError, JournalError) as error:
            raise pytest.UsageError(f"--processes: {error}") from None


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict) -> None:
    if LAB in config.stash:
        output_json.update(lab_of(config).end())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """One entry a line in the results file: a third of the size, and a diff that can be read.

    pytest-benchmark has written it, unless nothing was timed: then it holds what was checked and what was not run.
    """
    if LAB not in session.config.stash:
        return
    lab = lab_of(session.config)
    if lab.file and any(lab.results.values()):
        lab.file.write(json.loads(lab.file.path.read_text()) if lab.has_ended else {**lab.end(), **lab.results})
    if lab.has_ended and lab.journal and lab.selection.processes > 1:  # it holds what they hold
        for journal in processes.journals(lab.journal.path, lab.selection.processes).values():
            journal.unlink(missing_ok=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Options that are each known and select nothing together would pass: pytest skips an empty set of parameters."""
    if LAB not in session.config.stash:
        return
    if not any(_measures(item) for item in session.items):
        raise pytest.UsageError("the options together select no measurement in the suites that are named")
    if not session.config.option.collectonly:
        _write_alone(session.config)
    _end_on_sigterm(session.config)


def _end_on_sigterm(config: pytest.Config) -> None:
    """SIGTERM ends a run as Ctrl-C does: what was measured is written."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt("SIGTERM")

    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, interrupt)
        config.add_cleanup(partial(_restore, before))


def _restore(handler: Any) -> None:
    signal.signal(signal.SIGTERM, handler)


def _measures(item: pytest.Item) -> bool:
    reasons = [str(mark.kwargs.get("reason", "")) for mark in item.iter_markers("skip")]
    return "layer" in getattr(item, "fixturenames", ()) and not any("empty parameter set" in text for text in reasons)
