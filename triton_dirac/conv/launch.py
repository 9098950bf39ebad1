"""From a problem and a config to the launches of the implicit GEMM of fprop and dgrad."""

from __future__ import annotations

from functools import partial

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_dirac.conv.config import Config
from triton_dirac.conv.descriptor import tile_gemm
from triton_dirac.conv.gather import gather_gemm, vector_width
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.launch import INTERPRETED, Launch

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
    turned: bool = False,
) -> list[Launch]:
    """Launches that fill ``target`` from ``source``: x to y, or with ``dgrad`` dy to dx.

    ``weight`` is channels-last, (K, C / groups, R, S), or for dgrad's gather loader ``turned``: see
    ``dgrad.turn``.

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
    if C * K * problem.R * problem.S >= INT32:
        raise ValueError(f"a group's weight must have fewer than 2^31 elements: {problem}")
    if max(H * W, P * Q) >= INT32 - config.block_m:
        raise ValueError(f"an image must have fewer than 2^31 pixels: {problem}")
    every_h, every_w = (stride_h, stride_w) if dgrad else (1, 1)
    pixels = -(-P // every_h) * -(-Q // every_w)  # of the largest phase
    if N * pixels >= INT32 - config.block_m:
        halves = (slice(0, N // 2), slice(N // 2, N))
        half_of = partial(plan, dgrad=dgrad, relu=relu, precision=precision, config=config, turned=turned)
        return [
            launch for half in halves for launch in half_of(source[half], weight, target[half], bias, alpha, problem)
        ]
    args = {
        "source": source, "target": target, "bias": bias, "alpha": alpha,
        "N": N, "H": H, "W": W, "P": P, "Q": Q, "pad_h": problem.padding[0], "pad_w": problem.padding[2],
    }  # fmt: skip
    constexprs = {
        "C": C, "K": K, "R": problem.R, "S": problem.S, "GROUPS": groups,
        "DILATION_H": problem.dilation[0], "DILATION_W": problem.dilation[1],
        "DGRAD": dgrad, "BIAS": bias is not None, "IDENTITY": alpha is not None,
        "ALPHA_STRIDE": 0 if alpha is None or alpha.numel() == 1 else 1,
        "RELU": relu, "PRECISION": precision, "WIDEN": INTERPRETED and source.dtype == torch.bfloat16,
        "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": config.group_m,
    }  # fmt: skip
    column_tiles = -(-K // config.block_n)

    aligned = not (source.data_ptr() | weight.data_ptr()) % 16  # as descriptors need it
    if config.loader == "tile" and N and aligned and tile_applies(problem, source.dtype, config, dgrad=dgrad):
        box = box_of(N, P, Q, config.block_m)
        flat = box[1:] == (1, 1) and C % config.block_k == 0 and H * W * C * groups < INT32
        source_view, weight_view = source.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1).flatten(1, 2)
        source_block = [*box, config.block_k]
        weight_block = [config.block_k, 1, config.block_n] if dgrad else [config.block_n, 1, config.block_k]
        if flat:
            source_view, weight_view = source_view.flatten(1), weight_view.flatten(1)
            source_block, weight_block = [source_block[0], source_block[-1]], weight_block[::2]
        args["source_tiles"] = TensorDescriptor.from_tensor(source_view, source_block)
        args["weight_tiles"] = TensorDescriptor.from_tensor(weight_view, weight_block)
        constexprs["FLAT"] = flat
        constexprs |= {"BOX_N": box[0], "BOX_H": box[1], "BOX_W": box[2]}
        grid = (-(-N // box[0]) * -(-P // box[1]) * -(-Q // box[2]) * column_tiles, groups)
        return [Launch(tile_gemm, grid, args, constexprs, config.options)]

    batch_order = config.loader == "batch"
    if batch_order:
        row_tiles, images = pixels * -(-N // config.block_m), config.block_m
    else:
        row_tiles, images = -(-N * pixels // config.block_m), config.block_m // max(pixels, 1) + 2
    # One image more for the padding around the first and the last.
    wide = (images + 1) * max(H * W * C, P * Q * K) * groups >= INT32
    across = dgrad and not turned
    last = K if across else C  # of the weight's dimensions
    args |= {"weight": weight, "weight_vectors": problem.R * problem.S * last // vector_width(last)}
    constexprs |= {
        "STRIDE_H": stride_h, "STRIDE_W": stride_w,
        "ACROSS": across, "BATCH_ORDER": batch_order, "PADDED": _reads_outside(problem, dgrad),
        "OFFSET": tl.int64 if wide else tl.int32,
        "BLOCK_M": config.block_m, "LOOKAHEAD": config.num_stages - 1,
    }  # fmt: skip
    grid = (row_tiles * column_tiles, groups * every_h * every_w)
    return [Launch(gather_gemm, grid, args, constexprs, config.options)]


def tile_applies(problem: ConvProblem, dtype: torch.dtype, config: Config, *, dgrad: bool) -> bool:
    """Whether tensor descriptors can read this problem; where not, the same tile is gathered.

    Stride 1; strides in bytes that are multiples of 16; a block never reaches into the next group's channels.
    """
    C, K = problem.C // problem.groups, problem.K // problem.groups
    source_channels = K if dgrad else C
    aligned = all(size * dtype.itemsize % 16 == 0 for size in (C, source_channels))
    own_channels = problem.groups == 1 or source_channels % config.block_k == 0
    return problem.stride == (1, 1) and aligned and own_channels and config.block_m <= 256


def box_of(images: int, height: int, width: int, rows: int) -> tuple[int, int, int]:
    """(images, height, width) of powers of two with product ``rows`` that cover the target in fewest boxes.

    Of equals the one of most images: a box of one pixel has its border taps left out, and only a box of one
    dimension does Triton hand to the matrix unit without a detour through registers.
    """
    sizes = [2**e for e in range(rows.bit_length())]
    boxes = [(rows // h // w, h, w) for w in sizes for h in sizes if h * w <= rows]
    return min(
        boxes,
        key=lambda box: (-(-images // box[0]) * -(-height // box[1]) * -(-width // box[2]), -box[0], -box[2]),
    )


def _reads_outside(problem: ConvProblem, dgrad: bool) -> bool:
    """Whether a tap may lie outside the source, so that rows need masks."""
    if not dgrad:
        return any(problem.padding)
    return problem.R * problem.S > 1 or any(problem.padding) or problem.stride != (1, 1)
