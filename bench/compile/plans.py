"""In the worker: a job's plain data -> the launches that our kernels plan for it, on meta tensors.

Each function takes a Job and returns the config's name and the launches. A job's arguments: "config" forces a
config and "loader" its loader; "loader" alone takes the first config that is offered with it, and where none is
there are no launches; else the kernel's default is taken. Convolutions are those of the split form; "activation"
adds that and a bias.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.layers import layers
from triton_dirac.conv import dgrad_configs as dgrad_tuning
from triton_dirac.conv import direct as conv_direct
from triton_dirac.conv import fprop_configs as fprop_tuning
from triton_dirac.conv import wgrad as conv_wgrad
from triton_dirac.conv import wgrad_configs as wgrad_tuning
from triton_dirac.conv.config import Config
from triton_dirac.conv.dgrad import plan_dgrad, with_k_contiguous
from triton_dirac.conv.epilogue import Epilogue
from triton_dirac.conv.fprop import plan_fprop
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.targets import TARGETS
from triton_dirac.weight_prep import multi as weight_prep_multi
from triton_dirac.weight_prep import single as weight_prep

from .jobs import Job

TF32 = ("tf32", "tf32x3")  # float32 tensors; other dtypes are named as torch names them


def fprop(job: Job) -> tuple[str, list[Launch]]:
    """y = conv(x, w), with the identity in the epilogue where the layer has one."""
    p, dtype, config = job.problem, dtype_of(job), config_of(job, fprop_tuning)
    if config is None:
        return "", []
    x, w, y = (empty(shape, dtype) for shape in (p.input_shape, p.weight_shape, p.output_shape))
    activation = job.arguments.get("activation")
    bias = torch.empty(p.K, dtype=dtype, device="meta") if activation else None
    launches = plan_fprop(x, w, y, p, Epilogue(bias, alpha(job), activation), precision=precision(job), config=config)
    return config.name, launches


def dgrad(job: Job) -> tuple[str, list[Launch]]:
    """dx, with the identity in the epilogue where the layer has one."""
    p, dtype, config = job.problem, dtype_of(job), config_of(job, dgrad_tuning)
    if config is None:
        return "", []
    dy, w, dx = (empty(shape, dtype) for shape in (p.output_shape, p.weight_shape, p.input_shape))
    k_contiguous = dgrad_tuning.wants_k_contiguous(config, TARGETS[job.target])
    filters = with_k_contiguous(w, p.groups) if k_contiguous else w
    how: dict[str, Any] = {"precision": precision(job), "config": config, "k_contiguous": k_contiguous}
    launches = plan_dgrad(dy, filters, dx, alpha(job), p, **how)
    return config.name, launches


def wgrad(job: Job) -> tuple[str, list[Launch]]:
    """dw: the main pass and, where the reduction is split, the second."""
    p, dtype, config = job.problem, dtype_of(job), config_of(job, wgrad_tuning)
    if config is None:
        return "", []
    split_k = wgrad_tuning.split_k(p, config, TARGETS[job.target])
    shape = conv_wgrad.workspace_shape(p, config, split_k)
    workspace = None if shape is None else torch.empty(shape, device="meta")
    dy, x, dw = (empty(shape, dtype) for shape in (p.output_shape, p.input_shape, p.weight_shape))
    launches = conv_wgrad.plan_wgrad(dy, x, dw, workspace, p, precision=precision(job), config=config, split_k=split_k)
    return f"{config.name} split {split_k}", launches


def direct(job: Job) -> tuple[str, list[Launch]]:
    """The direct kernel of the pass that the argument "pass" names."""
    p, dtype = job.problem, dtype_of(job)
    x, w, y = (empty(shape, dtype) for shape in (p.input_shape, p.weight_shape, p.output_shape))
    if job.arguments["pass"] == "fprop":
        launches = conv_direct.plan_direct_fprop(x, w, y, p, Epilogue(alpha=alpha(job)))
    elif job.arguments["pass"] == "dgrad":
        launches = conv_direct.plan_direct_dgrad(y, w, x, alpha(job), p)
    else:
        split_k = conv_direct.direct_split_k(p, TARGETS[job.target])
        workspace = torch.empty((split_k, *w.shape), device="meta") if split_k > 1 else None
        launches = conv_direct.plan_direct_wgrad(y, x, w, workspace, p, split_k=split_k)
    tile = launches[0].constexprs
    return f"{tile['BLOCK_PIXELS']} pixels x {tile['BLOCK_CHANNELS']}", launches


def prep(job: Job) -> tuple[str, list[Launch]]:
    """One layer's weights for the split form, float32 OIHW -> the job's dtype, OHWI; or the backward."""
    shape, groups = job.problem.weight_shape, job.problem.groups
    per_filter = torch.empty(shape[0], device="meta")
    weight, prepared = torch.empty(shape, device="meta"), empty(shape, dtype_of(job))
    if job.arguments["backward"]:
        inputs, outputs = (prepared, weight, per_filter, per_filter), (weight, per_filter, per_filter)
        launches = weight_prep.plan_weight_prep_backward(*inputs, *outputs, groups=groups)
    else:
        tensors = (weight, per_filter, per_filter, prepared, per_filter)
        launches = weight_prep.plan_weight_prep(*tensors, identity=False, groups=groups)
    tile = launches[0].constexprs
    name = f"{tile['ROWS']}x{tile['BLOCK']} w{launches[0].options['num_warps']}"
    return name + (" loop" if tile["LOOP"] else ""), launches


def prep_multi(job: Job) -> tuple[str, list[Launch]]:
    """All Dirac layers of the job's net in one launch, as ``prep`` prepares each."""
    shapes = [x.problem.weight_shape for x in layers(job.net) if x.has_identity for _ in range(x.count)]
    parameters = [
        (torch.empty(s, device="meta"), torch.empty(s[0], device="meta"), torch.empty(s[0], device="meta"))
        for s in shapes
    ]
    launches, prepared, norms = weight_prep_multi.plan_weight_prep_multi(
        parameters, identity=False, dtype=dtype_of(job), channels_last=True
    )
    if job.arguments["backward"]:
        launches, *_ = weight_prep_multi.plan_weight_prep_multi_backward(prepared, parameters, norms)
    kinds = len(launches[0].constexprs["KINDS"])
    return f"{kinds} kinds w{launches[0].options['num_warps']}", launches


def dtype_of(job: Job) -> torch.dtype:
    return torch.float32 if job.dtype in TF32 else getattr(torch, job.dtype)


def precision(job: Job) -> str:
    return TARGETS[job.target].precision(job.dtype if job.dtype in TF32 else "ieee")


def alpha(job: Job) -> Tensor | None:
    return torch.empty(job.problem.K, device="meta") if job.has_identity else None


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


def config_of(job: Job, tuning: ModuleType) -> Config | None:
    """The config that the job's arguments mean; ``tuning`` has the kernel's ``default`` and ``offered``."""
    arguments, asked = job.arguments, (job.problem, dtype_of(job), TARGETS[job.target], precision(job))
    loader = arguments.get("loader")
    if "config" in arguments:
        config = Config(**arguments["config"])
        return replace(config, loader=loader or config.loader)
    if loader is None:
        return tuning.default(*asked)
    return next((config for config in tuning.offered(*asked) if config.loader == loader), None)
