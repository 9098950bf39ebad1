"""One kind of chart, the strip plot: a row for each contender, a mark for each measurement, nothing averaged
away. Drawn by matplotlib as SVG or PNG.

Colour is never alone: every kind of mark has its own shape.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports import verdict
from reports.drawing import Axes, Figure, Line2D, plain
from reports.intervals import Estimate
from reports.svg import BAD, EVEN, GOOD, INK, MUTED, PAPER, RULE, Marks, document

# kind of mark: (marker, colour, filled)
MARKS = {
    verdict.FASTER: ("^", GOOD, True), verdict.SAME: ("s", EVEN, True), verdict.SLOWER: ("v", BAD, True),
    verdict.AMBIGUOUS: ("o", EVEN, False), "within the rule": ("o", GOOD, True), "fails": ("X", BAD, True),
    "no spill": ("o", GOOD, True), "spills": ("X", BAD, True),
    "split": ("o", GOOD, True), "materialised": ("s", EVEN, True),
    "pick": ("^", GOOD, True), "default": ("D", INK, True), "other config": ("o", EVEN, False),
}  # fmt: skip
BEHIND = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}  # a label hides the grid under it
RC: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "triton-dirac", "text.parse_math": False,
    "font.family": "sans-serif", "font.size": 9.0, "axes.linewidth": 0.7, "text.color": INK,
    "axes.labelcolor": MUTED, "xtick.color": MUTED, "axes.edgecolor": RULE,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the chart. ``points`` are (value, kind of MARKS); the centre is drawn as a bar."""

    name: str
    points: Sequence[tuple[float, str]]
    centre: Estimate | None = None
    text: str = ""  # at the right end; the centre's value when empty


@dataclass(frozen=True)
class Chart:
    """What to draw, not how wide: rows under headings, one logarithmic axis."""

    title: str
    label: str  # measured (device, clock), counted or modelled
    axis: str
    groups: Sequence[tuple[str, Sequence[Row]]]
    limit: float | None = None
    directions: tuple[str, str] = ("", "")  # what lies left and right of the limit
    unit: str = "×"
    bar: str = ""  # what the bar in each row stands for

    def __bool__(self) -> bool:
        return any(rows for _, rows in self.groups)


def svg(*charts: Chart, narrow: bool = False) -> str:
    """The charts as one SVG document, the same bytes for the same charts."""
    with plain(RC):
        return document(_draw(charts, narrow), *described(charts))


def png(*charts: Chart, dpi: int = 160) -> bytes:
    """The charts as a PNG."""
    out = io.BytesIO()
    with plain(RC):
        _draw(charts, False).savefig(out, format="png", dpi=dpi, metadata={"Software": None}, facecolor=PAPER)
    return out.getvalue()


def described(charts: Sequence[Chart]) -> tuple[str, str]:
    """Title and text alternative: how the numbers were obtained, and each row with what stands at its end."""
    rows = []
    for chart in charts:
        for heading, of in chart.groups:
            said = [f"{row.name} {_end(row, chart.unit)}" for row in of]
            rows.append(f"{heading}: {', '.join(said)}" if heading else ", ".join(said))
    title = "; ".join(dict.fromkeys(chart.title for chart in charts))
    return title, f"{'; '.join(dict.fromkeys(chart.label for chart in charts))}. {'. '.join(rows)}."


def _end(row: Row, unit: str) -> str:
    return row.text or (f"{row.centre.value:.2f}{unit}" if row.centre else "")


def _draw(charts: Sequence[Chart], narrow: bool) -> Figure:
    """The charts one below the other, each with its title, label, axis and legend; inches throughout."""
    width = 3.75 if narrow else 7.6
    left, right = (0.12, 0.62) if narrow else (2.15, 0.75)
    step, foot = (0.44, 1.3) if narrow else (0.25, 0.92)
    blocks = [sum((0.34 if heading else 0.08) + step * len(rows) for heading, rows in chart.groups) for chart in charts]
    heads = [_head(chart, narrow) for chart in charts]
    total = sum(blocks) + sum(heads) + foot * len(charts)
    figure, top = Figure(figsize=(width, total)), total
    for chart, block, head in zip(charts, blocks, heads, strict=True):
        place = (left / width, (top - head - block) / total, (width - left - right) / width, block / total)
        axes = figure.add_axes(place)
        axes.set_ylim(block, 0)
        limits = _dress(axes, chart, narrow)
        beside, reach = axes.get_yaxis_transform(), 0.0 if narrow else left / (width - left - right)
        y = 0.0
        for heading, rows in chart.groups:
            if heading:
                at = -reach + 0.03 if reach else 0.0
                axes.text(at, y + 0.22, heading, transform=beside, weight="bold", va="center", bbox=BEHIND)
            y += 0.34 if heading else 0.08
            for row in rows:
                _draw_row(axes, row, y, step, reach, limits, chart.unit)
                y += step
        margin = 0.12 / width
        figure.text(margin, (top - 0.12) / total, chart.title, fontsize=11, weight="bold", va="top")
        label = textwrap.fill(chart.label, 58 if narrow else 130)
        figure.text(margin, (top - 0.36) / total, label, fontsize=8, color=MUTED, va="top")
        top -= head + block + foot
        _legend(figure, chart, narrow, (top + 0.06) / total)
    return figure


