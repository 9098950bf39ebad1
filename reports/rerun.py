"""Where one row of the page is and how it is run again: an anchor and a command line."""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

# What tells rows of one run apart; a row has a cell for each of its contenders.
KEY = ("run", "suite", "pass", "net", "layer", "dtype", "device", "clock", "label", "problem_key")
SHOWN = ("suite", "pass", "layer", "dtype")


def anchor(row: Mapping[str, Any]) -> str:
    """conv-fprop-160x32x32-160-3x3-bfloat16-1a2b3c4d: the same in every report of the same results.

    The digits tell rows apart whose names agree or have no letters.
    """
    words = re.findall(r"[a-z0-9]+", " ".join(str(row[name]) for name in SHOWN).lower())
    digits = zlib.crc32(repr([str(row[name]) for name in KEY]).encode(errors="replace"))
    return "-".join([*words, f"{digits:08x}"])[-80:].lstrip("-")


def command(row: Mapping[str, Any], contenders: Iterable[str]) -> str:
    """The row's suite on this row alone, its journal aside; "" where the suite's name is no file's.

    A batch other than the published one is named. The pass narrows by name, where other names contain it too.
    """
    if not re.fullmatch(r"\w+", str(row["suite"]), re.ASCII):
        return ""
    words = ["python", "-m", "pytest", "--benchmark-only", f"bench/test_{row['suite']}.py"]
    layer = row["layer"] if "K" in (row["problem"] or {}) else ""  # of whole nets the net is enough
    nets = ",".join(row["nets"] or {})
    chosen = {"--nets": nets, "--layers": layer, "--dtypes": row["dtype"], "--contenders": ",".join(contenders)}
    words += [f"{option}={value}" for option, value in chosen.items() if value]
    if row["batch"] == row["batch"] and row["batch"] != row["published_batch"]:
        words.append(f"--batch={row['batch']:.0f}")
    words += ["-k", str(row["pass"])] if re.fullmatch(r"\w+", str(row["pass"]), re.ASCII) else []
    return shlex.join([*words, "--benchmark-json=again.json"])
