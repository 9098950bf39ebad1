"""Results on disk, row by row, as they are measured: what remains of a run that is killed.

A journal is a text file with a JSON object a line; each line is written, flushed and synced as a whole:

    {"environment": {...}}             where and of what code the rows after it are; the last holds for the report
    {"started": [...]}                 a row's key: suite, pass, net, layer, dtype
    {"faulted": [...], "contender": "...", "reason": "..."}       it lost the GPU, and the process ended
    {"warning": "..."}
    {"tuned": [...]}                   at the end of a run, what tuning measured (bench.tuned)
    {"row": [...], "seconds": 1.5, "benchmarks": [...], "accuracy": [...], "not_run": [...], "counted": [...]}

A process killed in mid-line leaves a line without an end: it is no line.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from bench.results import KINDS, Entries, dense

Key = tuple[str, ...]
# A journal goes on where these parts of its environment are the same.
SAME = (
    "gpu",
    "driver",
    "torch",
    "triton",
    "cuda",
    "cudnn",
    "cpu",
    "threads",
    "python",
    "code",
    "batch",
    "contenders",
    "without",
)


class JournalError(Exception):
    """A journal that cannot be gone on with; the message says why and what to do."""


class Journal:
    """The file that rows are appended to. Nothing is written, and no file made, before the first line."""

    def __init__(self, path: Path, resume: bool = False) -> None:
        """With ``resume`` the lines of an existing file are kept: ``environment``, ``rows`` and what follows.

        Without, the file moves aside when the first line is written.

        Raises:
            JournalError: ``path`` holds something else than a journal.
        """
        self.path = path
        self.environment: dict[str, Any] | None = None
        self.rows: dict[Key, Entries] = {}
        self.seconds: dict[Key, float] = {}
        self.unfinished: Counter[Key] = Counter()  # rows that were started and not finished: how often
        self.faulted: dict[Key, dict[str, str]] = {}  # contenders that lost the GPU in a row, and how
        self.warnings: list[str] = []
        self._resume = resume and path.exists()
        self._file: Any = None
        if self._resume:
            self._read()

    def _read(self) -> None:
        for number, line in enumerate(_whole_lines(self.path), 1):
            try:
                entry = json.loads(line)
                if "environment" in entry:
                    self.environment = dict(entry["environment"])
                elif "warning" in entry:
                    self.warnings.append(entry["warning"])
                elif "tuned" in entry:  # told anew when the run that goes on ends
                    continue
                elif "started" in entry:
                    self.unfinished[tuple(entry["started"])] += 1
                elif "faulted" in entry:
                    key = tuple(entry["faulted"])
                    self.faulted.setdefault(key, {})[entry["contender"]] = entry["reason"]
                    self.unfinished[key] -= 1
                else:
                    key = tuple(entry["row"])
                    self.rows[key] = {kind: list(entry[kind]) for kind in KINDS}
                    self.seconds[key] = float(entry["seconds"])
                    del self.unfinished[key]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise JournalError(
                    f"{self.path}:{number} is no line of a journal; start anew without --resume"
                ) from None

    def differences(self, environment: dict[str, Any]) -> list[str]:
        """What is not as it was when the journal was begun, in words."""
        before, environment = self.environment, json.loads(dense(environment))
        return [
            f"{name} was {before.get(name)!r}, is {environment.get(name)!r}"
            for name in SAME
            if before is not None and before.get(name) != environment.get(name)
        ]

    def begin(self, environment: dict[str, Any]) -> None:
        self._append({"environment": environment})

    def start(self, key: Key) -> None:
        self._append({"started": key})

    def warn(self, message: str) -> None:
        self._append({"warning": message})

    def tuned(self, landscapes: list[dict[str, Any]]) -> None:
        self._append({"tuned": landscapes})

    def fault(self, key: Key, contender: str, reason: str) -> None:
        self._append({"faulted": key, "contender": contender, "reason": reason})

    def finish(self, key: Key, seconds: float, entries: Entries) -> None:
        self._append({"row": key, "seconds": round(seconds, 3), **entries})

    def _append(self, line: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self._open()
        self._file.write((dense(line) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _open(self) -> Any:
        if self._resume:
            whole = sum(len(line) + 1 for line in _whole_lines(self.path))
            os.truncate(self.path, whole)  # a line without an end would become a part of the next
            return self.path.open("ab")
        if self.path.exists():
            self.path.replace(self.path.with_name(self.path.name + ".old"))
        return self.path.open("wb")


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]
