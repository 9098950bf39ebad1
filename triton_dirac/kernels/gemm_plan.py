"""From a problem and a config to the launches of the implicit GEMM of fprop and dgrad."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from triton_dirac.kernels.gather_gemm import gather_gemm
from triton_dirac.kernels.launch import Launch
from triton_dirac.problem import ConvProblem
from triton_dirac.tuning.config import Config

INT32 = 2**31
WINDOW = 31  # the largest filter height or width: its taps outside the image are bits of half an int64


def plan(
    source: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    alpha: Tensor | None,
    problem: ConvProblem,
    *,
    dgrad: bool,
    relu: bool,
    precision: str,
    config: Config,
) -> list[Launch]:
    """Launches that fill ``target`` from ``source``: x to y, or with ``dgrad`` dy to dx.

    Rows are numbered in int32: a batch of more than 2^31 pixels is halved, one launch each.
    """
    N, _, H, W = source.shape
    _, _, P, Q = target.shape
    groups, (stride_h, stride_w) = problem.groups, problem.stride
    C, K = problem.C // groups, problem.K // groups
    if dgrad:
        C, K = K, C
    if max(problem.R, problem.S) > WINDOW:
        raise ValueError(f"windows up to {WINDOW}x{WINDOW} are supported, got {problem.R}x{problem.S}")
    if C * K * problem.R * problem.S >= INT32 or max(H * W * C, P * Q * K) * groups >= INT32 * 64:
        raise ValueError(f"a group's weight or an image is too large for int32 indices: {problem}")
    every_h, every_w = (stride_h, stride_w) if dgrad else (1, 1)
    pixels = -(-P // every_h) * -(-Q // every_w)  # of the largest phase
    if N * pixels >= INT32 - config.block_m and N > 1:
        halves = (slice(0, N // 2), slice(N // 2, N))
        options = {"dgrad": dgrad, "relu": relu, "precision": precision, "config": config}
        return [
            launch
            for half in halves
            for launch in plan(source[half], weight, target[half], bias, alpha, problem, **options)
        ]
    batch_order = config.loader == "batch"
    if batch_order:
        row_tiles, images = pixels * -(-N // config.block_m), config.block_m
    else:
        row_tiles, images = -(-N * pixels // config.block_m), config.block_m // max(pixels, 1) + 2
    # One image more for the padding around the first and the last.
    wide = (images + 1) * max(H * W * C, P * Q * K) * groups >= INT32
    args = {
        "source": source, "weight": weight, "target": target, "bias": bias, "alpha": alpha,
        "N": N, "H": H, "W": W, "P": P, "Q": Q, "pad_h": problem.padding[0], "pad_w": problem.padding[2],
    }  # fmt: skip
    constexprs = {
        "C": C, "K": K, "R": problem.R, "S": problem.S, "GROUPS": groups,
        "STRIDE_H": stride_h, "STRIDE_W": stride_w,
        "DILATION_H": problem.dilation[0], "DILATION_W": problem.dilation[1],
        "DGRAD": dgrad, "BIAS": bias is not None, "IDENTITY": alpha is not None,
        "ALPHA_STRIDE": 0 if alpha is None or alpha.numel() == 1 else 1,
        "RELU": relu, "PRECISION": precision,
        "BATCH_ORDER": batch_order, "PADDED": _reads_outside(problem, dgrad),
        "OFFSET": tl.int64 if wide else tl.int32,
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m, "LOOKAHEAD": config.num_stages - 1,
    }  # fmt: skip
    grid = (row_tiles * -(-K // config.block_n), groups * every_h * every_w)
    return [
        Launch(
            gather_gemm,
            grid,
            args,
            constexprs,
            {"num_warps": config.num_warps, "num_stages": config.num_stages},
        )
    ]


def _reads_outside(problem: ConvProblem, dgrad: bool) -> bool:
    """Whether a tap may lie outside the source, so that rows need masks."""
    if not dgrad:
        return any(problem.padding)
    return problem.R * problem.S > 1 or any(problem.padding) or problem.stride != (1, 1)
