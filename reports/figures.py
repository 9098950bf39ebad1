"""The report's charts: what is drawn, from which table. chart.py draws them.

speed       times as fast as the baseline
accuracy    error over torch's own error
precision   what bfloat16 leaves of small filters, materialised and split
compiled    instructions a warp issues per matrix instruction
tuning      configs beside the fastest one of their problem
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from reports import tuning as landscape
from reports import verdict
from reports.chart import Chart, Row
from reports.intervals import Estimate
from reports.load import Results


def speed(groups: Sequence[tuple[str, pd.DataFrame]], label: str) -> Chart:
    """Comparisons under headings, ours first, then by geometric mean. What has no ratio has no mark."""
    drawn = []
    for heading, comparisons in groups:
        rows = []
        for contender, part in comparisons.dropna(subset=["ratio"]).groupby("contender", sort=False):
            centre = verdict.geometric_mean(part[["ratio", "ratio_low", "ratio_high"]].to_dict("records"))
            points = list(zip(part["ratio"], part["verdict"], strict=True))
            rows.append((not part["ours"].iloc[0], -centre.value, Row(str(contender), points, centre)))
        drawn.append((heading, [row for *_, row in sorted(rows, key=lambda entry: entry[:2])]))
    return Chart(
        "Times as fast as the baseline", label,
        "median of the baseline / median of the contender; one mark per layer, pass and type",
        [(heading, rows) for heading, rows in drawn if rows], limit=1.0, directions=("slower", "faster"),
        bar="geometric mean, 95 % interval",
    )  # fmt: skip


def accuracy(frame: pd.DataFrame, label: str) -> Chart:
    """Errors of ``tables.with_error_ratios``: a row for each contender and executor; equal marks are one."""
    groups: dict[str, list[Row]] = {}
    by = ["suite", "contender", "executed_by"]
    for (suite, contender, executor), part in frame.groupby(by, sort=False):
        rounded = [float(f"{value:.2g}") for value in part["over_torch"]]
        kinds = np.where(part["passed"], "within the rule", "fails")
        points = [(value, str(kind)) for value, kind in dict.fromkeys(zip(rounded, kinds, strict=True))]
        worst = part["over_torch"].max(skipna=False)
        text = f"{worst:.2f}×" if np.isfinite(worst) else "not finite"
        name = f"{contender} ({executor})" if executor else str(contender)
        groups.setdefault(str(suite), []).append(Row(name, points, None, text))
    return Chart(
        "Error beside torch's own", label,
        "max|x − float64| / max|torch − float64|; one mark per tensor, exact ones at the left edge",
        list(groups.items()), limit=2.0, directions=("allowed", "beyond"),
    )  # fmt: skip


def precision(frame: pd.DataFrame, label: str) -> Chart:
    """Errors of ``tables.precision`` beside what the filters add: a row for each beta and form."""
    groups = []
    for tensor, part in frame.groupby("tensor", sort=False):
        rows = []
        for beta, of in part.groupby("beta"):
            for form in ("materialised", "split"):
                values = of[form].dropna()
                if len(values):
                    points = [(float(value), form) for value in values]
                    rows.append(Row(f"β = {beta:g}, {form}", points, None, f"{values.max():.1e}"))
        groups.append((str(tensor), rows))
    return Chart(
        "What bfloat16 leaves of the filters", label,
        "max|y − float64| / max|conv(x, β u)|; at 1 the error is as large as all that the filters add",
        [(heading, rows) for heading, rows in groups if rows], unit="",
    )  # fmt: skip


def compiled(frame: pd.DataFrame, label: str, *, pooled: bool = False) -> Chart:
    """Instructions per matrix instruction: for each kernel, or for all pooled, a row for each target."""
    good = frame[frame["ok"]].dropna(subset=["loop_instructions_per_mma"])
    groups = []
    for heading, part in [("", good)] if pooled else good.groupby("kernel", sort=False):
        rows = []
        for (target, gpu), of in part.groupby(["target", "gpu"], sort=False):
            values = of["loop_instructions_per_mma"]
            points = list(zip(values, spilling(of), strict=True))
            middle = Estimate(float(values.median()), np.nan, np.nan)
            rows.append(Row(f"{target}  {gpu}".strip(), points, middle, f"{middle.value:.3g}"))
        groups.append((str(heading), rows))
    return Chart(
        "Instructions per matrix instruction", label,
        "issued by a warp in the main loop; targets differ in what one matrix instruction does",
        [(heading, rows) for heading, rows in groups if rows], unit="", bar="median",
    )  # fmt: skip


def loops(frame: pd.DataFrame, label: str) -> Chart:
    """Main loops at equal tiles: for each target a row for each kernel."""
    groups = []
    for target, part in frame.dropna(subset=["ratio_to_floor"]).groupby("target", sort=False):
        rows = []
        for kernel, of in part.groupby("kernel", sort=False):
            points = list(zip(of["ratio_to_floor"], spilling(of), strict=True))
            middle = Estimate(float(of["ratio_to_floor"].median()), np.nan, np.nan)
            rows.append(Row(str(kernel), points, middle))
        groups.append((str(target), rows))
    return Chart(
        "Main loops beside a GEMM without masks", label,
        "instructions per matrix instruction, over the GEMM's; one mark per tile, layer and type",
        groups, limit=1.0, directions=("fewer", "more"), bar="median",
    )  # fmt: skip


MOST_TUNED = 24  # problems that are drawn; the table has all


def tuning(results: Results, label: str) -> Chart:
    """Times of configs over the fastest one's: a row for each problem, of many those whose median is farthest off."""
    problems = landscape.tuned(results).dropna(subset=["best"])
    shown = problems.sort_values("median_over_best", ascending=False, kind="stable").head(MOST_TUNED)
    groups: dict[str, list[Row]] = {kernel: [] for kernel in problems["kernel"] if kernel in set(shown["kernel"])}
    for index, problem in shown.iterrows():
        times = results.tuned.loc[index, "milliseconds"]
        kinds = {problem["default"]: "default", problem["pick"]: "pick"}
        points = [
            (milliseconds / 1000 / problem["best"], kinds.get(config, "other config"))
            for config, milliseconds in times.items()
            if milliseconds is not None
        ]
        middle = Estimate(problem["median_over_best"], np.nan, np.nan)
        row = Row(" ".join(filter(None, (problem["layer"], problem["dtype"]))) or "unnamed", points, middle)
        groups[problem["kernel"]].append(row)
    of_how_many = (
        f", {len(shown)} of {len(problems)} problems: those that lie furthest apart"
        if len(shown) < len(problems)
        else ""
    )
    return Chart(
        "Configs beside the fastest", f"{label}{of_how_many}",
        "time of a config / time of the fastest; at the right end the median's", list(groups.items()), bar="median",
    )  # fmt: skip


def spilling(frame: pd.DataFrame) -> np.ndarray:
    return np.where(frame["spills"] > 0, "spills", "no spill")
