"""Kernels compiled on all cores before the first of them is launched: the launches then find them in Triton's cache.

A process compiles a kernel in 0.3 to 1.3 s (median 0.34 s of 911, 16 at a time), and a problem has at most 24 configs.
One 16-bit layer with three passes has 72 kernels at most, 5 a core of 16: 5 * 0.4 = 2 s, after 2 to 4 s in which the
processes start. Where all are compiled already no process is started, and looking them up costs 1 to 3 ms each.

A compiler that refuses, crashes or hangs costs the one config that it was compiling.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import triton

from triton_dirac.runtime import compiled_cache
from triton_dirac.runtime.compile_worker import request
from triton_dirac.runtime.launch import INTERPRETED, Launch
from triton_dirac.runtime.specialise import specialise
from triton_dirac.runtime.targets import Target
from triton_dirac.runtime.workers import LOST, UNSTARTED, Pool

TIMEOUT = 120.0  # seconds for one kernel, of a compiler that takes one
IDLE = 30.0  # seconds after which processes that nobody asks end
jobs: int | None = None  # how many compile at once; one for each core by default
Planner = Callable[[], Sequence[Launch]]  # makes launches and runs none
Name = TypeVar("Name")


@dataclass(frozen=True)
class Outcome(Generic[Name]):
    """Why some could not be compiled: for good, or this time (killed, no answer); how many were compiled anew."""

    refused: dict[Name, str]
    lost: dict[Name, str]
    compiled: int


def compile_ahead(
    planners: Mapping[Name, Planner],
    target: Target,
    *,
    timeout: float = TIMEOUT,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Outcome[Name]:
    """Compile all launches that Triton's cache lacks, each kernel once, on all cores.

    ``planners`` by what they are for are called one after the other: no two of them hold tensors at a time. One that
    fails has nothing compiled. ``progress(done, total)`` is called before the first kernel and after each.
    Where no process can be started nothing is compiled and nobody blamed: the launches themselves will compile.
    """
    outcome: Outcome[Name] = Outcome({}, {}, 0)
    if INTERPRETED:
        return outcome
    requests: dict[str, dict[str, Any]] = {}
    wanted_by: dict[str, list[Name]] = {}
    known: set[str] = set()
    for name, planner in planners.items():
        for key, asked in _lacking(planner, target, known):
            requests.setdefault(key, asked)
            wanted_by.setdefault(key, []).append(name)
    if not requests:
        return outcome
    progress(0, len(requests))
    count = iter(range(1, len(requests) + 1))
    answers = _ask(list(requests.values()), timeout, lambda *_: progress(next(count), len(requests)))
    for key, answer in zip(requests, answers, strict=True):
        if not answer["ok"] and answer.get("ended") != UNSTARTED:
            blamed = outcome.lost if answer.get("ended") == LOST else outcome.refused
            blamed.update(dict.fromkeys(wanted_by[key], answer["error"]))
    compiled_cache.mark()
    return replace(outcome, compiled=sum(answer["ok"] for answer in answers))


def _lacking(planner: Planner, target: Target, known: set[str]) -> list[tuple[str, dict[str, Any]]]:
    """(key, request) of a planner's kernels that are not compiled; those that are become ``known``."""
    try:
        launches = planner()
    except Exception:  # which its run will raise, where errors are told apart
        return []
    found = []
    for launch in launches:
        specialised = specialise(launch, target)
        if specialised.key in known:
            continue
        if specialised.compiled() is not None:
            known.add(specialised.key)
        else:
            found.append((specialised.key, request(launch, target)))
    return found


def cores() -> int:
    """Of this process, or ``jobs``; of the processes that torchrun starts on a machine each has its share."""
    if jobs is not None:
        return jobs
    share = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, len(os.sched_getaffinity(0)) // max(1, int(share) if share.isdecimal() else 1))


_lock = threading.Lock()
_pool: Pool | None = None
_made_for: tuple[str, float] | None = None
_closing: threading.Timer | None = None


def _ask(
    requests: list[dict[str, Any]], timeout: float, done: Callable[[int, dict[str, Any]], object]
) -> list[dict[str, Any]]:
    """By processes that stay a while: a net's next layer follows at once, and starting takes seconds."""
    global _pool, _made_for, _closing
    with _lock:
        if _closing is not None:
            _closing.cancel()
        wanted = (triton.knobs.cache.dir, timeout)
        if _pool is not None and _made_for != wanted:
            _pool.close()
            _pool = None
        if _pool is None:
            _made_for = wanted
            # Of 24 configs 23 will never run again: without their intermediate code a cache is a quarter of the size.
            own = {"TRITON_CACHE_DIR": triton.knobs.cache.dir, "TRITON_STORE_BINARY_ONLY": "1"}
            _pool = Pool("triton_dirac.runtime.compile_worker", cores(), timeout, own)
        try:
            return _pool.ask_all(requests, done)
        finally:
            _closing = threading.Timer(IDLE, close)
            _closing.daemon = True
            _closing.start()


@atexit.register
def close() -> None:
    """End the compiling processes."""
    global _pool
    with _lock:
        pool, _pool = _pool, None
    if pool is not None:
        pool.close()
