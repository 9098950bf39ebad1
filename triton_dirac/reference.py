"""The definition, in plain torch: what every kernel is held against.

All functions take any floating dtype up to float64, run on any device and are differentiable. They favour
being plainly right over being fast. Formulas: DiracNets, arXiv 1706.00388; the identity's place is
``torch.nn.init.dirac_``'s.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dirac_delta(
    shape: tuple[int, ...],
    groups: int = 1,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The identity filter bank I of shape (K, C / groups, *window).

    I[g * K/groups + d, d, centre] = 1 for every group g and d < min(K, C) / groups; the centre is
    ``size // 2`` in each window dimension, even windows included. All else is 0.
    """
    filters, channels, *window = shape
    delta = torch.zeros(shape, dtype=dtype, device=device)
    centre = tuple(size // 2 for size in window)
    per_group = filters // groups
    for group in range(groups):
        for d in range(min(per_group, channels)):
            delta[group * per_group + d, d][centre] = 1
    return delta


def dirac_weight(
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    eps: float = 1e-12,
    identity: bool = True,
    groups: int = 1,
) -> Tensor:
    """What = diag(alpha) * I + diag(beta) * W / max(||W_k||_2, eps).

    weight: (K, C / groups, *window). alpha, beta: (K,) or (1,). The norm is per filter k over all its
    elements, in float32 at least (1e-12 underflows float16). ``identity=False`` leaves out the first term.
    """
    rows = (-1,) + (1,) * (weight.dim() - 1)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide.flatten(1), dim=1).clamp_min(eps).view(rows)
    scaled = beta.view(rows) * (wide / norm)
    if identity:
        delta = dirac_delta(tuple(weight.shape), groups, dtype=wide.dtype, device=weight.device)
        # Not alpha * delta: an infinite alpha would turn the zeros into NaN where filters have no identity.
        scaled = scaled + torch.where(delta != 0, alpha.view(rows).to(wide.dtype), delta)
    prepared: Tensor = scaled.to(weight.dtype)
    return prepared


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | str | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    alpha: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """activation(conv(input, weight) + bias + alpha * x[centre tap]): every fused epilogue, unfused.

    alpha: (K,), (1,) or None; the last term is conv(input, diag(alpha) * I), for filters that have an identity.
    activation: None, or the name of one of ``torch.nn.functional``'s. All else as ``F.conv2d``'s.
    """
    output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if alpha is not None:
        delta = dirac_delta(tuple(weight.shape), groups, dtype=weight.dtype, device=weight.device)
        term = F.conv2d(input, delta, None, stride, padding, dilation, groups)
        output = output + alpha.to(output.dtype).view(-1, 1, 1) * term
    return output if activation is None else getattr(F, activation)(output)


def dirac_conv2d(
    input: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | str | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    eps: float = 1e-12,
    activation: str | None = None,
) -> Tensor:
    """activation(conv(input, What) + bias) with What = ``dirac_weight(weight, alpha, beta)``."""
    prepared = dirac_weight(weight, alpha, beta, eps=eps, groups=groups).to(input.dtype)
    return conv2d(input, prepared, bias, stride, padding, dilation, groups, activation=activation)
