"""What the page and the summary say, as plain data for the templates: no HTML here, no numbers there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports import chart, figures, rerun, tables, verdict
from reports.report import Report

WAY = ["run", "suite", "device", "clock", "label"]
EXTREMES = 8  # how many of the largest wins and of the largest losses are named
LONGEST_STEM = 40  # of a file's name: suites are named by whoever wrote the results


def charts(report: Report) -> dict[str, list[chart.Chart]]:
    """File stem -> charts to draw there; "overview" first, the README's picture."""
    speed, by_suite = [], _by_suite(report.comparisons)
    ways = Counter(key[:2] for key, _ in by_suite)
    for (run, suite, *way), of in by_suite:
        told = [word for word in way if word and ways[run, suite] > 1]
        for baseline, part in of.groupby("baseline", sort=False):
            speed.append((" · ".join([f"{suite} against {baseline}", *told]), part))
    label = " · ".join(dict.fromkeys(measured(report, *key) for key in _clocks(report)))
    counted = _counted(report)
    first = figures.speed(speed, label)
    pooled = figures.compiled(report.results.compiled, counted, pooled=True)
    drawn = {"overview": [drawing for drawing in (first, pooled) if drawing]}
    errors = figures.accuracy(tables.with_error_ratios(report.results), "measured against float64")
    drawn["accuracy"] = [errors] if errors else []
    forms = figures.precision(report.precision, "measured on the CPU against float64, one mark per net")
    drawn["precision"] = [forms] if forms else []
    kernels = figures.compiled(report.results.compiled, counted)
    drawn["compiled"] = [kernels] if kernels else []
    floors = figures.loops(report.results.loops, _counted(report))
    drawn["loops"] = [floors] if floors else []
    configs = figures.tuning(report.results, _tuned_how(report))
    drawn["tuning"] = [configs] if configs else []
    for number, ((run, suite, *way), part) in enumerate(by_suite):
        by = ["pass", "dtype", *(["baseline"] if part["baseline"].nunique() > 1 else [])]
        headed = [(" · ".join(filter(None, key)), of) for key, of in part.groupby(by, sort=False)]
        one = figures.speed(headed, measured(report, run, *way))
        stem = "".join(letter if letter.isalnum() else "-" for letter in str(suite)).strip("-") or "suite"
        drawn[f"speed-{number + 1}-{stem[:LONGEST_STEM]}"] = [one] if one else []
    return {name: found for name, found in drawn.items() if found}


def is_figure(stem: str) -> bool:
    """Whether some report's charts may have this name."""
    return stem in ("overview", "accuracy", "precision", "compiled", "loops", "tuning") or stem.startswith(
        ("speed-", "roofline-")
    )


def suites(report: Report) -> list[dict[str, Any]]:
    """For each run, suite and way of timing: the groups' geometric means, then every layer, as rows of cells."""
    found = []
    for key, part in _by_suite(report.comparisons):
        run, suite, device, clock, label = key
        means = _matching(report.groups, key)
        contenders = _ordered(part)
        nets = []
        for (net, dtype), of in part.groupby(["net", "dtype"], sort=False):
            tally = of["verdict"].value_counts()
            nets.append(
                {
                    "net": net,
                    "dtype": dtype,
                    "batch": _batch(of),
                    "tally": {word: int(tally.get(word, 0)) for word in verdict.TALLIED},
                    "contenders": contenders,
                    "rows": _layer_rows(of, contenders),
                }
            )
        found.append(
            {
                "run": run,
                "suite": suite,
                "file": report.results.runs[int(run)]["file"],
                "baselines": _baselines(part),
                "label": timed_on(report, run, device, clock),
                "how": label or "label not stated",
                "samples": _samples(part),
                "summed": contenders,
                "contenders": [name for name in contenders if name in set(means.get("contender", []))],
                "means": _mean_rows(means),
                "totals": _total_rows(_matching(report.totals, key)),
                "nets": nets,
            }
        )
    return found


def extremes(report: Report) -> dict[str, Any]:
    """The largest wins and the largest losses, of our kernels where they were timed, else of everyone."""
    if report.comparisons.empty:
        return {"ours": False, "wins": [], "losses": []}
    decided = report.comparisons[report.comparisons["verdict"].isin([verdict.FASTER, verdict.SLOWER])]
    ours = bool(report.comparisons["ours"].any())
    decided = decided[decided["ours"]] if ours else decided
    wins = decided[decided["verdict"] == verdict.FASTER].sort_values("ratio", ascending=False, kind="stable")
    losses = decided[decided["verdict"] == verdict.SLOWER].sort_values("ratio", kind="stable")
    named = {"wins": wins.head(EXTREMES), "losses": losses.head(EXTREMES)}
    return {"ours": ours, "won": len(wins), "lost": len(losses)} | {
        name: [row | {"anchor": rerun.anchor(row)} for row in frame.to_dict("records")] for name, frame in named.items()
    }


