"""From a problem and a config to the launches of the implicit GEMM of fprop and dgrad."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_dirac.conv.config import Config
from triton_dirac.conv.configs import tail_of
from triton_dirac.conv.descriptor import tile_gemm
from triton_dirac.conv.epilogue import Epilogue
from triton_dirac.conv.gather import gather_gemm
from triton_dirac.conv.persistent import persistent_gemm
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.taps import vector_width
from triton_dirac.runtime.launch import INTERPRETED, Launch
from triton_dirac.runtime.targets import target_of

INT32 = 2**31
WINDOW = 31  # the largest filter height or width: its taps outside the image are bits of half an int64


def plan(
    source: Tensor,
    weight: Tensor,
    result: Tensor,
    problem: ConvProblem,
    epilogue: Epilogue,
    *,
    dgrad: bool,
    precision: str,
    config: Config,
    k_contiguous: bool = False,
) -> list[Launch]:
    """Launches that fill ``result`` from ``source``: x to y, or with ``dgrad`` dy to dx.

    ``weight`` is channels-last, (K, C / groups, R, S), or with ``k_contiguous``, for dgrad's gather loader,
    what ``dgrad.with_k_contiguous`` makes of it.

    Rows are numbered in int32: a batch of more than 2^31 pixels is halved, one launch each.
    """
    N, _, H, W = source.shape
    _, _, P, Q = result.shape
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
        half_of = partial(plan, dgrad=dgrad, precision=precision, config=config, k_contiguous=k_contiguous)
        return [launch for half in halves for launch in half_of(source[half], weight, result[half], problem, epilogue)]
    args = epilogue.args | {
        "source": source, "result": result,
        "N": N, "H": H, "W": W, "P": P, "Q": Q, "pad_h": problem.padding[0], "pad_w": problem.padding[2],
    }  # fmt: skip
    constexprs = epilogue.constexprs | {
        "C": C, "K": K, "R": problem.R, "S": problem.S, "GROUPS": groups,
        "DILATION_H": problem.dilation[0], "DILATION_W": problem.dilation[1],
        "DGRAD": dgrad, "PRECISION": precision, "WIDEN": INTERPRETED and source.dtype == torch.bfloat16,
        "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": config.group_m,
    }  # fmt: skip

    aligned = not (source.data_ptr() | weight.data_ptr()) % 16  # as descriptors need it
    aligned &= config.loader in ("tile", "persistent")
    if aligned and N and tile_applies(problem, source.dtype, config, dgrad=dgrad):
        tail = tail_of(C, config.block_k)
        if config.loader == "persistent" and persistent_applies(K, groups, result, tail, config):
            return [_persistent(source, weight, result, args, constexprs, problem, config, dgrad=dgrad)]
        args |= _descriptors(source, weight, problem, config, tail, dgrad=dgrad)
        constexprs |= {"BLOCK_M": config.block_m, "EXTRA_N": config.extra_n, "TAIL_K": tail}
        grid = (-(-N // config.block_m) * pixels * -(-K // config.columns), groups)
        return [Launch(tile_gemm, grid, args, constexprs, config.options)]

    batch_order = config.loader == "batch"
    if batch_order:
        row_tiles, images = pixels * -(-N // config.block_m), config.block_m
    else:
        row_tiles, images = -(-N * pixels // config.block_m), config.block_m // max(pixels, 1) + 2
    # One image more for the padding around the first and the last.
    wide = (images + 1) * max(H * W * C, P * Q * K) * groups >= INT32
    n_contiguous = dgrad and not k_contiguous
    last = K if n_contiguous else C  # of the weight's dimensions
    args |= {"weight": weight, "weight_vectors": problem.R * problem.S * last // vector_width(last)}
    constexprs |= {
        "STRIDE_H": stride_h, "STRIDE_W": stride_w,
        "N_CONTIGUOUS": n_contiguous, "BATCH_ORDER": batch_order, "PADDED": _reads_outside(problem, dgrad),
        "OFFSET": tl.int64 if wide else tl.int32,
        "BLOCK_M": config.block_m, "LOOKAHEAD": config.num_stages - 1,
    }  # fmt: skip
    grid = (row_tiles * -(-K // config.block_n), groups * every_h * every_w)
    return [Launch(gather_gemm, grid, args, constexprs, config.options)]


def tile_applies(problem: ConvProblem, dtype: torch.dtype, config: Config, *, dgrad: bool) -> bool:
    """Whether tensor descriptors can read this problem; where not, the same tile is gathered.

    Stride 1; strides in bytes that are multiples of 16; a block never reaches into the next group's channels.
    """
    C, K = problem.C // problem.groups, problem.K // problem.groups
    source_channels = K if dgrad else C
    aligned = all(size * dtype.itemsize % 16 == 0 for size in (C, source_channels))
    own_channels = problem.groups == 1 or source_channels % config.block_k in (
        0,
        tail_of(source_channels, config.block_k),
    )
    return problem.stride == (1, 1) and aligned and own_channels and config.block_m <= 256


def persistent_applies(columns: int, groups: int, result: Tensor, tail: int, config: Config) -> bool:
    """Whether tiles can be stored through a descriptor; where not, each is a program's.

    A store through a descriptor has no mask: ``columns`` fill a tile, rows beyond the batch it leaves out.
    """
    aligned = not result.data_ptr() % 16 and columns * result.element_size() % 16 == 0
    return groups == 1 and not tail and not config.extra_n and columns >= config.block_n and aligned


def _persistent(
    source: Tensor,
    weight: Tensor,
    result: Tensor,
    args: dict[str, Any],
    constexprs: dict[str, Any],
    problem: ConvProblem,
    config: Config,
    *,
    dgrad: bool,
) -> Launch:
    """The persistent kernel's launch, one program for each tile that the GPU holds at once."""
    N, K, P, Q = result.shape
    _, C, H, W = source.shape
    half = [1, config.block_m, config.block_n // 2]
    tiles = _descriptors(source, weight, problem, config, 0, dgrad=dgrad)
    args = args | {
        "source_tiles": tiles["source_tiles"], "weight_tiles": tiles["weight_tiles"],
        "centre_tiles": TensorDescriptor(source, [H * W, N, C], [C, H * W * C, 1], half)
        if constexprs["IDENTITY"] else None,
        "result_tiles": TensorDescriptor(result, [P * Q, N, K], [K, P * Q * K, 1], half),
    }  # fmt: skip
    gpu = target_of(result.device)
    stages = (config.block_m + config.block_n) * config.block_k * source.element_size() * config.num_stages
    halves = 2 * math.prod(half) * result.element_size()
    residents = max(1, min(2, gpu.shared_bytes // (stages + halves)))
    programs = min(-(-N // config.block_m) * P * Q * -(-K // config.block_n), residents * gpu.units)
    return Launch(persistent_gemm, (programs,), args, constexprs | {"BLOCK_M": config.block_m}, config.options)


def _descriptors(
    source: Tensor, weight: Tensor, problem: ConvProblem, config: Config, tail: int, *, dgrad: bool
) -> dict[str, TensorDescriptor | None]:
    """The tile loader's views of both operands, pixels and taps first, in blocks of each size that it takes."""
    N, channels, H, W = source.shape
    filters, per_filter, taps = problem.K, problem.C // problem.groups, problem.R * problem.S

    def source_tiles(block_k: int) -> TensorDescriptor:
        strides = [channels, H * W * channels, 1]
        return TensorDescriptor(source, [H * W, N, channels], strides, [1, config.block_m, block_k])

    def weight_tiles(block_n: int, block_k: int) -> TensorDescriptor:
        block = [1, block_k, block_n] if dgrad else [1, block_n, block_k]
        return TensorDescriptor(weight, [taps, filters, per_filter], [per_filter, taps * per_filter, 1], block)

    args: dict[str, TensorDescriptor | None] = {}
    for name, block_k in (("tiles", config.block_k), ("tail", tail)):
        args |= {
            f"source_{name}": source_tiles(block_k) if block_k else None,
            f"weight_{name}": weight_tiles(config.block_n, block_k) if block_k else None,
            f"extra_{name}": weight_tiles(config.extra_n, block_k) if block_k and config.extra_n else None,
        }
    return args


def _reads_outside(problem: ConvProblem, dgrad: bool) -> bool:
    """Whether a tap may lie outside the source, so that rows need masks."""
    if not dgrad:
        return any(problem.padding)
    return problem.R * problem.S > 1 or any(problem.padding) or problem.stride != (1, 1)
