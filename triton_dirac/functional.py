"""The public functions: argument checks, choice of backend, and nothing else.

A call that is like an earlier one is done as that was. Else every check comes before any work but making the image what
kernels take (a batch, autocast's dtype, their layout). RuntimeError is for a backend that cannot run here; the other
errors are ``checks``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from triton_dirac import checks, exact
from triton_dirac.checks import check_call, check_dirac_arguments, check_per_filter
from triton_dirac.conv import torch_backend as conv_torch
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.exact import IntOrPair, spelled
from triton_dirac.known_to_torch import keep_for_torch, known_to_torch
from triton_dirac.runtime.signature_cache import SignatureCache
from triton_dirac.runtime.tracing import autocast_dtype, is_observed, is_plain, is_transformed
from triton_dirac.weight_prep import cpu as cpu_prep
from triton_dirac.weight_prep import torch_backend as prep_torch
from triton_dirac.weight_prep.net_node import trained_and_frozen

try:
    from triton_dirac import dirac_op
    from triton_dirac.conv import op as conv_op
    from triton_dirac.runtime.launch import INTERPRETED
    from triton_dirac.weight_prep import op as prep_op

    HAS_TRITON = True
except ModuleNotFoundError as error:  # Triton is published for Linux only; all else works without it
    if error.name != "triton":
        raise
    HAS_TRITON, INTERPRETED = False, False

BACKENDS = ("auto", "triton", "torch")
FORMS = ("split", "materialised")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PREP_DTYPES = (*TRITON_DTYPES, torch.float64)
_hand_over: Any = handle_torch_function  # its type would have every argument spelled out


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
    layer = (weight, alpha, beta)
    if others := checks.stand_ins(checks.LAYER, layer):
        how: Any = {"dtype": dtype, "memory_format": memory_format, "groups": groups, "backend": backend}
        return _hand_over(dirac_weight, others, *layer, eps=eps, identity=identity, **how)
    eps, identity, groups = exact.exact_preparation(eps, identity, groups)
    key = (eps, identity, dtype, memory_format, groups, backend)
    known = None if is_observed() else _ways.find(key, layer)
    if known is None:
        check_dirac_arguments(weight, alpha, beta, eps, groups, (3, 4, 5))
        dtype = weight.dtype if dtype is None else dtype
        checks.check_dtype(dtype)
        channels_last = checks.wants_channels_last(weight, memory_format)
        if use_triton(backend, weight.dtype, weight.device, PREP_DTYPES):
            return prep_op.weight_prep(weight, alpha, beta, eps, identity, dtype, channels_last, groups)
        net = cpu_prep.net_of([layer], [groups])
        if net is None:
            prepared = prep_torch.dirac_weight(*layer, eps=eps, identity=identity, dtype=dtype, groups=groups)
            return prepared.contiguous(memory_format=_format(weight.dim(), channels_last))
        known = _Way("cpu", [dtype], [_format(weight.dim(), channels_last)], [groups], net)
        _ways.keep(key, layer, known)
    return _by_cpu_kernels([layer], known, eps, identity)[0]


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

    The numbers are those of one call a layer, on a GPU up to the last bit of rows whose length 4 does not divide: the
    compiler may add these up in another order. Shapes, window dimensions and dtypes may be mixed, devices may not.
    No host-device synchronisation; fit for capture in a CUDA graph. The results of one launch share one allocation.
    Under torch.compile, and for gradients of gradients, layers are prepared one by one. One node of autograd's graph
    serves all trained layers: a backward that reaches one layer calls the gradient hooks of all, with None for those
    it does not reach.

    Args:
        layers: (weight, alpha, beta) of each layer, as ``dirac_weight``'s.
        eps, identity, dtype, backend: as ``dirac_weight``'s, for all layers.
        memory_format: ``torch.contiguous_format``, or ``torch.channels_last`` for windows of any number of
            dimensions; each weight's own by default.
        groups: one number for all layers, or one for each.

    Raises:
        As ``dirac_weight``; messages begin with the layer's index.
    """
    layers = checks.listed_layers(layers)
    eps, identity, of_layers = exact.exact_preparation(eps, identity, groups, of_layers=True)
    tensors = [tensor for layer in layers for tensor in layer]
    key = (len(layers), eps, identity, dtype, memory_format, of_layers, backend)
    known = None if is_observed() else _ways.find(key, tensors)
    if known is None:
        known = _way_of(layers, eps, dtype, memory_format, of_layers, backend)
        if is_plain(*tensors):
            _ways.keep(key, tensors, known)
    if known.kind == "one launch":
        channels_last = None if memory_format is None else memory_format == torch.channels_last
        net = prep_op.NetSettings(eps, identity, dtype, channels_last, tuple(known.groups))
        return list(prep_op.weight_preps(layers, net, *trained_and_frozen(layers)))
    if known.kind == "cpu":
        return _by_cpu_kernels(layers, known, eps, identity)
    return [
        dirac_weight(
            *layer, eps=eps, identity=identity, dtype=dtype, memory_format=layout, groups=group, backend=backend
        )
        for layer, layout, group in zip(layers, known.layouts, known.groups, strict=True)
    ]


