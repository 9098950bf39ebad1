"""Which config a kernel runs with, and which backend a convolution takes.

``pick`` chooses a config in four steps: the one forced by argument; the fastest of the persisted timings; the
fastest of timings taken now, by Triton's Autotuner, on a GPU; else the kernel's default. ``choose`` does the
same for named candidates (ours, cuDNN with the Triton weight prep). Nothing is measured in the interpreter,
without a GPU, while a CUDA graph is captured, with ``tune=False`` or with TRITON_DIRAC_AUTOTUNE=0 in the
environment; under ``torch.use_deterministic_algorithms`` the default is taken, because a pick by timing may
differ from one process to the next.

Timings, not picks, are kept: one file per GPU and Triton version (``timings.py``) holds the time of each config of
each problem, so that a config added later is measured alone. Both functions remember their answer in a
dictionary of this process, and that is all they do from the second call on; ``forget`` empties it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
import triton
from triton.runtime.autotuner import Autotuner

from triton_dirac.conv.config import Config
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime import timings
from triton_dirac.runtime.targets import Target, target_of

AUTOTUNE = "TRITON_DIRAC_AUTOTUNE"
Run = Callable[[], object]
Bench = Callable[[Run], float]

_picked: dict[Hashable, Config | str] = {}
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
    problem: ConvProblem,
    dtype: torch.dtype,
    device: torch.device,
    precision: str = "ieee",
    *,
    offered: Callable[[ConvProblem, torch.dtype, Target], Sequence[Config]],
    default: Callable[[ConvProblem, torch.dtype, Target], Config],
    run: Callable[[Config], object],
    config: Config | None = None,
    tune: bool = True,
    bench: Bench | None = None,
) -> Config:
    """The config for one kernel and problem.

    ``offered`` and ``default`` are the kernel's config table's; ``run(config)`` executes the kernel once into
    outputs of its own. ``bench(call) -> milliseconds`` replaces Triton's benchmarker (cold L2, median).
    """
    if config is not None:
        return config
    deterministic = torch.are_deterministic_algorithms_enabled()
    key = (kernel, problem, dtype, device, precision, tune, deterministic)
    known = _picked.get(key)
    if isinstance(known, Config):
        return known
    target = target_of(device)
    fallback = default(problem, dtype, target)
    if deterministic:
        picked, settled = fallback, True
    else:
        configs = {_label(c): c for c in (*offered(problem, dtype, target), fallback)}
        runs = {label: lambda c=c: run(c) for label, c in configs.items()}
        entry = f"{kernel} {_spell(problem)} {dtype} {precision}"
        label, settled = _fastest(entry, runs, _label(fallback), device, tune, bench)
        picked = configs[label]
    if settled:
        _picked[key] = picked
    return picked


def choose(
    name: str,
    problem: ConvProblem,
    dtype: torch.dtype,
    device: torch.device,
    precision: str = "ieee",
    *,
    candidates: Callable[[], Mapping[str, Run]],
    default: str,
    tune: bool = True,
    bench: Bench | None = None,
) -> str:
    """The name of the fastest candidate, e.g. "triton" or "cudnn", for one problem.

    ``candidates()`` gives what to run by name, and is called only where the answer is not known yet. Timings of
    other torch or cuDNN versions are not used. ``default`` is the answer where nothing can be measured.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    key = (name, problem, dtype, device, precision, tune, deterministic)
    known = _picked.get(key)
    if isinstance(known, str):
        return known
    if deterministic:
        picked, settled = default, True
    else:
        versions = f"torch {torch.__version__} cudnn {torch.backends.cudnn.version()}"
        entry = f"{name} {_spell(problem)} {dtype} {precision} {versions}"
        picked, settled = _fastest(entry, candidates(), default, device, tune, bench)
    if settled:
        _picked[key] = picked
    return picked


def _fastest(
    entry: str, runs: Mapping[str, Run], default: str, device: torch.device, tune: bool, bench: Bench | None
) -> tuple[str, bool]:
    """(name of the fastest run, whether that is final for this process).

    All known: the fastest. Some unknown: they are measured where that is allowed. Otherwise the fastest known
    one, and the default where none is. A run that failed has an infinite time and is not tried again.
    """
    if len(runs) == 1:
        return next(iter(runs)), True
    measuring = _tuning_on(tune) and (bench is not None or _can_measure(device))
    if not measuring and (device.type != "cuda" or triton.knobs.runtime.interpret):
        return default, True
    store = timings.open_store(device)
    known = {name: time for name, time in store.read(entry).items() if name in runs}
    unknown = [name for name in runs if name not in known]
    if measuring and unknown:
        # The Autotuner does not time a lone config, and a time is fairer beside the one it has to beat.
        rivals = sorted(known, key=known.__getitem__)[:1] if len(unknown) == 1 else []
        measured = _measure({name: runs[name] for name in (*unknown, *rivals)}, bench)
        known |= measured
        store.write(entry, measured)
    finite = {name: time for name, time in known.items() if math.isfinite(time)}
    best = min(finite, key=finite.__getitem__) if finite else default
    # A capture ends, so the next call may measure; an argument or the environment holds for the process.
    return best, measuring or not _tuning_on(tune)


def _measure(runs: Mapping[str, Run], bench: Bench | None) -> dict[str, float]:
    """Milliseconds of each run by Triton's Autotuner, infinity for one that fails (which is warned of)."""

    class Candidates:
        """What the Autotuner takes for a kernel: the config's keyword says which run is meant."""

        @staticmethod
        def fn() -> None: ...

        def run(self, *, name: str, **_: object) -> None:
            runs[name]()

    def timed(call: Run, quantiles: Sequence[float]) -> list[float]:
        try:
            if bench is not None:
                return [bench(call)] * len(quantiles)
            return triton.runtime.driver.active.get_benchmarker()(call, quantiles=quantiles)
        except Exception as error:
            warnings.warn(f"a candidate failed while it was measured: {error!r}", stacklevel=2)
            return [math.inf] * len(quantiles)

    configs = [triton.Config({"name": name}) for name in runs]
    tuner = Autotuner(Candidates(), [], configs, [], None, None, do_bench=timed)
    tuner.run()
    return {config.kwargs["name"]: float(times[0]) for config, times in tuner.configs_timings.items()}


def _label(config: Config) -> str:
    """What a config is called in the file: all that changes its code, not its reason."""
    return f"{config.name} g{config.group_m}" + (" all registers" if config.all_registers else "")


def _spell(problem: ConvProblem) -> str:
    """e.g. ``128x160x32x32-160x3x3 s1,1 p1,1,1,1 d1,1 g1``"""
    sizes = f"{problem.N}x{problem.C}x{problem.H}x{problem.W}-{problem.K}x{problem.R}x{problem.S}"
    parts = zip("spd", (problem.stride, problem.padding, problem.dilation), strict=True)
    return " ".join((sizes, *(f"{n}{','.join(map(str, v))}" for n, v in parts), f"g{problem.groups}"))
