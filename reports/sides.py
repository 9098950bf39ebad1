"""One side of a comparison between runs: a results file, a journal, or a folder of several from fresh processes.

Each may be compressed. What a folder holds must be one run: the same machine, code and versions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reports import intervals, verdict
from reports.load import COMPRESSED, ReportError, Results, load

MACHINE = ("gpu", "cpu", "cores")
CODE = ("commit", "code", "torch", "triton")
STATED = (*MACHINE, "threads", "driver", "cuda", "cudnn", "torch", "triton", "python", "commit", "dirty",
          "date", "load_before", "clocks_before", "planted")  # fmt: skip
NAMES = ("suite", "pass", "net", "layer", "dtype", "contender")
OWN = "compare.json"  # what a comparison leaves in a folder is no results file of it
WRONG = "wrong: its result failed the check against float64"
PROCESS = re.compile(r"process-\d+\.")  # the journals of `pytest --processes`, until they are put together

Process = tuple[int, int]  # the file's number, the process's in it
Logs = dict[Process, float]  # of each process the logarithm of a time


class Row(NamedTuple):
    """One contender's time of one pass over one problem; ``problem`` is JSON."""

    suite: str
    pass_: str
    net: str
    layer: str
    dtype: str
    contender: str
    problem: str = ""

    @property
    def name(self) -> str:
        return " ".join(part for part in self[:6] if part)


@dataclass
class Timed:
    """One row on one side: samples in seconds, how they were taken, the GPU's clock beside them in MHz."""

    samples: dict[Process, np.ndarray] = field(default_factory=dict)
    how: set[str] = field(default_factory=set)
    mhz: list[float] = field(default_factory=list)

    def logs(self) -> Logs:
        """The logarithm of each process's median."""
        logs = np.log(intervals.medians(list(self.samples.values())))
        return dict(zip(self.samples, logs.tolist(), strict=True))

    def relative_to(self, other: Timed) -> Logs:
        """The same of its times as multiples of another's, where both are by the same clock in the same process.

        Contenders of a row are timed in rounds: samples of one round are neighbours, and their ratios spread less than
        the times (under load, by half).
        """
        if self.how != other.how:
            return {}
        found: Logs = {}
        for process in self.samples.keys() & other.samples.keys():
            own, beside = np.log(self.samples[process]), np.log(other.samples[process])
            in_rounds = len(own) == len(beside)
            found[process] = float(np.median(own - beside) if in_rounds else np.median(own) - np.median(beside))
        return found


def middle(logs: Logs) -> float:
    """Seconds: the geometric mean of the processes' medians."""
    return math.exp(math.fsum(logs.values()) / len(logs))


@dataclass(frozen=True)
class Side:
    """``left_out``: why a row has no time, by its name. ``baselines``: of each suite."""

    name: str
    environments: list[dict[str, str]]  # of each file
    processes: int
    rows: dict[Row, Timed]
    left_out: dict[str, str]
    baselines: dict[str, str]

    @property
    def machines(self) -> set[str]:
        return {_named(environment, MACHINE) for environment in self.environments}


def read(path: Path, baselines: Mapping[str, str] | None = None) -> Side:
    """A file, or all results files and journals of a folder. ``baselines``: suite -> contender, before the usual.

    Raises ReportError: what cannot be read, holds no times, or is of several runs.
    """
    found = load(_files(path))
    environments = {
        index: {name: _text(run["environment"].get(name)) for name in {*STATED, *CODE}}
        for index, run in enumerate(found.runs)
        if run["kind"] == "results"
    }
    for names, what in ((MACHINE, "machines"), (CODE, "versions")):
        if len(several := sorted({_named(environment, names) for environment in environments.values()})) > 1:
            raise ReportError(f"{path} holds runs of several {what} ({' | '.join(several)}); accepted are those of one")
    rows, sizes = _rows(path, found)
    if not rows:
        raise ReportError(f"{path}: no times; accepted are results files and journals that hold some")
    name = str(path).encode(errors="replace").decode()
    chosen = {suite: contender for (_, suite), contender in verdict.choose_baselines(found, baselines).items()}
    return Side(name, list(environments.values()), sum(sizes.values()), rows, _left_out(found), chosen)


def _rows(path: Path, found: Results) -> tuple[dict[Row, Timed], dict[int, int]]:
    """Every row that was timed and is right, and how many processes each file is of."""
    wrong = {tuple(str(part) for part in where[1:]) for where in verdict.refused(found)}
    rows: dict[Row, Timed] = {}
    sizes: dict[int, int] = {}
    for entry in found.benchmarks.to_dict("records"):
        problem = json.dumps(entry["problem"], sort_keys=True)
        row = Row._make((*(str(entry[name]) for name in NAMES), problem))
        if row[:6] in wrong:
            continue
        file, timed = int(entry["run"]), rows.setdefault(row, Timed())
        sizes[file] = max(sizes.get(file, 0), len(entry["processes"]))
        if (file, 0) in timed.samples:
            raise ReportError(f"{path}: {row.name} is timed by several clocks or devices; accepted is one")
        timed.samples |= {(file, number): samples for number, samples in enumerate(entry["processes"])}
        timed.how.add(", ".join(str(entry[name]) for name in ("device", "clock", "label") if entry[name]))
        timed.mhz += [] if np.isnan(entry["mhz"]) else [entry["mhz"]]
    return rows, sizes


def _left_out(found: Results) -> dict[str, str]:
    reasons = {
        " ".join(str(entry[name]) for name in NAMES if entry[name]): str(entry["reason"])
        for entry in found.not_run.to_dict("records")
    }
    wrong = {" ".join(str(part) for part in where[1:] if part): WRONG for where in verdict.refused(found)}
    return {**reasons, **wrong}


def _files(path: Path) -> list[Path]:
    """A file; of a folder each run once: its results file, or the journal that would have become it."""
    if not path.is_dir():
        return [path]
    runs: dict[str, Path] = {}
    for file in sorted(path.iterdir(), key=lambda file: (_plain(file).suffix != ".json", file.name)):
        if _plain(file).suffix in (".json", ".jsonl") and _plain(file).name != OWN and file.is_file():
            runs.setdefault(_run(file), file)
    # A process's journal beside the file of all of them is a part of that.
    own = [file for run, file in runs.items() if not (PROCESS.match(run) and PROCESS.sub("", run) in runs)]
    if not own:
        raise ReportError(f"{path}: a folder without results; accepted is one with files that end in .json or .jsonl")
    return own


def _plain(file: Path) -> Path:
    return file.with_suffix("") if file.suffix in COMPRESSED else file


def _run(file: Path) -> str:
    return _plain(file).name.removesuffix(".json").removesuffix(".jsonl").removesuffix(".journal")


def _named(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return ", ".join(environment[name] for name in names if environment[name])


def _text(value: Any) -> str:
    """What an environment states, whatever it is, as text; "" where it states nothing."""
    if isinstance(value, Mapping):
        return ", ".join(_pairs(value))
    return "" if value is None else str(value)


def _pairs(value: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name} {part}" for name, part in value.items() if part is not None)
