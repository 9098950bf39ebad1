"""Jobs -> rows: plan all, compile each distinct kernel once, give every layer the row of its kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from triton_dirac.conv.config import Config
from triton_dirac.runtime.targets import TARGETS

from .jobs import Job
from .pool import Pool

# What a row has even where nothing was compiled.
NOTHING: dict[str, Any] = dict.fromkeys(
    [
        *("config", "registers", "spills", "shared_bytes", "mma", "mma_count", "loops_with_mma"),
        *("loop_instructions_per_mma", "loop_instructions_per_fma", "loads", "stores", "tma"),
        "compile_seconds",
    ]
)


def rows_of(jobs: list[Job], *, workers: int, timeout: float, counted: bool = True) -> list[dict[str, Any]]:
    """One row for each launch of each job, or for a job that could not be planned; in the jobs' order.

    ``timeout`` is in seconds for one kernel. Launches that Triton would compile to the same binary are
    compiled once; their rows share ``key``. Unless ``counted``, only registers, spills and shared memory are read.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Pool(workers, timeout) as pool, Progress(*columns) as progress:
        planned = _ask(pool, progress, "planning", [{"job": job.to_json()} for job in jobs])
        distinct: dict[tuple[str, str], dict[str, Any]] = {}
        for job, plan in zip(jobs, planned, strict=True):
            for number, launch in enumerate(plan.get("launches", ())):
                request = {"job": job.to_json(), "launch": number, "counted": counted}
                distinct.setdefault((job.target, launch["key"]), request)
        answers = _ask(pool, progress, "compiling", list(distinct.values()))
    measured = dict(zip(distinct, answers, strict=True))
    rows = []
    for job, plan in zip(jobs, planned, strict=True):
        if not plan["ok"]:
            rows.append(_row(job, job.kernel, plan))
        for launch in plan.get("launches", ()):
            name = _part_name(job.kernel, launch["entry"], plan["launches"][0]["entry"])
            known = {"config": plan["config"], **launch}
            rows.append(_row(job, name, known | measured[job.target, launch["key"]]))
    return rows


def _ask(pool: Pool, progress: Progress, what: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    task = progress.add_task(what, total=len(requests))
    return pool.ask_all(requests, lambda: progress.advance(task))


def _row(job: Job, kernel: str, found: dict[str, Any]) -> dict[str, Any]:
    data = job.to_json()
    of_job = {name: data[name] for name in ("net", "layer", "dtype", "target", "count", "problem")}
    if "config" in job.arguments:
        of_job["config"] = Config(**job.arguments["config"]).name
    return {
        **NOTHING,
        "kernel": kernel,
        "gpu": TARGETS[job.target].gpu,
        "label": "counted",
        **of_job,
        **found,
    }


def _part_name(kernel: str, entry: str, first: str) -> str:
    """A job's further kernels are named after their function: ``conv_wgrad: reduce``."""
    return kernel if entry == first else f"{kernel}: {entry.strip('_').removesuffix('_kernel')}"


def distinct_rows(rows: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The first row of each compiled kernel or error, and how many rows are the same."""
    seen: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        same = (row["kernel"], row["dtype"], row["target"], row.get("key", row["error"]))
        seen.setdefault(same, []).append(row)
    return [(group[0], len(group)) for group in seen.values()]
