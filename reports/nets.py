"""Figures and tables of whole nets: python -m reports.nets DIR

Reads, of DIR, what is there of depth/depth.json (or its journal, while it runs), quantisation/quantisation.json and
nets/published.json, as bench.depth, bench.quantisation and bench.published wrote them; writes depth/depth.svg,
depth/factors.svg, nets/published.svg, and a page of all, nets.md.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports import files
from reports.drawing import Axes, Figure, plain

STYLES = {
    "Dirac": ("#1f6fb4", "o"),
    "residual": ("#2f8f4e", "s"),
    "plain": ("#b8442c", "v"),
    "delta-orthogonal": ("#d99a2b", "^"),
    "Dirac, bfloat16, split": ("#7fb2dd", "o"),
    "Dirac, bfloat16, materialised": ("#6b4fa0", "D"),
}
SETTINGS = {"font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
TIMES = (5, 10, 20, 50, 100)
CHANCE = 10.0  # percent, of ten digits
Trainings = list[dict[str, Any]]


def read_depth(folder: Path) -> dict[str, Any] | None:
    """The depth experiment's results, or what its journal has so far."""
    if (folder / "depth.json").exists():
        found: dict[str, Any] = json.loads((folder / "depth.json").read_text(encoding="utf-8"))
        return found
    journal = folder / "depth.journal.jsonl"
    if not journal.exists():
        return None
    environment, *trainings = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return {"environment": environment, "trainings": trainings}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def accuracies(trainings: Trainings, kind: str) -> dict[int, list[float]]:
    """Test accuracies at the end, of all seeds, by depth."""
    found: dict[int, list[float]] = {}
    for training in trainings:
        if training["kind"] == kind:
            found.setdefault(training["depth"], []).append(training["rows"][-1]["test_accuracy"])
    return dict(sorted(found.items()))


def seconds(trainings: Trainings, kind: str, depth: int) -> float:
    """The core's seconds of one training, median of the seeds."""
    return statistics.median(t["cpu_seconds"] for t in trainings if (t["kind"], t["depth"]) == (kind, depth))


# --- figures ------------------------------------------------------------------------------------------------


def draw_depth(trainings: Trainings) -> Figure:
    """Accuracy against depth, with the spread of the seeds, and against a core's time; bfloat16 apart."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    by_depth, by_time, in_bfloat16 = figure.subplots(1, 3)
    for kind, (colour, marker) in STYLES.items():
        found = accuracies(trainings, kind)
        if not found:
            continue
        means = [statistics.mean(values) for values in found.values()]
        if "bfloat16" in kind:
            name = kind.rpartition(", ")[2]
            in_bfloat16.plot(list(found), means, color=colour, marker=marker, markersize=4, label=f"bfloat16, {name}")
            continue
        low, high = [min(values) for values in found.values()], [max(values) for values in found.values()]
        by_depth.fill_between(list(found), low, high, color=colour, alpha=0.18, linewidth=0)
        by_depth.plot(list(found), means, color=colour, marker=marker, markersize=4, label=kind)
        times = [seconds(trainings, kind, depth) for depth in found]
        by_time.plot(times, means, color=colour, marker=marker, markersize=4)
    first = {depth: values[:1] for depth, values in accuracies(seed(trainings, 0), "Dirac").items()}
    in_bfloat16.plot(
        list(first), [v[0] for v in first.values()], color=STYLES["Dirac"][0], linestyle="--", label="float32"
    )
    by_depth.set(xlabel="depth", ylabel="test accuracy, %", title="mean and range of the seeds")
    by_time.set(xlabel="seconds of one core, a training", title="against time, shallow to deep", xscale="log")
    by_time.set_xticks(TIMES, [str(time) for time in TIMES])
    by_time.minorticks_off()
    in_bfloat16.set(xlabel="depth", ylabel="test accuracy, %", title="DiracNets of the first seed")
    in_bfloat16.locator_params(axis="y", nbins=5)
    for axes in (by_depth, in_bfloat16):
        axes.set_xscale("log")
        depths = sorted({training["depth"] for training in trainings})
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    for axes in (by_depth, by_time):
        axes.axhline(CHANCE, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 101)
    return figure


def seed(trainings: Trainings, number: int) -> Trainings:
    return [training for training in trainings if training["seed"] == number]


def draw_factors(trainings: Trainings) -> Figure | None:
    """Mean |alpha| and |beta| of every layer after each epoch, of the deepest Dirac net that is not too deep to see."""
    shown = [t for t in trainings if t["kind"] == "Dirac" and "alpha" in t and t["depth"] <= 40]
    if not shown:
        return None
    training = max(shown, key=lambda t: t["depth"])
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("alpha", "beta"), strict=True):
        rows = training[name]
        for epoch, values in enumerate(rows, start=1):
            shade = 0.85 - 0.75 * epoch / len(rows)
            label = f"epoch {epoch}" if epoch in (1, len(rows)) else None
            axes.plot(
                range(1, len(values) + 1), values, color=(shade * 0.6, shade * 0.8, 0.35 + shade / 2), label=label
            )
        axes.axhline({"alpha": 1.0, "beta": 0.1}[name], color="#bbbbbb", linewidth=0.8, linestyle=":")
        axes.set(xlabel="Dirac layer, from the image on", title=f"mean |{name}|, DiracNet-{training['depth']}-1")
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_published(rows: Sequence[dict[str, Any]]) -> Figure:
    """Published errors against depth and against parameters, CIFAR-10 and ImageNet."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    for line, dataset in zip(figure.subplots(2, 2), ("CIFAR-10", "ImageNet top-1"), strict=True):
        for axes, size in zip(line, ("depth", "parameters"), strict=True):
            marks = [(row, result) for row in rows for result in row["results"] if result["dataset"] == dataset]
            most = max((_size(row, size) for row, _ in marks), default=0.0)
            for row, result in marks:
                _mark(axes, row, result, _size(row, size), most)
            axes.set(
                ylabel=f"{dataset} error, %",
                xlabel={"depth": "depth", "parameters": "parameters as printed, millions"}[size],
            )
            axes.margins(x=0.12, y=0.2)
            if size == "depth":
                axes.set_xscale("log")
                axes.minorticks_off()
                depths = sorted({row["depth"] for row, _ in marks})
                axes.set_xticks(depths, [str(depth) for depth in depths])
    return figure


