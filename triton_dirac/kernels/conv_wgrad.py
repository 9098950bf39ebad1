"""Weight gradient of a convolution as an implicit GEMM: M = K, N = R*S*C, reduction over the N*P*Q pixels.

    dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k] * x[n, p*sh - top + r*dh, q*sw - left + s*dw, c]

The map of this file: ``_wgrad_kernel`` (one flattened loop over pixels), ``_reduce_kernel`` (second pass of
the split reduction), ``plan_wgrad`` (sizes to launches), ``wgrad`` (allocate, plan, run), flops and bytes.

The reduction is split in ``split_k`` parts, each of which writes its own float32 plane of a workspace; the
second kernel adds the planes in order. No atomics: the result is bitwise the same from run to run.

The hard part is the walk over (n, p, q), because an image row's end falls anywhere in a tile. Two facts
keep divisions out of the loop. For one tap the pixels that read inside the image are a run of q within
every Q and a run of rows within every P*Q, so two phases that wrap tell it:

    (pixel - first valid q) mod Q < valid q's        (pixel - first valid row * Q) mod P*Q < valid rows * Q

and a phase moves by a constant with at most one wrap: ``min(moved, moved - period)`` on unsigned numbers.
And where the output is as large as the input (stride 1, "same" padding) the input's address is linear in
the pixel, so only one scalar pointer moves (LINEAR); else each row's offset jumps when q or p wraps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_dirac.kernels.launch import Launch
from triton_dirac.problem import ConvProblem
from triton_dirac.tuning import wgrad as tuning
from triton_dirac.tuning.config import Config
from triton_dirac.tuning.targets import target_of

INT32_LIMIT = 2**31 - 1
REDUCE_BLOCK = 1024


@triton.jit
def _wrap(phase, step, period):
    """(phase + step) mod period for unsigned phase, step < period: a wrapped difference loses the minimum."""
    moved = phase + step
    return tl.minimum(moved, moved - period)


@triton.jit
def _first_and_count(tap_offset, pad, size, stride, outputs):
    """The outputs o in [0, outputs) with 0 <= o * stride - pad + tap_offset < size: first of them, how many."""
    lead = pad - tap_offset
    first = tl.minimum((tl.maximum(lead, 0) + stride - 1) // stride, outputs)
    end = tl.minimum((tl.maximum(size + lead, 0) + stride - 1) // stride, outputs)
    return first, tl.maximum(end - first, 0)


@triton.jit
def _tile_of(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Grouped order: GROUP_M tiles of K share each tile of x's columns before the next is read."""
    per_group = GROUP_M * tiles_n
    first_m = (pid // per_group) * GROUP_M
    height = tl.minimum(tiles_m - first_m, GROUP_M)
    within = pid % per_group
    return first_m + within % height, within // height


@triton.jit
def _wgrad_kernel(
    dy, x, out,
    pixels, K, vectors_K, Kg, vectors_C, Cg, columns,
    H, W, P, Q, S,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    tiles_m, tiles_n, groups, steps_per_split,
    step_n, step_p, step_q, step_image,
    LINEAR: tl.constexpr, PADDED: tl.constexpr, EVEN: tl.constexpr, Q_MOVES: tl.constexpr, P_MOVES: tl.constexpr,
    VECTOR_K: tl.constexpr, VECTOR_C: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of dw, or of one split's plane of the workspace.

    dy: (N, P, Q, K). x: (N, H, W, C). out: (splits, K, R, S, C/groups), the workspace or dw itself.
    pixels: N*P*Q. vectors_K: K / VECTOR_K and vectors_C: C / VECTOR_C, so that the compiler sees what the
    strides divide by. Kg, Cg: channels of a group. columns: R*S*Cg. step_n, step_p, step_q: BLOCK_K pixels
    as mixed-radix digits of (P, Q); step_image: BLOCK_K mod P*Q.
    """
    # Tiles of one split run together: they read the same pixels, so dy and x come from L2 but once.
    pid = tl.program_id(0)
    tiles = tiles_m * tiles_n
    split = pid // (tiles * groups)
    group = (pid // tiles) % groups
    tile_m, tile_n = _tile_of(pid % tiles, tiles_m, tiles_n, GROUP_M)

    C = vectors_C * VECTOR_C
    stride_K = vectors_K * VECTOR_K
    first = split.to(tl.int64) * steps_per_split * BLOCK_K
    row = tl.arange(0, BLOCK_K)

    # Channels and columns beyond the end read the first ones: their sums are never stored.
    k = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k_read = tl.max_contiguous(tl.multiple_of(tl.where(k < Kg, k, 0), VECTOR_K), VECTOR_K)
    dy_tile = dy + first * stride_K + group * Kg
    dy_offset = k_read[:, None] + row[None, :] * stride_K

    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_read = tl.where(column < columns, column, 0)
    tap = column_read // Cg
    c = tl.max_contiguous(tl.multiple_of(column_read - tap * Cg, VECTOR_C), VECTOR_C)
    tap_h = (tap // S) * dilation_h
    tap_w = (tap % S) * dilation_w
    tap_shift = tl.max_constancy(tl.multiple_of((tap_h * W + tap_w) * C, VECTOR_C), VECTOR_C)

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
        row_offset = ((ahead * H + (p - p0) * stride_h) * W + (q - q0) * stride_w) * C
        column_offset = tap_shift + c
        step_x = ((step_n * H + step_p * stride_h) * W + step_q * stride_w) * C
        jump_q = (stride_h * W - Q * stride_w) * C
        jump_p = (H - P * stride_h) * W * C
    if PADDED:
        first_p, count_p = _first_and_count(tap_h, pad_top, H, stride_h, P)
        first_q, count_q = _first_and_count(tap_w, pad_left, W, stride_w, Q)
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
        if LINEAR:
            x_pointer = x_tile + x_offset
        else:
            x_pointer = x_tile + (row_offset[:, None] + column_offset[None, :])
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

        dy_tile += BLOCK_K * stride_K
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
            row_offset = tl.where(carry, row_offset + jump_q, row_offset)
            carry = p >= P
            p = tl.where(carry, p - P, p)
            row_offset = tl.where(carry, row_offset + jump_p, row_offset)

    plane = (split * groups + group).to(tl.int64) * Kg
    out_offset = (plane + k)[:, None] * columns + column[None, :]
    stored = (k < Kg)[:, None] & (column < columns)[None, :]
    tl.store(out + out_offset, accumulator.to(out.dtype.element_ty), mask=stored)


@triton.jit
def _reduce_kernel(workspace, dw, elements, splits, BLOCK: tl.constexpr):
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


def _vector(width: int, *sizes: int) -> int:
    """The largest power of two up to ``width`` that divides all ``sizes``."""
    while any(size % width for size in sizes):
        width //= 2
    return width


def _is_linear(problem: ConvProblem) -> bool:
    """Whether x's address is linear in the pixel: the jumps at the ends of rows and images are zero."""
    sh, sw = problem.stride
    return sh * problem.W == sw * problem.Q and problem.H == sh * problem.P


def is_padded(problem: ConvProblem) -> bool:
    """Whether any tap of any output reads outside the image."""
    (sh, sw), (dh, dw), (top, _, left, _) = problem.stride, problem.dilation, problem.padding
    below = (problem.P - 1) * sh - top + (problem.R - 1) * dh >= problem.H
    right = (problem.Q - 1) * sw - left + (problem.S - 1) * dw >= problem.W
    return bool(top or left or below or right)


def split_steps(problem: ConvProblem, block_k: int, split_k: int) -> tuple[int, int]:
    """(splits, steps of each): no split is empty, and no split is longer than int32 offsets hold.

    Raises ValueError for ``split_k`` below 1.
    """
    if split_k < 1:
        raise ValueError(f"split_k must be at least 1, got {split_k}")
    pixels = problem.N * problem.P * problem.Q
    steps = max(1, -(-pixels // block_k))
    per_split = -(-steps // split_k)
    # A split's rows of x start in one image and may end in one more than they fill.
    images = INT32_LIMIT // (problem.H * problem.W * problem.C) - 2
    most = max(1, min(images * problem.P * problem.Q, INT32_LIMIT - block_k) // block_k)
    per_split = min(per_split, most)
    return -(-steps // per_split), per_split


def plan_wgrad(
    dy: Tensor,
    x: Tensor,
    dw: Tensor,
    workspace: Tensor | None,
    problem: ConvProblem,
    *,
    precision: str = "ieee",
    config: Config,
    split_k: int,
) -> list[Launch]:
    """The launches of wgrad: one when the reduction is not split, else two.

    dy: (N, K, P, Q), x: (N, C, H, W), dw: (K, C/groups, R, S), all channels-last dense. workspace: float32 of
    ``workspace_shape``, or None where that is None.
    """
    K, Kg = problem.K, problem.K // problem.groups
    C, Cg = problem.C, problem.C // problem.groups
    columns = problem.R * problem.S * Cg
    splits, steps = split_steps(problem, config.block_k, split_k)
    tiles_m, tiles_n = triton.cdiv(Kg, config.block_m), triton.cdiv(columns, config.block_n)
    width = 16 // dy.element_size()
    vector_k, vector_c = _vector(width, K, Kg), _vector(width, C, Cg)
    image = problem.P * problem.Q
    pixels = problem.N * image
    # The interpreter's dot reads bfloat16's bits as integers (Triton 3.6 to 3.9).
    interpreted = not isinstance(_wgrad_kernel, triton.JITFunction)
    main = Launch(
        kernel=_wgrad_kernel,
        grid=(tiles_m * tiles_n * problem.groups * splits,),
        args={
            "dy": dy, "x": x, "out": dw if workspace is None else workspace,
            "pixels": pixels, "K": K, "vectors_K": K // vector_k, "Kg": Kg,
            "vectors_C": C // vector_c, "Cg": Cg, "columns": columns,
            "H": problem.H, "W": problem.W, "P": problem.P, "Q": problem.Q, "S": problem.S,
            "stride_h": problem.stride[0], "stride_w": problem.stride[1],
            "pad_top": problem.padding[0], "pad_left": problem.padding[2],
            "dilation_h": problem.dilation[0], "dilation_w": problem.dilation[1],
            "tiles_m": tiles_m, "tiles_n": tiles_n, "groups": problem.groups, "steps_per_split": steps,
            "step_n": config.block_k // image, "step_p": config.block_k % image // problem.Q,
            "step_q": config.block_k % problem.Q, "step_image": config.block_k % image,
        },
        constexprs={
            "LINEAR": _is_linear(problem), "PADDED": is_padded(problem), "EVEN": pixels % config.block_k == 0,
            "Q_MOVES": config.block_k % problem.Q != 0, "P_MOVES": config.block_k % image != 0,
            "VECTOR_K": vector_k, "VECTOR_C": vector_c, "PRECISION": precision,
            "WIDEN": interpreted and dy.dtype == torch.bfloat16,
            "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k,
            "GROUP_M": config.group_m,
        },
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )  # fmt: skip
    if workspace is None:
        return [main]
    elements = K * columns
    second = Launch(
        kernel=_reduce_kernel,
        grid=(triton.cdiv(elements, REDUCE_BLOCK),),
        args={"workspace": workspace, "dw": dw, "elements": elements, "splits": splits},
        constexprs={"BLOCK": REDUCE_BLOCK},
        options={"num_warps": 4, "num_stages": 4},
    )
    return [main, second]


def workspace_shape(problem: ConvProblem, config: Config, split_k: int) -> tuple[int, ...] | None:
    """(splits, K, R, S, C/groups) of the float32 workspace, None where the reduction is not split."""
    splits, _ = split_steps(problem, config.block_k, split_k)
    K, Cg, R, S = problem.weight_shape
    return (splits, K, R, S, Cg) if splits > 1 else None


def wgrad(
    dy: Tensor,
    x: Tensor,
    problem: ConvProblem,
    *,
    dtype: torch.dtype,
    precision: str = "ieee",
    config: Config | None = None,
    split_k: int | None = None,
) -> Tensor:
    """dw = the weight's gradient, (K, C/groups, R, S) channels_last of ``dtype``; zeros for an empty batch.

    dy: (N, K, P, Q) and x: (N, C, H, W), of one dtype and any memory format (channels_last is not copied).
    Sums are float32. precision, for float32 operands: "ieee", "tf32" or "tf32x3". The workspace of a split
    reduction is at most ``tuning.wgrad.WORKSPACE_BYTES`` unless ``split_k`` is forced higher or int32
    offsets ask for more splits.
    """
    dy = dy.contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    target = target_of(x.device)
    if config is None:
        config = tuning.default(problem, x.dtype, target)
    if split_k is None:
        split_k = tuning.split_k(problem, config, target)
    dw = torch.empty(problem.weight_shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
    shape = workspace_shape(problem, config, split_k)
    workspace = None if shape is None else torch.empty(shape, dtype=torch.float32, device=x.device)
    launches = plan_wgrad(
        dy, x, dw, workspace, problem, precision=precision, config=config, split_k=split_k
    )
    for launch in launches:
        launch.run()
    return dw


def wgrad_flops(problem: ConvProblem) -> int:
    """2 x multiply-adds, taps outside the image counted."""
    return problem.flops


def wgrad_bytes(problem: ConvProblem, dtype: torch.dtype, split_k: int = 1) -> int:
    """Least traffic to memory: dy and x read and dw written once, the workspace written and read once."""
    images = problem.N * (problem.P * problem.Q * problem.K + problem.H * problem.W * problem.C)
    weights = problem.K * (problem.C // problem.groups) * problem.R * problem.S
    workspace = 2 * 4 * weights * split_k if split_k > 1 else 0
    return (images + weights) * dtype.itemsize + workspace
