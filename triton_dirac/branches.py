"""From blocks of parallel branches to one convolution: RepVGG's and MobileOne's, whose identity branch is Dirac's.

    sum of branches = conv(x, sum of s_i * W_i + diag(s_0) * I) + sum of b_i        s, b: of each branch's batch-norm

Source: RepVGG, arXiv 2101.03697; MobileOne, arXiv 2206.04040. The branches are found by the names that timm and the
official codes give them; no class is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triton_dirac.conversion import from_conv
from triton_dirac.identity_term import diagonal
from triton_dirac.modules import DiracConv2d

# (timm's name, the official ones) of what a block may have. Each convolution stands before its batch-norm.
LARGE = ("conv_kxk", "rbr_dense", "rbr_conv")  # one branch, or a list of them
SMALL = ("conv_1x1", "conv_scale", "rbr_1x1", "rbr_scale")
IDENTITY = ("identity", "rbr_identity", "rbr_skip")
MERGED = ("reparam_conv", "rbr_reparam", "reparam")
Branch = tuple[Tensor, Tensor]  # filters and bias, in float64


@torch.no_grad()
def from_repvgg(block: nn.Module, *, dirac: bool = True, form: str = "split", backend: str = "auto") -> nn.Conv2d:
    """The one convolution that a RepVGG or MobileOne block's branches add up to, in evaluation mode.

    The block's function is its activation (and attention, if it has one) of this convolution.

    >>> block = nn.Module()  # as the official code names its branches: here 3x3 with batch-norm alone
    >>> block.rbr_dense = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    >>> conv, images = from_repvgg(block.eval()), torch.randn(2, 8, 5, 5)
    >>> torch.allclose(conv(images), block.rbr_dense(images), atol=1e-5)
    True

    Args:
        block: with a k x k branch or several, and perhaps a 1 x 1 and an identity branch, each with batch-norm, under
            the names of timm (``conv_kxk``, ``conv_1x1`` or ``conv_scale``, ``identity``) or of the official codes
            (``rbr_dense``, ``rbr_1x1``, ``rbr_identity``; ``rbr_conv``, ``rbr_scale``, ``rbr_skip``). Merged already
            is right too. It is not changed.
        dirac: a ``DiracConv2d``, ready to be trained on: alpha has what the branches put on the identity. False: an
            ``nn.Conv2d``.
        form, backend: of the ``DiracConv2d``, as ``dirac_conv2d``'s.

    Raises:
        TypeError: block has no branch under these names. RuntimeError: it is in training mode, where batch-norms
            depend on the batch. ValueError: its branches do not add up to a convolution.
    """
    name = type(block).__name__
    merged = _child(block, MERGED)
    large = [merged] if merged is not None else _listed(_child(block, LARGE))
    if not large:
        raise TypeError(f"block must have branches under the names {', '.join(LARGE)}, got {name} without any")
    if any(module.training for module in block.modules()):
        raise RuntimeError(f"from_repvgg needs evaluation mode: call eval() on the {name} first")
    template = large[0] if isinstance(large[0], nn.Conv2d) else _parts(large[0], name)[0]
    branches = list(_branches(block, large, template, name))
    for filters, _ in branches:
        if filters.shape != template.weight.shape:
            raise ValueError(f"the branches of {name} must have the same channels, groups and windows up to 1 x 1")
    conv = _like(template)
    conv.weight.copy_(torch.stack([filters for filters, _ in branches]).sum(0))
    conv.bias.copy_(torch.stack([bias for _, bias in branches]).sum(0))  # type: ignore[union-attr]
    conv.eval()
    if not dirac:
        return conv
    layer = from_conv(conv, form=form, backend=backend)
    assert isinstance(layer, DiracConv2d)
    return layer


def _branches(block: nn.Module, large: Sequence[nn.Module], template: nn.Conv2d, name: str) -> Iterator[Branch]:
    for branch in large:
        yield _filters(branch, name)
    if _child(block, MERGED) is not None:
        return
    small, identity = _child(block, SMALL), _child(block, IDENTITY)
    if small is not None:
        filters, bias = _filters(small, name)
        yield _centred(filters, template), bias
    if identity is not None:
        filters = torch.zeros(template.weight.shape, dtype=torch.float64, device=template.weight.device)
        diagonal(filters, template.groups).fill_(1)
        yield _scaled(filters, None, identity, name)


def _child(block: nn.Module, names: Sequence[str]) -> Any:
    found = (getattr(block, name, None) for name in names)
    return next((child for child in found if isinstance(child, nn.Module)), None)


def _listed(branches: nn.Module | None) -> list[nn.Module]:
    if branches is None:
        return []
    return list(branches) if isinstance(branches, nn.ModuleList) else [branches]


def _parts(branch: nn.Module, name: str) -> tuple[nn.Conv2d, nn.Module | None]:
    """A branch's convolution and the batch-norm after it."""
    convs = [module for module in branch.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in branch.modules() if isinstance(module, nn.BatchNorm2d)]
    if len(convs) != 1 or len(norms) > 1:
        raise ValueError(f"each branch of {name} must be one convolution and its batch-norm, got {branch}")
    return convs[0], norms[0] if norms else None


def _filters(branch: nn.Module, name: str) -> Branch:
    conv, norm = _parts(branch, name)
    return _scaled(conv.weight.double(), conv.bias, norm, name)


def _scaled(filters: Tensor, bias: Tensor | None, norm: Any, name: str) -> Branch:
    """Filters and bias with the batch-norm after them folded in."""
    shift = filters.new_zeros(filters.shape[0]) if bias is None else bias.double()
    if norm is None:
        return filters, shift
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"the branches of {name} must end in batch-norms with running statistics, got {norm}")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = (shift - norm.running_mean.double()) * scale
    shift = shift if norm.bias is None else shift + norm.bias.double()
    return filters * scale.view(-1, 1, 1, 1), shift


def _centred(filters: Tensor, template: nn.Conv2d) -> Tensor:
    """1 x 1 filters as the middle of the template's window; what is no 1 x 1 stays, and is told apart later."""
    if filters.shape[2:] != (1, 1):
        return filters
    rows, columns = ((size // 2, size - 1 - size // 2) for size in template.kernel_size)
    return F.pad(filters, (*columns, *rows))


def _like(conv: nn.Conv2d) -> nn.Conv2d:
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        bias=True,
        padding_mode=conv.padding_mode,  # type: ignore[arg-type]
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
