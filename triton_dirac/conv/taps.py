"""What the kernels of fprop and dgrad share: geometry, tap walk, tile order, identity term, store.

Both sum a *source* image over filter taps into a *result* image. With source x and result y that is fprop.
With source dy and result dx it is dgrad: of stride 1, an fprop whose taps run backwards; of a larger
stride, one such problem per stride phase (result pixels of equal h mod stride), all in one launch.

    result[n, i, j, k] = sum over taps (a, b) and channels c of
        source[n, i * skip + start_h + a * step_h, j * skip + start_w + b * step_w, c] * B[(a, b, c), k]

GEMM view: rows (n, i, j), columns k, sum index over taps and channels. C and K are the source's and the
result's channels per group: for dgrad the convolution's K and C. Images are dense NHWC, weights dense KRSC.
"""

import math

import triton
import triton.language as tl

from triton_dirac.conv.epilogue import finish


@triton.constexpr_function
def gcd(a, b):
    return math.gcd(a, b)


@triton.constexpr_function
def vector_width(size):
    """The largest power of two up to 16 that divides ``size``: what the compiler must see to vectorise."""
    return math.gcd(size, 16)


@triton.constexpr_function
def pixel_step(stride, dilation, dgrad):
    """Source pixels from one tap of the walk to the next."""
    return dilation // math.gcd(stride, dilation) if dgrad else dilation


