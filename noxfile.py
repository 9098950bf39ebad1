"""nox -s tests | bench | report | alike | lint: everything a person runs, on a fresh machine, with a GPU or without.

All sessions share one environment, ``.nox/lab``: torch is too large to install four times. To use an
environment that has torch already, exactly as it is, name its interpreter: ``LAB_PYTHON=$(which python)``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import nox

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).parent
LAB = ROOT / ".nox" / "lab"
LATEST = ROOT / "reports" / "latest"
PREVIOUS = ROOT / "reports" / "previous"
JOURNAL = "results.journal.jsonl"  # what --resume goes on with
PROJECT = nox.project.load_toml("pyproject.toml")
TORCH, TRITON = "2.13.0", "3.7.1"  # the pair that continuous integration runs

# The environment is our own: where pip is told to install otherwise (pip.conf has user = true, a service sets
# PIP_TARGET) is not where its interpreter looks, and pip refuses --user in it.
INTO_LAB = {"PIP_USER": "0", **dict.fromkeys(("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON"))}

nox.options.sessions = ["tests", "lint"]
nox.options.default_venv_backend = "none"


def has_gpu() -> bool:
    """Whether NVIDIA's driver is there. PyPI has no torch for AMD GPUs: name an environment in LAB_PYTHON."""
    return bool(shutil.which("nvidia-smi"))


def lab(session: nox.Session) -> str:
    """The interpreter of the shared environment, made and filled on first use or when pyproject changes."""
    if named := os.environ.get("LAB_PYTHON"):
        python = os.path.expanduser(named)  # no shell does it in a service's or an IDE's settings
        if shutil.which(python) is None:
            session.error(f"LAB_PYTHON is {named!r}, which is no program; accepted is an interpreter that has torch")
        return python
    with alone_in(LAB.parent, session, "it makes the environment"):
        return made_lab(session)


def made_lab(session: nox.Session) -> str:
    """What ``lab`` promises, where nobody else makes it."""
    python = str(LAB / "bin" / "python")
    stamp = LAB / "installed"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    session.log(f"making the environment {LAB.relative_to(ROOT)}")
    venv.create(LAB, with_pip=True, clear=True)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install")
    install_torch(session, pip)
    groups = nox.project.dependency_groups(PROJECT, "test", "lint")
    # torch again, or timm has pip fetch a newer one, of gigabytes, before it settles; Triton is for Linux only.
    pair = [f"torch=={TORCH}", *([f"triton=={TRITON}"] if sys.platform == "linux" else [])]
    session.run(*pip, *pair, "-e", ".[bench]", *groups, env=INTO_LAB, external=True)
    stamp.write_text(wanted)
    return python


def writes_latest(run: Callable[[nox.Session], None]) -> Callable[[nox.Session], None]:
    """A session that writes into reports/latest/, which ``bench`` moves away: one at a time."""

    @functools.wraps(run)
    def alone(session: nox.Session) -> None:
        with alone_in(LATEST.parent, session, f"it writes into {LATEST}"):
            run(session)

    return alone


