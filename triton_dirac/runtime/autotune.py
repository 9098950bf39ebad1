"""Which config a kernel runs with, and which backend a convolution takes.

``pick`` chooses a config in four steps: the one forced by argument; the fastest of the persisted timings; the
fastest of timings taken now on a GPU (``compile_ahead``, then ``measure``); else the kernel's default. ``choose`` does
the same for named candidates (ours, cuDNN with the Triton weight prep). Nothing is measured in the interpreter,
without a GPU, while a CUDA graph is captured, with ``tune=False`` or with TRITON_DIRAC_AUTOTUNE=0 in the environment;
under ``torch.use_deterministic_algorithms`` the default is taken, because a pick by timing may differ from one process
to the next.

Timings, not picks, are kept: one file per GPU and Triton version (``timings.py``) holds the time of each config of
each problem, so that a config added later is measured alone. Both functions remember their answer in a
dictionary of this process, and that is all they do from the second call on; ``forget`` empties it.

What is measured is recorded nowhere and holds nothing: the most memory that tuning takes at a time is the output and
the workspace of one candidate, beside the problem's own tensors and the buffer that clears the L2.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Protocol, TypeVar

import torch
import triton

from triton_dirac.runtime import compiled_cache, timings
from triton_dirac.runtime.compile_ahead import Planner, compile_ahead
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.measure import measure
from triton_dirac.runtime.targets import Target, target_of

AUTOTUNE = "TRITON_DIRAC_AUTOTUNE"
Run = Callable[[], object]
Measure = Callable[[Mapping[str, Run], str], dict[str, float]]


class Labelled(Hashable, Protocol):
    """A problem or a config: what it is called in the file of timings."""

    @property
    def label(self) -> str: ...


Problem = TypeVar("Problem", bound=Labelled)
Config = TypeVar("Config", bound=Labelled)

_picked: dict[Hashable, object] = {}
_forgotten = 0


def forget() -> None:
    """Forget what this process picked; the files stay."""
    global _forgotten
    _picked.clear()
    _forgotten += 1


def times_forgotten() -> int:
    """How often ``forget`` was called: whoever remembers a pick beside this module must pick again."""
    return _forgotten


def _tuning_on(tune: bool) -> bool:
    return tune and os.environ.get(AUTOTUNE, "1") != "0"


def _can_measure(device: torch.device) -> bool:
    return device.type == "cuda" and not triton.knobs.runtime.interpret and not torch.cuda.is_current_stream_capturing()


def pick(
    kernel: str,
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device,
    precision: str = "ieee",
    *,
    promising: Callable[[Problem, torch.dtype, Target], Sequence[Config]],
    default: Callable[[Problem, torch.dtype, Target], Config],
    plan: Callable[[Config], Sequence[Launch]],
    config: Config | None = None,
    tune: bool = True,
    measure: Measure | None = None,
) -> Config:
    """The config for one kernel and problem.

    ``promising`` and ``default`` are the kernel's config table's; ``plan(config)`` makes the launches that fill an
    output of their own. ``measure`` replaces ``measure.measure``: (runs by name, what they are) -> milliseconds by
    name.
    """
    if config is not None:
        return config
    deterministic = torch.are_deterministic_algorithms_enabled()
    key = (kernel, problem, dtype, device, precision, tune, deterministic)
    if (known := _picked.get(key)) is not None:
        return known  # type: ignore[return-value]
    target = target_of(device)
    fallback = default(problem, dtype, target)
    if deterministic:
        picked, settled = fallback, True
    else:
        configs = {c.label: c for c in (*promising(problem, dtype, target), fallback)}
        planners = {label: partial(plan, config) for label, config in configs.items()}
        runs = {label: partial(_run, planner) for label, planner in planners.items()}
        entry = entry_of(kernel, problem, dtype, precision)
        label, settled = _fastest(entry, runs, planners, fallback.label, device, tune, measure)
        picked = configs[label]
    if settled:
        _picked[key] = picked
    return picked


def entry_of(kernel: str, problem: Labelled, dtype: torch.dtype, precision: str) -> str:
    """The name under which the timings of a kernel's configs are kept."""
    return f"{kernel} {problem.label} {dtype} {precision}"


