"""The roofline: what each measurement reaches of the ceilings that were measured on its machine.

Horizontally flops over bytes, the least of either that the definition needs; vertically flops a second. The roof is
min(flop/s of a large matmul, bytes/s of a large copy * flops / bytes), under a short load.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports import ceilings
from reports.chart import RC, ticks
from reports.drawing import Figure, plain
from reports.svg import BAD, EVEN, GOOD, INK, MUTED, RULE, Marks, document

TERA = 1e12
STYLES = (("^", GOOD), ("s", EVEN), ("v", BAD))  # ours, the baseline, others


def roofs(comparisons: pd.DataFrame, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each run, dtype and label with ceilings: the two rates and the times under them."""
    found = []
    for (run, dtype, label), part in comparisons.groupby(["run", "dtype", "label"], sort=False):
        environment = runs[int(run)]["environment"]
        peak, copy = (ceilings.short(environment, name) for name in (dtype, "copy"))
        shown = part[(part["flops"] > 0) & (part["bytes"] > 0) & part["flop_per_s"].notna()]
        if np.isfinite([peak, copy]).all() and len(shown):
            gpu = environment.get("gpu") or environment.get("cpu") or "machine not stated"
            title = ", ".join(filter(None, (str(gpu), dtype, runs[int(run)]["file"] if len(runs) > 1 else "")))
            how = label or "label not stated"
            found.append({"title": title, "label": how, "peak": peak, "copy": copy, "rows": shown})
    return found


def svg(roof: Mapping[str, Any], *, narrow: bool = False) -> str:
    """One roof and what lies under it, as an SVG with a title and a text alternative; ``narrow``: for a phone."""
    width, height, head = (3.75, 4.0, 1.05) if narrow else (7.6, 4.2, 0.6)  # inches
    with plain(RC):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0.7 / width, 0.6 / height, (width - 0.9) / width, (height - 0.6 - head) / height))
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
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.autoscale_view()
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            values = ticks(*limits, 5 if narrow else 7)
            axis.set_ticks(values, [f"{value:g}" for value in values])
            axis.set_ticks([], minor=True)
        axes.tick_params(colors=MUTED)
        axes.grid(color=RULE, lw=0.5)
        axes.set_xlabel("least flops / least bytes")
        axes.set_ylabel("TFLOP/s")
        figure.legend(  # above the axes, where no mark can lie
            loc="lower left" if narrow else "lower right",
            bbox_to_anchor=((0.12 if narrow else width - 0.12) / width, 1 - head / height), ncols=4, frameon=False,
            fontsize=8, labelcolor=MUTED, handlelength=1.2, handletextpad=0.4, columnspacing=1.0, borderaxespad=0.2,
        )  # fmt: skip
        left, title = 0.12 / width, f"Roofline: {roof['title']}"
        shown, size = (textwrap.shorten(title, 48, placeholder="…"), 9.0) if narrow else (title, 11.0)
        figure.text(left, 1 - 0.12 / height, shown, fontsize=size, weight="bold", va="top")
        label = f"{roof['label']}; one mark per layer, pass and contender"
        figure.text(left, 1 - 0.36 / height, label, fontsize=8, color=MUTED, va="top")
        return document(figure, title, described(roof))


def described(roof: Mapping[str, Any]) -> str:
    """The ceilings, and of each contender the range of its share."""
    said = [
        f"{name} {of['share'].min():.0%} to {of['share'].max():.0%}"
        for name, of in roof["rows"].groupby("contender", sort=False)
    ]
    rates = f"{roof['peak'] / TERA:.3g} TFLOP/s and {roof['copy'] / TERA:.3g} TB/s"
    return f"{roof['label']}; ceilings {rates}; shares of the nearer one: {', '.join(said)}."
