"""wgrad's tile loader: batch order with both operands read through tensor descriptors, TMA on sm_90 and newer.

A step takes one output pixel (p, q) of BLOCK_K images: [BLOCK_K, BLOCK_M] of dy and [BLOCK_K, COLUMNS] of x. The taps
of one filter row r read neighbouring pixels, which in NHWC are S * C elements in a row:

    dw[k, r, (s, c)] = sum over n, p, q of dy[n, p, q, k] * x[n, p*sh - top + r*dh, (q*sw - left) * C + (s, c)]

A tile of columns may therefore cross taps: 160 channels of 3 taps are 480 columns, 2 tiles of 256, where tap by tap
they are 3. Pixels at which no column of the tile reads inside the image the walk leaves out; at the others, columns
outside the image row are filled with zeros by the descriptor, which is the padding.

Both operands are summed over a slow dimension, the images. The matrix unit takes them so if they have 16 bits.

On an H200 (us; batch order through pointers, and cuDNN): 160 channels of 32x32 147 (151, 190), 320 of 16x16 98 (122,
122), 128 of 28x28 99 (111, 103), 64 of 56x56 167 (167, 140).
"""

import triton
import triton.language as tl

from triton_dirac.conv.taps import clip, dot
from triton_dirac.conv.wgrad_kernels import last_fits, place, store_plane


@triton.jit
def wgrad_tile_kernel(
    dy_tiles, x_tiles, extra_tiles, out,
    N, C, K, columns,
    H, W, P, Q, S,
    stride_h, stride_w, pad_top, pad_left, dilation_h,
    tiles_m, tiles_n, tiles_row, splits,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXTRA_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of dw, or of one split's plane of the workspace.

    dy_tiles: (P * Q, N, K) by 1 x BLOCK_K x BLOCK_M. x_tiles: (H, N, W * C) by 1 x BLOCK_K x BLOCK_N; extra_tiles the
    same with EXTRA_N, or None. out: (splits, K, R, S, C). columns: R * S * C. tiles_row: tiles of one filter row.
    """
    VECTOR: tl.constexpr = 8  # channels divide by it: 16 bytes
    COLUMNS: tl.constexpr = BLOCK_N + EXTRA_N
    split, _, tile_m, tile_n = place(tiles_m, tiles_n, 1, GROUP_M)
    r = tile_n // tiles_row
    first_k = last_fits(tile_m, K, BLOCK_M, VECTOR)
    first = last_fits(tile_n % tiles_row, S * C, COLUMNS, VECTOR)  # of the filter row's columns (s, c)
    start_p, count_p = clip(r * dilation_h - pad_top, P, H, stride_h)
    end_p = start_p + count_p
    # The last tap is the first to read inside the image row, and the first tap the last. Where tiles share columns, all
    # take the pixels of the whole filter row: one writes over the other, so a split must have the same pixels in both.
    shared = S * C % COLUMNS != 0
    last_tap = tl.where(shared, S - 1, (first + COLUMNS - 1) // C)
    first_tap = tl.where(shared, 0, first // C)
    start_q, _ = clip(last_tap - pad_left, Q, W, stride_w)
    end_q, count_q = clip(first_tap - pad_left, Q, W, stride_w)
    end_q += count_q
    width = tl.maximum(end_q - start_q, 0)

    box = tl.maximum(count_p * width, 1)
    total = tl.cdiv(N, BLOCK_K) * (count_p * width)
    steps = tl.cdiv(total, splits)
    begin = split * steps
    steps = tl.minimum(steps, total - begin)
    block = begin // box
    p = start_p + (begin - block * box) // tl.maximum(width, 1)
    q = start_q + (begin - block * box) % tl.maximum(width, 1)
    image = block * BLOCK_K
    row = r * dilation_h - pad_top

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    extra = tl.zeros((BLOCK_M, EXTRA_N if EXTRA_N else 1), tl.float32)
    for _ in range(steps):
        h = p * stride_h + row
        at = (q * stride_w - pad_left) * C + first
        y = dy_tiles.load([p * Q + q, image, first_k]).reshape(BLOCK_K, BLOCK_M).T
        x = x_tiles.load([h, image, at]).reshape(BLOCK_K, BLOCK_N)
        acc = dot(y, x, acc, PRECISION, WIDEN)
        if EXTRA_N:
            x = extra_tiles.load([h, image, at + BLOCK_N]).reshape(BLOCK_K, EXTRA_N)
            extra = dot(y, x, extra, PRECISION, WIDEN)
        q += 1
        row_ends = q == end_q
        q = tl.where(row_ends, start_q, q)
        p = tl.where(row_ends, p + 1, p)
        image_ends = p == end_p
        p = tl.where(image_ends, start_p, p)
        image = tl.where(image_ends, image + BLOCK_K, image)

    k = first_k + tl.arange(0, BLOCK_M)
    column = first + tl.arange(0, BLOCK_N)
    out += r * S * C
    if EXTRA_N:
        extra_column = first + BLOCK_N + tl.arange(0, EXTRA_N)
        store_plane(out, extra, k, extra_column, K, columns, S * C, split)
    store_plane(out, acc, k, column, K, columns, S * C, split)
