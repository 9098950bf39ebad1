"""The Dirac convolution as one operator: preparation and convolution forward, all gradients backward.

It saves host time beside the two operators it is made of and gives the same bits: wgrad writes the GEMM's dtype, as
autograd would have it between two operators, so that ``prepared(model)``, which is made of two, changes no number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from triton_dirac.kernels.launch import Launch, recorded, replayable
from triton_dirac.ops import conv, prep
from triton_dirac.ops.register import GEOMETRY, define, is_plain, may_launch, register_autocast, register_gradient


class Settings(NamedTuple):
    """All of the operator's arguments that are not tensors, in its order; ``padding`` has four sides."""

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


def _run(image, weight, alpha, beta, bias, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    s = Settings(*arguments)
    filters, norm = prep.run(weight, alpha, beta, s.eps, not s.split, image.dtype, True, s.groups)
    identity = alpha if s.split else None
    output = conv.run(image, filters, bias, identity, *s.geometry, s.relu, s.precision, s.auto)
    return output, filters, norm


def _fake(image, weight, alpha, beta, bias, *arguments):
    s = Settings(*arguments)
    filters, norm = prep.fake(weight, alpha, beta, s.eps, not s.split, image.dtype, True, s.groups)
    output = conv.fake(image, filters, bias, alpha, *s.geometry, s.relu, s.precision, s.auto)
    return output, filters, norm


_dirac_conv2d = define(
    f"dirac_conv2d(Tensor image, Tensor weight, Tensor alpha, Tensor beta, Tensor? bias, float eps, bool split, "
    f"{GEOMETRY}, bool relu, str precision, bool auto) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
)


def _setup(ctx, inputs, output):
    image, weight, alpha, beta, bias, *arguments = inputs
    result, filters, norm = output
    ctx.settings = Settings(*arguments)
    ctx.save_for_backward(image, weight, alpha, beta, bias, filters, norm, result if ctx.settings.relu else None)
    ctx.mark_non_differentiable(filters, norm)


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
    output = conv.conv2d(x, filters, bias, a if s.split else None, *s.geometry, s.relu, s.precision, s.auto)
    wanted = [i for i in range(5) if ctx.needs_input_grad[i]]
    found = torch.autograd.grad(output, [points[i] for i in wanted], grad, create_graph=True, allow_unused=True)
    gradients = dict(zip(wanted, found, strict=True))
    return tuple(gradients.get(i) for i in range(5))


def _backward(ctx, grad, *_):
    return *_gradients(ctx, grad), *(None,) * len(Settings._fields)


register_gradient("dirac_conv2d", _backward, _setup)
register_autocast("dirac_conv2d", _dirac_conv2d, lambda dtype, image, *rest: (image.to(dtype), *rest))


@register_flop_formula(torch.ops.triton_dirac.dirac_conv2d)
def _flops(image_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return conv.flops(out_shape[0], weight_shape)


# --- eager entry points -----------------------------------------------------------------------------------


class SteadyLayer:
    """A layer's launches as they were in an earlier call, without the tensors.

    Checking and planning cost the host several times what launching does, and a training step repeats its few
    layers. A replay is right for tensors of the same shapes, strides, dtypes and device.
    """

    def __init__(self, settings: Settings, launches: list, outputs: tuple[Tensor, ...]) -> None:
        self.settings = settings
        self.launches = launches
        filters, norm, output = outputs
        self.filters = filters.shape, filters.stride()
        self.norm = norm.shape, norm.dtype
        self.output = output.shape, output.stride()

    @classmethod
    def of(cls, settings: Settings, launches: list[Launch], inputs, outputs) -> SteadyLayer | None:
        """None where a call cannot be replayed: it copied a tensor, tuned a kernel, took cuDNN or a descriptor."""
        steps = [replayable(launch, (*inputs, *outputs)) for launch in launches]
        if len(steps) != 2 or None in steps:
            return None
        return cls(settings, steps, outputs)

    def run(self, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor, Tensor]:
        image: Tensor = inputs[0]  # type: ignore[assignment]  # its dtype and device are those of both
        filters = image.new_empty_strided(*self.filters)
        norm = image.new_empty(self.norm[0], dtype=self.norm[1])
        output = image.new_empty_strided(*self.output)
        tensors = (*inputs, filters, norm, output)
        for launch, binding in self.launches:
            launch.run(**{name: tensors[index] for name, index in binding})
        return filters, norm, output


class _DiracConv2d(torch.autograd.Function):
    """The operator below the dispatcher, in full or as a replay."""

    @staticmethod
    def forward(ctx, image, weight, alpha, beta, bias, settings, steady, found):
        inputs = (image, weight, alpha, beta, bias)
        if steady is not None:
            filters, norm, output = steady.run(inputs)
        else:
            with recorded() as launches:
                output, filters, norm = _run(*inputs, *settings)
            found.append(SteadyLayer.of(settings, launches, inputs, (filters, norm, output)))
        ctx.settings = settings
        ctx.save_for_backward(*inputs, filters, norm, output if settings.relu else None)
        return output

    @staticmethod
    def backward(ctx, grad):
        return *_gradients(ctx, grad), None, None, None


def dirac_conv2d(image, weight, alpha, beta, bias, settings: Settings) -> tuple[Tensor, SteadyLayer | None]:
    """(relu?(conv(x, What) + bias), how to do the same again): arguments as ``triton_dirac.functional`` checked."""
    if torch.compiler.is_compiling() or not is_plain(image, weight, alpha, beta, bias):
        return _dirac_conv2d(image, weight, alpha, beta, bias, *settings)[0], None
    found: list[SteadyLayer | None] = []
    output = _DiracConv2d.apply(image, weight, alpha, beta, bias, settings, None, found)
    return output, found[0]


# autograd.Function.apply without its search for functorch's wrappers: is_plain has excluded them.
_apply = super(torch.autograd.Function, _DiracConv2d).apply


def replay(tensors: tuple[Tensor | None, ...], steady: SteadyLayer) -> Tensor:
    """``dirac_conv2d`` again, for ordinary tensors of the same shapes, strides, dtypes and device."""
    return _apply(*tensors, steady.settings, steady, None)
