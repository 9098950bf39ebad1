"""Checks of the functions' arguments, and the convolution problem that checked ones describe.

Every error names the argument and its value and says what is accepted: TypeError for types and dtypes, ValueError for
shapes and values.

``stand_ins``, ``spelled`` and ``exact_geometry`` come before anything is looked up under arguments as they are: 2, 2.0
and True are equal keys, and only the first is a stride. What an earlier call asked for must not decide what this one
may.
"""

from __future__ import annotations

import marshal
import operator
from collections.abc import Iterable, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triton_dirac.conv.epilogue import ACTIVATIONS
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.tracing import is_plain

PRECISIONS = ("ieee", "tf32", "tf32x3")
TENSOR_TYPES = (Tensor, torch.nn.Parameter)
LAYER = ("weight", "alpha", "beta")
CONV = ("input", "weight", "bias", "alpha")
DIRAC = ("input", "weight", "alpha", "beta", "bias")

IntOrPair = int | Sequence[int]


class Call(NamedTuple):
    """A checked convolution: the problem, and how it is to be computed."""

    problem: ConvProblem
    precision: str

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int], int]:
        """stride, padding of four sides, dilation, groups"""
        return self.problem.stride, self.problem.padding, self.problem.dilation, self.problem.groups


def stand_ins(names: tuple[str, ...], required: tuple[Any, ...], optional: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """What among the arguments is no tensor and takes the whole call instead (``__torch_function__``, as torch.fx's
    stand-ins). Most calls come through here: ordinary tensors must not cost them a microsecond.

    Raises:
        TypeError: something is neither, nor None where it is ``optional``; ``names`` are those of both in turn.
    """
    for tensor in required:
        if type(tensor) not in TENSOR_TYPES:
            return _stand_ins(names, required, optional)
    for tensor in optional:
        if tensor is not None and type(tensor) not in TENSOR_TYPES:
            return _stand_ins(names, required, optional)
    return ()


def _stand_ins(names: tuple[str, ...], required: tuple[Any, ...], optional: tuple[Any, ...]) -> tuple[Any, ...]:
    others = []
    for index, (name, tensor) in enumerate(zip(names, (*required, *optional), strict=True)):
        may_be_none = index >= len(required)
        if isinstance(tensor, Tensor) or (tensor is None and may_be_none):
            continue
        if not hasattr(type(tensor), "__torch_function__"):
            accepted = "a torch.Tensor or None" if may_be_none else "a torch.Tensor"
            raise TypeError(f"{name} must be {accepted}, got {_described(tensor)}")
        others.append(tensor)
    return tuple(others)


def spelled(options: tuple[Any, ...]) -> bytes | None:
    """The arguments that are no tensors as bytes, which tell 2 from 2.0 and True, though these are equal keys. None for
    arguments that are not plain values, and for torch.compile: their calls are not remembered."""
    if torch.compiler.is_compiling():
        return None
    try:
        return marshal.dumps(options, 2)  # later versions' bytes depend on how often an object is referred to
    except ValueError:
        return None


def _described(value: Any) -> str:
    kind = type(value)
    short = value is None or isinstance(value, (bool, int, float, str))
    return repr(value) if short else f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def as_index(value: Any) -> int | None:
    """An index-like integer (numpy's, a tensor of one) as a plain one, a symbol as it is; None for what torch takes for
    no integer: bool and float among them."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_indices(value: Any) -> tuple[int | None, ...] | None:
    """The entries of a tuple, or of what has a length and an order like one, by ``as_index``; None for other things."""
    if isinstance(value, (str, bytes, dict, set, frozenset)):
        return None
    try:
        return tuple(as_index(entry) for entry in value) if len(value) else ()
    except TypeError:  # no length, or no entries: a tensor of no dimensions has neither
        return None


def exact_geometry(
    stride: IntOrPair, padding: IntOrPair | str, dilation: IntOrPair, groups: int
) -> tuple[IntOrPair, IntOrPair | str, IntOrPair, int]:
    """The four as plain integers and pairs of them, or padding's word; whether they fit a problem is seen later."""
    if not (type(stride) is int or _is_pair(stride)):
        stride = _exact("stride", stride, 1)
    if not (type(padding) is int or _is_pair(padding) or isinstance(padding, str)):
        padding = _exact("padding", padding, 0)
    if not (type(dilation) is int or _is_pair(dilation)):
        dilation = _exact("dilation", dilation, 1)
    if type(groups) is not int:
        groups = exact_groups(groups)
    return stride, padding, dilation, groups


def exact_groups(groups: Any) -> int:
    number = as_index(groups)
    if number is None:
        raise ValueError(f"groups must be a positive integer, got {groups!r}")
    return number


def exact_preparation(eps: Any, identity: Any, groups: Any, *, of_layers: bool = False) -> tuple[float, bool, Any]:
    """eps, identity and groups as a float, a bool and a plain integer; ``of_layers``: or as one for each layer."""
    eps = exact_eps(eps)
    identity = identity if type(identity) is bool else _exact_flag("identity", identity)
    if type(groups) is not int:
        groups = _exact_of_layers(groups) if of_layers else exact_groups(groups)
    return eps, identity, groups


def exact_eps(eps: Any) -> float:
    if type(eps) is float:
        return eps
    if isinstance(eps, Tensor) or not isinstance(eps, Real):
        raise TypeError(f"eps must be a number, got {_described(eps)}")
    return float(eps)


def _exact_flag(name: str, value: Any) -> bool:
    if isinstance(value, Tensor) or value not in (True, False):
        raise TypeError(f"{name} must be True or False, got {_described(value)}")
    return bool(value)


def check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype!r}")


