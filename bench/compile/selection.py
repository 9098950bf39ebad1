"""What the command line selects of a table. Whoever names something gets it or an error: no gate passes on nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.layers import layers
from bench.net_weights import WHOLE_NETS
from bench.nets import NETS
from triton_dirac.runtime.targets import TARGETS

from . import bytes as moved
from . import configs, loops, plans
from .jobs import KERNELS, Job

FLOATS = ("float16", "bfloat16", "float32")
PARTS = ("kernels", "layers")  # selected by parts of their names; the others by whole names
# Table -> option -> what it may name. "" is the table of kernels.
TABLES: Mapping[str, Mapping[str, Iterable[str]]] = {
    "": {"targets": TARGETS, "kernels": KERNELS, "nets": NETS, "dtypes": (*FLOATS, *plans.TF32), "layers": ()},
    "loops": {"targets": TARGETS, "kernels": loops.CANDIDATES, "dtypes": FLOATS},
    "configs": {"targets": TARGETS, "kernels": configs.KERNELS, "dtypes": configs.DTYPES},
    "bytes": {"targets": TARGETS, "nets": WHOLE_NETS, "dtypes": moved.ACCEPTED},
}
OPTIONS = ("targets", "kernels", "nets", "layers", "dtypes")
OF_KERNELS_ONLY = ("all", "peers")
# Whether a job or its row is one of those that a word of the option selects.
SELECTS: Mapping[str, Callable[[Mapping[str, Any], str], bool]] = {
    "targets": lambda row, word: row["target"] == word,
    "kernels": lambda row, word: word in row["kernel"],
    "nets": lambda row, word: word in row["net"].split(", "),
    "layers": lambda row, word: word in row["layer"] or row["kernel"].startswith("weight_prep_multi"),
    "dtypes": lambda row, word: row["dtype"] == word,
}


def table_of(options: argparse.Namespace) -> str:
    """The table that is asked for, "" for that of kernels; argparse lets one be named at most."""
    return next((name for name in TABLES if name and getattr(options, name)), "")


def split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def mistake(options: argparse.Namespace) -> str | None:
    """What is wrong with the options, by name and with what is accepted; None if nothing is."""
    table = table_of(options)
    takes = TABLES[table]
    for option in (*OPTIONS, *OF_KERNELS_ONLY):
        given = getattr(options, option)
        if given in (None, False) or (option in OF_KERNELS_ONLY and not table):
            continue
        if option not in takes:
            accepted = ", ".join(f"--{name}" for name in takes)
            return f"--{option} selects nothing of --{table}; accepted there are {accepted}"
        words, known = split(given), list(_layer_names(options) if option == "layers" else takes[option])
        if not words:
            return f"--{option} {given!r} names nothing; accepted are {', '.join(known)}"
        for word in words:
            if not (any(word in name for name in known) if option in PARTS else word in known):
                accepted = f"{'parts of ' if option in PARTS else ''}{', '.join(known)}"
                return f"--{option}: nothing is named {word!r}; accepted are {accepted}"
    return None


def without(rows: Sequence[Mapping[str, Any] | Job], options: argparse.Namespace) -> str | None:
    """Which of the options' words have no job or row, or that there is none at all; None if all is well."""
    found = [row.to_json() if isinstance(row, Job) else row for row in rows]
    missing = [
        f"--{option} {word}"
        for option, selects in SELECTS.items()
        for word in split(getattr(options, option))
        if not any(selects(row, word) for row in found)
    ]
    if missing:
        return f"with the other options nothing is selected by {', '.join(missing)}"
    return None if found else "nothing is selected"


def _layer_names(options: argparse.Namespace) -> list[str]:
    nets = [net for net in split(options.nets) or NETS if net in NETS]
    return list(dict.fromkeys(layer.name for net in nets for layer in layers(net)))
