"""Operators of the weight preparation: one layer, and all layers of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triton_dirac.runtime.plan import Plan
from triton_dirac.runtime.planned import Planned
from triton_dirac.runtime.register import define, may_launch, planned_run, register_gradient, twin_gradient
from triton_dirac.runtime.tracing import is_observed, is_plain
from triton_dirac.weight_prep import single as kernels
from triton_dirac.weight_prep import torch_backend
from triton_dirac.weight_prep.multi import weight_prep_multi, weight_prep_multi_backward
from triton_dirac.weight_prep.net_node import Kept, Layer, layers_of, prepare_trained_apart, trained_and_frozen


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
    return torch.empty_like(weight), torch.empty_like(alpha), torch.empty_like(beta)


def backward_twin(grad, weight, alpha, beta, norm, eps, identity, groups):
    norm = torch_backend.row_norms(weight)  # the saved one is a constant; its dependence on W is part of this
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
    direct = may_launch(grad, tensors[1])
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
    if is_observed() or not is_plain(weight, alpha, beta):
        return _weight_prep_op(*arguments)[0]
    return _WeightPrep.apply(*arguments)[0]


class _WeightPreps(torch.autograd.Function):
    """All layers of a network: one launch forward, one backward. tensors: weight, alpha, beta of each in turn."""

    @staticmethod
    def forward(ctx, eps, identity, dtype, channels_last, groups, *tensors):
        layers = layers_of(tensors)
        outputs, ctx.norms = weight_prep_multi(
            layers, eps=eps, identity=identity, dtype=dtype, channels_last=channels_last, groups=groups
        )
        ctx.eps, ctx.identity, ctx.groups = eps, identity, groups
        ctx.dtypes = [output.dtype for output in outputs]
        ctx.kept = [Kept(layer) for layer in layers]
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):
        layers = [
            kept.tensors if grad is None else kept.unchanged() for grad, kept in zip(grads, ctx.kept, strict=True)
        ]
        unused = [grad is None for grad in grads]
        grads = [
            torch.zeros(layer[0].shape, dtype=dtype, device=layer[0].device) if grad is None else grad
            for grad, layer, dtype in zip(grads, layers, ctx.dtypes, strict=True)
        ]
        if torch.is_grad_enabled():  # gradients of gradients: layer by layer, in operations torch differentiates
            gradients = [
                backward_twin(grad, *layer, None, ctx.eps, ctx.identity, group)
                for grad, layer, group in zip(grads, layers, ctx.groups, strict=True)
            ]
        else:
            gradients = weight_prep_multi_backward(
                grads, layers, ctx.norms, eps=ctx.eps, identity=ctx.identity, groups=ctx.groups
            )
        found = [(None,) * 3 if absent else layer for absent, layer in zip(unused, gradients, strict=True)]
        return None, None, None, None, None, *(gradient for layer in found for gradient in layer)


def may_batch(layers: Sequence[tuple[Tensor, ...]]) -> bool:
    """Whether one launch may prepare all layers: addresses in a table mean nothing to a tracer."""
    return not torch.compiler.is_compiling() and is_plain(*(tensor for layer in layers for tensor in layer))


def weight_preps(layers: Sequence[Layer], eps, identity, dtype, channels_last, groups) -> list[Tensor]:
    """Prepared weights of all layers; ``channels_last`` None keeps each weight's layout."""

    def prepare(some: Sequence[Layer], their: list[int], trained: bool) -> Sequence[Tensor]:
        if trained:
            tensors = (tensor for layer in some for tensor in layer)
            return _WeightPreps.apply(eps, identity, dtype, channels_last, tuple(their), *tensors)
        return weight_prep_multi(
            some, eps=eps, identity=identity, dtype=dtype, channels_last=channels_last, groups=their
        )[0]

    return list(prepare_trained_apart(layers, groups, *trained_and_frozen(layers), prepare))