def _head(chart: Chart, narrow: bool) -> float:
    """Room for the title, the label's lines and the directions."""
    lines = len(textwrap.wrap(chart.label, 58 if narrow else 130))
    return 0.42 + 0.14 * lines + (0.24 if any(chart.directions) else 0.06)


def _dress(axes: Axes, chart: Chart, narrow: bool) -> tuple[float, float]:
    """The logarithmic axis, its grid, the limit and what lies on either side of it."""
    low, high = _limits(chart)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    marked = ticks(low, high, 5 if narrow else 9)
    axes.set_xticks(marked, [f"{tick:g}{chart.unit}" for tick in marked])
    axes.set_xticks([], minor=True)
    axes.set_yticks([])
    axes.tick_params(length=0, pad=4)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(textwrap.fill(chart.axis, 48 if narrow else 90), fontsize=8.5, labelpad=5)
    for tick in marked:
        axes.axvline(tick, color=RULE, lw=0.5, zorder=0)
    if chart.limit is not None:
        axes.axvline(chart.limit, color=INK, lw=1.0, zorder=1)
        lower, higher = chart.directions
        style: Any = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "fontsize": 8}
        for text, shift, align in (
            (lower and f"← {lower}", -5, "right"),
            (higher and f"{higher} →", 5, "left"),
        ):
            axes.annotate(text, (chart.limit, 1), (shift, 3), ha=align, color=MUTED, **style)
    return low, high


def _draw_row(
    axes: Axes, row: Row, y: float, step: float, reach: float, limits: tuple[float, float], unit: str
) -> None:
    narrow = reach == 0.0
    middle = y + step / 2 + (0.06 if narrow else 0.0)
    beside = axes.get_yaxis_transform()
    if narrow:
        name = _short(row.name, 40)
        axes.text(0.0, middle - 0.19, name, transform=beside, fontsize=8.5, va="center", bbox=BEHIND)
    else:
        axes.text(-reach + 0.05, middle, _short(row.name, 30), transform=beside, va="center")
    # Marks are spread by up to a tenth of an inch, always the same way, so that equal values stay visible.
    spread = (0.05 if narrow else 0.07) * np.sin(2.4 * np.arange(len(row.points)))
    values = np.clip(np.nan_to_num([value for value, _ in row.points], nan=np.inf), *limits)
    for kind in dict.fromkeys(kind for _, kind in row.points):
        marker, colour, filled = MARKS[kind]
        chosen = [index for index, (_, of) in enumerate(row.points) if of == kind]
        marks = Marks(
            values[chosen], middle + spread[chosen], marker, colour, filled=filled, size=4.2,
            alpha=0.62 if filled and marker != "X" else 1.0, clip_on=False, zorder=2.5 if marker == "X" else 2,
        )  # fmt: skip
        axes.add_line(marks)
    if row.centre is not None and np.isfinite(row.centre.value):
        if row.centre.has_interval:
            axes.plot([row.centre.low, row.centre.high], [middle] * 2, color=INK, lw=2.2, zorder=3)
        axes.plot([row.centre.value] * 2, [middle - 0.1, middle + 0.1], color=INK, lw=2.0, zorder=3)
    axes.text(1.02, middle, _end(row, unit), transform=beside, fontsize=9, va="center", weight="bold")


def _legend(figure: Figure, chart: Chart, narrow: bool, bottom: float) -> None:
    used = dict.fromkeys(kind for _, rows in chart.groups for row in rows for _, kind in row.points)
    handles = []
    for kind in (kind for kind in MARKS if kind in used):
        marker, colour, filled = MARKS[kind]
        face = colour if filled else PAPER
        handles.append(Line2D([], [], label=kind, marker=marker, ls="", ms=5, color=colour, mfc=face, mec=colour))
    if chart.bar:
        handles.append(Line2D([], [], color=INK, marker="|", ms=8, mew=2, ls="", label=chart.bar))
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.02, bottom), ncols=2 if narrow else 5,
        frameon=False, fontsize=8, handletextpad=0.2, columnspacing=1.2, borderaxespad=0.2, labelcolor=MUTED,
    )  # fmt: skip


def _limits(chart: Chart) -> tuple[float, float]:
    """The axis' ends: every positive value that is no extreme and the limit, with air."""
    values = [value for _, rows in chart.groups for row in rows for value, _ in row.points]
    values += [chart.limit] if chart.limit else []
    shown = [value for value in values if 1e-300 < value < 1e300] or [1.0]  # the air must be numbers too
    low, high = min(shown), max(shown)
    air = max((high / low) ** 0.06, 1.06)
    return low / air, high * air


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values inside the axis, at most ``most``, the finest set that fits."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    fine = [round(0.5 + 0.1 * step, 1) for step in range(16)]
    sets = [fine, fine[::2]] if low > 0.45 and high < 2.1 else []
    for mantissas in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        sets.append([float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas])
    for candidates in sets:
        inside = [tick for tick in candidates if low <= tick <= high]
        if len(inside) <= most:
            return inside
    return inside[:: -(-len(inside) // most)]


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
