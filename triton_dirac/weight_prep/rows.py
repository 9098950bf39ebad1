"""What one program does with a tile of filters: the body of the one-layer and of the one-launch kernels.

A filter is a row of L = channels * taps contiguous elements, in either layout: OIHW (tap innermost) or OHWI
(channel innermost, "last"). A program owns ROWS whole rows, padded to BLOCK columns, in registers: every
element is read once and written once. A row too long for that (LOOP) is walked twice, the second time from
the cache. Formulas are in single.py.

Both layouts keep a row in the same place and only permute inside it, so loads and stores are whole 16-byte
vectors and the permutation is a ``tl.gather`` in registers and shared memory.

Rows of 1e-30 or 1e18 would under- or overflow when squared in float32: a row whose sum of squares leaves the
safe range is summed again, scaled by a power of two, which is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def safe_range(ACC: tl.constexpr):
    """(lowest, highest) sum of squares that lost nothing, and the scales for rows below and above."""
    if ACC.is_fp64():
        return 2.0**-800, 2.0**1000, 2.0**600, 2.0**-600
    else:
        return 2.0**-80, 2.0**120, 2.0**100, 2.0**-80


@triton.jit
def sum_fits(squares, ACC: tl.constexpr):
    """False for sums that are too small, too large, infinite or NaN."""
    lowest, highest, _, _ = safe_range(ACC)
    return (squares >= lowest) & (squares <= highest)


@triton.jit
def rescue_scale(squares, ACC: tl.constexpr):
    """The power of two that brings a row with a sum outside the safe range back into it."""
    lowest, _, up, down = safe_range(ACC)
    return tl.where(squares < lowest, tl.full(squares.shape, up, ACC), tl.full(squares.shape, down, ACC))


@triton.jit
def tile_norms(tile, valid):
    """||row||_2 of each row of a (ROWS, BLOCK) tile; rows that are not valid do not ask for a second sum."""
    ACC: tl.constexpr = tile.dtype
    squares = tl.sum(tile * tile, 1)
    norm = tl.sqrt(squares)
    fits = sum_fits(squares, ACC)
    if tl.min((fits | (valid == 0)).to(tl.int32), 0) == 0:
        scale = rescue_scale(squares, ACC)
        scaled = tile * scale[:, None]
        norm = tl.where(fits, norm, tl.sqrt(tl.sum(scaled * scaled, 1)) / scale)
    return norm


@triton.jit
def long_row_squares(row_ptr, length, scale, BLOCK: tl.constexpr):
    """Sum of (scale * w)^2 over a row of any length; scale and the sum have shape (1,)."""
    partial = tl.zeros((1, BLOCK), scale.dtype)
    for begin in range(0, length, BLOCK):
        column = begin + tl.arange(0, BLOCK)[None, :]
        w = tl.load(row_ptr + column, mask=column < length, other=0.0).to(scale.dtype) * scale[:, None]
        partial += w * w
    return tl.sum(partial, 1)


@triton.jit
def long_row_norm(row_ptr, length, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """||row||_2 of one row of any length, of shape (1,)."""
    squares = long_row_squares(row_ptr, length, tl.full((1,), 1.0, ACC), BLOCK)
    norm = tl.sqrt(squares)
    if tl.min(sum_fits(squares, ACC).to(tl.int32), 0) == 0:
        scale = rescue_scale(squares, ACC)
        norm = tl.sqrt(long_row_squares(row_ptr, length, scale, BLOCK)) / scale
    return norm


@triton.jit
def clamp_norm(norm, EPS: tl.constexpr):
    """max(norm, eps), NaN kept, as torch.clamp_min does."""
    return tl.maximum(norm, tl.full(norm.shape, EPS, norm.dtype), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def identity_column(row, channels, taps, centre, per_group, LAST: tl.constexpr):
    """Where in its row filter ``row`` has its identity term; -1 if it has none."""
    d = row % per_group
    column = centre * channels + d if LAST else d * taps + centre
    return tl.where(d < channels, column, -1)


@triton.jit
def change_layout(tile, length, channels, taps, LAST: tl.constexpr):
    """The rows of a (ROWS, BLOCK) tile in the layout LAST, coming from the other one.

    The gather is of rank one and needs two warps: any other is compiled to a warp shuffle for every pair of
    elements a thread holds (4096 shuffles and spills for 1152 elements a row), this one goes through shared
    memory. A rounded reciprocal stands in for the integer division: exact for rows below 2^20 elements, as
    the quotient's fraction is never nearer to a whole number than 0.5 / inner, and far cheaper.
    """
    ROWS: tl.constexpr = tile.shape[0]
    BLOCK: tl.constexpr = tile.shape[1]
    inner = channels if LAST else taps
    outer = taps if LAST else channels
    place = tl.arange(0, ROWS * BLOCK)
    column = place % BLOCK
    quotient = ((column.to(tl.float32) + 0.5) * (1.0 / inner.to(tl.float32))).to(tl.int32)
    source = (column - quotient * inner) * outer + quotient
    source = place - column + tl.where(column < length, source, 0)
    return tl.gather(tile.reshape((ROWS * BLOCK,)), source, 0).reshape((ROWS, BLOCK))


@triton.jit
def source_column(column, channels, taps, LAST: tl.constexpr):
    """Column in the other layout of what stands at ``column`` in a row whose layout is LAST."""
    inner = channels if LAST else taps
    outer = taps if LAST else channels
    return column % inner * outer + column // inner


@triton.jit
def row_length(channels, taps, ALIGN: tl.constexpr):
    """channels * taps, spelled so that the compiler sees it is a multiple of ALIGN and uses wide vectors."""
    return channels * taps // ALIGN * ALIGN


@triton.jit
def narrow(values, DTYPE: tl.constexpr):
    """Cast to DTYPE; from float64 to 16 bits by way of float32, which Triton's interpreter needs."""
    if values.dtype.is_fp64() and DTYPE.primitive_bitwidth == 16:
        values = values.to(tl.float32)
    return values.to(DTYPE)


