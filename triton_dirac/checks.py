"""Checks of the functions' arguments, and the convolution problem that checked ones describe.

Every error names the argument and its value and says what is accepted: TypeError for types and dtypes, ValueError for
shapes and values.

``stand_ins`` comes before anything is looked up under the arguments; what else does is in ``exact``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triton_dirac.conv.epilogue import ACTIVATIONS
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.exact import as_index, described, exact_pair
from triton_dirac.runtime.tracing import is_plain

PRECISIONS = ("ieee", "tf32", "tf32x3")
TENSOR_TYPES = (Tensor, torch.nn.Parameter)
LAYER = ("weight", "alpha", "beta")
CONV = ("input", "weight", "bias", "alpha")
DIRAC = ("input", "weight", "alpha", "beta", "bias")


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
        if type(tensor) not in TENSOR_TYPES or tensor.is_nested:
            return _stand_ins(names, required, optional)
    for tensor in optional:
        if tensor is not None and (type(tensor) not in TENSOR_TYPES or tensor.is_nested):
            return _stand_ins(names, required, optional)
    return ()


def _stand_ins(names: tuple[str, ...], required: tuple[Any, ...], optional: tuple[Any, ...]) -> tuple[Any, ...]:
    others = []
    for index, (name, tensor) in enumerate(zip(names, (*required, *optional), strict=True)):
        may_be_none = index >= len(required)
        if isinstance(tensor, Tensor) or (tensor is None and may_be_none):
            check_not_nested(name, tensor)
            continue
        if not hasattr(type(tensor), "__torch_function__"):
            accepted = "a torch.Tensor or None" if may_be_none else "a torch.Tensor"
            raise TypeError(f"{name} must be {accepted}, got {described(tensor)}")
        others.append(tensor)
    return tuple(others)


def check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype!r}")


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
    if value is not None and not (isinstance(value, str) and value in accepted):
        raise ValueError(f"{name} must be None or one of {', '.join(map(repr, accepted))}, got {value!r}")


@lru_cache(maxsize=4096)
def _resolve(
    input_shape: tuple[int, ...], weight_shape: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: Any
) -> ConvProblem:
    """The checked problem; cached, since a training step repeats its few problems."""
    if len(weight_shape) != 4:
        raise ValueError(f"weight must have shape (K, C / groups, R, S), got {weight_shape}")
    n, c, h, w = input_shape
    k, group_channels, r, s = weight_shape
    stride = exact_pair("stride", stride, 1)
    dilation = exact_pair("dilation", dilation, 1)
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
        vertical, horizontal = exact_pair("padding", padding, 0)
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
    sums = torch.finfo(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    if not sums.tiny <= eps <= sums.max:  # else it would be 0 or infinite where norms are
        raise ValueError(
            f"eps must be positive, got {eps!r}; accepted in {sums.dtype} is {sums.tiny:.2g} to {sums.max:.2g}"
        )


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


def listed_layers(layers: Any) -> list[Any]:
    """The layers of ``dirac_weights``, each (weight, alpha, beta), three tensors: what is looked at first there."""
    try:
        listed = list(layers)
    except TypeError:
        raise TypeError(f"layers must be (weight, alpha, beta) of each layer, got {described(layers)}") from None
    for index, layer in enumerate(listed):
        if not isinstance(layer, (tuple, list)) or len(layer) != 3:
            got = f"{len(layer)} items" if isinstance(layer, (tuple, list)) else described(layer)
            raise ValueError(f"layers[{index}] must be (weight, alpha, beta), got {got}")
        for name, tensor in zip(LAYER, layer, strict=True):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"layers[{index}]: {name} must be a torch.Tensor, got {described(tensor)}")
            check_not_nested(f"layers[{index}]: {name}", tensor)
    return listed


def check_layers_arguments(
    layers: Sequence[Any], eps: float, groups: Sequence[int], dtype: Any, memory_format: Any
) -> None:
    """The rest of them, for layers that ``listed_layers`` let through."""
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
    """All are dense (torch adds sparse ones to slices out of bounds), have their memory and are on one device."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got one of layout {tensor.layout}")
        if tensor is not None and is_plain(tensor):
            check_allocated(name, tensor)
    (first, reference), *rest = tensors.items()
    for name, tensor in rest:
        if tensor is not None and tensor.device != reference.device:  # type: ignore[union-attr]
            raise ValueError(
                f"{name} must be on {first}'s device {reference.device}, "  # type: ignore[union-attr]
                f"got {tensor.device}"
            )


def is_freed(tensor: Tensor) -> bool:
    """Whether its storage was freed under it (``resize_(0)``, as offloading does): its address is 0 then."""
    return not tensor.data_ptr() and tensor.numel() > 0 and not tensor.is_meta


def check_allocated(name: str, tensor: Tensor) -> None:
    if is_freed(tensor):
        raise ValueError(f"{name} must have memory, and the storage of this one of {tuple(tensor.shape)} was freed")


def check_layers_memory(layers: Sequence[Sequence[Tensor]]) -> None:
    """That no storage of (weight, alpha, beta) was freed."""
    for layer in layers:
        for name, tensor in zip(LAYER, layer, strict=True):
            check_allocated(name, tensor)


def check_not_nested(name: str, tensor: Tensor | None) -> None:
    """Nested tensors call themselves dense and have no strides; to ask for them may end the process."""
    if tensor is not None and tensor.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one")


def _check_bias(bias: Tensor, filters: int, dtype: torch.dtype) -> None:
    if bias.dim() != 1 or bias.shape[0] != filters:
        raise ValueError(f"bias must have shape ({filters},), got {tuple(bias.shape)}")
    if bias.dtype not in (dtype, torch.float32):
        raise TypeError(f"bias must have input's dtype {dtype} or float32, got {bias.dtype}")
