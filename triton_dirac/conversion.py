"""From a trained convolution to the Dirac convolution with the same function, for fine-tuning."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from triton_dirac.identity_term import diagonal, identity_rows
from triton_dirac.modules import DiracConv1d, DiracConv2d, DiracConv3d
from triton_dirac.weight_prep.torch_backend import row_norms

DIRAC_CONVS = (DiracConv1d, DiracConv2d, DiracConv3d)
# dirac_weight divides by norms down to 1e-12 only: smaller filters than this are stored with norm 1.
SMALL_NORM = 1e-6


@torch.no_grad()
def from_conv(conv: _ConvNd, *, form: str = "split", backend: str = "auto") -> DiracConv1d | DiracConv2d | DiracConv3d:
    """The Dirac convolution with the function of a trained ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``.

    weight = diag(alpha) * I + diag(beta) * W / ||W||, where alpha has the weight's entries on the identity,
    W the rest of it and beta_k = ||W_k||: no other alpha makes ||W|| smaller, and a gradient step moves W as
    far as it moved weight. A filter that is alpha times the identity, or zero, gets beta = 0 and a random W,
    which beta can learn to use. Filters without an identity term get alpha = 1, which does nothing.

    Sizes, stride, padding mode, groups, bias, dtype, device, memory format, training mode and requires_grad
    are taken over; ``conv`` is not changed. Of a parametrised conv (``torch.nn.utils.parametrizations``) the weight
    that its next call would use is taken, and trained if anything that it is made of is. form, backend: as
    ``dirac_conv2d``'s.

    Raises:
        TypeError: conv is not one of the three, overrides its forward, or is complex.
        ValueError: conv is lazy and has not run yet, has forward hooks (weight_norm's and pruning's older ones among
            them), or holds a filter that is not finite or whose norm its dtype cannot hold.
    """
    name = type(conv).__name__
    dirac = next((dirac for dirac in DIRAC_CONVS if isinstance(conv, dirac.torch_class)), None)
    if dirac is None:
        raise TypeError(f"conv must be an nn.Conv1d, nn.Conv2d or nn.Conv3d, got {name}")
    if not _is_plain(conv, dirac.torch_class):
        raise TypeError(f"conv must compute what nn.Conv{dirac.dims}d does, but {name} overrides forward")
    if isinstance(conv._parameters.get("weight"), UninitializedParameter):
        raise ValueError(f"conv must have its sizes, but this {name} has not run yet")
    if conv._forward_hooks or conv._forward_pre_hooks:
        raise ValueError("conv must have no forward hooks: they may change its function and are not taken over")
    own_weight, own_bias = _tensors(conv)
    alpha, beta, filters = _decompose(own_weight, conv.groups)
    layer = dirac(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.padding,
        conv.dilation,
        own_bias is not None,
        stride=conv.stride,
        groups=conv.groups,
        padding_mode=conv.padding_mode,
        form=form,
        backend=backend,
        device=own_weight.device,
        dtype=own_weight.dtype,
    )
    weight = torch.where(_rows(beta, filters) > 0, filters, layer.weight.double())
    layer.weight = nn.Parameter(torch.empty_like(own_weight).copy_(weight))  # in conv's memory format
    layer.alpha.copy_(alpha)
    layer.beta.copy_(beta)
    for parameter in (layer.weight, layer.alpha, layer.beta):
        parameter.requires_grad_(own_weight.requires_grad)
    if own_bias is not None:
        layer.bias = nn.Parameter(own_bias.detach().clone(), requires_grad=own_bias.requires_grad)
    return layer.train(conv.training)


def _is_plain(conv: _ConvNd, torch_class: type[_ConvNd]) -> bool:
    """Whether conv's function is torch's own: neither its class nor the object itself overrides what makes it up."""
    methods = ("forward", "_conv_forward", "__call__")
    return not any(
        name in vars(conv) or getattr(type(conv), name) is not getattr(torch_class, name) for name in methods
    )


@torch.enable_grad()
def _tensors(conv: _ConvNd) -> tuple[Tensor, Tensor | None]:
    """conv's weight and bias, each made once: a parametrisation may make another each time (spectral_norm in training),
    and changes conv by it, so that a copy does."""
    copied = copy.deepcopy(conv)
    return copied.weight, copied.bias


def _decompose(weight: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """(alpha, beta, W) with weight = diag(alpha) * I + diag(beta) * W / ||W||, in float64; beta = ||W||."""
    if not weight.is_floating_point():
        raise TypeError(f"conv's weight must be floating-point, got {weight.dtype}")
    filters, channels = weight.shape[:2]
    rest = weight.to(torch.float64, copy=True)
    entries = diagonal(rest, groups)
    alpha = torch.ones(filters, dtype=rest.dtype, device=rest.device)
    identity_rows(alpha, filters, channels, groups).copy_(entries)
    entries.zero_()
    beta = row_norms(rest)
    if not weight.is_meta:
        largest = torch.maximum(alpha.abs(), beta).max().item()
        if not largest <= torch.finfo(weight.dtype).max:
            raise ValueError(f"conv's filters must have norms that {weight.dtype} can hold, got {largest}")
    small = (beta > 0) & (beta < SMALL_NORM)
    return alpha, beta, rest / _rows(torch.where(small, beta, 1.0), rest)


def _rows(per_filter: Tensor, filters: Tensor) -> Tensor:
    return per_filter.view((-1,) + (1,) * (filters.dim() - 1))
