"""The journal that the suites keep row by row, read as the results file it would have become."""

from __future__ import annotations

import json
from typing import Any

LISTS = ("benchmarks", "accuracy", "not_run", "counted")


def document(text: str) -> dict[str, Any]:
    """All rows' entries and the last environment, with a warning of what the run was ended in.

    A last line without an end is none: its process was killed in it. Raises json.JSONDecodeError, which names the line.
    """
    found: dict[str, Any] = {name: [] for name in LISTS}
    start, warnings, unfinished = 0, list[Any](), dict[str, None]()
    *lines, rest = text.split("\n")
    for line in lines:
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
        if "started" in entry:
            unfinished[_named(entry["started"])] = None
        for name in ("row", "faulted"):  # what was lost with the GPU has a warning of its own
            unfinished.pop(_named(entry.get(name)), None)
        if isinstance(entry.get("tuned"), list):  # a run that went on tells all of it again
            found["tuned"] = entry["tuned"]
        for name in LISTS:
            part = entry.get(name)
            found[name] += part if isinstance(part, list) else []
    if unfinished:
        warnings.append(f"Begun and not finished: {', '.join(unfinished)}.")
    elif rest.strip():
        warnings.append("The last line was cut off: what it held is not here.")
    if warnings and isinstance(found.setdefault("environment", {}), dict):
        found["environment"] = {**found["environment"], "warnings": warnings}
    return found


def _named(key: Any) -> str:
    return " ".join(map(str, key)) if isinstance(key, list) else str(key)
