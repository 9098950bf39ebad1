"""The report in a few sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports import verdict
from reports.report import Report


def headline(report: Report) -> list[str]:
    """The report in a few sentences, the most important first."""
    parts = (_times, _why_not, _accuracy, precision, _tuned, _moved, _compiled, _not_run)
    return [text for text in (part(report) for part in parts) if text]


def _times(report: Report) -> str:
    comparisons = report.comparisons
    if comparisons.empty:
        return "Nothing was timed here."
    if set(comparisons["verdict"]) <= {verdict.BASELINE, verdict.NO_BASELINE}:
        return "Nothing is compared here: what was timed has nothing beside it that it could be compared with."
    if comparisons["ours"].any():
        tally = comparisons[comparisons["ours"]]["verdict"].value_counts()
        counts = {word: int(tally.get(word, 0)) for word in verdict.TALLIED}
        text = (
            f"Triton kernels against the baselines: faster in {counts['faster']} of {sum(counts.values())} "
            f"comparisons, the same in {counts['same']}, slower in {counts['slower']}{_worst(comparisons)}, "
            f"undecided in {counts['ambiguous']}."
        )
        return text + (f" Wrong, and so without a time: {counts['wrong']}." if counts["wrong"] else "")
    return "No Triton kernel was timed here; the times compare what this machine can run."


def _worst(comparisons: pd.DataFrame) -> str:
    """By how much the slowest of ours is slower."""
    slower = comparisons[comparisons["ours"] & (comparisons["verdict"] == verdict.SLOWER)]
    return f" ({slower['ratio'].min():.2f}× as fast at worst)" if len(slower) else ""


def _why_not(report: Report) -> str:
    """The commonest reason for which our own kernels have no time."""
    left_out = report.results.not_run
    ours = left_out[[verdict.is_ours(name) for name in left_out["contender"]]]
    return f"Triton kernels not timed: {ours['reason'].value_counts(sort=False).idxmax()}." if len(ours) else ""


def _accuracy(report: Report) -> str:
    checks, failed = len(report.results.accuracy), int((~report.results.accuracy["passed"]).sum())
    if not checks:
        return "No result was compared with float64: whether results are right is not in this report."
    if failed:
        return f"{failed} of {checks} comparisons with float64 failed."
    return f"All {checks} comparisons with float64 passed."


def precision(report: Report) -> str:
    """How much closer the split form is at the smallest beta, before and after the output is rounded."""
    frame = report.precision.dropna(subset=["times_closer"])
    if frame.empty:
        return ""
    frame = frame[frame["beta"] == frame["beta"].min()]
    said = []
    for tensor, of in frame.groupby("tensor", sort=False):
        low, high = of["times_closer"].min(), of["times_closer"].max()
        times = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
        said.append(f"{times} times ({tensor})")
    return (
        f"In bfloat16 at β = {frame['beta'].iloc[0]:g} the split form is closer to float64 than the materialised "
        f"form by {', '.join(said)}."
    )


def _tuned(report: Report) -> str:
    """How far apart the measured configs lie."""
    if report.tuned.empty:
        return ""
    configs, failed = (int(report.tuned[name].sum()) for name in ("configs", "failed"))
    said = [f"{configs} configs of {len(report.tuned)} problems were measured, {failed or 'none'} failed"]
    distances = {"median config": "median_over_best", "cost model's default": "default_over_best"}
    for what, column in distances.items():
        ratios = report.tuned[column].dropna()
        if len(ratios):
            said.append(
                f"the {what} takes {_mean(ratios):.2f} times as long as the fastest ({ratios.max():.3g} at most)"
            )
    return f"Tuning: {'; '.join(said)}."


def _mean(ratios: pd.Series) -> float:
    """Geometric."""
    return float(np.exp(np.log(ratios).mean()))


def _moved(report: Report) -> str:
    """Bytes that compiled weight preparations move."""
    good = report.moved.dropna(subset=["worst_over_least"])
    if good.empty:
        return ""
    return (
        f"Compiled weight preparations move at most {good['worst_over_least'].max():.3f} times the least bytes, on "
        f"{good['target'].nunique()} GPU targets."
    )


def _compiled(report: Report) -> str:
    if report.compiled.empty:
        return ""
    total, good, spill = (int(report.compiled[name].sum()) for name in ("kernels", "compile", "spill"))
    targets = report.compiled["target"].nunique()
    how_many = "All" if good == total else f"{good} of"
    return f"{how_many} {total} kernels compile for {targets} GPU targets, {spill or 'none'} with spills."


def _not_run(report: Report) -> str:
    left_out = len(report.results.not_run)
    return f"{left_out} measurements were not made; the reasons are below." if left_out else ""