class _Way(NamedTuple):
    """How checked layers are prepared: in "one launch", all by the "cpu" kernels, or "each" alone."""

    kind: Literal["one launch", "cpu", "each"]
    dtypes: list[torch.dtype]
    layouts: list[torch.memory_format]
    groups: list[int]
    net: cpu_prep.NetLayout | None


_ways: SignatureCache[_Way] = SignatureCache()


def _way_of(layers: Any, eps: Any, dtype: Any, memory_format: Any, groups: Any, backend: str) -> _Way:
    groups = [groups] * len(layers) if isinstance(groups, int) else list(groups)
    checks.check_layers_arguments(layers, eps, groups, dtype, memory_format)
    weights = [weight for weight, _, _ in layers]
    on_triton = [use_triton(backend, weight.dtype, weight.device, PREP_DTYPES) for weight in weights]
    own = memory_format is None
    last = [checks.wants_channels_last(w, None) if own else memory_format == torch.channels_last for w in weights]
    layouts = [_format(weight.dim(), wants) for weight, wants in zip(weights, last, strict=True)]
    one_launch = all(on_triton) and HAS_TRITON and prep_op.may_batch(layers)
    net = None if any(on_triton) or one_launch else cpu_prep.net_of(layers, groups)
    kind: Literal["one launch", "cpu", "each"] = "one launch" if one_launch else "cpu" if net else "each"
    return _Way(kind, [dtype or weight.dtype for weight in weights], layouts, groups, net)


