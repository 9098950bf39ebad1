"""How near a time is to what the machine can do: rates, and their share of the ceilings measured on it.

A results file's environment may hold ``ceilings``: {"copy": {"short": bytes/s, "sustained": bytes/s}, "bfloat16":
{"short": flop/s, "sustained": flop/s}, ...}, a large copy and large matmuls by dtype. Rows are timed in short bursts,
so their share is of the short ones: the least time by the nearer of the two ceilings, over the time measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

WORTH_SAYING = 0.1  # seconds of a first call
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1.0, ""))


def share(entry: Mapping[str, Any], seconds: float, environment: Mapping[str, Any]) -> float:
    """Of ``entry``'s flops and bytes; NaN where no ceiling is stated."""
    peak, copy = (short(environment, name) for name in (entry["dtype"], "copy"))
    times = [time for time in (entry["flops"] / peak, entry["bytes"] / copy) if math.isfinite(time)]
    return max(times) / seconds if times else np.nan


def rates(row: Mapping[str, Any]) -> str:
    """545 TFLOP/s · 1.86 TB/s · 69% of the ceiling · peak 1.2 GB · first call 2.1 s, as far as it is known, or ""."""
    known = [
        _with_prefix(row[name], unit) for name, unit in (("flop_per_s", "FLOP/s"), ("bytes_per_s", "B/s"))
        if row.get(name) and math.isfinite(row[name])
    ]  # fmt: skip
    if math.isfinite(row.get("share", np.nan)):
        known.append(f"{row['share']:.0%} of the ceiling")
    if math.isfinite(row.get("peak_bytes", np.nan)):
        known.append(f"peak {_with_prefix(row['peak_bytes'], 'B')}")
    if row.get("first_call_seconds", np.nan) >= WORTH_SAYING:  # false of NaN
        known.append(f"first call {row['first_call_seconds']:.2g} s")
    return " · ".join(known)


def described(environment: Mapping[str, Any]) -> str:
    """Each ceiling, under a short load and a sustained one; "" where none is stated."""
    stated = environment.get("ceilings")
    if not isinstance(stated, Mapping):
        return ""
    return ", ".join(
        f"{name} {_with_prefix(loads['short'], unit)} ({_with_prefix(loads['sustained'], unit)} sustained)"
        for name, loads in stated.items()
        for unit in ["B/s" if name == "copy" else "FLOP/s"]
        if isinstance(loads, Mapping) and _is_rate(loads.get("short")) and _is_rate(loads.get("sustained"))
    )


def short(environment: Mapping[str, Any], name: str) -> float:
    """The ceiling of this name under a short load; NaN where none is stated."""
    stated = environment.get("ceilings")
    loads = stated.get(name) if isinstance(stated, Mapping) else None
    value: Any = loads.get("short") if isinstance(loads, Mapping) else None
    return float(value) if _is_rate(value) else np.nan


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _with_prefix(value: float, unit: str) -> str:
    size, prefix = next(((size, prefix) for size, prefix in PREFIXES if value >= size), PREFIXES[-1])
    return f"{value / size:.3g} {prefix}{unit}"
