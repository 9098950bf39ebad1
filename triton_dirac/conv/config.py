"""One way to tile an implicit GEMM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Tile of an implicit GEMM: block_m x block_n of the output per program, block_k of the sum per step.

    ``loader`` is how the image operand is read: "gather" (pointers, any problem), "tile" (tensor descriptor,
    stride 1; TMA on sm_90 and newer) or "batch" (pointers; one pixel of many images a tile, so that padding is
    the same for all its rows). ``all_registers``, for NVIDIA, lets a thread take all 255: by itself the assembler
    stops at a number that lets one more block run (80, 96, 107, 128 or 168), and spills the last 8 to 24 bytes for
    it. ``reason`` says what the config is for.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    loader: str = "gather"
    group_m: int = 8
    all_registers: bool = False
    reason: str = ""

    @property
    def options(self) -> dict[str, int]:
        """What Triton is told beside the kernel's arguments."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options | {"maxnreg": 255} if self.all_registers else options

    @property
    def name(self) -> str:
        """e.g. ``128x64x32 w4 s3 gather``"""
        tile = f"{self.block_m}x{self.block_n}x{self.block_k}"
        return f"{tile} w{self.num_warps} s{self.num_stages} {self.loader}"

    @property
    def label(self) -> str:
        """What it is called in the file of timings: all that changes its code, not its reason."""
        return f"{self.name} g{self.group_m}" + (" all registers" if self.all_registers else "")
