"""The Triton kernels as PyTorch operators: ``torch.ops.triton_dirac.*``.

Each operator has an exact schema, a fake kernel (shapes without data, for torch.compile and export), a
gradient, an autocast rule and a FLOP formula, and is opaque to the compiler: eager, compiled and interpreted
runs all take the same path. Gradients of gradients come from the operator's twin in ``torch_backend``.

The eager entry points at the end of the file skip PyTorch's dispatcher, which costs more host time than the
launch, when nothing needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from triton_dirac import torch_backend
from triton_dirac.kernels.conv_dgrad import dgrad
from triton_dirac.kernels.conv_fprop import fprop
from triton_dirac.kernels.conv_wgrad import wgrad
from triton_dirac.kernels.weight_prep import empty_filters, norm_dtype
from triton_dirac.kernels.weight_prep import weight_prep as launch_weight_prep
from triton_dirac.kernels.weight_prep import weight_prep_backward as launch_weight_prep_backward
from triton_dirac.kernels.weight_prep_multi import weight_prep_multi, weight_prep_multi_backward
from triton_dirac.problem import ConvProblem
from triton_dirac.tuning.picks import choose

NAMESPACE = "triton_dirac"
_PLAIN = (Tensor, torch.nn.Parameter)
_library = torch.library.Library(NAMESPACE, "DEF")

_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"


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


def _symbolic_problem(image_shape, weight_shape, stride, padding, dilation, groups) -> ConvProblem:
    """The same for symbolic sizes, which must not be kept in a cache."""
    geometry = tuple(stride), tuple(padding), tuple(dilation), groups
    return _problem.__wrapped__(tuple(image_shape), tuple(weight_shape), *geometry)


def _define(signature: str, run: Callable, fake: Callable) -> Callable:
    name = signature.split("(")[0]
    _library.define(signature, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CUDA", "CPU"):
        _library.impl(name, run, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _twin_gradient(twin: Callable) -> tuple[Callable, Callable]:
    """(backward, setup_context) of an operator whose gradient is that of a torch function of equal arguments."""

    def setup_context(ctx, inputs, output):
        ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.rest = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))

    def backward(ctx, *grads):
        with torch.enable_grad():
            arguments = list(ctx.rest)
            for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
                arguments[place] = tensor.view_as(tensor)  # a new node: gradients stop here, not at a leaf
            outputs = twin(*arguments)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            wanted = [place for place in ctx.places if ctx.needs_input_grad[place]]
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad and g is not None]
            found = torch.autograd.grad(
                [o for o, _ in pairs],
                [arguments[place] for place in wanted],
                [g for _, g in pairs],
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
        result: list[Tensor | None] = [None] * len(arguments)
        for place, gradient in zip(wanted, found, strict=True):
            result[place] = gradient
        return tuple(result)

    return backward, setup_context


def _register_gradient(name: str, backward: Callable, setup_context: Callable) -> None:
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)


def _channels_last(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the tensors are ordinary ones and nothing is tracing: the dispatcher has nothing to add."""
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)


# --- weight preparation -----------------------------------------------------------------------------------


def _prep_run(weight, alpha, beta, eps, identity, dtype, channels_last, groups):
    return launch_weight_prep(
        weight,
        alpha,
        beta,
        eps=eps,
        identity=identity,
        dtype=dtype,
        channels_last=channels_last,
        groups=groups,
    )


def _prep_fake(weight, alpha, beta, eps, identity, dtype, channels_last, groups):
    out = empty_filters(weight.shape, channels_last, dtype, weight.device)
    return out, weight.new_empty((weight.shape[0],), dtype=norm_dtype(weight.dtype))


def _prep_backward_run(grad, weight, alpha, beta, norm, eps, identity, groups):
    return launch_weight_prep_backward(grad, weight, alpha, beta, norm, eps=eps, identity=identity, groups=groups)


def _prep_backward_fake(grad, weight, alpha, beta, norm, eps, identity, groups):
    return torch.empty_like(weight), torch.empty_like(alpha), torch.empty_like(beta)


def _prep_backward_twin(grad, weight, alpha, beta, norm, eps, identity, groups):
    norm = torch_backend.row_norms(weight)  # the saved one is a constant; its dependence on W is part of this
    return torch_backend.dirac_weight_backward(
        grad, weight, alpha, beta, norm, eps=eps, identity=identity, groups=groups
    )