@contextlib.contextmanager
def alone_in(folder: Path, session: nox.Session, why: str) -> Iterator[None]:
    """Inside, no other nox is inside with the same folder; the one that comes second waits and says so.

    ``triton_dirac.runtime.files.locked`` for an interpreter that need not have torch.
    """
    if fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            session.log(f"waiting for another nox: {why}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def install_torch(session: nox.Session, pip: tuple[str, ...]) -> None:
    """torch; without a GPU its CPU build, a tenth of the size, wherever pip has been told to find one."""
    if not has_gpu():
        with tempfile.TemporaryFile("w+") as errors:
            try:
                session.run(*pip, f"torch=={TORCH}+cpu", env=INTO_LAB, external=True, stderr=errors)
                return
            except nox.command.CommandFailed:
                errors.seek(0)
                said = errors.read().strip()
        session.log(said)
        if not knows_none(said):
            session.error("torch's CPU build could not be installed; pip's reason stands above")
        session.warn(
            "pip knows no CPU build of torch, so the CUDA build (several GB) follows. To avoid it, name "
            "PyTorch's CPU index in PIP_EXTRA_INDEX_URL, or an environment that has torch in LAB_PYTHON."
        )
    session.run(*pip, f"torch=={TORCH}", env=INTO_LAB, external=True)


def knows_none(said: str) -> bool:
    """Whether pip asked every index and none has the version: no other failure calls for a download of gigabytes.

    pip says so too when it could not ask, after it has said that it tries again.
    """
    return "No matching distribution found for torch==" in said and "Retrying (" not in said


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, a process for each core; without a GPU kernels run in Triton's interpreter. Arguments go to pytest."""
    # One thread each: the tests' tensors are too small to share.
    session.run(
        *(lab(session), "-m", "pytest", "-n", "auto", "--dist", "worksteal", *session.posargs),
        env={"OMP_NUM_THREADS": "1"},
        external=True,
    )


@nox.session
@writes_latest
def bench(session: nox.Session) -> None:
    """Suites, compiled-kernel table and report, into reports/latest/; then, beside the last published run of a like
    machine, what changed. Arguments go to the suites' pytest.

    What was there moves to reports/previous/: a step that is killed leaves nothing, and nothing old may stand in.
    """
    python = lab(session)
    if LATEST.exists() and any(LATEST.iterdir()):
        shutil.rmtree(PREVIOUS, ignore_errors=True)
        LATEST.rename(PREVIOUS)
    LATEST.mkdir(parents=True, exist_ok=True)
    if "--resume" in session.posargs and (PREVIOUS / JOURNAL).exists():
        shutil.copy2(PREVIOUS / JOURNAL, LATEST / JOURNAL)
    suites = ("-m", "pytest", "--benchmark-only", "--benchmark-quiet", "--tb=short")
    results, compiled, moved = result_files(LATEST)
    steps = {
        results: (*suites, f"--benchmark-json={results}", *session.posargs),
        compiled: ("-m", "bench.compile", "--json", str(compiled)),
        moved: ("-m", "bench.compile", "--bytes", "--json", str(moved)),
    }
    failed = []
    for file, step in steps.items():  # one contender that crashes must not cost the reader the report
        try:
            session.run(python, *step, external=True)
        except nox.command.CommandFailed:
            failed.append(file.name if file.exists() else f"{file.name}, which is not there")
        else:
            failed += [] if file.exists() else [f"{file.name}, which is not there"]
    made = [str(file) for file in steps if file.exists()]
    if not made:
        session.error("nothing ran, so there is no report")
    session.run(python, "-m", "reports", *made, "--output", str(LATEST), external=True)
    session.log(f"report: {LATEST / 'index.html'}")
    if results.exists():  # what changed since the last run that is kept of a machine like this; no failure
        since = ("--like", str(results), "--output", str(LATEST / "compare"))
        session.run(python, "-m", "reports.publish", *since, external=True, success_codes=[0, 1, 2])
    if failed:
        session.error(f"not everything ran: {'; '.join(failed)}; the report has the rest")


def result_files(directory: Path) -> list[Path]:
    """What bench writes and report reads."""
    return [directory / f"{name}.json" for name in ("results", "compile", "bytes")]


@nox.session
@writes_latest
def gpu(session: nox.Session) -> None:
    """The most of a few minutes on a GPU: nox -s gpu [-- --budget 9 --out DIR]; -- --rehearse on a machine without."""
    out = () if "--out" in session.posargs else ("--out", str(LATEST / "gpu"))
    session.run(lab(session), "-m", "bench.gpu", *out, *session.posargs, external=True)


@nox.session
@writes_latest
def alike(session: nox.Session) -> None:
    """What comparisons are worth here: nox -s alike [-- --processes 15 --plant auto --out DIR].

    A run against itself may show no change; a slowdown planted in one contender must be found beside its baseline.
    """
    python = lab(session)
    given = session.posargs
    out = Path(given[given.index("--out") + 1]) if "--out" in given[:-1] else LATEST / "alike"
    measured = (python, "-m", "bench.alike", "--out", str(out), *given)
    session.run(*measured, env={"OMP_NUM_THREADS": "1"}, external=True)
    compare = (python, "-m", "reports", "compare", "--margin", "0", str(out / "a"))  # the strictest: any change counts
    alarms = ("--fail-on", "slower", "--fail-on", "faster")
    runs = {
        "a run differs from itself": (*compare, str(out / "b"), *alarms, "--output", str(out / "b")),
        "a run differs from itself, relative times": (
            *compare, str(out / "b"), *alarms, "--relative", "--output", str(out / "b-relative"),
        ),
        "what was planted is not found": (
            *compare, str(out / "planted"), "--fail-on", "slower", "--relative", "--output", str(out / "planted"),
        ),
    }  # fmt: skip
    wrong = []
    for what, command in runs.items():
        try:
            session.run(*command, external=True, success_codes=[1 if "planted" in what else 0])
        except nox.command.CommandFailed:
            wrong.append(what)
    if wrong:
        session.error(f"{'; '.join(wrong)}: more processes tell smaller changes, a quieter machine too")


@nox.session
@writes_latest
def report(session: nox.Session) -> None:
    """Render a report again: nox -s report [-- RESULTS.json ... --output DIR]; reports/latest/ by default."""
    there = [str(file) for file in result_files(LATEST) if file.exists()]
    if not (there or session.posargs):
        session.error(f"no results in {LATEST}: nox -s bench makes them, or name a file after --")
    latest = [*there, "--output", str(LATEST)]
    session.run(lab(session), "-m", "reports", *(session.posargs or latest), external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff (rules and format) and mypy."""
    python = lab(session)
    session.run(python, "-m", "ruff", "check", ".", external=True)
    session.run(python, "-m", "ruff", "format", "--check", ".", external=True)
    session.run(python, "-m", "mypy", external=True)


@nox.session
def fuzz(session: nox.Session) -> None:
    """2,000 new examples of the property-based tests. Arguments go to pytest: --hypothesis-seed repeats a run."""
    session.run(
        *(lab(session), "-m", "pytest", "tests/fuzz", "--hypothesis-profile", "fuzz"),
        *("-n", "auto", "--dist", "worksteal", *session.posargs),
        env={"OMP_NUM_THREADS": "1"},
        external=True,
    )


@nox.session
def versions(session: nox.Session) -> None:
    """The tests on every supported pair of torch and Triton; arguments choose pairs and tests: tests/versions.py."""
    session.run(sys.executable, "-m", "tests.versions", *session.posargs, external=True)


@nox.session
def mutants(session: nox.Session) -> None:
    """Whether tests notice kernels that are wrong by one operator; arguments choose files and how many."""
    session.run(lab(session), "-m", "tests.mutants", *session.posargs, env={"OMP_NUM_THREADS": "1"}, external=True)
