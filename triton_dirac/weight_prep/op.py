"""Operators of the weight preparation: one layer, and all layers of a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from triton_dirac.runtime.plan import Plan
from triton_dirac.runtime.planned import Planned
from triton_dirac.runtime.register import (
    define,
    may_launch,
    planned_gradients,
    planned_run,
    register_gradient,
    twin_gradient,
)
from triton_dirac.runtime.tracing import is_plain
from triton_dirac.weight_prep import single as kernels
from triton_dirac.weight_prep import torch_backend
from triton_dirac.weight_prep.multi import weight_prep_multi, weight_prep_multi_backward
from triton_dirac.weight_prep.net_node import Kept, LayerTensors, layers_of, prepare_trained_apart


def plan_prep(steps: Plan, weight, alpha, beta, eps, identity, dtype, channels_last, groups) -> tuple[Tensor, Tensor]:
    layout = {"dtype": dtype, "channels_last": channels_last}
    return kernels.weight_prep(weight, alpha, beta, eps=eps, identity=identity, groups=groups, steps=steps, **layout)


def fake(weight, alpha, beta, eps, identity, dtype, channels_last, groups):
    out = kernels.empty_filters(weight.shape, channels_last, dtype, weight.device)
    return out, weight.new_empty((weight.shape[0],), dtype=kernels.norm_dtype(weight.dtype))


def plan_backward(steps: Plan, grad, weight, alpha, beta, norm, eps, identity, groups) -> tuple[Tensor, ...]:
    arguments = (grad, weight, alpha, beta, norm)
    return kernels.weight_prep_backward(*arguments, eps=eps, identity=identity, groups=groups, steps=steps)


def backward_fake(grad, weight, alpha, beta, norm, eps, identity, groups):
    return torch.empty_like(kernels.dense(weight)), torch.empty_like(alpha), torch.empty_like(beta)


def backward_twin(grad, weight, alpha, beta, norm, eps, identity, groups):
    norm = torch_backend.row_norms(weight, eps)  # the saved one is a constant; its dependence on W is part of this
    return torch_backend.dirac_weight_backward(
        grad, weight, alpha, beta, norm, eps=eps, identity=identity, groups=groups
    )


_forward, _gradients = Planned(plan_prep), Planned(plan_backward)
_weight_prep_op = define(
    "weight_prep(Tensor weight, Tensor alpha, Tensor beta, float eps, bool identity, ScalarType dtype, "
    "bool channels_last, SymInt groups) -> (Tensor, Tensor)",
    planned_run(_forward, tensors=3),
    fake,
)
weight_prep_backward = define(
    "weight_prep_backward(Tensor grad, Tensor weight, Tensor alpha, Tensor beta, Tensor norm, float eps, "
    "bool identity, SymInt groups) -> (Tensor, Tensor, Tensor)",
    planned_run(_gradients, tensors=5),
    backward_fake,
)


def _setup(ctx, inputs, output):
    weight, alpha, beta, ctx.eps, ctx.identity, _, _, ctx.groups = inputs
    ctx.save_for_backward(weight, alpha, beta, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    tensors, settings = (grad, *ctx.saved_tensors), (ctx.eps, ctx.identity, ctx.groups)
    direct = may_launch(*tensors[:4])  # all that a caller gave: any may be a negated view
    gradients = _gradients(tensors, settings) if direct else weight_prep_backward(*tensors, *settings)
    return *gradients, None, None, None, None, None


register_gradient("weight_prep", _backward, _setup)
register_gradient("weight_prep_backward", *twin_gradient(backward_twin))


class _WeightPrep(torch.autograd.Function):
    """Forward and setup in one method: with a separate setup_context, PyTorch 2.13 inspects forward's signature at
    each call, which took 180 of 240 us of host time."""

    @staticmethod
    def forward(ctx, *arguments):
        output = tuple(_forward(arguments[:3], arguments[3:]))
        _setup(ctx, arguments, output)
        return output

    backward = staticmethod(_backward)


def weight_prep(weight, alpha, beta, eps, identity, dtype, channels_last, groups) -> Tensor:
    """The prepared weight, differentiable; arguments as ``triton_dirac.functional.dirac_weight`` checked them."""
    arguments = (weight, alpha, beta, eps, identity, dtype, channels_last, groups)
    if not is_plain(weight, alpha, beta):
        return _weight_prep_op(*arguments)[0]
    return _WeightPrep.apply(*arguments)[0]


class NetSettings(NamedTuple):
    """How all layers of a network are prepared. ``alpha_apart``: whether the identity's term, which is not in the
    filters then, is added by someone who leaves alpha's gradient to this (it is in that of the filters)."""

    eps: float
    identity: bool
    dtype: torch.dtype | None
    channels_last: bool | None
    groups: tuple[int, ...]
    alpha_apart: bool = False


