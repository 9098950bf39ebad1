"""Jobs -> rows: plan all, compile each distinct kernel once, give every layer the row of its kernel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from triton_dirac.conv.config import Config
from triton_dirac.runtime.targets import TARGETS

from .jobs import Job
from .pool import Pool

# A kill loses the rows of so many seconds; a long table is written less often, for a twentieth of the time.
SECONDS_BETWEEN, SHARE = 0.25, 20
# What a row has even where nothing was compiled.
NOTHING: dict[str, Any] = dict.fromkeys(
    [
        *("config", "registers", "spills", "shared_bytes", "mma", "mma_count", "loops_with_mma"),
        *("loop_instructions_per_mma", "loop_instructions_per_fma", "loads", "stores", "tma"),
        "compile_seconds",
    ]
)


Keep = Callable[[list[dict[str, Any]], int], object]


def rows_of(
    jobs: list[Job], *, workers: int, timeout: float, counted: bool = True, keep: Keep | None = None
) -> list[dict[str, Any]]:
    """One row for each launch of each job, or for a job that could not be planned; in the jobs' order.

    ``timeout`` is in seconds for one kernel. Launches that Triton would compile to the same binary are
    compiled once; their rows share ``key``. Unless ``counted``, only registers, spills and shared memory are read.
    ``keep(rows, planned)`` gets the rows known so far and the number that all will be, every few seconds and when
    this is stopped by an exception.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Pool(workers, timeout) as pool, Progress(*columns) as progress:
        planned = _ask(pool, progress, "planning", [{"job": job.to_json()} for job in jobs])
        distinct: dict[tuple[str, str], dict[str, Any]] = {}
        for job, plan in zip(jobs, planned, strict=True):
            for number, launch in enumerate(plan.get("launches", ())):
                request = {"job": job.to_json(), "launch": number, "counted": counted}
                distinct.setdefault((job.target, launch["key"]), request)
        total = sum(len(plan["launches"]) if plan["ok"] else 1 for plan in planned)
        measured: dict[tuple[str, str], dict[str, Any]] = {}
        keeper = Keeper(lambda: keep(_rows(jobs, planned, measured), total) if keep else None)
        places = list(distinct)

        def answered(number: int, answer: dict[str, Any]) -> None:
            measured[places[number]] = answer
            keeper.now_and_then()

        try:
            _ask(pool, progress, "compiling", list(distinct.values()), answered)
        except BaseException:
            keeper.now()
            raise
    return _rows(jobs, planned, measured)


class Keeper:
    """Calls ``keep`` for threads that finish work: one at a time, and for a small part of the time."""

    def __init__(self, keep: Callable[[], object]) -> None:
        self._keep, self._lock, self._next = keep, Lock(), time.monotonic() + SECONDS_BETWEEN

    def now_and_then(self) -> None:
        """A failure is left to the end: the disk that is full now may not be then."""
        if time.monotonic() > self._next and self._lock.acquire(blocking=False):
            try:
                start = time.monotonic()
                with contextlib.suppress(OSError):
                    self._keep()
                self._next = time.monotonic() + max(SECONDS_BETWEEN, SHARE * (time.monotonic() - start))
            finally:
                self._lock.release()

    def now(self) -> None:
        with self._lock:
            self._keep()


def _rows(
    jobs: list[Job], planned: list[dict[str, Any]], measured: Mapping[tuple[str, str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of what is measured, and of what could not be planned."""
    rows = []
    for job, plan in zip(jobs, planned, strict=True):
        if not plan["ok"]:
            rows.append(_row(job, job.kernel, plan))
        for launch in plan.get("launches", ()):
            answer = measured.get((job.target, launch["key"]))
            if answer is not None:
                name = _part_name(job.kernel, launch["entry"], plan["launches"][0]["entry"])
                rows.append(_row(job, name, {"config": plan["config"], **launch, **answer}))
    return rows


def _ask(
    pool: Pool,
    progress: Progress,
    what: str,
    requests: list[dict[str, Any]],
    answered: Callable[[int, dict[str, Any]], object] = lambda number, answer: None,
) -> list[dict[str, Any]]:
    task = progress.add_task(what, total=len(requests))

    def done(number: int, answer: dict[str, Any]) -> None:
        answered(number, answer)
        progress.advance(task)

    return pool.ask_all(requests, done)


def _row(job: Job, kernel: str, found: dict[str, Any]) -> dict[str, Any]:
    data = job.to_json()
    of_job = {name: data[name] for name in ("net", "layer", "dtype", "target", "count", "problem")}
    if "config" in job.arguments:
        config = Config(**job.arguments["config"])
        of_job |= {"config": config.name, "reason": config.reason}
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
