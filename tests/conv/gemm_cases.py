"""Small hostile problems for fprop, dgrad and wgrad, and what each makes of them in float64 and as torch does it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.placement import DEVICE
from triton_dirac.conv.config import Config
from triton_dirac.conv.configs import configs
from triton_dirac.conv.epilogue import Epilogue
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.reference import dirac_delta
from triton_dirac.runtime.targets import TARGETS

ONE = (1, 1, 1, 1)
GATHER = Config(32, 16, 16, 4, 2)
BATCH = Config(16, 32, 16, 4, 3, "batch")
TILE = Config(16, 16, 16, 4, 2, "tile")
PERSISTENT = Config(16, 16, 16, 4, 2, "persistent")
TWO_PARTS = Config(16, 32, 32, 4, 2, "tile", extra_n=16)

PROBLEMS = {
    "taps fastest": ConvProblem(2, 16, 3, 4, 16, 3, 3, padding=ONE),
    "columns clamped": ConvProblem(1, 32, 4, 5, 20, 3, 3, padding=ONE),
    "channel tail across taps": ConvProblem(1, 24, 5, 5, 18, 3, 3, padding=ONE),
    "stem": ConvProblem(2, 3, 9, 9, 20, 3, 3, padding=ONE),
    "stem 7x7 stride 2": ConvProblem(1, 3, 12, 11, 16, 7, 7, stride=(2, 2), padding=(3, 3, 3, 3)),
    "stride 2": ConvProblem(2, 16, 7, 6, 32, 3, 3, stride=(2, 2), padding=ONE),
    "stride and tail": ConvProblem(1, 7, 7, 9, 17, 3, 3, stride=(2, 3), padding=ONE),
    "stride beyond the window": ConvProblem(2, 16, 7, 7, 16, 2, 1, stride=(3, 4)),
    "dilation": ConvProblem(1, 16, 5, 5, 16, 3, 3, padding=(2, 2, 3, 3), dilation=(2, 3)),
    "stride shares a factor with dilation": ConvProblem(
        1, 16, 9, 9, 16, 3, 3, stride=(2, 4), padding=(2, 2, 2, 2), dilation=(2, 2)
    ),
    "uneven padding, even window": ConvProblem(1, 16, 3, 4, 24, 2, 4, padding=(0, 1, 1, 2)),
    "no padding": ConvProblem(1, 16, 6, 5, 16, 3, 2),
    "flat without padding": ConvProblem(1, 5, 6, 5, 7, 3, 2),
    "pointwise": ConvProblem(2, 40, 3, 3, 33, 1, 1),
    "pointwise with stride": ConvProblem(2, 32, 5, 5, 16, 1, 1, stride=(2, 2)),
    "pointwise with padding": ConvProblem(1, 16, 3, 3, 16, 1, 1, padding=(1, 0, 2, 1)),
    "one pixel out": ConvProblem(3, 16, 3, 3, 16, 3, 3),
    "one of everything": ConvProblem(1, 1, 1, 1, 1, 1, 1),
    "groups": ConvProblem(1, 32, 4, 4, 64, 3, 3, padding=ONE, groups=2),
    "groups of odd size": ConvProblem(1, 15, 4, 4, 9, 3, 3, padding=ONE, groups=3),
    "depthwise": ConvProblem(1, 8, 4, 4, 16, 3, 3, padding=ONE, groups=8),
    "49 taps": ConvProblem(1, 16, 6, 6, 16, 7, 7, padding=(3, 3, 3, 3)),
    "49 taps and a tail": ConvProblem(1, 5, 6, 6, 6, 7, 7, padding=(3, 3, 3, 3)),
    "121 taps, stride 4": ConvProblem(1, 3, 13, 13, 16, 11, 11, stride=(4, 4), padding=(2, 2, 2, 2)),
    "16 rows of taps": ConvProblem(1, 5, 17, 3, 16, 16, 2, padding=(8, 7, 1, 0)),
    "31 taps": ConvProblem(1, 16, 1, 20, 16, 1, 31, padding=(0, 0, 15, 15)),
    "17 columns of taps": ConvProblem(1, 16, 1, 20, 16, 1, 17, padding=(0, 0, 8, 8)),
    "window larger than the image": ConvProblem(1, 16, 2, 2, 16, 5, 5, padding=(3, 3, 3, 3)),
    "taps that never read": ConvProblem(1, 8, 3, 3, 8, 3, 3, stride=(3, 3), padding=(4, 4, 4, 4)),
}
BATCHED = {
    "batch": ConvProblem(16, 16, 2, 3, 32, 3, 3, padding=ONE),
    "batch not full": ConvProblem(19, 32, 2, 3, 20, 3, 2, padding=ONE),
    "batch, channel tail": ConvProblem(16, 24, 2, 2, 40, 3, 3, padding=ONE),
    "batch, stride": ConvProblem(16, 16, 5, 4, 16, 3, 3, stride=(2, 2), padding=ONE),
    "batch, dilation": ConvProblem(16, 16, 4, 4, 16, 3, 3, padding=(2, 2, 2, 2), dilation=(2, 2)),
    "batch, stride and dilation": ConvProblem(
        16, 16, 4, 3, 16, 3, 2, stride=(2, 2), padding=(2, 1, 1, 1), dilation=(2, 1)
    ),
    "batch, groups": ConvProblem(16, 32, 2, 2, 32, 3, 3, padding=ONE, groups=2),
    "batch, last tile of columns shared": ConvProblem(16, 48, 1, 3, 72, 1, 3, padding=(0, 0, 1, 1)),
    "batch, one column": ConvProblem(16, 16, 3, 1, 16, 3, 1, padding=(1, 1, 0, 0)),
    "batch, 80 channels": ConvProblem(17, 80, 2, 2, 80, 2, 2, padding=(1, 0, 1, 0)),
    "batch, no tap reaches the border": ConvProblem(16, 16, 2, 1, 16, 2, 2, padding=(2, 2, 2, 2)),
    "batch, a window of which little is inside": ConvProblem(16, 16, 1, 2, 16, 7, 7, padding=(3, 3, 3, 3)),
}


def every_config() -> list[tuple[Config, torch.dtype]]:
    """All configs that can be picked on any target, each with a dtype that it is meant for."""
    found = {}
    for target in TARGETS.values():
        for dtype, precision in ((torch.float16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32")):
            for vectors in (True, False):
                for config in configs(dtype, vectors, target, precision):
                    found[config.name, str(dtype)] = (config, dtype)
    return list(found.values())


def problem_for(config: Config) -> ConvProblem:
    """A problem small enough for the interpreter that fills the config's order and leaves tails elsewhere."""
    channels = config.block_k if config.loader == "tile" else config.block_k + 8
    if config.loader == "persistent":  # whole steps, and columns that fill a tile
        channels = max(config.block_k, config.block_n)
    if config.loader == "gather":
        return ConvProblem(1, channels, 5, 4, 40, 3, 3, padding=ONE)
    return ConvProblem(config.block_m - 1, channels, 1, 2, channels, 2, 3, padding=ONE)


