"""All that a model needs, compiled in one go and then measured: else each layer's first call does it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from triton_dirac.conv import op
from triton_dirac.runtime import autotune, timings
from triton_dirac.runtime.compile_ahead import Outcome, Planner, compile_ahead
from triton_dirac.runtime.plan import Plan
from triton_dirac.runtime.targets import Target, target_of
from triton_dirac.tuning.work import Work, planners_of

Progress = Callable[[int, int], object]
AT_ONCE = 24  # works compiled before they are measured: some 200 kernels, which keep 16 cores busy for ten seconds


def _silent(done: int, total: int) -> None: ...


def compile_works(
    works: Iterable[Work],
    target: Target,
    others: Mapping[str, Planner] | None = None,
    *,
    progress: Progress = _silent,
) -> Outcome[str]:
    """Compile every config of every work, and ``others``, into Triton's cache; needs no GPU."""
    return compile_ahead(_labelled(works, target) | dict(others or {}), target, progress=progress)


def _labelled(works: Iterable[Work], target: Target) -> dict[str, Planner]:
    return {
        f"{work.label}: {config}": planner for work in works for config, planner in planners_of(work, target).items()
    }


def tune(
    works: Sequence[Work],
    device: torch.device,
    others: Mapping[str, Planner] | None = None,
    *,
    compiling: Progress = _silent,
    measuring: Progress = _silent,
) -> Outcome[str]:
    """Compile what has yet to be measured, then measure each work, cuDNN beside our configs; the timings are kept.

    A few works at a time, so that a tuning that is ended has measured what it had compiled but for those. Works on
    normal numbers in memory of its own: the tensors of one work at a time. A work whose tensors the GPU's memory does
    not hold is left out, with a warning.
    """
    target = target_of(device)
    portions = [works[start : start + AT_ONCE] for start in range(0, len(works), AT_ONCE)]
    planners = [_labelled([work for work in portion if unmeasured(work, device)], target) for portion in portions]
    total, begun, measured = len(others or {}) + sum(map(len, planners)), 0, 0
    refused, lost, compiled = dict[str, str](), dict[str, str](), 0
    for portion, wanted in zip([[], *portions], [dict(others or {}), *planners], strict=True):
        found = compile_ahead(wanted, target, progress=_part(compiling, begun, len(wanted), total))
        refused, lost, compiled = refused | found.refused, lost | found.lost, compiled + found.compiled
        begun += len(wanted)
        for work in portion:
            measuring(measured, len(works))
            try:
                run(work, device)
            except torch.OutOfMemoryError as error:
                warnings.warn(f"{work.label} is not measured: {str(error).splitlines()[0]}", stacklevel=2)
            measured += 1
    measuring(measured, len(works))
    return Outcome(refused, lost, compiled)


def _part(progress: Progress, begun: int, part: int, total: int) -> Progress:
    """The progress of ``part`` of ``total`` kernels, of which some need not be compiled."""
    return lambda done, missing: progress(begun + part * done // missing if missing else begun + part, total)


def unmeasured(work: Work, device: torch.device) -> bool:
    """Whether a config of the work has no timing yet."""
    target = target_of(device)
    known = timings.open_store(device).read(entry_of(work, target))
    return any(config not in known for config in planners_of(work, target))


def entry_of(work: Work, target: Target) -> str:
    """Its place in the file of timings."""
    return autotune.entry_of(f"conv_{work.direction}", work.problem, work.storage, work.precision(target))


def run(work: Work, device: torch.device) -> None:
    """One call of the work with backend "auto", which measures it and cuDNN where no timings are kept."""
    x, w, dy, alpha = work.tensors(device)
    p, precision = work.problem, work.precision(target_of(device))
    rest = (p.stride, p.padding, p.dilation, p.groups)
    with torch.no_grad():
        if work.direction == "fprop":
            op.plan_conv(Plan(), x, w, None, alpha, *rest, None, precision, True)
        elif work.direction == "dgrad":
            op.plan_dgrad(Plan(), dy, w, alpha, x.shape, *rest, precision, True)
        else:
            op.plan_wgrad(Plan(), dy, x, w.shape, x.dtype, *rest, precision, True)
