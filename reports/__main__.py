"""python -m reports RESULTS.json [COMPILE.json ...] [--output DIR]: render a comparison report.

Exit code 0 when the report is written, 2 when the input cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reports import chart, page, render, verdict
from reports.headline import headline
from reports.load import ACCEPTED, ReportError, load
from reports.report import Report, build


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, compare, write; prints the headline and where the page is."""
    options = _parser().parse_args(arguments)
    try:
        report = build(load(options.files), baselines=dict(options.baseline), margin=options.margin / 100)
        overview = _overview(report, options.overview)
    except ReportError as error:
        print(f"reports: {error}", file=sys.stderr)
        return 2
    directory = options.output or options.files[0].parent
    render.write(render.render(report), directory)
    if options.overview:
        render.write_file(options.overview, overview)
    for sentence in headline(report):
        print(sentence)
    print(directory / "index.html")
    return 0


def _overview(report: Report, path: Path | None) -> str | bytes:
    """The README's picture in the format that the file's name asks for."""
    if path is None:
        return ""
    charts = page.charts(report).get("overview")
    if not charts:
        raise ReportError(f"--overview {path}: these results hold neither times nor compiled kernels to draw")
    return chart.png(*charts) if path.suffix == ".png" else chart.svg(*charts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reports",
        description="Render a comparison report from results files.",
        epilog=ACCEPTED,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="RESULTS.json")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write the report; default: beside the first file"
    )
    parser.add_argument(
        "--baseline", action="append", default=[], type=_baseline, metavar="SUITE=CONTENDER",
        help="compare a suite's contenders with this one; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--margin", type=_percent, default=verdict.DEFAULT_MARGIN * 100, metavar="PERCENT",
        help="differences within this are called the same; default: %(default)g",
    )  # fmt: skip
    parser.add_argument(
        "--overview",
        type=_picture,
        metavar="FILE.svg|FILE.png",
        help="also write the overview picture to this file",
    )
    return parser


def _baseline(text: str) -> tuple[str, str]:
    suite, equals, contender = text.partition("=")
    if not (suite and equals and contender):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is SUITE=CONTENDER, such as conv=cudnn")
    return suite, contender


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a number of percent from 0 to 100")
    return value


def _picture(text: str) -> Path:
    if Path(text).suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a name that ends in .svg or .png")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
