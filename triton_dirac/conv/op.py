"""Operators of the convolution: conv2d with its epilogues, dgrad and wgrad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from triton_dirac.conv import torch_backend
from triton_dirac.conv.dgrad import dgrad
from triton_dirac.conv.fprop import fprop
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.wgrad import wgrad
from triton_dirac.identity_term import diagonal
from triton_dirac.runtime.autotune import choose
from triton_dirac.runtime.register import (
    GEOMETRY,
    define,
    may_launch,
    register_autocast,
    register_gradient,
    short_cut,
    twin_gradient,
)
from triton_dirac.runtime.replay import outputs_of
from triton_dirac.runtime.targets import target_of

Run = Callable[[], Tensor]


class ConvSettings(NamedTuple):
    """All of ``conv2d``'s arguments that are not tensors, in the operator's order; ``padding`` has four sides.

    ``auto``: whether a pass may take torch's convolution (cuDNN) instead, where that was measured to be faster.
    """

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    relu: bool
    precision: str
    auto: bool

    @property
    def geometry(self) -> tuple[Any, Any, Any, Any]:
        return self[:4]


@lru_cache(maxsize=4096)
def _problem(image_shape, weight_shape, stride, padding, dilation, groups) -> ConvProblem:
    (n, c, h, w), (k, _, r, s) = image_shape, weight_shape
    return ConvProblem(n, c, h, w, k, r, s, stride, padding, dilation, groups)


def problem_of(
    image_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> ConvProblem:
    """The (cached) problem; ``padding`` is (top, bottom, left, right)."""
    geometry = tuple(stride), tuple(padding), tuple(dilation), groups
    return _problem(tuple(image_shape), tuple(weight_shape), *geometry)


def symbolic_problem(image_shape, weight_shape, stride, padding, dilation, groups) -> ConvProblem:
    """The same for symbolic sizes, which must not be kept in a cache."""
    geometry = tuple(stride), tuple(padding), tuple(dilation), groups
    return _problem.__wrapped__(tuple(image_shape), tuple(weight_shape), *geometry)


def _channels_last(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def _launched_precision(precision: str, like: Tensor) -> str:
    """What tl.dot is told. "default" is read when a kernel is launched, as torch does for its own."""
    if like.dtype != torch.float32:
        return "ieee"
    if precision == "default":
        own = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        precision = "tf32" if own == "tf32" else "ieee"
    return target_of(like.device).precision(precision)


def _fastest(
    what: str, problem: ConvProblem, image: Tensor, precision: str, auto: bool, ours: Run, torchs: Run
) -> Tensor:
    """ours(), or torchs() (cuDNN) where ``auto`` may choose and it was measured to be faster for this problem.

    torch multiplies as its own switch says, so it is a candidate only where that is the precision asked for.
    """
    if not auto or precision != _launched_precision("default", image):
        return ours()
    names = {"triton": ours, "torch": torchs}
    arguments = (f"{what} backend", problem, image.dtype, image.device, precision)
    return names[choose(*arguments, candidates=lambda: names, default="triton")]()


def run(image, weight, bias, alpha, stride, padding, dilation, groups, relu, precision, auto):
    problem = problem_of(image.shape, weight.shape, stride, padding, dilation, groups)
    precision = _launched_precision(precision, image)

    def ours() -> Tensor:
        return fprop(image, weight, bias, alpha, problem, relu=relu, precision=precision)

    def torchs() -> Tensor:
        native = image.contiguous(memory_format=torch.channels_last)
        return torch_backend.conv2d(native, weight, bias, alpha, problem, relu=relu)

    what = "conv_fprop" + "".join(f"+{name}" for name, on in (("alpha", alpha is not None), ("relu", relu)) if on)
    return _fastest(what, problem, image, precision, auto, ours, torchs)


def fake(image, weight, bias, alpha, stride, padding, dilation, groups, relu, precision, auto):
    problem = symbolic_problem(image.shape, weight.shape, stride, padding, dilation, groups)
    return _channels_last(problem.output_shape, image)


def dgrad_run(grad, weight, alpha, image_shape, stride, padding, dilation, groups, precision, auto):
    problem = problem_of(image_shape, weight.shape, stride, padding, dilation, groups)
    precision = _launched_precision(precision, grad)

    def ours() -> Tensor:
        return dgrad(grad, weight, alpha, problem, precision=precision)

    def torchs() -> Tensor:
        native = grad.contiguous(memory_format=torch.channels_last)
        return torch_backend.conv_dgrad(native, weight, alpha, problem)

    return _fastest("conv_dgrad" if alpha is None else "conv_dgrad+alpha", problem, grad, precision, auto, ours, torchs)


def _dgrad_fake(grad, weight, alpha, image_shape, stride, padding, dilation, groups, precision, auto):
    return _channels_last(image_shape, grad)


def _dgrad_twin(grad, weight, alpha, image_shape, stride, padding, dilation, groups, precision, auto):
    problem = symbolic_problem(image_shape, weight.shape, stride, padding, dilation, groups)
    return torch_backend.conv_dgrad(grad, weight, alpha, problem)


def wgrad_run(grad, image, weight_shape, dtype, stride, padding, dilation, groups, precision, auto):
    problem = problem_of(image.shape, weight_shape, stride, padding, dilation, groups)
    precision = _launched_precision(precision, grad)

    def ours() -> Tensor:
        return wgrad(grad, image, problem, dtype=dtype, precision=precision)

    def torchs() -> Tensor:
        dy, x = (t.contiguous(memory_format=torch.channels_last) for t in (grad, image))
        return torch_backend.conv_wgrad(dy, x, problem).to(dtype)

    return _fastest("conv_wgrad", problem, grad, precision, auto, ours, torchs)


def _wgrad_fake(grad, image, weight_shape, dtype, stride, padding, dilation, groups, precision, auto):
    return _channels_last(weight_shape, grad, dtype)


def _wgrad_twin(grad, image, weight_shape, dtype, stride, padding, dilation, groups, precision, auto):
    problem = symbolic_problem(image.shape, weight_shape, stride, padding, dilation, groups)
    return torch_backend.conv_wgrad(grad, image, problem).to(dtype)


_conv2d_op = define(
    f"conv2d(Tensor image, Tensor weight, Tensor? bias, Tensor? alpha, {GEOMETRY}, bool relu, "
    "str precision, bool auto) -> Tensor",
    run,
    fake,
)
conv_dgrad = define(
    f"conv_dgrad(Tensor grad, Tensor weight, Tensor? alpha, SymInt[] image_shape, {GEOMETRY}, "
    "str precision, bool auto) -> Tensor",
    dgrad_run,
    _dgrad_fake,
)
conv_wgrad = define(
    f"conv_wgrad(Tensor grad, Tensor image, SymInt[] weight_shape, ScalarType dtype, {GEOMETRY}, "
    "str precision, bool auto) -> Tensor",
    wgrad_run,
    _wgrad_fake,
)


def _conv_setup(ctx, inputs, output):
    image, weight, bias, alpha, *settings = inputs
    _keep(ctx, image, weight, bias, alpha, ConvSettings(*settings), output)


def _keep(ctx, image, weight, bias, alpha, settings: ConvSettings, output) -> None:
    """What the backward needs."""
    ctx.settings = settings
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(image, weight, alpha, output if settings.relu else None)


def _conv_gradients(ctx, grad):
    """Of image, weight, bias and alpha."""
    s = ctx.settings
    image, weight, alpha, output = ctx.saved_tensors
    need_image, need_weight, need_bias, need_alpha = ctx.needs_input_grad[:4]
    if s.relu:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    direct = may_launch(grad, image, weight)
    rest = (*s.geometry, s.precision, s.auto)
    dimage = dweight = dbias = dalpha = None
    if need_image:
        dimage = (dgrad_run if direct else conv_dgrad)(grad, weight, alpha, image.shape, *rest)
    if need_weight:
        dweight = (wgrad_run if direct else conv_wgrad)(grad, image, weight.shape, weight.dtype, *rest)
    if need_bias:
        dbias = bias_gradient(grad, ctx.bias_dtype)
    if need_alpha:
        dalpha = _alpha_gradient(grad, image, weight, alpha, dweight, s.geometry)
    return dimage, dweight, dbias, dalpha


def _conv_backward(ctx, grad):
    return *_conv_gradients(ctx, grad), *(None,) * len(ConvSettings._fields)


def bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over pixels, in float32."""
    return grad.sum((0, 2, 3), dtype=torch.float32).to(dtype)


