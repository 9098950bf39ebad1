"""Who is compared with whom, and the word for it.

A comparison stands between a contender and its suite's baseline on the same layer, pass, type, problem,
device and clock, within one run. With the ratio r = median(baseline) / median(contender), "times as fast":

    faster      the whole 95 % interval of r lies above 1 + margin
    slower      the whole interval lies below 1 / (1 + margin)
    same        the whole interval lies between the two
    ambiguous   the interval straddles a limit, or too few samples give none: undecided

Like is compared with like: a call that is replayed from a CUDA graph, such as ``prepared-graph``, stands beside the
baseline's own graph, ``reference-graph``, and not beside its eager call, whose time is mostly the host's.

Of samples from several processes r is the median of each process's ratio, and the interval goes over the processes.

A contender whose result failed the check against float64 has no time: ``wrong``. Where the baseline has none
there is nothing to compare with: ``no baseline``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd

from reports import ceilings, intervals
from reports.load import WHERE, ReportError, Results

FASTER, SAME, SLOWER, AMBIGUOUS = "faster", "same", "slower", "ambiguous"
WRONG, BASELINE, NO_BASELINE = "wrong", "baseline", "no baseline"
TALLIED = (FASTER, SAME, SLOWER, AMBIGUOUS, WRONG)
DEFAULT_MARGIN = 0.03  # run-to-run drift of clocks and placement, which no interval within one run can see

# The first that was timed; suites that are not named here take the first of OTHER_BASELINES.
BASELINES = {
    "weight_prep": ("weight_norm", "reference"),
    "weight_prep_nets": ("weight_norm", "reference"),
    "conv": ("cudnn", "torch"),
    "dirac_block": ("reference",),
}
OTHER_BASELINES = ("reference", "torch", "cudnn")
# One loader of ours where "triton" has its choice: they explain its time, and their losses are not the project's.
FORCED = ("triton-gather", "triton-tile")

GRAPH = "-graph"  # ends the name of a contender whose call is replayed from a CUDA graph

# What must agree between two measurements to compare them; without layer and problem it is a group.
COMPARABLE = [*WHERE, "device", "clock", "label", "problem_key"]
ADDED = [
    "place", "baseline", "ours", "median", "low", "high", "ratio", "ratio_low", "ratio_high",
    "flop_per_s", "bytes_per_s", "share", "verdict",
]  # fmt: skip
SUMMARISED = ("place", "contender", "baseline", "verdict", "ratio", "ratio_low", "ratio_high", "count", "layer")
MEANS = [
    "geomean", "geomean_low", "geomean_high", "geomean_verdict",
    "geomean_by_count", "geomean_by_count_low", "geomean_by_count_high",
    "worst", "worst_layer", "best", "best_layer",
]  # fmt: skip
GROUP = ["run", "suite", "pass", "net", "dtype", "device", "clock", "label"]

Processes = Sequence[np.ndarray]  # the samples of each
Record = Mapping[str, Any]  # a line of a frame


def is_ours(contender: str) -> bool:
    """Whether a contender runs a Triton kernel of this project as a user gets it: their names start so."""
    return contender.startswith("triton") and contender not in FORCED


def against(contender: str, baseline: str) -> str:
    """What ``contender`` is compared with in a suite of this baseline: the same that is, replayed where it is."""
    return baseline + GRAPH if contender.endswith(GRAPH) else baseline


def choose_baselines(results: Results, chosen: Mapping[str, str] | None = None) -> dict[tuple[int, str], str]:
    """(run, suite) -> the contender that the others are compared with, those in graphs with its graph.

    ``chosen`` maps suites to contenders and goes before the defaults; a name that no run timed is refused.
    """
    chosen = {suite: contender.removesuffix(GRAPH) for suite, contender in (chosen or {}).items()}
    timed = results.benchmarks.groupby(["run", "suite"], sort=False)["contender"]
    baselines = {}
    for (run, suite), contenders in timed:
        plain = contenders.str.removesuffix(GRAPH)
        present = list(plain.value_counts(sort=False).sort_values(ascending=False, kind="stable").index)
        wanted = (chosen.get(suite, ""), *BASELINES.get(suite, OTHER_BASELINES), *OTHER_BASELINES)
        baselines[int(run), str(suite)] = next((name for name in wanted if name in present), present[0])
    for suite, contender in chosen.items():
        if contender not in {name for (_, of), name in baselines.items() if of == suite}:
            known = sorted(set(results.benchmarks.query("suite == @suite")["contender"]))
            accepted = f"timed there: {', '.join(known)}" if known else "no such suite in these results"
            raise ReportError(f"--baseline {suite}={contender}: {accepted}")
    return baselines


def compare(
    results: Results, baselines: Mapping[tuple[int, str], str], *, margin: float = DEFAULT_MARGIN
) -> pd.DataFrame:
    """One row for every timed or refused contender: its median, its ratio to the baseline and the verdict.

    Times are in seconds. Columns beside those of ``results.benchmarks``: place (a number: rows that agree in
    COMPARABLE have the same), baseline, ours, batch, median, low, high, ratio, ratio_low, ratio_high, flop_per_s,
    bytes_per_s, share (of the measured ceiling), verdict; samples and processes are their numbers.
    """
    benchmarks = results.benchmarks.assign(
        count=results.benchmarks["count"].fillna(1),
        problem_key=[json.dumps(problem, sort_keys=True) for problem in results.benchmarks["problem"]],
        batch=[_batch(problem) for problem in results.benchmarks["problem"]],
    )
    failed = refused(results)
    rows = []
    wrong: dict[tuple, list[str]] = {}
    for *where, contender in failed:
        wrong.setdefault(tuple(where), []).append(contender)
    groups = grouped(benchmarks.to_dict("records"), COMPARABLE)
    for number, (key, group) in enumerate(groups.items()):
        place, baseline = tuple(key[: len(WHERE)]), baselines[int(key[0]), key[1]]
        sound = [entry for entry in group if (*place, entry["contender"]) not in failed]
        times = {entry["contender"]: entry["processes"] for entry in sound}
        environment = results.runs[int(key[0])]["environment"]
        blank = {**group[0], "processes": [], **dict.fromkeys(("host_us", "peak_bytes", "first_call_seconds"), np.nan)}
        sound += [{**blank, "contender": name} for name in wrong.get(place, ())]
        for entry in sound:
            beside = against(entry["contender"], baseline)
            rows.append(_row({**entry, "place": number}, beside, times.get(beside), margin, environment))
    frame = pd.DataFrame(rows, columns=[*benchmarks.columns, *ADDED])
    texts = [name for name in frame if frame[name].dtype == "str"]  # pandas 3's own kind takes seconds to go through
    return frame.astype(dict.fromkeys(texts, object))


def per_net(comparisons: pd.DataFrame) -> pd.DataFrame:
    """A row for each net that has the layer, as often as it has it; the measurement is the same in all of them."""
    rows = comparisons.assign(nets=[list(nets.items()) for nets in comparisons["nets"]]).explode("nets")
    return rows.assign(net=[net for net, _ in rows["nets"]], count=[count for _, count in rows["nets"]])


def word(ratio: intervals.Estimate, margin: float) -> str:
    """The verdict on one ratio; limits as in the module's docstring."""
    if not ratio.has_interval:
        return AMBIGUOUS
    if ratio.low > 1 + margin:
        return FASTER
    if ratio.high < 1 / (1 + margin):
        return SLOWER
    if ratio.low >= 1 / (1 + margin) and ratio.high <= 1 + margin:
        return SAME
    return AMBIGUOUS


