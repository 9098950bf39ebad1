"""The page, the summary, the tables and the figures of a report, as text and as files."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import chart, files, page, roofline, svg, tables, tuning, verdict
from reports.ceilings import rates
from reports.headline import headline, precision
from reports.report import Report

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT = (TEMPLATES / "script.js").read_text(
    encoding="utf-8"
)  # the page runs this one, known by its hash, and no other
# Word -> (sign, CSS class): a sign beside every colour.
SIGNS = {
    verdict.FASTER: ("▲", "good"), verdict.SAME: ("=", "even"), verdict.SLOWER: ("▼", "bad"),
    verdict.AMBIGUOUS: ("?", "even"), verdict.WRONG: ("✕", "bad"), verdict.BASELINE: ("", ""),
    verdict.NO_BASELINE: ("", "even"),
}  # fmt: skip
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
MARKDOWN = str.maketrans(
    {character: f"\\{character}" for character in "\\`*[]|"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " "}
)


def render(report: Report) -> dict[str, str]:
    """Relative path -> content of every text file: index.html, summary.md, full.md, tables/*.csv, figures/*.svg."""
    drawings = page.charts(report)
    svgs = {name: chart.svg(*charts) for name, charts in drawings.items()}
    shown = {name: _themed(name, svgs[name], chart.svg(*charts, narrow=True)) for name, charts in drawings.items()}
    for number, roof in enumerate(roofline.roofs(report.comparisons, report.results.runs), 1):
        name = f"roofline-{number}"
        svgs[name] = roofline.svg(roof)
        shown[name] = _themed(name, svgs[name], roofline.svg(roof, narrow=True))
    context: dict[str, Any] = {
        "roofs": [name for name in shown if name.startswith("roofline-")],
        "report": report,
        "headline": headline(report),
        "environments": tables.environments(report.results),
        "figures": shown,
        "overall": _records(report.overall),
        "extremes": page.extremes(report),
        "suites": page.suites(report),
        "contenders": list(dict.fromkeys(report.comparisons["contender"])),
        "accuracy": _records(report.accuracy),
        "by_dtype": tables.by_dtype(report.accuracy),
        "precision": precision(report),
        "counted": page.counted(report),
        "moved": _records(report.moved),
        "tuned": page.tuned(report),
        "failed_checks": page.failed_checks(report),
        "broken": _records(report.broken),
        "unchecked": page.unchecked(report),
        "compiled": _records(report.compiled),
        "kernels": page.kernels(report),
        "loops": page.loops(report),
        "not_run": _records(report.not_run),
        "brief": page.brief(report),
        "margin": report.margin,
        "signs": SIGNS,
        "tallied": verdict.TALLIED,
        "script": Markup(SCRIPT),
        "script_hash": base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    }
    rendered = {
        "summary.md": environment(markdown=True).get_template("summary.md.j2").render(context),
        "full.md": environment(markdown=True).get_template("full.md.j2").render(context),
        "index.html": environment().get_template("index.html.j2").render(context),
    }
    rendered |= {f"figures/{name}.svg": text for name, text in svgs.items()}
    return rendered | {f"tables/{name}.csv": text for name, text in csv(report).items()}


def csv(report: Report) -> dict[str, str]:
    """Table name -> CSV text: every number of the page, unrounded, times in seconds."""
    results = report.results
    environments = pd.DataFrame(
        [
            {"run": index, "file": run["file"], "key": key, "value": value}
            for index, run in enumerate(tables.environments(results))
            for key, value in run["known"]
        ],
        columns=["run", "file", "key", "value"],
    )
    problems = {"problem": [tables.describe_problem(problem) for problem in results.accuracy["problem"]]}
    frames = {
        "environment": environments,
        "verdicts": report.comparisons.drop(columns=["problem_key", "place", "ours"], errors="ignore"),
        "geometric_means": report.groups,
        "totals": report.totals,
        "overall": report.overall,
        "accuracy": results.accuracy.assign(**problems),
        "accuracy_summary": report.accuracy,
        "compiled": results.compiled,
        "compiled_summary": report.compiled,
        "loops": results.loops,
        "precision": report.precision,
        "counted": report.counted,
        "bytes": results.moved,
        "bytes_summary": report.moved,
        "tuning": report.tuned,
        "configs": tuning.configs(results),
        "not_run": results.not_run,
    }
    return {name: _whole_runs(frame).to_csv(index=False, lineterminator="\n") for name, frame in frames.items()}


def write(written: Mapping[str, str | bytes], directory: Path) -> None:
    """Write every file under the directory, the page last, so that it never shows what is not there yet.

    Pictures of an earlier report in the same directory that this one does not have would be taken for its own:
    they are removed.
    """
    names = sorted(written, key=lambda name: name == "index.html")
    files.write({directory / name: written[name] for name in names})
    for picture in (directory / "figures").glob("*.svg"):
        if page.is_figure(picture.stem) and f"figures/{picture.name}" not in written:
            picture.unlink()


def time(seconds: float) -> str:
    """Three digits in the unit that keeps them short; "—" when there is none."""
    if not math.isfinite(seconds):
        return "—"
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size * 0.9995), UNITS[-1])
    return f"{_digits(seconds / size)} {unit}"


def span(low: float, high: float, unit: str = "") -> str:
    """An interval; of too few samples there is none, and that is said."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    if unit == "time":
        size, name = next(((size, unit) for size, unit in UNITS if high >= size * 0.9995), UNITS[-1])
        return f"{_digits(low / size)}–{_digits(high / size)} {name}"
    # A well measured mean would read 1.18–1.18: then one digit more.
    close = ratio(low) == ratio(high) and high < 9.995
    return f"{low:.3f}–{high:.3f}" if close else f"{ratio(low, '')}–{ratio(high, '')}"


def ratio(value: float, unit: str = "×") -> str:
    """Two decimals below ten, three digits above."""
    if value is None or not math.isfinite(value):
        return "—"
    return (f"{value:.2f}" if value < 9.995 else f"{value:.3g}" if value < 999.5 else f"{value:.0f}") + unit


def number(value: float, digits: int = 3) -> str:
    """A plain number: whole ones in full, others with so many digits; "—" when not stated."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "—"
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.{digits}g}"


def beside(seconds: float, over: float) -> str:
    """A time, and in brackets how many times another it is; "—" alone when there is none."""
    return f"{time(seconds)} ({ratio(over)})" if math.isfinite(over) else time(seconds)


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def environment(*, markdown: bool = False) -> Environment:
    """Templates that escape every value: as HTML for the page, as Markdown for the summary."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=not markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=(lambda value: str(value).translate(MARKDOWN)) if markdown else None,
    )
    made.filters |= {"short": "{:.5g}".format, "time": time, "ratio": ratio, "number": number, "rates": rates}
    made.globals |= {"span": span, "beside": beside, "problem": tables.describe_problem}
    return made


def _themed(name: str, wide: str, narrow: str) -> dict[str, Markup]:
    """A picture for the page, as wide screens and as phones show it."""
    return {"wide": Markup(svg.inline(wide, f"{name}-w")), "narrow": Markup(svg.inline(narrow, f"{name}-n"))}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")


def _whole_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Indices and counts as whole numbers; everything else as it is."""
    whole = {
        name: "Int64"
        for name in ("run", "count", "samples", "processes", "batch", "published_batch", "unmeasured")
        if name in frame
    }
    return frame.astype(whole)