def _size(row: dict[str, Any], size: str) -> float:
    return row["depth"] if size == "depth" else row["printed_millions"]


def _mark(axes: Axes, row: dict[str, Any], result: dict[str, Any], x: float, most: float) -> None:
    """A mark and its name: to its right, or to its left where the axis ends."""
    colour = STYLES["Dirac" if row["dirac"] else "plain" if row["name"] == "VGG-16" else "residual"][0]
    marker, y, side = "o" if row["dirac"] else "s", result["error"], -1 if x == most else 1
    axes.errorbar([x], [y], yerr=result["spread"], fmt=marker, color=colour, markersize=5)
    by = " (He et al.)" if "1603.05027" in result["source"] else ""
    style: dict[str, Any] = {"fontsize": 7, "color": colour, "ha": "left" if side > 0 else "right"}
    axes.annotate(row["name"] + by, (x, y), (6 * side, 3), textcoords="offset points", **style)


# --- tables -------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def depth_table(trainings: Trainings) -> str:
    """Accuracy by kind and depth: mean, and range of the seeds where there are several."""
    depths = sorted({training["depth"] for training in trainings})
    rows = []
    for kind in STYLES:
        found = accuracies(trainings, kind)
        if found:
            rows.append([kind, *(_spread(found.get(depth, [])) for depth in depths)])
    return table(["test accuracy, %", *(f"depth {depth}" for depth in depths)], rows)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else mean


def quantisation_table(document: dict[str, Any]) -> str:
    rows = [
        [
            row["way"], "float32" if row["bits"] is None else f"{row['bits']} bits", f"{row['accuracy']:.2f}",
            f"{100 * row['weight_error']:.1f}", f"{100 * row['logit_error']:.2f}",
            f"{row['onnxruntime_accuracy']:.2f}" if "onnxruntime_accuracy" in row else "–",
        ]
        for row in document["rows"]
    ]  # fmt: skip
    head = ["folded", "filters", "accuracy, %", "error of a filter, %", "error of the logits, %", "in onnxruntime, %"]
    return table(head, rows)