class Case:
    """Operands of one problem and what each pass must make of them."""

    def __init__(self, problem: ConvProblem, dtype: torch.dtype, device: torch.device, *, alpha: bool = True):
        generator = torch.Generator(DEVICE).manual_seed(0)

        def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        self.problem = problem
        self.x = draw(*problem.input_shape)
        self.w = draw(*problem.weight_shape)
        self.bias = draw(problem.K)
        self.alpha = draw(problem.K, dtype=torch.float32) if alpha else None
        self.dy = draw(*problem.output_shape)

    def epilogue(self, activation: str | None = None) -> Epilogue:
        return Epilogue(self.bias, self.alpha, activation)

    def fprop(self, dtype: torch.dtype, activation: str | None = None) -> Tensor:
        y = self._conv(self.x.to(dtype), self.w.to(dtype)) + self.bias.to(dtype).view(1, -1, 1, 1)
        y = y + self._identity(self.x.to(dtype)) if self.alpha is not None else y
        return y if activation is None else getattr(F, activation)(y)

    def dgrad(self, dtype: torch.dtype) -> Tensor:
        x = self.x.to(dtype).requires_grad_()
        y = self._conv(x, self.w.to(dtype))
        y = y + self._identity(x) if self.alpha is not None else y
        return torch.autograd.grad(y, x, self.dy.to(dtype))[0]

    def wgrad(self, dtype: torch.dtype) -> Tensor:
        w = self.w.to(dtype).requires_grad_()
        return torch.autograd.grad(self._conv(self.x.to(dtype), w), w, self.dy.to(dtype))[0]

    def _identity(self, x: Tensor) -> Tensor:
        p = self.problem
        delta = dirac_delta(p.weight_shape, p.groups, dtype=x.dtype, device=x.device)
        return self._conv(x, delta) * self.alpha.to(x.dtype).view(1, -1, 1, 1)

    def _conv(self, x: Tensor, w: Tensor) -> Tensor:
        p = self.problem
        top, bottom, left, right = p.padding
        return F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, p.stride, 0, p.dilation, p.groups)
