"""Clocks of a launch by tile arithmetic, as both tile tables estimate them. An ordering of configs, not a prediction.

A unit (streaming multiprocessor or compute unit) runs its programs in waves of as many as shared memory and registers
hold. A step of a wave takes as long as its matrix multiply-adds, its traffic with shared memory or with L2, and what
does not overlap with them; but no less than a load's latency spread over the stages in flight. A wave also fills its
pipeline and stores its tiles.

The constants are fitted to 866 times of 16 layers on an H200 (Triton 3.6, bfloat16). Over the configs measured there
the default takes 1.09 (fprop), 1.04 (dgrad) and 1.12 (wgrad) times the best one's time, in the geometric mean.
"""

from __future__ import annotations

from triton_dirac.conv.config import Config
from triton_dirac.runtime.targets import Target

# Per unit and clock: dense 16-bit multiply-adds (datasheets of A100, H100, B200, MI300X), bytes from L2 (fitted for the
# H200, the others in the proportion of their bandwidths).
_RATES = {"cuda:80": (1024, 60), "cuda:90": (2048, 73), "cuda:100": (4096, 73), "hip": (1024, 50)}
_SHARED_BYTES = 180  # per clock, read and written: 128 each way, which overlap in part
_LATENCY = 1065
_FILL, _STORE = 3200, 0.1  # clocks of a wave, and of each element of its tiles
_REGISTERS = 65536  # of a unit; a thread holds its accumulators and about 90 more
STEP = {"tile": 80, "persistent": 80, "batch": 170, "gather": 190}  # a barrier, and address and mask arithmetic


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
    registers = min(255, config.block_m * config.columns // threads + 90)
    by_shared = target.shared_bytes // max(1, shared_bytes(config, itemsize, target))
    return max(1, min(by_shared, _REGISTERS // (registers * threads)))


def estimated_cycles(
    config: Config, itemsize: int, target: Target, *, programs: int, steps: float, step: float | None = None
) -> float:
    """Clocks of ``programs`` tiles of ``steps`` steps each; ``step``: what one costs beside its work, by loader."""
    multiply_adds, l2_bytes = _RATES[target.family]
    m, n, k = config.block_m, config.columns, config.block_k
    matrix = m * n * k / (multiply_adds * 2 / itemsize)
    loaded = (m + n) * k * itemsize
    read = (m / 64 * n + m) * k * itemsize  # the columns once for each 64 rows, which a matrix instruction has
    work = max(matrix, (loaded + read) / _SHARED_BYTES, loaded / l2_bytes)
    most = -(-programs // target.units)  # programs of the unit that has most
    together = max(1, min(residents(config, itemsize, target), most))
    one = together * work + (STEP[config.loader] if step is None else step)
    wave = steps * max(one, _LATENCY / max(1, config.num_stages - 1)) + _FILL + together * _STORE * m * n
    return -(-most // together) * wave
