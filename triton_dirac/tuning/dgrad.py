"""Tiles of dgrad: see ``implicit_gemm``."""

from __future__ import annotations

import torch

from triton_dirac.problem import ConvProblem
from triton_dirac.tuning import implicit_gemm
from triton_dirac.tuning.config import Config
from triton_dirac.tuning.targets import Target


def offered(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> list[Config]:
    """The configs worth measuring for a problem."""
    return implicit_gemm.offered(problem, dtype, target, precision, dgrad=True)


def default(problem: ConvProblem, dtype: torch.dtype, target: Target, precision: str = "ieee") -> Config:
    """The offered config that the tile arithmetic likes best."""
    return implicit_gemm.default(problem, dtype, target, precision, dgrad=True)