BRIEF = ("gpu", "cpu", "torch", "triton", "commit", "date")


def brief(report: Report) -> dict[str, Any]:
    """For the summary: each run in a line, what to be wary of, contenders with ours first."""
    runs = []
    for run in report.results.runs:
        stated = [str(run["environment"].get(name) or "") for name in BRIEF]
        said = [f"{name} {text[:60]}" for name, text in zip(BRIEF, stated, strict=True) if text]
        runs.append({"file": run["file"], "said": ", ".join(said) or "environment not stated"})
    wary = [f"{run['file']}: {text}" for run in tables.environments(report.results) for text in run["wary"]]
    overall = sorted(report.overall.to_dict("records"), key=lambda row: not verdict.is_ours(row["contender"]))
    return {"runs": runs, "wary": wary, "overall": overall}


def kernels(report: Report) -> list[dict[str, Any]]:
    """For each kernel: a matrix of layers by targets, in each cell what was compiled there."""
    return [_matrix(part, ["net", "layer", "dtype"], "target") for _, part in _each(report.results.compiled, "kernel")]


def loops(report: Report) -> list[dict[str, Any]]:
    """For each target: a matrix of kernels and layers by tiles."""
    return [_matrix(part, ["kernel", "layer", "dtype"], "tile") for _, part in _each(report.results.loops, "target")]


def counted(report: Report) -> list[dict[str, Any]]:
    """For each suite, pass and type: contenders by nets, in each cell launches and bytes over the least."""
    found = []
    for (_, suite, direction, dtype), part in report.counted.groupby(["run", "suite", "pass", "dtype"], sort=False):
        nets = list(dict.fromkeys(part["net"]))
        rows = []
        for (contender, how), of in part.groupby(["contender", "counted_by"], sort=False):
            cells = {row["net"]: row for row in of.to_dict("records")}
            rows.append({"contender": contender, "how": how, "cells": [cells.get(net) for net in nets]})
        found.append({"suite": suite, "pass": direction, "dtype": dtype, "nets": nets, "rows": rows})
    return found


def failed_checks(report: Report) -> list[dict[str, Any]]:
    """Every failed comparison with float64, the worst first."""
    checked = tables.with_error_ratios(report.results)
    wrong = checked[~checked["passed"]].sort_values("over_torch", ascending=False, na_position="first")
    wrong = wrong.assign(checked=[tables.describe_problem(problem) for problem in wrong["problem"]])
    return wrong.to_dict("records")


def unchecked(report: Report) -> int:
    """How many timed results have no comparison with float64 beside them."""
    keys = ["run", "suite", "pass", "net", "layer", "dtype", "contender"]
    checked = set(report.results.accuracy[keys].itertuples(index=False, name=None))
    return sum(place not in checked for place in report.results.benchmarks[keys].itertuples(index=False, name=None))


def measured(report: Report, run: float, device: str, clock: str, label: str) -> str:
    """How a time was obtained: its label, the device by name and the clock."""
    return " · ".join(filter(None, (label or "label not stated", timed_on(report, run, device, clock))))


def timed_on(report: Report, run: float, device: str, clock: str) -> str:
    """The device by name, and the clock."""
    environment = report.results.runs[int(run)]["environment"]
    name = environment.get("gpu") if device == "cuda" else environment.get("cpu") if device == "cpu" else None
    return " · ".join(str(part) for part in (name or device, clock) if part)


