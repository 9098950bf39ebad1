"""The tile loader: fprop and dgrad of stride 1 with both operands read through tensor descriptors.

On sm_90 and newer these are TMA loads. The rows of a tile are a box of BOX_N images x BOX_H x BOX_W target
pixels, so that one tap of them is one box of the source: what lies outside the image the descriptor fills with
zeros, which is the padding. The weight has a descriptor of three dimensions (filters, taps, channels): a
channel tail is zero in both operands and never a neighbour's inf or NaN times zero.

A box of one pixel needs no padding, since its taps outside the image are left out. If BLOCK_K divides C as well, both
operands are read as plain matrices (FLAT): from them Triton feeds the matrix unit without a detour through
registers, which a reshaped first operand takes (a third fewer instructions on sm_90).
"""

import triton
import triton.language as tl

from triton_dirac.conv.taps import (
    axis_taps,
    clip_taps,
    dot,
    identity,
    next_tap,
    program_tile,
    store,
    tap_walk,
)


@triton.jit
def tile_gemm(
    source_tiles, weight_tiles, source, target, bias, alpha,
    N, H, W, P, Q, pad_h, pad_w,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, GROUPS: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DGRAD: tl.constexpr, BIAS: tl.constexpr, IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, FLAT: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """source_tiles: (N, H, W, GROUPS * C) by (BOX_N, BOX_H, BOX_W, BLOCK_K), FLAT (N, H * W * GROUPS * C) by
    (BLOCK_M, BLOCK_K). weight_tiles: (filters, R * S, channels) by one tap of BLOCK_N x BLOCK_K, for dgrad
    BLOCK_K x BLOCK_N, FLAT the same without the middle dimension. Grid: (row tiles * column tiles, GROUPS).
    """
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    TAP_STEP: tl.constexpr = -1 if DGRAD else 1
    group = tl.program_id(1)
    tiles_h = tl.cdiv(P, BOX_H)
    tiles_w = tl.cdiv(Q, BOX_W)
    tile_m, tile_n = program_tile(tl.cdiv(N, BOX_N) * tiles_h * tiles_w, tl.cdiv(K, BLOCK_N), GROUP_M)
    image = tile_m // (tiles_h * tiles_w) * BOX_N
    i = tile_m // tiles_w % tiles_h * BOX_H
    j = tile_m % tiles_w * BOX_W
    tap_r, taps_h, start_h = axis_taps(0, pad_h, R, 1, DILATION_H, DGRAD)
    tap_s, taps_w, start_w = axis_taps(0, pad_w, S, 1, DILATION_W, DGRAD)
    h = i + start_h
    w = j + start_w
    first_a, taps_h = clip_taps(h, h + BOX_H - 1, taps_h, H, DILATION_H)
    first_b, taps_w = clip_taps(w, w + BOX_W - 1, taps_w, W, DILATION_W)
    h += first_a * DILATION_H
    w += first_b * DILATION_W
    tap_r += first_a * TAP_STEP
    tap_s += first_b * TAP_STEP
    first_channel = group * C
    first_column = tile_n * BLOCK_N
    row = tl.arange(0, BLOCK_M)
    n = (row // (BOX_H * BOX_W)).to(tl.int64)
    target_h = i + row // BOX_W % BOX_H
    target_w = j + row % BOX_W
    row_ok = (n < N - image) & (target_h < P) & (target_w < Q)
    source += image.to(tl.int64) * H * W * (C * GROUPS)
    target += image.to(tl.int64) * P * Q * (K * GROUPS)
    column = first_column + tl.arange(0, BLOCK_N)
    acc = identity(
        n, target_h, target_w, row_ok, column, group,
        source, alpha, H, W, pad_h, pad_w,
        C, K, R, S, GROUPS, 1, 1, DILATION_H, DILATION_W,
        DGRAD, IDENTITY, ALPHA_STRIDE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    first, row_ends, end = tap_walk(taps_h, taps_w, R, S)
    tap = first
    if FLAT:
        TAP: tl.constexpr = K if DGRAD else C
        source_b = DILATION_W * C * GROUPS
        source_return = DILATION_H * W * C * GROUPS - (taps_w - 1) * source_b
        source_next = BLOCK_K - (taps_h - 1) * (source_return + (taps_w - 1) * source_b) - (taps_w - 1) * source_b
        weight_return = (S - taps_w + 1) * TAP_STEP * TAP
        weight_back = ((taps_h - 1) * S + taps_w - 1) * TAP_STEP * TAP
        source_at = (h * W + w) * (C * GROUPS) + first_channel
        weight_at = (tap_r * S + tap_s) * TAP + (first_column if DGRAD else 0)
        channel = first_channel
        for _ in range(taps_h * taps_w * (C // BLOCK_K)):
            x = source_tiles.load([image, source_at])
            if DGRAD:
                y = weight_tiles.load([channel, weight_at])
            else:
                y = weight_tiles.load([group * K + first_column, weight_at]).T
            acc = dot(x, y, acc, PRECISION, WIDEN)
            tap, row_end, last = next_tap(tap, first, row_ends, end, R, S)
            source_at += tl.where(last, source_next, tl.where(row_end, source_return, source_b))
            weight_at += tl.where(row_end, weight_return, TAP_STEP * TAP)
            if DGRAD:
                weight_at = tl.where(last, weight_at - weight_back - weight_return, weight_at)
                channel += tl.where(last, BLOCK_K, 0)
            else:
                weight_at = tl.where(last, weight_at - weight_back - weight_return + BLOCK_K, weight_at)
    else:
        a = 0
        b = 0
        c = 0
        for _ in range(taps_h * taps_w * tl.cdiv(C, BLOCK_K)):
            place = [image, h + a * DILATION_H, w + b * DILATION_W, first_channel + c]
            x = source_tiles.load(place).reshape(BLOCK_M, BLOCK_K)
            filter_tap = (tap_r + a * TAP_STEP) * S + tap_s + b * TAP_STEP
            if DGRAD:
                y = weight_tiles.load([first_channel + c, filter_tap, first_column]).reshape(BLOCK_K, BLOCK_N)
            else:
                y = weight_tiles.load([group * K + first_column, filter_tap, c]).reshape(BLOCK_N, BLOCK_K).T
            acc = dot(x, y, acc, PRECISION, WIDEN)
            tap, row_end, last = next_tap(tap, first, row_ends, end, R, S)
            b = tl.where(row_end, 0, b + 1)
            a = tl.where(last, 0, tl.where(row_end, a + 1, a))
            c = tl.where(last, c + BLOCK_K, c)

    store(acc, (n * P + target_h) * Q + target_w, row_ok, column, group, target, bias, K, GROUPS, BIAS, RELU)
