"""The tile loader in a persistent loop: one launch fills the GPU once, and each program takes tile after tile.

The walk over tiles and the walk over a tile's taps and channels are one loop, so that the first loads of the next tile
are under way while this one is stored. It is stored in two halves through a tensor descriptor, from half as much shared
memory.

The loop has two places where tiles change, and each keeps its own count of tiles: ``load_tile`` begins with step
``load_from`` and belongs to the loads, which run ahead; ``sum_tile`` ends with step ``sum_to`` and belongs to the sums.
Shared, the counts would tie the loads to the sums, and Triton would prefetch nothing. (Its own ``flatten`` joins only
loops whose inner length is the same for all tiles; here it is the number of taps inside the image.)

A step that changes no tile has 92 to 105 instructions where ``tile_gemm`` has 101 to 107 (counted from SASS, sm_90,
Triton 3.7.1). On an H200 64 channels of 56x56 took 130 us, before 137; 256 of 14x14 82, before 87; 640 of 8x8, whose
tiles fill the GPU little more than once, 92 where ``tile_gemm`` takes 80.
"""

import triton
import triton.language as tl

from triton_dirac.conv.descriptor import weight_block
from triton_dirac.conv.epilogue import finish
from triton_dirac.conv.taps import (
    axis_taps,
    centre_pixel,
    clip,
    divided,
    dot,
    first_of,
    next_tap,
    tap_walk,
    tile_of,
)