def _by_cpu_kernels(layers: Sequence[Sequence[Tensor]], way: _Way, eps: float, identity: bool) -> list[Tensor]:
    if not all(tensor.data_ptr() for layer in layers for tensor in layer):  # freed since a like call was checked
        checks.check_layers_memory(layers)
    prepared = cpu_prep.dirac_weights(layers, way.net, eps=eps, identity=identity)  # type: ignore[arg-type]
    return [
        tensor.to(dtype).contiguous(memory_format=layout)
        for tensor, dtype, layout in zip(prepared, way.dtypes, way.layouts, strict=True)
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
        activation: None, "relu" or "silu", fused into the same pass; silu's backward convolves once more.
        precision: of float32 products: "ieee", "tf32" or "tf32x3"; by default what
            ``torch.backends.cudnn.conv.fp32_precision`` says.
        backend: "triton", "torch", or "auto": the faster on a GPU, torch elsewhere and for float64.

    Returns:
        (N, K, P, Q) or (K, P, Q) in the input's dtype; the Triton kernels write channels-last.

    Raises:
        TypeError, ValueError: an argument is not as above. RuntimeError: "triton" cannot run here.

    Under autocast input and weight are cast first, as torch's are; bias and alpha, added in float32, stay.
    """
    tensors = (input, weight, bias, alpha)
    optional = bias is None, alpha is None
    options = spelled((optional, stride, padding, dilation, groups, activation, precision, backend))
    if HAS_TRITON and (output := conv_op.conv2d_again(tensors, options)) is not None:
        return output
    how: dict[str, Any] = {"alpha": alpha, "activation": activation, "precision": precision, "backend": backend}
    if others := checks.stand_ins(checks.CONV, (input, weight), (bias, alpha)):
        return _hand_over(conv2d, others, input, weight, bias, stride, padding, dilation, groups, **how)
    if (problem := known_to_torch(tensors, options)) is not None:
        return conv_torch.conv2d(input, weight, bias, alpha, problem, activation)
    stride, padding, dilation, groups = exact.exact_geometry(stride, padding, dilation, groups)
    args: Any = (bias, stride, padding, dilation, groups)
    if input.dim() == 3:
        return conv2d(input.unsqueeze(0), weight, *args, **how).squeeze(0)
    dtype = autocast_dtype(input)
    ready = _ready(input, dtype, backend), _ready(weight, dtype, backend)
    if ready[0] is not input or ready[1] is not weight:
        return conv2d(*ready, *args, **how)
    if weight.dtype != input.dtype:
        raise TypeError(f"weight must have input's dtype {input.dtype}, got {weight.dtype}")
    call = check_call(input, weight, bias, alpha, stride, padding, dilation, groups, activation, precision)
    if alpha is not None:
        check_per_filter("alpha", alpha, weight.shape[0], "input", input.dtype)
    if not use_triton(backend, input.dtype, input.device):
        keep_for_torch(tensors, options, call.problem)
        return conv_torch.conv2d(input, weight, bias, alpha, call.problem, activation)
    settings = conv_op.ConvSettings(*call.geometry, activation, call.precision, backend == "auto")
    return conv_op.conv2d(tensors, settings, options)


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
    tensors = (input, weight, alpha, beta, bias)
    options = spelled((bias is None, stride, padding, dilation, groups, form, eps, activation, precision, backend))
    if HAS_TRITON and (output := dirac_op.dirac_conv2d_again(tensors, options)) is not None:
        return output
    how: Any = {"form": form, "eps": eps, "activation": activation, "precision": precision, "backend": backend}
    if others := checks.stand_ins(checks.DIRAC, (input, weight, alpha, beta), (bias,)):
        return _hand_over(dirac_conv2d, others, *tensors, stride, padding, dilation, groups, **how)
    if (problem := known_to_torch(tensors, options)) is not None:
        return _dirac_by_torch(tensors, form, eps, problem, activation)
    eps = exact.exact_eps(eps)
    stride, padding, dilation, groups = exact.exact_geometry(stride, padding, dilation, groups)
    args = (weight, alpha, beta, bias, stride, padding, dilation, groups)
    if input.dim() == 3:
        return dirac_conv2d(input.unsqueeze(0), *args, **how).squeeze(0)
    ready = _ready(input, autocast_dtype(input), backend)
    if ready is not input:
        return dirac_conv2d(ready, *args, **how)
    if not isinstance(form, str) or form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
    check_dirac_arguments(weight, alpha, beta, eps, groups, (4,))
    checks.check_floating("input", input)
    if weight.dtype not in (input.dtype, torch.float32):
        raise TypeError(f"weight must have input's dtype {input.dtype} or float32, got {weight.dtype}")
    call = check_call(input, weight, bias, None, stride, padding, dilation, groups, activation, precision)
    if not use_triton(backend, input.dtype, input.device):
        keep_for_torch(tensors, options, call.problem)
        return _dirac_by_torch(tensors, form, eps, call.problem, activation)
    split = uses_split(form, input.dtype, on_triton=True)
    settings = dirac_op.DiracSettings(eps, split, *call.geometry, activation, call.precision, backend == "auto")
    return dirac_op.dirac_conv2d(tensors, settings, options)


def _dirac_by_torch(tensors: Any, form: str, eps: float, problem: ConvProblem, activation: str | None) -> Tensor:
    input, weight, alpha, beta, bias = tensors
    split = uses_split(form, input.dtype, on_triton=False)
    how: Any = {"eps": eps, "dtype": input.dtype, "groups": problem.groups, "backend": "torch"}
    prepared = dirac_weight(weight, alpha, beta, identity=not split, **how)
    return conv_torch.conv2d(input, prepared, bias, alpha if split else None, problem, activation)


def _ready(tensor: Tensor, dtype: torch.dtype | None, backend: str) -> Tensor:
    """The image or filter bank as the kernels take it: cast if autocast asks for ``dtype``, and channels-last where
    Triton's may run. The backward takes the copy, too."""
    plain = is_plain(tensor)
    if tensor.layout is not torch.strided or (plain and checks.is_freed(tensor)):  # these are refused next, by name
        return tensor
    if dtype is not None:
        tensor = tensor.to(dtype)
    if not plain:
        return tensor
    may_launch = isinstance(backend, str) and (backend == "triton" or (backend == "auto" and tensor.is_cuda))
    if may_launch and tensor.dim() == 4 and tensor.dtype in TRITON_DTYPES:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _format(dim: int, channels_last: bool) -> torch.memory_format:
    formats = {
        4: torch.channels_last,
        5: torch.channels_last_3d,
    }  # torch has none for windows of one dimension
    return formats.get(dim, torch.contiguous_format) if channels_last else torch.contiguous_format


def use_triton(
    backend: str, dtype: torch.dtype, device: torch.device, accepted: tuple[torch.dtype, ...] = TRITON_DTYPES
) -> bool:
    """Whether the Triton kernels are to run; an error where they are asked for and cannot."""
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "torch":
        return False
    supported = dtype in accepted and HAS_TRITON
    if backend == "auto":
        if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():  # which knows torch's operators only
            return False
        return supported and device.type == "cuda" and not is_transformed()
    if not HAS_TRITON:
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
