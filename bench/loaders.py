"""Our convolutions with their loader forced: how much of a time is the way in which images are read.

``triton`` is the fastest of all that the config tables of ``triton_dirac.conv`` offer a problem; these, with one
loader. Without a GPU, what an H100 would be offered for a full batch is checked on the miniature that the interpreter
gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor

from bench.suite import Build, Results, Work
from triton_dirac.conv import configs as conv_configs
from triton_dirac.conv import dgrad_configs as dgrad_tuning
from triton_dirac.conv import fprop_configs as fprop_tuning
from triton_dirac.conv import wgrad_configs as wgrad_tuning
from triton_dirac.conv.config import Config
from triton_dirac.conv.dgrad import prepare_dgrad
from triton_dirac.conv.fprop import prepare_fprop
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.wgrad import prepare_wgrad
from triton_dirac.runtime import autotune
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.targets import TARGETS, Target, target_of
from triton_dirac.tuning.work import STORAGE

TUNING: dict[str, ModuleType] = {"fprop": fprop_tuning, "dgrad": dgrad_tuning, "wgrad": wgrad_tuning}
ABSENT_GPU = TARGETS["cuda:90"]  # the first to offer all loaders
Prepare = Callable[[Config], tuple[Tensor, list[Launch]]]  # an empty output and what fills it
IMAGES = 128  # of images, which fill every tile of one image a row


def forced(loader: str) -> tuple[Callable[..., str | None], Build]:
    """What a contender with ``loader`` lacks, and how it is built."""

    def lacks(problem: ConvProblem, dtype: str, direction: str, device: torch.device) -> str | None:
        if offered(loader, problem, dtype, direction, device):
            return None
        return f"no {loader} config is offered for such a problem and type on {_target(device).name}"

    def build(work: Work) -> Callable[[], Results]:
        prepare = _preparer(work)
        config = _fastest(loader, work, prepare)

        def call() -> Results:
            output, launches = prepare(config)
            for launch in launches:
                launch.run()
            return (output,)

        return call

    return lacks, build


def offered(loader: str, problem: ConvProblem, dtype: str, direction: str, device: torch.device) -> list[Config]:
    """The configs with ``loader`` that are worth measuring: of gather what one image is offered, all that can run."""
    images = 1 if loader == "gather" else problem.N if device.type == "cuda" else IMAGES
    target = _target(device)
    found = TUNING[direction].offered(replace(problem, N=images), STORAGE[dtype], target, _precision(dtype, target))
    return [config for config in found if config.loader == loader]


def _target(device: torch.device) -> Target:
    return target_of(device) if device.type == "cuda" else ABSENT_GPU


def _fastest(loader: str, work: Work, prepare: Prepare) -> Config:
    """By measuring, where that can be done; else by tile arithmetic."""
    problem, direction = work.problem, work.direction
    found = offered(loader, problem, work.dtype, direction, work.device)
    likely = min(found, key=lambda config: _cycles(problem, work.storage, direction, config, _target(work.device)))
    # A pick is remembered by problem, whatever is offered: "triton" must not get this one, nor this one that. Their
    # timings are the same, and kept.
    with patch.dict(autotune._picked, clear=True):
        return autotune.pick(
            f"conv_{direction}",
            problem,
            work.storage,
            work.device,
            _precision(work.dtype, target_of(work.device)),
            promising=lambda *_: found,
            default=lambda *_: likely,
            plan=lambda config: prepare(config)[1],
        )


def _cycles(problem: ConvProblem, storage: torch.dtype, direction: str, config: Config, target: Target) -> float:
    if direction == "wgrad":
        splits = wgrad_tuning.split_k(problem, config, target)
        return wgrad_tuning.estimated_cycles(problem, storage, config, splits, target)
    gemm = conv_configs.gemm_of(problem, dgrad=direction == "dgrad")
    return conv_configs.estimated_cycles(gemm, storage, config, target)


def _precision(dtype: str, target: Target) -> str:
    return target.precision("tf32") if dtype == "tf32" else "ieee"


def _preparer(work: Work) -> Prepare:
    """The work's pass as a function of the config."""
    x, w, dy = (work.inputs[name].contiguous(memory_format=torch.channels_last) for name in ("x", "w", "dy"))
    problem, target = work.problem, target_of(work.device)
    precision = _precision(work.dtype, target)
    passes: dict[str, Prepare] = {
        "fprop": lambda config: prepare_fprop(x, w, problem, precision=precision, config=config),
        "dgrad": lambda config: prepare_dgrad(dy, w, None, problem, precision=precision, config=config, target=target),
        "wgrad": lambda config: prepare_wgrad(
            dy, x, problem, dtype=w.dtype, precision=precision, config=config, target=target
        ),
    }
    return passes[work.direction]