def published_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        for result in row["results"]:
            spread = "" if result["spread"] is None else f" ± {result['spread']:.2f}"
            printed = "–" if row["printed_millions"] is None else f"{row['printed_millions']}M"
            size = [f"{row['depth']}-{row['width']}", f"{row['parameters']:,}", printed]
            lines.append([row["name"], *size, result["dataset"], f"{result['error']:.2f}{spread}", result["source"]])
    notes = [f"- {row['name']}: {row['note']}.\n" for row in rows if row["note"] and row["results"]]
    return table(["net", "depth-width", "parameters", "printed", "data", "error, %", "source"], lines) + (
        f"\nWhere the net's parameters are not those printed:\n\n{''.join(notes)}" if notes else ""
    )


# --- the page -----------------------------------------------------------------------------------------------


def written(folder: Path) -> dict[Path, str]:
    """All files of the page, by path."""
    found: dict[Path, str] = {}
    parts = ["# Whole nets\n"]
    if depth := read_depth(folder / "depth"):
        trainings = depth["trainings"]
        found[folder / "depth" / "depth.svg"] = svg(draw_depth, trainings)
        parts.append(f"## Accuracy against depth\n\n{DEPTH}\n![accuracy against depth](depth/depth.svg)\n")
        parts.append(depth_table(trainings))
        if any("alpha" in training for training in trainings):
            found[folder / "depth" / "factors.svg"] = svg(draw_factors, trainings)
            parts.append("![alpha and beta of every layer over training](depth/factors.svg)\n")
        parts.append(_origin(depth["environment"]))
    if quantised := read(folder / "quantisation" / "quantisation.json"):
        text = QUANTISATION.format(net=quantised["net"], epochs=quantised["epochs"])
        parts.append(f"## Folded, and rounded\n\n{text}")
        parts += [quantisation_table(quantised), _origin(quantised["environment"])]
    if published := read(folder / "nets" / "published.json"):
        found[folder / "nets" / "published.svg"] = svg(draw_published, published)
        parts.append(f"## As published\n\n{PUBLISHED}\n![published errors](nets/published.svg)\n")
        parts.append(published_table(published))
    found[folder / "nets.md"] = "\n".join(parts)
    return found


def _origin(environment: dict[str, Any]) -> str:
    dirty = ", with changes" if environment["dirty"] else ""
    return (
        f"`{environment['command']}`, commit {environment['commit'][:12]}{dirty}, torch {environment['torch']}, Triton "
        f"{environment['triton']}, {environment['cpu']}, {environment['date'][:10]}.\n"
    )


def svg(draw: Any, data: Any) -> str:
    with plain(SETTINGS | {"svg.hashsalt": "nets"}):
        buffer = io.StringIO()
        draw(data).savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()


DEPTH = """\
Plain, Dirac and residual nets of the same width (16, 32, 64 channels), depth 10 to 100, trained alike on scikit-learn's
8 x 8 digits for ten epochs: a small copy of figure 1 of the paper, whose nets are trained on CIFAR-10 for 200. Time is
of one core of a shared machine. Ten epochs are short for the deepest nets: what is not learnt here is not thereby
unlearnable. Deep plain nets can be made trainable by their start and shaping alone and still generalise less well: that
gap outlasts trainability (arXiv 2506.14386). The delta-orthogonal start (arXiv 1806.05393) is for nets without
batch-norm; with it and without skips gradients grow exponentially with depth at any start (arXiv 1902.08129). In
bfloat16 every Dirac convolution's images, filters and outputs are rounded, its sums are float32's; that is one seed,
and at depth 100 seeds differ by more than the forms do.
"""
QUANTISATION = """\
A {net} trained on the digits for {epochs} epochs, batch-norm folded in. A folded filter has alpha beside weights a
hundredth of it, and one step for both: its error is that of the median filter, by the size of what is beside the
identity. With `fold(identity="separate")` the filters are rounded alone, and alpha stays a scale of each channel.
Accuracy alone does not show it at 8 bits; the logits do.
"""
PUBLISHED = """\
At equal depth DiracNets need more parameters than residual nets; freed of that they need less depth. ResNet-1001 has
two published values: 4.92 in the DiracNets paper, 4.62 in He et al.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m reports.nets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"folder must be a folder of results, got {options.folder}")
    pages = written(options.folder)
    if len(pages) == 1:
        parser.error(f"{options.folder} has no depth/depth.json, quantisation/quantisation.json or nets/published.json")
    files.write(pages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
