"""In the worker: a job's plain data -> the launches that our kernels plan for it, on meta tensors.

Each function takes a Job and returns the config's name and the launches. Arguments a job may have:
"loader" ("gather" | "tile") picks that loader's default config, "config" forces a config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from triton_dirac.kernels import weight_prep
from triton_dirac.kernels.conv_wgrad import plan_wgrad, workspace_shape
from triton_dirac.kernels.launch import Launch
from triton_dirac.tuning import wgrad as wgrad_tuning
from triton_dirac.tuning.config import Config
from triton_dirac.tuning.targets import TARGETS

from .jobs import Job

PRECISIONS = {"tf32": "tf32", "tf32x3": "tf32x3"}  # float32 storage; other dtypes are named as torch does


def dtype_of(job: Job) -> torch.dtype:
    return torch.float32 if job.dtype in PRECISIONS else getattr(torch, job.dtype)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A meta tensor, channels-last where it has four dimensions."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def config_of(job: Job, default: Callable[..., Config]) -> Config:
    """The job's config, else the kernel's default for its problem, dtype and target."""
    if "config" in job.arguments:
        return Config(**job.arguments["config"])
    return default(job.problem, dtype_of(job), TARGETS[job.target])


def wgrad(job: Job) -> tuple[str, list[Launch]]:
    """dw: the main pass and, where the reduction is split, the second."""
    problem, dtype = job.problem, dtype_of(job)
    config = config_of(job, wgrad_tuning.default)
    split_k = wgrad_tuning.split_k(problem, config, TARGETS[job.target])
    shape = workspace_shape(problem, config, split_k)
    workspace = None if shape is None else torch.empty(shape, dtype=torch.float32, device="meta")
    launches = plan_wgrad(
        empty(problem.output_shape, dtype),
        empty(problem.input_shape, dtype),
        empty(problem.weight_shape, dtype),
        workspace,
        problem,
        precision=PRECISIONS.get(job.dtype, "ieee"),
        config=config,
        split_k=split_k,
    )
    return f"{config.name} split {split_k}", launches


def prep(job: Job) -> tuple[str, list[Launch]]:
    """Weight preparation of float32 parameters into the job's dtype, OIHW -> OHWI; "backward": gradients."""
    shape, groups = job.problem.weight_shape, job.problem.groups
    alpha, beta, norm = (empty(shape[:1], torch.float32) for _ in range(3))
    weight, prepared = torch.empty(shape, device="meta"), empty(shape, dtype_of(job))
    if job.arguments["backward"]:
        gradients: list[Any] = [torch.empty_like(t) for t in (weight, alpha, beta)]
        launches = weight_prep.plan_weight_prep_backward(
            prepared, weight, beta, norm, *gradients, groups=groups
        )
    else:
        launches = weight_prep.plan_weight_prep(
            weight, alpha, beta, prepared, norm, identity=False, groups=groups
        )
    return row_tile(launches[0]), launches


def row_tile(launch: Launch) -> str:
    """e.g. ``1 x 2048 w2``: rows and padded columns of a program, warps."""
    tile = launch.constexprs
    return f"{tile['ROWS']} x {tile['BLOCK']} w{launch.options['num_warps']}{' loop' if tile['LOOP'] else ''}"
