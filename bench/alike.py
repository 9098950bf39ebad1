"""python -m bench.alike --out DIR: a run of the suites against itself, and against itself with a planted slowdown.

Two runs of the same code, A and B, of N processes each, which take turns: A B, B A, A B, ... What a comparison of the
two calls a change is a false alarm. DIR/planted is B with the times of one contender multiplied: what a comparison of A
with it does not call slower is missed.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import processes
from bench.results import KINDS, one_entry_a_line
from triton_dirac.runtime import files

# Calls of torch's that any machine can time: without a GPU 273 times to compare.
SUITES = ("bench/test_weight_prep.py", "bench/test_conv.py", "--benchmark-only", "--benchmark-quiet", "-q", "--dtypes")
SELECTED = ("float32", "--contenders", "reference,weight_norm,auto,torch,torch-nchw,cudnn", "--nets")
DEFAULT = (*SUITES, *SELECTED, "DiracNet-18,DiracNet-28-5,DiracNet-34-2")
RUNS = ("a", "b")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    chosen = tuple(options.pytest) or DEFAULT
    for number in range(1, options.processes + 1):
        for name in RUNS if number % 2 else RUNS[::-1]:
            start = time.monotonic()
            command = [*processes.command(chosen, number, out / f"{name}.journal.jsonl"), "--only-times"]
            status = subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL).returncode
            print(f"{name}, process {number} of {options.processes}: {time.monotonic() - start:.0f} s", flush=True)
            if status not in processes.ENDED_WELL:
                print(f"it ended with status {status}: {' '.join(command)}", file=sys.stderr)
                return 1
    found = {name: results(out / f"{name}.journal.jsonl", options.processes) for name in RUNS}
    contender = options.plant or found["b"]["benchmarks"][0]["extra_info"]["contender"]
    found["planted"] = planted(found["b"], contender, 1 + options.percent / 100)
    for name, document in found.items():
        (out / name).mkdir(exist_ok=True)
        files.replace(out / name / "results.json", one_entry_a_line(document))
    return 0


def results(journal: Path, count: int) -> dict[str, Any]:
    """The results file of one run, from the journals of its processes."""
    found = processes.together(list(processes.journals(journal, count)))
    entries = {kind: [entry for row in found.rows.values() for entry in row[kind]] for kind in KINDS}
    environment = {**found.environment, "processes": count, "warnings": found.warnings}
    return {"environment": environment, **entries}


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
    parser.add_argument("--plant", metavar="CONTENDER", help="whose times are multiplied; default: the first")
    parser.add_argument("--percent", type=float, default=5.0, help="by how much they are slowed; default: %(default)g")
    parser.add_argument(
        "pytest", nargs="*", metavar="-- PYTEST", help="what is run; default: short calls of torch's, 273 times in all"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < processes.FEWEST:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a whole number from {processes.FEWEST}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
