"""What a training leaves behind to be read: log.csv, log.json, and a figure of its curves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from triton_dirac.runtime import files
from triton_dirac.train.options import Options

LOGS = ("log.csv", "log.json")
COLUMNS = (
    *("epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "images_per_second", "seconds"),
)


def write_log(folder: Path, options: Options, rows: Sequence[dict[str, Any]]) -> None:
    """log.csv, a line an epoch; log.json, the same with options, versions and every Dirac layer's mean |alpha|, |beta|.

    Losses are means over images, accuracies percent, seconds those of training and testing so far. What is no number
    any more, since the training diverged, is null in log.json: JSON has no NaN.
    """
    table, record = LOGS
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.replace(folder / table, text.getvalue())
    versions = {"torch": torch.__version__, "triton_dirac": _version()}
    document = {"options": options.plain(), "versions": versions, "epochs": list(rows)}
    numbers = json.loads(json.dumps(document), parse_constant=lambda name: None)
    files.replace(folder / record, json.dumps(numbers, indent=1))


def _version() -> str:
    import triton_dirac

    return triton_dirac.__version__


def draw_curves(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """An SVG of loss and error against epochs, training and test."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 20 else ""
    for part, colour in (("train", "#8a8a8a"), ("test", "#1f6fb4")):
        name = {"train": "training images, as changed at random", "test": "test images"}[part]
        left.plot(epochs, [row[f"{part}_loss"] for row in rows], colour, marker=marker, markersize=3, label=name)
        errors = [100 - row[f"{part}_accuracy"] for row in rows]
        right.plot(epochs, errors, colour, marker=marker, markersize=3, label=name)
    left.set(xlabel="epoch", ylabel="cross-entropy")
    right.set(xlabel="epoch", ylabel="error, %", title=f"test error at the end {100 - rows[-1]['test_accuracy']:.2f} %")
    left.set_title(title)
    right.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    files.replace(path, buffer.getvalue().decode())