@triton.jit
def prepare_rows(
    weight_ptr, alpha_ptr, beta_ptr, out_ptr, norm_ptr,
    first_row, filters, channels, taps, centre, per_group,
    EPS: tl.constexpr, IDENTITY: tl.constexpr,
    ALPHA_STEP: tl.constexpr, BETA_STEP: tl.constexpr, WEIGHT_LAST: tl.constexpr, OUT_LAST: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """out = beta * w / max(norm, eps) (+ alpha at the identity's place) for rows first_row .. + ROWS.

    weight, out: (filters, channels * taps). alpha, beta: (filters,) for STEP 1, (1,) for STEP 0.
    norm: (filters,), not clamped.
    """
    ACC: tl.constexpr = norm_ptr.dtype.element_ty
    length = row_length(channels, taps, ALIGN)
    start = first_row.to(tl.int64) * length
    weight_ptr += start
    out_ptr += start
    row = first_row + tl.arange(0, ROWS)
    valid = row < filters
    beta = tl.load(beta_ptr + row * BETA_STEP, mask=valid, other=0.0).to(ACC)[:, None]
    if IDENTITY:
        alpha = tl.load(alpha_ptr + row * ALPHA_STEP, mask=valid, other=0.0).to(ACC)[:, None]
        placed: tl.constexpr = OUT_LAST if LOOP else WEIGHT_LAST
        identity_at = identity_column(row, channels, taps, centre, per_group, placed)[:, None]
    if LOOP:
        norm = long_row_norm(weight_ptr, length, ACC, BLOCK)
        clamped = clamp_norm(norm, EPS)[:, None]
        for begin in range(0, length, BLOCK):
            column = begin + tl.arange(0, BLOCK)[None, :]
            mask = column < length
            source = column
            if WEIGHT_LAST != OUT_LAST:
                source = source_column(column, channels, taps, OUT_LAST)
            scaled = beta * (tl.load(weight_ptr + source, mask=mask, other=0.0).to(ACC) / clamped)
            if IDENTITY:
                scaled += tl.where(column == identity_at, alpha, 0.0)
            tl.store(out_ptr + column, narrow(scaled, out_ptr.dtype.element_ty), mask=mask)
    else:
        column = tl.arange(0, BLOCK)[None, :]
        offset = tl.arange(0, ROWS)[:, None] * length + column
        mask = valid[:, None] & (column < length)
        tile = tl.load(weight_ptr + offset, mask=mask, other=0.0).to(ACC)
        norm = tile_norms(tile, valid)
        scaled = beta * (tile / clamp_norm(norm, EPS)[:, None])
        if IDENTITY:
            scaled += tl.where(column == identity_at, alpha, 0.0)
        out = narrow(scaled, out_ptr.dtype.element_ty)
        if WEIGHT_LAST != OUT_LAST:
            out = change_layout(out, length, channels, taps, OUT_LAST)
        tl.store(out_ptr + offset, out, mask=mask)
    tl.store(norm_ptr + row, norm, mask=valid)


@triton.jit
def backward_rows(
    grad_ptr, weight_ptr, beta_ptr, norm_ptr, dweight_ptr, dalpha_ptr, dbeta_ptr,
    first_row, filters, channels, taps, centre, per_group,
    EPS: tl.constexpr, IDENTITY: tl.constexpr,
    BETA_STEP: tl.constexpr, WEIGHT_LAST: tl.constexpr, GRAD_LAST: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """dweight, dalpha and dbeta of rows first_row .. + ROWS, from grad (the layout of ``out``) and weight.

    dalpha, dbeta: (filters,), one per row even where alpha and beta are shared.
    """
    ACC: tl.constexpr = norm_ptr.dtype.element_ty
    length = row_length(channels, taps, ALIGN)
    start = first_row.to(tl.int64) * length
    grad_ptr += start
    weight_ptr += start
    dweight_ptr += start
    row = first_row + tl.arange(0, ROWS)
    valid = row < filters
    norm = tl.load(norm_ptr + row, mask=valid, other=1.0)
    clamped = clamp_norm(norm, EPS)
    below = norm < tl.full((ROWS,), EPS, ACC)
    beta = tl.load(beta_ptr + row * BETA_STEP, mask=valid, other=0.0).to(ACC)
    identity_at = identity_column(row, channels, taps, centre, per_group, GRAD_LAST)
    has_identity = valid & (identity_at >= 0) & IDENTITY
    dalpha = tl.load(grad_ptr + tl.arange(0, ROWS) * length + identity_at, mask=has_identity, other=0.0)
    tl.store(dalpha_ptr + row, narrow(dalpha, dalpha_ptr.dtype.element_ty), mask=valid)
    if LOOP:
        partial = tl.zeros((ROWS, BLOCK), ACC)
        for begin in range(0, length, BLOCK):
            column = begin + tl.arange(0, BLOCK)[None, :]
            mask = column < length
            source = column
            if WEIGHT_LAST != GRAD_LAST:
                source = source_column(column, channels, taps, WEIGHT_LAST)
            w = tl.load(weight_ptr + column, mask=mask, other=0.0).to(ACC)
            partial += tl.load(grad_ptr + source, mask=mask, other=0.0).to(ACC) * (w / clamped[:, None])
        dbeta = tl.sum(partial, 1)
        along = tl.where(below, 0.0, dbeta)[:, None]
        for begin in range(0, length, BLOCK):
            column = begin + tl.arange(0, BLOCK)[None, :]
            mask = column < length
            source = column
            if WEIGHT_LAST != GRAD_LAST:
                source = source_column(column, channels, taps, WEIGHT_LAST)
            unit = tl.load(weight_ptr + column, mask=mask, other=0.0).to(ACC) / clamped[:, None]
            grad = tl.load(grad_ptr + source, mask=mask, other=0.0).to(ACC)
            dweight = beta[:, None] * ((grad - along * unit) / clamped[:, None])
            tl.store(dweight_ptr + column, narrow(dweight, dweight_ptr.dtype.element_ty), mask=mask)
    else:
        column = tl.arange(0, BLOCK)[None, :]
        offset = tl.arange(0, ROWS)[:, None] * length + column
        mask = valid[:, None] & (column < length)
        grad = tl.load(grad_ptr + offset, mask=mask, other=0.0)
        unit = tl.load(weight_ptr + offset, mask=mask, other=0.0).to(ACC) / clamped[:, None]
        if WEIGHT_LAST != GRAD_LAST:
            grad = change_layout(grad, length, channels, taps, WEIGHT_LAST)
        grad = grad.to(ACC)
        dbeta = tl.sum(grad * unit, 1)
        along = tl.where(below, 0.0, dbeta)[:, None]
        dweight = beta[:, None] * ((grad - along * unit) / clamped[:, None])
        tl.store(dweight_ptr + offset, narrow(dweight, dweight_ptr.dtype.element_ty), mask=mask)
    tl.store(dbeta_ptr + row, narrow(dbeta, dbeta_ptr.dtype.element_ty), mask=valid)