def summarise(comparisons: pd.DataFrame, by: list[str], *, margin: float = DEFAULT_MARGIN) -> pd.DataFrame:
    """Tallies and geometric means of every contender but the baseline, over the rows that agree in ``by``.

    ``geomean`` counts each measurement once, ``geomean_by_count`` as often as its layer occurs in its nets;
    ``places`` is how many measurements the group has, ``compared`` how many of them have a ratio.
    """
    rows = []
    names = list(dict.fromkeys([*by, *SUMMARISED]))
    for key, group in grouped(comparisons[names].to_dict("records"), by).items():
        compared = grouped((row for row in group if row["verdict"] != BASELINE), ["contender", "baseline"])
        for (contender, baseline), part in sorted(compared.items(), key=lambda item: item[0][0].endswith(GRAPH)):
            tally = Counter(row["verdict"] for row in part)
            known = [row for row in part if np.isfinite(row["ratio"])]
            row = dict(zip(by, key, strict=True)) | {
                "contender": contender,
                "baseline": baseline,
                "places": len({row["place"] for row in group}),
                "compared": len(known),
                **{verdict: tally[verdict] for verdict in TALLIED},
            }
            rows.append(row | (_means(known, margin) if known else {}))
    return pd.DataFrame(rows, columns=[*by, "contender", "baseline", "places", "compared", *TALLIED, *MEANS])


