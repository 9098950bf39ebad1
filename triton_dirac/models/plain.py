"""Plain nets without the Dirac parameterisation, and the start that makes deep plain nets trainable."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from triton_dirac.identity_term import centred
from triton_dirac.models.diracnet import PlainNet, cifar_plan
from triton_dirac.module_checks import check_choice

STARTS = ("kaiming", "delta-orthogonal")


@torch.no_grad()
def delta_orthogonal_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fill a filter bank (K, C, *window), K >= C, with a random orthogonal map under the centre tap, 0 elsewhere.

    The convolution then keeps the length of every pixel's channels (times ``gain``): depth neither shrinks nor grows
    it. Source: Xiao et al., arXiv 1806.05393, section 2.4; there "delta-orthogonal".

    >>> filters = delta_orthogonal_(torch.empty(8, 4, 3, 3))
    >>> centre = filters[:, :, 1, 1]
    >>> torch.allclose(centre.T @ centre, torch.eye(4), atol=1e-5)
    True
    >>> int(filters.count_nonzero() - centre.count_nonzero())
    0

    Raises:
        ValueError: weight has no window or more input than output channels, whose lengths no map keeps.
    """
    if weight.dim() < 3:
        raise ValueError(f"weight must have shape (K, C, *window), got {tuple(weight.shape)}")
    filters, channels, *window = weight.shape
    if channels > filters:
        raise ValueError(f"weight must have K >= C, got K = {filters} and C = {channels}")
    matrix = nn.init.orthogonal_(weight.new_empty(filters, channels), gain)
    return weight.copy_(centred(matrix, window))


def plain_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """ReLU -> convolution 3x3 -> BatchNorm."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=conv, bn=nn.BatchNorm2d(out_channels)))


def plain(depth: int = 28, width: int = 1, num_classes: int = 10, *, start: str = "kaiming") -> PlainNet:
    """The CIFAR net of DiracNet-depth-width without Dirac: ordinary convolutions, no skip connections.

    Args:
        start: of the blocks' filters: "kaiming", or "delta-orthogonal" with gain sqrt(2), what ReLU takes away.

    >>> sum(p.numel() for p in plain(28, 10).parameters())
    36432170
    """
    check_choice("start", start, STARTS)
    net = PlainNet(*cifar_plan(depth, width, num_classes), plain_block)
    if start == "delta-orthogonal":
        for module in net.groups.modules():
            if isinstance(module, nn.Conv2d):
                delta_orthogonal_(module.weight, 2**0.5)
    return net
