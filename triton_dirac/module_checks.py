"""Checks of constructor arguments, the Dirac modules' and the nets'; torch leaves much of it to the first forward pass.

What is accepted comes back as plain integers and tuples of them, whatever they were: numpy's, of one entry for all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from triton_dirac.checks import as_index, as_indices

Sizes = tuple[int, ...]


class Arguments(NamedTuple):
    """A convolution module's checked arguments, one size for each dimension of the window."""

    in_channels: int
    out_channels: int
    kernel_size: Sizes
    padding: Sizes | str
    dilation: Sizes
    stride: Sizes
    groups: int


def check_choice(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


def positive_integer(name: str, value: Any) -> int:
    number = as_index(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def check_arguments(
    dims, in_channels, out_channels, kernel_size, padding, dilation, bias, stride, groups, dtype
) -> Arguments:
    channels = {"in_channels": in_channels, "out_channels": out_channels}
    channels = {name: positive_integer(name, value) for name, value in channels.items()}
    groups = positive_integer("groups", groups)
    for name, number in channels.items():
        if number % groups:
            raise ValueError(f"groups must divide {name}, got groups={groups} and {name}={number}")
    window = _sizes("kernel_size", kernel_size, dims, 1)
    strides = _sizes("stride", stride, dims, 1)
    dilations = _sizes("dilation", dilation, dims, 1)
    if not isinstance(padding, str):
        padding = _sizes("padding", padding, dims, 0)
    elif padding not in ("same", "valid"):
        raise ValueError(f"padding must be an integer, a tuple, 'same' or 'valid', got {padding!r}")
    elif padding == "same" and set(strides) != {1}:
        raise ValueError(f"padding='same' needs stride 1, got stride {stride!r}")
    if not isinstance(bias, bool):
        raise TypeError(
            f"bias must be True or False, got {bias!r}; the positional arguments are in_channels, "
            "out_channels, kernel_size, padding, dilation, bias: stride and groups go by name"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype!r}")
    return Arguments(channels["in_channels"], channels["out_channels"], window, padding, dilations, strides, groups)


def _sizes(name: str, value: Any, dims: int, least: int) -> Sizes:
    number = as_index(value)
    given = as_indices(value) if number is None else (number,)
    sizes = given * dims if given is not None and len(given) == 1 else given
    if sizes is None or len(sizes) != dims or not all(size is not None and size >= least for size in sizes):
        kind = "positive" if least else "non-negative"
        raise ValueError(f"{name} must be a {kind} integer or a tuple of {dims} of them, got {value!r}")
    return sizes  # type: ignore[return-value]


def check_image(image: Any, dims: int) -> None:
    """Before a 1-D or 3-D module makes something else of it; 2-D images are ``conv2d``'s to check.

    What torch.fx's tracing passes for a tensor is let through.
    """
    if not isinstance(image, Tensor):
        if hasattr(type(image), "__torch_function__"):
            return
        raise TypeError(f"input must be a torch.Tensor, got {type(image).__name__}")
    if image.dim() not in (dims + 1, dims + 2):
        axes = {1: "L", 2: "H, W", 3: "D, H, W"}[dims]
        raise ValueError(f"input must have shape (N, C, {axes}) or (C, {axes}), got {tuple(image.shape)}")
