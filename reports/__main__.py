"""python -m reports RESULTS.json [COMPILE.json ...] [--output DIR]: render a comparison report.

python -m reports compare OLD NEW [...]: what changed between runs; see ``compare``.

Exit code 0 when the report is written, 2 when the input cannot be used or the output not be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from reports import arguments, chart, compare, files, page, render, terminal, verdict
from reports.headline import headline
from reports.load import ACCEPTED, ReportError, load
from reports.report import Report, build


def main(given: Sequence[str] | None = None) -> int:
    """Read, compare, write; prints the headline and where the page is."""
    given = sys.argv[1:] if given is None else list(given)
    if given[:1] == ["compare"]:
        return compare.main(given[1:])
    options = _parser().parse_args(given)
    directory = options.output or options.files[0].parent
    try:
        report = build(load(options.files), baselines=dict(options.baseline), margin=options.margin / 100)
        overview = _overview(report, options.overview)
        _write(lambda: render.write(render.render(report), directory), f"--output {directory}", "a folder")
        if options.overview:
            _write(lambda: files.write({options.overview: overview}), f"--overview {options.overview}", "a file")
        terminal.say([*headline(report), str(directory / "index.html")])
    except ReportError as error:
        print(f"reports: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _write(write: Callable[[], None], where: str, what: str) -> None:
    try:
        write()
    except OSError as error:
        raise ReportError(f"{where}: cannot be written ({error}); accepted is {what} that is or can be made") from None


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
    parser.add_argument("files", nargs="+", type=arguments.path, metavar="RESULTS.json")
    parser.add_argument(
        "--output", type=arguments.path, metavar="DIR", help="where to write the report; default: beside the first file"
    )
    parser.add_argument(
        "--baseline", action="append", default=[], type=arguments.baseline, metavar="SUITE=CONTENDER",
        help="compare a suite's contenders with this one; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--margin", type=arguments.percent, default=verdict.DEFAULT_MARGIN * 100, metavar="PERCENT",
        help="differences within this are called the same; default: %(default)g",
    )  # fmt: skip
    parser.add_argument(
        "--overview",
        type=_picture,
        metavar="FILE.svg|FILE.png",
        help="also write the overview picture to this file",
    )
    return parser


def _picture(text: str) -> Path:
    if Path(text).suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted is a name that ends in .svg or .png")
    return arguments.path(text)


if __name__ == "__main__":
    sys.exit(main())
