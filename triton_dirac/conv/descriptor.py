"""The tile loader: fprop and dgrad of stride 1 with both operands read through tensor descriptors.

On sm_90 and newer these are TMA loads. As in batch order, the rows of a tile are one result pixel of BLOCK_M images,
so that one tap of them is one source pixel of the same images: a tap is inside the image for all rows or for none, and
the walk leaves out those outside. The descriptors' first dimension is the pixel (of the weight: the tap), of which a
block has one: what is left is a plain matrix, which Triton feeds to the matrix unit without a detour through registers.

Two things keep the matrix unit from multiplying zeros where channels are no power of two:

- the sum takes blocks of BLOCK_K channels, then, in a second walk over the taps, one block of TAIL_K (160 = 2 * 64 +
  32, 80 = 64 + 16). What of it no channel fills is zero in both operands, never a neighbour's inf or NaN times zero;
- a tile has BLOCK_N columns and EXTRA_N more in a second accumulator (160 = 128 + 32, 320 = 256 + 64): one load of
  the source serves all columns.

On an H200 (us; before these two, and cuDNN): 160 channels of 32x32 103 (187, 123), 320 of 16x16 89 (115, 112), 80 of
32x32 51 (134, 56).
"""

import triton
import triton.language as tl

from triton_dirac.conv.taps import (
    axis_taps,
    clip,
    divided,
    dot,
    first_of,
    identity,
    next_tap,
    store,
    tap_walk,
    tile_of,
)


@triton.jit
def weight_block(
    tiles, tap, column, channel, group,
    C: tl.constexpr, K: tl.constexpr, DGRAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_K, BLOCK_N]: the weights of one tap from channels to columns."""
    if DGRAD:
        return tiles.load([tap, group * C + channel, column]).reshape(BLOCK_K, BLOCK_N)
    else:
        return tiles.load([tap, group * K + column, channel]).reshape(BLOCK_N, BLOCK_K).T


@triton.jit
def sum_taps(
    acc, extra, source_tiles, weight_tiles, extra_tiles,
    image, pixel, filter_tap, column, group, taps_h, taps_w, W,
    FIRST: tl.constexpr, BLOCKS: tl.constexpr,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, DGRAD: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXTRA_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(acc, extra) + the sum over taps and, more slowly, over BLOCKS blocks of BLOCK_K channels from FIRST on.

    ``pixel`` and ``filter_tap`` are the first tap's; from there the walk is as in ``taps``.
    """
    TAP_STEP: tl.constexpr = -1 if DGRAD else 1
    next_row = DILATION_H * W - (taps_w - 1) * DILATION_W
    first_again = -(taps_h - 1) * DILATION_H * W - (taps_w - 1) * DILATION_W
    next_filter_row = (S - taps_w + 1) * TAP_STEP
    first_filter_again = -((taps_h - 1) * S + taps_w - 1) * TAP_STEP
    first, row_ends, end = tap_walk(taps_h, taps_w, R, S)
    tap = first
    channel = tl.full((), FIRST, tl.int32)
    for _ in range(taps_h * taps_w * BLOCKS):
        x = source_tiles.load([pixel, image, group * C + channel]).reshape(BLOCK_M, BLOCK_K)
        y = weight_block(weight_tiles, filter_tap, column, channel, group, C, K, DGRAD, BLOCK_N, BLOCK_K)
        acc = dot(x, y, acc, PRECISION, WIDEN)
        if EXTRA_N:
            y = weight_block(extra_tiles, filter_tap, column + BLOCK_N, channel, group, C, K, DGRAD, EXTRA_N, BLOCK_K)
            extra = dot(x, y, extra, PRECISION, WIDEN)
        tap, row_end, last = next_tap(tap, first, row_ends, end, R, S)
        pixel += tl.where(last, first_again, tl.where(row_end, next_row, DILATION_W))
        filter_tap += tl.where(last, first_filter_again, tl.where(row_end, next_filter_row, TAP_STEP))
        channel += tl.where(last, BLOCK_K, 0)
    return acc, extra


