"""All that a model needs, compiled in one go and then measured: else each layer's first call does it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from triton_dirac.conv import op
from triton_dirac.runtime import autotune, timings
from triton_dirac.runtime import plan as call
from triton_dirac.runtime.compile_ahead import Outcome, Plan, compile_ahead
from triton_dirac.runtime.targets import Target, target_of
from triton_dirac.tuning.work import Work, plans_of

Progress = Callable[[int, int], object]


def _silent(done: int, total: int) -> None: ...


def compile_works(
    works: Iterable[Work],
    target: Target,
    others: Mapping[str, Plan] | None = None,
    *,
    progress: Progress = _silent,
) -> Outcome[str]:
    """Compile every config of every work, and ``others``, into Triton's cache; needs no GPU."""
    plans = {f"{work.label}: {config}": plan for work in works for config, plan in plans_of(work, target).items()}
    return compile_ahead(plans | dict(others or {}), target, progress=progress)


def tune(
    works: Sequence[Work],
    device: torch.device,
    others: Mapping[str, Plan] | None = None,
    *,
    compiling: Progress = _silent,
    measuring: Progress = _silent,
) -> Outcome[str]:
    """Compile what has yet to be measured, then measure each work, cuDNN beside our configs; the timings are kept.

    Works on normal numbers in memory of its own: the tensors of one work at a time. A work whose tensors the GPU's
    memory does not hold is left out, with a warning.
    """
    outcome = compile_works(
        [work for work in works if unmeasured(work, device)], target_of(device), others, progress=compiling
    )
    for done, work in enumerate(works):
        measuring(done, len(works))
        try:
            run(work, device)
        except torch.OutOfMemoryError as error:
            warnings.warn(f"{work.label} is not measured: {str(error).splitlines()[0]}", stacklevel=2)
    measuring(len(works), len(works))
    return outcome


def unmeasured(work: Work, device: torch.device) -> bool:
    """Whether a config of the work has no timing yet."""
    target = target_of(device)
    known = timings.open_store(device).read(entry_of(work, target))
    return any(config not in known for config in plans_of(work, target))


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
            op.plan_conv(call.Plan(), x, w, None, alpha, *rest, False, precision, True)
        elif work.direction == "dgrad":
            op.plan_dgrad(call.Plan(), dy, w, alpha, x.shape, *rest, precision, True)
        else:
            op.plan_wgrad(call.Plan(), dy, x, w.shape, x.dtype, *rest, precision, True)
