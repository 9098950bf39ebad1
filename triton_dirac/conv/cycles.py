"""Clocks of a launch by tile arithmetic, as both tile tables estimate them. An ordering of configs, not a prediction.

A unit (streaming multiprocessor or compute unit) holds as many programs at once as its shared memory and registers
allow: a wave. A step of a wave takes as long as its matrix multiply-adds, its traffic with shared memory or with L2,
and what does not overlap with them; but no less than a load's latency spread over the stages in flight. Each wave
fills its pipeline, the persistent kernel once, and stores its tiles.

The constants are fitted to 1,780 times of 16 layers on an H200 (Triton 3.6, bfloat16). Of about 30 configs measured a
layer the default took 1.02 (fprop), 1.03 (dgrad) and 1.06 (wgrad) times as long as the best, in the geometric mean.
Rates are the target's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from triton_dirac.conv.config import Config
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import Target

PROMISING, FEWEST = 1.6, 6  # times the least clocks; configs that are measured whatever the model says

_SHARED_BYTES = 160  # per clock, read and written: 128 each way, which overlap in part
_LATENCY = 1300
_FILL, _STORE = 3200, 0.1  # clocks of a wave, and of each element of its tiles
_BESIDE_ACCUMULATORS = 90  # registers of a thread
STEP = {"tile": 40, "persistent": 40, "batch": 140, "gather": 160}  # a barrier, and address and mask arithmetic


def shared_bytes(config: Config, itemsize: int, target: Target) -> int:
    """Shared memory of the pipeline's buffers: one a stage for wgmma and tcgen05, else one fewer."""
    buffers = config.num_stages - (target.family not in ("cuda:90", "cuda:100"))
    pipeline = (config.block_m + config.columns) * config.block_k * itemsize * buffers
    if config.loader == "persistent":  # half a tile to store, and half a tile of the identity's pixels
        pipeline += config.block_m * config.block_n * itemsize
    return pipeline


def residents(config: Config, itemsize: int, target: Target) -> int:
    """Programs that a unit runs at once."""
    threads = config.num_warps * target.warp_size
    registers = min(255, config.block_m * config.columns // threads + _BESIDE_ACCUMULATORS)
    by_shared = target.shared_bytes // max(1, shared_bytes(config, itemsize, target))
    return max(1, min(by_shared, target.registers // (registers * threads)))


def estimated_cycles(
    config: Config, itemsize: int, target: Target, *, programs: int, steps: float, step: float | None = None
) -> float:
    """Clocks of ``programs`` tiles of ``steps`` steps each; ``step``: what one costs beside its work, by loader."""
    m, n, k = config.block_m, config.columns, config.block_k
    matrix = m * n * k / (target.multiply_adds * 2 / itemsize)
    loaded = (m + n) * k * itemsize
    read = m / 64 * n + m * (2 if config.extra_n else 1)  # of a row of the sum, by each instruction of 64 rows
    work = max(matrix, (loaded + read * k * itemsize) / _SHARED_BYTES, loaded / target.l2_bytes)
    beside = STEP[config.loader] if step is None else step
    fill, once = (0, _FILL) if config.loader == "persistent" else (_FILL, 0)

    def wave(together: int) -> float:
        """Clocks of a unit's wave of so many programs."""
        one_step = max(together * work + beside, _LATENCY / max(1, config.num_stages - 1))
        return steps * one_step + fill + together * _STORE * m * n

    together = max(1, min(residents(config, itemsize, target), -(-programs // target.units)))
    waves, rest = divmod(programs, together * target.units)
    return waves * wave(together) + (wave(-(-rest // target.units)) if rest else 0) + once


def promising(clocks: Mapping[Config, float], problem: ConvProblem, dtype: torch.dtype, target: Target) -> list[Config]:
    """The configs worth measuring, of all that suit and their estimates: where these were held against times, those of
    at most PROMISING times the least clocks, and the FEWEST next to it; elsewhere all.

    They were for 51 problems on an H200 (tests/conv/test_measured.py): the best config is among these for each, at 1.52
    times the least at most, and two of five are left out.
    """
    plain = problem.stride == problem.dilation == (1, 1) and problem.groups == 1
    if not (target.name == "cuda:90" and dtype.itemsize == 2 and plain):
        return list(clocks)
    ordered = sorted(clocks.values())
    most = max(PROMISING * ordered[0], ordered[:FEWEST][-1])
    return [config for config, estimate in clocks.items() if estimate <= most]
