"""Checks of constructor arguments, the Dirac modules' and the nets'; torch leaves much of it to the first forward pass.

What is accepted comes back as plain integers and tuples of them, whatever they were: numpy's, of one entry for all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from triton_dirac.exact import BEYOND, as_index, as_indices

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
    if not isinstance(value, str) or value not in accepted:  # an array would be compared entry by entry
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


def positive_integer(name: str, value: Any) -> int:
    number = as_index(value)
    if number is None or not 1 <= number < BEYOND:
        raise ValueError(f"{name} must be a positive integer below 2 ** 31, got {value!r}")
    return number


def check_arguments(
    dims: int, in_channels: Any, out_channels: Any, kernel_size: Any,
    padding: Any, dilation: Any, bias: Any, stride: Any, groups: Any, dtype: Any,
) -> Arguments:  # fmt: skip
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
    if sizes is None or len(sizes) != dims or not all(size is not None and least <= size < BEYOND for size in sizes):
        kind = "positive" if least else "non-negative"
        raise ValueError(f"{name} must be a {kind} integer below 2 ** 31 or a tuple of {dims} of them, got {value!r}")
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


def identity_of(layer: Any, delta: Any) -> str:
    """Which identity the filter bank ``delta`` of a Dirac layer's state dict is. Raises ValueError if it is none."""
    if not isinstance(delta, Tensor):
        raise ValueError(f"delta must be a torch.Tensor, got {type(delta).__name__}")
    theirs, own = tuple(delta.shape), tuple(layer.weight.shape)
    if theirs != own:
        raise ValueError(f"size mismatch for delta: {theirs} in the checkpoint, {own} in the model")
    small, large = sorted((layer.in_channels, layer.out_channels))
    known = ("dirac", "tiled") if layer.groups == 1 and large % small == 0 else ("dirac",)
    for identity in sorted(known, key=lambda name: name != layer.identity):  # the own one first: some are both
        if delta.is_meta or torch.equal(delta, layer._make_delta(identity, delta.dtype, delta.device)):
            return identity
    raise ValueError("delta is neither version 2's identity filter bank nor version 1's")


def check_foldable(layer: nn.Module, kind: type[nn.Module]) -> None:
    """That a plain convolution with the layer's parameters does the same as the layer, a ``kind``, at each call."""
    name = type(layer).__name__
    if parametrize.is_parametrized(layer):
        raise ValueError(
            f"{name} cannot be folded while parametrised: call torch.nn.utils.parametrize.remove_parametrizations first"
        )
    for method in ("forward", "__call__", "_padded", "_tensors", "_ready_filters", "_effective_weight"):
        if method in vars(layer) or getattr(type(layer), method) is not getattr(kind, method):
            raise TypeError(f"{name} overrides {method}: no plain convolution does the same")
    made = [tensor for tensor in ("weight", "alpha", "beta", "bias") if tensor not in layer._parameters]
    if made:
        raise ValueError(
            f"{name} cannot be folded while hooks make its {made[0]}: make it permanent first, by "
            "torch.nn.utils.prune.remove, remove_weight_norm or remove_spectral_norm"
        )


@torch.no_grad()
def check_not_rescaled(module: str, old: Tensor | None, new: Tensor | None) -> None:
    """That a weight is not assigned its own filters again, each scaled, as conv-bn fusers do.

    The layer's function does not depend on the length of W's rows: the fuser's factor would be lost in silence. Anyone
    who means W and not the filters has no reason to assign that. Told by values, where there are some to read; rows
    of one entry are all multiples of one another, and are not judged.
    """
    plain = all(type(tensor) is nn.Parameter and not tensor.is_meta for tensor in (old, new))
    if not plain or old is new or old.shape != new.shape or old[0].numel() < 2:  # type: ignore[union-attr, index]
        return
    before, after = (tensor.detach().flatten(1).double().cpu() for tensor in (old, new))  # type: ignore[union-attr]
    if torch.equal(before, after) or not after.any():
        return
    slack = 4 * torch.finfo(new.dtype).eps  # type: ignore[union-attr]
    unit_before, unit_after = (nn.functional.normalize(rows, eps=1e-300) for rows in (before, after))
    along = (unit_before * unit_after).sum(1, keepdim=True)
    is_multiple = (unit_after - along * unit_before).norm(dim=1) <= slack  # zero rows, too: a factor of 0
    if is_multiple.all():
        raise ValueError(
            f"weight of {module} must not be its own filters, each scaled, as a batch-norm fuser assigns: that changes "
            "nothing, since each filter is normalised. Fold first: triton_dirac.fold(model, example=x), or "
            "fold(model, norms=False) for a fuser to find plain convolutions. To scale W, write to weight in place"
        )
