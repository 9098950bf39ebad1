"""What the checks of a visit wrote: one line of JSON each, {"family", "name", "passed", "error", "seconds"}.

The first line is {"planned"}, how many there are to do.

Apart from the checks themselves: whoever reads this imports no kernels, and so decides nothing about Triton's
interpreter for the processes it starts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read(journal: Path) -> list[dict[str, Any]]:
    """The entries; a last line that was cut off is left out."""
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def append(journal: Path, entry: dict[str, Any]) -> None:
    with open(journal, "a", encoding="utf-8") as file:
        print(json.dumps(entry), file=file, flush=True)


def summary(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a visit needs to know: how many checks there were of how many, and which families erred how."""
    results = [entry for entry in entries if "passed" in entry]
    planned = max([len(results), *(entry["planned"] for entry in entries if "planned" in entry)])
    wrong: dict[str, list[str]] = {}
    for entry in results:
        if not entry["passed"]:
            wrong.setdefault(entry["family"], []).append(f"{entry['name']}: {entry['error']}")
    return {"planned": planned, "done": len(results), "passed": sum(e["passed"] for e in results), "wrong": wrong}
