"""Weight preparation of all layers of a network in one launch; formulas and one layer: single.py.

A program takes a tile of about as many elements whatever the layer, as many rows as fit, so rows of very
different lengths are balanced. It finds its work in two small tables:

    tiles  (programs,)          layer | kind << 16 | first row << 32
    table  (layers, WORDS)      addresses, byte offsets into the flat outputs, sizes

``kind`` is what has to be known when compiling (dtypes, layouts, tile shape); every kind is one branch of
the kernel. Addresses are read inside the branch: a hint on alignment then holds for that branch only.
Outputs share one flat allocation, so only parameter (and gradient) addresses are in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.plan import Plan
from triton_dirac.weight_prep.address_tables import DescriptorTables
from triton_dirac.weight_prep.layers import LayerSpec, PackedLayers
from triton_dirac.weight_prep.net_node import LayerTensors
from triton_dirac.weight_prep.rows import backward_rows, prepare_rows
from triton_dirac.weight_prep.single import OPTIONS, dense, is_channels_last, shared_sum

WORDS = tl.constexpr(8)
# Places in a kind: types of tensors; whether the first is aligned, steps of alpha and beta, layouts; the tile.
WEIGHT, ALPHA, BETA, OTHER, NORM, DBETA = map(tl.constexpr, range(6))  # OTHER: the output, or backward its gradient
ALIGNED, ALPHA_STEP, BETA_STEP, WEIGHT_LAST, OTHER_LAST = map(tl.constexpr, range(6, 11))
ALIGN, ROWS, BLOCK, LOOP = map(tl.constexpr, range(11, 15))


@triton.jit
def low(word):
    return word.to(tl.int32)


@triton.jit
def high(word):
    return (word >> 32).to(tl.int32)


@triton.jit
def pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """An address (an integer or a byte pointer) as a pointer to DTYPE, ALIGNED to 16 bytes or not."""
    typed = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        typed = tl.multiple_of(typed, 16)
    return typed


@triton.jit
def weight_prep_multi_kernel(
    table_ptr, tiles_ptr, out_ptr, norm_ptr,
    EPS: tl.constexpr, IDENTITY: tl.constexpr, KINDS: tl.constexpr,
):  # fmt: skip
    """Program i prepares the tile tiles[i]; out and norm are flat byte buffers. KINDS: see ``_kind``."""
    tile = tl.load(tiles_ptr + tl.program_id(0))
    row_ptr = table_ptr + (tile & 0xFFFF) * WORDS
    for index in tl.static_range(len(KINDS)):
        if (low(tile) >> 16) == index:
            _prepare_tile(row_ptr, high(tile), out_ptr, norm_ptr, EPS, IDENTITY, KINDS, index)


@triton.jit
def _prepare_tile(
    row_ptr, first_row, out_ptr, norm_ptr,
    EPS: tl.constexpr, IDENTITY: tl.constexpr, KINDS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    KIND: tl.constexpr = KINDS[INDEX]
    norm_group, sizes, window = tl.load(row_ptr + 4), tl.load(row_ptr + 6), tl.load(row_ptr + 7)
    prepare_rows(
        pointer(tl.load(row_ptr), KIND[WEIGHT], KIND[ALIGNED]),
        pointer(tl.load(row_ptr + 1), KIND[ALPHA], False),
        pointer(tl.load(row_ptr + 2), KIND[BETA], False),
        pointer(out_ptr + tl.load(row_ptr + 3), KIND[OTHER], True),
        pointer(norm_ptr + low(norm_group), KIND[NORM], False),
        first_row, low(sizes), high(sizes), low(window), high(window), high(norm_group),
        EPS, IDENTITY,
        KIND[ALPHA_STEP], KIND[BETA_STEP], KIND[WEIGHT_LAST], KIND[OTHER_LAST],
        KIND[ALIGN], KIND[ROWS], KIND[BLOCK], KIND[LOOP],
    )  # fmt: skip


@triton.jit
def weight_prep_multi_backward_kernel(
    table_ptr, tiles_ptr, norm_ptr, dweight_ptr, drows_ptr,
    EPS: tl.constexpr, IDENTITY: tl.constexpr, KINDS: tl.constexpr,
):  # fmt: skip
    """Program i takes the tile tiles[i]; norm, dweight and drows (dalpha, dbeta) are flat byte buffers."""
    tile = tl.load(tiles_ptr + tl.program_id(0))
    row_ptr = table_ptr + (tile & 0xFFFF) * WORDS
    for index in tl.static_range(len(KINDS)):
        if (low(tile) >> 16) == index:
            _backward_tile(row_ptr, high(tile), norm_ptr, dweight_ptr, drows_ptr, EPS, IDENTITY, KINDS, index)


@triton.jit
def _backward_tile(
    row_ptr, first_row, norm_ptr, dweight_ptr, drows_ptr,
    EPS: tl.constexpr, IDENTITY: tl.constexpr, KINDS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    KIND: tl.constexpr = KINDS[INDEX]
    norm_group, rows = tl.load(row_ptr + 4), tl.load(row_ptr + 5)
    sizes, window = tl.load(row_ptr + 6), tl.load(row_ptr + 7)
    backward_rows(
        pointer(tl.load(row_ptr + 1), KIND[OTHER], KIND[ALIGNED]),
        pointer(tl.load(row_ptr), KIND[WEIGHT], KIND[ALIGNED]),
        pointer(tl.load(row_ptr + 2), KIND[BETA], False),
        pointer(norm_ptr + low(norm_group), KIND[NORM], False),
        pointer(dweight_ptr + tl.load(row_ptr + 3), KIND[WEIGHT], True),
        pointer(drows_ptr + low(rows), KIND[ALPHA], False),
        pointer(drows_ptr + high(rows), KIND[DBETA], False),
        first_row, low(sizes), high(sizes), low(window), high(window), high(norm_group),
        EPS, IDENTITY,
        KIND[BETA_STEP], KIND[WEIGHT_LAST], KIND[OTHER_LAST],
        KIND[ALIGN], KIND[ROWS], KIND[BLOCK], KIND[LOOP],
    )  # fmt: skip


@lru_cache(maxsize=64)
def _packed(specs: tuple[tuple[Any, ...], ...], backward: bool) -> PackedLayers:
    return PackedLayers(tuple(LayerSpec(*spec) for spec in specs), backward)


_SHARED_TABLES = DescriptorTables()


def _prepared(
    steps: Plan,
    layers: list[LayerTensors],
    others: Sequence[tuple[torch.dtype, bool]],
    grads: Sequence[Tensor] | None,
    groups: int | Sequence[int],
    tables: DescriptorTables,
) -> tuple[PackedLayers, Tensor, Tensor]:
    """The packed layers, their table and tiles; others: (dtype, channels-last) of each out or gradient."""
    each = [groups] * len(layers) if isinstance(groups, int) else groups
    specs, told = [], []
    for i, ((weight, alpha, beta), (dtype, last), group) in enumerate(zip(layers, others, each, strict=True)):
        shared = alpha.numel() == 1, beta.numel() == 1
        aligned = (weight.data_ptr() | (grads[i].data_ptr() if grads else 0)) % 16 == 0
        dtypes = weight.dtype, alpha.dtype, beta.dtype, dtype
        specs.append(
            (tuple(weight.shape), group, *dtypes, *shared, is_channels_last(weight), last, aligned, weight.stride())
        )
        told += [weight, grads[i] if grads else alpha, beta]
    packed, device = _packed(tuple(specs), grads is not None), layers[0][0].device

    def table(*tensors: Tensor) -> Tensor:
        addresses = tuple(map(Tensor.data_ptr, tensors))
        # The packed layers are in the keys, by identity: they live as long as those do, and their content is the specs.
        return tables.get((packed, device, addresses), device, lambda: packed.words(addresses))

    def tiles(_: Tensor) -> Tensor:
        return tables.get((packed, device), device, lambda: packed.tiles)

    return packed, steps.do(table, *told), steps.do(tiles, told[0])


def plan_weight_prep_multi(
    layers: Sequence[LayerTensors],
    *,
    eps: float = 1e-12,
    identity: bool = True,
    dtype: torch.dtype | None = None,
    channels_last: bool | None = False,
    groups: int | Sequence[int] = 1,
    tables: DescriptorTables = _SHARED_TABLES,
    steps: Plan | None = None,
) -> tuple[list[Launch], list[Tensor], Tensor]:
    """(launches, outs, norms) of ``weight_prep_multi`` for dense layers; outs and norms are allocated, not
    filled. Also takes meta tensors."""
    layers, steps = list(layers), steps or Plan()
    if not layers:
        return [], [], torch.empty(0, dtype=torch.uint8)
    device = layers[0][0].device
    lasts = [is_channels_last(w) if channels_last is None else channels_last for w, _, _ in layers]
    others = [(dtype or w.dtype, last and _two_layouts(w)) for (w, _, _), last in zip(layers, lasts, strict=True)]
    packed, table, tiles = _prepared(steps, layers, others, None, groups, tables)
    out, norms = steps.new(packed.out.empty(device)), steps.new(packed.norms.empty(device))
    args = {"table_ptr": table, "tiles_ptr": tiles, "out_ptr": out, "norm_ptr": norms}
    constexprs = {"EPS": eps, "IDENTITY": identity, "KINDS": packed.kinds}
    launch = Launch(weight_prep_multi_kernel, (len(packed.tiles),), args, constexprs, OPTIONS)
    return [launch], packed.out.tensors(out, steps), norms


def plan_weight_prep_multi_backward(
    grads: Sequence[Tensor],
    layers: Sequence[LayerTensors],
    norms: Tensor,
    *,
    eps: float = 1e-12,
    identity: bool = True,
    groups: int | Sequence[int] = 1,
    tables: DescriptorTables = _SHARED_TABLES,
    steps: Plan | None = None,
) -> tuple[list[Launch], list[Tensor], list[Tensor]]:
    """(launches, dweights, drows) for dense grads and layers; drows: dalpha, dbeta of each layer in turn, one
    element per filter. Allocated, not filled."""
    layers, steps = list(layers), steps or Plan()
    if not layers:
        return [], [], []
    others = [(g.dtype, is_channels_last(g)) for g in grads]
    packed, table, tiles = _prepared(steps, layers, others, grads, groups, tables)
    dweight, drows = steps.new(packed.out.empty(norms.device)), steps.new(packed.rows.empty(norms.device))
    args = {"table_ptr": table, "tiles_ptr": tiles, "norm_ptr": norms}
    args |= {"dweight_ptr": dweight, "drows_ptr": drows}
    constexprs = {"EPS": eps, "IDENTITY": identity, "KINDS": packed.kinds}
    launch = Launch(weight_prep_multi_backward_kernel, (len(packed.tiles),), args, constexprs, OPTIONS)
    return [launch], packed.out.tensors(dweight, steps), packed.rows.tensors(drows, steps)


def weight_prep_multi(
    layers: Sequence[LayerTensors],
    *,
    eps: float = 1e-12,
    identity: bool = True,
    dtype: torch.dtype | None = None,
    channels_last: bool | None = False,
    groups: int | Sequence[int] = 1,
    tables: DescriptorTables = _SHARED_TABLES,
    steps: Plan | None = None,
) -> tuple[list[Tensor], Tensor]:
    """(outs, norms) of ``weight_prep`` for all layers (weight, alpha, beta) in one launch, on one device.

    Shapes, window dimensions and dtypes may be mixed; ``groups`` is one number or one for each layer, and
    ``channels_last`` None keeps each weight's layout. outs
    share one allocation. norms: bytes, for ``weight_prep_multi_backward`` only.
    """
    steps = steps or Plan()
    layers = [_dense_layer(layer, steps) for layer in layers]  # copies, whose addresses alone the launch has
    launches, outs, norms = plan_weight_prep_multi(
        layers,
        eps=eps, identity=identity, dtype=dtype, channels_last=channels_last, groups=groups, tables=tables, steps=steps,
    )  # fmt: skip
    for launch in launches:
        steps.launch(launch)
    return outs, norms


def weight_prep_multi_backward(
    grads: Sequence[Tensor],
    layers: Sequence[LayerTensors],
    norms: Tensor,
    *,
    eps: float = 1e-12,
    identity: bool = True,
    groups: int | Sequence[int] = 1,
    tables: DescriptorTables = _SHARED_TABLES,
    steps: Plan | None = None,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """[(dweight, dalpha, dbeta)] of ``weight_prep_backward`` for all layers in one launch.

    All share two allocations, but for gradients of shape (1,), which cost a sum each.
    """
    steps = steps or Plan()
    layers = [_dense_layer(layer, steps) for layer in layers]
    grads = [steps.do(_as_it_is_read, grad) for grad in grads]
    launches, dweights, drows = plan_weight_prep_multi_backward(
        grads, layers, norms, eps=eps, identity=identity, groups=groups, tables=tables, steps=steps
    )
    for launch in launches:
        steps.launch(launch)
    parts = zip(dweights, drows[::2], drows[1::2], layers, strict=True)
    return [
        (dweight, steps.do(shared_sum, dalpha, alpha), steps.do(shared_sum, dbeta, beta))
        for dweight, dalpha, dbeta, (_, alpha, beta) in parts
    ]


def _as_it_is_read(grad: Tensor) -> Tensor:
    return dense(grad.resolve_neg())  # a kernel reads what is in memory


def _dense_layer(layer: LayerTensors, steps: Plan) -> LayerTensors:
    weight, alpha, beta = layer
    return steps.do(dense, weight), steps.do(Tensor.contiguous, alpha), steps.do(Tensor.contiguous, beta)


def _two_layouts(weight: Tensor) -> bool:
    """Whether OIHW and OHWI differ for this shape."""
    return weight.shape[1] > 1 and weight.shape[2:].numel() > 1
