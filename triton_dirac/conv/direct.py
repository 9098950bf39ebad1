"""Direct convolution kernels for depthwise and tiny groups: no matrix instructions.

A program has a tile of pixels and of channels of all groups together, so that loads stay contiguous in
channels_last however small a group is.

    fprop   y[n, p, q, k]  = activation(sum over r, s, j of x[n, h, w, g(k)*Cg + j] * w[k, j, r, s] + bias[k])
    dgrad   dx[n, h, w, c] = sum over r, s, m of dy[n, p, q, g(c)*Kg + m] * w[g(c)*Kg + m, c - g(c)*Cg, r, s]
    wgrad   dw[k, j, r, s] = sum over n, p, q of dy[n, p, q, k] * x[n, h, w, g(k)*Cg + j]

with h = p*sh - top + r*dh, w = q*sw - left + s*dw, Cg and Kg the channels of a group. The split form's identity
is alpha[k] added in float32 to the weight of the centre tap. Sums are float32; wgrad's is split over the pixels
and its parts are added in order by ``reduce_kernel``: no atomics, bitwise the same from run to run.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_dirac.conv.epilogue import PLAIN, Epilogue, finish
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.wgrad_kernels import reduce_kernel
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.plan import Plan
from triton_dirac.runtime.targets import Target, target_of

TILE_ELEMENTS = 2048  # elements of a tile: 16 a thread, two 16-byte loads of a 16-bit dtype
DIRECT_SPLIT_BYTES = 16 * 2**20  # float32 planes of the direct wgrad, at most


@triton.jit
def direct_fprop_kernel(
    x, w, bias, alpha, y,
    pixels, K, C, Kg, Cg,
    H, W, P, Q, R, S,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    BIAS: tl.constexpr, IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """x: (N, H, W, C). w: (K, R, S, Cg). bias, alpha: (K,); ALPHA_STRIDE 0 for alpha (1,). y: (N, P, Q, K)."""
    tiles = tl.cdiv(K, BLOCK_CHANNELS)
    pixel = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    k = tl.program_id(0) % tiles * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    row = pixel // Q  # of all images: no product of sizes, which an image of 2^31 pixels would overflow
    n = row // P
    p = (row % P).to(tl.int32)
    q = (pixel % Q).to(tl.int32)
    is_k, is_pixel = k < K, pixel < pixels
    group = k // Kg
    accumulator = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    if IDENTITY:
        scale = tl.load(alpha + k * ALPHA_STRIDE, mask=is_k, other=0.0).to(tl.float32)
    for r in range(R):
        h = p * stride_h - pad_top + r * dilation_h
        for s in range(S):
            column = q * stride_w - pad_left + s * dilation_w
            inside = is_pixel & (h >= 0) & (h < H) & (column >= 0) & (column < W)
            x_row = ((n * H + h) * W + column) * C
            for j in range(Cg):
                weight = tl.load(w + ((k * R + r) * S + s) * Cg + j, mask=is_k, other=0.0).to(tl.float32)
                if IDENTITY:
                    centre = (r == R // 2) & (s == S // 2) & (k - group * Kg == j)
                    weight = tl.where(centre, weight + scale, weight)
                x_pointer = x + x_row[:, None] + (group * Cg + j)[None, :]
                value = tl.load(x_pointer, mask=inside[:, None] & is_k[None, :], other=0.0)
                # Selected, not multiplied by zero: an infinite weight leaves the padding alone.
                product = value.to(tl.float32) * weight[None, :]
                accumulator += tl.where(inside[:, None], product, 0.0)
    accumulator = finish(accumulator, bias, k, is_k, BIAS, ACTIVATION)
    y_pointer = y + (pixel * K)[:, None] + k[None, :]
    tl.store(y_pointer, accumulator.to(y.dtype.element_ty), mask=is_pixel[:, None] & is_k[None, :])


@triton.jit
def direct_dgrad_kernel(
    dy, w, alpha, dx,
    pixels, K, C, Kg, Cg,
    H, W, P, Q, R, S,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    IDENTITY: tl.constexpr, ALPHA_STRIDE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """dy: (N, P, Q, K). w: (K, R, S, Cg). dx: (N, H, W, C). pixels: N*H*W, each seeks the outputs it fed."""
    tiles = tl.cdiv(C, BLOCK_CHANNELS)
    pixel = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    c = tl.program_id(0) % tiles * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    row = pixel // W
    n = row // H
    h = (row % H).to(tl.int32)
    column = (pixel % W).to(tl.int32)
    is_c, is_pixel = c < C, pixel < pixels
    group = c // Cg
    j = c - group * Cg
    accumulator = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    for r in range(R):
        up = h + pad_top - r * dilation_h
        p = up // stride_h
        for s in range(S):
            along = column + pad_left - s * dilation_w
            q = along // stride_w
            inside = is_pixel & (up >= 0) & (p < P) & (p * stride_h == up)
            inside = inside & (along >= 0) & (q < Q) & (q * stride_w == along)
            dy_row = ((n * P + p) * Q + q) * K
            for m in range(Kg):
                k = group * Kg + m
                weight = tl.load(w + ((k * R + r) * S + s) * Cg + j, mask=is_c, other=0.0).to(tl.float32)
                if IDENTITY:
                    scale = tl.load(alpha + k * ALPHA_STRIDE, mask=is_c, other=0.0).to(tl.float32)
                    centre = (r == R // 2) & (s == S // 2) & (j == m)
                    weight = tl.where(centre, weight + scale, weight)
                dy_pointer = dy + dy_row[:, None] + k[None, :]
                value = tl.load(dy_pointer, mask=inside[:, None] & is_c[None, :], other=0.0)
                product = value.to(tl.float32) * weight[None, :]
                accumulator += tl.where(inside[:, None], product, 0.0)
    dx_pointer = dx + (pixel * C)[:, None] + c[None, :]
    tl.store(dx_pointer, accumulator.to(dx.dtype.element_ty), mask=is_pixel[:, None] & is_c[None, :])


@triton.jit
def direct_wgrad_kernel(
    dy, x, out,
    pixels, K, C, Kg, Cg,
    H, W, P, Q, R, S,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    steps_per_split, step_n, step_p, step_q,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """out[split, k, r, s, j] of one tap (r, s), one j and BLOCK_CHANNELS filters k.

    dy: (N, P, Q, K). x: (N, H, W, C). Taps are the fastest program index: they share dy and x in L2.
    step_n, step_p, step_q: BLOCK_PIXELS as digits of (P, Q), so that the walk carries instead of dividing.
    """
    tap = tl.program_id(0) % (R * S)
    j = tl.program_id(0) // (R * S) % Cg
    tiles = tl.cdiv(K, BLOCK_CHANNELS)
    tile = tl.program_id(0) // (R * S * Cg)
    k = tile % tiles * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    split = (tile // tiles).to(tl.int64)
    is_k = k < K
    c = k // Kg * Cg + j
    first = split * steps_per_split * BLOCK_PIXELS
    steps = tl.minimum(steps_per_split, tl.cdiv(pixels - first, BLOCK_PIXELS))
    pixel = first + tl.arange(0, BLOCK_PIXELS)
    row = pixel // Q  # of all images: no product of sizes, which an image of 2^31 pixels would overflow
    n = row // P
    p = (row % P).to(tl.int32)
    q = (pixel % Q).to(tl.int32)
    up = tap // S * dilation_h - pad_top
    along = tap % S * dilation_w - pad_left
    accumulator = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    for _ in range(steps):
        h = p * stride_h + up
        column = q * stride_w + along
        inside = (pixel < pixels) & (h >= 0) & (h < H) & (column >= 0) & (column < W)
        mask = inside[:, None] & is_k[None, :]
        x_value = tl.load(x + (((n * H + h) * W + column) * C)[:, None] + c[None, :], mask=mask, other=0.0)
        dy_value = tl.load(dy + (pixel * K)[:, None] + k[None, :], mask=mask, other=0.0)
        accumulator += dy_value.to(tl.float32) * x_value.to(tl.float32)
        pixel += BLOCK_PIXELS
        q += step_q
        carry = q >= Q
        q = tl.where(carry, q - Q, q)
        p = tl.where(carry, p + (step_p + 1), p + step_p)
        carry = p >= P
        p = tl.where(carry, p - P, p)
        n = tl.where(carry, n + (step_n + 1), n + step_n)
    out_pointer = out + ((split * K + k) * (R * S) + tap) * Cg + j
    tl.store(out_pointer, tl.sum(accumulator, axis=0).to(out.dtype.element_ty), mask=is_k)


def prefers_direct(problem: ConvProblem) -> bool:
    """Whether the direct kernels suit the problem better than an implicit GEMM: Kg * Cg <= 16.

    The smallest matrix instruction multiplies with 16 x 16 weights of a tap, of which a group fills Kg * Cg,
    and matrix units have 15 to 16 times the float32 FMA rate (A100 312 to 19.5, H100 SXM 989 to 67 TFLOP/s):
    up to 256 / 16 weights plain FMAs have the higher peak, and only they read whole sectors of the image.
    """
    return (problem.K // problem.groups) * (problem.C // problem.groups) <= 16


def _geometry(problem: ConvProblem) -> dict[str, int]:
    """The sizes that all three kernels take."""
    return {
        "K": problem.K, "C": problem.C, "Kg": problem.K // problem.groups, "Cg": problem.C // problem.groups,
        "H": problem.H, "W": problem.W, "P": problem.P, "Q": problem.Q, "R": problem.R, "S": problem.S,
        "stride_h": problem.stride[0], "stride_w": problem.stride[1],
        "pad_top": problem.padding[0], "pad_left": problem.padding[2],
        "dilation_h": problem.dilation[0], "dilation_w": problem.dilation[1],
    }  # fmt: skip


def _blocks(channels: int) -> dict[str, int]:
    """128 channels are 16 threads' vectors of a 16-bit dtype; fewer channels leave room for more pixels."""
    width = min(128, triton.next_power_of_2(channels))
    return {"BLOCK_PIXELS": min(256, TILE_ELEMENTS // width), "BLOCK_CHANNELS": width}


def plan_direct_fprop(x: Tensor, w: Tensor, y: Tensor, problem: ConvProblem, epilogue: Epilogue) -> list[Launch]:
    """The launch of fprop; x, w, y channels_last dense. Shapes as ``direct_fprop``'s."""
    blocks = _blocks(problem.K)
    pixels = problem.N * problem.P * problem.Q
    tiles = triton.cdiv(pixels, blocks["BLOCK_PIXELS"]) * triton.cdiv(problem.K, blocks["BLOCK_CHANNELS"])
    args = {"x": x, "w": w, "y": y, "pixels": pixels} | epilogue.args | _geometry(problem)
    return [Launch(direct_fprop_kernel, (tiles,), args, epilogue.constexprs | blocks, {"num_warps": 4})]


def plan_direct_dgrad(dy: Tensor, w: Tensor, dx: Tensor, alpha: Tensor | None, problem: ConvProblem) -> list[Launch]:
    """The launch of dgrad; dy, w, dx channels_last dense. Shapes as ``direct_dgrad``'s."""
    blocks = _blocks(problem.C)
    pixels = problem.N * problem.H * problem.W
    tiles = triton.cdiv(pixels, blocks["BLOCK_PIXELS"]) * triton.cdiv(problem.C, blocks["BLOCK_CHANNELS"])
    args = {"dy": dy, "w": w, "alpha": alpha, "dx": dx, "pixels": pixels} | _geometry(problem)
    constexprs = Epilogue(alpha=alpha).identity | blocks
    return [Launch(direct_dgrad_kernel, (tiles,), args, constexprs, {"num_warps": 4})]


def direct_split_k(problem: ConvProblem, target: Target) -> int:
    """Splits of direct wgrad: four programs a unit, 16 steps each at least, ``DIRECT_SPLIT_BYTES`` at most."""
    blocks = _blocks(problem.K)
    weights = problem.R * problem.S * (problem.C // problem.groups)
    programs = weights * triton.cdiv(problem.K, blocks["BLOCK_CHANNELS"])
    steps = triton.cdiv(problem.N * problem.P * problem.Q, blocks["BLOCK_PIXELS"])
    bound = DIRECT_SPLIT_BYTES // (4 * problem.K * weights)
    wanted = max(1, min(triton.cdiv(4 * target.units, programs), steps // 16, bound))
    return max(1, triton.cdiv(steps, triton.cdiv(max(steps, 1), wanted)))


def plan_direct_wgrad(
    dy: Tensor, x: Tensor, dw: Tensor, workspace: Tensor | None, problem: ConvProblem, *, split_k: int
) -> list[Launch]:
    """The launches of wgrad: one, or two with a workspace of (split_k, K, R, S, C/groups) float32."""
    blocks = _blocks(problem.K)
    pixels, image = problem.N * problem.P * problem.Q, problem.P * problem.Q
    elements = dw.numel()
    tiles = elements // problem.K * triton.cdiv(problem.K, blocks["BLOCK_CHANNELS"])
    args = {"dy": dy, "x": x, "out": dw if workspace is None else workspace, "pixels": pixels}
    args |= _geometry(problem) | {
        "steps_per_split": triton.cdiv(triton.cdiv(pixels, blocks["BLOCK_PIXELS"]), split_k),
        "step_n": blocks["BLOCK_PIXELS"] // image,
        "step_p": blocks["BLOCK_PIXELS"] % image // problem.Q,
        "step_q": blocks["BLOCK_PIXELS"] % problem.Q,
    }
    launches = [Launch(direct_wgrad_kernel, (tiles * split_k,), args, blocks, {"num_warps": 4})]
    if workspace is not None:
        args = {"workspace": workspace, "dw": dw, "elements": elements, "splits": split_k}
        launches.append(Launch(reduce_kernel, (triton.cdiv(elements, 1024),), args, {"BLOCK": 1024}))
    return launches


def per_filter(tensor: Tensor | None, steps: Plan) -> Tensor | None:
    """alpha or bias as kernels read it: one value after the other, (1,) as it is."""
    return None if tensor is None else steps.do(Tensor.contiguous, tensor)


def ready(epilogue: Epilogue, steps: Plan) -> Epilogue:
    return replace(epilogue, bias=per_filter(epilogue.bias, steps), alpha=per_filter(epilogue.alpha, steps))


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor itself where it is dense in that order, else a copy."""
    return tensor.contiguous(memory_format=torch.channels_last)


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def direct_fprop(
    x: Tensor, w: Tensor, problem: ConvProblem, epilogue: Epilogue = PLAIN, *, steps: Plan | None = None
) -> Tensor:
    """y = activation(conv(x, w) + bias + alpha * x[centre tap]), (N, K, P, Q) channels_last.

    x: (N, C, H, W) and w: (K, C/groups, R, S) of one dtype and any memory format. float32 products are IEEE's whatever
    torch's TF32 switches say.
    """
    steps = steps or Plan()
    x, w = steps.do(channels_last, x), steps.do(channels_last, w)
    y = steps.new(empty(problem.output_shape, x))
    epilogue = ready(epilogue, steps)
    for launch in plan_direct_fprop(x, w, y, problem, epilogue):
        steps.launch(launch)
    return y


def direct_dgrad(
    dy: Tensor, w: Tensor, alpha: Tensor | None, problem: ConvProblem, *, steps: Plan | None = None
) -> Tensor:
    """dx = gradient of ``direct_fprop`` (without an activation) to x, (N, C, H, W) channels_last. dy: (N, K, P, Q)."""
    steps = steps or Plan()
    dy, w, alpha = steps.do(channels_last, dy), steps.do(channels_last, w), per_filter(alpha, steps)
    dx = steps.new(empty(problem.input_shape, dy))
    for launch in plan_direct_dgrad(dy, w, dx, alpha, problem):
        steps.launch(launch)
    return dx


def direct_wgrad(
    dy: Tensor,
    x: Tensor,
    problem: ConvProblem,
    *,
    dtype: torch.dtype,
    split_k: int | None = None,
    steps: Plan | None = None,
) -> Tensor:
    """dw of ``dtype``, (K, C/groups, R, S) channels_last; zeros for an empty batch. dy: (N, K, P, Q)."""
    if split_k is None:
        split_k = direct_split_k(problem, target_of(x.device))
    steps = steps or Plan()
    dy, x = steps.do(channels_last, dy), steps.do(channels_last, x)
    dw = steps.new(empty(problem.weight_shape, x, dtype))
    workspace = None
    if split_k > 1:
        workspace = steps.new(torch.empty((split_k, dw.numel()), dtype=torch.float32, device=x.device))
    for launch in plan_direct_wgrad(dy, x, dw, workspace, problem, split_k=split_k):
        steps.launch(launch)
    return dw
