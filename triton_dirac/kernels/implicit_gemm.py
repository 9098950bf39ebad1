"""The implicit GEMM that fprop and dgrad share, with its gather loader.

Both sum a *source* image over filter taps into a *target* image. With source x and target y that is fprop.
With source dy and target dx it is dgrad: of stride 1, an fprop whose taps run backwards; of a larger
stride, one such problem per stride phase (target pixels of equal h mod stride), all in one launch.

    target[n, i, j, k] = sum over taps (a, b) and channels c of
        source[n, i * stride + start_h + a * step_h, j * stride + start_w + b * step_w, c] * B[(a, b, c), k]

GEMM view: rows m = (n, i, j), columns k, sum index over taps and channels. C and K are the source's and the
target's channels per group: for dgrad the convolution's K and C. Images are dense NHWC, weights dense KRSC.
One flattened loop runs over the sum; what keeps it near a plain GEMM:

- whether a tap of a row lies outside the image is a bit computed before the loop; in it, one AND a row;
- every address is a 64-bit base of its row plus an offset that all rows share: one multiply-add a load;
- where BLOCK_K divides C the taps run fastest: the current tap's bit is then the loop's whole state, and
  neighbouring taps find their pixels in cache. Elsewhere (b, c) is one contiguous index that BLOCK_K cuts
  across taps, so that 80 channels, or the 3 of a stem, do not waste it;
- columns beyond K are clamped to the last one and rows beyond M read nothing; only the store is masked.
"""

import math

import triton
import triton.language as tl

from triton_dirac.kernels.launch import Launch


@triton.constexpr_function
def gcd(a, b):
    return math.gcd(a, b)


