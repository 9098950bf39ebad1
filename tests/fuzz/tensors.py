"""Tensors as callers have them: dense or not, aligned or not, of ordinary and of extreme numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.placement import CPU


def _off_alignment(values: Tensor) -> Tensor:
    memory = values.new_zeros(values.numel() + 1)
    return memory[1:].view(values.shape).copy_(values)


def _inside_a_larger(values: Tensor) -> Tensor:
    memory = values.new_full([size + 2 for size in values.shape], math.nan)
    for axis, size in enumerate(values.shape):
        memory = memory.narrow(axis, 1, size)
    return memory.copy_(values)


def _overlapping(values: Tensor) -> Tensor:
    """Element (i, j, ...) is element i + j + ... of memory: other values, but for a single element."""
    length = max(1, sum(values.shape) - values.dim() + 1)
    memory = values.new_zeros(length)
    some = values.flatten()[:length]
    memory[: some.numel()] = some
    return memory.as_strided(values.shape, (1,) * values.dim())


# Each gives a tensor of the same shape, and of the same values where memory allows it.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda v: v.contiguous(),
    "channels last": lambda v: v.movedim(1, -1).contiguous().movedim(-1, 1) if v.dim() > 1 else v,
    "off alignment": _off_alignment,
    "every second": lambda v: torch.stack((v, v.new_full(v.shape, math.nan)), dim=-1)[..., 0],
    "transposed": lambda v: v.transpose(0, -1).contiguous().transpose(0, -1),
    "inside a larger": _inside_a_larger,
    "expanded": lambda v: v[:1].expand(v.shape) if v.shape[0] else v,
    "one value": lambda v: v.new_full((), 0.75).expand(v.shape),
    "overlapping": _overlapping,
    "negated view": lambda v: torch._neg_view(-v),
}
ORDINARY = ("normal", "normal", "normal", "zeros", "negative zeros", "a zero row")
EXTREME = ("subnormal", "huge", "infinite", "nan")


def _fill(content: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device=CPU).to(dtype)
    limits = torch.finfo(dtype)
    if content == "zeros":
        return values.zero_()
    if content == "negative zeros":
        return values.zero_().neg()
    if content == "subnormal":
        return values * (limits.tiny / 4)
    if content == "huge":  # their squares overflow, in the dtype though not in the definition's float64
        return values * min(math.sqrt(limits.max), 1e100)
    if values.numel() and content != "normal":
        at = values[seed % values.shape[0]]
        if content == "a zero row":
            at.zero_()
        else:
            at.flatten()[:1].fill_({"infinite": math.inf if seed % 2 else -math.inf, "nan": math.nan}[content])
            values[seed % values.shape[0]] = at
    return values


class Spec(NamedTuple):
    """A tensor to be made; hypothesis prints it where an example fails."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    content: str
    trained: bool
    seed: int

    def make(self, device: torch.device, seed: int = 0) -> Tensor:
        """The tensor, a leaf; ``seed`` gives others of the same kind."""
        values = _fill(self.content, self.shape, self.dtype, self.seed + 1000 * seed).to(device)
        return LAYOUTS[self.layout](values).detach().requires_grad_(self.trained)


def specs(
    shape: tuple[int, ...], dtype: torch.dtype, contents: tuple[str, ...] = ORDINARY, trained: bool | None = None
) -> st.SearchStrategy[Spec]:
    return st.builds(
        Spec,
        st.just(shape),
        st.just(dtype),
        st.sampled_from(list(LAYOUTS)),
        st.sampled_from(contents),
        st.booleans() if trained is None else st.just(trained),
        st.integers(0, 999),
    )
