"""The report's other tables: accuracy, compiled kernels, what was not run, where everything ran."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports import ceilings, verdict
from reports.load import Results

# A clock that falls by more than this from the first to the last measurement makes times hard to compare.
CLOCK_DRIFT = 0.05
ENVIRONMENT = {
    "gpu": "GPU", "driver": "Driver", "cuda": "CUDA", "cudnn": "cuDNN", "cpu": "CPU", "cores": "Cores",
    "threads": "Threads", "torch": "PyTorch", "triton": "Triton", "python": "Python", "platform": "Platform",
    "commit": "Commit", "command": "Command", "date": "Date",
}  # fmt: skip
ACCURACY = [
    "run", "suite", "contender", "dtype", "executed_by", "checks", "failed", "worst_over_torch", "worst_at",
    "worst_relative", "largest_problem",
]  # fmt: skip
COMPILED = [
    "run", "kernel", "target", "gpu", "kernels", "compile", "spill", "registers", "shared_kib", "mma",
    "instructions_per_mma", "compile_seconds",
]  # fmt: skip
KINDS = ["contender", "suite", "pass", "net", "dtype"]
NUMBERS = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
SHOWN_ELSEWHERE = {"dirty", "clocks_before", "clocks_after", "ceilings", "warnings"}


def accuracy(results: Results) -> pd.DataFrame:
    """Per suite, contender, type and executor: checks, failures, and the worst error beside torch's own.

    ``worst_over_torch`` is the largest max|x - float64| / max|torch - float64|; the rule allows 2, plus a
    small absolute term. ``worst_relative`` is the largest max|x - float64| / max|float64|. Both are NaN where
    a result was not finite.
    """
    frame = with_error_ratios(results)
    rows = []
    for key, part in frame.groupby(["run", "suite", "contender", "dtype", "executed_by"], sort=False):
        worst = part.loc[part["over_torch"].fillna(np.inf).idxmax()]
        rows.append(
            dict(zip(["run", "suite", "contender", "dtype", "executed_by"], key, strict=True))
            | {
                "checks": len(part),
                "failed": int((~part["passed"]).sum()),
                "worst_over_torch": worst["over_torch"],
                "worst_at": " · ".join(filter(None, (worst["pass"], worst["layer"], worst["tensor"]))),
                "worst_relative": part["relative"].max(skipna=False),
                "largest_problem": describe_problem(max(part["problem"], key=_size)),
            }
        )
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    rows.sort(key=lambda row: (row["run"], suites.index(row["suite"])))
    return pd.DataFrame(rows, columns=ACCURACY)


def by_dtype(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Of ``accuracy``'s summary our kernels' checks by type: whether a type is safe to compute in.

    The worst are NaN where a result was not finite.
    """
    ours = summary[np.array([verdict.is_ours(name) for name in summary["contender"]], dtype=bool)]
    return [
        {
            "dtype": dtype,
            "checks": int(part["checks"].sum()),
            "failed": int(part["failed"].sum()),
            "worst_over_torch": part["worst_over_torch"].max(skipna=False),
            "worst_relative": part["worst_relative"].max(skipna=False),
            "executed_by": ", ".join(dict.fromkeys(name for name in part["executed_by"] if name)),
        }
        for dtype, part in ours.groupby("dtype", sort=False)
    ]


def with_error_ratios(results: Results) -> pd.DataFrame:
    """The accuracy frame with ``over_torch`` (error / torch's error; 0 / 0 is 0) and ``relative``."""
    frame = results.accuracy
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(frame["error"] == 0, 0.0, frame["error"] / frame["torch_error"])
        relative = np.where(frame["error"] == 0, 0.0, frame["error"] / frame["scale"])
    return frame.assign(
        over_torch=ratio,
        relative=relative,
    )


def precision(results: Results) -> pd.DataFrame:
    """Per net, layer, tensor and beta: both forms' errors as a part of what the filters add, and their ratio.

    ``times_closer`` is materialised / split.
    """
    frame = results.accuracy.dropna(subset=["beta", "filters_scale"])
    frame = frame.assign(part=frame["error"] / frame["filters_scale"])
    rows = []
    by = ["run", "net", "layer", "dtype", "tensor", "beta"]
    for key, of in frame.groupby(by, sort=False):
        parts = dict(zip(of["contender"], of["part"], strict=True))
        found = {form: parts.get(form, np.nan) for form in ("materialised", "split")}
        closer = found["materialised"] / found["split"] if found["split"] else np.nan
        rows.append(dict(zip(by, key, strict=True)) | found | {"times_closer": closer})
    return pd.DataFrame(rows, columns=[*by, "materialised", "split", "times_closer"])


