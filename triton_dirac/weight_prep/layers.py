"""What a launch over many layers needs before any address is known: tiles, kinds, places in flat outputs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_dirac.runtime.memory import sharing
from triton_dirac.runtime.plan import Plan
from triton_dirac.weight_prep.single import Filters, RowTile, norm_dtype

LAYER_ALIGNMENT = 128  # bytes, of every layer's place in a flat output

TL_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@dataclass(frozen=True)
class LayerSpec:
    """All of one layer but its addresses. ``other``: the prepared weight, in the backward its gradient."""

    shape: tuple[int, ...]
    groups: int
    weight: torch.dtype
    alpha: torch.dtype
    beta: torch.dtype
    other: torch.dtype
    alpha_shared: bool
    beta_shared: bool
    weight_last: bool
    other_last: bool
    aligned: bool  # weight (and gradient) start at multiples of 16 bytes
    strides: tuple[int, ...] | None = None  # the weight's, whose gradient has the same; by default the layout's

    @property
    def norm(self) -> torch.dtype:
        return norm_dtype(self.weight)

    @property
    def dalpha(self) -> torch.dtype:
        """Of the gradients per filter: alpha's dtype, norm's where they have yet to be summed."""
        return self.norm if self.alpha_shared else self.alpha

    @property
    def dbeta(self) -> torch.dtype:
        return self.norm if self.beta_shared else self.beta

    @property
    def filters(self) -> Filters:
        return Filters.of(self.shape, self.groups)


class _Place(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int  # in elements


class Flat:
    """Places of tensors in one allocation; ``place`` while planning, ``views`` to make them."""

    def __init__(self) -> None:
        self.bytes = 0
        self._places: list[_Place] = []

    def place(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        channels_last: bool = False,
        own: tuple[int, ...] | None = None,
    ) -> int:
        """The byte offset of the next tensor; ``own`` strides differ from the layout's in dimensions of one at most."""
        offset = self.bytes
        order = (0, *range(2, len(shape)), 1) if channels_last else tuple(range(len(shape)))
        strides, step = [0] * len(shape), 1
        for dim in reversed(order):
            strides[dim] = step
            step *= shape[dim]
        self._places.append(_Place(dtype, shape, own or tuple(strides), offset // dtype.itemsize))
        self.bytes += triton.cdiv(step * dtype.itemsize, LAYER_ALIGNMENT) * LAYER_ALIGNMENT
        return offset

    def empty(self, device: torch.device) -> Tensor:
        """The allocation, as bytes."""
        return torch.empty(self.bytes, dtype=torch.uint8, device=device)

    def tensors(self, flat: Tensor, steps: Plan) -> list[Tensor]:
        """The tensors, in the order in which they were placed; they share the allocation.

        Of a function's outputs that are views of one tensor autograd lets nobody write to any: these do not look like
        views to be changed in place.
        """

        def make(flat: Tensor) -> list[Tensor]:
            of = {dtype: flat.view(dtype) for dtype in dtypes}
            return [sharing(of[dtype], shape, strides, offset) for dtype, shape, strides, offset in places]

        places, dtypes = self._places, {place.dtype for place in self._places}
        return steps.do_all(make, flat)


def packed(low: int, high: int, bits: int = 32) -> int:
    """Two numbers in one word, as ``multi.low`` and ``high`` take it apart: signed numbers of so many bits."""
    most = 1 << bits - 1
    if not (0 <= low < most and 0 <= high < most):
        raise ValueError(f"layers must have sizes and be as many as {bits} bits hold, got {low} and {high}")
    return low | high << bits


class PackedLayers:
    """What a launch over given layers needs and no address decides: kinds, tiles, places of the outputs."""

    def __init__(self, specs: tuple[LayerSpec, ...], backward: bool) -> None:
        self.specs = specs
        self.out, self.norms, self.rows = Flat(), Flat(), Flat()
        self.tiles, self._words = array("q"), array("q")  # the latter without addresses: 0, 0, 0 and 5 of each layer
        kinds: dict[Any, int] = {}
        for layer, spec in enumerate(specs):
            filters, count = spec.filters, (spec.shape[0],)
            tile = RowTile.of(filters.length, spec.weight.itemsize)
            kind = kinds.setdefault(_kind(spec, tile, backward), len(kinds))
            first_rows = range(0, filters.filters, tile.rows)
            self.tiles.extend(packed(packed(layer, kind, 16), first) for first in first_rows)
            if backward:
                out = self.out.place(spec.shape, spec.weight, spec.weight_last, spec.strides)
                drows = packed(self.rows.place(count, spec.dalpha), self.rows.place(count, spec.dbeta))
            else:
                out, drows = self.out.place(spec.shape, spec.other, spec.other_last), 0
            norm = self.norms.place(count, spec.norm)
            sizes = packed(filters.filters, filters.channels), packed(filters.taps, filters.centre)
            self._words.extend((0, 0, 0, out, packed(norm, filters.per_group), drows, *sizes))
        self.kinds = tuple(kinds)

    def words(self, addresses: Sequence[int]) -> array[int]:
        """The table for weight's, alpha's (or gradient's) and beta's address of each layer in turn."""
        words = self._words[:]
        for which in range(3):
            words[which::8] = array("q", addresses[which::3])
        return words


def _kind(spec: LayerSpec, tile: RowTile, backward: bool) -> tuple[Any, ...]:
    """The constants of one branch of the kernels, in the order of their names in ``multi``:
    6 types, 5 flags, 4 of the tile.

    Flat, because Triton's tuples of constants do not nest any deeper.
    """
    alpha = spec.dalpha if backward else spec.alpha
    types = (spec.weight, alpha, spec.beta, spec.other, spec.norm, spec.dbeta)
    steps = int(not spec.alpha_shared), int(not spec.beta_shared)
    return (
        *(TL_DTYPES[t] for t in types),
        spec.aligned, *steps, spec.weight_last, spec.other_last,
        *tile.constexprs.values(),
    )  # fmt: skip
