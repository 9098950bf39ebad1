from __future__ import annotations

import torch

from triton_dirac.problem import ConvProblem
from triton_dirac.tuning.config import Config
from triton_dirac.tuning.targets import Target


def default(problem: ConvProblem, dtype: torch.dtype, target: Target) -> Config:
    return Config(64, 64, 32, 4, 3)
