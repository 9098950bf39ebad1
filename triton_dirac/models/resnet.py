"""Residual nets that DiracNets are compared with.

    CIFAR:    conv3x3 -> G0 -> G1 -> G2 -> BN -> ReLU -> avgpool -> fc, of pre-activation blocks
              x + conv(relu(bn(conv(relu(bn(x)))))); a 1x1 convolution of relu(bn(x)) in place of x where its shape
              changes (arXiv 1603.05027; wide: arXiv 1605.07146)
    ImageNet: conv7x7/2 -> BN -> ReLU -> maxpool3/2 -> G0 -> G1 -> G2 -> G3 -> avgpool -> fc, of blocks
              relu(x + bn(conv(relu(bn(conv(x)))))); a 1x1 convolution and BN of x where its shape changes
              (arXiv 1512.03385)

The first block of every group but G0 halves the image, by stride 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from triton_dirac.exact import as_index
from triton_dirac.models.diracnet import groups_of
from triton_dirac.module_checks import positive_integer

Shortcut = Any  # a module, or None for the identity


def _conv(in_channels: int, out_channels: int, window: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, window, stride, window // 2, bias=False)


class PreActivation(nn.Module):
    """x + F(x), where F is BN -> ReLU -> convolution for each of ``windows``; the stride is the first 3x3's."""

    def __init__(self, channels: Sequence[int], windows: Sequence[int], stride: int) -> None:
        super().__init__()
        strided = windows.index(3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels[:-1])
        self.convs = nn.ModuleList(
            _conv(before, after, window, stride if i == strided else 1)
            for i, (before, after, window) in enumerate(zip(channels, channels[1:], windows, strict=False))
        )
        changes = stride > 1 or channels[0] != channels[-1]
        self.shortcut: Shortcut = _conv(channels[0], channels[-1], 1, stride) if changes else None

    def forward(self, input: Tensor) -> Tensor:
        features: Tensor = torch.relu(self.norms[0](input))
        skipped: Tensor = input if self.shortcut is None else self.shortcut(features)
        features = self.convs[0](features)
        for norm, conv in zip(list(self.norms)[1:], list(self.convs)[1:], strict=True):
            features = conv(torch.relu(norm(features)))
        return skipped + features


class PostActivation(nn.Module):
    """relu(x + F(x)), where F is convolution 3x3 -> BN -> ReLU -> convolution 3x3 -> BN."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, out_channels, 3, stride), nn.BatchNorm2d(out_channels)
        self.conv2, self.bn2 = _conv(out_channels, out_channels, 3), nn.BatchNorm2d(out_channels)
        self.shortcut: Shortcut = None
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def forward(self, input: Tensor) -> Tensor:
        features = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(input)))))
        return torch.relu(features + (input if self.shortcut is None else self.shortcut(input)))


class ResNet(nn.Module):
    """Stem, blocks, what stands before the average pooling, a linear classifier.

    Input (N, 3, H, W), output (N, num_classes).
    """

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], last: nn.Module, channels: int, classes: int):
        super().__init__()
        self.stem, self.blocks, self.last = stem, nn.Sequential(*blocks), last
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.last(self.blocks(self.stem(images))).mean((2, 3)))
        return logits


def _cifar(blocks: int, width: int, num_classes: int, bottleneck: bool) -> ResNet:
    num_classes = positive_integer("num_classes", num_classes)
    width = positive_integer("width", width)
    # A wide net's stem has 16 channels, as all others'.
    made, channels = list[nn.Module](), 16
    for group, middle in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range(blocks):
            stride = 2 if group and not block else 1
            inner = [middle, middle, 4 * middle] if bottleneck else [middle, middle]
            made.append(PreActivation([channels, *inner], [1, 3, 1] if bottleneck else [3, 3], stride))
            channels = inner[-1]
    last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
    return ResNet(_conv(3, 16, 3), made, last, channels, num_classes)


def resnet(depth: int = 110, width: int = 1, num_classes: int = 10, *, bottleneck: bool = False) -> ResNet:
    """The pre-activation CIFAR ResNet of He et al.: depth 6n + 2 of basic blocks, or 9n + 2 of bottlenecks.

    >>> sum(p.numel() for p in resnet(164, bottleneck=True).parameters())
    1703258
    """
    layers, step = as_index(depth), 9 if bottleneck else 6
    if layers is None or layers < step + 2 or (layers - 2) % step:
        known = ", ".join(str(step * n + 2) for n in range(1, 5))
        raise ValueError(
            f"depth must be {step}n + 2 with n >= 1 ({known}, ...) where bottleneck is {bottleneck}, got {depth!r}"
        )
    return _cifar((layers - 2) // step, width, num_classes, bottleneck)


def wide_resnet(depth: int = 28, width: int = 10, num_classes: int = 10) -> ResNet:
    """WRN-depth-width for CIFAR; depth is 6n + 4: with width 1, the residual net of a DiracNet's depth.

    >>> sum(p.numel() for p in wide_resnet(28, 10).parameters())
    36479194
    """
    return _cifar(groups_of(depth), width, num_classes, bottleneck=False)


def _imagenet(blocks: Sequence[int], num_classes: int) -> ResNet:
    num_classes = positive_integer("num_classes", num_classes)
    stem = nn.Sequential(_conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    made, channels = list[nn.Module](), 64
    for group, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
        for block in range(count):
            made.append(PostActivation(channels, width, 2 if group and not block else 1))
            channels = width
    return ResNet(stem, made, nn.Identity(), channels, num_classes)


def resnet18(num_classes: int = 1000) -> ResNet:
    """The ImageNet net ResNet-18: 11.69M parameters."""
    return _imagenet((2, 2, 2, 2), num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """The ImageNet net ResNet-34: 21.80M parameters."""
    return _imagenet((3, 4, 6, 3), num_classes)