def _run(planner: Planner) -> None:
    for launch in planner():
        launch.run()


def choose(
    name: str,
    problem: Labelled,
    dtype: torch.dtype,
    device: torch.device,
    precision: str = "ieee",
    *,
    candidates: Callable[[], Mapping[str, Run]],
    default: str,
    tune: bool = True,
    measure: Measure | None = None,
    bench: Callable[[Run], float] | None = None,
) -> str:
    """The name of the fastest candidate, e.g. "triton" or "cudnn", for one problem.

    ``candidates()`` gives what to run by name, and is called only where the answer is not known yet. Timings of
    other torch or cuDNN versions are not used. ``default`` is the answer where nothing can be measured. Where cuDNN
    searches (``torch.backends.cudnn.benchmark``), it searches all its plans while it is measured, as we do: torch's
    limit is 10. ``bench(call) -> milliseconds`` measures each candidate by itself.
    """
    if bench is not None:
        measure = lambda runs, _: {name: bench(run) for name, run in runs.items()}  # noqa: E731
    deterministic = torch.are_deterministic_algorithms_enabled()
    key = (name, problem, dtype, device, precision, tune, deterministic)
    if (known := _picked.get(key)) is not None:
        return known  # type: ignore[return-value]
    if deterministic:
        picked, settled = default, True
    else:
        versions = f"torch {torch.__version__} cudnn {torch.backends.cudnn.version()}"
        entry = f"{entry_of(name, problem, dtype, precision)} {versions}"
        with all_cudnn_plans():
            picked, settled = _fastest(entry, candidates(), {}, default, device, tune, measure)
    if settled:
        _picked[key] = picked
    return picked


@contextmanager
def all_cudnn_plans() -> Iterator[None]:
    """cuDNN's search, where it is on, tries every plan instead of ``torch.backends.cudnn.benchmark_limit``."""
    limit = torch.backends.cudnn.benchmark_limit
    torch.backends.cudnn.benchmark_limit = 0
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark_limit = limit


def _fastest(
    entry: str,
    runs: Mapping[str, Run],
    planners: Mapping[str, Planner],
    default: str,
    device: torch.device,
    tune: bool,
    measure: Measure | None,
) -> tuple[str, bool]:
    """(name of the fastest run, whether that is final for this process).

    All known: the fastest. Some unknown: they are measured where that is allowed. Otherwise the fastest known
    one, and the default where none is. A run that failed for good has an infinite time and is not tried again.
    """
    if len(runs) == 1:
        return next(iter(runs)), True
    measuring = _tuning_on(tune) and (measure is not None or _can_measure(device))
    if not measuring and (device.type != "cuda" or triton.knobs.runtime.interpret):
        return default, True
    compiled_cache.relocate_if_moved()
    store = timings.open_store(device)
    known = {name: time for name, time in store.read(entry).items() if name in runs}
    unknown = [name for name in runs if name not in known]
    if measuring and unknown:
        # A time is fairest beside the one that it has to beat.
        rival = sorted(known, key=known.__getitem__)[:1]
        asked = (*unknown, *rival)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            measured = (measure or partial(_measure, device=device, planners=planners))(
                {n: runs[n] for n in asked}, entry
            )
        known |= measured
        if measured:
            store.write(entry, measured)
    finite = {name: time for name, time in known.items() if math.isfinite(time)}
    best = min(finite, key=finite.__getitem__) if finite else default
    # A capture ends, so the next call may measure; an argument or the environment holds for the process.
    return best, measuring or not _tuning_on(tune)


def _measure(
    runs: Mapping[str, Run], entry: str, *, device: torch.device, planners: Mapping[str, Planner]
) -> dict[str, float]:
    """``measure``, everything being compiled before; what does not compile is not run."""
    outcome = compile_ahead({name: planner for name, planner in planners.items() if name in runs}, target_of(device))
    for name, why in (outcome.refused | outcome.lost).items():
        how = "for good" if name in outcome.refused else "this time"
        warnings.warn(f"{entry}: {name} is left out {how}: {why}", stacklevel=2)
    able = {name: run for name, run in runs.items() if name not in outcome.refused and name not in outcome.lost}
    return dict.fromkeys(outcome.refused, math.inf) | measure(able, entry)
