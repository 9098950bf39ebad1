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
    found: list[NamedProblem] = []

    def record(name: str) -> Callable[[nn.Conv2d, tuple[torch.Tensor], torch.Tensor], None]:
        def hook(module: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            (n, c, h, w), (r, s) = inputs[0].shape, module.kernel_size
            (stride, dilation) = (cast(Pair, pair) for pair in (module.stride, module.dilation))
            vertical, horizontal = cast(Pair, module.padding)
            padding = (vertical, vertical, horizontal, horizontal)
            problem = ConvProblem(n, c, h, w, module.out_channels, r, s, stride, padding, dilation, module.groups)
            found.append(NamedProblem(name, "dirac" if isinstance(module, DiracConv2d) else "plain", problem))

        return hook

    twin = copy.deepcopy(model).to("meta").eval()
    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(record(name))
    with torch.no_grad():
        twin(torch.empty(batch, 3, image_size, image_size, device="meta"))
    return found
