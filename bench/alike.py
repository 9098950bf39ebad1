"""python -m bench.alike --out DIR: a run of the suites against itself, and against itself with a planted slowdown.

Two runs of the same code, A and B, of N processes each, which take turns: A B, B A, A B, ... What a comparison of the
two calls a change is a false alarm. DIR/planted is B with the times of one contender multiplied: what a comparison of A
with it does not call slower is missed. `nox -s alike` does all of it.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import processes
from bench.journal import Journal, JournalError
from bench.results import KINDS, one_entry_a_line
from triton_dirac.runtime import files

# Calls of torch's that any machine can time: without a GPU 273 times to compare, in a minute a process.
SUITES = ("bench/test_weight_prep.py", "bench/test_conv.py", "--benchmark-only", "--benchmark-quiet", "-q", "--dtypes")
SELECTED = ("float32", "--contenders", "reference,weight_norm,auto,torch,torch-nchw,cudnn", "--nets")
DEFAULT = (*SUITES, *SELECTED, "DiracNet-18,DiracNet-28-5,DiracNet-34-2")
RUNS = ("a", "b")
PLANTED = "auto"  # no suite's baseline: the relative times of all others would change with it


class AlikeError(Exception):
    """No run can be compared with itself; the message says why and what is accepted."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with files.locked(options.out, patience=0):
            _measure(tuple(options.pytest) or DEFAULT, options.processes, options.out, options.plant)
            found = {name: results(options.out / f"{name}.journal.jsonl", options.processes) for name in RUNS}
            found["planted"] = planted(found["b"], options.plant, 1 + options.percent / 100)
            for name, document in found.items():
                files.replace(options.out / name / "results.json", one_entry_a_line(document))
    except (AlikeError, JournalError, OSError) as error:
        print(f"bench.alike: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(pytest: Sequence[str], count: int, out: Path, plant: str) -> None:
    """Both runs, process by process, each with a journal of its own."""
    for number in range(1, count + 1):
        for name in RUNS if number % 2 else RUNS[::-1]:
            start = time.monotonic()
            journal = out / f"{name}.journal.jsonl"
            own = processes.journal_of(journal, number)
            own.unlink(missing_ok=True)  # a process that dies before its first line would leave the old one standing
            command = [*processes.command(pytest, number, journal), "--only-times"]
            status, output = processes.execute(command)
            if status not in processes.ENDED_WELL:
                raise AlikeError(f"{name}, process {number} ended with status {status}: {output.strip()[-500:]}")
            if (number, name) == (1, RUNS[0]):  # rather now than when all is measured
                _require_timed(plant, own)
            print(f"{name}, process {number} of {count}: {time.monotonic() - start:.0f} s", flush=True)


def _require_timed(plant: str, journal: Path) -> None:
    rows = Journal(journal, resume=True).rows.values()
    timed = sorted({entry["extra_info"]["contender"] for row in rows for entry in row["benchmarks"]})
    if plant not in timed:
        raise AlikeError(f"--plant {plant}: accepted is one of those that are timed: {', '.join(timed) or 'none'}")


def results(journal: Path, count: int) -> dict[str, Any]:
    """The results file of one run, from the journals of its processes; ``load_before`` is the load before each."""
    paths = processes.journals(journal, count)
    found = processes.together(paths, count)
    entries = {kind: [entry for row in found.rows.values() for entry in row[kind]] for kind in KINDS}
    stated = {"processes": count, "warnings": found.warnings, "load_before": found.loads}
    return {"environment": {**found.environment, **stated}, **entries}


def planted(document: dict[str, Any], contender: str, factor: float) -> dict[str, Any]:
    """``document`` with all times of one contender multiplied, and its environment saying so."""
    changed = copy.deepcopy(document)
    for entry in changed["benchmarks"]:
        if entry["extra_info"]["contender"] == contender:
            entry["stats"]["data"] = [seconds * factor for seconds in entry["stats"]["data"]]
    changed["environment"]["planted"] = f"the times of {contender} are multiplied by {factor:g}"
    return changed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.alike", description="Two runs of the same code, in turns.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a/, b/ and planted/")
    parser.add_argument("--processes", type=_count, default=10, metavar="N", help="of each run; default: %(default)s")
    parser.add_argument(
        "--plant", default=PLANTED, metavar="CONTENDER", help="whose times are multiplied; default: %(default)s"
    )
    parser.add_argument(
        "--percent", type=_percent, default=5.0, help="by how much they are slowed; default: %(default)g"
    )
    parser.add_argument(
        "pytest", nargs="*", metavar="-- PYTEST", help="what is run; default: short calls of torch's, 273 times in all"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < processes.FEWEST:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a whole number from {processes.FEWEST}")
    return int(text)


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a number of percent above 0, up to 1000")
    return value


if __name__ == "__main__":
    sys.exit(main())
