"""matplotlib as it comes, whatever the user's matplotlibrc, style, MPLBACKEND or notebook say."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _start() -> None:
    """matplotlib reads MPLBACKEND and matplotlibrc when it is imported, and raises where it dislikes them.

    Such a setting, often a notebook's backend that only the notebook has, must not cost the report: it is not shown
    to matplotlib. Where somebody imported matplotlib before, this does nothing, and ``plain`` does the rest.
    """
    kept = {name: os.environ.get(name) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    try:
        importlib.import_module("matplotlib")
    finally:
        for name, value in kept.items():
            os.environ.pop(name)
            os.environ |= {name: value} if value is not None else {}


_start()

import matplotlib  # noqa: E402 - started above
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

__all__ = ["Axes", "Figure", "Line2D", "plain"]


@contextmanager
def plain(settings: Any) -> Iterator[None]:
    """Inside: matplotlib's own defaults and these settings, nobody else's."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield
