"""Triton's own intermediate code: what its loads and stores move, before they become instructions."""

from __future__ import annotations

import re
from collections import Counter

# %w = tt.load %p, %mask : tensor<4x1024x!tt.ptr<f32>, #blocked>    amdg.buffer_load ... : tensor<4x1024xf32, ...>
_ACCESS = re.compile(r"\b(?:tt\.|buffer_)(load|store) ")
_SHAPE = re.compile(r": tensor<((?:\d+x)+)")


def accesses(text: str) -> dict[str, dict[str, int]]:
    """{"load": {"4x1024": 1, "4": 2, "": 8}, "store": ...}: how many by the shape they move, "" one element."""
    found = {"load": Counter[str](), "store": Counter[str]()}
    for line in text.splitlines():
        if access := _ACCESS.search(line):
            shape = _SHAPE.search(line, access.end())
            found[access[1]][shape[1].removesuffix("x") if shape else ""] += 1
    return {kind: dict(counts) for kind, counts in found.items()}
