"""Samples from several fresh processes: ``--processes N``.

Where memory lies, which plan a library picks, what else the machine does: that is alike for all samples of a process
and differs between processes, so that no sample within one can see it. Here N processes, one after another, run all
rows, each with a journal of its own; their samples are put together row by row, in the order of the processes. A row's
processes lie as far apart in time as the run allows, so that a slow drift meets all rows alike.

A row to which fewer than FEWEST processes came (one died, the budget was spent) has no time and says why; of one to
which fewer than all came the results hold how many, and a warning.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.journal import Journal, Key
from bench.results import Entries

FEWEST = 5  # fewer samples have no interval in reports either (reports.intervals.FEWEST_SAMPLES)
REPLACED = ("--processes", "--benchmark-json", "--journal", "--budget")  # options with a value that children get anew
ENDED_WELL = (0, 1)  # the exit statuses of pytest: all passed, some failed
USAGE = 4


class ProcessesError(Exception):
    """No process can run as it is asked to; the message is what the first one said."""


@dataclass(frozen=True)
class Together:
    """What the processes measured: ``rows``, and of their journals the first environment, all loads and warnings."""

    rows: dict[Key, Entries]
    environment: dict[str, Any]
    loads: list[float | None]  # of the machine before each process
    warnings: list[str]


def journal_of(journal: Path, number: int) -> Path:
    return journal.with_name(f"process-{number}.{journal.name}")


def run(
    arguments: Sequence[str], count: int, journal: Path, minutes: float | None, say: Callable[[str], None]
) -> Together:
    """``count`` processes of pytest with these arguments, one after another, and their rows.

    ``minutes`` is the budget of all. Journals of an earlier run move aside, unless they are gone on with (--resume).
    Raises ProcessesError where a process refuses its arguments.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    paths = journals(journal, count)
    if "--resume" not in arguments:  # a process that dies before its first line would leave the old one standing
        for path in paths.values():
            if path.exists():
                path.replace(path.with_name(path.name + ".old"))
    warnings: list[str] = []
    for number in range(1, count + 1):
        left = None if end is None else max((end - time.monotonic()) / 60 / (count - number + 1), 0.01)
        start = time.monotonic()
        status, output = execute(command(arguments, number, journal, left))
        say(f"process {number} of {count}: {time.monotonic() - start:.0f} s")
        if status == USAGE:
            raise ProcessesError(output.strip())
        if status not in ENDED_WELL:
            said = output.strip().splitlines()[-1:] or ["it said nothing"]
            warnings.append(f"process {number} of {count} ended with status {status}: {said[0]}")
    return together({number: path for number, path in paths.items() if path.exists()}, count, warnings)


def command(arguments: Sequence[str], number: int, journal: Path, minutes: float | None = None) -> list[str]:
    """The first process checks what cannot be timed, too; that is done once."""
    own = [*_without(arguments), "--processes", "1", "--journal", str(journal_of(journal, number))]
    own += ["--only-times"] if number > 1 else []
    own += [] if minutes is None else ["--budget", f"{minutes:.4g}"]
    return [sys.executable, "-m", "pytest", *own]


def journals(journal: Path, count: int) -> dict[int, Path]:
    """Those of all processes, by their numbers."""
    return {number: journal_of(journal, number) for number in range(1, count + 1)}


def together(paths: Mapping[int, Path], count: int, warnings: Sequence[str] = ()) -> Together:
    """The rows of the journals of processes, by their numbers, as one; ``count`` is how many were to be."""
    read = {number: Journal(path, resume=True) for number, path in paths.items()}
    keys = dict.fromkeys(key for one in read.values() for key in one.rows)
    parts = {key: {number: one.rows[key] for number, one in read.items() if key in one.rows} for key in keys}
    said = dict.fromkeys([*warnings, *(warning for one in read.values() for warning in one.warnings)])
    if short := [len(known) for known in parts.values() if len(known) < count]:
        what = "1 row" if len(short) == 1 else f"{len(short)} rows"
        said[f"{what} of {len(keys)}: fewer than {count} processes came to it, in the worst case {min(short)}"] = None
    environments = [one.environment for one in read.values() if one.environment]
    loads = [environment.get("load_before") for environment in environments]
    rows = {key: merged(known, count) for key, known in parts.items()}
    return Together(rows, environments[0] if environments else {}, loads, list(said))


