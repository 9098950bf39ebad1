"""The gather loader: fprop and dgrad with the source read through pointers, for any problem.

One flattened loop runs over the sum. What keeps it near a plain GEMM of the same tile:

- every address is a 64-bit base of its row plus an offset that all rows share: one multiply-add a load;
- whether a tap of a row lies outside the image is a bit computed before the loop: one AND a row in it. In
  *batch order* the rows of a tile are one pixel of many images: the taps that lie outside are then the same
  for all rows, and the walk leaves them out, with no mask at all;
- where BLOCK_K divides C the taps run fastest: the current tap's bit is then the loop's whole state, and
  neighbouring taps find their pixels in cache. Elsewhere (a, b, c) is one index that BLOCK_K cuts across
  taps, so that 80 channels, or the 3 of a stem, do not waste it;
- columns beyond K, in the last tile where there are fewer than BLOCK_N, read those that exist once more; else the last
  tile ends at K;
- the weight's rows are a run-time number apart. What the compiler knows of their distance it adds to one row's pointer
  in every step, in two instructions a load where the multiply-add is one (2 to 12 fewer a step);
- the loop counts up to LOOKAHEAD, the number of steps by which Triton prefetches: its test for "is there a
  step to prefetch" is then one for the counter's sign (up to 18 instructions a step fewer than from 0).
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
    most_taps,
    next_tap,
    one_bit,
    pixel_step,
    store,
    tap_bits,
    tap_step,
    tap_walk,
    tile_of,
    vector_width,
)


@triton.jit
def axis_outside(start, size, taps, STEP: tl.constexpr, SIZE: tl.constexpr, BITS: tl.constexpr):
    """Bit t is set where start + t * STEP is not in [0, size) or t >= taps, for t = 0 .. SIZE."""
    bits = tl.zeros_like(start).to(BITS)
    for t in tl.static_range(SIZE + 1):
        position = (start + t * STEP).to(tl.uint32, bitcast=True)  # below 0 is beyond any size
        outside = (position >= size) | (t >= taps)
        bits |= outside.to(BITS) << t
    return bits


@triton.jit
def outside_taps(
    h, w, H, W, taps_h, taps_w,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr, MOST_H: tl.constexpr, MOST_W: tl.constexpr,
):  # fmt: skip
    """The taps of each row that lie outside the image, as bits of ``tap_walk``; those past the last tap are set."""
    ONE_BIT: tl.constexpr = one_bit(MOST_H, MOST_W)
    BITS: tl.constexpr = tap_bits(MOST_H, MOST_W)[0]
    HALF: tl.constexpr = tap_bits(MOST_H, MOST_W)[1]
    outside_h = axis_outside(h, H, taps_h, STEP_H, MOST_H, BITS)
    outside_w = axis_outside(w, W, taps_w, STEP_W, MOST_W, BITS)
    if ONE_BIT:
        full = (1 << taps_w) - 1
        outside = tl.zeros_like(outside_w) | (-1 << taps_h * taps_w)
        for a in tl.static_range(MOST_H):
            row_bits = tl.where(((outside_h >> a) & 1) != 0, full, outside_w & full)
            outside |= tl.where(a < taps_h, row_bits << a * taps_w, 0)
    else:
        outside = outside_h | (outside_w << HALF)
    return outside


@triton.jit
def sum_taps_fastest(
    acc, source_row, weight_row, weight_k, outside, taps_h, taps_w, source_a, source_b, weight_a, weight_b,
    C: tl.constexpr, K: tl.constexpr, RS: tl.constexpr, MOST_H: tl.constexpr, MOST_W: tl.constexpr,
    N_CONTIGUOUS: tl.constexpr, MASKED: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LOOKAHEAD: tl.constexpr,
):  # fmt: skip
    """acc + the sum over (channel block, a, b), taps fastest. A channel tail is masked in both operands."""
    TAIL: tl.constexpr = C % BLOCK_K != 0
    CHANNEL: tl.constexpr = RS * K if N_CONTIGUOUS else 1  # weight elements from one channel to the next
    k = tl.arange(0, BLOCK_K)
    channel = k
    source_k = k.to(OFFSET)
    source_return = source_a - (taps_w - 1) * source_b
    weight_return = weight_a - (taps_w - 1) * weight_b
    source_next = BLOCK_K - (taps_h - 1) * source_a - (taps_w - 1) * source_b
    weight_next = BLOCK_K * CHANNEL - (taps_h - 1) * weight_a - (taps_w - 1) * weight_b
    first, row_ends, end = tap_walk(taps_h, taps_w, MOST_H, MOST_W)
    tap = first
    for _ in range(LOOKAHEAD - taps_h * taps_w * tl.cdiv(C, BLOCK_K), LOOKAHEAD):
        sources = source_row[:, None] + source_k[None, :]  # [BLOCK_M, BLOCK_K], as x
        if MASKED and TAIL:
            inside = ((outside & tap) == 0)[:, None] & (channel < C)[None, :]
            x = tl.load(sources, mask=inside, other=0.0)
        elif MASKED:
            x = tl.load(sources, mask=((outside & tap) == 0)[:, None], other=0.0)
        elif TAIL:
            x = tl.load(sources, mask=(channel < C)[None, :], other=0.0)
        else:
            x = tl.load(sources)
        if N_CONTIGUOUS:
            weights = weight_row[:, None] + weight_k[None, :]  # [BLOCK_K, BLOCK_N], as y
        else:
            weights = weight_row[None, :] + weight_k[:, None]
        y = tl.load(weights, mask=(channel < C)[:, None], other=0.0) if TAIL else tl.load(weights)
        acc = dot(x, y, acc, PRECISION, WIDEN)
        tap, row_end, last = next_tap(tap, first, row_ends, end, MOST_H, MOST_W)
        source_k += tl.where(last, source_next, tl.where(row_end, source_return, source_b))
        weight_k += tl.where(last, weight_next, tl.where(row_end, weight_return, weight_b))
        if TAIL:
            channel += tl.where(last, BLOCK_K, 0)
    return acc


@triton.jit
def sum_flat(
    acc, source_row, weight_row, weight_k, outside, source_a, source_b, weight_b,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    N_CONTIGUOUS: tl.constexpr, MASKED: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LOOKAHEAD: tl.constexpr,
):  # fmt: skip
    """acc + the sum over one index (a, b, c) in steps of BLOCK_K, whose divisions by constants are multiplies."""
    TOTAL: tl.constexpr = R * S * C
    STEPS: tl.constexpr = (TOTAL + BLOCK_K - 1) // BLOCK_K
    CHANNEL: tl.constexpr = R * S * K
    k = tl.arange(0, BLOCK_K)
    one = tl.full((), 1, tap_bits(R, S)[0])
    for step in range(LOOKAHEAD - STEPS, LOOKAHEAD):
        index = (step + (STEPS - LOOKAHEAD)) * BLOCK_K + k
        tap = index // C
        tap_row = tap // S
        source_k = index.to(OFFSET) + tap * (source_b - C) + tap_row * (source_a - S * source_b)
        sources = source_row[:, None] + source_k[None, :]  # [BLOCK_M, BLOCK_K], as x
        if MASKED:
            if one_bit(R, S):
                shift = tap if TOTAL % BLOCK_K == 0 else tl.minimum(tap, R * S)
                bits = one << shift
            else:
                bits = (one << tl.minimum(tap_row, R)) | (one << tap - tap_row * S + tap_bits(R, S)[1])
            x = tl.load(sources, mask=(outside[:, None] & bits[None, :]) == 0, other=0.0)
        elif TOTAL % BLOCK_K != 0:
            x = tl.load(sources, mask=(index < TOTAL)[None, :], other=0.0)
        else:
            x = tl.load(sources)
        if N_CONTIGUOUS:
            # The pointer of row k is k channels on already. Sums may wrap: their end does not.
            offset = (step + (STEPS - LOOKAHEAD)) * (BLOCK_K * CHANNEL) + tap * (weight_b - C * CHANNEL)
            weights = weight_row[:, None] + (offset[:, None] + weight_k[None, :])
        else:
            weights = weight_row[None, :] + weight_k[:, None]
            weight_k += BLOCK_K
        known = (index < TOTAL)[:, None]
        y = tl.load(weights, mask=known, other=0.0) if TOTAL % BLOCK_K != 0 else tl.load(weights)
        acc = dot(x, y, acc, PRECISION, WIDEN)
    return acc


@triton.jit
def gather_gemm(
    source, weight, result, bias, alpha,
    N, H, W, P, Q, pad_h, pad_w, weight_vectors,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, GROUPS: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DGRAD: tl.constexpr, BIAS: tl.constexpr, IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, N_CONTIGUOUS: tl.constexpr,
    BATCH_ORDER: tl.constexpr, PADDED: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    LOOKAHEAD: tl.constexpr,
):  # fmt: skip
    """source (N, H, W, GROUPS * C), result (N, P, Q, GROUPS * K); pad_h, pad_w are the convolution's, top and left.

    weight_vectors: elements from one weight row to the next, in units of ``vector_width``. A row is a result channel's
    weights, source channels fastest (K-contiguous, as a GEMM's operand B may be); or, N_CONTIGUOUS, a source channel's,
    result channels fastest. In dgrad the taps of the first kind are reversed, so that its walk goes forward: AMD's
    buffer loads want no negative part of an offset.
    Grid: (row tiles * column tiles, GROUPS * stride phases).
    """
    EVERY_I: tl.constexpr = STRIDE_H if DGRAD else 1  # result pixels (i * EVERY_I + phase_h, j * EVERY_J + phase_w)
    EVERY_J: tl.constexpr = STRIDE_W if DGRAD else 1
    SKIP_H: tl.constexpr = 1 if DGRAD else STRIDE_H
    SKIP_W: tl.constexpr = 1 if DGRAD else STRIDE_W
    STEP_H: tl.constexpr = pixel_step(STRIDE_H, DILATION_H, DGRAD)
    STEP_W: tl.constexpr = pixel_step(STRIDE_W, DILATION_W, DGRAD)
    TAP_H: tl.constexpr = tap_step(STRIDE_H, DILATION_H, DGRAD)
    TAP_W: tl.constexpr = tap_step(STRIDE_W, DILATION_W, DGRAD)
    MOST_H: tl.constexpr = most_taps(R, STRIDE_H, DILATION_H, DGRAD)
    MOST_W: tl.constexpr = most_taps(S, STRIDE_W, DILATION_W, DGRAD)
    MASKED: tl.constexpr = PADDED and not BATCH_ORDER
    PIXEL: tl.constexpr = C * GROUPS
    TAP: tl.constexpr = K if N_CONTIGUOUS else C

    group = tl.program_id(1) % GROUPS
    phase_h = tl.program_id(1) // GROUPS // EVERY_J
    phase_w = tl.program_id(1) // GROUPS % EVERY_J
    tap_r, taps_h, start_h = axis_taps(phase_h, pad_h, R, STRIDE_H, DILATION_H, DGRAD)
    tap_s, taps_w, start_w = axis_taps(phase_w, pad_w, S, STRIDE_W, DILATION_W, DGRAD)

    I = tl.cdiv(P, EVERY_I)  # of the largest phase: the last row and column of another may not exist
    J = tl.cdiv(Q, EVERY_J)
    if BATCH_ORDER:
        tile_m, tile_n = tile_of(tl.program_id(0), I * J * tl.cdiv(N, BLOCK_M), tl.cdiv(K, BLOCK_N), GROUP_M)
        block, pixel = divided(tile_m, I * J)
        i, j = divided(pixel, J)
        image = block * BLOCK_M
        n = tl.arange(0, BLOCK_M)
        row_ok = n < N - image
        n = tl.minimum(n, N - 1 - image)
    else:
        tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(N * I * J, BLOCK_M), tl.cdiv(K, BLOCK_N), GROUP_M)
        m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        row_ok = m < N * I * J
        row, j = divided(m, J)
        i = row % I
        image, _ = divided(tile_m * BLOCK_M, I * J)
        n = row // I - image
        if not MASKED:  # rows beyond the last read its image
            n = tl.where(row_ok, n, 0)
    # Images are counted from this tile's first: with an int64 base, offsets within a tile fit int32.
    n = n.to(OFFSET)
    source += image.to(tl.int64) * H * W * PIXEL
    if EVERY_I * EVERY_J > 1:
        row_ok = row_ok & (i * EVERY_I + phase_h < P) & (j * EVERY_J + phase_w < Q)
    h = i * SKIP_H + start_h
    w = j * SKIP_W + start_w
    if BATCH_ORDER:
        first_a, taps_h = clip(h, taps_h, H, STEP_H)
        first_b, taps_w = clip(w, taps_w, W, STEP_W)
        h += first_a * STEP_H
        w += first_b * STEP_W
        tap_r += first_a * TAP_H
        tap_s += first_b * TAP_W
    if MASKED:
        outside = outside_taps(h, w, H, W, taps_h, taps_w, STEP_H, STEP_W, MOST_H, MOST_W)
        outside = tl.where(row_ok, outside, -1)
    else:
        outside = 0

    first_column = first_of(tile_n, K, BLOCK_N)
    column = first_column + tl.arange(0, BLOCK_N)
    VECTOR: tl.constexpr = vector_width(TAP)
    apart = weight_vectors * VECTOR
    REVERSED: tl.constexpr = DGRAD and not N_CONTIGUOUS
    SIGN: tl.constexpr = -1 if REVERSED else 1
    weight_k = (((R - 1 - tap_r) * S + S - 1 - tap_s) if REVERSED else (tap_r * S + tap_s)) * TAP
    if N_CONTIGUOUS:
        weight += group.to(tl.int64) * C * (R * S * K)
        weight_row = weight + tl.arange(0, BLOCK_K) * apart  # [BLOCK_K], and weight_k [BLOCK_N]
        weight_k += column // VECTOR % (K // VECTOR) * VECTOR + column % VECTOR if K < BLOCK_N else column
    else:
        weight += (group * K + first_column).to(tl.int64) * (R * S * C)
        weight_row = weight + tl.arange(0, BLOCK_N) % K * apart  # [BLOCK_N], and weight_k [BLOCK_K]
        weight_k += tl.arange(0, BLOCK_K)
    source_row = source + ((n * H + h) * W + w) * PIXEL + group * C  # [BLOCK_M]: each row's first tap
    source_a = STEP_H * W * PIXEL
    acc = identity(  # [BLOCK_M, BLOCK_N]
        n, i * EVERY_I + phase_h, j * EVERY_J + phase_w, row_ok, column, group,
        source, alpha, H, W, pad_h, pad_w,
        C, K, R, S, GROUPS, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W,
        DGRAD, IDENTITY, ALPHA_STRIDE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if C % BLOCK_K == 0 or BATCH_ORDER or EVERY_I * EVERY_J > 1:
        acc = sum_taps_fastest(
            acc, source_row, weight_row, weight_k, outside,
            taps_h, taps_w, source_a, STEP_W * PIXEL, SIGN * TAP_H * S * TAP, SIGN * TAP_W * TAP,
            C, K, R * S, MOST_H, MOST_W, N_CONTIGUOUS, MASKED, OFFSET, PRECISION, WIDEN, BLOCK_N, BLOCK_K, LOOKAHEAD,
        )  # fmt: skip
    else:
        acc = sum_flat(
            acc, source_row, weight_row, weight_k, outside,
            source_a, STEP_W * PIXEL, SIGN * TAP_W * TAP,
            C, K, R, S, N_CONTIGUOUS, MASKED, OFFSET, PRECISION, WIDEN, BLOCK_N, BLOCK_K, LOOKAHEAD,
        )  # fmt: skip
    # Geometry that is cheap to form again need not outlive the loop, where it would cost registers.
    if BATCH_ORDER:
        first_pixel = image.to(tl.int64) * P * Q + (i * EVERY_I + phase_h) * Q + j * EVERY_J + phase_w
        result += first_pixel * (K * GROUPS)
        row = tl.arange(0, BLOCK_M)
        pixel = row.to(OFFSET) * P * Q
        row_ok = row < N - image
        if EVERY_I * EVERY_J > 1:
            row_ok = row_ok & (i * EVERY_I + phase_h < P) & (j * EVERY_J + phase_w < Q)
    elif EVERY_I * EVERY_J > 1:
        result += image.to(tl.int64) * P * Q * (K * GROUPS)
        pixel = (n * P + i * EVERY_I + phase_h) * Q + j * EVERY_J + phase_w
    else:
        result += (tile_m * BLOCK_M).to(tl.int64) * (K * GROUPS)
        pixel = tl.arange(0, BLOCK_M)
        row_ok = tile_m * BLOCK_M + pixel < N * P * Q
    store(acc, pixel, row_ok, column, group, result, bias, K, GROUPS, BIAS, ACTIVATION)
