"""Operators of the convolution: conv2d with its epilogues, dgrad and wgrad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from triton_dirac.conv import torch_backend
from triton_dirac.conv.dgrad import dgrad
from triton_dirac.conv.direct import channels_last
from triton_dirac.conv.epilogue import (
    ACTIVATIONS,
    Epilogue,
    alpha_gradient,
    bias_gradient,
    convolves_again,
    keeps_output,
)
from triton_dirac.conv.fprop import fprop
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.wgrad import wgrad
from triton_dirac.runtime.autotune import choose
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
    twin_gradient,
)
from triton_dirac.runtime.targets import target_of


class ConvSettings(NamedTuple):
    """All of ``conv2d``'s arguments that are not tensors, in the operator's order; ``padding`` has four sides.

    ``auto``: whether a pass may take torch's convolution (cuDNN) instead, where that was measured to be faster.
    """

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str | None
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
    what: str,
    problem: ConvProblem,
    tensors: Sequence[Tensor | None],
    precision: str,
    auto: bool,
    steps: Plan,
    ours: Callable[[Plan], Tensor],
    torchs: Callable[..., Tensor],
) -> Tensor:
    """ours(steps), or torchs(*tensors) (cuDNN) where ``auto`` may choose and it was measured to be faster.

    torch multiplies as its own switch says, so it is a candidate only where that is the precision asked for.
    """
    first: Tensor = tensors[0]  # type: ignore[assignment]
    if auto and precision == _launched_precision("default", first):
        candidates = {"triton": lambda: ours(Plan()), "torch": lambda: torchs(*tensors)}
        arguments = (f"{what} backend", problem, first.dtype, first.device, precision)
        if choose(*arguments, candidates=lambda: candidates, default="triton") == "torch":
            return steps.do(torchs, *tensors)
    return ours(steps)


def plan_conv(
    steps: Plan, image, weight, bias, alpha, stride, padding, dilation, groups, activation, precision, auto
) -> Tensor:
    problem = problem_of(image.shape, weight.shape, stride, padding, dilation, groups)
    precision = _launched_precision(precision, image)
    epilogue = Epilogue(bias, alpha, activation)

    def ours(steps: Plan) -> Tensor:
        return fprop(image, weight, problem, epilogue, precision=precision, steps=steps)

    def torchs(image, weight, bias, alpha) -> Tensor:
        return torch_backend.conv2d(channels_last(image), weight, bias, alpha, problem, activation)

    what = f"conv_fprop{epilogue.label}"
    return _fastest(what, problem, (image, weight, bias, alpha), precision, auto, steps, ours, torchs)


def fake(image, weight, bias, alpha, stride, padding, dilation, groups, activation, precision, auto):
    problem = symbolic_problem(image.shape, weight.shape, stride, padding, dilation, groups)
    return _channels_last(problem.output_shape, image)


def plan_dgrad(
    steps: Plan, grad, weight, alpha, image_shape, stride, padding, dilation, groups, precision, auto
) -> Tensor:
    problem = problem_of(image_shape, weight.shape, stride, padding, dilation, groups)
    precision = _launched_precision(precision, grad)

    def ours(steps: Plan) -> Tensor:
        return dgrad(grad, weight, alpha, problem, precision=precision, steps=steps)

    def torchs(grad, weight, alpha) -> Tensor:
        return torch_backend.conv_dgrad(channels_last(grad), weight, alpha, problem)

    what = "conv_dgrad" if alpha is None else "conv_dgrad+alpha"
    return _fastest(what, problem, (grad, weight, alpha), precision, auto, steps, ours, torchs)


def _dgrad_fake(grad, weight, alpha, image_shape, stride, padding, dilation, groups, precision, auto):
    return _channels_last(image_shape, grad)


def _dgrad_twin(grad, weight, alpha, image_shape, stride, padding, dilation, groups, precision, auto):
    problem = symbolic_problem(image_shape, weight.shape, stride, padding, dilation, groups)
    return torch_backend.conv_dgrad(grad, weight, alpha, problem)


def plan_wgrad(
    steps: Plan, grad, image, weight_shape, dtype, stride, padding, dilation, groups, precision, auto
) -> Tensor:
    problem = problem_of(image.shape, weight_shape, stride, padding, dilation, groups)
    precision = _launched_precision(precision, grad)

    def ours(steps: Plan) -> Tensor:
        return wgrad(grad, image, problem, dtype=dtype, precision=precision, steps=steps)

    def torchs(grad, image) -> Tensor:
        return torch_backend.conv_wgrad(channels_last(grad), channels_last(image), problem).to(dtype)

    return _fastest("conv_wgrad", problem, (grad, image), precision, auto, steps, ours, torchs)


def _wgrad_fake(grad, image, weight_shape, dtype, stride, padding, dilation, groups, precision, auto):
    return _channels_last(weight_shape, grad, dtype)


def _wgrad_twin(grad, image, weight_shape, dtype, stride, padding, dilation, groups, precision, auto):
    problem = symbolic_problem(image.shape, weight_shape, stride, padding, dilation, groups)
    return torch_backend.conv_wgrad(grad, image, problem).to(dtype)


def _plan_outputs(steps: Plan, *arguments) -> tuple[Tensor]:
    return (plan_conv(steps, *arguments),)


_planned = Planned(_plan_outputs, lambda *arguments: _plan_gradients(*arguments))
conv2d_op = define(
    f"conv2d(Tensor image, Tensor weight, Tensor? bias, Tensor? alpha, {GEOMETRY}, str? activation, "
    "str precision, bool auto) -> Tensor",
    planned_run(_planned, tensors=4),
    fake,
)
conv_dgrad = define(
    f"conv_dgrad(Tensor grad, Tensor weight, Tensor? alpha, SymInt[] image_shape, {GEOMETRY}, "
    "str precision, bool auto) -> Tensor",
    planned_run(Planned(lambda *arguments: (plan_dgrad(*arguments),)), tensors=3),
    _dgrad_fake,
)
conv_wgrad = define(
    f"conv_wgrad(Tensor grad, Tensor image, SymInt[] weight_shape, ScalarType dtype, {GEOMETRY}, "
    "str precision, bool auto) -> Tensor",
    planned_run(Planned(lambda *arguments: (plan_wgrad(*arguments),)), tensors=2),
    _wgrad_fake,
)


def _conv_setup(ctx, inputs, output):
    image, weight, bias, alpha, *settings = inputs
    _keep(ctx, image, weight, bias, alpha, ConvSettings(*settings), output)
    ctx.plan = None


def _keep(ctx, image, weight, bias, alpha, settings: ConvSettings, output) -> None:
    """What the backward needs."""
    ctx.settings = settings, None if bias is None else bias.dtype
    activation = settings.activation
    bias = bias if activation and convolves_again(activation) else None
    ctx.save_for_backward(image, weight, bias, alpha, output if activation and keeps_output(activation) else None)


def before_activation(do, conv2d, grad, image, weight, bias, alpha, output, s: ConvSettings) -> Tensor:
    """dL/dz of the sum z that the activation took, from dL/dy; ``do`` and ``conv2d`` as ``through`` gives them."""
    if s.activation is None:
        return grad
    at = output if keeps_output(s.activation) else conv2d(image, weight, bias, alpha, *s._replace(activation=None))
    return do(ACTIVATIONS[s.activation].gradient, grad, at)


def _plan_gradients(steps: Plan | None, grad, image, weight, bias, alpha, output, s: ConvSettings, bias_dtype, needed):
    """Of image, weight, bias and alpha, where needed; without ``steps`` by operators, for whoever looks on."""
    do, conv2d, dgrad, wgrad = through(
        steps, (plan_conv, conv2d_op), (plan_dgrad, conv_dgrad), (plan_wgrad, conv_wgrad)
    )
    need_image, need_weight, need_bias, need_alpha = needed
    grad = before_activation(do, conv2d, grad, image, weight, bias, alpha, output, s)
    rest = (*s.geometry, s.precision, s.auto)
    dimage = dweight = dbias = dalpha = None
    if need_image:
        dimage = dgrad(grad, weight, alpha, tuple(image.shape), *rest)
    if need_weight:
        dweight = wgrad(grad, image, tuple(weight.shape), weight.dtype, *rest)
        if (
            steps
            and dweight.stride() != weight.stride()
            and tuple(weight.shape[2:]) == (1, 1)
            and channels_last(weight) is weight
        ):
            # The same memory, and the strides that torch's own gradient would have: DDP insists.
            dweight = do(partial(torch.as_strided, size=tuple(weight.shape), stride=weight.stride()), dweight)
    if need_bias:
        dbias = do(partial(bias_gradient, dtype=bias_dtype), grad)
    if need_alpha:
        problem = symbolic_problem(image.shape, weight.shape, *s.geometry)
        dalpha = do(partial(alpha_gradient, problem=problem), grad, image, alpha, dweight)
    return dimage, dweight, dbias, dalpha


def _conv_gradients(ctx, grad):
    tensors, needed = (grad, *ctx.saved_tensors), ctx.needs_input_grad[:4]
    found = planned_gradients(ctx, tensors, needed)
    return _plan_gradients(None, *tensors, *ctx.settings, needed) if found is None else found


def _conv_backward(ctx, grad):
    return *_conv_gradients(ctx, grad), *(None,) * len(ConvSettings._fields)


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


register_autocast("conv2d", conv2d_op, _conv_autocast)


class _Conv2d(torch.autograd.Function):
    """The operator below the dispatcher."""

    @staticmethod
    def forward(ctx, image, weight, bias, alpha, known, unknown):
        tensors = (image, weight, bias, alpha)
        (output,), plan = _planned.outputs_and_plan(tensors, known, unknown)
        ctx.plan = plan
        _keep(ctx, *tensors, plan.settings, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        return *_conv_gradients(ctx, grad), None, None


# activation(conv(x, w) + bias + alpha * x[centre tap]), differentiable; tensors are (x, w, bias, alpha).
conv2d_again, conv2d = entry(_Conv2d, _planned, conv2d_op)