def counted(results: Results) -> pd.DataFrame:
    """Launches and bytes of whole calls; ``over_least`` is bytes / least_bytes."""
    frame = results.counted
    return frame.assign(over_least=frame["bytes"] / frame["least_bytes"].replace(0, np.nan))


def moved(results: Results) -> pd.DataFrame:
    """Per kernel, target and type: bytes moved over the least, over all layers and nets.

    ``width`` is the narrowest access to a tile, in bytes a thread; ``launches`` those of each net.
    """
    rows = []
    by = ["run", "kernel", "target", "gpu", "dtype"]
    for key, part in results.moved.groupby(by, sort=False):
        good = part[part["ok"]]
        nets = good.groupby("net", sort=False)["launches"].sum()
        rows.append(
            dict(zip(by, key, strict=True))
            | {
                "kernels": len(part),
                "compile": len(good),
                "over_least": good["moved_over_least"].min(),
                "worst_over_least": good["moved_over_least"].max(),
                "width": good[["load_width", "store_width"]].min(axis=None) if len(good) else np.nan,
                "spill": int((good["spills"] > 0).sum()),
                "launches": ", ".join(f"{net} {count:.0f}" for net, count in nets.items()),
            }
        )
    return pd.DataFrame(
        rows,
        columns=[*by, "kernels", "compile", "over_least", "worst_over_least", "width", "spill", "launches"],
    )


def compiled(results: Results) -> pd.DataFrame:
    """Per kernel and target: how many compile, how many spill, and the ranges of what they use."""
    rows = []
    for (run, kernel, target), part in results.compiled.groupby(["run", "kernel", "target"], sort=False):
        good = part[part["ok"]]
        rows.append(
            {
                "run": run,
                "kernel": kernel,
                "target": target,
                "gpu": next((gpu for gpu in part["gpu"] if gpu), ""),
                "kernels": len(part),
                "compile": len(good),
                "spill": int((good["spills"] > 0).sum()),
                "registers": extent(good["registers"]),
                "shared_kib": extent(good["shared_bytes"] / 1024),
                "mma": ", ".join(dict.fromkeys(name for name in good["mma"] if name)),
                "instructions_per_mma": extent(good["loop_instructions_per_mma"]),
                "compile_seconds": good["compile_seconds"].median(),
            }
        )
    return pd.DataFrame(rows, columns=COMPILED)


def broken(results: Results) -> pd.DataFrame:
    """Kernels that do not compile or spill, alike ones in one row: why, on which targets, for which layers."""
    rows = []
    frame = results.compiled[~results.compiled["ok"] | (results.compiled["spills"] > 0)]
    why = [
        (error or "no reason stated") if not ok else "spills"
        for ok, error in zip(frame["ok"], frame["error"], strict=True)
    ]
    frame = frame.assign(why=why, kind=[re.sub(NUMBERS, "#", reason) for reason in why])
    for (run, kernel, _), part in frame.groupby(["run", "kernel", "kind"], sort=False):
        spills = extent(part["spills"])
        reason = f"spills {spills}" if part["why"].iloc[0] == "spills" else part["why"].iloc[0]
        kinds = {name: _listed(part[name]) for name in ("target", "layer", "dtype", "config")}
        rows.append({"run": run, "kernel": kernel, "kernels": len(part), "reason": reason} | kinds)
    return pd.DataFrame(rows, columns=["run", "kernel", "kernels", "reason", "target", "layer", "dtype", "config"])


def not_run(results: Results) -> pd.DataFrame:
    """One row for each reason: how many were left out, and which kinds of them.

    Reasons that differ only in their numbers are one reason; the first of them is shown.
    """
    rows = []
    frame = results.not_run.assign(kind=[re.sub(NUMBERS, "#", reason) for reason in results.not_run["reason"]])
    for (run, _), part in frame.groupby(["run", "kind"], sort=False):
        kinds = {name: _listed(part[name]) for name in KINDS}
        others = part["reason"].nunique() - 1
        rows.append(
            {"run": run, "reason": part["reason"].iloc[0], "left_out": len(part), "other_numbers": others} | kinds
        )
    rows.sort(key=lambda row: -row["left_out"])
    return pd.DataFrame(rows, columns=["run", "reason", "left_out", "other_numbers", *KINDS])


