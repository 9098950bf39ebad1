"""The nets whose convolutions are compared. A net is registered here, in one place, and every command knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from triton_dirac import models
from triton_dirac.module_checks import positive_integer


@dataclass(frozen=True)
class Net:
    """How to build a net, its images' size, the batch it is trained with; ``by_default``: run without being named."""

    build: Callable[[], nn.Module]
    image_size: int
    batch: int
    by_default: bool = True


NETS: dict[str, Net] = {}


def register_net(
    name: str, build: Callable[[], nn.Module], image_size: int, batch: int, *, by_default: bool = False
) -> None:
    """Make ``name`` known to ``--nets``; every ``nn.Conv2d`` that it runs becomes a layer of the suites.

    The net is built and run on the "meta" device, for ``batch`` images of 3 x image_size x image_size: nothing is
    computed or downloaded. Convolutions that are ``DiracConv2d`` have an identity term; the others are compared in
    the suite "conv" alone.

    Raises:
        ValueError: the name is taken, is empty or holds a comma; image_size or batch is no positive integer
            below 2 ** 31.
    """
    if not name or "," in name:
        raise ValueError(f"name must be non-empty and without commas, got {name!r}")
    if name in NETS:
        raise ValueError(f"a net named {name!r} is registered already; choose another name than {', '.join(NETS)}")
    NETS[name] = Net(build, positive_integer("image_size", image_size), positive_integer("batch", batch), by_default)


@cache
def structure(net: str) -> nn.Module:
    """The net without data, on the "meta" device."""
    with torch.device("meta"):
        return NETS[net].build()


@cache
def _of_one_image(net: str) -> list[models.NamedProblem]:
    return models.conv_problems(structure(net), NETS[net].image_size, 1)


def convolutions(net: str, batch: int) -> list[models.NamedProblem]:
    """Every convolution that the net runs, in that order."""
    return [found._replace(problem=replace(found.problem, N=batch)) for found in _of_one_image(net)]


MOST_LAYERS = 100  # of a published net that is registered: commands look through the layers of all nets
for _name, _net in models.PUBLISHED.items():
    if _net.depth > MOST_LAYERS:
        continue
    register_net(_name, _net.build, _net.image_size, _net.batch, by_default=_net.is_dirac)


def repvgg_a0() -> nn.Module:
    """RepVGG-A0 as deployed: 22 plain 3x3 convolutions, the first of each stage with stride 2 (arXiv 2101.03697)."""
    layers: list[nn.Module] = []
    channels = 3
    for width, blocks in ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)):
        for block in range(blocks):
            layers += [nn.Conv2d(channels, width, 3, stride=1 if block else 2, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


register_net("RepVGG-A0", repvgg_a0, 224, 256)

# Where whole nets are timed and time is short: the widest, the largest images and the one of many small layers. Two
# that are published lie between them.
FIRST_NETS = ("DiracNet-28-10", "DiracNet-34-2", "DiracNet-18")
