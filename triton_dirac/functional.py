"""The public functions: argument checks, choice of backend, and nothing else.

Every check comes before any work, names the argument and its value, and says what is accepted. TypeError is
for types and dtypes, ValueError for shapes and values, RuntimeError for a backend that cannot run here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from triton_dirac import torch_backend
from triton_dirac.problem import ConvProblem
from triton_dirac.tracing import is_plain, is_transformed

try:
    from triton_dirac import ops
    from triton_dirac.kernels.launch import INTERPRETED
except ModuleNotFoundError as error:  # Triton is published for Linux only; all else works without it
    if error.name != "triton":
        raise
    ops, INTERPRETED = None, False  # type: ignore[assignment]

BACKENDS = ("auto", "triton", "torch")
FORMS = ("split", "materialised")
ACTIVATIONS = (None, "relu")
PRECISIONS = ("ieee", "tf32", "tf32x3")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PREP_DTYPES = (*TRITON_DTYPES, torch.float64)

IntOrPair = int | Sequence[int]


def dirac_weight(
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    eps: float = 1e-12,
    identity: bool = True,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Prepare a Dirac convolution's filter bank: What = diag(alpha) * I + diag(beta) * W / max(||W_k||_2, eps).

    Normalisation, scaling, identity, cast and layout change happen in one pass over W, in float32 (float64 for
    float64); rounding happens once, at the end. Differentiable in weight, alpha and beta, twice.

    Args:
        weight: W, shape (K, C / groups, *window) with a window of 1, 2 or 3 dimensions.
        alpha, beta: shape (K,) or (1,), in the weight's dtype or float32.
        eps: smallest norm to divide by.
        identity: whether to add diag(alpha) * I; without it the result is the split form's beta * u.
        dtype: of the result; the weight's by default.
        memory_format: of the result, ``torch.contiguous_format`` or ``channels_last`` (``channels_last_3d``);
            the weight's own by default.
        groups: as the convolution's; I is ``torch.nn.init.dirac_``'s.
        backend: "triton", "torch", or "auto": Triton on a GPU, torch elsewhere.

    Raises:
        TypeError, ValueError: an argument is not as above. RuntimeError: "triton" cannot run here.

    Source: DiracNets, arXiv 1706.00388.
    """
    _check_dirac_arguments(weight, alpha, beta, eps, groups, (3, 4, 5))
    dtype = weight.dtype if dtype is None else dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
    channels_last = _wants_channels_last(weight, memory_format)
    if use_triton(backend, weight.dtype, weight.device, PREP_DTYPES):
        return ops.weight_prep(weight, alpha, beta, eps, identity, dtype, channels_last, groups)
    return _weight_by_torch(weight, alpha, beta, eps, identity, dtype, channels_last, groups)


def _weight_by_torch(weight, alpha, beta, eps, identity, dtype, channels_last, groups) -> Tensor:
    prepared = torch_backend.dirac_weight(weight, alpha, beta, eps=eps, identity=identity, dtype=dtype, groups=groups)
    return prepared.contiguous(memory_format=_format(weight.dim(), channels_last))


