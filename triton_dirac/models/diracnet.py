"""DiracNets (arXiv 1706.00388): very deep plain networks whose skip connections live inside the weights.

    CIFAR:    conv3x3 -> BN -> ReLU -> G0 -> maxpool2 -> G1 -> maxpool2 -> G2 -> ReLU -> avgpool -> fc
    ImageNet: conv7x7/2 -> BN -> maxpool3/2 -> G0 -> maxpool2 -> G1 -> maxpool2 -> G2 -> maxpool2 -> G3
              -> ReLU -> avgpool -> fc

A group is a row of blocks, a block is ReLU -> Dirac convolution 3x3 (no bias) -> BatchNorm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from triton_dirac.exact import as_index
from triton_dirac.module_checks import positive_integer
from triton_dirac.modules import DiracConv2d

if TYPE_CHECKING:
    from typing_extensions import Self

MakeBlock = Callable[[int, int], nn.Module]
IMAGENET_BLOCKS = {18: [4, 4, 4, 4], 34: [6, 8, 12, 6]}  # of each group, by depth


def dirac_block(in_channels: int, out_channels: int, backend: str) -> nn.Sequential:
    """ReLU -> Dirac convolution 3x3 -> BatchNorm."""
    conv = DiracConv2d(in_channels, out_channels, 3, padding=1, bias=False, backend=backend)
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=conv, bn=nn.BatchNorm2d(out_channels)))


def _group(in_channels: int, out_channels: int, blocks: int, make_block: MakeBlock) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * blocks
    return nn.Sequential(OrderedDict((f"block{i}", make_block(widths[i], widths[i + 1])) for i in range(blocks)))


class PlainNet(nn.Module):
    """A plain net: a stem, groups of blocks with max-pooling between them, a linear classifier. No skip connections.

    Args:
        stem: the layers before the first group; their last convolution makes ``widths[0]`` channels.
        widths: output channels of each group.
        blocks: blocks of each group.
        num_classes: outputs of the classifier.
        make_block: one block, from (input channels, output channels).

    Input (N, 3, H, W), output (N, num_classes).
    """

    if TYPE_CHECKING:  # torch's signatures lack ``memory_format`` alone

        def to(self, *args: Any, **kwargs: Any) -> Self: ...

    def __init__(
        self, stem: nn.Sequential, widths: list[int], blocks: list[int], num_classes: int, make_block: MakeBlock
    ) -> None:
        super().__init__()
        self.stem = stem
        self.groups = nn.ModuleList(
            _group(before, after, count, make_block)
            for before, after, count in zip([widths[0], *widths], widths, blocks, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for index, group in enumerate(self.groups):
            features = group(self.pool(features) if index else features)
        logits: Tensor = self.fc(torch.relu(features).mean((2, 3)))
        return logits


class DiracNet(PlainNet):
    """A plain net of Dirac blocks; ``backend``: of the Dirac convolutions, as ``dirac_conv2d``'s. Else as PlainNet."""

    def __init__(
        self, stem: nn.Sequential, widths: list[int], blocks: list[int], num_classes: int, backend: str
    ) -> None:
        super().__init__(stem, widths, blocks, num_classes, partial(dirac_block, backend=backend))


class Parts(NamedTuple):
    """What a net of one of the two families is made of, whatever its blocks: PlainNet's first four arguments."""

    stem: nn.Sequential
    widths: list[int]
    blocks: list[int]
    num_classes: int


def groups_of(depth: int) -> int:
    """Pairs of blocks in each of a CIFAR net's three groups: n, where depth is 6n + 4."""
    layers = as_index(depth)
    if layers is None or layers < 10 or (layers - 4) % 6:
        raise ValueError(f"depth must be 6n + 4 with n >= 1 (10, 16, 22, 28, 34, ...), got {depth!r}")
    return (layers - 4) // 6


def cifar_parts(depth: int, width: int, num_classes: int) -> Parts:
    """The CIFAR family: widths (16, 32, 64) x width, 2n blocks a group, depth 6n + 4."""
    pairs = groups_of(depth)
    num_classes = positive_integer("num_classes", num_classes)
    widths = [base * positive_integer("width", width) for base in (16, 32, 64)]
    stem = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, widths[0], 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(widths[0]),
            relu=nn.ReLU(),
        )
    )
    return Parts(stem, widths, [2 * pairs] * 3, num_classes)


def imagenet_parts(depth: int, num_classes: int) -> Parts:
    """The ImageNet family: depth 18 or 34, widths 64 to 512."""
    num_classes = positive_integer("num_classes", num_classes)
    stem = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            bn=nn.BatchNorm2d(64),
            pool=nn.MaxPool2d(3, stride=2, padding=1),
        )
    )
    return Parts(stem, [64, 128, 256, 512], IMAGENET_BLOCKS[depth], num_classes)


def diracnet(depth: int = 28, width: int = 10, num_classes: int = 10, *, backend: str = "auto") -> DiracNet:
    """The CIFAR net DiracNet-depth-width for 32 x 32 images; depth is 6n + 4.

    >>> sum(p.numel() for p in diracnet(28, 10, 10).parameters())
    36450090
    """
    return DiracNet(*cifar_parts(depth, width, num_classes), backend)


def diracnet18(num_classes: int = 1000, *, backend: str = "auto") -> DiracNet:
    """The ImageNet net DiracNet-18 for 224 x 224 images: 11.52M parameters."""
    return DiracNet(*imagenet_parts(18, num_classes), backend)


def diracnet34(num_classes: int = 1000, *, backend: str = "auto") -> DiracNet:
    """The ImageNet net DiracNet-34 for 224 x 224 images: 21.64M parameters."""
    return DiracNet(*imagenet_parts(34, num_classes), backend)
