"""The table that a visit ends with: at most 60 lines, the most worthwhile first."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.gpu import check_journal
from bench.journal import Journal
from bench.results import KINDS, Entries
from bench.suite import GRAPH

if TYPE_CHECKING:
    from bench.gpu.visit import Visit

MOST_LINES = 60
BASELINES = ("cudnn", "torch", "reference", "weight_norm")  # the first of these that a row has


def table(visit: Visit) -> str:
    """What was right, what ran, and every suite's rows beside their baseline, as far as 60 lines go."""
    found = check_journal.summary(check_journal.read(visit.out / "checks.jsonl"))
    unreached = f", {found['planned'] - found['done']} more not reached" if found["planned"] > found["done"] else ""
    lines = [f"checks against float64: {found['passed']} of {found['done']} passed{unreached}"]
    for family, errors in sorted(found["wrong"].items()):
        lines.append(f"  WRONG {family}: {len(errors)}, e.g. {errors[0][:110]}")
    for outcome in visit.outcomes:
        lines.append(f"{outcome.stage:17} {outcome.state:22} {outcome.seconds:6.1f} s  {outcome.what}")
        if outcome.failing:
            lines += [f"    {len(outcome.failing)} tests failed, e.g. {outcome.failing[0][:170]}"]
        elif outcome.state.startswith("failed"):
            lines += [f"    {line[:130]}" for line in outcome.last[-1:]]
    for path in visit.suites:
        lines += _rows(path)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"... and {len(lines) - MOST_LINES + 1} lines more: see summary.md"]
    return "\n".join(line.rstrip() for line in lines)


def _rows(path: Path) -> list[str]:
    """A line for each row of a results file: its contenders' medians in microseconds, the baseline's first."""
    rows: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for info, median in _results(path):
        row = tuple(str(info.get(name)) for name in ("suite", "pass", "net", "layer", "dtype"))
        rows[row][str(info.get("contender"))] = median * 1e6
    lines = []
    for (suite, direction, net, layer, dtype), times in rows.items():
        baseline = next((name for name in BASELINES if {name, name + GRAPH} & times.keys()), "")
        ordered = sorted(times, key=lambda name: (name != baseline, times[name]))
        parts = [f"{name} {times[name]:.1f}" + _ratio(times, baseline, name) for name in ordered[:4]]
        lines.append(f"{suite} {direction} {net} {layer} {dtype}: {'; '.join(parts)}"[:160])
    return lines


def _ratio(times: dict[str, float], baseline: str, name: str) -> str:
    """Like beside like: what replays a CUDA graph beside the baseline's own graph."""
    beside = baseline + GRAPH if name.endswith(GRAPH) else baseline
    return f" (x{times[beside] / times[name]:.2f})" if beside in times and name != beside else ""


def _results(path: Path) -> list[tuple[dict[str, Any], float]]:
    """(what it is of, median seconds) of each result in a results file or journal."""
    return [(entry["extra_info"], statistics.median(entry["stats"]["data"])) for entry in entries(path)["benchmarks"]]


def entries(path: Path) -> Entries:
    """What a results file or a journal holds."""
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        return {kind: content.get(kind, []) for kind in KINDS}
    rows = Journal(path, resume=True).rows.values()
    return {kind: [entry for row in rows for entry in row[kind]] for kind in KINDS}
