"""The weight preparations of a model, to be compiled: layer by layer, and all in one launch (``prepared``)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from triton_dirac.modules import DiracConv2d
from triton_dirac.runtime.compile_ahead import Planner
from triton_dirac.runtime.launch import Launch
from triton_dirac.weight_prep import multi, single


def preparation_planners(model: nn.Module, dtype: torch.dtype, form: str) -> dict[str, Planner]:
    """Of a meta model's 2-D Dirac layers, parameters in float32 and filters in ``dtype``, by name.

    Filters may lie as ``nn.Conv2d`` has them or channels-last: both, since a model may be either.
    """
    planners: dict[str, Planner] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        layers = [module for module in model.modules() if isinstance(module, DiracConv2d)]
        laid_out = [(_parameters(layer, layout), layer.groups) for layer in layers]
        for (weight, alpha, beta), groups in laid_out:
            name = f"weight_prep {tuple(weight.shape)} {dtype} {form} {layout}"
            planners[name] = partial(_single, (weight, alpha, beta), groups, dtype, form)
        if layers:
            planners[f"weight_prep of all {len(layers)} layers {dtype} {form} {layout}"] = partial(
                _multi, [tensors for tensors, _ in laid_out], [groups for _, groups in laid_out], dtype, form
            )
    return planners


def _parameters(layer: DiracConv2d, layout: torch.memory_format) -> tuple[torch.Tensor, ...]:
    weight = torch.empty(layer.weight.shape, device="meta").to(memory_format=layout)
    return weight, *(torch.empty(parameter.shape, device="meta") for parameter in (layer.alpha, layer.beta))


def _single(tensors: Any, groups: int, dtype: torch.dtype, form: str) -> list[Launch]:
    """The operator's own: in the split form its backward has the identity's gradient all the same."""
    weight, alpha, beta = tensors
    out = single.empty_filters(tuple(weight.shape), True, dtype, weight.device)
    norm = torch.empty(weight.shape[0], device="meta")
    forward = single.plan_weight_prep(weight, alpha, beta, out, norm, identity=form != "split", groups=groups)
    gradients = torch.empty_like(weight), torch.empty_like(alpha), torch.empty_like(beta)
    return forward + single.plan_weight_prep_backward(out, weight, beta, norm, *gradients, groups=groups)


def _multi(layers: Any, groups: list[int], dtype: torch.dtype, form: str) -> list[Launch]:
    """Those of ``prepared``, whose backward has the identity's gradient in the split form too."""
    forward, outs, norms = multi.plan_weight_prep_multi(
        layers, dtype=dtype, channels_last=True, identity=form != "split", groups=groups
    )
    backward, *_ = multi.plan_weight_prep_multi_backward(outs, layers, norms, identity=True, groups=groups)
    return forward + backward
