"""Every convolution kernel that may be picked on this GPU, on small hostile problems, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.accuracy import Error, check, max_error
from bench.suite import float32_products
from triton_dirac import reference
from triton_dirac.conv import dgrad_configs, fprop_configs, wgrad_configs
from triton_dirac.conv.config import Config
from triton_dirac.conv.dgrad import dgrad
from triton_dirac.conv.direct import direct_dgrad, direct_fprop, direct_wgrad
from triton_dirac.conv.epilogue import ACTIVATIONS, Epilogue
from triton_dirac.conv.fprop import fprop
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.wgrad import wgrad
from triton_dirac.runtime.targets import Target, target_of
from triton_dirac.tuning.work import STORAGE

ONE = (1, 1, 1, 1)
# Batches that fill tiles of one pixel of many images, and such that do not; tails of rows, columns and channels;
# strides, dilation, groups, even windows, stems.
PROBLEMS = (
    ConvProblem(128, 64, 7, 6, 64, 3, 3, padding=ONE),
    ConvProblem(96, 80, 5, 7, 160, 3, 3, padding=ONE),
    ConvProblem(128, 128, 6, 5, 320, 3, 3, padding=ONE),
    ConvProblem(128, 64, 8, 9, 32, 3, 3, stride=(2, 2), padding=ONE),
    ConvProblem(128, 32, 9, 8, 96, 3, 5, padding=(2, 2, 2, 1), dilation=(2, 1)),
    ConvProblem(3, 64, 13, 11, 72, 3, 3, padding=ONE),
    ConvProblem(5, 128, 9, 10, 128, 3, 3, stride=(2, 1), padding=(2, 2, 2, 2), dilation=(1, 2)),
    ConvProblem(130, 128, 4, 4, 128, 3, 3, padding=ONE, groups=2),
    ConvProblem(7, 3, 15, 14, 20, 7, 7, stride=(2, 2), padding=(3, 3, 3, 3)),
    ConvProblem(128, 3, 9, 9, 32, 3, 3, padding=ONE),
    ConvProblem(64, 64, 1, 1, 64, 3, 3, padding=ONE),
    ConvProblem(128, 64, 6, 6, 128, 1, 1),
    ConvProblem(4, 17, 9, 8, 33, 3, 3, padding=ONE),
    ConvProblem(128, 160, 8, 8, 80, 3, 3, padding=ONE),
)
DIRECT = ConvProblem(6, 8, 9, 8, 16, 3, 3, stride=(2, 1), padding=ONE, groups=8)
INTERPRETED = (ConvProblem(3, 16, 4, 3, 24, 3, 3, padding=ONE),)
# float16 and three TF32 products go the ways of bfloat16 and of float32: fewer problems say whether they arrive.
FEW = PROBLEMS[::3]
PRECISIONS = {"bfloat16": "ieee", "float16": "ieee", "float32": "ieee", "tf32": "tf32", "tf32x3": "tf32x3"}
CONFIGS = {"fprop": fprop_configs, "dgrad": dgrad_configs, "wgrad": wgrad_configs}


@dataclass(frozen=True)
class KernelCheck:
    """One pass over one problem in one dtype with one config; without a config the direct kernel's.

    fprop's epilogue has all that there is: bias, alpha and this ``activation``.
    """

    direction: str
    problem: ConvProblem
    dtype: str
    config: Config | None
    activation: str = "relu"

    @property
    def family(self) -> str:
        return f"{self.direction} {self.config.loader if self.config else 'direct'}"

    @property
    def name(self) -> str:
        p = self.problem
        sizes = f"{p.N}x{p.C}x{p.H}x{p.W} to {p.K}, {p.R}x{p.S}, stride {p.stride}, groups {p.groups}"
        end = f", {self.activation}" if self.direction == "fprop" else ""
        return f"{self.direction} {self.dtype} {self.config.name if self.config else 'direct'}: {sizes}{end}"

    @property
    def tensor(self) -> str:
        """What the pass makes, in ``Operands``' words."""
        output = f"output of {self.activation}"
        return {"fprop": output, "dgrad": "input gradient", "wgrad": "weight gradient"}[self.direction]

    def run(self, device: torch.device) -> list[Error]:
        operands = operands_of(self.problem, storage_of(self.dtype), device)
        return operands.errors(self.tensor, self._result(operands), self.dtype)

    def _result(self, operands: Operands) -> Tensor:
        o, problem, epilogue = operands, self.problem, Epilogue(operands.bias, operands.alpha, self.activation)
        if self.config is None:
            direct: dict[str, Callable[[], Tensor]] = {
                "fprop": lambda: direct_fprop(o.x, o.w, problem, epilogue),
                "dgrad": lambda: direct_dgrad(o.dy, o.w, o.alpha, problem),
                "wgrad": lambda: direct_wgrad(o.dy, o.x, problem, dtype=torch.float32),
            }
            return direct[self.direction]()
        options: dict[str, Any] = {"precision": PRECISIONS[self.dtype], "config": self.config}
        passes: dict[str, Callable[[], Tensor]] = {
            "fprop": lambda: fprop(o.x, o.w, problem, epilogue, **options),
            "dgrad": lambda: dgrad(o.dy, o.w, o.alpha, problem, **options),
            "wgrad": lambda: wgrad(o.dy, o.x, problem, dtype=torch.float32, **options),
        }
        return passes[self.direction]()


