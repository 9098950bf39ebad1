"""Who is compared with whom, and the word for it.

A comparison stands between a contender and its suite's baseline on the same layer, pass, type, problem, device and
clock, within one run. With the ratio r = median(baseline) / median(contender), "times as fast as the baseline":

    faster      the whole 95 % interval of r lies above 1 + margin
    slower      the whole interval lies below 1 / (1 + margin)
    same        the whole interval lies between the two
    ambiguous   the interval straddles a limit, or there are too few samples for one: the samples do not decide

A contender whose result failed the check against float64 has no time: ``wrong``. Where the baseline has no time
there is nothing to compare with: ``no baseline``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd

from reports import intervals
from reports.load import WHERE, ReportError, Results

FASTER, SAME, SLOWER, AMBIGUOUS = "faster", "same", "slower", "ambiguous"
WRONG, BASELINE, NO_BASELINE = "wrong", "baseline", "no baseline"
TALLIED = (FASTER, SAME, SLOWER, AMBIGUOUS, WRONG)
DEFAULT_MARGIN = 0.03  # run-to-run drift of clocks and placement, which no interval within one run can see

# First present wins; a suite that is not named here is compared with the first of OTHER_BASELINES that it has.
BASELINES = {
    "weight_prep": ("weight_norm", "reference"),
    "conv": ("cudnn", "torch-channels-last", "torch"),
    "dirac_block": ("reference",),
}
OTHER_BASELINES = ("reference", "torch", "cudnn")

# What must agree between two measurements to compare them; the same without the layer and the problem is a group.
COMPARABLE = [*WHERE, "device", "clock", "label", "problem_key"]
GROUP = ["run", "suite", "pass", "net", "dtype", "device", "clock", "label"]


def is_ours(contender: str) -> bool:
    """Whether a contender runs a Triton kernel of this project: their names start so."""
    return contender.startswith("triton")


def choose_baselines(results: Results, chosen: Mapping[str, str] | None = None) -> dict[tuple[int, str], str]:
    """(run, suite) -> the contender that the others are compared with.

    ``chosen`` maps suites to contenders and goes before the defaults; a name that no run timed is refused.
    """
    chosen = dict(chosen or {})
    timed = results.benchmarks.groupby(["run", "suite"], sort=False)["contender"]
    baselines = {}
    for (run, suite), contenders in timed:
        present = list(contenders.value_counts(sort=False).sort_values(ascending=False, kind="stable").index)
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

    Times are in seconds. Columns beside those of ``results.benchmarks``: baseline, batch, samples, median, low,
    high, ratio, ratio_low, ratio_high, log_variance, flop_per_s, bytes_per_s, verdict.
    """
    benchmarks = results.benchmarks.assign(
        count=results.benchmarks["count"].fillna(1),
        problem_key=[json.dumps(problem, sort_keys=True) for problem in results.benchmarks["problem"]],
        batch=[_batch(problem) for problem in results.benchmarks["problem"]],
    )
    refused = _refused(results)
    rows = []
    for key, group in benchmarks.groupby(COMPARABLE, sort=False):
        place, baseline = tuple(key[: len(WHERE)]), baselines[int(key[0]), key[1]]
        sound = group[[(*place, contender) not in refused for contender in group["contender"]]]
        against = sound.loc[sound["contender"] == baseline, "samples"]
        samples = against.iloc[0] if len(against) else None
        rows += [_row(entry, baseline, samples, margin) for entry in sound.to_dict("records")]
        wrong = [contender for *where, contender in refused if tuple(where) == place]
        blank = {**group.iloc[0].to_dict(), "samples": np.empty(0), "host_us": np.nan}
        rows += [_row({**blank, "contender": name}, baseline, None, margin) for name in wrong]
    return pd.DataFrame(rows)


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


def summarise(comparisons: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Tallies and geometric means of every contender but the baseline, over the rows that agree in ``by``.

    ``geomean`` counts each measurement once, ``geomean_by_count`` as often as its layer occurs in the net;
    ``places`` is how many measurements the group has, ``compared`` how many of them have a ratio.
    """
    if comparisons.empty:
        return pd.DataFrame()
    rows = []
    places = comparisons.groupby(by, sort=False)
    for key, group in places:
        total = len(group[COMPARABLE].drop_duplicates())
        for contender, part in group[group["verdict"] != BASELINE].groupby("contender", sort=False):
            tally = part["verdict"].value_counts()
            known = part.dropna(subset=["ratio"])
            row = dict(zip(by, key, strict=True)) | {
                "contender": contender,
                "baseline": part["baseline"].iloc[0],
                "places": total,
                "compared": len(known),
                **{verdict: int(tally.get(verdict, 0)) for verdict in TALLIED},
            }
            if len(known):
                plain = intervals.geometric_mean(known["ratio"], known["log_variance"])
                weighted = intervals.geometric_mean(known["ratio"], known["log_variance"], known["count"])
                row |= {"geomean": plain.value, "geomean_low": plain.low, "geomean_high": plain.high}
                row |= {"geomean_by_count": weighted.value, "geomean_by_count_low": weighted.low}
                row |= {"geomean_by_count_high": weighted.high}
                row |= {
                    "worst": known["ratio"].min(),
                    "worst_layer": known.loc[known["ratio"].idxmin(), "layer"],
                }
                row |= {
                    "best": known["ratio"].max(),
                    "best_layer": known.loc[known["ratio"].idxmax(), "layer"],
                }
            rows.append(row)
    return pd.DataFrame(rows)


def _row(entry: dict, baseline: str, against: np.ndarray | None, margin: float) -> dict:
    samples = entry.pop("samples")
    row = entry | {"baseline": baseline, "ours": is_ours(entry["contender"]), "samples": len(samples)}
    nothing = intervals.Estimate(np.nan, np.nan, np.nan)
    time = intervals.median(samples) if len(samples) else nothing
    ratio = nothing
    variance = np.nan
    if not len(samples):
        verdict = WRONG
    elif entry["contender"] == baseline:
        verdict = BASELINE
    elif against is None:
        verdict = NO_BASELINE
    else:
        ratio = intervals.ratio_of_medians(against, samples)
        variance = intervals.log_median_variance(against) + intervals.log_median_variance(samples)
        verdict = word(ratio, margin)
    return row | {
        "median": time.value, "low": time.low, "high": time.high,
        "ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high, "log_variance": variance,
        "flop_per_s": entry["flops"] / time.value, "bytes_per_s": entry["bytes"] / time.value,
        "verdict": verdict,
    }  # fmt: skip


def _refused(results: Results) -> dict[tuple, None]:
    """(*WHERE, contender) of every failed check, in order; a passed that is not True is a failure."""
    failed = results.accuracy[[value is not True for value in results.accuracy["passed"]]]
    return dict.fromkeys(failed[[*WHERE, "contender"]].itertuples(index=False, name=None))


def _batch(problem: object) -> float:
    return float(problem["N"]) if isinstance(problem, Mapping) and "N" in problem else float("nan")