@triton.jit
def geometry(
    tile, N, H, W, P, Q, pad_h, pad_w,
    K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DGRAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """Of a tile: first image and column, result pixel (i, j), taps that read inside, source pixel and filter tap of the
    first of them."""
    TAP_STEP: tl.constexpr = -1 if DGRAD else 1
    tile_m, tile_n = tile_of(tile, tl.cdiv(N, BLOCK_M) * P * Q, tl.cdiv(K, BLOCK_N), GROUP_M)
    block, place = divided(tile_m, P * Q)
    i, j = divided(place, Q)
    tap_r, taps_h, h = axis_taps(0, pad_h, R, 1, DILATION_H, DGRAD)
    tap_s, taps_w, w = axis_taps(0, pad_w, S, 1, DILATION_W, DGRAD)
    h += i
    w += j
    first_a, taps_h = clip(h, taps_h, H, DILATION_H)
    first_b, taps_w = clip(w, taps_w, W, DILATION_W)
    pixel = (h + first_a * DILATION_H) * W + w + first_b * DILATION_W
    filter_tap = (tap_r + first_a * TAP_STEP) * S + tap_s + first_b * TAP_STEP
    nothing = taps_h * taps_w == 0  # then one tap outside, which is read as zeros: each tile has a step that ends it
    taps_h, taps_w = tl.where(nothing, 1, taps_h), tl.where(nothing, 1, taps_w)
    pixel, filter_tap = tl.where(nothing, -1, pixel), tl.where(nothing, 0, filter_tap)
    return block * BLOCK_M, first_of(tile_n, K, BLOCK_N), i, j, taps_h, taps_w, pixel, filter_tap


@triton.jit
def steps_of(
    tile, N, H, W, P, Q, pad_h, pad_w,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DGRAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """Steps of a tile's sum."""
    _, _, _, _, taps_h, taps_w, _, _ = geometry(
        tile, N, H, W, P, Q, pad_h, pad_w, K, R, S, DILATION_H, DILATION_W, DGRAD, BLOCK_M, BLOCK_N, GROUP_M
    )
    return taps_h * taps_w * (C // BLOCK_K)


@triton.jit
def finish_part(
    acc, centre_tiles, result_tiles, bias, alpha,
    image, column, centre, place,
    C: tl.constexpr, K: tl.constexpr, BIAS: tl.constexpr, IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, PART_N: tl.constexpr,
):  # fmt: skip
    """result[place, column] = activation(acc + alpha[column] * source[centre, column] + bias[column]); PART_N wide."""
    columns = column + tl.arange(0, PART_N)
    if IDENTITY:  # pixels and channels that do not exist are read as zeros
        scale = tl.load(alpha + columns * ALPHA_STRIDE, mask=columns < min(C, K), other=0.0).to(tl.float32)
        value = centre_tiles.load([centre, image, column]).reshape(BLOCK_M, PART_N)
        acc += scale[None, :] * value.to(tl.float32)
    acc = finish(acc, bias, columns, None, BIAS, ACTIVATION)
    result_tiles.store([place, image, column], acc.to(result_tiles.dtype).reshape(1, BLOCK_M, PART_N))


@triton.jit
def persistent_gemm(
    source_tiles, weight_tiles, centre_tiles, result_tiles,
    source, result, bias, alpha,
    N, H, W, P, Q, pad_h, pad_w,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, GROUPS: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DGRAD: tl.constexpr, BIAS: tl.constexpr, IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """What ``tile_gemm`` computes where GROUPS is 1, BLOCK_K divides C and K fills a tile.

    centre_tiles: (H * W, N, C) by 1 x BLOCK_M x BLOCK_N / 2, or None; result_tiles: (P * Q, N, K) by the same. Grid: as
    many programs as run at once, or fewer.
    """
    TAP_STEP: tl.constexpr = -1 if DGRAD else 1
    HALF: tl.constexpr = BLOCK_N // 2
    tiles = tl.cdiv(N, BLOCK_M) * P * Q * tl.cdiv(K, BLOCK_N)
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    steps = 0
    for tile in range(program, tiles, programs):
        steps += steps_of(
            tile, N, H, W, P, Q, pad_h, pad_w,
            C, K, R, S, DILATION_H, DILATION_W, DGRAD, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
        )  # fmt: skip

    load_tile = program - programs
    load_from = 0
    sum_tile = program
    sum_to = steps_of(
        program, N, H, W, P, Q, pad_h, pad_w,
        C, K, R, S, DILATION_H, DILATION_W, DGRAD, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
    )  # fmt: skip
    image, column, pixel, filter_tap, channel = 0, 0, 0, 0, 0
    next_row, first_again, next_filter_row, first_filter_again = 0, 0, 0, 0
    first, row_ends, end = tap_walk(R, S, R, S)
    tap = first
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps):
        if step == load_from:
            load_tile += programs
            image, column, _, _, taps_h, taps_w, pixel, filter_tap = geometry(
                load_tile, N, H, W, P, Q, pad_h, pad_w,
                K, R, S, DILATION_H, DILATION_W, DGRAD, BLOCK_M, BLOCK_N, GROUP_M,
            )  # fmt: skip
            next_row = DILATION_H * W - (taps_w - 1) * DILATION_W
            first_again = -(taps_h - 1) * DILATION_H * W - (taps_w - 1) * DILATION_W
            next_filter_row = (S - taps_w + 1) * TAP_STEP
            first_filter_again = -((taps_h - 1) * S + taps_w - 1) * TAP_STEP
            first, row_ends, end = tap_walk(taps_h, taps_w, R, S)
            tap = first
            channel = 0
            load_from += taps_h * taps_w * (C // BLOCK_K)
        x = source_tiles.load([pixel, image, channel]).reshape(BLOCK_M, BLOCK_K)
        y = weight_block(weight_tiles, filter_tap, column, channel, 0, C, K, DGRAD, BLOCK_N, BLOCK_K)
        acc = dot(x, y, acc, PRECISION, WIDEN)
        tap, row_end, last = next_tap(tap, first, row_ends, end, R, S)
        pixel += tl.where(last, first_again, tl.where(row_end, next_row, DILATION_W))
        filter_tap += tl.where(last, first_filter_again, tl.where(row_end, next_filter_row, TAP_STEP))
        channel += tl.where(last, BLOCK_K, 0)

        if step + 1 == sum_to:
            n, k, i, j, _, _, _, _ = geometry(
                sum_tile, N, H, W, P, Q, pad_h, pad_w,
                K, R, S, DILATION_H, DILATION_W, DGRAD, BLOCK_M, BLOCK_N, GROUP_M,
            )  # fmt: skip
            h, inside_h = centre_pixel(i, H, pad_h, R, 1, DILATION_H, DGRAD)
            w, inside_w = centre_pixel(j, W, pad_w, S, 1, DILATION_W, DGRAD)
            centre = tl.where(inside_h & inside_w, h * W + w, -1)
            left, right = acc.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1).split()
            finish_part(
                left, centre_tiles, result_tiles, bias, alpha, n, k, centre, i * Q + j,
                C, K, BIAS, IDENTITY, ALPHA_STRIDE, ACTIVATION, BLOCK_M, HALF,
            )  # fmt: skip
            finish_part(
                right, centre_tiles, result_tiles, bias, alpha, n, k + HALF, centre, i * Q + j,
                C, K, BIAS, IDENTITY, ALPHA_STRIDE, ACTIVATION, BLOCK_M, HALF,
            )  # fmt: skip
            acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            sum_tile = tl.minimum(sum_tile + programs, tiles - 1)  # after the last no steps are left
            sum_to += steps_of(
                sum_tile, N, H, W, P, Q, pad_h, pad_w,
                C, K, R, S, DILATION_H, DILATION_W, DGRAD, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
            )  # fmt: skip