_weight_prep = _define(
    "weight_prep(Tensor weight, Tensor alpha, Tensor beta, float eps, bool identity, ScalarType dtype, "
    "bool channels_last, SymInt groups) -> (Tensor, Tensor)",
    _prep_run,
    _prep_fake,
)
_weight_prep_backward = _define(
    "weight_prep_backward(Tensor grad, Tensor weight, Tensor alpha, Tensor beta, Tensor norm, float eps, "
    "bool identity, SymInt groups) -> (Tensor, Tensor, Tensor)",
    _prep_backward_run,
    _prep_backward_fake,
)


def _prep_setup(ctx, inputs, output):
    weight, alpha, beta, ctx.eps, ctx.identity, _, _, ctx.groups = inputs
    ctx.save_for_backward(weight, alpha, beta, output[1])
    ctx.mark_non_differentiable(output[1])


def _prep_backward(ctx, grad, _):
    weight, alpha, beta, norm = ctx.saved_tensors
    backward = _prep_backward_run if _may_launch(grad, weight) else _weight_prep_backward
    gradients = backward(grad, weight, alpha, beta, norm, ctx.eps, ctx.identity, ctx.groups)
    return *gradients, None, None, None, None, None


_register_gradient("weight_prep", _prep_backward, _prep_setup)
_register_gradient("weight_prep_backward", *_twin_gradient(_prep_backward_twin))


# --- convolution ------------------------------------------------------------------------------------------


def _launched_precision(precision: str, dtype: torch.dtype) -> str:
    """What tl.dot is told. "default" is read when a kernel is launched, as torch does for its own."""
    if dtype != torch.float32:
        return "ieee"
    if precision != "default":
        return precision
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def _fastest(kernel: str, problem: ConvProblem, image: Tensor, precision: str, auto: bool, ours, torchs) -> Tensor:
    """ours(), or torchs() (cuDNN) where ``auto`` may choose and it was measured to be faster for this problem."""
    if not auto or precision not in ("ieee", _launched_precision("default", image.dtype)):
        return ours()
    names = {"triton": ours, "torch": torchs}
    name = choose(
        f"{kernel} backend",
        problem,
        image.dtype,
        image.device,
        precision,
        candidates=lambda: names,
        default="triton",
    )
    return names[name]()


def _conv_run(image, weight, bias, alpha, stride, padding, dilation, groups, relu, precision, auto):
    problem = problem_of(image.shape, weight.shape, stride, padding, dilation, groups)
    precision = _launched_precision(precision, image.dtype)

    def ours() -> Tensor:
        return fprop(image, weight, bias, alpha, problem, relu=relu, precision=precision)

    def torchs() -> Tensor:
        native = image.contiguous(memory_format=torch.channels_last)
        return torch_backend.conv2d(native, weight, bias, alpha, problem, relu=relu)

    return _fastest("conv_fprop", problem, image, precision, auto, ours, torchs)


def _conv_fake(image, weight, bias, alpha, stride, padding, dilation, groups, relu, precision, auto):
    problem = _symbolic_problem(image.shape, weight.shape, stride, padding, dilation, groups)
    return _channels_last(problem.output_shape, image)


def _dgrad_run(grad, weight, alpha, image_shape, stride, padding, dilation, groups, precision, auto):
    problem = problem_of(image_shape, weight.shape, stride, padding, dilation, groups)
    precision = _launched_precision(precision, grad.dtype)

    def ours() -> Tensor:
        return dgrad(grad, weight, alpha, problem, precision=precision)

    def torchs() -> Tensor:
        native = grad.contiguous(memory_format=torch.channels_last)
        return torch_backend.conv_dgrad(native, weight, alpha, problem)

    return _fastest("conv_dgrad", problem, grad, precision, auto, ours, torchs)


def _dgrad_fake(grad, weight, alpha, image_shape, stride, padding, dilation, groups, precision, auto):
    return _channels_last(image_shape, grad)


def _dgrad_twin(grad, weight, alpha, image_shape, stride, padding, dilation, groups, precision, auto):
    problem = _symbolic_problem(image_shape, weight.shape, stride, padding, dilation, groups)
    return torch_backend.conv_dgrad(grad, weight, alpha, problem)


def _wgrad_run(grad, image, weight_shape, dtype, stride, padding, dilation, groups, precision, auto):
    problem = problem_of(image.shape, weight_shape, stride, padding, dilation, groups)
    precision = _launched_precision(precision, grad.dtype)

    def ours() -> Tensor:
        return wgrad(grad, image, problem, dtype=dtype, precision=precision)

    def torchs() -> Tensor:
        native = (t.contiguous(memory_format=torch.channels_last) for t in (grad, image))
        return torch_backend.conv_wgrad(*native, problem).to(dtype)

    return _fastest("conv_wgrad", problem, grad, precision, auto, ours, torchs)


