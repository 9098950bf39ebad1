"""Samples from several fresh processes: ``--processes N``.

Where memory lies, which plan a library picks, what else the machine does: that is alike for all samples of a process
and differs between processes, so that no sample within one can see it. Here N processes, one after another, run all
rows, each with a journal of its own; their samples are put together row by row, in the order of the processes. A row's
processes lie as far apart in time as the run allows, so that a slow drift meets all rows alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.journal import Journal, Key
from bench.results import Entries

FEWEST = 5  # an interval over fewer processes says nothing
REPLACED = ("--processes", "--benchmark-json", "--journal", "--budget")  # options with a value that children get anew
ENDED_WELL = (0, 1)  # the exit statuses of pytest: all passed, some failed
USAGE = 4


class ProcessesError(Exception):
    """No process can run as it is asked to; the message is what the first one said."""


@dataclass(frozen=True)
class Together:
    """What the processes measured: ``rows``, and of their journals the first environment and all warnings."""

    rows: dict[Key, Entries]
    environment: dict[str, Any]
    warnings: list[str]


def journal_of(journal: Path, number: int) -> Path:
    return journal.with_name(f"process-{number}.{journal.name}")


def run(
    arguments: Sequence[str], count: int, journal: Path, minutes: float | None, say: Callable[[str], None]
) -> Together:
    """``count`` processes of pytest with these arguments, one after another, and their rows.

    ``minutes`` is the budget of all. Raises ProcessesError where the first refuses its arguments.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    warnings: list[str] = []
    for number in range(1, count + 1):
        left = None if end is None else max((end - time.monotonic()) / 60 / (count - number + 1), 0.01)
        start = time.monotonic()
        status, output = _run(command(arguments, number, journal, left))
        say(f"process {number} of {count}: {time.monotonic() - start:.0f} s")
        if status == USAGE:
            raise ProcessesError(output.strip())
        if status not in ENDED_WELL:
            said = output.strip().splitlines()[-1:] or ["it said nothing"]
            warnings.append(f"process {number} of {count} ended with status {status}: {said[0]}")
    return together([path for path in journals(journal, count) if path.exists()], warnings)


def command(arguments: Sequence[str], number: int, journal: Path, minutes: float | None = None) -> list[str]:
    """The first process checks what cannot be timed, too; that is done once."""
    own = [*_without(arguments), "--processes", "1", "--journal", str(journal_of(journal, number))]
    own += ["--only-times"] if number > 1 else []
    own += [] if minutes is None else ["--budget", f"{minutes:.4g}"]
    return [sys.executable, "-m", "pytest", *own]


def journals(journal: Path, count: int) -> Iterator[Path]:
    return (journal_of(journal, number) for number in range(1, count + 1))


def together(paths: Sequence[Path], warnings: Sequence[str] = ()) -> Together:
    """The rows of several journals as one."""
    read = [Journal(path, resume=True) for path in paths]
    keys = dict.fromkeys(key for one in read for key in one.rows)
    rows = {key: merged([one.rows[key] for one in read if key in one.rows]) for key in keys}
    said = dict.fromkeys([*warnings, *(warning for one in read for warning in one.warnings)])
    return Together(rows, next((one.environment for one in read if one.environment), {}), list(said))


def merged(parts: Sequence[Entries]) -> Entries:
    """One row, measured by several processes. Who fails in one of them has no time."""
    first, *others = parts
    found: Entries = {kind: list(entries) for kind, entries in first.items()}
    found["accuracy"] += [check for part in others for check in part["accuracy"] if not check["passed"]]
    found["benchmarks"] = []
    for entry in first["benchmarks"]:
        contender = entry["extra_info"]["contender"]
        entries = [known for part in parts if (known := _of(contender, part))]
        clocks = {known["extra_info"]["clock"] for known in entries}
        if len(entries) < len(parts):
            missing = next(number for number, part in enumerate(parts, 1) if not _of(contender, part))
            found["not_run"].append(_why(contender, parts[missing - 1], missing, entry))
        elif len(clocks) > 1:
            reason = f"timed by different clocks in different processes: {', '.join(sorted(clocks))}"
            found["not_run"].append({**_names(entry), "reason": reason})
        else:
            found["benchmarks"].append(_put_together(entries))
    return found


def _put_together(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All samples, how many each process took, and of what else was measured in each the mean."""
    data = [entry["stats"]["data"] for entry in entries]
    infos = [entry["extra_info"] for entry in entries]
    info = {**infos[0], "samples_per_process": [len(part) for part in data]}
    for name in ("clocks_before", "clocks_after"):
        states = [known[name] for known in infos if known.get(name)]
        if states:
            info[name] = {key: _mean([state.get(key) for state in states]) for key in states[0]}
    info["host_us"] = _mean([known.get("host_us") for known in infos])
    if any("times_as_fast_as_cudnn" in known for known in infos):
        ratios = [known.get("times_as_fast_as_cudnn", []) for known in infos]
        info["times_as_fast_as_cudnn"] = [ratio for part in ratios for ratio in part]
    return {**entries[0], "extra_info": info, "stats": {"data": [seconds for part in data for seconds in part]}}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 4) if known else None


def _of(contender: str, part: Entries) -> dict[str, Any] | None:
    return next((entry for entry in part["benchmarks"] if entry["extra_info"]["contender"] == contender), None)


def _why(contender: str, part: Entries, number: int, entry: dict[str, Any]) -> dict[str, Any]:
    left_out = next((known for known in part["not_run"] if known["contender"] == contender), _names(entry))
    return {**left_out, "reason": f"in process {number}: {left_out.get('reason', 'not timed')}"}


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


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Exit status, and the last of what it printed, which would fill a pipe that nobody empties."""
    with tempfile.TemporaryFile() as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
        output.seek(max(0, output.tell() - 4000))
        return status, output.read().decode(errors="replace")
