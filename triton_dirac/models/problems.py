"""The convolutions of a network, read from the network itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import nn

from triton_dirac.conv.problem import ConvProblem
from triton_dirac.modules import DiracConv2d

Pair = tuple[int, int]


class NamedProblem(NamedTuple):
    """One convolution of a network: the module's name, "dirac" or "plain", and its sizes."""

    name: str
    kind: str
    problem: ConvProblem


def conv_problems(model: nn.Module, image_size: int, batch: int) -> list[NamedProblem]:
    """Every 2-D convolution of ``model`` in the order it runs, for ``batch`` images of image_size x image_size.

    Shapes only: the model is run on the "meta" device, without data, memory or time.
    """
    kinds: dict[str, str] = {}
    found: list[NamedProblem] = []

    def record(name: str) -> Callable[[nn.Conv2d, tuple[torch.Tensor], torch.Tensor], None]:
        def hook(module: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            (n, c, h, w), (r, s) = inputs[0].shape, module.kernel_size
            (stride, dilation) = (cast(Pair, pair) for pair in (module.stride, module.dilation))
            vertical, horizontal = cast(Pair, module.padding)
            padding = (vertical, vertical, horizontal, horizontal)
            problem = ConvProblem(n, c, h, w, module.out_channels, r, s, stride, padding, dilation, module.groups)
            found.append(NamedProblem(name, kinds[name], problem))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            kinds[name] = "dirac" if isinstance(module, DiracConv2d) else "plain"
    copied = of_shapes(model)
    for name in kinds:
        copied.get_submodule(name).register_forward_hook(record(name))
    with torch.no_grad():
        copied(torch.empty(batch, 3, image_size, image_size, device="meta"))
    return found


def of_shapes(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the "meta" device, in evaluation mode, to run for shapes alone.

    Its Dirac convolutions are plain ones: of the same shapes, without the preparation, which is most of the time there.
    """
    copied = copy.deepcopy(model).to("meta").eval()
    for module in copied.modules():
        if type(module) is DiracConv2d:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    return copied