def _wgrad_fake(grad, image, weight_shape, dtype, stride, padding, dilation, groups, precision, auto):
    return _channels_last(weight_shape, grad, dtype)


def _wgrad_twin(grad, image, weight_shape, dtype, stride, padding, dilation, groups, precision, auto):
    problem = _symbolic_problem(image.shape, weight_shape, stride, padding, dilation, groups)
    return torch_backend.conv_wgrad(grad, image, problem).to(dtype)


_conv2d = _define(
    f"conv2d(Tensor image, Tensor weight, Tensor? bias, Tensor? alpha, {_GEOMETRY}, bool relu, "
    "str precision, bool auto) -> Tensor",
    _conv_run,
    _conv_fake,
)
_conv_dgrad = _define(
    f"conv_dgrad(Tensor grad, Tensor weight, Tensor? alpha, SymInt[] image_shape, {_GEOMETRY}, "
    "str precision, bool auto) -> Tensor",
    _dgrad_run,
    _dgrad_fake,
)
_conv_wgrad = _define(
    f"conv_wgrad(Tensor grad, Tensor image, SymInt[] weight_shape, ScalarType dtype, {_GEOMETRY}, "
    "str precision, bool auto) -> Tensor",
    _wgrad_run,
    _wgrad_fake,
)


def _conv_setup(ctx, inputs, output):
    image, weight, bias, alpha, *ctx.geometry, ctx.relu, ctx.precision, ctx.auto = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(image, weight, alpha, output if ctx.relu else None)


def _conv_backward(ctx, grad):
    image, weight, alpha, output = ctx.saved_tensors
    need_image, need_weight, need_bias, need_alpha = ctx.needs_input_grad[:4]
    if ctx.relu:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    direct = _may_launch(grad, image, weight)
    dimage = dweight = dbias = dalpha = None
    if need_image:
        run = _dgrad_run if direct else _conv_dgrad
        dimage = run(grad, weight, alpha, image.shape, *ctx.geometry, ctx.precision, ctx.auto)
    if need_weight:
        run = _wgrad_run if direct else _conv_wgrad
        dweight = run(grad, image, weight.shape, weight.dtype, *ctx.geometry, ctx.precision, ctx.auto)
    if need_bias:
        dbias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype)
    if need_alpha:
        dalpha = _alpha_gradient(grad, image, weight, alpha, dweight, ctx.geometry)
    return dimage, dweight, dbias, dalpha, None, None, None, None, None, None, None


def _alpha_gradient(grad, image, weight, alpha, dweight, geometry) -> Tensor:
    """dalpha_k = sum over pixels of dL/dy[k] * x[centre tap]: the diagonal centre of wgrad, where there is one."""
    problem = _symbolic_problem(image.shape, weight.shape, *geometry)
    groups, per_group = problem.groups, problem.identity_per_group
    if dweight is not None:
        entries = torch_backend.diagonal(dweight, groups).float()
    else:
        centre = torch_backend.centre_tap(image, problem).unflatten(1, (groups, -1))[:, :, :per_group]
        entries = (grad.unflatten(1, (groups, -1))[:, :, :per_group].float() * centre).sum((0, 3, 4))
    if alpha.shape[0] == 1:
        return entries.sum().view(1).to(alpha.dtype)
    rest = problem.K // groups - per_group
    return torch.nn.functional.pad(entries, (0, rest)).flatten().to(alpha.dtype)


_register_gradient("conv2d", _conv_backward, _conv_setup)
_register_gradient("conv_dgrad", *_twin_gradient(_dgrad_twin))
_register_gradient("conv_wgrad", *_twin_gradient(_wgrad_twin))


def _flops(output_shape, weight_shape) -> int:
    n, _, p, q = output_shape
    k, c, r, s = weight_shape
    return 2 * n * p * q * k * c * r * s


