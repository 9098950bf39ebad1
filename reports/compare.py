"""python -m reports compare OLD NEW [NEW ...]: what changed between runs, row by row, with an exit status.

OLD and NEW are each a results file, a journal, or a folder of several from fresh processes of the same code. A row is
one contender's time of one pass over one layer; r = median(OLD) / median(NEW) is how many times as fast it became.

    faster, slower   the whole interval of r lies beyond the margin, up or down
    same             the whole interval lies within it
    ambiguous        neither, or too few samples for an interval

The intervals are simultaneous: each has 1 - rate / rows (Bonferroni), so that a run in which nothing changed shows one
faster or slower row or more with a probability of at most ``rate``. With FEWEST processes and more on both sides they
are Welch's, of the logarithms of the processes' medians: they cover what differs between processes. With one process
each they are order statistics of its samples, free of any distribution, and cover what differs within a process alone:
the load of the machine, clocks and places in memory change between processes and can look like a change of the code.

Exit code 0; 1 where a verdict was named by --fail-on; 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from reports import arguments, files, intervals, render, verdict
from reports.load import WHERE, ReportError, load

FEWEST = 5  # processes, from which an interval over processes is made
RATE = 0.05
APPEARED, VANISHED = "appeared", "vanished"
VERDICTS = (verdict.SLOWER, verdict.AMBIGUOUS, verdict.SAME, verdict.FASTER, APPEARED, VANISHED)
MACHINE = ("gpu", "cpu", "cores")
STATED = (
    *MACHINE,
    "driver",
    "torch",
    "triton",
    "cuda",
    "python",
    "commit",
    "dirty",
    "date",
    "clocks_before",
)
SUFFIXES = (".json", ".jsonl")
OWN = "compare.json"

Key = tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """One side: what its processes measured, by row."""

    name: str
    environments: list[dict[str, Any]]
    rows: dict[Key, list[np.ndarray]]  # samples of each process, in seconds

    @property
    def machines(self) -> set[tuple[Any, ...]]:
        return {tuple(environment.get(name) for name in MACHINE) for environment in self.environments}


@dataclass(frozen=True)
class Change:
    """One row of the comparison. Times are medians in seconds; numbers that there are not are None."""

    row: Key
    old: float | None
    new: float | None
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str = ""


def read(path: Path, *, across: bool = False) -> Side:
    """A file, or all results files and journals of a folder. ``across``: rows of any device and clock are alike."""
    found = load(_files(path))
    timed = [index for index, run in enumerate(found.runs) if run["kind"] == "results"]
    rows: dict[Key, list[np.ndarray]] = {}
    for entry in found.benchmarks.to_dict("records"):
        rows.setdefault(_key(entry, across), []).append(entry["samples"])
    # Of a row that some processes lack the interval would go over fewer of them than it says.
    whole = {row: processes for row, processes in rows.items() if len(processes) == len(timed)}
    return Side(str(path), [found.runs[index]["environment"] for index in timed], whole)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    named = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.name != OWN)
    results = {file for file in named if file.suffix == ".json"}
    # A journal beside the results file that it became is the same run.
    own = [file for file in named if file in results or file.with_name(_result_of(file)) not in results]
    if not own:
        raise ReportError(f"{path}: a folder without results; accepted is one with files that end in .json or .jsonl")
    return own


def _result_of(journal: Path) -> str:
    return journal.name.removesuffix(".jsonl").removesuffix(".journal") + ".json"


def _key(entry: dict[str, Any], across: bool) -> Key:
    problem = json.dumps(entry["problem"], sort_keys=True)
    where = () if across else (entry["device"], entry["clock"], entry["label"])
    return (*(str(entry[name]) for name in WHERE[1:]), entry["contender"], *where, problem)


def changes(old: Side, new: Side, *, margin: float, rate: float = RATE) -> list[Change]:
    """Every row of either side, the worst first."""
    shared = [row for row in old.rows if row in new.rows]
    found = [_change(row, old.rows[row], new.rows[row], margin, 1 - rate / max(len(shared), 1)) for row in shared]
    found.sort(key=lambda change: (VERDICTS.index(change.verdict), change.ratio or 0))
    for side, other, word in ((new, old, APPEARED), (old, new, VANISHED)):
        for row in (row for row in side.rows if row not in other.rows):
            time = _middle(side.rows[row])
            before, after = (None, time) if word == APPEARED else (time, None)
            found.append(Change(row, before, after, None, None, None, word))
    return found


def _change(row: Key, old: list[np.ndarray], new: list[np.ndarray], margin: float, confidence: float) -> Change:
    before, after = _middle(old), _middle(new)
    interval, reason = _interval(old, new, confidence)
    if interval is None:
        return Change(row, before, after, before / after, None, None, verdict.AMBIGUOUS, reason)
    word = verdict.word(intervals.Estimate(before / after, *interval), margin)
    return Change(row, before, after, before / after, *interval, word)


def _middle(processes: list[np.ndarray]) -> float:
    return float(np.exp(np.mean(np.log([np.median(samples) for samples in processes]))))


def _interval(
    old: list[np.ndarray], new: list[np.ndarray], confidence: float
) -> tuple[tuple[float, float] | None, str]:
    """(interval of r, ""), or (None, what is missing)."""
    if min(len(old), len(new)) >= FEWEST:
        before, after = (np.log([np.median(samples) for samples in side]) for side in (old, new))
        return _welch(before, after, confidence), ""
    if len(old) > 1 or len(new) > 1:
        return None, f"{len(old)} and {len(new)} processes: an interval over processes takes {FEWEST} on either side"
    each = 1 - (1 - confidence) / 2  # one interval for either median; both hold with ``confidence``
    needed = math.ceil(math.log2(2 / (1 - each)))
    fewest = min(len(old[0]), len(new[0]))
    if fewest < needed:
        return None, f"{fewest} samples, of {needed} that {100 * confidence:.4g} % take"
    (old_low, old_high), (new_low, new_high) = (_covering(side[0], each) for side in (old, new))
    return (old_low / new_high, old_high / new_low), ""


def _covering(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The narrowest pair of order statistics that covers the median with at least this confidence."""
    ordered, n = np.sort(samples), len(samples)
    k = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))
    k -= stats.binom.cdf(k - 1, n, 0.5) > (1 - confidence) / 2  # ppf may round up
    return float(ordered[max(k, 1) - 1]), float(ordered[n - max(k, 1)])


