"""Checks of the functions' arguments, and the convolution problem that checked ones describe.

Every error names the argument and its value and says what is accepted: TypeError for types and dtypes, ValueError for
shapes and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.tracing import is_plain

ACTIVATIONS = (None, "relu")
PRECISIONS = ("ieee", "tf32", "tf32x3")

IntOrPair = int | Sequence[int]


class Call(NamedTuple):
    """A checked convolution: the problem, and how it is to be computed."""

    problem: ConvProblem
    relu: bool
    precision: str

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int], int]:
        """stride, padding of four sides, dilation, groups"""
        return self.problem.stride, self.problem.padding, self.problem.dilation, self.problem.groups


def check_call(input, weight, bias, alpha, stride, padding, dilation, groups, activation, precision) -> Call:
    """The convolution that the arguments of ``conv2d`` describe; a lone image has been made a batch of one."""
    check_same_device(input=input, weight=weight, bias=bias, alpha=alpha)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'relu', got {activation!r}")
    if precision is not None and precision not in PRECISIONS:
        names = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision must be None or one of {names}, got {precision!r}")
    if input.dim() != 4:
        raise ValueError(f"input must have shape (N, C, H, W) or (C, H, W), got {tuple(input.shape)}")
    traced = torch.compiler.is_compiling() or not is_plain(input, weight)  # sizes may be symbols, which have no hash
    resolve = _resolve.__wrapped__ if traced else _resolve
    problem = resolve(
        tuple(input.shape),
        tuple(weight.shape),
        _hashable(stride),
        padding if isinstance(padding, str) else _hashable(padding),
        _hashable(dilation),
        groups,
    )
    if bias is not None:
        _check_bias(bias, problem.K, input.dtype)
    return Call(problem, activation == "relu", precision or "default")


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


def check_dirac_arguments(weight, alpha, beta, eps, groups, ranks) -> None:
    if weight.dim() not in ranks:
        window = "R, S" if ranks == (4,) else "*window"
        raise ValueError(f"weight must have shape (K, C / groups, {window}), got {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating-point, got {weight.dtype}")
    filters = weight.shape[0]
    if not isinstance(groups, int) or groups < 1 or filters % groups:
        raise ValueError(f"groups must be a positive integer that divides weight's {filters} filters, got {groups!r}")
    check_per_filter("alpha", alpha, filters, "weight", weight.dtype)
    check_per_filter("beta", beta, filters, "weight", weight.dtype)
    check_same_device(weight=weight, alpha=alpha, beta=beta)
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}")


def check_per_filter(name: str, tensor: Tensor, filters: int, owner: str, dtype: torch.dtype) -> None:
    if tensor.dim() != 1 or tensor.shape[0] not in (1, filters):
        raise ValueError(f"{name} must have shape ({filters},) or (1,), got {tuple(tensor.shape)}")
    if tensor.dtype not in (dtype, torch.float32):
        raise TypeError(f"{name} must have {owner}'s dtype {dtype} or float32, got {tensor.dtype}")


def check_same_device(**tensors: Tensor | None) -> None:
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
