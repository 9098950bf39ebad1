"""python -m reports.publish RESULTS.json [COMPILE.json ...]: keep a run in reports/published/<date-machine>/.

There: the page, its pictures and words, and the results themselves, compressed, for ``python -m reports compare``; the
index page lists all that are kept. ``--like RESULTS.json`` keeps nothing: it compares these results with the last run
that is kept of a like machine, if there is one.
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reports import arguments, chart, compare, files, page, render
from reports.load import COMPRESSED, ReportError, load
from reports.report import build

PUBLISHED = Path(__file__).parent / "published"
KEPT = ("results.json.gz", "results.journal.jsonl.gz")


def folder_name(environment: Mapping[str, Any]) -> str:
    """2026-11-26-nvidia-h200: the date, and the GPU or else the CPU. Raises ReportError where neither is stated."""
    machine = environment.get("gpu") or environment.get("cpu")
    date = re.match(r"\d{4}-\d\d-\d\d", str(environment.get("date") or ""))
    if not machine or not date:
        raise ReportError("the results state no date or no machine, so no folder can be named after them")
    return "-".join([date[0], *re.findall(r"[a-z0-9]+", str(machine).lower())])


def publish(paths: Sequence[Path], root: Path = PUBLISHED) -> Path:
    """Render the run, keep its files compressed beside the page, and list it. Returns its folder."""
    if len({path.name for path in paths}) < len(paths):
        raise ReportError("two files of one name cannot be kept in one folder; accepted are files of different names")
    report = build(load(paths))
    folder = root / folder_name(report.results.runs[0]["environment"])
    kept: dict[Path, str | bytes] = {
        folder / name: text
        for name, text in render.render(report).items()
        if "/" not in name  # tables and single figures follow from the results
    }
    if charts := page.charts(report).get("overview"):
        kept[folder / "overview.svg"] = chart.svg(*charts)
    for path in paths:
        whole = path.suffix not in COMPRESSED
        name = f"{path.name}.gz" if whole else path.name
        kept[folder / name] = gzip.compress(path.read_bytes(), mtime=0) if whole else path.read_bytes()
    files.write(kept)
    files.write({root / "index.html": index(root)})
    return folder


def index(root: Path = PUBLISHED) -> str:
    """The page that lists every run kept under ``root``, the newest first."""
    runs = []
    for folder in sorted((part.parent for part in root.glob("*/index.html")), reverse=True):
        date, machine = folder.name[:10], folder.name[11:]
        words = next((folder / name for name in ("summary.md", "full.md") if (folder / name).exists()), None)
        found = re.search(r"^\*\*(.*)\*\*$", words.read_text(encoding="utf-8"), re.MULTILINE) if words else None
        headline = re.sub(r"\\(.)", r"\1", found[1]) if found else ""
        results = sorted(part.name for part in folder.iterdir() if part.suffix in COMPRESSED)
        picture = (folder / "overview.svg").exists()
        runs.append(
            {"folder": folder.name, "date": date, "machine": machine, "headline": headline, "results": results}
            | {"picture": picture, "words": words.name if words else ""}
        )
    return (
        render.environment()
        .get_template("published.html.j2")
        .render({"runs": runs, "nets": (root / "nets.md").exists()})
    )


def like(path: Path, root: Path = PUBLISHED) -> tuple[Path, bool] | None:
    """The results that were kept last of the GPU of ``path``, or without one of its CPU and cores; None without any.

    With them whether the rest of the machine is another. The run itself, kept already, is no other run.
    """

    def machine(file: Path) -> tuple[Any, ...]:
        stated = load([file]).runs[0]["environment"]
        return tuple(stated.get(name) for name in ("gpu", "cpu", "cores", "date"))

    gpu, *others, date = machine(path)
    for kept in sorted((file for name in KEPT for file in root.glob(f"*/{name}")), reverse=True):
        its_gpu, *its_others, its_date = machine(kept)
        if its_gpu == gpu and (gpu or its_others == others) and its_date != date:
            return kept, its_others != others
    return None


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m reports.publish", description=__doc__)
    parser.add_argument("files", nargs="*", type=arguments.path, metavar="RESULTS.json")
    parser.add_argument("--like", type=arguments.path, metavar="RESULTS.json", help="compare these with the last kept")
    parser.add_argument(
        "--output", type=arguments.path, metavar="DIR", help="of --like: also keep the comparison there"
    )
    options = parser.parse_args(given)
    try:
        if options.like:
            return _compare(options.like, options.output)
        print(publish(options.files) if options.files else "nothing to keep: name a results file")
    except ReportError as error:
        print(f"reports.publish: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"reports.publish: cannot be written ({error})", file=sys.stderr)
        return 2
    return 0 if options.files else 2


def _compare(path: Path, output: Path | None) -> int:
    found = like(path)
    if found is None:
        print(f"no run of a machine like this one's is kept in {PUBLISHED}")
        return 0
    kept, is_another = found
    options = [*(["--output", str(output)] if output else []), *(["--across-machines"] if is_another else [])]
    return compare.main([str(kept), str(path), *options])


if __name__ == "__main__":
    sys.exit(main())