@triton.constexpr_function
def tap_step(stride, dilation, dgrad):
    """Filter taps from one tap of the walk to the next: dgrad walks backwards, over the taps of its phase."""
    return -(stride // math.gcd(stride, dilation)) if dgrad else 1


@triton.constexpr_function
def most_taps(size, stride, dilation, dgrad):
    """Taps of the walk along one axis, in the phase that has most."""
    return -(-size * math.gcd(stride, dilation) // stride) if dgrad else size


@triton.jit
def divided(a, b):
    """(a // b, a % b) of int32 that are not negative: as unsigned numbers, without the detours for a sign."""
    a, b = tl.cast(a, tl.uint32), tl.cast(b, tl.uint32)
    return (a // b).to(tl.int32), (a % b).to(tl.int32)


@triton.jit
def tile_of(program, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Tile (row, column) of a program: GROUP_M row tiles share their columns while these are in L2."""
    per_group = GROUP_M * tiles_n
    group, within = divided(program, per_group)
    first = group * GROUP_M
    column, row = divided(within, tl.minimum(tiles_m - first, GROUP_M))
    return first + row, column


@triton.jit
def first_of(tile, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Where a tile begins. The last one ends at SIZE, where SIZE fills one at all: what it shares with its neighbour
    both write with the same bits. Beyond SIZE there is nothing to read but one row or zeros, again and again, which
    took twice the time of rows that exist (H200: 320 columns in tiles of 256, 262 us; dgrad, which read others, 130).
    """
    if SIZE % BLOCK == 0 or SIZE < BLOCK:
        return tile * BLOCK
    else:
        VECTOR: tl.constexpr = vector_width(gcd(SIZE, BLOCK))
        return tl.minimum(tile * (BLOCK // VECTOR), (SIZE - BLOCK) // VECTOR) * VECTOR


@triton.jit
def axis_taps(phase, pad, SIZE: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, DGRAD: tl.constexpr):
    """Along one axis: (filter tap that is walked first, number of taps, source offset of the first).

    In dgrad, tap r reaches result pixel h from source pixel (h + pad - r * DILATION) / STRIDE where that is
    whole: for the result pixels phase + STRIDE * i these are every STRIDE / gcd-th tap, or none.
    """
    if DGRAD:
        EVERY: tl.constexpr = STRIDE // gcd(STRIDE, DILATION)
        lowest = tl.full((), SIZE, tl.int32)
        for r in tl.static_range(min(EVERY, SIZE)):
            lowest = tl.where((phase + pad - r * DILATION) % STRIDE == 0, r, lowest)
        taps = (SIZE - lowest + EVERY - 1) // EVERY
        start = (phase + pad - lowest * DILATION) // STRIDE - (taps - 1) * (DILATION // gcd(STRIDE, DILATION))
        return lowest + (taps - 1) * EVERY, taps, start
    else:
        return 0, SIZE, -pad


@triton.jit
def clip(start, count, size, step):
    """(first, number) of the i < count with 0 <= start + i * step < size."""
    first = tl.minimum((tl.maximum(-start, 0) + step - 1) // step, count)
    end = tl.minimum((tl.maximum(size - start, 0) + step - 1) // step, count)
    return first, tl.maximum(end - first, 0)


@triton.constexpr_function
def one_bit(most_h, most_w):
    """Whether all taps of a walk are bits of one int32, with one bit to spare; else rows and columns are."""
    return most_h * most_w <= 30


@triton.constexpr_function
def tap_bits(most_h, most_w):
    """(integer that holds the taps of a walk, bit of its first column where rows and columns have bits)."""
    narrow = most_h * most_w <= 30 or max(most_h, most_w) <= 15
    return (tl.int32, 16) if narrow else (tl.int64, 32)


@triton.jit
def tap_walk(taps_h, taps_w, MOST_H: tl.constexpr, MOST_W: tl.constexpr):
    """(first tap, mask of the taps that end a row, what follows the last tap) of a walk over taps_h x taps_w.

    The current tap (a, b) is one bit, a * taps_w + b, or for large windows two: a, and b in the upper half. Of 3x3 taps
    at a corner of the image 2x2 are inside: row_ends is 0b1010 and the end 0b10000. The walk goes

        (0, 0) 0b0001 -> (0, 1) 0b0010, ends a row -> (1, 0) 0b0100 -> (1, 1) 0b1000, the last -> (0, 0), next channels
    """
    ONE_BIT: tl.constexpr = one_bit(MOST_H, MOST_W)
    BITS: tl.constexpr = tap_bits(MOST_H, MOST_W)[0]
    HALF: tl.constexpr = tap_bits(MOST_H, MOST_W)[1]
    one = tl.full((), 1, BITS)
    if ONE_BIT:
        row_ends = tl.zeros((), BITS)
        for a in tl.static_range(MOST_H):
            row_ends |= tl.where(a < taps_h, one << (a + 1) * taps_w - 1, 0)
        return one, row_ends, one << taps_h * taps_w
    else:
        return one | (one << HALF), one << taps_w - 1 + HALF, (one << taps_h) | (one << HALF)


@triton.jit
def next_tap(tap, first, row_ends, end, MOST_H: tl.constexpr, MOST_W: tl.constexpr):
    """(tap after ``tap``, whether ``tap`` ended a row, whether it was the last and the walk begins anew)."""
    ONE_BIT: tl.constexpr = one_bit(MOST_H, MOST_W)
    HALF: tl.constexpr = tap_bits(MOST_H, MOST_W)[1]
    row_end = (tap & row_ends) != 0
    if ONE_BIT:
        tap += tap
    else:
        column = tap >> HALF << HALF
        tap = tl.where(row_end, 2 * (tap - column) + (first >> HALF << HALF), tap + column)
    last = tap == end
    return tl.where(last, first, tap), row_end, last


@triton.jit
def centre_pixel(
    result, size, pad, SIZE: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, DGRAD: tl.constexpr
):
    """(source pixel of the filter's centre tap, whether it exists) for a result pixel, along one axis."""
    offset = pad - SIZE // 2 * DILATION
    if DGRAD:
        place = result + offset
        return place // STRIDE, (place >= 0) & (place % STRIDE == 0) & (place // STRIDE < size)
    else:
        place = result * STRIDE - offset
        return place, (place >= 0) & (place < size)


@triton.jit
def dot(x, y, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """acc + x @ y. WIDEN is for the interpreter, whose dot reads bfloat16's bits as integers (Triton 3.6 to 3.9)."""
    if WIDEN:
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    return tl.dot(x, y, acc, input_precision=PRECISION)


@triton.jit
def identity(
    n, h, w, row_ok, column, group,
    source, alpha, H, W, pad_h, pad_w,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, GROUPS: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DGRAD: tl.constexpr, IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """alpha[filter] * source[n, centre tap of (h, w), column] (or zeros), from which the sum over taps starts.

    ``n``, ``h`` and ``w`` are the tile's result pixels, ``column`` counts within the group. Added after the
    sum, these values would need registers beside the accumulators': 128x128 tiles of 4 warps spill.
    """
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if IDENTITY:
        has_identity = column < min(C, K)
        # alpha belongs to the convolution's filters: of those dgrad has C a group.
        filters = group * (C if DGRAD else K) + column
        scale = tl.load(alpha + filters * ALPHA_STRIDE, mask=has_identity, other=0.0).to(tl.float32)
        centre_h, inside_h = centre_pixel(h, H, pad_h, R, STRIDE_H, DILATION_H, DGRAD)
        centre_w, inside_w = centre_pixel(w, W, pad_w, S, STRIDE_W, DILATION_W, DGRAD)
        centre = (n * H + centre_h) * W + centre_w
        value = tl.load(
            source + centre[:, None] * (C * GROUPS) + (group * C + column)[None, :],
            mask=(row_ok & inside_h & inside_w)[:, None] & has_identity[None, :],
            other=0.0,
        )
        acc += scale[None, :] * value.to(tl.float32)
    return acc


@triton.jit
def store(
    acc, pixel, row_ok, column, group, result, bias,
    K: tl.constexpr, GROUPS: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """result[pixel, column] = activation(acc + bias[column]); ``pixel`` counts from ``result``."""
    channel = group * K + column
    acc = finish(acc, bias, channel, column < K, BIAS, ACTIVATION)
    tl.store(
        result + pixel[:, None] * (K * GROUPS) + channel[None, :],
        acc.to(result.dtype.element_ty),
        mask=row_ok[:, None] & (column < K)[None, :],
    )