def grouped(rows: Iterable[Record], by: Sequence[str]) -> dict[tuple, list[Record]]:
    """The rows that agree in ``by``, two columns or more, as they come: for a thousand groups pandas takes a second."""
    groups: dict[tuple, list[Record]] = {}
    key = itemgetter(*by)
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def geometric_mean(rows: Sequence[Record], *, by_count: bool = False) -> intervals.Estimate:
    """Of comparisons that have a ratio; ``by_count``: each as often as its layer occurs in the net."""
    ratios = [intervals.Estimate(row["ratio"], row["ratio_low"], row["ratio_high"]) for row in rows]
    return intervals.geometric_mean(ratios, [row["count"] for row in rows] if by_count else None)


def _means(known: Sequence[Record], margin: float) -> dict:
    plain, weighted = geometric_mean(known), geometric_mean(known, by_count=True)
    worst, best = (end(known, key=lambda row: row["ratio"]) for end in (min, max))
    values = (
        plain.value, plain.low, plain.high, word(plain, margin),
        weighted.value, weighted.low, weighted.high,
        worst["ratio"], worst["layer"], best["ratio"], best["layer"],
    )  # fmt: skip
    return dict(zip(MEANS, values, strict=True))


def _row(entry: Record, baseline: str, against: Processes | None, margin: float, environment: Mapping) -> dict:
    processes: Processes = entry["processes"]
    counts = {"samples": sum(map(len, processes)), "processes": len(processes)}
    row = {**entry, "baseline": baseline, "ours": is_ours(entry["contender"]), **counts}
    nothing = intervals.Estimate(np.nan, np.nan, np.nan)
    time = time_of(processes) if processes else nothing
    ratio = nothing
    if not processes:
        verdict = WRONG
    elif entry["contender"] == baseline:
        verdict = BASELINE
    elif against is None:
        verdict = NO_BASELINE
    else:
        ratio = _ratio(against, processes)
        verdict = word(ratio, margin)
    return row | {
        "median": time.value, "low": time.low, "high": time.high,
        "ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high,
        "flop_per_s": entry["flops"] / time.value, "bytes_per_s": entry["bytes"] / time.value,
        "share": ceilings.share(entry, time.value, environment), "verdict": verdict,
    }  # fmt: skip


def time_of(processes: Processes) -> intervals.Estimate:
    """The median time: of the samples, or of the processes' medians."""
    return intervals.median(processes[0] if len(processes) == 1 else intervals.medians(processes))


def _ratio(against: Processes, processes: Processes) -> intervals.Estimate:
    if len(processes) == len(against) > 1:  # both in each process, timed in turns there
        return intervals.ratio_of_processes(against, processes)
    numerators, denominators = (side[0] if len(side) == 1 else intervals.medians(side) for side in (against, processes))
    return intervals.ratio_of_medians(numerators, denominators)


def refused(results: Results) -> dict[tuple, None]:
    """(*WHERE, contender) of every failed check, in order."""
    failed = results.accuracy[~results.accuracy["passed"]]
    return dict.fromkeys(failed[[*WHERE, "contender"]].itertuples(index=False, name=None))


def _batch(problem: object) -> float:
    return float(problem["N"]) if isinstance(problem, Mapping) and "N" in problem else float("nan")
