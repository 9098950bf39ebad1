"""The roofline: what each measurement reaches of the ceilings that were measured on its machine.

Horizontally flops over bytes, the least of either that the definition needs; vertically flops a second. The roof is
min(flop/s of a large matmul, bytes/s of a large copy * flops / bytes), under a short load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports import ceilings
from reports.chart import BEHIND, RC, ticks
from reports.drawing import Figure, plain
from reports.svg import BAD, EVEN, GOOD, INK, MUTED, RULE, Marks, document

TERA = 1e12
STYLES = (("^", GOOD), ("s", EVEN), ("v", BAD))  # ours, the baseline, others


def roofs(comparisons: pd.DataFrame, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each run and dtype with ceilings: the two rates and the measurements under them."""
    found = []
    for (run, dtype), part in comparisons.groupby(["run", "dtype"], sort=False):
        environment = runs[int(run)]["environment"]
        peak, copy = (ceilings.short(environment, name) for name in (dtype, "copy"))
        shown = part[(part["flops"] > 0) & (part["bytes"] > 0) & part["flop_per_s"].notna()]
        if np.isfinite([peak, copy]).all() and len(shown):
            gpu = environment.get("gpu") or environment.get("cpu") or "machine not stated"
            found.append({"title": f"{gpu}, {dtype}", "peak": peak, "copy": copy, "rows": shown})
    return found


def svg(roof: Mapping[str, Any]) -> str:
    """One roof and what lies under it, as an SVG with a title and a text alternative."""
    with plain(RC):
        figure = Figure(figsize=(7.6, 4.2))
        axes = figure.add_axes((0.1, 0.14, 0.87, 0.72))
        rows = roof["rows"]
        intensity, rate = rows["flops"] / rows["bytes"], rows["flop_per_s"] / TERA
        ridge = roof["peak"] / roof["copy"]
        ends = np.array([min(intensity.min(), ridge) / 2, ridge, max(intensity.max(), ridge) * 2])
        axes.plot(
            ends, np.minimum(roof["peak"], roof["copy"] * ends) / TERA, color=INK, lw=1.4, label="measured ceilings"
        )
        is_baseline = rows["contender"] == rows["baseline"]
        kinds = {"Triton": rows["ours"] & ~is_baseline, "baseline": is_baseline, "others": ~rows["ours"] & ~is_baseline}
        for (name, chosen), (marker, colour) in zip(kinds.items(), STYLES, strict=True):
            if chosen.any():
                look: Any = {"filled": True, "size": 4.0, "alpha": 0.7, "label": name}
                axes.add_line(Marks(intensity[chosen], rate[chosen], marker, colour, **look))
        axes.autoscale_view()
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            values = ticks(*limits, 7)
            axis.set_ticks(values, [f"{value:g}" for value in values])
            axis.set_ticks([], minor=True)
        axes.tick_params(colors=MUTED)
        axes.grid(color=RULE, lw=0.5)
        axes.set_xlabel("least flops / least bytes")
        axes.set_ylabel("TFLOP/s")
        legend = axes.legend(frameon=True, fontsize=8, labelcolor=MUTED, loc="lower right")
        legend.get_frame().set(facecolor=BEHIND["facecolor"], edgecolor="none")
        figure.text(0.016, 0.97, f"Roofline: {roof['title']}", fontsize=11, weight="bold", va="top")
        figure.text(0.016, 0.91, "measured; one mark per layer, pass and contender", fontsize=8, color=MUTED, va="top")
        return document(figure, f"Roofline: {roof['title']}", described(roof))


def described(roof: Mapping[str, Any]) -> str:
    """The ceilings, and of each contender the range of its share."""
    said = [
        f"{name} {of['share'].min():.0%} to {of['share'].max():.0%}"
        for name, of in roof["rows"].groupby("contender", sort=False)
    ]
    rates = f"{roof['peak'] / TERA:.3g} TFLOP/s and {roof['copy'] / TERA:.3g} TB/s"
    return f"measured; ceilings {rates}; shares of the nearer one: {', '.join(said)}."