def _exact_of_layers(groups: Any) -> int | tuple[int, ...]:
    """One number for all layers, or one for each."""
    # A list is not even asked: torch.compile of torch 2.11 breaks down when it is.
    number = None if isinstance(groups, (list, tuple)) else as_index(groups)
    if number is not None:
        return number
    numbers = as_indices(groups)
    if numbers is None or None in numbers:
        raise ValueError(f"groups must be an integer or one for each layer, got {groups!r}")
    return numbers  # type: ignore[return-value]


def _is_pair(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int


def _exact(name: str, value: Any, least: int) -> IntOrPair:
    number = as_index(value)
    if number is not None:
        return number
    numbers = as_indices(value)
    if numbers is None or None in numbers or len(numbers) not in (1, 2):
        raise ValueError(_no_pair(name, value, least))
    return numbers[0] if len(numbers) == 1 else numbers  # type: ignore[return-value]


def _no_pair(name: str, value: Any, least: int) -> str:
    kind = "positive" if least == 1 else "non-negative"
    return f"{name} must be a {kind} integer or a pair of them, got {value!r}"


def check_call(
    input: Any, weight: Any, bias: Any, alpha: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, activation: Any, precision: Any,
) -> Call:  # fmt: skip
    """The convolution that the arguments of ``conv2d`` describe, its geometry exact; a lone image is a batch of one."""
    check_memory(input=input, weight=weight, bias=bias, alpha=alpha)
    _check_choice("activation", activation, ACTIVATIONS)
    _check_choice("precision", precision, PRECISIONS)
    if input.dim() != 4:
        raise ValueError(f"input must have shape (N, C, H, W) or (C, H, W), got {tuple(input.shape)}")
    traced = not is_plain(input, weight)  # sizes may be symbols, which have no hash
    resolve = _resolve.__wrapped__ if traced else _resolve
    problem = resolve(
        tuple(input.shape),
        tuple(weight.shape),
        stride,
        padding,
        dilation,
        groups,
    )
    if bias is not None:
        _check_bias(bias, problem.K, input.dtype)
    return Call(problem, precision or "default")


def _check_choice(name: str, value: Any, accepted: Iterable[str]) -> None:
    if value not in (None, *accepted):
        raise ValueError(f"{name} must be None or one of {', '.join(map(repr, accepted))}, got {value!r}")


def _pair(name: str, value: IntOrPair, least: int) -> tuple[int, int]:
    """An integer or a pair of integers, plain ones, as a pair; each must be at least ``least``."""
    pair = value if isinstance(value, tuple) else (value, value)
    if pair[0] < least or pair[1] < least:  # type: ignore[operator]
        raise ValueError(_no_pair(name, value, least))
    return pair  # type: ignore[return-value]


@lru_cache(maxsize=4096)
def _resolve(
    input_shape: tuple[int, ...], weight_shape: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: Any
) -> ConvProblem:
    """The checked problem; cached, since a training step repeats its few problems."""
    if len(weight_shape) != 4:
        raise ValueError(f"weight must have shape (K, C / groups, R, S), got {weight_shape}")
    n, c, h, w = input_shape
    k, group_channels, r, s = weight_shape
    stride = _pair("stride", stride, 1)
    dilation = _pair("dilation", dilation, 1)
    if groups < 1 or c % groups or k % groups:
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


def _sides(
    padding: Any, stride: tuple[int, int], dilation: tuple[int, int], window: tuple[int, ...]
) -> tuple[int, int, int, int]:
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


def check_floating(name: str, tensor: Tensor) -> None:
    """Integers are refused and never rounded, under autocast too: 257 is 256 in bfloat16."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {tensor.dtype}")


def check_dirac_arguments(weight: Tensor, alpha: Any, beta: Any, eps: Any, groups: Any, ranks: Sequence[int]) -> None:
    if weight.dim() not in ranks:
        window = "R, S" if ranks == (4,) else "*window"
        raise ValueError(f"weight must have shape (K, C / groups, {window}), got {tuple(weight.shape)}")
    if 0 in weight.shape[2:]:  # no centre for the identity
        raise ValueError(f"weight must have a window of one tap or more, got shape {tuple(weight.shape)}")
    check_floating("weight", weight)
    filters = weight.shape[0]
    groups = as_index(groups)
    if groups is None or groups < 1 or filters % groups:
        raise ValueError(f"groups must be a positive integer that divides weight's {filters} filters, got {groups!r}")
    check_per_filter("alpha", alpha, filters, "weight", weight.dtype)
    check_per_filter("beta", beta, filters, "weight", weight.dtype)
    check_memory(weight=weight, alpha=alpha, beta=beta)
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}")


def wants_channels_last(weight: Tensor, memory_format: torch.memory_format | None) -> bool:
    """Whether prepared filters are to be channels-last: as ``memory_format`` says, or as the weight is."""
    own = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.dim())
    if memory_format is None:
        return own is not None and not weight.is_contiguous() and weight.is_contiguous(memory_format=own)
    if memory_format not in (torch.contiguous_format, own):
        raise ValueError(
            f"memory_format of a {weight.dim()}-D weight must be torch.contiguous_format"
            f"{f' or {own}' if own else ''}, got {memory_format}"
        )
    return memory_format == own


def check_layers(layers: Sequence[Any]) -> None:
    """That each is (weight, alpha, beta), three tensors; what is looked at first in ``dirac_weights``."""
    for index, layer in enumerate(layers):
        if not isinstance(layer, (tuple, list)) or len(layer) != 3:
            got = f"{len(layer)} items" if isinstance(layer, (tuple, list)) else _described(layer)
            raise ValueError(f"layers[{index}] must be (weight, alpha, beta), got {got}")
        for name, tensor in zip(LAYER, layer, strict=True):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"layers[{index}]: {name} must be a torch.Tensor, got {_described(tensor)}")


def check_layers_arguments(
    layers: Sequence[Any], eps: float, groups: Sequence[int], dtype: Any, memory_format: Any
) -> None:
    """The rest of them, for layers that ``check_layers`` let through."""
    if len(groups) != len(layers):
        raise ValueError(f"groups must be an integer or one for each of {len(layers)} layers, got {groups!r}")
    if memory_format not in (None, torch.contiguous_format, torch.channels_last):
        raise ValueError(
            f"memory_format must be None, torch.contiguous_format or torch.channels_last, got {memory_format}"
        )
    if dtype is not None:
        check_dtype(dtype)
    for index, (layer, group) in enumerate(zip(layers, groups, strict=True)):
        check_layer(index, layer, eps, group)
        try:
            check_memory(**{"layers[0]'s weight": layers[0][0], "weight": layer[0]})
        except (TypeError, ValueError) as error:
            raise type(error)(f"layers[{index}]: {error}") from None


def check_layer(index: int, layer: Sequence[Tensor], eps: float, groups: int) -> None:
    """One of several (weight, alpha, beta)."""
    try:
        weight, alpha, beta = layer
        check_dirac_arguments(weight, alpha, beta, eps, groups, (3, 4, 5))
    except (TypeError, ValueError) as error:
        raise type(error)(f"layers[{index}]: {error}") from None


def check_per_filter(name: str, tensor: Tensor, filters: int, owner: str, dtype: torch.dtype) -> None:
    if tensor.dim() != 1 or tensor.shape[0] not in (1, filters):
        raise ValueError(f"{name} must have shape ({filters},) or (1,), got {tuple(tensor.shape)}")
    if tensor.dtype not in (dtype, torch.float32):
        raise TypeError(f"{name} must have {owner}'s dtype {dtype} or float32, got {tensor.dtype}")


def check_memory(**tensors: Tensor | None) -> None:
    """All are dense (torch adds sparse ones to slices out of bounds) and on one device."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got one of layout {tensor.layout}")
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