def dirac_weights(
    layers: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    eps: float = 1e-12,
    identity: bool = True,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    groups: int | Sequence[int] = 1,
    backend: str = "auto",
) -> list[Tensor]:
    """``dirac_weight`` of every layer (weight, alpha, beta) of a network, in one launch; backward in another.

    The numbers are those of one call a layer. Shapes, window dimensions and dtypes may be mixed, devices may not.
    No host-device synchronisation; fit for capture in a CUDA graph. The results share one allocation. Under
    torch.compile, and for gradients of gradients, layers are prepared one by one.

    Args:
        layers: (weight, alpha, beta) of each layer, as ``dirac_weight``'s.
        eps, identity, dtype, backend: as ``dirac_weight``'s, for all layers.
        memory_format: ``torch.contiguous_format``, or ``torch.channels_last`` for windows of any number of
            dimensions; each weight's own by default.
        groups: one number for all layers, or one for each.

    Raises:
        As ``dirac_weight``; messages begin with the layer's index.
    """
    layers = list(layers)
    each = [groups] * len(layers) if isinstance(groups, int) else list(groups)
    if len(each) != len(layers):
        raise ValueError(f"groups must be an integer or one for each of {len(layers)} layers, got {groups!r}")
    if memory_format not in (None, torch.contiguous_format, torch.channels_last):
        raise ValueError(
            f"memory_format must be None, torch.contiguous_format or torch.channels_last, got {memory_format}"
        )
    for index, (layer, group) in enumerate(zip(layers, each, strict=True)):
        if len(layer) != 3:
            raise ValueError(f"layers[{index}] must be (weight, alpha, beta), got {len(layer)} items")
        try:
            _check_dirac_arguments(*layer, eps, group, (3, 4, 5))
            _check_same_device(**{"layers[0]'s weight": layers[0][0], "weight": layer[0]})
        except (TypeError, ValueError) as error:
            raise type(error)(f"layers[{index}]: {error}") from None
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
    on_triton = [use_triton(backend, layer[0].dtype, layer[0].device, PREP_DTYPES) for layer in layers]
    channels_last = None if memory_format is None else memory_format == torch.channels_last
    if all(on_triton) and ops is not None and ops.may_batch(layers):
        return ops.weight_preps(layers, eps, identity, dtype, channels_last, each)
    if not any(on_triton):
        lasts = [_wants_channels_last(w, None) if channels_last is None else channels_last for w, _, _ in layers]
        return [
            _weight_by_torch(*layer, eps, identity, dtype or layer[0].dtype, last, group)
            for layer, last, group in zip(layers, lasts, each, strict=True)
        ]
    return [
        dirac_weight(
            *layer,
            eps=eps,
            identity=identity,
            dtype=dtype,
            memory_format=_format(layer[0].dim(), channels_last) if channels_last is not None else None,
            groups=group,
            backend=backend,
        )
        for layer, group in zip(layers, each, strict=True)
    ]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    alpha: Tensor | None = None,
    activation: str | None = None,
    precision: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """activation(conv(input, weight) + bias + alpha * x[centre tap]), all in one pass, with a complete backward.

    Without the keywords it is ``torch.nn.functional.conv2d``.

    Args:
        input: (N, C, H, W) or (C, H, W), any memory format; channels-last is native.
        weight: (K, C / groups, R, S), windows up to 11 x 11.
        bias: (K,), in the input's dtype or float32, or None.
        stride, padding, dilation, groups: as torch's; padding also "same" or "valid".
        alpha: (K,) or (1,), in the input's dtype or float32: the split form's identity term. It adds to filter d
            of each group alpha * its input channel d under the window's centre, in float32; None adds nothing.
        activation: None or "relu", fused into the same pass.
        precision: of float32 products: "ieee", "tf32" or "tf32x3"; by default what
            ``torch.backends.cudnn.conv.fp32_precision`` says.
        backend: "triton", "torch", or "auto": the faster on a GPU, torch elsewhere and for float64.

    Returns:
        (N, K, P, Q) or (K, P, Q) in the input's dtype; the Triton kernels write channels-last.

    Raises:
        TypeError, ValueError: an argument is not as above. RuntimeError: "triton" cannot run here.

    Under autocast input and weight are cast first, as torch's are; bias and alpha, added in float32, stay.
    """
    dtype = autocast_dtype(input)
    if dtype is not None:
        input, weight = input.to(dtype), weight.to(dtype)
    if weight.dtype != input.dtype:
        raise TypeError(f"weight must have input's dtype {input.dtype}, got {weight.dtype}")
    if alpha is not None:
        _check_per_filter("alpha", alpha, weight.shape[0], "input", input.dtype)
    call = _check_call(input, weight, bias, alpha, stride, padding, dilation, groups, activation, precision)
    on_triton = use_triton(backend, input.dtype, input.device)
    return _run(call, weight, bias, alpha, on_triton, backend == "auto")


