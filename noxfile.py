"""nox -s tests | bench | report | lint: everything a person runs, on a fresh machine, with a GPU or without.

All sessions share one environment, ``.nox/lab``: torch is too large to install four times. To use an
environment that has torch already, exactly as it is, name its interpreter: ``LAB_PYTHON=$(which python)``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import venv
from pathlib import Path

import nox

ROOT = Path(__file__).parent
LAB = ROOT / ".nox" / "lab"
LATEST = ROOT / "reports" / "latest"
PROJECT = nox.project.load_toml("pyproject.toml")
TORCH, TRITON = "2.13.0", "3.7.1"  # the pair that continuous integration runs

nox.options.sessions = ["tests", "lint"]
nox.options.default_venv_backend = "none"


def has_gpu() -> bool:
    """Whether NVIDIA's driver is there. PyPI has no torch for AMD GPUs: name an environment in LAB_PYTHON."""
    return bool(shutil.which("nvidia-smi"))


def lab(session: nox.Session) -> str:
    """The interpreter of the shared environment, made and filled on first use or when pyproject changes."""
    if python := os.environ.get("LAB_PYTHON"):
        return python
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
    triton = [f"triton=={TRITON}"] if sys.platform == "linux" else []  # published for Linux only
    session.run(*pip, *triton, "-e", ".[bench]", *groups, external=True)
    stamp.write_text(wanted)
    return python


def install_torch(session: nox.Session, pip: tuple[str, ...]) -> None:
    """torch; without a GPU its CPU build, a tenth of the size, wherever pip has been told to find one."""
    if not has_gpu():
        try:
            session.run(*pip, f"torch=={TORCH}+cpu", external=True)
            return
        except nox.command.CommandFailed:
            session.warn(
                "pip knows no CPU build of torch, so the CUDA build (several GB) follows. To avoid it, name "
                "PyTorch's CPU index in PIP_EXTRA_INDEX_URL, or an environment that has torch in LAB_PYTHON."
            )
    session.run(*pip, f"torch=={TORCH}", external=True)


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
def bench(session: nox.Session) -> None:
    """Suites, compiled-kernel table and report, into reports/latest/. Arguments go to the suites' pytest."""
    python = lab(session)
    LATEST.mkdir(parents=True, exist_ok=True)
    results, compiled, moved = (LATEST / name for name in ("results.json", "compile.json", "bytes.json"))
    suites = ("-m", "pytest", "--benchmark-only", "--benchmark-quiet", "--tb=short", f"--benchmark-json={results}")
    steps = [
        (*suites, *session.posargs),
        ("-m", "bench.compile", "--json", str(compiled)),
        ("-m", "bench.compile", "--bytes", "--json", str(moved)),
        ("-m", "reports", *map(str, (results, compiled, moved)), "--output", str(LATEST)),
    ]
    failed = []
    for step in steps:  # one contender that crashes must not cost the reader the report
        try:
            session.run(python, *step, external=True)
        except nox.command.CommandFailed:
            failed.append(step[1])
    session.log(f"report: {LATEST / 'index.html'}")
    if failed:
        session.error(f"not everything ran: {', '.join(failed)}; the report has the rest")


@nox.session
def report(session: nox.Session) -> None:
    """Render a report again: nox -s report [-- RESULTS.json ... --output DIR]; reports/latest/ by default."""
    latest = [*(str(LATEST / f"{name}.json") for name in ("results", "compile", "bytes")), "--output", str(LATEST)]
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