def merged(parts: Mapping[int, Entries], count: int) -> Entries:
    """One row, measured by several processes, by their numbers. Who has no time in one of them has none."""
    first, *others = parts.values()
    timed: dict[str, dict[int, dict[str, Any]]] = {}
    for number, part in parts.items():
        for entry in part["benchmarks"]:
            timed.setdefault(entry["extra_info"]["contender"], {})[number] = entry
    found: Entries = {kind: list(entries) for kind, entries in first.items()}
    found["accuracy"] += [check for part in others for check in part["accuracy"] if not check["passed"]]
    found["not_run"] = [entry for entry in first["not_run"] if entry["contender"] not in timed]
    found["benchmarks"] = []
    for entries in timed.values():
        names = _names(next(iter(entries.values())))
        clocks = {entry["extra_info"]["clock"] for entry in entries.values()}
        without = next((number for number in parts if number not in entries), None)
        if without is not None:
            found["not_run"].append(_why(names, parts[without], without))
        elif len(entries) < FEWEST:
            reason = f"{len(entries)} of {count} processes came to it: an interval over processes takes {FEWEST}"
            found["not_run"].append({**names, "reason": reason})
        elif len(clocks) > 1:
            reason = f"timed by different clocks in different processes: {', '.join(sorted(clocks))}"
            found["not_run"].append({**names, "reason": reason})
        else:
            found["benchmarks"].append(_put_together(list(entries.values())))
    return found


def _put_together(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All samples, how many each process took, and of what else was measured in each the mean; of memory the most."""
    data = [entry["stats"]["data"] for entry in entries]
    infos = [entry["extra_info"] for entry in entries]
    info = {**infos[0], "samples_per_process": [len(part) for part in data]}
    for name in ("clocks_before", "clocks_after"):
        states = [known[name] for known in infos if known.get(name)]
        if states:
            info[name] = {key: _mean([state.get(key) for state in states]) for key in states[0]}
    for name in ("host_us", "first_call_seconds"):
        info[name] = _mean([known.get(name) for known in infos])
    info["peak_bytes"] = max((known["peak_bytes"] for known in infos if known.get("peak_bytes")), default=None)
    info["calls_per_sample"] = [known.get("calls_per_sample") for known in infos]
    if any("times_as_fast_as_cudnn" in known for known in infos):
        ratios = [known.get("times_as_fast_as_cudnn", []) for known in infos]
        info["times_as_fast_as_cudnn"] = [ratio for part in ratios for ratio in part]
    return {**entries[0], "extra_info": info, "stats": {"data": [seconds for part in data for seconds in part]}}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 4) if known else None


def _why(names: dict[str, str], part: Entries, number: int) -> dict[str, Any]:
    known = (entry for entry in part["not_run"] if entry["contender"] == names["contender"])
    left_out = next(known, {**names, "reason": "not timed"})
    return {**left_out, "reason": f"in process {number}: {left_out['reason']}"}


def _names(entry: dict[str, Any]) -> dict[str, str]:
    return {name: entry["extra_info"][name] for name in ("suite", "pass", "net", "layer", "dtype", "contender")}


def _without(arguments: Sequence[str]) -> Iterator[str]:
    """``arguments`` without those of REPLACED, as ``--option value`` or ``--option=value``."""
    waiting = iter(arguments)
    for argument in waiting:
        if argument in REPLACED:
            next(waiting, None)
        elif argument.partition("=")[0] not in REPLACED:
            yield argument


def execute(command: Sequence[str]) -> tuple[int, str]:
    """Exit status, and the last of what it printed, which would fill a pipe that nobody empties."""
    with tempfile.TemporaryFile() as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
        output.seek(max(0, output.tell() - 4000))
        return status, output.read().decode(errors="replace")