def _by_suite(comparisons: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """What was timed by another clock, on another device or not at all is a table of its own."""
    return list(comparisons.groupby(WAY, sort=False)) if len(comparisons) else []


def _matching(frame: pd.DataFrame, key: Sequence[Any]) -> pd.DataFrame:
    return frame[np.logical_and.reduce([frame[name] == of for name, of in zip(WAY, key, strict=True)])]


def _clocks(report: Report) -> list[tuple]:
    if report.comparisons.empty:
        return []
    keys = report.comparisons[["run", "device", "clock", "label"]].drop_duplicates()
    return list(keys.itertuples(index=False, name=None))


def _counted(report: Report) -> str:
    stated = pd.concat([report.results.compiled["label"], report.results.loops["label"]])
    labels = dict.fromkeys(label for label in stated if label)
    return f"{', '.join(labels) or 'label not stated'} from machine code, no GPU needed"


def _tuned_how(report: Report) -> str:
    """How the configs' times were obtained: label and GPU."""
    runs = [report.results.runs[int(run)]["environment"] for run in report.tuned["run"].unique()]
    stated = [*report.tuned["label"], *(str(environment.get("gpu") or "") for environment in runs)]
    return " · ".join(dict.fromkeys(filter(None, stated))) or "label not stated"


def tuned(report: Report) -> list[dict[str, Any]]:
    """For each kernel its problems, those first whose configs lie furthest apart."""
    found = []
    for (_, kernel), part in report.tuned.groupby(["run", "kernel"], sort=False):
        ordered = part.sort_values("median_over_best", ascending=False, kind="stable", na_position="first")
        found.append({"kernel": kernel, "rows": ordered.to_dict("records")})
    return found


def _ordered(part: pd.DataFrame) -> list[str]:
    """Contenders as columns: the baseline, ours, then the others as they come; those of another baseline after them."""
    found = {row[0]: row for row in part[["contender", "baseline", "ours"]].itertuples(index=False, name=None)}
    baselines = _baselines(part)
    return sorted(found, key=lambda name: (baselines.index(found[name][1]), name != found[name][1], not found[name][2]))


def _baselines(part: pd.DataFrame) -> list[str]:
    return sorted(set(part["baseline"]), key=lambda name: name.endswith(verdict.GRAPH))


def _layer_rows(part: pd.DataFrame, contenders: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each problem, with a cell for each contender: None where it was not timed."""
    found: dict[tuple, dict[str, dict[str, Any]]] = {}
    for entry in part.to_dict("records"):  # one groupby a layer would take most of a large report's time
        key = tuple("" if entry[name] is None else entry[name] for name in verdict.COMPARABLE)
        found.setdefault(key, {})[entry["contender"]] = entry
    rows = []
    for cells in found.values():
        first = next(iter(cells.values()))
        timed = [name for name in contenders if name in cells]
        rows.append(
            {
                "pass": first["pass"],
                "layer": first["layer"],
                "occurs": occurs(first["nets"]),
                "anchor": rerun.anchor(first),
                "again": rerun.command(first, timed),
                "cells": [(name, cells.get(name)) for name in contenders],
            }
        )
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    return sorted(rows, key=lambda row: passes.index(row["pass"]))


def occurs(nets: Mapping[str, float]) -> str:
    """ "8 times in the net"; "4 and 6 times in the nets", in the order of their names; "" where each has it once."""
    if all(count == 1 for count in nets.values()):
        return ""
    return f"{' and '.join(f'{count:g}' for count in nets.values())} times in the net{'s' * (len(nets) > 1)}"


def _each(frame: pd.DataFrame, by: str) -> Iterable[tuple[Any, pd.DataFrame]]:
    return frame.groupby(by, sort=False)


def _matrix(frame: pd.DataFrame, by: list[str], across: str) -> dict[str, Any]:
    columns = [name for name in dict.fromkeys(frame[across]) if name]
    rows = []
    for key, part in frame.groupby(by, sort=False):
        cells: dict[str, list[dict[str, Any]]] = {}
        for entry in part.to_dict("records"):
            # What could not be planned has no tile: its reason stands in the first column.
            cells.setdefault(entry[across] or columns[0], []).append(entry)
        rows.append(dict(zip(by, key, strict=True)) | {"cells": [cells.get(name, []) for name in columns]})
    return {
        "columns": columns,
        "rows": rows,
        "total": len(frame),
        **frame.iloc[0][["kernel", "target", "gpu"]],
    }


def _mean_rows(means: pd.DataFrame) -> list[dict[str, Any]]:
    if means.empty:
        return []
    by = [name for name in verdict.GROUP if name not in ("run", "suite")]
    nets = list(dict.fromkeys(means["net"]))  # a net's rows together, also where it shares its layers with another
    rows = []
    for key, of in means.sort_values("net", key=lambda net: net.map(nets.index), kind="stable").groupby(by, sort=False):
        cells = {row["contender"]: row for row in of.to_dict("records")}
        rows.append(dict(zip(by, key, strict=True)) | {"cells": cells, "places": int(of["places"].iloc[0])})
    return rows


def _total_rows(totals: pd.DataFrame) -> list[dict[str, Any]]:
    """Sums over a net's layers, a row for each net, type and pass."""
    rows: dict[tuple, dict[str, Any]] = {}
    for entry in totals.to_dict("records"):
        place = {name: entry[name] for name in ("net", "pass", "dtype")}
        row = rows.setdefault(tuple(place.values()), place | {"cells": {}, "places": entry["places"]})
        row["cells"][entry["contender"]] = entry
    nets = list(dict.fromkeys(row["net"] for row in rows.values()))
    return sorted(rows.values(), key=lambda row: nets.index(row["net"]))


def _samples(part: pd.DataFrame) -> str:
    """ "15 samples a time", "60 samples a time, from 5 processes": what the intervals are made of."""
    timed = part[part["samples"] > 0]
    processes = tables.extent(timed["processes"])
    return f"{tables.extent(timed['samples'])} samples a time" + (
        "" if processes == "1" else f", from {processes} processes"
    )


def _batch(part: pd.DataFrame) -> str:
    """ "batch 16 as timed (published: 128)"; "" where the problems have no batch."""
    batches = sorted({int(batch) for batch in part["batch"].dropna()})
    if not batches:
        return ""
    published = sorted({int(batch) for batch in part["published_batch"].dropna()} - set(batches))
    text = f"batch {', '.join(map(str, batches))} as timed"
    return f"{text} (published: {', '.join(map(str, published))})" if published else text
