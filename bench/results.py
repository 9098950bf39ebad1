"""The results file, made small enough to keep in git."""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime import files

KINDS = ("benchmarks", "accuracy", "not_run", "counted")
Entries = dict[str, list[dict[str, Any]]]  # what a row adds to a results file: a list for each of KINDS


class ResultsFile:
    """A results file that holds what there is at any moment, also of a run that is killed.

    pytest-benchmark writes its own when a run ends; ``compact`` gives that a better spelling.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = path, clock
        self._next = -math.inf

    def update(self, document: dict[str, Any]) -> None:
        """Write, if writing so far took less than a twentieth of the time; the journal has the rest."""
        start = self._clock()
        if start >= self._next:
            self.write(document)
            self._next = self._clock() + 20 * (self._clock() - start)

    def write(self, document: dict[str, Any]) -> None:
        """One entry a line: half the size, and differences can be read."""
        try:
            files.replace(self.path, one_entry_a_line(document))
        except OSError as error:  # a full disk: what was there is there
            warnings.warn(f"{self.path} is not written: {error}", stacklevel=2)


def compact(path: Path) -> None:
    """Rewrite a results file in one step."""
    ResultsFile(path).write(json.loads(path.read_text()))


def one_entry_a_line(document: dict[str, Any]) -> str:
    """JSON of ``document`` with each element of its lists, and each other value, on a line of its own."""

    def text(value: Any) -> str:
        if isinstance(value, list) and value:
            return "[\n" + ",\n".join(map(dense, value)) + "\n]"
        return dense(value)

    lines = (f"{dense(key)}:{text(value)}" for key, value in document.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def dense(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def sizes(problem: ConvProblem) -> dict[str, Any]:
    """``problem`` without what it has in common with nearly all: stride 1, dilation 1, one group."""
    usual = {"stride": (1, 1), "dilation": (1, 1), "groups": 1}
    return {name: value for name, value in asdict(problem).items() if usual.get(name) != value}


def digits(value: float, significant: int) -> float:
    """``value`` with so many significant decimal digits."""
    return float(f"{value:.{significant}g}")


def output_folder(text: str) -> Path:
    """A command's ``--output``: tried before what is written there is measured."""
    try:
        files.require_writable(Path(text) / "results.json")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a folder that can be written: {error}") from None
    return Path(text)


def positive(text: str) -> int:
    """A command's number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a positive integer")
    return int(text)
