"""The journal that the suites keep row by row, read as the results file it would have become."""

from __future__ import annotations

import json
from typing import Any

LISTS = ("benchmarks", "accuracy", "not_run", "counted")


def document(text: str) -> dict[str, Any]:
    """All rows' entries and the last environment. A last line without an end is none: its process was killed in it.

    Raises json.JSONDecodeError, which names the line.
    """
    found: dict[str, Any] = {name: [] for name in LISTS}
    start, warnings = 0, list[Any]()
    for line in text.split("\n")[:-1]:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, text, start + error.pos) from None
        start += len(line) + 1
        if not isinstance(entry, dict):
            continue
        if "environment" in entry:
            found["environment"] = entry["environment"]
        if "warning" in entry:
            warnings.append(entry["warning"])
        if isinstance(entry.get("tuned"), list):  # a run that went on tells all of it again
            found["tuned"] = entry["tuned"]
        for name in LISTS:
            part = entry.get(name)
            found[name] += part if isinstance(part, list) else []
    if warnings and isinstance(found.get("environment"), dict):
        found["environment"] = {**found["environment"], "warnings": warnings}
    return found