def dirac_conv2d(
    input: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    form: str = "split",
    eps: float = 1e-12,
    activation: str | None = None,
    precision: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """activation(conv(input, What) + bias), What = diag(alpha) * I + diag(beta) * W / max(||W_k||_2, eps).

    ``form="split"`` never writes the identity into the filters: it convolves with beta * W / ||W|| and adds
    alpha * x[centre tap] in float32. Same cost, and in bfloat16 and float16 the small weights beside the
    large identity survive. ``form="materialised"`` writes What. In float32 the two differ by rounding only,
    and the torch backend computes both as the second there.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: W, (K, C / groups, R, S), in the input's dtype or float32 (cast while it is prepared).
        alpha, beta: (K,) or (1,), in the weight's dtype or float32.
        bias: (K,), in the input's dtype or float32, or None.
        Others: as ``conv2d`` and ``dirac_weight``.

    Under autocast only the input is cast: weight, alpha and beta keep their precision until they are prepared.

    Source: DiracNets, arXiv 1706.00388.
    """
    dtype = autocast_dtype(input)
    if dtype is not None:
        input = input.to(dtype)
    tensors = (input, weight, alpha, beta, bias)
    options = (stride, padding, dilation, groups, form, eps, activation, precision, backend)
    key = None
    may_replay = (backend == "triton" or input.is_cuda) and ops is not None and type(groups) is int
    if may_replay and not torch.compiler.is_compiling() and is_plain(*tensors):
        key = _steady_key(tensors, options)
        steady = _steady.get(key)
        if steady is not None:
            return ops.replay(tensors, steady)

    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
    _check_dirac_arguments(weight, alpha, beta, eps, groups, (4,))
    if weight.dtype not in (input.dtype, torch.float32):
        raise TypeError(f"weight must have input's dtype {input.dtype} or float32, got {weight.dtype}")
    call = _check_call(input, weight, bias, None, stride, padding, dilation, groups, activation, precision)
    on_triton = use_triton(backend, input.dtype, input.device)
    split = uses_split(form, input.dtype, on_triton)
    problem = call.problem
    if not on_triton:
        prepared = torch_backend.dirac_weight(
            weight, alpha, beta, eps=eps, identity=not split, dtype=input.dtype, groups=groups
        )
        return _run(call, prepared, bias, alpha if split else None, False, False)
    settings = ops.Settings(
        *(eps, split, problem.stride, problem.padding, problem.dilation, groups),
        *(call.relu, call.precision, backend == "auto"),
    )
    output, steady = ops.dirac_conv2d(call.batched, *tensors[1:], settings)
    capturing = input.is_cuda and torch.cuda.is_current_stream_capturing()  # picks are not settled in a capture
    if steady is not None and key is not None and call.batched is input and not capturing:
        if len(_steady) >= _MOST_STEADY:
            _steady.clear()
        _steady[key] = steady
    return output.squeeze(0) if call.squeeze else output


# Calls that were checked and planned before: what to launch, by all that the checks and the plan depend on.
_steady: dict[tuple | None, ops.SteadyLayer] = {}
_MOST_STEADY = 1024  # layers times shapes; a net has tens


def _steady_key(tensors, options) -> tuple | None:
    """Everything but the tensors' contents and addresses; None where a list among the options cannot be looked up."""
    for option in options[:3]:
        if type(option) is list:
            return None
    x, w, a, b, bias = tensors
    return (
        *(x.shape, x.stride(), x.dtype, x.device, w.shape, w.stride(), w.dtype, w.device),
        *(a.shape, a.stride(), a.dtype, a.device, b.shape, b.stride(), b.dtype, b.device),
        None if bias is None else (bias.shape, bias.stride(), bias.dtype, bias.device),
        options,
        torch.are_deterministic_algorithms_enabled(),
        x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    )


class _Call(NamedTuple):
    """A checked convolution: the input with a batch, the problem, and how it is to be computed."""

    batched: Tensor
    problem: ConvProblem
    relu: bool
    precision: str
    squeeze: bool


def _check_call(input, weight, bias, alpha, stride, padding, dilation, groups, activation, precision) -> _Call:
    _check_same_device(input=input, weight=weight, bias=bias, alpha=alpha)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'relu', got {activation!r}")
    if precision is not None and precision not in PRECISIONS:
        names = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision must be None or one of {names}, got {precision!r}")
    if input.dim() not in (3, 4):
        raise ValueError(f"input must have shape (N, C, H, W) or (C, H, W), got {tuple(input.shape)}")
    squeeze = input.dim() == 3
    batched = input.unsqueeze(0) if squeeze else input
    traced = torch.compiler.is_compiling() or not is_plain(input, weight)  # sizes may be symbols, which have no hash
    resolve = _resolve.__wrapped__ if traced else _resolve
    problem = resolve(
        tuple(batched.shape),
        tuple(weight.shape),
        _hashable(stride),
        padding if isinstance(padding, str) else _hashable(padding),
        _hashable(dilation),
        groups,
    )
    if bias is not None:
        _check_bias(bias, problem.K, input.dtype)
    return _Call(batched, problem, activation == "relu", precision or "default", squeeze)


def _run(call: _Call, weight: Tensor, bias: Tensor | None, alpha: Tensor | None, on_triton: bool, auto: bool) -> Tensor:
    """The checked convolution; ``alpha`` is the split form's identity term."""
    problem = call.problem
    if on_triton:
        geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
        output = ops.conv2d(call.batched, weight, bias, alpha, *geometry, call.relu, call.precision, auto)
    else:
        output = torch_backend.conv2d(call.batched, weight, bias, alpha, problem, relu=call.relu)
    return output.squeeze(0) if call.squeeze else output


# --- checks -----------------------------------------------------------------------------------------------


def _hashable(value: IntOrPair) -> IntOrPair:
    return tuple(value) if isinstance(value, list) else value


def _pair(name: str, value: IntOrPair, least: int) -> tuple[int, int]:
    """An integer or a pair of integers, each at least ``least``, as a pair."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(n, (int, torch.SymInt)) and n >= least for n in pair):
        kind = "positive" if least == 1 else "non-negative"
        raise ValueError(f"{name} must be a {kind} integer or a pair of them, got {value!r}")
    return pair  # type: ignore[return-value]


@lru_cache(maxsize=4096)
def _resolve(input_shape, weight_shape, stride, padding, dilation, groups) -> ConvProblem:
    """The checked problem; cached, since a training step repeats its few problems."""
    if len(weight_shape) != 4:
        raise ValueError(f"weight must have shape (K, C / groups, R, S), got {weight_shape}")
    n, c, h, w = input_shape
    k, group_channels, r, s = weight_shape
    stride = _pair("stride", stride, 1)
    dilation = _pair("dilation", dilation, 1)
    if not isinstance(groups, int) or groups < 1 or c % groups or k % groups:
        raise ValueError(
            f"groups must be a positive integer that divides input's {c} channels and weight's {k} filters, "
            f"got {groups!r}"
        )
    if c != group_channels * groups:
        raise ValueError(
            f"input has {c} channels, but weight of shape {weight_shape} with groups={groups} takes "
            f"{group_channels * groups}"
        )
    if min(k, group_channels, r, s) < 1:
        raise ValueError(f"weight must not be empty, got shape {weight_shape}")
    sides = _sides(padding, stride, dilation, (r, s))
    problem = ConvProblem(n, c, h, w, k, r, s, stride, sides, dilation, groups)
    if problem.P < 1 or problem.Q < 1:
        raise ValueError(
            f"output would be empty ({problem.P} x {problem.Q}): input is {h} x {w}, padding (top, bottom, "
            f"left, right) {sides}, the dilated window {dilation[0] * (r - 1) + 1} x {dilation[1] * (s - 1) + 1}"
        )
    return problem


def _sides(padding, stride, dilation, window) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right). "same" puts the odd pixel last, as torch does."""
    if not isinstance(padding, str):
        vertical, horizontal = _pair("padding", padding, 0)
        return (vertical, vertical, horizontal, horizontal)
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding != "same":
        raise ValueError(f"padding must be an integer, a pair, 'same' or 'valid', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got stride {stride}")
    totals = [step * (size - 1) for step, size in zip(dilation, window, strict=True)]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
    return (top, bottom, left, right)


def _check_dirac_arguments(weight, alpha, beta, eps, groups, ranks) -> None:
    if weight.dim() not in ranks:
        window = "R, S" if ranks == (4,) else "*window"
        raise ValueError(f"weight must have shape (K, C / groups, {window}), got {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating-point, got {weight.dtype}")
    filters = weight.shape[0]
    if not isinstance(groups, int) or groups < 1 or filters % groups:
        raise ValueError(f"groups must be a positive integer that divides weight's {filters} filters, got {groups!r}")
    _check_per_filter("alpha", alpha, filters, "weight", weight.dtype)
    _check_per_filter("beta", beta, filters, "weight", weight.dtype)
    _check_same_device(weight=weight, alpha=alpha, beta=beta)
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}")


