"""Tiles of fprop: see ``configs``."""

from __future__ import annotations

import torch

from triton_dirac.conv import configs
from triton_dirac.conv.config import Config
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import Target


def offered(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> list[Config]:
    """The configs that suit a problem."""
    return configs.offered(problem, dtype, target, precision, dgrad=False)


def promising(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> list[Config]:
    """The offered configs worth measuring."""
    return configs.promising(problem, dtype, target, precision, dgrad=False)


def default(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> Config:
    """The offered config that the tile arithmetic likes best."""
    return configs.default(problem, dtype, target, precision, dgrad=False)