class Operands:
    """Random tensors of one problem, what each pass must make of them, and how far torch's own is from that."""

    def __init__(self, problem: ConvProblem, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(1)

        def draw(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=generator, device=device) * scale
            return values.to(dtype, memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format)

        self.problem = problem
        fan_in = problem.C // problem.groups * problem.R * problem.S
        self.x, self.dy = draw(problem.input_shape), draw(problem.output_shape)
        self.w = draw(problem.weight_shape, fan_in**-0.5)
        self.bias, self.alpha = draw((problem.K,)).float(), draw((problem.K,)).float()
        with torch.backends.cudnn.flags(enabled=device.type != "cuda"):  # float64 must not search cuDNN's plans
            self.truth = self._by_definition(torch.float64)
        self._torch_errors: dict[str, dict[str, float]] = {}

    def errors(self, tensor: str, result: Tensor, dtype: str) -> list[Error]:
        if dtype not in self._torch_errors:
            with float32_products("tf32" if dtype == "tf32" else "float32"):
                plain = self._by_definition(self.x.dtype)
            self._torch_errors[dtype] = {name: max_error(t, self.truth[name]) for name, t in plain.items()}
        rounding = "float32" if dtype == "tf32x3" else dtype
        return check({tensor: result}, {tensor: self.truth[tensor]}, self._torch_errors[dtype], rounding)

    def _by_definition(self, dtype: torch.dtype) -> dict[str, Tensor]:
        p = self.problem
        top, bottom, left, right = p.padding
        x = self.x.to(dtype).requires_grad_()
        padded = F.pad(x, (left, right, top, bottom))
        geometry = (p.stride, 0, p.dilation, p.groups)
        delta = reference.dirac_delta(p.weight_shape, p.groups, dtype=dtype, device=x.device)
        w = self.w.to(dtype).requires_grad_()
        identity = F.conv2d(padded, delta, None, *geometry) * self.alpha.to(dtype).view(1, -1, 1, 1)
        y = F.conv2d(padded, w, None, *geometry) + identity
        dx, dw = torch.autograd.grad(y, (x, w), self.dy.to(dtype))
        z = (y + self.bias.to(dtype).view(1, -1, 1, 1)).detach()
        outputs = {f"output of {activation}": getattr(F, activation)(z) for activation in ACTIVATIONS}
        return outputs | {"input gradient": dx, "weight gradient": dw}


@lru_cache
def operands_of(problem: ConvProblem, dtype: torch.dtype, device: torch.device) -> Operands:
    return Operands(problem, dtype, device)


def storage_of(dtype: str) -> torch.dtype:
    return STORAGE.get(dtype, torch.float32)


def kernel_checks(device: torch.device) -> Iterator[KernelCheck]:
    """All there are on this GPU; in the interpreter one config of each loader on one small problem."""
    on_gpu, target = device.type == "cuda", target_of(device)
    for problem in PROBLEMS if on_gpu else INTERPRETED:
        for dtype, precision in PRECISIONS.items():
            if on_gpu and (dtype in ("bfloat16", "float32", "tf32") or problem in FEW):
                yield from _of(problem, dtype, precision, target)
            elif not on_gpu and dtype in ("float32", "float16"):
                found = _of(problem, dtype, precision, target)
                yield from {(check.family, check.activation): check for check in found}.values()
    for direction in CONFIGS:
        for dtype in ("float32", "bfloat16") if on_gpu else ("float32",):
            yield from _with_activations(KernelCheck(direction, DIRECT, dtype, None))


def _of(problem: ConvProblem, dtype: str, precision: str, target: Target) -> Iterator[KernelCheck]:
    for direction, table in CONFIGS.items():
        for config in table.offered(problem, storage_of(dtype), target, precision):
            check = KernelCheck(direction, problem, dtype, config)
            yield from _with_activations(check) if problem in (*FEW, *INTERPRETED) else (check,)


def _with_activations(check: KernelCheck) -> Iterator[KernelCheck]:
    """fprop once with each; other passes have none."""
    for activation in ACTIVATIONS if check.direction == "fprop" else (check.activation,):
        yield replace(check, activation=activation)
