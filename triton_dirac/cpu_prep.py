"""Weight preparation in one pass on a CPU, by the kernels that torch has for its weight norm.

They read and write everything once, where a norm and a product are two passes over memory. What they lack:
they square in float32, so that rows of 1e19 overflow, and know no eps, so that zero filters give NaN. Such rows
(``unfit_rows``) are the caller's to do again; there are hardly ever any.

Every call of torch counts here: ten of them take as long as the kernel does for a layer of 32 filters.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from triton_dirac.tracing import is_plain

# Norms between which no square underflows or overflows and, in the backward, no <G, W> / n^3 does.
SMALLEST, LARGEST = 1e-12, 1e12


def can_run(weight: Tensor, *others: Tensor) -> bool:
    """Whether ``weight`` is a float32 filter bank on a CPU, and this is eager code on ordinary tensors."""
    return (
        not torch.compiler.is_compiling()
        and weight.dtype is torch.float32
        and weight.is_cpu
        and weight.numel() > 0
        and is_plain(weight, *others)
    )


def scaled(weight: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """(beta * W / ||W_k||, ||W_k||): the weight's shape and layout; (K,)."""
    last = _is_channels_last(weight)
    own = _stored(weight, last)
    prepared, norm = torch._weight_norm_interface(own, _per_row(beta, own), 0)
    return prepared.movedim(-1, 1) if last else prepared, norm.view(-1)


def gradients(grad: Tensor, weight: Tensor, beta: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """(dW, <G_k, W_k> / ||W_k||): the weight's shape and layout; (K,)."""
    last = _is_channels_last(weight)
    own = _stored(weight, last)
    dweight, dot = torch.ops.aten._weight_norm_interface_backward.default(
        _stored(grad, last), own, _per_row(beta, own), _per_row(norm, own), 0
    )
    return dweight.movedim(-1, 1) if last else dweight, dot.view(-1)


def unfit_rows(norm: Tensor, eps: float) -> Tensor | None:
    """Indices of the rows that the kernels do not do right: below eps, extreme, NaN. None if there are none."""
    lowest = max(eps, SMALLEST)
    least, most = norm.aminmax()
    if least.item() >= lowest and most.item() <= LARGEST:
        return None
    return ((norm >= lowest) & (norm <= LARGEST)).logical_not_().nonzero().view(-1)


def diagonal(tensor: Tensor, groups: int) -> Tensor:
    """``torch_backend.diagonal`` in one call; without the first dimension if ``groups`` is 1."""
    shape, steps, first = _diagonal(tensor.shape, tensor.stride(), groups)
    return tensor.as_strided(shape, steps, tensor.storage_offset() + first)


@lru_cache(maxsize=256)
def _diagonal(shape: tuple[int, ...], strides: tuple[int, ...], groups: int) -> tuple[tuple, tuple, int]:
    """(shape, strides, first element's offset) of the diagonal of such a filter bank."""
    filters, channels, *window = shape
    filter_step, channel_step, *window_steps = strides
    centre = sum(size // 2 * step for size, step in zip(window, window_steps, strict=True))
    per_group, step = min(filters // groups, channels), filter_step + channel_step
    if groups == 1:
        return (per_group,), (step,), centre
    return (groups, per_group), (filters // groups * filter_step, step), centre


def _is_channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()


def _stored(tensor: Tensor, last: bool) -> Tensor:
    """As (K, *window, C) or as it is, contiguous; a copy where it is not stored so."""
    return (tensor.movedim(1, -1) if last else tensor).contiguous()


def _per_row(per_filter: Tensor, own: Tensor) -> Tensor:
    """(K,) or (1,) as (K, 1, ..., 1)."""
    if per_filter.shape[0] != own.shape[0]:
        per_filter = per_filter.expand(own.shape[0])
    return per_filter.contiguous().view(-1, *(1,) * (own.dim() - 1))
