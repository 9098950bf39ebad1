"""Where the identity lies: in a filter bank, and among per-filter factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def diagonal(weight: Tensor, groups: int) -> Tensor:
    """View of the entries that the identity touches: (groups, min(K, C) / groups), the window's centre tap."""
    filters, _, *window = weight.shape
    centre = torch.unflatten(weight, 0, (groups, filters // groups))
    for size in window:
        centre = centre.select(3, size // 2)
    return centre.diagonal(dim1=1, dim2=2)


def identity_rows(per_filter: Tensor, filters: int, channels: int, groups: int) -> Tensor:
    """alpha, (K,) or (1,), as (groups, min(K, C) / groups): the entries that have an identity term.

    ``channels`` is C / groups, as in the weight's shape.
    """
    per_group = filters // groups
    return torch.unflatten(per_filter.expand(filters), 0, (groups, per_group))[:, : min(per_group, channels)]


def centred(matrix: Tensor, window: Sequence[int]) -> Tensor:
    """A filter bank (K, C, *window) that is ``matrix``, (K, C), under the window's centre tap and 0 elsewhere."""
    sides = [side for size in reversed(window) for side in (size // 2, size - 1 - size // 2)]
    in_a_window_of_one = (..., *[None] * len(window))
    return F.pad(matrix[in_a_window_of_one], sides)


def with_identity(filters: Tensor, alpha: Tensor, delta: Tensor) -> Tensor:
    """filters + diag(alpha) * delta, delta of zeros and ones; an infinite alpha makes no NaN of the zeros."""
    rows = alpha.view((-1,) + (1,) * (filters.dim() - 1)).to(filters.dtype)
    return filters + torch.where(delta != 0, rows, delta)