@triton.jit
def program_tile(tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Tile (row, column) of this program: GROUP_M row tiles share their columns while these are in L2."""
    program = tl.program_id(0)
    per_group = GROUP_M * tiles_n
    first = program // per_group * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    return first + program % per_group % height, program % per_group // height


@triton.jit
def phase_taps(phase, pad, SIZE: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr):
    """(first tap, number of taps, source offset of the first) of dgrad's target pixels phase + STRIDE * i.

    Tap r reaches pixel h from source row (h + pad - r * DILATION) / STRIDE where that is whole: every
    STRIDE / gcd(STRIDE, DILATION)-th tap, or none.
    """
    EVERY: tl.constexpr = STRIDE // gcd(STRIDE, DILATION)
    first = tl.full((), SIZE, tl.int32)
    for r in tl.static_range(min(EVERY, SIZE)):
        first = tl.where((phase + pad - r * DILATION) % STRIDE == 0, r, first)
    return first, (SIZE - first + EVERY - 1) // EVERY, (phase + pad - first * DILATION) // STRIDE


@triton.jit
def outside_bits(start, size, taps, STEP: tl.constexpr, SIZE: tl.constexpr, BITS: tl.constexpr):
    """Bit t is set where start + t * STEP is not in [0, size) or t >= taps, for t = 0 .. SIZE."""
    bits = tl.zeros_like(start).to(BITS)
    for t in tl.static_range(SIZE + 1):
        position = start + t * STEP
        outside = (position < 0) | (position >= size) | (t >= taps)
        bits |= outside.to(BITS) << t
    return bits


@triton.jit
def finish(
    acc, rows_ok, pixel, centre, centre_ok, column,
    source, target, bias, alpha, group,
    C: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, DGRAD: tl.constexpr,
    BIAS: tl.constexpr, IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """target[pixel, column] = relu(acc + bias[column] + alpha[filter] * source[centre, column]).

    ``column`` counts within the group, ``pixel`` and ``centre`` are pixel numbers relative to target and
    source; ``centre_ok`` says which rows' centre tap lies inside the source.
    """
    column_ok = column < K
    if BIAS:
        acc += tl.load(bias + group * K + column, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    if IDENTITY:
        has_identity = column < min(C, K)
        # alpha belongs to the convolution's filters: of those dgrad has C a group.
        filters = group * (C if DGRAD else K) + column
        scale = tl.load(alpha + filters * ALPHA_STRIDE, mask=has_identity, other=0.0).to(tl.float32)
        value = tl.load(
            source + centre[:, None] * (C * GROUPS) + (group * C + column)[None, :],
            mask=centre_ok[:, None] & has_identity[None, :],
            other=0.0,
        )
        acc += scale[None, :] * value.to(tl.float32)
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)  # keeps NaN, as torch does
    tl.store(
        target + pixel[:, None] * (K * GROUPS) + (group * K + column)[None, :],
        acc.to(target.dtype.element_ty),
        mask=rows_ok[:, None] & column_ok[None, :],
    )


@triton.jit
def gather_gemm(
    source, weight, target, bias, alpha,
    N, H, W, P, Q, pad_h, pad_w,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, GROUPS: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    DGRAD: tl.constexpr, PADDED: tl.constexpr, OFFSET: tl.constexpr,
    BIAS: tl.constexpr, IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """source: (N, H, W, GROUPS * C). target: (N, P, Q, GROUPS * K). pad_h, pad_w: the convolution's, top and
    left. grid: (row tiles * column tiles, GROUPS * phases)."""
    # The target's pixels (i * EVERY_I + phase_h, j * EVERY_J + phase_w), (I, J) of them, and their taps.
    group = tl.program_id(1) % GROUPS
    if DGRAD:
        phase_h = tl.program_id(1) // GROUPS // STRIDE_W
        phase_w = tl.program_id(1) // GROUPS % STRIDE_W
        EVERY_I: tl.constexpr = STRIDE_H
        EVERY_J: tl.constexpr = STRIDE_W
        SKIP_H: tl.constexpr = 1
        SKIP_W: tl.constexpr = 1
        STEP_H: tl.constexpr = DILATION_H // gcd(STRIDE_H, DILATION_H)
        STEP_W: tl.constexpr = DILATION_W // gcd(STRIDE_W, DILATION_W)
        first_r, taps_h, start_h = phase_taps(phase_h, pad_h, R, STRIDE_H, DILATION_H)
        first_s, taps_w, start_w = phase_taps(phase_w, pad_w, S, STRIDE_W, DILATION_W)
        start_h -= (taps_h - 1) * STEP_H
        start_w -= (taps_w - 1) * STEP_W
    else:
        phase_h = 0
        phase_w = 0
        EVERY_I: tl.constexpr = 1
        EVERY_J: tl.constexpr = 1
        SKIP_H: tl.constexpr = STRIDE_H
        SKIP_W: tl.constexpr = STRIDE_W
        STEP_H: tl.constexpr = DILATION_H
        STEP_W: tl.constexpr = DILATION_W
        taps_h = R
        taps_w = S
        start_h = -pad_h
        start_w = -pad_w
    I = (P - phase_h + EVERY_I - 1) // EVERY_I
    J = (Q - phase_w + EVERY_J - 1) // EVERY_J
    rows = N * I * J

    tiles_m = tl.cdiv(N * tl.cdiv(P, EVERY_I) * tl.cdiv(Q, EVERY_J), BLOCK_M)
    tile_m, tile_n = program_tile(tiles_m, tl.cdiv(K, BLOCK_N), GROUP_M)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_ok = m < rows
    I = tl.maximum(I, 1)  # a phase may have no pixel at all
    J = tl.maximum(J, 1)
    j = m % J
    i = m // J % I
    n = m // J // I
    # Images are counted from this tile's first: with an int64 base, offsets within a tile fit int32.
    image = tile_m * BLOCK_M // J // I
    n = (tl.where(rows_ok, n, image) - image).to(OFFSET)
    source += image.to(tl.int64) * H * W * (C * GROUPS)
    target += image.to(tl.int64) * P * Q * (K * GROUPS)
    h = i * SKIP_H + start_h
    w = j * SKIP_W + start_w

    if DGRAD:  # the taps of one phase
        EVERY_R: tl.constexpr = STRIDE_H // gcd(STRIDE_H, DILATION_H)
        EVERY_S: tl.constexpr = STRIDE_W // gcd(STRIDE_W, DILATION_W)
    else:
        EVERY_R: tl.constexpr = 1
        EVERY_S: tl.constexpr = 1
    ONE_BIT: tl.constexpr = -(-R // EVERY_R) * -(-S // EVERY_S) <= 30
    WIDE: tl.constexpr = not ONE_BIT and max(R, S) > 15
    BITS: tl.constexpr = tl.int64 if WIDE else tl.int32
    HALF: tl.constexpr = 32 if WIDE else 16
    outside_h = outside_bits(h, H, taps_h, STEP_H, R, BITS)
    outside_w = outside_bits(w, W, taps_w, STEP_W, S, BITS)
    if ONE_BIT:  # bit a * taps_w + b; all from the last tap on are set
        full = (1 << taps_w) - 1
        outside = tl.zeros_like(outside_w) | (-1 << taps_h * taps_w)
        for a in tl.static_range(R):
            row_bits = tl.where(((outside_h >> a) & 1) != 0, full, outside_w & full)
            outside |= tl.where(a < taps_h, row_bits << a * taps_w, 0)
    else:  # bit a, and bit HALF + b
        outside = outside_h | (outside_w << HALF)
    outside = tl.where(rows_ok, outside, -1)

    # Elements from one tap to the next of its row, and to the same tap of the next row: source, then weight.
    PIXEL: tl.constexpr = C * GROUPS
    source_b = STEP_W * PIXEL
    source_a = STEP_H * W * PIXEL
    source_row = source + ((n * H + h) * W + w) * PIXEL + group * C
    k = tl.arange(0, BLOCK_K)
    if DGRAD:
        last_r = first_r + (taps_h - 1) * EVERY_R
        last_s = first_s + (taps_w - 1) * EVERY_S
        weight_b = -EVERY_S * K
        weight_a = -EVERY_R * S * K
        weight += group.to(tl.int64) * C * (R * S * K) + (last_r * S + last_s) * K
    else:
        weight_b = C
        weight_a = S * C
        weight += (group * K + tile_n * BLOCK_N).to(tl.int64) * (R * S * C)
        filter = tl.arange(0, BLOCK_N)
        if K % BLOCK_N != 0:
            filter = tl.minimum(filter, K - 1 - tile_n * BLOCK_N)
        weight_row = weight + filter * (R * S * C)
    column_ok = column < K

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    TAPS_FASTEST: tl.constexpr = C % BLOCK_K == 0 or (DGRAD and STRIDE_H * STRIDE_W > 1)
    if TAPS_FASTEST:
        TAIL: tl.constexpr = C % BLOCK_K != 0
        one = tl.full((), 1, BITS)
        if ONE_BIT:
            first_tap = one
            row_ends = tl.zeros((), BITS)
            for a in tl.static_range(-(-R // EVERY_R)):
                row_ends |= tl.where(a < taps_h, one << ((a + 1) * taps_w - 1), 0)
            end = one << taps_h * taps_w
        else:
            first_tap = one | (one << HALF)
            row_ends = one << (taps_w - 1 + HALF)
            end = (one << taps_h) | (one << HALF)
        bits = first_tap
        source_return = source_a - (taps_w - 1) * source_b
        weight_return = weight_a - (taps_w - 1) * weight_b
        CHANNEL: tl.constexpr = (
            R * S * K if DGRAD else 1
        )  # elements from one channel of the weight to the next
        source_next = BLOCK_K - (taps_h - 1) * source_a - (taps_w - 1) * source_b
        weight_next = BLOCK_K * CHANNEL - (taps_h - 1) * weight_a - (taps_w - 1) * weight_b
        source_k = k.to(OFFSET)
        channel = k
        if DGRAD:
            weight_row = weight + k * CHANNEL
            weight_k = column
        else:
            weight_k = k
        for _ in range(taps_h * taps_w * tl.cdiv(C, BLOCK_K)):
            source_mask = (outside & bits)[:, None] == 0
            if TAIL:
                source_mask &= (channel < C)[None, :]
            if PADDED or TAIL:
                x = tl.load(source_row[:, None] + source_k[None, :], mask=source_mask, other=0.0)
            else:
                x = tl.load(source_row[:, None] + source_k[None, :])
            if DGRAD:
                weights = weight_row[:, None] + weight_k[None, :]
                if TAIL:
                    y = tl.load(weights, mask=(channel < C)[:, None] & column_ok[None, :], other=0.0)
                elif K % BLOCK_N != 0:
                    y = tl.load(weights, mask=column_ok[None, :], other=0.0)
                else:
                    y = tl.load(weights)
            else:
                y = tl.load(weight_row[None, :] + weight_k[:, None])
            acc = tl.dot(x, y, acc, input_precision=PRECISION)
            row_end = (bits & row_ends) != 0
            if ONE_BIT:
                bits += bits
            else:
                column_bit = bits >> HALF << HALF
                bits = tl.where(
                    row_end, bits - column_bit + bits - column_bit + (one << HALF), bits + column_bit
                )
            last = bits == end
            source_k += tl.where(last, source_next, tl.where(row_end, source_return, source_b))
            weight_k += tl.where(last, weight_next, tl.where(row_end, weight_return, weight_b))
            if TAIL:
                channel += tl.where(last, BLOCK_K, 0)
            bits = tl.where(last, first_tap, bits)
    else:
        TOTAL: tl.constexpr = R * S * C
        if DGRAD:
            weights = weight + tl.zeros_like(k)[:, None] + column[None, :]
        else:
            weights = weight_row[None, :] + k[:, None]
        for step in range(tl.cdiv(TOTAL, BLOCK_K)):
            index = step * BLOCK_K + k  # of (a, b, c); the divisions are by constants: a multiply-high each
            tap = index // C
            a = tap // S
            if ONE_BIT:
                shift = tap if TOTAL % BLOCK_K == 0 else tl.minimum(tap, R * S)
                source_mask = ((outside[:, None] >> shift[None, :]) & 1) == 0
            else:
                one = tl.full((), 1, BITS)
                bits = (one << tl.minimum(a, R)) | (one << tap - a * S + HALF)
                source_mask = (outside[:, None] & bits[None, :]) == 0
            source_k = index.to(OFFSET) + tap * (source_b - C) + a * (source_a - S * source_b)
            if TOTAL % BLOCK_K == 0 and not PADDED:
                x = tl.load(source_row[:, None] + source_k[None, :])
            else:
                x = tl.load(source_row[:, None] + source_k[None, :], mask=source_mask, other=0.0)
            if DGRAD:
                weight_k = (index - tap * C) * (R * S * K) + tap * weight_b
                weight_mask = (index < TOTAL)[:, None] & column_ok[None, :]
                y = tl.load(weights + weight_k[:, None], mask=weight_mask, other=0.0)
            else:
                if TOTAL % BLOCK_K == 0:
                    y = tl.load(weights)
                else:
                    y = tl.load(weights, mask=(index < TOTAL)[:, None], other=0.0)
                weights += BLOCK_K
            acc = tl.dot(x, y, acc, input_precision=PRECISION)

    if DGRAD:
        tap_h = taps_h - 1 - (R // 2 - first_r) // EVERY_R
        tap_w = taps_w - 1 - (S // 2 - first_s) // EVERY_S
        reaches = ((R // 2 - first_r) % EVERY_R == 0) & ((S // 2 - first_s) % EVERY_S == 0)
        reaches &= (taps_h > 0) & (taps_w > 0)
    else:
        tap_h = R // 2
        tap_w = S // 2
        reaches = True
    h += tap_h * STEP_H
    w += tap_w * STEP_W
    centre_ok = rows_ok & reaches & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    pixel = (n * P + i * EVERY_I + phase_h) * Q + j * EVERY_J + phase_w
    finish(
        acc, rows_ok, pixel, (n * H + h) * W + w, centre_ok, column,
        source, target, bias, alpha, group,
        C, K, GROUPS, DGRAD, BIAS, IDENTITY, ALPHA_STRIDE, RELU,
    )  # fmt: skip


def plan(source, weight, target, bias, alpha, problem, *, dgrad, relu, precision, config) -> list[Launch]:
    """Launches that fill ``target`` from ``source``: x to y, or with ``dgrad`` dy to dx.

    More than 2^31 rows do not fit the kernel's int32: the batch is then halved, one launch each.
    """
    N, _, H, W = source.shape
    _, _, P, Q = target.shape
    groups, (stride_h, stride_w) = problem.groups, problem.stride
    C, K = problem.C // groups, problem.K // groups
    if dgrad:
        C, K = K, C
    if C * K * problem.R * problem.S >= 2**31 or max(H * W, P * Q) >= 2**31 - config.block_m:
        raise ValueError(f"one group's weight or one image of {problem} exceeds 2^31 elements")
    if N * P * Q >= 2**31 - config.block_m:
        parts = [slice(0, N // 2), slice(N // 2, N)]
        options = dict(dgrad=dgrad, relu=relu, precision=precision, config=config)
        return sum(
            (plan(source[p], weight, target[p], bias, alpha, problem, **options) for p in parts),
            start=[],
        )
    phases = stride_h * stride_w if dgrad else 1
    rows = -(-P // stride_h) * -(-Q // stride_w) * N if dgrad else N * P * Q
    # The images that one tile's offsets must span, and one more of padding around them.
    images = config.block_m * phases // max(P * Q, 1) + 3
    wide = images * max(H * W * C, P * Q * K) * groups >= 2**31
    padded = phases > 1 or problem.R * problem.S > 1 if dgrad else any(problem.padding)
    args = {
        "source": source,
        "weight": weight,
        "target": target,
        "bias": bias,
        "alpha": alpha,
        "N": N,
        "H": H,
        "W": W,
        "P": P,
        "Q": Q,
        "pad_h": problem.padding[0],
        "pad_w": problem.padding[2],
    }
    constexprs = {
        "C": C,
        "K": K,
        "R": problem.R,
        "S": problem.S,
        "GROUPS": groups,
        "STRIDE_H": stride_h,
        "STRIDE_W": stride_w,
        "DILATION_H": problem.dilation[0],
        "DILATION_W": problem.dilation[1],
        "DGRAD": dgrad,
        "PADDED": padded,
        "OFFSET": tl.int64 if wide else tl.int32,
        "BIAS": bias is not None,
        "IDENTITY": alpha is not None,
        "ALPHA_STRIDE": 0 if alpha is None or alpha.numel() == 1 else 1,
        "RELU": relu,
        "PRECISION": precision,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m,
    }
    tiles = -(-rows // config.block_m) * -(-K // config.block_n)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return [Launch(gather_gemm, (tiles, groups * phases), args, constexprs, options)]