def _plan_preps(steps: Plan, *arguments) -> list[Tensor]:
    """(filters of each layer, norms) from all layers' tensors in a row."""
    *tensors, net = arguments
    options = {"eps": net.eps, "identity": net.identity, "dtype": net.dtype, "channels_last": net.channels_last}
    outputs, norms = weight_prep_multi(layers_of(tensors), groups=net.groups, steps=steps, **options)
    return [*outputs, norms]


def _plan_preps_backward(steps: Plan, *arguments) -> list[Tensor | None]:
    """The gradients of all layers' tensors in a row, from all filters' (None for those that got none)."""
    norms, *tensors, net, present = arguments
    grads, layers = tensors[: len(present)], layers_of(tensors[len(present) :])
    whole = [
        steps.do(partial(torch.zeros_like, dtype=net.dtype), layer[0]) if grad is None else grad
        for grad, layer in zip(grads, layers, strict=True)
    ]
    identity = net.identity or net.alpha_apart
    found = weight_prep_multi_backward(
        whole, layers, norms, eps=net.eps, identity=identity, groups=net.groups, steps=steps
    )
    return _of_those_present(grads, found)


def _of_those_present(grads: Sequence[Tensor | None], gradients: Sequence[Sequence[Tensor]]) -> list[Tensor | None]:
    found = [(None,) * 3 if grad is None else three for grad, three in zip(grads, gradients, strict=True)]
    return [gradient for three in found for gradient in three]


_preps = Planned(_plan_preps, _plan_preps_backward)


class _WeightPreps(torch.autograd.Function):
    """All layers of a network: one launch forward, one backward. tensors: weight, alpha, beta of each in turn."""

    @staticmethod
    def forward(ctx, net, *tensors):
        settings = (net,)
        known = _preps.find(tensors, settings)
        (*outputs, ctx.norms), ctx.plan = _preps.outputs_and_plan(tensors, known, (settings, settings))
        ctx.settings = settings
        ctx.kept = Kept(tensors)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):
        present = tuple([grad is not None for grad in grads])
        tensors = ctx.kept.unchanged(present)
        found = planned_gradients(ctx, (ctx.norms, *grads, *tensors), present)
        if found is not None:
            return None, *found
        (net,) = ctx.settings
        identity = net.identity or net.alpha_apart

        def alone(grad: Tensor, layer: LayerTensors, groups: int) -> Sequence[Tensor]:
            if torch.is_grad_enabled():  # gradients of gradients: in operations that torch differentiates
                return backward_twin(grad, *layer, None, net.eps, identity, groups)
            norm = torch_backend.row_norms(layer[0], net.eps)
            return weight_prep_backward(grad, *layer, norm, net.eps, identity, groups)

        gradients = [
            (None,) * 3 if grad is None else alone(grad, layer, group)
            for grad, layer, group in zip(grads, layers_of(tensors), net.groups, strict=True)
        ]
        return None, *_of_those_present(grads, gradients)


_apply = super(torch.autograd.Function, _WeightPreps).apply  # type: ignore[misc]  # see ``register.entry``


def may_batch(layers: Sequence[tuple[Tensor, ...]]) -> bool:
    """Whether one launch may prepare all layers: addresses in a table mean nothing to a tracer."""
    return is_plain(*(tensor for layer in layers for tensor in layer))


def weight_preps(
    layers: Sequence[LayerTensors], net: NetSettings, trained: list[int], frozen: list[int]
) -> Sequence[Tensor]:
    """Prepared weights of all layers, of which some are ``trained``, the others ``frozen`` (indices)."""

    def prepare(some: Sequence[LayerTensors], their: Sequence[int], trained: bool) -> Sequence[Tensor]:
        tensors = [tensor for layer in some for tensor in layer]
        own = net if their is net.groups else net._replace(groups=tuple(their))
        if trained:
            return _apply(own, *tensors)
        return _preps(tensors, (own,))[:-1] if tensors else []  # type: ignore[return-value]

    return prepare_trained_apart(layers, net.groups, trained, frozen, prepare)
