"""The tests on every supported pair of torch and Triton and on every Python.

    nox -s versions [-- NAME ... PYTEST-ARGUMENT ...]

NAMEs choose environments, as in the table or with wildcards: ``py312-torch2.11.0-triton3.6.0``, ``py311-*``. One that
is there already goes by NAME=INTERPRETER and is left as it is. What follows, from the first argument on that begins
with a dash or names a test, goes to pytest. An environment is made in .nox/versions when it is first used. What there
is no interpreter for, or no CPU build, is a row that says so; an environment that is named in full gets the CUDA build
then, which is several GB.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nox

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".nox" / "versions"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PAIRS = (
    # torch, the Triton that it belongs to, and what else has to be held back
    ("2.11.0", "3.6.0", ("numpy<2.4",)),  # Triton 3.6's interpreter takes no newer one: runtime/supported.py
    ("2.13.0", "3.7.1", ()),
    ("2.14.1", "3.8.0", ()),
    ("2.14.1", "3.9.0", ()),  # which no torch brings yet
)


class Environment(NamedTuple):
    """One row of the table."""

    python: str
    torch: str
    triton: str
    others: tuple[str, ...] = ()
    given: str | None = None  # an interpreter that has all of it
    named: bool = False  # in full

    @property
    def name(self) -> str:
        return f"py{self.python.replace('.', '')}-torch{self.torch}-triton{self.triton}"

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.name


class Result(NamedTuple):
    environment: Environment
    found: str  # the versions that ran, as they name themselves
    outcome: str

    @property
    def failed(self) -> bool:
        return not self.outcome.startswith(("passed", "not run"))


def environments() -> list[Environment]:
    return [Environment(python, *pair) for pair in PAIRS for python in PYTHONS]


def chosen(arguments: Sequence[str]) -> tuple[list[Environment], list[str]]:
    """(environments, pytest's arguments). ValueError for a name that is none."""
    known, found, rest = environments(), [], list(arguments)
    while rest and not rest[0].startswith("-") and not (ROOT / rest[0].split("::")[0]).exists():
        name, _, interpreter = rest.pop(0).partition("=")
        matching = [e for e in known if fnmatch.fnmatch(e.name, name)]
        if not matching:
            raise ValueError(f"{name!r} names no environment; there are {', '.join(e.name for e in known)}")
        given = os.path.expanduser(interpreter) if interpreter else None
        found += [e._replace(given=given, named=e.name == name) for e in matching]
    return found or known, rest


def make(environment: Environment) -> str:
    """The environment's interpreter, made and filled on first use. LookupError says what is not to be had."""
    if environment.given:
        return environment.given
    python, stamp = environment.folder / "bin" / "python", environment.folder / "installed"
    project = ROOT / "pyproject.toml"
    wanted = hashlib.sha256(project.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    base = interpreter_of(environment.python)
    if base is None:
        raise LookupError(f"no Python {environment.python} here")
    _quietly([base, "-m", "venv", "--clear", str(environment.folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    torch = f"torch=={environment.torch}"
    try:
        _quietly([*pip, torch if has_gpu() else f"{torch}+cpu"])
    except LookupError:
        if not environment.named:
            raise LookupError(f"pip knows no CPU build of {torch} for Python {environment.python}") from None
        _quietly([*pip, torch])
    table = nox.project.load_toml(project)
    needed = [*table["project"]["optional-dependencies"]["bench"], *nox.project.dependency_groups(table, "test")]
    _quietly([*pip, *environment.others, *needed])
    # Last, in place of the one that a CUDA build brings and that pip sees to whenever it installs.
    _quietly([*pip, "--no-deps", f"triton=={environment.triton}"])
    stamp.write_text(wanted)
    return str(python)


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def interpreter_of(version: str) -> str | None:
    """The path of Python ``version``, also where pyenv has it without its being chosen."""
    homes = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in (*map(str, reversed(homes)), f"python{version}"):
        if path := shutil.which(candidate):
            asked = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
                return path
    return None


def _quietly(command: list[str]) -> None:
    """Run it. LookupError with pip's reason where it fails."""
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PIP_USER": "0"})
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if line.startswith("ERROR: ")] or [f"exit {ran.returncode}"]
        raise LookupError(lines[0].removeprefix("ERROR: "))


VERSIONS = """
import platform, numpy, torch, triton
print(platform.python_version(), *(package.__version__ for package in (torch, triton, numpy)), sep=", ")
"""


def run(environment: Environment, pytest: Sequence[str]) -> Result:
    try:
        python = make(environment)
    except LookupError as missing:
        return Result(environment, "", f"not run: {missing}")
    asked = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True)
    if asked.returncode:
        return Result(environment, "", f"failed: {asked.stderr.strip().splitlines()[-1]}")
    found = asked.stdout.strip()
    if not is_of(environment, found):
        return Result(environment, found, "failed: that is another environment than its name says")
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *pytest]
    code, said = _shown(command)
    lines = [line.strip("= ") for line in said if re.search(r"\d+ (passed|failed|error)", line)] or said or ["nothing"]
    # pytest's 5 is no tests at all: nothing was shown.
    return Result(environment, found, f"{'failed' if code else 'passed'}: {lines[-1]}")


def _shown(command: list[str]) -> tuple[int, list[str]]:
    """Run the tests, showing what they print as they print it: (exit status, the lines)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **out) as running:
        lines = []
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return running.returncode, [line for line in lines if line]


def is_of(environment: Environment, found: str) -> bool:
    """Whether versions are those of the name: Python's to the second number, a build's (+cpu) not at all."""
    python, torch, triton, _ = (version.partition("+")[0] for version in found.split(", "))
    return (python.rpartition(".")[0], torch, triton) == (environment.python, environment.torch, environment.triton)


def table(results: Sequence[Result]) -> str:
    """For the README: one row for each environment."""
    rows = ["| Python, torch, Triton, numpy | tests |", "|---|---|"]
    rows += [f"| {result.found or result.environment.name} | {result.outcome} |" for result in results]
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> int:
    try:
        wanted, pytest = chosen(arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    results = []
    for environment in wanted:
        results.append(run(environment, pytest))
        print(results[-1].environment.name, results[-1].outcome, flush=True)
    print(table(results))
    ran = [result for result in results if not result.outcome.startswith("not run")]
    return int(not ran or any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