def environments(results: Results) -> list[dict[str, Any]]:
    """For each file: its name, what ran there (pairs in a fixed order) and what to be wary of."""
    found = []
    for index, run in enumerate(results.runs):
        stated = run["environment"]
        known = [
            (title, _plain(stated[key])) for key, title in ENVIRONMENT.items() if stated.get(key) not in (None, "")
        ]
        if run["kind"] == "results" and "gpu" in stated and not stated["gpu"]:
            known.insert(0, ("GPU", "none"))
        known += _batches(results, index)
        clocks = _clocks(stated)
        known += [(f"{_titled(name)}, before → after", f"{before:g} → {after:g}") for name, before, after in clocks]
        if measured := ceilings.described(stated):
            known.append(("Measured ceilings", measured))
        more = {key: value for key, value in stated.items() if key not in ENVIRONMENT.keys() | SHOWN_ELSEWHERE}
        known += [(_titled(key), _plain(value)) for key, value in more.items() if value is not None]
        found.append({"file": run["file"], "kind": run["kind"], "known": known, "wary": _wary(run, clocks)})
    return found


def describe_problem(problem: Any) -> str:
    """A problem in one short line: N x C x H x W -> K, R x S."""
    if not isinstance(problem, Mapping) or not problem:
        return ""
    if not {"N", "C", "H", "W", "K"} <= problem.keys():
        return ", ".join(f"{key}={_plain(value)}" for key, value in problem.items())
    text = f"{problem['N']}×{problem['C']}×{problem['H']}×{problem['W']} → {problem['K']}"
    return f"{text}, {problem['R']}×{problem['S']}" if {"R", "S"} <= problem.keys() else text


def extent(values: pd.Series) -> str:
    """Smallest to largest of the stated values, one number when they agree, "" when none is stated."""
    stated = values.dropna()
    if not len(stated):
        return ""
    low, high = (f"{value:.3g}" for value in (stated.min(), stated.max()))
    return low if low == high else f"{low}–{high}"


def _wary(run: Mapping[str, Any], clocks: list[tuple[str, float, float]]) -> list[str]:
    wary, stated = [], run["environment"]
    if run["missing"]:
        wary.append(f"The run was stopped before its end: {run['missing']} kernels are missing.")
    if not stated.get("commit"):
        wary.append("The commit is not stated.")
    if stated.get("dirty") is True:
        wary.append("The checkout had uncommitted changes: the commit alone does not reproduce this run.")
    warnings = stated.get("warnings")
    wary += [str(warning) for warning in warnings] if isinstance(warnings, list) else []
    for name, before, after in clocks:
        # A rise is the idle GPU waking up; a fall is heat or a power limit.
        if name.endswith("mhz") and before and after < before * (1 - CLOCK_DRIFT):
            wary.append(f"{_titled(name)} fell by {1 - after / before:.0%} during the run.")
    return wary


def _clocks(stated: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    before, after = stated.get("clocks_before"), stated.get("clocks_after")
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return []
    pairs = [(str(key), before[key], after[key]) for key in before if key in after]
    return [
        (key, float(a), float(b))
        for key, a, b in pairs
        if _is_number(a) and _is_number(b) and np.isfinite([a, b]).all()
    ]


def _batches(results: Results, run: int) -> list[tuple[str, str]]:
    """The batch that each net was timed with, and the published one when it is another."""
    frame = results.benchmarks[results.benchmarks["run"] == run]
    batches: dict[str, set[int]] = {}
    published: dict[str, set[int]] = {}
    for net, problem, stated in zip(frame["net"], frame["problem"], frame["published_batch"], strict=True):
        if isinstance(problem, Mapping) and _is_number(problem.get("N")):
            batches.setdefault(net or "unnamed net", set()).add(int(problem["N"]))
            published.setdefault(net or "unnamed net", set()).update([] if np.isnan(stated) else [int(stated)])
    said = []
    for net, timed in batches.items():
        other = ", ".join(str(batch) for batch in sorted(published[net] - timed))
        said.append(f"{net}: {', '.join(map(str, sorted(timed)))}" + (f" (published: {other})" if other else ""))
    return [("Batch as timed", "; ".join(said))] if said else []


def _listed(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value))


def _size(problem: Any) -> float:
    if not isinstance(problem, Mapping):
        return -1.0
    return float(np.prod([problem[key] for key in ("N", "C", "H", "W", "K") if _is_number(problem.get(key))] or [0]))


def _titled(name: str) -> str:
    """sm_mhz -> SM MHz, calls_per_sample -> Calls per sample."""
    words = [{"sm": "SM", "mhz": "MHz", "c": "°C", "w": "W"}.get(word, word) for word in name.split("_")]
    return words[0][:1].upper() + " ".join(words)[1:]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
