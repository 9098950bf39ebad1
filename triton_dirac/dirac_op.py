"""The Dirac convolution as one operator: preparation and convolution forward, all gradients backward.

It saves host time beside the two operators it is made of and gives the same bits: wgrad writes the GEMM's dtype, as
autograd would have it between two operators, so that ``prepared(model)``, which is made of two, changes no number.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from triton_dirac.conv import op as conv
from triton_dirac.conv.epilogue import bias_gradient, keeps_output
from triton_dirac.runtime.plan import Plan
from triton_dirac.runtime.planned import Planned
from triton_dirac.runtime.register import (
    GEOMETRY,
    define,
    entry,
    planned_gradients,
    planned_run,
    register_autocast,
    register_gradient,
    through,
)
from triton_dirac.weight_prep import op as prep


class DiracSettings(NamedTuple):
    """All of the operator's arguments that are not tensors, in its order; the last seven are ``ConvSettings``'s."""

    eps: float
    split: bool
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str | None
    precision: str
    auto: bool

    @property
    def geometry(self) -> tuple[Any, Any, Any, Any]:
        return self[2:6]

    @property
    def conv(self) -> conv.ConvSettings:
        return conv.ConvSettings(*self[2:])


def _plan_forward(steps: Plan, image, weight, alpha, beta, bias, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    s = DiracSettings(*arguments)
    filters, norm = prep.plan_prep(steps, weight, alpha, beta, s.eps, not s.split, image.dtype, True, s.groups)
    output = conv.plan_conv(steps, image, filters, bias, alpha if s.split else None, *s.conv)
    return output, filters, norm


def _fake(image, weight, alpha, beta, bias, *arguments):
    s = DiracSettings(*arguments)
    filters, norm = prep.fake(weight, alpha, beta, s.eps, not s.split, image.dtype, True, s.groups)
    output = conv.fake(image, filters, bias, alpha, *s.conv)
    return output, filters, norm


_planned = Planned(_plan_forward, lambda *arguments: _plan_gradients(*arguments))
_dirac_conv2d = define(
    f"dirac_conv2d(Tensor image, Tensor weight, Tensor alpha, Tensor beta, Tensor? bias, float eps, bool split, "
    f"{GEOMETRY}, str? activation, str precision, bool auto) -> (Tensor, Tensor, Tensor)",
    planned_run(_planned, tensors=5),
    _fake,
)


def _setup(ctx, inputs, output):
    result, filters, norm = output
    _keep(ctx, inputs[:5], DiracSettings(*inputs[5:]), filters, norm, result)
    ctx.mark_non_differentiable(filters, norm)
    ctx.plan = None


def _keep(ctx, tensors, settings: DiracSettings, filters, norm, output) -> None:
    """What the backward needs."""
    ctx.settings = (settings,)
    activation = settings.activation
    ctx.save_for_backward(*tensors, filters, norm, output if activation and keeps_output(activation) else None)


def _plan_gradients(
    steps: Plan | None, grad, image, weight, alpha, beta, bias, filters, norm, result, s: DiracSettings, needed
):
    """Of image, weight, alpha, beta and bias, where needed; without ``steps`` by operators, for whoever looks on."""
    do, conv2d, dgrad, wgrad, prep_backward = through(
        steps,
        (conv.plan_conv, conv.conv2d_op),
        (conv.plan_dgrad, conv.conv_dgrad),
        (conv.plan_wgrad, conv.conv_wgrad),
        (prep.plan_backward, prep.weight_prep_backward),
    )
    need_image, need_weight, need_alpha, need_beta, need_bias = needed
    identity = alpha if s.split else None
    grad = conv.before_activation(do, conv2d, grad, image, filters, bias, identity, result, s.conv)
    rest = (*s.geometry, s.precision, s.auto)
    dimage = dweight = dalpha = dbeta = dbias = None
    if need_image:
        dimage = dgrad(grad, filters, identity, tuple(image.shape), *rest)
    if need_weight or need_alpha or need_beta:
        dfilters = wgrad(grad, image, tuple(weight.shape), image.dtype, *rest)
        dweight, dalpha, dbeta = prep_backward(dfilters, weight, alpha, beta, norm, s.eps, True, s.groups)
    if need_bias:
        dbias = do(partial(bias_gradient, dtype=bias.dtype), grad)
    return dimage, dweight, dalpha, dbeta, dbias


def _gradients(ctx, grad):
    if torch.is_grad_enabled():
        return _differentiable_gradients(ctx, grad)
    tensors, needed = (grad, *ctx.saved_tensors), ctx.needs_input_grad[:5]
    found = planned_gradients(ctx, tensors, needed)
    return _plan_gradients(None, *tensors, *ctx.settings, needed) if found is None else found


def _differentiable_gradients(ctx, grad):
    """The same gradients as a function that can be differentiated again: those of the two operators."""
    (s,) = ctx.settings
    points = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors[:5]]
    x, w, a, b, bias = points
    filters = prep.weight_prep(w, a, b, s.eps, not s.split, x.dtype, True, s.groups)
    output = conv.conv2d((x, filters, bias, a if s.split else None), s.conv)
    wanted = [i for i in range(5) if ctx.needs_input_grad[i]]
    found = torch.autograd.grad(output, [points[i] for i in wanted], grad, create_graph=True, allow_unused=True)
    gradients = dict(zip(wanted, found, strict=True))
    return tuple(gradients.get(i) for i in range(5))


def _backward(ctx, grad, *_):
    return *_gradients(ctx, grad), *(None,) * len(DiracSettings._fields)


register_gradient("dirac_conv2d", _backward, _setup)
register_autocast("dirac_conv2d", _dirac_conv2d, lambda dtype, image, *rest: (image.to(dtype), *rest))


@register_flop_formula(torch.ops.triton_dirac.dirac_conv2d)
def _flops(image_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return conv.flops(out_shape[0], weight_shape)


class _DiracConv2d(torch.autograd.Function):
    """The operator below the dispatcher."""

    @staticmethod
    def forward(ctx, image, weight, alpha, beta, bias, known, unknown):
        tensors = (image, weight, alpha, beta, bias)
        (output, filters, norm), plan = _planned.outputs_and_plan(tensors, known, unknown)
        ctx.plan = plan
        _keep(ctx, tensors, plan.settings, filters, norm, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        return *_gradients(ctx, grad), None, None


# activation(conv(x, What) + bias), differentiable; tensors are (x, W, alpha, beta, bias).
dirac_conv2d_again, dirac_conv2d = entry(_DiracConv2d, _planned, lambda *arguments: _dirac_conv2d(*arguments)[0])
