"""Tiles of dgrad: see ``configs``."""

from __future__ import annotations

import torch

from triton_dirac.conv import configs
from triton_dirac.conv.config import Config
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import Target


def offered(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> list[Config]:
    """The configs that suit a problem."""
    return configs.offered(problem, dtype, target, precision, dgrad=True)


def promising(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> list[Config]:
    """The offered configs worth measuring."""
    return configs.promising(problem, dtype, target, precision, dgrad=True)


def default(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> Config:
    """The offered config that the tile arithmetic likes best."""
    return configs.default(problem, dtype, target, precision, dgrad=True)


def wants_k_contiguous(config: Config, target: Target) -> bool:
    """Whether the filters are laid out as (C, R, S, K / groups) first, at the cost of reading and writing them once.

    AMD's matrix units take operands whose summed index runs fastest. Filters laid out otherwise pass through registers
    value by value: 152,304 executed instructions instead of 102,576 on gfx942, for 160 channels of 16 x 16.
    """
    return target.backend == "hip" and config.loader != "tile"
