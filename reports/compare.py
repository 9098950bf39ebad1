"""python -m reports compare OLD NEW [NEW ...]: what changed between runs, with an exit status.

OLD and NEW are each a results file, a journal, or a folder of several from fresh processes of the same code
(``sides``); what is called a change, and how surely, is in ``changes``.

Exit code 0; 1 where a verdict was named by --fail-on; 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from reports import arguments, files, render, terminal, verdict
from reports.changes import FEWEST, PROCESSES, RATE, SAMPLES, VERDICTS, Change, Comparison, beside, compared
from reports.load import ReportError
from reports.sides import OWN, STATED, Side, read


def document(found: Comparison, options: argparse.Namespace) -> dict[str, Any]:
    """All of a comparison as plain data: what the page, the summary and the JSON are made of."""
    first, second = ({name: side.environments[0][name] for name in STATED} for side in (found.old, found.new))
    sides = [
        {"name": side.name, "processes": side.processes, "stated": stated}
        for side, stated in ((found.old, first), (found.new, second))
    ]
    tally = {word: sum(change.verdict == word for change in found.changes) for word in VERDICTS}
    return {
        "sides": sides,
        "differing": {name: [first[name], second[name]] for name in STATED if first[name] != second[name]},
        "margin": options.margin / 100,
        "rate": options.rate / 100,
        "relative_to": _measures(found) if options.relative else None,
        "over": {what: sum(change.over == what for change in found.changes) for what in (PROCESSES, SAMPLES)},
        "across_machines": found.old.machines != found.new.machines,
        "across_clocks": sum(bool(change.clocks and change.ratio) for change in found.changes),
        "clocks": any(change.mhz for change in found.changes),
        "tally": tally,
        "words": ", ".join(f"{count} {word}" for word, count in tally.items() if count) or "no row",
        "overall": [_plain(change) for change in found.overall],
        "changes": [_plain(change) for change in found.changes],
    }


def _measures(found: Comparison) -> dict[str, str]:
    """Suite -> what its rows' times are relative to: the baseline, and for what is replayed the baseline's graph."""
    measures: dict[str, dict[str, None]] = {}
    for change in found.changes:
        if change.row.suite in found.old.baselines:
            measures.setdefault(change.row.suite, {})[beside(change.row, found.old.baselines).contender] = None
    return {suite: " and ".join(names) for suite, names in measures.items()}


def _plain(change: Change) -> dict[str, Any]:
    return vars(change) | {"row": change.row._asdict(), "name": change.row.name}


def written(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Name -> content of compare.json, compare.md and compare.html."""
    context = {"documents": documents, "signs": render.SIGNS, "fewest": FEWEST}
    return {
        OWN: '{"kind": "comparison", "comparisons": [\n' + ",\n".join(map(_json, documents)) + "\n]}\n",
        "compare.md": render.environment(markdown=True).get_template("compare.md.j2").render(context),
        "compare.html": render.environment().get_template("compare.html.j2").render(context),
    }


def _json(document: dict[str, Any]) -> str:
    """A change a line, so that differences can be read; ``indent`` would take most of a large comparison's time."""

    def strict(value: Any) -> str:
        return json.dumps(value, allow_nan=False)

    def text(value: Any) -> str:
        return "[\n" + ",\n".join(map(strict, value)) + "\n]" if isinstance(value, list) and value else strict(value)

    return "{" + ",\n".join(f"{strict(name)}: {text(value)}" for name, value in document.items()) + "}"


def main(given: Sequence[str]) -> int:
    options = _parser().parse_args(given)
    baselines = dict(options.baseline)
    try:
        old, *news = (read(path, baselines) for path in (options.old, *options.new))
        documents = [document(_of(old, new, options), options) for new in news]
        pages = written(documents)
        if options.output:
            files.write({options.output / name: content for name, content in pages.items()})
        terminal.say(pages["compare.md"].splitlines())
    except ReportError as error:
        print(f"reports compare: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"reports compare: --output {options.output}: cannot be written ({error})", file=sys.stderr)
        return 2
    words = {change["verdict"] for one in documents for change in (*one["changes"], *one["overall"])}
    return int(bool(words & set(options.fail_on)))


def _of(old: Side, new: Side, options: argparse.Namespace) -> Comparison:
    if new.machines != old.machines and not options.across_machines:
        raise ReportError(
            f"{new.name} is of another machine ({_machine(new)}) than {old.name} ({_machine(old)}); accepted is the "
            "same, or --across-machines"
        )
    return compared(
        old, new, margin=options.margin / 100, rate=options.rate / 100, across=options.across_machines,
        relative=options.relative,
    )  # fmt: skip


def _machine(side: Side) -> str:
    return "; ".join(filter(None, side.machines)) or "not stated"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reports compare",
        description="What changed between runs. A folder is a run of as many fresh processes as its files hold.",
    )
    parser.add_argument("old", type=arguments.path, metavar="OLD")
    parser.add_argument("new", type=arguments.path, nargs="+", metavar="NEW")
    parser.add_argument(
        "--output", type=arguments.path, metavar="DIR", help="also write compare.html, compare.md, compare.json"
    )
    parser.add_argument(
        "--margin", type=arguments.percent, default=verdict.DEFAULT_MARGIN * 100, metavar="PERCENT",
        help="changes within this are called the same; default: %(default)g",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=arguments.rate, default=RATE * 100, metavar="PERCENT",
        help="the probability of one false alarm or more in all; default: %(default)g",
    )  # fmt: skip
    parser.add_argument(
        "--fail-on", action="append", default=[], choices=VERDICTS, help="exit with 1 if a row is; may be repeated"
    )
    parser.add_argument(
        "--relative", action="store_true",
        help="compare times relative to the suite's baseline in the same process: a loaded machine slows both",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", action="append", default=[], type=arguments.baseline, metavar="SUITE=CONTENDER",
        help="what times are relative to; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--across-machines", action="store_true", help="compare runs of different machines, devices and clocks"
    )
    return parser
