"""Arguments that are no tensors as plain values: what torch takes for an integer as one, a number as a float.

This comes before anything is looked up under arguments as they are: 2, 2.0 and True are equal keys, and only the first
is a stride. What an earlier call asked for must not decide what this one may.
"""

from __future__ import annotations

import marshal
import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

IntOrPair = int | Sequence[int]
BEYOND = 2**31  # no size reaches it: torch and the kernels hold products of sizes in 64 bits


def spelled(options: tuple[Any, ...]) -> bytes | None:
    """The arguments that are no tensors as bytes, which tell 2 from 2.0 and True, though these are equal keys. None for
    arguments that are not plain values, and for torch.compile: their calls are not remembered."""
    if torch.compiler.is_compiling():
        return None
    try:
        return marshal.dumps(options, 2)  # later versions' bytes depend on how often an object is referred to
    except ValueError:
        return None


def described(value: Any) -> str:
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
    if getattr(getattr(value, "dtype", None), "kind", None) == "b":  # an index for numpy before 2.3
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
        raise TypeError(f"eps must be a number, got {described(eps)}")
    try:
        return float(eps)
    except OverflowError:
        return math.inf


def _exact_flag(name: str, value: Any) -> bool:
    if isinstance(value, Tensor) or value not in (True, False):
        raise TypeError(f"{name} must be True or False, got {described(value)}")
    return bool(value)


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
        raise ValueError(no_pair(name, value, least))
    return numbers[0] if len(numbers) == 1 else numbers  # type: ignore[return-value]


def exact_pair(name: str, value: IntOrPair, least: int) -> tuple[int, int]:
    """An integer or a pair of integers, plain ones, as a pair; each must be at least ``least``."""
    pair = value if isinstance(value, tuple) else (value, value)
    if not (least <= pair[0] < BEYOND and least <= pair[1] < BEYOND):  # type: ignore[operator]
        raise ValueError(no_pair(name, value, least))
    return pair  # type: ignore[return-value]


def no_pair(name: str, value: Any, least: int) -> str:
    kind = "positive" if least == 1 else "non-negative"
    return f"{name} must be a {kind} integer below 2 ** 31 or a pair of them, got {value!r}"