def _welch(old: np.ndarray, new: np.ndarray, confidence: float) -> tuple[float, float]:
    parts = np.array([side.var(ddof=1) / len(side) for side in (old, new)])
    spread = float(np.sqrt(parts.sum()))
    difference = float(old.mean() - new.mean())
    if spread == 0:
        return math.exp(difference), math.exp(difference)
    freedom = parts.sum() ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (old, new), strict=True))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * spread
    return math.exp(difference - half), math.exp(difference + half)


# --- what is written ---------------------------------------------------------------------------------------


def document(old: Side, new: Side, found: Sequence[Change], margin: float, rate: float, across: bool) -> dict[str, Any]:
    """All of a comparison as plain data: what the page, the summary and the JSON are made of."""
    tally = {word: sum(change.verdict == word for change in found) for word in VERDICTS}
    sides: list[dict[str, Any]] = [
        {
            "name": side.name,
            "processes": len(side.environments),
            "stated": {name: side.environments[0].get(name) for name in STATED},
        }
        for side in (old, new)
    ]
    first, second = (side["stated"] for side in sides)
    differing = {name: [first[name], second[name]] for name in STATED if first[name] != second[name]}
    return {
        "sides": sides,
        "differing": differing,
        "margin": margin,
        "rate": rate,
        "over_processes": min(len(old.environments), len(new.environments)) >= FEWEST,
        "across_machines": across and old.machines != new.machines,
        "tally": tally,
        "words": ", ".join(f"{count} {word}" for word, count in tally.items() if count) or "no row",
        "changes": [asdict(change) | {"row": list(change.row)} for change in found],
    }


def written(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Name -> content of compare.json, compare.md and compare.html."""
    context = {"documents": documents, "signs": render.SIGNS, "fewest": FEWEST}
    return {
        OWN: json.dumps({"kind": "comparison", "comparisons": documents}, indent=1, allow_nan=False) + "\n",
        "compare.md": render.environment(markdown=True).get_template("compare.md.j2").render(context),
        "compare.html": render.environment().get_template("compare.html.j2").render(context),
    }


def main(given: Sequence[str]) -> int:
    options = _parser().parse_args(given)
    margin, rate = options.margin / 100, options.rate / 100
    try:
        old, *news = (read(path, across=options.across_machines) for path in (options.old, *options.new))
        for side in news:
            if side.machines != old.machines and not options.across_machines:
                raise ReportError(
                    f"{side.name} is of another machine ({_said(side)}) than {old.name} ({_said(old)}); accepted is "
                    "the same, or --across-machines"
                )
        documents = [
            document(old, new, changes(old, new, margin=margin, rate=rate), margin, rate, options.across_machines)
            for new in news
        ]
        pages = written(documents)
        if options.output:
            files.write({options.output / name: content for name, content in pages.items()})
    except ReportError as error:
        print(f"reports compare: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"reports compare: --output {options.output}: cannot be written ({error})", file=sys.stderr)
        return 2
    encoding = sys.stdout.encoding or "utf-8"
    print(pages["compare.md"].encode(encoding, "backslashreplace").decode(encoding), end="")
    return int(any(one["tally"][word] for one in documents for word in options.fail_on))


def _said(side: Side) -> str:
    return "; ".join(sorted(", ".join(str(part) for part in machine if part) for machine in side.machines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reports compare",
        description="What changed between runs. A folder is a run of as many fresh processes as it has files.",
    )
    parser.add_argument("old", type=arguments.path, metavar="OLD")
    parser.add_argument("new", type=arguments.path, nargs="+", metavar="NEW")
    parser.add_argument(
        "--output", type=arguments.path, metavar="DIR", help="also write compare.html, compare.md, compare.json"
    )
    parser.add_argument(
        "--margin", type=arguments.percent, default=verdict.DEFAULT_MARGIN * 100, metavar="PERCENT",
        help="changes within this are called the same; default: %(default)g",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=arguments.percent, default=RATE * 100, metavar="PERCENT",
        help="the probability of one false alarm or more among all rows; default: %(default)g",
    )  # fmt: skip
    parser.add_argument(
        "--fail-on", action="append", default=[], choices=VERDICTS, help="exit with 1 if a row is; may be repeated"
    )
    parser.add_argument(
        "--across-machines", action="store_true", help="compare runs of different machines, devices and clocks"
    )
    return parser
