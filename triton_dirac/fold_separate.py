"""Folding that keeps the identity out of the filters: for what rounds filters with one step each, as int8 does.

    y = conv(x, s * beta * W / ||W||) + b' + alpha * s * x[centre tap]

A folded filter has alpha * s, near 1, beside weights that are a hundredth of it: a step fine enough for the one is too
coarse for the others. Apart, each has a range of its own. Source: arXiv 1706.00388 for the fold; the loss is known from
RepVGG, whose identity branch folds in the same way (arXiv 2212.01593).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from triton_dirac.functional import dirac_weight
from triton_dirac.modules import _DiracConv


class ConvPlusIdentity(nn.Module):
    """conv(x) + scale * x, on the first channels, those that both x and the output have.

    Args:
        conv: a ``torch.nn`` convolution. scale: (n, 1, ...), n = min(K, C). stride: of conv, for x to be read by.
    """

    def __init__(self, conv: nn.Module, scale: Tensor, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = conv
        self.scale = nn.Parameter(scale)
        self.stride = tuple(stride)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.conv(input)
        dims = len(self.stride)
        taps: tuple[Any, ...] = (..., slice(self.scale.shape[0]), *(slice(None, None, step) for step in self.stride))
        term = self.scale * input[taps]
        missing = output.shape[-dims - 1] - self.scale.shape[0]
        return output + (F.pad(term, (*(0, 0) * dims, 0, missing)) if missing else term)

    def extra_repr(self) -> str:
        return f"scale={tuple(self.scale.shape)}, stride={self.stride}"


def can_separate(conv: nn.Module) -> bool:
    """Whether the centre tap of every output is a pixel of the image: odd windows, padded by their half, no groups."""
    if not isinstance(conv, _DiracConv) or conv.groups != 1 or conv.identity != "dirac":
        return False
    half = tuple(step * (size // 2) for step, size in zip(conv.dilation, conv.kernel_size, strict=True))
    padded = conv.padding == half or (conv.padding == "same" and set(conv.stride) == {1})
    return padded and all(size % 2 for size in conv.kernel_size)


def unit_filters(conv: Any) -> Tensor:
    """The layer's filters without the identity, in float64."""
    weight, alpha, beta = (p.detach().double() for p in (conv.weight, conv.alpha, conv.beta))
    return dirac_weight(weight, alpha, beta, identity=False, backend="torch")


def make_separate(conv: Any, scale: Tensor) -> None:
    """Make ``conv``, a plain convolution without the identity, one with it beside, in place; ``scale``: (K,).

    Hooks stay with the whole.
    """
    inner: Any = nn.Module.__new__(type(conv))
    inner.__dict__ = conv.__dict__
    count = min(inner.in_channels, inner.out_channels)
    term = scale[:count].view(-1, *(1,) * len(inner.kernel_size)).to(inner.weight.dtype)
    whole = ConvPlusIdentity(inner, term, inner.stride).train(inner.training)
    whole.scale.requires_grad_(inner.weight.requires_grad)
    for name in [name for name in vars(whole) if "hook" in name]:
        vars(whole)[name], vars(inner)[name] = vars(inner)[name], vars(whole)[name]
    conv.__dict__ = whole.__dict__
    conv.__class__ = ConvPlusIdentity
