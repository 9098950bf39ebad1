"""Version 1 DiracNets: NCReLU, one scalar alpha and beta a layer, tiled identity.

    NCReLU(x) = cat(max(x, 0), min(x, 0)) along channels: x is never lost, and each convolution has twice the inputs.
    What = alpha * I + beta * W / ||W||, I[k, c] = 1 under the centre tap where k = c modulo min(K, C)

At the start, alpha = 5 and beta = 0.001, a block is next to the identity, since I adds the two halves again. There is
no ReLU before the average pooling. Source: szagoruyko/diracnets, branch v1; first version of arXiv 1706.00388.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from triton_dirac.models.diracnet import PlainNet, Plan, cifar_plan, imagenet_plan
from triton_dirac.modules import DiracConv2d

ALPHA_START, BETA_START, WEIGHT_STD = 5.0, 1e-3, 0.1


class NCReLU(nn.Module):
    """(N, C, H, W) -> (N, 2 C, H, W): the positive parts, then the negative ones."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([input.clamp(min=0), input.clamp(max=0)], dim=1)


class ScalarDiracConv2d(DiracConv2d):
    """A ``DiracConv2d`` with one alpha and one beta for all filters, of shape (1,), and the tiled identity."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int, backend: str) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding, bias=False, backend=backend)
        for name in ("alpha", "beta"):
            setattr(self, name, nn.Parameter(getattr(self, name).detach()[:1].clone()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "beta"):  # torch's constructor calls this before there is one
            nn.init.normal_(self.weight, std=WEIGHT_STD)
            nn.init.constant_(self.alpha, ALPHA_START)
            nn.init.constant_(self.beta, BETA_START)
            self.identity = "tiled"


class DiracNetV1(PlainNet):
    """A version 1 DiracNet; arguments as ``DiracNet``'s."""

    def __init__(self, plan: Plan, backend: str) -> None:
        super().__init__(*plan, partial(_block, backend=backend))
        for module in self.modules():
            if isinstance(module, ScalarDiracConv2d):
                module.reset_parameters()

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for index, group in enumerate(self.groups):
            features = group(self.pool(features) if index else features)
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def _block(in_channels: int, out_channels: int, backend: str) -> nn.Sequential:
    conv = ScalarDiracConv2d(2 * in_channels, out_channels, 3, 1, backend)
    return nn.Sequential(OrderedDict(relu=NCReLU(), conv=conv, bn=nn.BatchNorm2d(out_channels)))


def diracnet_v1(depth: int = 28, width: int = 10, num_classes: int = 10, *, backend: str = "auto") -> DiracNetV1:
    """The CIFAR net DiracNet-depth-width of version 1; depth is 6n + 4."""
    return DiracNetV1(cifar_plan(depth, width, num_classes), backend)


def diracnet18_v1(num_classes: int = 1000, *, backend: str = "auto") -> DiracNetV1:
    """The ImageNet net DiracNet-18 of version 1."""
    return DiracNetV1(imagenet_plan(18, num_classes), backend)


def diracnet34_v1(num_classes: int = 1000, *, backend: str = "auto") -> DiracNetV1:
    """The ImageNet net DiracNet-34 of version 1."""
    return DiracNetV1(imagenet_plan(34, num_classes), backend)
