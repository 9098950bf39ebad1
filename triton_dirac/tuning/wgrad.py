"""Tiles and split factors of the weight gradient: M = K, N = R*S*C, reduction over N*P*Q."""

from __future__ import annotations

import torch

from triton_dirac.problem import ConvProblem
from triton_dirac.tuning.config import Config
from triton_dirac.tuning.targets import Target

WORKSPACE_BYTES = 64 * 2**20


def default(problem: ConvProblem, dtype: torch.dtype, target: Target) -> Config:
    return Config(64, 64, 32, 4, 3)


def split_k(problem: ConvProblem, config: Config, target: Target) -> int:
    columns = problem.R * problem.S * (problem.C // problem.groups)
    tiles = -(-problem.K // problem.groups // config.block_m) * -(-columns // config.block_n) * problem.groups
    steps = max(1, -(-problem.N * problem.P * problem.Q // config.block_k))
    bound = max(1, WORKSPACE_BYTES // (4 * problem.K * columns))
    return max(1, min(2 * target.units // tiles, steps // 4, bound))