@triton.jit
def tile_gemm(
    source_tiles, weight_tiles, extra_tiles, source_tail, weight_tail, extra_tail,
    source, result, bias, alpha,
    N, H, W, P, Q, pad_h, pad_w,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, GROUPS: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DGRAD: tl.constexpr, BIAS: tl.constexpr, IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXTRA_N: tl.constexpr,
    BLOCK_K: tl.constexpr, TAIL_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """source_tiles: (H * W, N, GROUPS * C) by 1 x BLOCK_M x BLOCK_K. weight_tiles: (R * S, filters, channels) by
    1 x BLOCK_N x BLOCK_K, for dgrad 1 x BLOCK_K x BLOCK_N; extra_tiles the same with EXTRA_N. ``tail``: with TAIL_K
    for BLOCK_K. Those of EXTRA_N = 0 and TAIL_K = 0 are None. Grid: (row tiles * column tiles, GROUPS).
    """
    TAP_STEP: tl.constexpr = -1 if DGRAD else 1
    COLUMNS: tl.constexpr = BLOCK_N + EXTRA_N
    group = tl.program_id(1)
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(N, BLOCK_M) * P * Q, tl.cdiv(K, COLUMNS), GROUP_M)
    block, place = divided(tile_m, P * Q)
    i, j = divided(place, Q)
    image = block * BLOCK_M
    tap_r, taps_h, h = axis_taps(0, pad_h, R, 1, DILATION_H, DGRAD)
    tap_s, taps_w, w = axis_taps(0, pad_w, S, 1, DILATION_W, DGRAD)
    h += i
    w += j
    first_a, taps_h = clip(h, taps_h, H, DILATION_H)
    first_b, taps_w = clip(w, taps_w, W, DILATION_W)
    pixel = (h + first_a * DILATION_H) * W + w + first_b * DILATION_W
    filter_tap = (tap_r + first_a * TAP_STEP) * S + tap_s + first_b * TAP_STEP

    first_column = first_of(tile_n, K, COLUMNS)
    column = first_column + tl.arange(0, BLOCK_N)
    n = tl.arange(0, BLOCK_M).to(tl.int64)
    row_ok = n < N - image
    source += image.to(tl.int64) * H * W * (C * GROUPS)
    acc = identity(  # [BLOCK_M, BLOCK_N]; extra: [BLOCK_M, EXTRA_N]
        n, i, j, row_ok, column, group,
        source, alpha, H, W, pad_h, pad_w,
        C, K, R, S, GROUPS, 1, 1, DILATION_H, DILATION_W,
        DGRAD, IDENTITY, ALPHA_STRIDE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    extra = 0
    if EXTRA_N:
        extra_column = first_column + BLOCK_N + tl.arange(0, EXTRA_N)
        extra = identity(
            n, i, j, row_ok, extra_column, group,
            source, alpha, H, W, pad_h, pad_w,
            C, K, R, S, GROUPS, 1, 1, DILATION_H, DILATION_W,
            DGRAD, IDENTITY, ALPHA_STRIDE, BLOCK_M, EXTRA_N,
        )  # fmt: skip
    acc, extra = sum_taps(
        acc, extra, source_tiles, weight_tiles, extra_tiles,
        image, pixel, filter_tap, first_column, group, taps_h, taps_w, W,
        0, C // BLOCK_K, C, K, R, S, DILATION_H, DILATION_W, DGRAD, PRECISION, WIDEN,
        BLOCK_M, BLOCK_N, EXTRA_N, BLOCK_K,
    )  # fmt: skip
    if TAIL_K:
        acc, extra = sum_taps(
            acc, extra, source_tail, weight_tail, extra_tail,
            image, pixel, filter_tap, first_column, group, taps_h, taps_w, W,
            C // BLOCK_K * BLOCK_K, 1, C, K, R, S, DILATION_H, DILATION_W, DGRAD, PRECISION, WIDEN,
            BLOCK_M, BLOCK_N, EXTRA_N, TAIL_K,
        )  # fmt: skip

    result += (image.to(tl.int64) * P * Q + place) * (K * GROUPS)
    pixel = n * (P * Q)
    if EXTRA_N:  # first, so that its registers are free while the larger part passes through shared memory
        store(extra, pixel, row_ok, extra_column, group, result, bias, K, GROUPS, BIAS, ACTIVATION)
    store(acc, pixel, row_ok, column, group, result, bias, K, GROUPS, BIAS, ACTIVATION)
