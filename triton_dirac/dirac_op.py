"""The Dirac convolution as one operator: preparation and convolution forward, all gradients backward.

It saves host time beside the two operators it is made of and gives the same bits: wgrad writes the GEMM's dtype, as
autograd would have it between two operators, so that ``prepared(model)``, which is made of two, changes no number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from triton_dirac.conv import op as conv
from triton_dirac.runtime.register import (
    GEOMETRY,
    define,
    may_launch,
    register_autocast,
    register_gradient,
    short_cut,
)
from triton_dirac.runtime.replay import outputs_of
from triton_dirac.weight_prep import op as prep


class DiracSettings(NamedTuple):
    """All of the operator's arguments that are not tensors, in its order; the last seven are ``ConvSettings``'s."""

    eps: float
    split: bool
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    relu: bool
    precision: str
    auto: bool

    @property
    def geometry(self) -> tuple[Any, Any, Any, Any]:
        return self[2:6]

    @property
    def conv(self) -> conv.ConvSettings:
        return conv.ConvSettings(*self[2:])


def _run(image, weight, alpha, beta, bias, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    s = DiracSettings(*arguments)
    filters, norm = prep.run(weight, alpha, beta, s.eps, not s.split, image.dtype, True, s.groups)
    identity = alpha if s.split else None
    output = conv.run(image, filters, bias, identity, *s.conv)
    return output, filters, norm


def _fake(image, weight, alpha, beta, bias, *arguments):
    s = DiracSettings(*arguments)
    filters, norm = prep.fake(weight, alpha, beta, s.eps, not s.split, image.dtype, True, s.groups)
    output = conv.fake(image, filters, bias, alpha, *s.conv)
    return output, filters, norm


_dirac_conv2d = define(
    f"dirac_conv2d(Tensor image, Tensor weight, Tensor alpha, Tensor beta, Tensor? bias, float eps, bool split, "
    f"{GEOMETRY}, bool relu, str precision, bool auto) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
)


def _setup(ctx, inputs, output):
    result, filters, norm = output
    _keep(ctx, inputs[:5], DiracSettings(*inputs[5:]), filters, norm, result)
    ctx.mark_non_differentiable(filters, norm)


def _keep(ctx, tensors, settings: DiracSettings, filters, norm, output) -> None:
    """What the backward needs."""
    ctx.settings = settings
    ctx.save_for_backward(*tensors, filters, norm, output if settings.relu else None)


def _gradients(ctx, grad):
    """Of image, weight, alpha, beta and bias."""
    if torch.is_grad_enabled():
        return _differentiable_gradients(ctx, grad)
    s = ctx.settings
    image, weight, alpha, beta, bias, filters, norm, result = ctx.saved_tensors
    need_image, need_weight, need_alpha, need_beta, need_bias = ctx.needs_input_grad[:5]
    if s.relu:
        grad = torch.ops.aten.threshold_backward(grad, result, 0)
    direct = may_launch(grad, image, weight)
    rest = (*s.geometry, s.precision, s.auto)
    dimage = dweight = dalpha = dbeta = dbias = None
    if need_image:
        identity = alpha if s.split else None
        dimage = (conv.dgrad_run if direct else conv.conv_dgrad)(grad, filters, identity, image.shape, *rest)
    if need_weight or need_alpha or need_beta:
        run = conv.wgrad_run if direct else conv.conv_wgrad
        dfilters = run(grad, image, weight.shape, image.dtype, *rest)
        run = prep.backward_run if direct else prep.weight_prep_backward
        dweight, dalpha, dbeta = run(dfilters, weight, alpha, beta, norm, s.eps, True, s.groups)
    if need_bias:
        dbias = conv.bias_gradient(grad, bias.dtype)
    return dimage, dweight, dalpha, dbeta, dbias


def _differentiable_gradients(ctx, grad):
    """The same gradients as a function that can be differentiated again: those of the two operators."""
    s = ctx.settings
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
    """The operator below the dispatcher, in full or as a replay."""

    @staticmethod
    def forward(ctx, image, weight, alpha, beta, bias, settings, options, replay):
        tensors = (image, weight, alpha, beta, bias)
        output, filters, norm = outputs_of(_run, tensors, settings, options, replay, usual=2)
        _keep(ctx, tensors, settings, filters, norm, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        return *_gradients(ctx, grad), None, None, None


# relu?(conv(x, What) + bias), differentiable; tensors are (x, W, alpha, beta, bias), as checked.
dirac_conv2d, replay_dirac_conv2d = short_cut(_DiracConv2d, lambda *arguments: _dirac_conv2d(*arguments)[0])
