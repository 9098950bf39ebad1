"""All of a training's state in one file, which is the new one or the one before, whatever ends the process.

Only tensors, numbers, text and containers of them: reading a checkpoint executes nothing.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import torch

from triton_dirac.runtime import files

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` in place of what is there. Raises OSError, and then leaves the old file as it was."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    files.replace(path, buffer.getvalue(), alone=True)  # one training writes in one folder


def load(path: Path) -> dict[str, Any]:
    """The state in the file, on the CPU.

    Raises:
        OSError: there is none. ValueError: it is no checkpoint of a training, or a damaged one.
    """
    try:
        state = files.read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path} is no whole checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of a training (format {FORMAT})")
    return state


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the random generators that a step may use."""
    version, numbers, extra = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(numbers), extra]}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, extra = state["python"]
    random.setstate((version, tuple(numbers), extra))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
