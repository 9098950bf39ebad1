"""What a training is of: every choice, as plain data that a checkpoint can hold."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from triton_dirac.functional import FORMS, TRITON_DTYPES
from triton_dirac.train.recipe import RECIPES, Recipe

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TRITON_DTYPES}  # of the forward pass
# What may be another when a training goes on: it changes where and how it runs, not what it is.
FREE = ("device", "workers", "checkpoint_every", "root")


@dataclass(frozen=True)
class Options:
    """Everything that a training depends on; None in ``device``: a GPU if there is one.

    ``form``, ``backend``: of the Dirac convolutions. ``checkpoint_every``: steps, 0: at the end of each epoch alone.
    ``channels_last`` None: on a GPU.
    """

    net: str
    data: str = "digits"
    root: str | None = None
    recipe: Recipe = RECIPES["digits"]
    seed: int = 0
    dtype: str = "float32"
    form: str = "split"
    backend: str = "auto"
    device: str | None = None
    channels_last: bool | None = None
    compile: bool = False
    graph: bool = False
    workers: int = 4
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        checks = {
            "data": (self.data, self.data in RECIPES, f"one of {', '.join(RECIPES)}"),
            "dtype": (self.dtype, self.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
            "form": (self.form, self.form in FORMS, f"one of {', '.join(FORMS)}"),
            "seed": (self.seed, -(2**63) <= self.seed < 2**64, "an integer of 64 bits"),
            "workers": (self.workers, self.workers >= 0, "a non-negative integer"),
            "checkpoint_every": (self.checkpoint_every, self.checkpoint_every >= 0, "a non-negative integer"),
            "graph": (self.graph, not (self.graph and self.dtype == "float16"), "False with float16's loss scaling"),
            "batch": (self.recipe.batch, self.recipe.batch > 0, "a positive integer"),
            "epochs": (self.recipe.epochs, self.recipe.epochs > 0, "a positive integer"),
            "lr": (self.recipe.lr, 0 < self.recipe.lr < math.inf, "a positive number"),
            "momentum": (self.recipe.momentum, 0 <= self.recipe.momentum < 1, "in 0..1"),
            "weight_decay": (self.recipe.weight_decay, 0 <= self.recipe.weight_decay < math.inf, "non-negative"),
        }
        for name, (value, good, accepted) in checks.items():
            if not good:
                raise ValueError(f"{name} must be {accepted}, got {value!r}")
        if self.graph and self.compile:
            raise ValueError("graph and compile must not both be set: torch.compile captures graphs of its own")

    def plain(self) -> dict[str, Any]:
        """As numbers, text and containers of them."""
        found = asdict(self)
        found["recipe"]["drops"] = list(self.recipe.drops)
        return found

    def require_same(self, saved: dict[str, Any]) -> None:
        """Raise ValueError if a checkpoint of ``saved`` options is of another training."""
        mine = self.plain()
        names = [name for name in mine if name not in FREE and mine[name] != saved.get(name)]
        if names:
            pairs = (f"{name} {saved.get(name)!r}, now {mine[name]!r}" for name in names)
            raise ValueError(f"the checkpoint is of another training: {'; '.join(pairs)}")


def options_for(data: str, net: str, **changes: Any) -> Options:
    """Options with the published recipe of that data; ``changes``: Options' own and Recipe's, None: as published."""
    if data not in RECIPES:
        raise ValueError(f"data must be one of {', '.join(RECIPES)}, got {data!r}")
    given = {name: value for name, value in changes.items() if value is not None}
    of_recipe = {name: given.pop(name) for name in list(given) if name in Recipe.__dataclass_fields__}
    return Options(net, data, recipe=replace(RECIPES[data], **of_recipe), **given)
