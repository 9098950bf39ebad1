"""The results file, made small enough to keep in git."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime import files


def compact(path: Path) -> None:
    """Rewrite a results file in one step, one entry a line: half the size, and differences can be read."""
    document = json.loads(path.read_text())
    try:
        files.replace(path, one_entry_a_line(document))
    except OSError as error:  # a full disk: the results are there, if at twice the size
        warnings.warn(f"{path} is not made smaller: {error}", stacklevel=2)


def one_entry_a_line(document: dict[str, Any]) -> str:
    """JSON of ``document`` with each element of its lists, and each other value, on a line of its own."""

    def text(value: Any) -> str:
        if isinstance(value, list) and value:
            return "[\n" + ",\n".join(map(dense, value)) + "\n]"
        return dense(value)

    lines = (f"{dense(key)}:{text(value)}" for key, value in document.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def dense(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def sizes(problem: ConvProblem) -> dict[str, Any]:
    """``problem`` without what it has in common with nearly all: stride 1, dilation 1, one group."""
    usual = {"stride": (1, 1), "dilation": (1, 1), "groups": 1}
    return {name: value for name, value in asdict(problem).items() if usual.get(name) != value}


def digits(value: float, significant: int) -> float:
    """``value`` with so many significant decimal digits."""
    return float(f"{value:.{significant}g}")
