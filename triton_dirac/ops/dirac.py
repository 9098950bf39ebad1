"""The Dirac convolution as one operator: preparation and convolution forward, all gradients backward.

Beside the two operators it is made of, it saves host time, and its weight gradient stays float32 between wgrad
and the weight's own gradient, where two operators would round it to the GEMM's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from triton_dirac.ops import conv, prep
from triton_dirac.ops.register import GEOMETRY, define, is_plain, may_launch, register_gradient


def _run(
    image, weight, alpha, beta, bias, eps, split, stride, padding, dilation, groups, relu, precision, auto
) -> tuple[Tensor, Tensor, Tensor]:
    filters, norm = prep.run(weight, alpha, beta, eps, not split, image.dtype, True, groups)
    geometry = (stride, padding, dilation, groups)
    output = conv.run(image, filters, bias, alpha if split else None, *geometry, relu, precision, auto)
    return output, filters, norm


def _fake(image, weight, alpha, beta, bias, eps, split, stride, padding, dilation, groups, relu, precision, auto):
    filters, norm = prep.fake(weight, alpha, beta, eps, not split, image.dtype, True, groups)
    geometry = (stride, padding, dilation, groups)
    return conv.fake(image, filters, bias, alpha, *geometry, relu, precision, auto), filters, norm


_dirac_conv2d = define(
    f"dirac_conv2d(Tensor image, Tensor weight, Tensor alpha, Tensor beta, Tensor? bias, float eps, bool split, "
    f"{GEOMETRY}, bool relu, str precision, bool auto) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
)


def _setup(ctx, inputs, output):
    image, weight, alpha, beta, bias, ctx.eps, ctx.split, *ctx.geometry, ctx.relu, ctx.precision, ctx.auto = inputs
    result, filters, norm = output
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(image, weight, alpha, beta, bias, filters, norm, result if ctx.relu else None)
    ctx.mark_non_differentiable(filters, norm)


def _backward(ctx, grad, *_):
    image, weight, alpha, beta, _, filters, norm, result = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _differentiable_backward(ctx, grad)
    need_image, need_weight, need_alpha, need_beta, need_bias = ctx.needs_input_grad[:5]
    if ctx.relu:
        grad = torch.ops.aten.threshold_backward(grad, result, 0)
    direct = may_launch(grad, image, weight)
    rest = (*ctx.geometry, ctx.precision, ctx.auto)
    dimage = dweight = dalpha = dbeta = dbias = None
    if need_image:
        identity = alpha if ctx.split else None
        dimage = (conv.dgrad_run if direct else conv.conv_dgrad)(grad, filters, identity, image.shape, *rest)
    if need_weight or need_alpha or need_beta:
        run = conv.wgrad_run if direct else conv.conv_wgrad
        dfilters = run(grad, image, weight.shape, torch.float32, *rest)
        run = prep.backward_run if direct else prep.weight_prep_backward
        dweight, dalpha, dbeta = run(dfilters, weight, alpha, beta, norm, ctx.eps, True, ctx.geometry[-1])
    if need_bias:
        dbias = conv.bias_gradient(grad, ctx.bias_dtype)
    return dimage, dweight, dalpha, dbeta, dbias, *(None,) * 9


def _differentiable_backward(ctx, grad):
    """The same gradients as a function that can be differentiated again: those of the two operators."""
    image, weight, alpha, beta, bias, *_ = ctx.saved_tensors
    inputs = [image, weight, alpha, beta, bias]
    points = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    x, w, a, b, shift = points
    filters = prep.weight_prep(w, a, b, ctx.eps, not ctx.split, x.dtype, True, ctx.geometry[-1])
    output = conv.conv2d(x, filters, shift, a if ctx.split else None, *ctx.geometry, ctx.relu, ctx.precision, ctx.auto)
    wanted = [i for i in range(5) if ctx.needs_input_grad[i]]
    found = torch.autograd.grad(output, [points[i] for i in wanted], grad, create_graph=True, allow_unused=True)
    gradients = dict(zip(wanted, found, strict=True))
    return *(gradients.get(i) for i in range(5)), *(None,) * 9


register_gradient("dirac_conv2d", _backward, _setup)


@register_flop_formula(torch.ops.triton_dirac.dirac_conv2d)
def _flops(image_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return conv.flops(out_shape[0], weight_shape)


class _DiracConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        output = _run(*arguments)
        _setup(ctx, arguments, output)
        return output[0]

    backward = staticmethod(_backward)


def dirac_conv2d(
    image, weight, alpha, beta, bias, eps, split, stride, padding, dilation, groups, relu, precision, auto
) -> Tensor:
    """relu?(conv(x, What) + bias), differentiable; arguments as ``triton_dirac.functional`` checked them."""
    geometry = (stride, padding, dilation, groups)
    arguments = (image, weight, alpha, beta, bias, eps, split, *geometry, relu, precision, auto)
    if torch.compiler.is_compiling() or not is_plain(image, weight, alpha, beta, bias):
        return _dirac_conv2d(*arguments)[0]
    return _DiracConv2d.apply(*arguments)
