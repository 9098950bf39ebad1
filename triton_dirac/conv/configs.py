"""Tiles of fprop and dgrad, which are one implicit GEMM: rows are result pixels, columns result channels.

``configs`` lists at most MOST_CONFIGS per dtype and target, each compiled for it without spills and within its shared
memory (``python -m bench.compile --configs``); ``offered`` are those that suit a problem, ``default`` the one
with the fewest ``estimated_cycles``. ``dgrad`` swaps the roles of the two images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from triton_dirac.conv import cycles
from triton_dirac.conv.config import Config, checked, has_vectors, with_all_registers
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import Target

FULL_ROWS = 0.75  # share of a batch-order tile's rows, one image each, that must exist

# Pointers: what tensor descriptors cannot read, which is strides, small batches and GPUs without them.
_HALF = (
    Config(128, 64, 64, 4, 4, "batch", reason="K = 64 mod 128: no column wasted; two programs a unit"),
    Config(128, 32, 32, 4, 4, "batch", reason="32 columns, or K = 32 mod 64 (160, 80)"),
    Config(64, 64, 64, 4, 4, "batch", reason="batches of 64, and more programs for small layers"),
    Config(32, 64, 64, 4, 4, "batch", reason="batches of 32"),
    Config(128, 128, 64, 8, 3, "gather", reason="small batches, wide layers"),
    Config(128, 64, 64, 4, 4, "gather", reason="small batches, K = 64 mod 128; two programs a unit"),
    Config(128, 64, 32, 4, 4, "gather", reason="C below 64 or a tail"),
    Config(64, 64, 64, 4, 4, "gather", reason="few pixels"),
    Config(64, 32, 64, 4, 4, "gather", reason="fewer still"),
    Config(32, 32, 64, 4, 4, "gather", reason="one image of 7x7, or outputs of one pixel"),
)
_NO_DESCRIPTORS = (
    Config(128, 128, 64, 8, 3, "batch", reason="wide layers: most reuse, two warps a scheduler hide latency"),
    Config(128, 128, 32, 8, 4, "batch", reason="C = 32 mod 64"),
    Config(128, 64, 32, 4, 4, "batch", reason="C = 32 mod 64 and K = 64 mod 128"),
    Config(128, 128, 16, 4, 5, "batch", reason="C = 80: five whole steps a tap"),
    Config(128, 32, 16, 4, 5, "batch", reason="C = 80 to K = 80"),
    Config(128, 128, 32, 8, 4, "gather", reason="small batches, wide layers with C = 32 mod 64 or a tail"),
    Config(128, 32, 32, 4, 4, "gather", reason="32 columns"),
)
# Accumulators of 128x128 leave four warps of cuda:80 no registers for the epilogue: 8 to 40 bytes spill there.
_FOUR_WARPS = (
    Config(128, 128, 64, 4, 3, "batch", reason="wide layers: one warp group, fewest instructions per MMA"),
    Config(128, 128, 32, 4, 4, "batch", reason="the same with C = 32 mod 64"),
)
# Of 45 measured on an H200 for 16 layers these have one within 0.02 % of the best (geometric mean).
_TILE = (
    Config(128, 128, 64, 4, 5, "tile", reason="wide layers: one warp group, fewest instructions per MMA"),
    Config(64, 128, 64, 4, 4, "tile", reason="more programs for small layers"),
    Config(128, 64, 64, 4, 4, "tile", reason="K = 64 mod 128; two programs a unit"),
    Config(64, 64, 64, 4, 4, "tile", reason="batches of 64, and images of few pixels"),
    Config(256, 64, 64, 4, 4, "tile", reason="the same, from C = 128: the weights serve twice the rows"),
    Config(128, 32, 32, 4, 4, "tile", reason="32 columns"),
    Config(64, 256, 64, 4, 4, "tile", extra_n=64, reason="K = 320: one load of the source for all columns"),
    Config(128, 128, 32, 4, 5, "tile", extra_n=32, reason="K = 160: no column wasted; two programs a unit"),
    Config(128, 64, 64, 4, 4, "tile", extra_n=16, reason="K = 80: no column wasted; two programs a unit"),
    Config(128, 256, 64, 8, 3, "persistent", reason="C of 128 and 256: many tiles of few steps, fewest loads"),
    Config(256, 128, 64, 8, 3, "persistent", reason="K = 128: fewest loads"),
    Config(128, 128, 64, 4, 4, "persistent", reason="wide layers: each store overlaps the next tile's loads"),
    Config(128, 64, 64, 4, 4, "persistent", reason="C = K = 64: nine steps a tile"),
)
# tcgen05 keeps accumulators in tensor memory, and the epilogue takes them all to registers at once: eight warps.
_TENSOR_MEMORY = (
    Config(128, 128, 64, 8, 4, "tile", reason="wide layers"),
    Config(128, 64, 64, 4, 4, "tile", reason="K = 64 mod 128; two programs a unit"),
    Config(128, 64, 32, 4, 4, "tile", reason="C = 32 mod 64"),
    Config(128, 128, 64, 8, 3, "batch", reason="strided wide layers"),
    Config(128, 64, 64, 4, 4, "batch", reason="strided, K = 64 mod 128"),
    Config(128, 128, 32, 8, 4, "batch", reason="C = 32 mod 64"),
    Config(128, 64, 32, 4, 4, "batch", reason="C = 32 mod 64 and K = 64 mod 128"),
    Config(128, 128, 16, 8, 5, "batch", reason="C = 80: five whole steps a tap"),
    Config(128, 32, 32, 8, 4, "batch", reason="32 columns, or K = 32 mod 64 (160, 80)"),
    Config(128, 32, 16, 8, 5, "batch", reason="C = 80 to K = 80"),
    Config(64, 64, 64, 8, 4, "batch", reason="batches of 64, and more programs for small layers"),
    Config(32, 64, 64, 4, 4, "batch", reason="batches of 32"),
)
# float32's multiply-add and three-product forms keep operands in registers too: 16 accumulators a thread (32 spill).
_FLOAT = (
    Config(64, 64, 16, 8, 4, "batch", reason="wide layers, and batches of 64"),
    Config(128, 32, 16, 8, 4, "batch", reason="K = 32 mod 64 (160, 80)"),
    Config(64, 64, 16, 8, 4, "gather", reason="small batches"),
    Config(64, 32, 16, 4, 4, "gather", reason="few pixels, 32 columns"),
    Config(32, 32, 16, 4, 4, "gather", reason="one image of 7x7, or outputs of one pixel"),
)
_TF32 = (
    Config(128, 64, 32, 8, 3, "batch", all_registers=True, reason="wide layers: half the barriers"),
    Config(128, 64, 32, 8, 3, "gather", all_registers=True, reason="small batches: half the barriers"),
)
# Channels that do not divide into 16-byte loads cost a register and a predicate an element: small tiles.
_ODD_HALF = (
    Config(128, 64, 32, 8, 3, "gather", reason="stems: the 27 terms of 3 channels and 3x3 fit in 32"),
    Config(64, 64, 32, 4, 3, "gather", reason="odd channels"),
    Config(64, 32, 32, 4, 3, "gather", reason="odd channels, few columns"),
    Config(32, 32, 32, 4, 3, "gather", reason="few pixels"),
)
_ODD_FLOAT = (
    Config(128, 32, 16, 8, 3, "gather", reason="stems with 32 columns"),
    Config(64, 64, 16, 8, 3, "gather", reason="stems and odd channels"),
    Config(64, 32, 16, 4, 4, "gather", reason="odd channels, few columns"),
    Config(32, 32, 16, 4, 3, "gather", reason="few pixels"),
)


@dataclass(frozen=True)
class Gemm:
    """What the tile arithmetic needs of a problem: fprop's view of it, or dgrad's."""

    images: int
    pixels: int  # result pixels of one image, of the largest stride phase
    phases: int
    columns: int  # result channels of a group
    channels: int  # source channels of a group
    taps: float  # on average over phases
    inside: float  # share of (result pixel, tap) pairs that read inside the source
    groups: int
    stride_one: bool
    image_elements: int
    window_fits: bool


@lru_cache(maxsize=4096)
def gemm_of(problem: ConvProblem, dgrad: bool) -> Gemm:
    """The implicit GEMM of fprop or dgrad."""
    sh, sw = problem.stride
    C, K = problem.C // problem.groups, problem.K // problem.groups
    inside = math.prod(problem.inside)
    if dgrad:  # as many pairs reach inside, of H x W result pixels and their phases' taps
        taps = problem.R * problem.S / (sh * sw)
        pairs = inside * problem.P * problem.Q * problem.R * problem.S
        inside = min(1.0, pairs / max(1, problem.H * problem.W * taps))
        pixels, phases, C, K = -(-problem.H // sh) * -(-problem.W // sw), sh * sw, K, C
    else:
        taps, pixels, phases = problem.R * problem.S, problem.P * problem.Q, 1
    return Gemm(
        images=problem.N,
        pixels=pixels,
        phases=phases,
        columns=K,
        channels=C,
        taps=taps,
        inside=inside,
        groups=problem.groups,
        stride_one=problem.stride == (1, 1),
        image_elements=max(problem.H * problem.W * problem.C, problem.P * problem.Q * problem.K),
        window_fits=problem.R * problem.S > 1 or any(problem.padding),
    )


def configs(dtype: torch.dtype, vectors: bool, target: Target, precision: str = "ieee") -> list[Config]:
    """All configs of a dtype on a target; ``vectors``: channels divide into 16-byte loads."""
    chosen: tuple[Config, ...]
    if not vectors:
        chosen = _ODD_FLOAT if dtype.itemsize == 4 else _ODD_HALF
    elif dtype.itemsize == 4:
        chosen = _TF32 + _FLOAT if precision == "tf32" else _FLOAT
    else:
        gather = tuple(config for config in _HALF if config.loader == "gather")
        chosen = {
            "cuda:80": _HALF + _NO_DESCRIPTORS,
            "cuda:90": _TILE + _FOUR_WARPS[:1] + _HALF,
            "cuda:100": _TENSOR_MEMORY + gather,
            "hip": _FOUR_WARPS + _HALF + _NO_DESCRIPTORS,
        }[target.family]
    if target.family == "hip":  # one buffer in the LDS and one in registers: how Triton pipelines for AMD
        chosen = tuple(dict.fromkeys(replace(config, num_stages=2, all_registers=False) for config in chosen))
    elif precision != "tf32":  # whose small tiles' loops the assembler would unroll until 255 do not suffice
        chosen = with_all_registers(chosen)
    fitting = [c for c in chosen if cycles.shared_bytes(c, dtype.itemsize, target) <= target.shared_bytes]
    return checked(fitting, f"fprop's and dgrad's configs of {dtype} {precision} for {target.name}")


def tail_of(channels: int, block_k: int) -> int:
    """Channels of the tile loader's last block: a power of two from 16, or 0 where block_k divides them all."""
    rest = channels % block_k
    return rest and max(16, 1 << (rest - 1).bit_length())


