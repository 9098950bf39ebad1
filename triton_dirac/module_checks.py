"""Checks of the Dirac modules' constructor arguments; torch leaves much of it to the first forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any


def check_choice(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


def check_arguments(dims, in_channels, out_channels, kernel_size, padding, dilation, bias, stride, groups) -> None:
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value % groups:
            raise ValueError(f"groups must divide {name}, got groups={groups} and {name}={value}")
    _check_size("kernel_size", kernel_size, dims, 1)
    _check_size("stride", stride, dims, 1)
    _check_size("dilation", dilation, dims, 1)
    if not isinstance(padding, str):
        _check_size("padding", padding, dims, 0)
    elif padding not in ("same", "valid"):
        raise ValueError(f"padding must be an integer, a tuple, 'same' or 'valid', got {padding!r}")
    elif padding == "same" and set((stride,) if isinstance(stride, Integral) else stride) != {1}:
        raise ValueError(f"padding='same' needs stride 1, got stride {stride!r}")
    if not isinstance(bias, bool):
        raise TypeError(
            f"bias must be True or False, got {bias!r}; the positional arguments are in_channels, "
            "out_channels, kernel_size, padding, dilation, bias: stride and groups go by name"
        )


def _check_size(name: str, value: Any, dims: int, least: int) -> None:
    sizes = (value,) * dims if isinstance(value, Integral) else value
    good = isinstance(sizes, Sequence) and not isinstance(sizes, str) and len(sizes) == dims
    if not good or not all(isinstance(size, Integral) and int(size) >= least for size in sizes):
        kind = "positive" if least else "non-negative"
        raise ValueError(f"{name} must be a {kind} integer or a tuple of {dims} of them, got {value!r}")
