"""One way to tile an implicit GEMM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

# Of a dtype on a target. Until a layer has been tuned its first call compiles each for three passes: 72 kernels, which
# 16 cores do in 4 s.
MOST_CONFIGS = 24


@dataclass(frozen=True)
class Config:
    """Tile of an implicit GEMM: block_m x block_n of the output per program, block_k of the sum per step.

    ``loader`` is how the image operand is read: "gather" (pointers, any problem), "batch" (pointers; one pixel of many
    images a tile, so that padding is the same for all its rows), "tile" (the same through tensor descriptors, TMA on
    sm_90 and newer; stride 1, for wgrad any) or "persistent" (the same, each program taking tile after tile).
    ``extra_n``: so many columns more, in a second accumulator (tile loader: 160 = 128 + 32). ``all_registers``, for
    NVIDIA, lets a thread take all 255: by itself the assembler stops at a number that lets one more block run (80, 96,
    107, 128 or 168), and spills the last 8 to 24 bytes for it; None leaves it to the table. ``reason`` says what the
    config is for.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    loader: str = "gather"
    group_m: int = 8
    all_registers: bool | None = None
    extra_n: int = 0
    reason: str = ""

    @property
    def options(self) -> dict[str, int]:
        """What Triton is told beside the kernel's arguments."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options | {"maxnreg": 255} if self.all_registers else options

    @property
    def columns(self) -> int:
        """Columns of a tile."""
        return self.block_n + self.extra_n

    @property
    def name(self) -> str:
        """e.g. ``128x64x32 w4 s3 gather``, ``128x128+32x64 w4 s3 tile``"""
        columns = f"{self.block_n}+{self.extra_n}" if self.extra_n else f"{self.block_n}"
        tile = f"{self.block_m}x{columns}x{self.block_k}"
        return f"{tile} w{self.num_warps} s{self.num_stages} {self.loader}"

    @property
    def label(self) -> str:
        """What it is called in the file of timings: all that changes its code, not its reason."""
        return f"{self.name} g{self.group_m}" + (" all registers" if self.all_registers else "")


def has_vectors(dtype: torch.dtype, *channels: int) -> bool:
    """Whether numbers of channels divide into 16-byte loads; a group's do in the whole image, too."""
    return all(size * dtype.itemsize % 16 == 0 for size in channels)


def with_all_registers(table: Iterable[Config]) -> tuple[Config, ...]:
    """The rows of a table whose threads take all registers, those aside that say otherwise."""
    return tuple(replace(row, all_registers=True) if row.all_registers is None else row for row in table)


def checked(table: Sequence[Config], what: str) -> list[Config]:
    """``table``, if it is a table of configs that may be picked from.

    Raises:
        ValueError: it has more than MOST_CONFIGS rows, two of one label, or one without a reason.
    """
    labels = [config.label for config in table]
    if len(table) > MOST_CONFIGS:
        raise ValueError(
            f"{what}: {len(table)} rows, at most {MOST_CONFIGS}, since a layer's first call compiles all of them; take "
            f"out one that measures no better than its neighbours, or raise MOST_CONFIGS. They are: {'; '.join(labels)}"
        )
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(f"{what}: two rows are {' and two are '.join(sorted(twice))}; take out one of them")
    for config in table:
        if not config.reason:
            raise ValueError(f"{what}: {config.name} has no reason; say in `reason` which problems it is for")
    return list(table)
