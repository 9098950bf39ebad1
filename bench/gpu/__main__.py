"""``python -m bench.gpu --budget 9 --out DIR``: the most of a few minutes on a GPU, in one command.

Needs no installation and no git: a plain copy of the tree, and Python with torch, Triton and what the extra
``bench`` names. DIR then holds at most eight files, each under 16 MiB: the report (index.html, summary.md,
overview.svg), the results (results.json), the checks (checks.jsonl), what was tuned (<GPU>-triton-<version>.json), what
the stages printed (log.txt) and the table that is also printed last (visit.txt).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.gpu import check_journal, summary
from bench.gpu.stages import STAGES
from bench.gpu.visit import INTERRUPTED, PICKS, ROOT, Visit, sigterm_interrupts
from triton_dirac.runtime import files

MOST_BYTES = 15 * 2**20
KEPT = ("index.html", "summary.md", "overview.svg")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    out: Path = options.out
    with contextlib.ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(files.locked(out, patience=0))
            for name in (*KEPT, "results.json", "checks.jsonl", "visit.txt"):  # an earlier visit's
                (out / name).unlink(missing_ok=True)
            (out / "log.txt").write_bytes(b"")
        except OSError as error:
            print(f"--out must be a folder that can be written, by no other visit: {error}", file=sys.stderr)
            return 2
        return _visit(options)


def _visit(options: argparse.Namespace) -> int:
    out: Path = options.out
    commit = options.commit or _commit(options.commit_file)
    with tempfile.TemporaryDirectory(prefix="triton-dirac-visit-") as work:
        seconds = 60 * options.budget
        chosen = options.stages, options.picks
        visit = Visit(out, Path(work), seconds, options.rehearse, commit, options.wheels, *chosen)
        with sigterm_interrupts():
            visit.run(lambda line: print(line, flush=True))
        _keep(visit)
        table = summary.table(visit)
    (out / "visit.txt").write_text(table + "\n", encoding="utf-8")
    print(table)
    found = check_journal.summary(check_journal.read(out / "checks.jsonl"))
    failed = [o for o in visit.outcomes if o.failing or o.state.startswith("failed")]
    if visit.outcomes[-1].state == INTERRUPTED:
        return 128 + signal.SIGINT
    if not (found["done"] or visit.suites or any(o.state == "done" for o in visit.outcomes)):
        print("bench.gpu: nothing was checked or measured: --budget is too short for any stage", file=sys.stderr)
        return 1
    return 1 if found["wrong"] or failed else 0


def _keep(visit: Visit) -> None:
    """The report and what it was made of, into ``visit.out``."""
    if visit.suites:
        report = Path(visit.work) / "report"
        command = [sys.executable, "-m", "reports", *map(str, visit.suites), "--output", str(report)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        with open(visit.out / "log.txt", "a", encoding="utf-8") as file:
            print(f"\n=== report\n{result.stdout}{result.stderr}", file=file)
        for name in KEPT:
            if (report / name).exists():
                shutil.copy(report / name, visit.out / name)
        documents = {path.stem: path.read_text(encoding="utf-8") for path in visit.suites}
        (visit.out / "results.json").write_text(json.dumps(documents), encoding="utf-8")
    for picks in (visit.work / PICKS).glob("*.json"):
        shutil.copy(picks, visit.out)
    for path in (visit.out / "log.txt", visit.out / "checks.jsonl"):
        if path.exists() and path.stat().st_size > MOST_BYTES:
            path.write_bytes(path.read_bytes()[-MOST_BYTES:])


def _commit(file: Path | None) -> str | None:
    return file.read_text(encoding="utf-8").strip() if file else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument("--budget", type=_minutes, default=9.0, metavar="MINUTES", help="for all of it; 9 by default")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="what is kept; made if it is not there")
    parser.add_argument(
        "--stages",
        type=_stages,
        default=(),
        metavar="NAME,...",
        help=f"these alone, in their order; all by default: {', '.join(stage.name for stage in STAGES)}",
    )
    parser.add_argument("--picks", type=_timings, metavar="FILE", help="what an earlier visit to such a GPU tuned")
    parser.add_argument("--rehearse", action="store_true", help="the same stages, tiny, on a machine without a GPU")
    parser.add_argument("--commit", help="what the tree is a copy of, for the report")
    parser.add_argument("--commit-file", type=_file, metavar="FILE", help="a file that says so")
    parser.add_argument("--wheels", type=_folder, metavar="DIR", help="a folder of unpacked wheels (FlagGems, say)")
    return parser


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e4:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a positive number of minutes")
    return value


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a file, which it is not")
    return path


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a folder, which it is not")
    return path


def _timings(text: str) -> Path:
    path = _file(text)
    try:
        timings = json.loads(path.read_bytes())["timings"]
    except (ValueError, KeyError, TypeError, RecursionError):
        timings = None
    if not isinstance(timings, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a file of timings, as <GPU>-triton-<version>.json is")
    return path


def _stages(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    known = [stage.name for stage in STAGES]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r}: accepted are {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