@register_flop_formula(torch.ops.triton_dirac.conv2d)
def _conv_flops(image_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return _flops(out_shape, weight_shape)


@register_flop_formula(torch.ops.triton_dirac.conv_dgrad)
def _dgrad_flops(grad_shape, weight_shape, *args, **kwargs) -> int:
    return _flops(grad_shape, weight_shape)


@register_flop_formula(torch.ops.triton_dirac.conv_wgrad)
def _wgrad_flops(grad_shape, image_shape, weight_shape, *args, **kwargs) -> int:
    return _flops(grad_shape, weight_shape)


def _autocast(device_type: str) -> Callable:
    """conv2d under autocast: image, weight and bias in the autocast dtype, alpha as it is (it scales in float32)."""
    key = getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}")
    guard = torch._C.DispatchKeySet(key)

    def conv2d_autocast(image, weight, bias, alpha, *rest):
        dtype = torch.get_autocast_dtype(device_type)
        image, weight = image.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        with torch._C._ExcludeDispatchKeyGuard(guard):
            return _conv2d(image, weight, bias, alpha, *rest)

    return conv2d_autocast


for _device_type in ("cuda", "cpu"):
    _library.impl("conv2d", _autocast(_device_type), f"Autocast{_device_type.upper()}")


# --- eager entry points -----------------------------------------------------------------------------------


def _may_launch(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be launched at once: no gradient is being recorded and nothing is tracing."""
    return not torch.is_grad_enabled() and is_plain(*tensors)


# Forward and setup in one method: with a separate setup_context, PyTorch 2.13 inspects forward's signature at each
# call, which took 180 of 240 us of host time.


class _WeightPrep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        output = _prep_run(*arguments)
        _prep_setup(ctx, arguments, output)
        return output

    backward = staticmethod(_prep_backward)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        output = _conv_run(*arguments)
        _conv_setup(ctx, arguments, output)
        return output

    backward = staticmethod(_conv_backward)


def weight_prep(weight, alpha, beta, eps, identity, dtype, channels_last, groups) -> Tensor:
    """The prepared weight, differentiable; arguments as ``triton_dirac.functional.dirac_weight`` checked them."""
    arguments = (weight, alpha, beta, eps, identity, dtype, channels_last, groups)
    if torch.compiler.is_compiling() or not is_plain(weight, alpha, beta):
        return _weight_prep(*arguments)[0]
    return _WeightPrep.apply(*arguments)[0]


def conv2d(image, weight, bias, alpha, stride, padding, dilation, groups, relu, precision, auto) -> Tensor:
    """relu?(conv(x, w) + bias + alpha * x[centre tap]), differentiable; ``padding`` has four sides.

    ``auto``: whether a pass may take torch's convolution (cuDNN) instead, where that was measured to be faster.
    """
    arguments = (image, weight, bias, alpha, stride, padding, dilation, groups, relu, precision, auto)
    if torch.compiler.is_compiling() or not is_plain(image, weight, bias, alpha):
        return _conv2d(*arguments)
    return _Conv2d.apply(*arguments)


class _WeightPreps(torch.autograd.Function):
    """All layers of a network: one launch forward, one backward. tensors: weight, alpha, beta of each in turn."""

    @staticmethod
    def forward(ctx, eps, identity, dtype, channels_last, groups, *tensors):
        outputs, norms = weight_prep_multi(
            _layers(tensors),
            eps=eps,
            identity=identity,
            dtype=dtype,
            channels_last=channels_last,
            groups=groups,
        )
        ctx.eps, ctx.identity, ctx.groups = eps, identity, groups
        ctx.save_for_backward(*tensors, norms)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):
        *tensors, norms = ctx.saved_tensors
        layers = _layers(tensors)
        if torch.is_grad_enabled():  # gradients of gradients: layer by layer, in operations torch differentiates
            gradients = [
                _prep_backward_twin(grad, *layer, None, ctx.eps, ctx.identity, group)
                for grad, layer, group in zip(grads, layers, ctx.groups, strict=True)
            ]
        else:
            gradients = weight_prep_multi_backward(
                grads, layers, norms, eps=ctx.eps, identity=ctx.identity, groups=ctx.groups
            )
        return None, None, None, None, None, *(gradient for layer in gradients for gradient in layer)


def _layers(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True))


def may_batch(layers: Sequence[tuple[Tensor, ...]]) -> bool:
    """Whether one launch may prepare all layers: addresses in a table mean nothing to a tracer."""
    return not torch.compiler.is_compiling() and is_plain(*(tensor for layer in layers for tensor in layer))


def weight_preps(layers, eps, identity, dtype, channels_last, groups) -> list[Tensor]:
    """Prepared weights of all layers; ``channels_last`` None keeps each weight's layout."""
    if not layers:
        return []
    tensors = [tensor for layer in layers for tensor in layer]
    return list(_WeightPreps.apply(eps, identity, dtype, channels_last, tuple(groups), *tensors))