def _check_per_filter(name: str, tensor: Tensor, filters: int, owner: str, dtype: torch.dtype) -> None:
    if tensor.dim() != 1 or tensor.shape[0] not in (1, filters):
        raise ValueError(f"{name} must have shape ({filters},) or (1,), got {tuple(tensor.shape)}")
    if tensor.dtype not in (dtype, torch.float32):
        raise TypeError(f"{name} must have {owner}'s dtype {dtype} or float32, got {tensor.dtype}")


def _check_same_device(**tensors: Tensor | None) -> None:
    (first, reference), *rest = tensors.items()
    for name, tensor in rest:
        if tensor is not None and tensor.device != reference.device:  # type: ignore[union-attr]
            raise ValueError(
                f"{name} must be on {first}'s device {reference.device}, "  # type: ignore[union-attr]
                f"got {tensor.device}"
            )


def _check_bias(bias: Tensor, filters: int, dtype: torch.dtype) -> None:
    if bias.dim() != 1 or bias.shape[0] != filters:
        raise ValueError(f"bias must have shape ({filters},), got {tuple(bias.shape)}")
    if bias.dtype not in (dtype, torch.float32):
        raise TypeError(f"bias must have input's dtype {dtype} or float32, got {bias.dtype}")


def _format(dim: int, channels_last: bool) -> torch.memory_format:
    formats = {
        4: torch.channels_last,
        5: torch.channels_last_3d,
    }  # torch has none for windows of one dimension
    return formats.get(dim, torch.contiguous_format) if channels_last else torch.contiguous_format


