"""What there is to compile and to measure for a model: known from its shapes, before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from triton_dirac.conv import dgrad_configs, direct, fprop_configs, wgrad_configs
from triton_dirac.conv.config import Config
from triton_dirac.conv.dgrad import prepare_dgrad
from triton_dirac.conv.epilogue import Epilogue
from triton_dirac.conv.fprop import prepare_fprop
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.wgrad import prepare_wgrad
from triton_dirac.models import conv_problems
from triton_dirac.runtime.compile_ahead import Planner
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.targets import Target

PASSES = ("fprop", "dgrad", "wgrad")
# "float32" is multiplied as IEEE has it, "tf32" are the same tensors.
STORAGE = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "tf32": torch.float32,
}
TABLES: dict[str, ModuleType] = {"fprop": fprop_configs, "dgrad": dgrad_configs, "wgrad": wgrad_configs}


@dataclass(frozen=True)
class Work:
    """One pass of one convolution; ``identity``: with the split form's term in its epilogue."""

    direction: str
    problem: ConvProblem
    dtype: str
    identity: bool

    @property
    def storage(self) -> torch.dtype:
        return STORAGE[self.dtype]

    @property
    def label(self) -> str:
        term = "+alpha" if self.identity else ""
        return f"conv_{self.direction}{term} {self.problem.label} {self.dtype}"

    def precision(self, target: Target) -> str:
        return target.precision("tf32") if self.dtype == "tf32" else "ieee"

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x, w, dy and alpha of normal numbers; on "meta" of none."""
        p = self.problem

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, dtype=self.storage, device=device).to(memory_format=torch.channels_last)

        alpha = torch.ones(p.K, device=device) if self.identity else None
        return normal(p.input_shape), normal(p.weight_shape), normal(p.output_shape), alpha


def works_of(
    model: nn.Module,
    image_size: int,
    batch: int,
    dtypes: Sequence[str] = ("bfloat16",),
    forms: Sequence[str] = ("split",),
    passes: Sequence[str] = PASSES,
) -> list[Work]:
    """Each distinct pass of the model's convolutions, in the order in which they run.

    The split form is the Dirac convolutions', with the identity term. The materialised form is a plain convolution,
    and what every ``nn.Conv2d`` of the model would be through ``triton_dirac.conv2d``. Images of three channels have
    no gradient.
    """
    works: dict[Work, None] = {}
    for _, kind, problem in conv_problems(model, image_size, batch):
        for dtype in dtypes:
            for form in forms:
                identity = form == "split"
                if identity and kind != "dirac":
                    continue
                for direction in passes:
                    if direction in PASSES and not (direction == "dgrad" and problem.C == 3):
                        works[Work(direction, problem, dtype, identity and direction != "wgrad")] = None
    return list(works)


def planners_of(work: Work, target: Target) -> dict[str, Planner]:
    """By config that the work may be run with on ``target``: what makes its launches, on meta tensors."""
    problem, precision = work.problem, work.precision(target)
    x, w, dy, alpha = work.tensors(torch.device("meta"))
    if direct.prefers_direct(problem):
        return {"direct": partial(_direct, work, x, w, dy, alpha, target)}
    prepare: Any = {
        "fprop": partial(prepare_fprop, x, w, problem, Epilogue(alpha=alpha), precision=precision),
        "dgrad": partial(prepare_dgrad, dy, w, alpha, problem, precision=precision, target=target),
        "wgrad": partial(prepare_wgrad, dy, x, problem, dtype=x.dtype, precision=precision, target=target),
    }[work.direction]
    table, asked = TABLES[work.direction], (problem, work.storage, target, precision)
    configs = {config.label: config for config in (*table.promising(*asked), table.default(*asked))}
    return {label: partial(_launches, prepare, config) for label, config in configs.items()}


def _launches(prepare: Callable[..., tuple[Tensor, list[Launch]]], config: Config) -> list[Launch]:
    return prepare(config=config)[1]


def _direct(work: Work, x: Tensor, w: Tensor, dy: Tensor, alpha: Tensor | None, target: Target) -> Any:
    problem = work.problem
    if work.direction == "fprop":
        return direct.plan_direct_fprop(x, w, dy, problem, Epilogue(alpha=alpha))
    if work.direction == "dgrad":
        return direct.plan_direct_dgrad(dy, w, x, alpha, problem)
    split_k = direct.direct_split_k(problem, target)
    workspace = torch.empty((split_k, w.numel()), device="meta") if split_k > 1 else None
    return direct.plan_direct_wgrad(dy, x, w, workspace, problem, split_k=split_k)
