"""Tiles and split factors of the weight gradient: M = K / groups, N = R*S*C / groups, reduction over N*P*Q.

``configs`` lists at most MOST_CONFIGS per dtype and target, each compiled for it without spills and within its shared
memory (``python -m bench.compile --configs``). ``offered`` are those that suit a problem, ``default`` the one
that the tile arithmetic of ``estimated_cycles`` likes best, ``split_k`` the number of parts of its reduction.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from triton_dirac.conv import cycles
from triton_dirac.conv.config import Config, checked, has_vectors, with_all_registers
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import Target

SPLIT_K_BYTES = 64 * 2**20  # float32 planes of a split reduction, at most
STEPS_PER_SPLIT = 8  # fewer would not fill the pipeline before the tile is stored
FULL_STEPS = 0.9  # share of a batch-order step's images that must exist

_FOUR_WARPS = Config(128, 128, 64, 4, 3, "batch", reason="wide layers: 64x64 a warp, fewest instructions per MMA")
_HALF = (
    _FOUR_WARPS,
    Config(128, 64, 64, 4, 4, "batch", reason="C divides by 64, not 128: no mask; two programs a unit"),
    Config(64, 128, 64, 4, 4, "batch", reason="64 filters, or K = 64 mod 128"),
    Config(64, 32, 64, 4, 4, "batch", reason="32 channels, or C = 32 mod 64: no mask"),
    Config(128, 128, 32, 4, 4, "batch", reason="batches of 32, and half the shared memory"),
    Config(64, 64, 32, 4, 4, "batch", reason="batches of 32 on small layers"),
    Config(128, 64, 64, 4, 4, "gather", reason="wide layers of a small batch"),
    Config(64, 64, 64, 4, 4, "gather", reason="narrow layers of a small batch"),
    Config(64, 64, 32, 4, 4, "gather", reason="few pixels"),
    Config(64, 32, 64, 8, 4, "gather", reason="few columns: 1x1 windows, stems with 4 or 8 channels"),
)
# What wgmma never wants (H200): there more warps share the same operands, and loads are far away.
_NO_WGMMA = (
    Config(128, 128, 64, 8, 3, "batch", reason="wide layers: most reuse, two warps a scheduler hide latency"),
    Config(64, 64, 64, 4, 2, "batch", reason="small layers; a third stage spills on sm_80 (Triton 3.9)"),
)
_WGMMA = (
    Config(128, 256, 64, 8, 3, "batch", reason="a quarter less traffic than 128x128; 256x128 spills"),
    Config(64, 64, 64, 4, 4, "batch", reason="small layers, deeper pipeline"),
)
# Of 31 measured on an H200 for 16 layers, these and the pointers' have one within 0.3 % of the best (geometric mean).
_TILE = (
    Config(128, 128, 64, 4, 5, "tile", reason="wide layers"),
    Config(128, 128, 64, 4, 4, "tile", reason="wide layers, less to fill where a split has few steps"),
    Config(128, 128, 64, 4, 3, "tile", reason="wide layers of many tiles: two programs a unit"),
    Config(128, 256, 64, 8, 4, "tile", reason="160 channels (2 tiles of a filter row's 480), 512"),
    Config(64, 256, 64, 4, 4, "tile", reason="K = 64 mod 128 (320): no row wasted"),
    Config(64, 128, 64, 4, 4, "tile", extra_n=64, reason="64 channels: a filter row's 192 columns share each dy"),
    Config(64, 64, 128, 4, 3, "tile", reason="64 channels, small layers: half the steps"),
    Config(64, 128, 128, 4, 3, "tile", reason="128 channels, small layers: half the steps"),
    Config(64, 64, 64, 4, 4, "tile", extra_n=32, reason="32 channels: a filter row's 96 columns share each dy"),
)
_FLOAT = (
    Config(128, 128, 32, 8, 3, "batch", reason="wide layers"),
    Config(128, 64, 32, 4, 4, "batch", reason="C divides by 64, not 128: no mask; two programs a unit"),
    Config(64, 64, 32, 4, 3, "batch", reason="small layers"),
    Config(128, 64, 16, 8, 4, "gather", reason="wide layers of a small batch"),
    Config(64, 64, 16, 4, 4, "gather", reason="narrow layers of a small batch"),
)
# Channels that do not divide into 16-byte loads cost a register and a predicate an element: small tiles.
_ODD = (
    Config(64, 32, 64, 4, 3, "gather", reason="stems: the 27 columns of 3 channels and 3x3 fit in 32"),
    Config(64, 32, 32, 4, 3, "gather", reason="odd channels, fewer registers"),
    Config(32, 32, 32, 4, 3, "gather", reason="up to 32 filters, few pixels"),
)


def configs(dtype: torch.dtype, vectors: bool, target: Target, precision: str = "ieee") -> list[Config]:
    """All configs of a dtype on a target; ``vectors``: channels divide into 16-byte loads.

    "tf32x3" keeps each operand in two parts: only the smaller tiles have the registers for it.
    """
    chosen: tuple[Config, ...]
    if not vectors:
        most = 64 * 64 if dtype.itemsize == 2 else 32 * 32
        chosen = tuple(config for config in _ODD if config.block_m * config.block_k <= most)
    elif precision == "tf32x3":
        chosen = tuple(config for config in _FLOAT if config.block_m <= 64)
    elif dtype.itemsize == 4:
        chosen = _FLOAT
    else:
        chosen = {"cuda:90": _TILE + _HALF + _WGMMA, "cuda:100": _NO_WGMMA + _HALF + _WGMMA}.get(
            target.family, _NO_WGMMA + _HALF
        )
        chosen = tuple(config for config in chosen if not _spills(config, target))
    if target.family == "hip":  # one buffer in the LDS and one in registers: how Triton pipelines for AMD
        chosen = tuple(dict.fromkeys(replace(config, num_stages=2, all_registers=False) for config in chosen))
    else:  # shared memory bounds the blocks before registers do
        chosen = with_all_registers(chosen)
    fitting = [c for c in chosen if cycles.shared_bytes(c, dtype.itemsize, target) <= target.shared_bytes]
    return checked(fitting, f"wgrad's configs of {dtype} {precision} for {target.name}")


def _spills(config: Config, target: Target) -> bool:
    """128 accumulators a thread: one such tile spills 40 bytes on cuda:89, each of them 88 to 104 in some problem on
    cuda:100, none on cuda:80, cuda:90 and cuda:120 (Triton 3.6 and 3.7.1)."""
    if target.name == "cuda:100":
        return config.block_m * config.block_n >= 128 * 32 * config.num_warps
    return target.name == "cuda:89" and config is _FOUR_WARPS


def fills_batch(problem: ConvProblem, block_k: int) -> bool:
    """Whether the batch nearly fills tiles of block_k images."""
    return problem.N >= FULL_STEPS * -(-problem.N // block_k) * block_k > 0


def fits_batch(problem: ConvProblem, block_k: int) -> bool:
    """Whether the batch nearly fills tiles of block_k images, and int32 offsets span them."""
    image = max(problem.H * problem.W * problem.C, problem.P * problem.Q * problem.K)
    return fills_batch(problem, block_k) and (block_k + 1) * image < 2**31


def tile_applies(problem: ConvProblem, dtype: torch.dtype) -> bool:
    """Whether the tile loader can read a problem: 16-bit types, channels in 16-byte loads, taps that are neighbours."""
    channels_divide = all(channels % 8 == 0 for channels in (problem.C, problem.K))
    return dtype.itemsize == 2 and channels_divide and problem.groups == 1 and problem.dilation[1] == 1


def offered(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> list[Config]:
    """The configs that suit: batch order where the batch fills its tiles, else pixel order."""
    suited = configs(dtype, has_vectors(dtype, problem.C // problem.groups), target, precision)
    batch = [c for c in suited if c.loader == "batch" and fits_batch(problem, c.block_k)]
    if tile_applies(problem, dtype):
        batch += [c for c in suited if c.loader == "tile" and fills_batch(problem, c.block_k)]
    return batch or [c for c in suited if c.loader == "gather"]


def default(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> Config:
    """The offered config with the fewest estimated cycles."""
    clocks = _estimates(problem, dtype, target, precision)
    return min(clocks, key=clocks.__getitem__)


def promising(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> list[Config]:
    """The offered configs worth measuring: see ``cycles.promising``."""
    return cycles.promising(_estimates(problem, dtype, target, precision), problem, dtype, target)


def _estimates(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str) -> dict[Config, float]:
    return {
        config: estimated_cycles(problem, dtype, config, split_k(problem, config, target), target)
        for config in offered(problem, dtype, target, precision)
    }


def split_k(problem: ConvProblem, config: Config, target: Target) -> int:
    """The number of parts with the fewest estimated cycles, of those that fill the units 1, 2, ... 8 times.

    The workspace stays within SPLIT_K_BYTES and a part has STEPS_PER_SPLIT steps at least, so problems with
    many tiles or few pixels are not split.
    """
    columns = problem.R * problem.S * (problem.C // problem.groups)
    bound = min(_steps(problem, config) // STEPS_PER_SPLIT, SPLIT_K_BYTES // (4 * problem.K * columns))
    candidates = {max(1, min(waves * target.units // _tiles(problem, config), bound)) for waves in range(1, 9)}
    # A float16 estimate: the order of splits does not depend on the dtype.
    return min(
        sorted(candidates | {1}),
        key=lambda splits: estimated_cycles(problem, torch.float16, config, splits, target),
    )


def _tiles(problem: ConvProblem, config: Config) -> int:
    columns = problem.R * problem.S * (problem.C // problem.groups)
    tiles_n = (
        problem.R * -(-columns // problem.R // config.columns)
        if config.loader == "tile"
        else -(-columns // config.columns)
    )
    return -(-problem.K // problem.groups // config.block_m) * tiles_n * problem.groups


def _steps(problem: ConvProblem, config: Config) -> int:
    """Steps of the whole reduction, tile rows of images or pixels that do not exist included."""
    if config.loader != "gather":
        return -(-problem.N // config.block_k) * problem.P * problem.Q
    return -(-problem.N * problem.P * problem.Q // config.block_k)


_CACHED = 2.25  # workspace bytes for each that memory alone could move: a part stays in L2
_REDUCE_CYCLES = 12000  # of the second kernel, beside its traffic: it starts when the first has ended
_SEVERAL_TAPS = 270  # of a step of 64 whose columns cross taps in batch order: a mask for each element's tap
_ONE_TAP = 8


def estimated_cycles(problem: ConvProblem, dtype: torch.dtype, config: Config, splits: int, target: Target) -> float:
    """Clocks of both kernels by tile arithmetic: see ``cycles``."""
    Cg = problem.C // problem.groups
    one_tap = Cg % config.columns == 0
    steps: float = -(-_steps(problem, config) // splits)
    if config.loader == "tile" or (config.loader == "batch" and one_tap):
        height, width = problem.inside
        steps *= height * width if one_tap else height
    batch = _ONE_TAP if one_tap else _SEVERAL_TAPS * config.block_k / 64
    step = batch if config.loader == "batch" else None
    workspace = 4 * problem.K * problem.R * problem.S * Cg * splits
    moved = 2 * workspace / (_CACHED * target.memory_bytes * target.units)
    second = 0 if splits == 1 else _REDUCE_CYCLES + moved
    programs = _tiles(problem, config) * splits
    main = cycles.estimated_cycles(config, dtype.itemsize, target, programs=programs, steps=steps, step=step)
    return main + second