def suits(config: Config, gemm: Gemm) -> bool:
    """Whether a config's tile and order suit: batch order and descriptors need batches that fill them."""
    if config.columns >= max(64, 2 * gemm.columns):  # half the columns and more would be surplus
        return False
    if config.loader == "gather":
        return True
    blocks = -(-gemm.images // config.block_m)
    full = gemm.images >= FULL_ROWS * blocks * config.block_m > 0
    if config.loader == "persistent":
        whole = gemm.channels % config.block_k == 0 and gemm.columns >= config.block_n and gemm.groups == 1
        return full and gemm.stride_one and whole
    if config.loader == "tile":
        whole = not config.extra_n or gemm.columns % config.columns == 0
        return full and gemm.stride_one and whole
    return full and gemm.window_fits and (config.block_m + 1) * gemm.image_elements < 2**31


def offered(
    problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee", *, dgrad: bool
) -> list[Config]:
    """The configs that suit a problem."""
    gemm = gemm_of(problem, dgrad)
    vectors = has_vectors(dtype, gemm.channels, gemm.columns)
    return [c for c in configs(dtype, vectors, target, precision) if suits(c, gemm)]


def default(
    problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee", *, dgrad: bool
) -> Config:
    """The offered config with the fewest estimated cycles; of equals the first."""
    clocks = _estimates(problem, dtype, target, precision, dgrad)
    return min(clocks, key=clocks.__getitem__)


def promising(
    problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee", *, dgrad: bool
) -> list[Config]:
    """The offered configs worth measuring: see ``cycles.promising``."""
    return cycles.promising(_estimates(problem, dtype, target, precision, dgrad), problem, dtype, target)


def _estimates(
    problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str, dgrad: bool
) -> dict[Config, float]:
    gemm = gemm_of(problem, dgrad)
    suited = offered(problem, dtype, target, precision, dgrad=dgrad)
    return {config: estimated_cycles(gemm, dtype, config, target) for config in suited}


def estimated_cycles(gemm: Gemm, dtype: torch.dtype, config: Config, target: Target) -> float:
    """Clocks by tile arithmetic: see ``cycles``."""
    if config.loader == "gather":
        rows = -(-gemm.images * gemm.pixels // config.block_m)
        flat = gemm.phases == 1 and gemm.channels % config.block_k != 0
        steps = gemm.taps * gemm.channels / config.block_k if flat else gemm.taps * -(-gemm.channels // config.block_k)
    else:
        rows = -(-gemm.images // config.block_m) * gemm.pixels
        blocks = float(-(-gemm.channels // config.block_k))
        if config.loader == "tile":  # its last step is as long as the channels that it has
            blocks = gemm.channels // config.block_k + tail_of(gemm.channels, config.block_k) / config.block_k
        steps = gemm.inside * gemm.taps * blocks
    programs = rows * -(-gemm.columns // config.columns) * gemm.groups * gemm.phases
    return cycles.estimated_cycles(config, dtype.itemsize, target, programs=programs, steps=steps)
