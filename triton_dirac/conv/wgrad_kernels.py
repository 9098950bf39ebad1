"""The compiled half of wgrad: two orders in which to walk the pixels of the reduction, and the second pass.

*Batch order* (``wgrad_batch_kernel``): the BLOCK_K rows of a tile are one pixel (p, q) of BLOCK_K images.
The sum does not care for order, and this one makes (p, q), and with it the padding, the same for all rows:
the walk is scalar, whatever the stride, and a tile whose columns lie in one tap visits only the pixels that
read inside the image, without a mask. It needs a batch that fills BLOCK_K.

*Pixel order* (``wgrad_pixel_kernel``): the rows are consecutive pixels of the flattened (n, p, q), for any
batch. An image row's end falls anywhere in a tile, and two facts keep divisions out of the loop. For one tap
the pixels that read inside the image are a run of q within every Q and a run of rows within every P*Q, so two
phases tell:

    (pixel - first valid q) mod Q < valid q's      (pixel - first valid row * Q) mod P*Q < valid rows * Q

and a phase moves by a constant with at most one wrap: ``min(moved, moved - period)`` on unsigned numbers.
And where the output is as large as the input (stride 1, "same" padding) the input's address is linear in
the pixel, so only one scalar pointer moves (LINEAR); else each row's place jumps when q or p wraps.

Instructions a warp issues per MMA, as a multiple of an unmasked GEMM's (counted from SASS, fp16, tiles of 128x64
to 128x128, sm_80 and sm_90, Triton 3.7.1 and 3.9): batch order 0.9 to 1.2, pixel order 0.9 to 1.2 where BLOCK_K
is a multiple of Q, else 1.05 to 1.6.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triton_dirac.conv.taps import clip


@triton.jit
def _wrap(phase, step, period):
    """(phase + step) mod period for unsigned phase, step < period: a wrapped difference loses the minimum."""
    moved = phase + step
    return tl.minimum(moved, moved - period)


@triton.jit
def last_fits(tile, size, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Where a tile begins. The last one ends at ``size``, a multiple of VECTOR, if that fills one (``first_of``)."""
    begin = tl.minimum(tile * (BLOCK // VECTOR), size // VECTOR - BLOCK // VECTOR)
    return tl.maximum(begin, 0) * VECTOR


@triton.jit
def _wrapped(index, size, VECTOR: tl.constexpr):
    """(number of its vector, place in it) of each index; those beyond the size begin anew.

    Written with whole vectors, so that the compiler proves the loads' width: hints do not outlive AMD's passes.
    """
    vector = index // VECTOR
    return vector % (size // VECTOR), index % VECTOR


@triton.jit
def place(tiles_m, tiles_n, groups, GROUP_M: tl.constexpr):
    """(split, group, tile of K, tile of columns) of this program, in an order that is kind to L2.

    All tiles of one split run together, since they read the same pixels; within it GROUP_M tiles of K share each tile
    of x's columns before the next is read, as in ``taps.tile_of``. That divides unsigned, which is shorter there; here
    it makes loops longer (cuda:90, pixel order: 27.5 instructions per MMA, not 24.1) and spills a tile of cuda:80.
    """
    pid = tl.program_id(0)
    tiles = tiles_m * tiles_n
    tile = pid % tiles
    first_m = (tile // (GROUP_M * tiles_n)) * GROUP_M
    height = tl.minimum(tiles_m - first_m, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    return pid // (tiles * groups), (pid // tiles) % groups, first_m + within % height, within // height


@triton.jit
def store_plane(out, accumulator, k, column, Kg, columns, end, plane):
    """out[plane, k, column] = accumulator, in out's dtype, where k and, before ``end``, column exist."""
    offset = (plane.to(tl.int64) * Kg + k)[:, None] * columns + column[None, :]
    mask = (k < Kg)[:, None] & (column < end)[None, :]
    tl.store(out + offset, accumulator.to(out.dtype.element_ty), mask=mask)


@triton.jit
def wgrad_batch_kernel(
    dy, x, out,
    N, vectors_K, Kg, vectors_C, Cg, columns,
    H, W, P, Q, S,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    tiles_m, tiles_n, groups, splits,
    ONE_TAP: tl.constexpr, PADDED: tl.constexpr, EVEN: tl.constexpr,
    VECTOR_K: tl.constexpr, VECTOR_C: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of dw, or of one split's plane of the workspace; each step takes one pixel of BLOCK_K images.

    dy: (N, P, Q, K). x: (N, H, W, C). out: (splits, K, R, S, C/groups), the workspace or dw itself.
    ONE_TAP: BLOCK_N divides Cg, so r and s are scalars and the walk keeps inside the image by itself.
    """
    split, group, tile_m, tile_n = place(tiles_m, tiles_n, groups, GROUP_M)
    C = vectors_C * VECTOR_C
    K = vectors_K * VECTOR_K
    row = tl.arange(0, BLOCK_K)
    k = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = last_fits(tile_n, columns, BLOCK_N, VECTOR_C) + tl.arange(0, BLOCK_N)
    if ONE_TAP:
        tap = tile_n * BLOCK_N // Cg
        c = tile_n * BLOCK_N - tap * Cg + tl.arange(0, BLOCK_N)
    else:
        column_vector, lane = _wrapped(column, columns, VECTOR_C)
        tap = column_vector // (Cg // VECTOR_C)
        c = (column_vector - tap * (Cg // VECTOR_C)) * VECTOR_C + lane
    tap_h = (tap // S) * dilation_h
    tap_w = (tap % S) * dilation_w
    tap_shift = (tap_h * W + tap_w) * C
    if ONE_TAP:
        start_p, count_p = clip(tap_h - pad_top, P, H, stride_h)
        start_q, count_q = clip(tap_w - pad_left, Q, W, stride_w)
        end_p, end_q = start_p + count_p, start_q + count_q
    else:
        start_p, end_p, start_q, end_q = 0, P, 0, Q

    width = end_q - start_q
    box = tl.maximum((end_p - start_p) * width, 1)
    total = tl.cdiv(N, BLOCK_K) * ((end_p - start_p) * width)
    steps = tl.cdiv(total, splits)
    first = split * steps
    steps = tl.minimum(steps, total - first)
    block = first // box
    p = start_p + (first - block * box) // tl.maximum(width, 1)
    q = start_q + (first - block * box) % tl.maximum(width, 1)
    n = block.to(tl.int64) * BLOCK_K

    # Channels and columns beyond the end read the first ones once more: their sums are never stored.
    vector, lane = _wrapped(k, Kg, VECTOR_K)
    k_read = vector * VECTOR_K + lane
    dy_tile = dy + ((n * P + p) * Q + q) * K + group * Kg
    dy_offset = k_read[:, None] + (row * (P * Q * K))[None, :]
    x_tile = x + ((n * H + (p * stride_h - pad_top)) * W + (q * stride_w - pad_left)) * C + group * Cg
    x_offset = (row * (H * W * C))[:, None] + (tap_shift + c)[None, :]
    # How far the next pixel is: in the row, in the next row, in the next BLOCK_K images.
    dy_next_q = K
    dy_next_p = (Q - width + 1) * K
    dy_next_n = dy_next_p + (BLOCK_K * P - (end_p - start_p)) * Q * K
    x_next_q = stride_w * C
    x_next_p = x_next_q + (stride_h * W - width * stride_w) * C
    x_next_n = x_next_p + (BLOCK_K * H - (end_p - start_p) * stride_h) * W * C
    images = N - block * BLOCK_K

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(steps):
        x_pointer = x_tile + x_offset
        dy_pointer = dy_tile + dy_offset
        if PADDED and not ONE_TAP:
            inside = tl.cast(tap_h + (p * stride_h - pad_top), tl.uint32) < tl.cast(H, tl.uint32)
            inside &= tl.cast(tap_w + (q * stride_w - pad_left), tl.uint32) < tl.cast(W, tl.uint32)
            inside = tl.max_constancy(inside, VECTOR_C)[None, :]
            if not EVEN:
                inside = inside & (row < images)[:, None]
            x_block = tl.load(x_pointer, mask=inside, other=0.0)
        elif EVEN:
            x_block = tl.load(x_pointer)
        else:
            x_block = tl.load(x_pointer, mask=(row < images)[:, None], other=0.0)
        dy_block = tl.load(dy_pointer) if EVEN else tl.load(dy_pointer, mask=(row < images)[None, :], other=0.0)
        if WIDEN:
            dy_block, x_block = dy_block.to(tl.float32), x_block.to(tl.float32)
        accumulator = tl.dot(dy_block, x_block, accumulator, input_precision=PRECISION)

        q += 1
        row_ends = q == end_q
        q = tl.where(row_ends, start_q, q)
        p = tl.where(row_ends, p + 1, p)
        image_ends = p == end_p
        p = tl.where(image_ends, start_p, p)
        dy_tile += tl.where(image_ends, dy_next_n, tl.where(row_ends, dy_next_p, dy_next_q))
        x_tile += tl.where(image_ends, x_next_n, tl.where(row_ends, x_next_p, x_next_q))
        if not EVEN:
            images = tl.where(image_ends, images - BLOCK_K, images)

    store_plane(out, accumulator, k, column, Kg, columns, columns, split * groups + group)


@triton.jit
def wgrad_pixel_kernel(
    dy, x, out,
    pixels, vectors_K, Kg, vectors_C, Cg, columns,
    H, W, P, Q, S,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    tiles_m, tiles_n, groups, steps_per_split,
    step_n, step_p, step_q, step_image,
    LINEAR: tl.constexpr, PADDED: tl.constexpr, EVEN: tl.constexpr,
    Q_MOVES: tl.constexpr, P_MOVES: tl.constexpr,
    VECTOR_K: tl.constexpr, VECTOR_C: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of dw, or of one split's plane of the workspace.

    dy: (N, P, Q, K). x: (N, H, W, C). out: (splits, K, R, S, C/groups), the workspace or dw itself.
    pixels: N*P*Q. vectors_K: K / VECTOR_K and vectors_C: C / VECTOR_C, so that the compiler sees what the
    strides divide by. Kg, Cg: channels of a group. columns: R*S*Cg. step_n, step_p, step_q: BLOCK_K pixels
    as mixed-radix digits of (P, Q); step_image: BLOCK_K mod P*Q.
    """
    split, group, tile_m, tile_n = place(tiles_m, tiles_n, groups, GROUP_M)
    C = vectors_C * VECTOR_C
    K = vectors_K * VECTOR_K
    first = split.to(tl.int64) * steps_per_split * BLOCK_K
    row = tl.arange(0, BLOCK_K)

    # Channels and columns beyond the end read the first ones once more: their sums are never stored.
    k = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    vector, lane = _wrapped(k, Kg, VECTOR_K)
    k_read = vector * VECTOR_K + lane
    dy_tile = dy + first * K + group * Kg
    dy_offset = k_read[:, None] + row[None, :] * K

    column = last_fits(tile_n, columns, BLOCK_N, VECTOR_C) + tl.arange(0, BLOCK_N)
    column_vector, lane = _wrapped(column, columns, VECTOR_C)
    tap = column_vector // (Cg // VECTOR_C)
    c = (column_vector - tap * (Cg // VECTOR_C)) * VECTOR_C + lane
    tap_h = (tap // S) * dilation_h
    tap_w = (tap % S) * dilation_w
    tap_shift = (tap_h * W + tap_w) * C

    image0 = first // (P * Q)
    pixel0 = (first - image0 * (P * Q)).to(tl.int32)
    p0 = pixel0 // Q
    q0 = pixel0 - p0 * Q
    corner = (image0 * H + (p0 * stride_h - pad_top)) * W + (q0 * stride_w - pad_left)
    x_tile = x + corner * C + group * Cg
    image = (pixel0 + row) % (P * Q)  # the pixel's place in its image
    p = image // Q
    q = image % Q
    if LINEAR:
        x_offset = (row * stride_w * C)[:, None] + (tap_shift + c)[None, :]
        step_x = BLOCK_K * stride_w * C
    else:
        ahead = (pixel0 + row) // (P * Q)
        row_at = (ahead * H + (p - p0) * stride_h) * W + (q - q0) * stride_w
        step_x = ((step_n * H + step_p * stride_h) * W + step_q * stride_w) * C
        jump_q = stride_h * W - Q * stride_w
        jump_p = (H - P * stride_h) * W
    if PADDED:
        first_p, count_p = clip(tap_h - pad_top, P, H, stride_h)
        first_q, count_q = clip(tap_w - pad_left, Q, W, stride_w)
        if LINEAR:
            period = tl.cast(P * Q, tl.uint32)
            period_q = tl.cast(Q, tl.uint32)
            limit = tl.broadcast_to((count_p * Q).to(tl.uint32)[None, :], (BLOCK_K, BLOCK_N))
            limit_q = count_q.to(tl.uint32)[None, :]
            phase = (image[:, None] - (first_p * Q)[None, :]).to(tl.uint32)
            phase = tl.minimum(phase, phase + period)
            phase_q = (q[:, None] - first_q[None, :]).to(tl.uint32)
            phase_q = tl.minimum(phase_q, phase_q + period_q)
            if not Q_MOVES:  # a step is whole image rows: q's verdict never changes
                limit = tl.where(phase_q < limit_q, limit, 0)

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    left = pixels - first
    steps = tl.minimum(steps_per_split, tl.cdiv(left, BLOCK_K)).to(tl.int32)
    rows_left = tl.minimum(left, steps_per_split * BLOCK_K).to(tl.int32)
    for _ in range(steps):
        if not LINEAR:
            x_offset = (row_at * C)[:, None] + (tap_shift + c)[None, :]
        x_pointer = x_tile + x_offset
        if PADDED:
            if LINEAR:
                inside = phase < limit
                if Q_MOVES:
                    inside &= phase_q < limit_q
            else:
                inside = (p[:, None] - first_p[None, :]).to(tl.uint32) < count_p.to(tl.uint32)[None, :]
                inside &= (q[:, None] - first_q[None, :]).to(tl.uint32) < count_q.to(tl.uint32)[None, :]
            if not EVEN:
                inside &= (row < rows_left)[:, None]
            inside = tl.max_constancy(inside, [1, VECTOR_C])
            x_block = tl.load(x_pointer, mask=inside, other=0.0)
        elif EVEN:
            x_block = tl.load(x_pointer)
        else:
            x_block = tl.load(x_pointer, mask=(row < rows_left)[:, None], other=0.0)
        if EVEN:
            dy_block = tl.load(dy_tile + dy_offset)
        else:
            dy_block = tl.load(dy_tile + dy_offset, mask=(row < rows_left)[None, :], other=0.0)
        if WIDEN:
            dy_block, x_block = dy_block.to(tl.float32), x_block.to(tl.float32)
        accumulator = tl.dot(dy_block, x_block, accumulator, input_precision=PRECISION)

        dy_tile += BLOCK_K * K
        x_tile += step_x
        if not EVEN:
            rows_left -= BLOCK_K
        if LINEAR:
            if PADDED:
                if P_MOVES:
                    phase = _wrap(phase, tl.cast(step_image, tl.uint32), period)
                if Q_MOVES:
                    phase_q = _wrap(phase_q, tl.cast(step_q, tl.uint32), period_q)
        else:
            q += step_q
            carry = q >= Q
            q = tl.where(carry, q - Q, q)
            p = tl.where(carry, p + (step_p + 1), p + step_p)
            row_at = tl.where(carry, row_at + jump_q, row_at)
            carry = p >= P
            p = tl.where(carry, p - P, p)
            row_at = tl.where(carry, row_at + jump_p, row_at)

    store_plane(out, accumulator, k, column, Kg, columns, columns, split * groups + group)


@triton.jit
def reduce_kernel(workspace, dw, elements, splits, BLOCK: tl.constexpr):
    """dw[i] = sum over splits, in order, of workspace[split, i]: float32 sums, cast once."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = start + tl.arange(0, BLOCK)
    mask = offset < elements
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    pointer = workspace + offset
    for _ in range(splits):
        total += tl.load(pointer, mask=mask, other=0.0)
        pointer += elements
    tl.store(dw + offset, total.to(dw.dtype.element_ty), mask=mask)
