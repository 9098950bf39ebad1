"""The 3-D Dirac convolution: the weight prepared as for two dimensions, the convolution torch's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from triton_dirac.checks import check_floating
from triton_dirac.functional import dirac_weight
from triton_dirac.identity_term import identity_rows
from triton_dirac.runtime.tracing import autocast_dtype

Sizes = tuple[int, ...]


def dirac_conv3d(
    input: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    *,
    form: str,
    backend: str,
) -> Tensor:
    """conv3d(input, diag(alpha) * I + diag(beta) * W / ||W||) + bias, in the form that ``is_split`` tells.

    input (N, C, D, H, W) or (C, D, H, W), weight (K, C / groups, T, R, S), alpha, beta and bias (K,).
    """
    tensors = (input, weight, alpha, beta, bias)
    geometry = (stride, padding, dilation, groups)
    if has_torch_function_unary(input):
        return handle_torch_function(dirac_conv3d, (input,), *tensors, *geometry, form=form, backend=backend)
    check_floating("input", input)
    dtype = autocast_dtype(input) or input.dtype
    split = is_split(form, dtype)
    filters = dirac_weight(weight, alpha, beta, identity=not split, dtype=dtype, groups=groups, backend=backend)
    return conv3d(input, filters, alpha if split else None, bias, *geometry)


def is_split(form: str, dtype: torch.dtype) -> bool:
    """Whether the identity stays out of the filters: see ``functional.uses_split``; torch convolves here."""
    return form == "split" and dtype not in (torch.float32, torch.float64)


def conv3d(
    input: Tensor,
    filters: Tensor,
    alpha: Tensor | None,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    """conv3d(input, filters) + bias, and alpha * x[centre tap] unless the filters have the identity in them."""
    input = input.to(filters.dtype)
    bias = None if bias is None else bias.to(filters.dtype)
    output = F.conv3d(input, filters, bias, stride, padding, dilation, groups)
    if alpha is None:
        return output
    return output + _identity_term(input, alpha, output, filters.shape, stride, padding, dilation, groups)


def _identity_term(
    input: Tensor,
    alpha: Tensor,
    output: Tensor,
    shape: torch.Size,
    stride: Sizes,
    padding: Any,
    dilation: Sizes,
    groups,
) -> Tensor:
    """alpha * x[centre tap], in float32 and then in output's dtype: (..., K, *output's sizes)."""
    filters, channels, *window = shape
    sides: list[int] = []
    for axis in (-1, -2, -3):
        before = dilation[axis] * (window[axis] - 1) // 2 if padding == "same" else 0
        before = before if isinstance(padding, str) else padding[axis]
        first = window[axis] // 2 * dilation[axis] - before
        length = stride[axis] * (output.shape[axis] - 1) + 1
        sides += [-first, first + length - input.shape[axis]]  # F.pad crops where they are negative
    centre = F.pad(input, sides)[..., :: stride[0], :: stride[1], :: stride[2]]
    per_group = min(channels, filters // groups)
    scale = identity_rows(alpha, filters, channels, groups)
    term = torch.unflatten(centre, -4, (groups, -1))[..., :per_group, :, :, :] * scale.float()[..., None, None, None]
    return F.pad(term, (0,) * 6 + (0, filters // groups - per_group)).flatten(-5, -4).to(output.dtype)