def _wants_channels_last(weight: Tensor, memory_format: torch.memory_format | None) -> bool:
    own = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.dim())
    if memory_format is None:
        return own is not None and not weight.is_contiguous() and weight.is_contiguous(memory_format=own)
    if memory_format not in (torch.contiguous_format, own):
        raise ValueError(
            f"memory_format of a {weight.dim()}-D weight must be torch.contiguous_format"
            f"{f' or {own}' if own else ''}, got {memory_format}"
        )
    return memory_format == own


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """The dtype to cast to under autocast, None outside it; float64 stays, as in torch."""
    device_type = input.device.type
    if device_type not in ("cuda", "cpu") or input.dtype == torch.float64:
        return None
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def use_triton(backend: str, dtype: torch.dtype, device: torch.device, accepted: tuple = TRITON_DTYPES) -> bool:
    """Whether the Triton kernels are to run; an error where they are asked for and cannot."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "torch":
        return False
    supported = dtype in accepted and ops is not None
    if backend == "auto":
        return supported and device.type == "cuda" and not is_transformed()
    if ops is None:
        raise RuntimeError("backend 'triton' needs the package triton, which is published for Linux only")
    if not supported:
        names = ", ".join(map(str, accepted))
        raise TypeError(f"backend 'triton' takes {names}; got {dtype} (backend 'torch' takes it)")
    if not (device.type in ("cuda", "meta") or INTERPRETED):
        raise RuntimeError(
            f"backend 'triton' cannot run on {device}: move the tensors to a GPU, or set the environment "
            "variable TRITON_INTERPRET=1 before triton_dirac is imported to run the kernels in Triton's "
            "interpreter (slow; for checking numbers)"
        )
    if is_transformed():
        raise RuntimeError(
            "backend 'triton' has no rules for vmap, torch.func.grad, jvp and forward-mode differentiation: "
            "backend 'auto' or 'torch' computes with torch under these"
        )
    return True


def uses_split(form: str, dtype: torch.dtype, on_triton: bool) -> bool:
    """Whether the identity stays out of the weights.

    The torch backend computes both forms as the materialised one where rounding is no concern: the split form
    would cost it another pass over the output.
    """
    return form == "split" and (on_triton or dtype not in (torch.float32, torch.float64))
