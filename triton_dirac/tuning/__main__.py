"""Compile all kernels of published nets, on all cores, and measure them on the GPU that is here.

With --compile-only for GPUs that need not be here: the cache is filled, can be copied to the machine that has one, and
is used there from whatever folder it lies in. The same command without --compile-only, there, compiles what is missing
and measures; the timings are kept for every later process.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import triton

from triton_dirac.exact import BEYOND
from triton_dirac.functional import FORMS
from triton_dirac.models import DIRACNETS
from triton_dirac.runtime import compile_ahead, compiled_cache, files, timings
from triton_dirac.runtime.compile_ahead import Outcome, Planner
from triton_dirac.runtime.launch import INTERPRETED
from triton_dirac.runtime.targets import TARGETS
from triton_dirac.tuning.preparation import preparation_planners
from triton_dirac.tuning.progress import Progress
from triton_dirac.tuning.run import compile_works, tune
from triton_dirac.tuning.work import PASSES, STORAGE, Work, works_of

PREP = "prep"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set, and a process that interprets kernels compiles none: unset it")
    if options.cache:
        triton.knobs.cache.dir = str(options.cache.resolve())
    if not options.compile_only and not torch.cuda.is_available():
        parser.error("there is no GPU to measure on; --compile-only --target cuda:90 compiles for one")
    if options.compile_only and not options.targets:
        parser.error(f"--compile-only needs --target, one or several of {', '.join(TARGETS)}")
    works, others = _selected(options)
    if not works and not others:
        parser.error(f"nothing is selected: no layer of {', '.join(options.nets)} holds {' or '.join(options.layers)}")
    try:
        files.require_writable(compiled_cache.directory() / compiled_cache.MARK)
    except OSError as error:
        parser.error(f"--cache must be a folder that can be written: {error}")
    compile_ahead.jobs = options.jobs
    compiled_cache.relocate()
    with contextlib.closing(compile_ahead):
        outcomes = _compile_only(works, others, options) if options.compile_only else [_tune(works, others)]
    _say(f"{sum(outcome.compiled for outcome in outcomes)} kernels compiled into {compiled_cache.directory()}")
    failures = [failure for outcome in outcomes for failure in (outcome.refused | outcome.lost).items()]
    for name, why in failures:
        _say(f"not compiled: {name}: {why}")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m triton_dirac.tuning", description=__doc__)
    add = parser.add_argument
    add("--compile-only", action="store_true", help="measure nothing; needs no GPU")
    add(
        "--target",
        dest="targets",
        type=_listed(tuple(TARGETS)),
        default=[],
        help=f"of --compile-only: {_named(TARGETS)}",
    )
    add("--nets", type=_listed(tuple(DIRACNETS)), default=list(DIRACNETS), help=_named(DIRACNETS) + "; default: all")
    add("--dtypes", type=_listed(tuple(STORAGE)), default=["bfloat16"], help=_named(STORAGE) + "; default: bfloat16")
    forms = "; default: split. materialised is also any plain convolution"
    add("--forms", type=_listed(FORMS), default=["split"], help=_named(FORMS) + forms)
    add(
        "--passes",
        type=_listed((*PASSES, PREP)),
        default=[*PASSES, PREP],
        help=_named((*PASSES, PREP)) + "; default: all",
    )
    add("--layers", type=_parts, default=[], help="parts of layers' names as they are printed; default: all")
    add("--batch", type=_positive, help="default: each net's published batch")
    add("--cache", type=Path, help="folder of the compiled kernels; default: Triton's own (TRITON_CACHE_DIR)")
    add("--jobs", type=_positive, help="compiling processes; default: one for each core")
    return parser


def _selected(options: argparse.Namespace) -> tuple[list[Work], dict[str, Planner]]:
    """The nets' convolutions, each once, and their weight preparations."""
    works: dict[Work, None] = {}
    others: dict[str, Planner] = {}
    for name in options.nets:
        net = DIRACNETS[name]
        with torch.device("meta"):
            model = net.build()
        batch = options.batch or net.batch
        for work in works_of(model, net.image_size, batch, options.dtypes, options.forms, options.passes):
            if not options.layers or any(part in work.label for part in options.layers):
                works[work] = None
        if PREP in options.passes and not options.layers:
            for form in options.forms:
                for dtype in options.dtypes:
                    planners = preparation_planners(model, STORAGE[dtype], form)
                    others |= {f"{name} {what}": planner for what, planner in planners.items()}
    return list(works), others


def _compile_only(works: list[Work], others: dict[str, Planner], options: argparse.Namespace) -> list[Outcome[str]]:
    return [
        compile_works(works, TARGETS[target], others, progress=Progress(f"compiling for {target}"))
        for target in options.targets
    ]


def _tune(works: list[Work], others: dict[str, Planner]) -> Outcome[str]:
    torch.backends.cudnn.benchmark = True  # as whoever trains has it: cuDNN's own search is what ours is held against
    device = torch.device("cuda", torch.cuda.current_device())
    outcome = tune(works, device, others, compiling=Progress("compiling"), measuring=Progress("measuring"))
    _say(f"timings of {len(works)} works in {timings.open_store(device).path}")
    return outcome


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parts(text: str) -> list[str]:
    if not (found := _split(text)):
        raise argparse.ArgumentTypeError(f"needs one or several parts of layers' names, got {text!r}")
    return found


def _listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type for comma-separated names, each of which must be known."""

    def names(text: str) -> list[str]:
        for name in (found := _split(text)):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        if not found:
            raise argparse.ArgumentTypeError(f"needs one or several of {', '.join(known)}")
        return found

    return names


def _named(known: Sequence[str] | Mapping[str, object]) -> str:
    return "comma-separated: " + ", ".join(known)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < BEYOND:
        raise argparse.ArgumentTypeError(f"must be a positive integer below 2 ** 31, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