def _alpha_gradient(grad, image, weight, alpha, dweight, geometry) -> Tensor:
    """dalpha_k = sum over pixels of dL/dy[k] * x[centre tap]: the diagonal centre of wgrad, where there is one."""
    problem = symbolic_problem(image.shape, weight.shape, *geometry)
    groups, per_group = problem.groups, problem.identity_per_group
    if dweight is not None:
        entries = diagonal(dweight, groups).float()
    else:
        centre = torch_backend.centre_tap(image, problem).unflatten(1, (groups, -1))[:, :, :per_group]
        entries = (grad.unflatten(1, (groups, -1))[:, :, :per_group].float() * centre).sum((0, 3, 4))
    if alpha.shape[0] == 1:
        return entries.sum().view(1).to(alpha.dtype)
    rest = problem.K // groups - per_group
    return torch.nn.functional.pad(entries, (0, rest)).flatten().to(alpha.dtype)


register_gradient("conv2d", _conv_backward, _conv_setup)
register_gradient("conv_dgrad", *twin_gradient(_dgrad_twin))
register_gradient("conv_wgrad", *twin_gradient(_wgrad_twin))


def flops(output_shape, weight_shape) -> int:
    n, _, p, q = output_shape
    k, c, r, s = weight_shape
    return 2 * n * p * q * k * c * r * s


@register_flop_formula(torch.ops.triton_dirac.conv2d)
def _conv_flops(image_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return flops(out_shape, weight_shape)


@register_flop_formula(torch.ops.triton_dirac.conv_dgrad)
def _dgrad_flops(grad_shape, weight_shape, *args, **kwargs) -> int:
    return flops(grad_shape, weight_shape)


@register_flop_formula(torch.ops.triton_dirac.conv_wgrad)
def _wgrad_flops(grad_shape, image_shape, weight_shape, *args, **kwargs) -> int:
    return flops(grad_shape, weight_shape)


def _conv_autocast(dtype: torch.dtype, image, weight, *rest) -> tuple:
    return image.to(dtype), weight.to(dtype), *rest


register_autocast("conv2d", _conv2d_op, _conv_autocast)


def _outputs(*arguments) -> tuple[Tensor]:
    return (run(*arguments),)


class _Conv2d(torch.autograd.Function):
    """The operator below the dispatcher, in full or as a replay."""

    @staticmethod
    def forward(ctx, image, weight, bias, alpha, settings, options, replay):
        tensors = (image, weight, bias, alpha)
        (output,) = outputs_of(_outputs, tensors, settings, options, replay, usual=1)
        _keep(ctx, *tensors, settings, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        return *_conv_gradients(ctx, grad), None, None, None


# relu?(conv(x, w) + bias + alpha * x[centre tap]), differentiable; tensors are (x, w, bias, alpha), as checked.
conv2d, replay_conv2d = short_cut(_Conv2d, _conv2d_op)
