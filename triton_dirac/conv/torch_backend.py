"""The "torch" backend of the convolution: what the kernels compute, in torch operations, for CPUs, float64 and
everything Triton lacks. Differentiable any number of times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from triton_dirac.conv.problem import ConvProblem
from triton_dirac.identity_term import identity_rows


def centre_tap(image: Tensor, problem: ConvProblem) -> Tensor:
    """The input pixel under the filter's centre tap for every output pixel: (N, C, P, Q), zero outside."""
    view = image
    for axis, (size, out, stride, dilation, before) in enumerate(
        (
            (problem.R, problem.P, problem.stride[0], problem.dilation[0], problem.padding[0]),
            (problem.S, problem.Q, problem.stride[1], problem.dilation[1], problem.padding[2]),
        ),
        start=2,
    ):
        first = size // 2 * dilation - before
        last = first + stride * (out - 1)
        pad_before, pad_after = max(-first, 0), max(last - (image.shape[axis] - 1), 0)
        if pad_before or pad_after:
            spatial = (pad_before, pad_after) if axis == 3 else (0, 0, pad_before, pad_after)
            view = F.pad(view, spatial)
        view = view.narrow(axis, first + pad_before, last - first + 1)
        if stride > 1:
            view = view[..., ::stride] if axis == 3 else view[..., ::stride, :]
    return view


def conv2d(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor | None,
    problem: ConvProblem,
    *,
    relu: bool,
) -> Tensor:
    """relu?(conv(x, w) + bias + alpha * x[centre tap]), as the Triton fprop computes it in one pass.

    Where the dtype is narrower than float32 the identity term is rounded once before it is added.
    """
    padding, sides = _own_padding(problem)
    padded = F.pad(image, sides) if sides else image
    bias = None if bias is None else bias.to(weight.dtype)
    output = F.conv2d(padded, weight, bias, problem.stride, padding, problem.dilation, problem.groups)
    if alpha is not None:
        output = output + _identity_term(image, alpha, problem).to(output.dtype)
    return output.relu() if relu else output


def conv_dgrad(grad: Tensor, weight: Tensor, alpha: Tensor | None, problem: ConvProblem) -> Tensor:
    """dL/dx from dL/dy, the identity term's included; differentiable."""
    (pad_h, pad_w), sides = _own_padding(problem)
    left, right, top, bottom = sides or (0, 0, 0, 0)
    n, c, h, w = problem.input_shape
    shape = (n, c, h + top + bottom, w + left + right)
    geometry = (problem.stride, (pad_h, pad_w), problem.dilation, problem.groups)
    dimage = conv2d_input(shape, weight, grad, *geometry)  # type: ignore[arg-type]
    dimage = dimage[:, :, top : top + h, left : left + w]
    if alpha is None:
        return dimage
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        zero = grad.new_zeros(()).expand(n, c, h, w).requires_grad_()
        term = _identity_term(zero, alpha, problem).to(grad.dtype)
        return dimage + torch.autograd.grad(term, zero, grad, create_graph=again)[0]


def conv_wgrad(grad: Tensor, image: Tensor, problem: ConvProblem) -> Tensor:
    """dL/dw from dL/dy; differentiable."""
    padding, sides = _own_padding(problem)
    padded = F.pad(image, sides) if sides else image
    geometry = (problem.stride, padding, problem.dilation, problem.groups)
    return conv2d_weight(padded, problem.weight_shape, grad, *geometry)  # type: ignore[arg-type]


def _own_padding(problem: ConvProblem) -> tuple[tuple[int, int], tuple[int, int, int, int] | None]:
    """(padding that torch's convolution takes, ``F.pad``'s sides): torch pads both sides alike or not at all."""
    top, bottom, left, right = problem.padding
    if (top, left) == (bottom, right):
        return (top, left), None
    return (0, 0), (left, right, top, bottom)


def _identity_term(image: Tensor, alpha: Tensor, problem: ConvProblem) -> Tensor:
    """alpha * x[centre tap], (N, K, P, Q), zero for filters without an identity; in float32 if alpha is."""
    groups, per_group = problem.groups, problem.identity_per_group
    centre = torch.unflatten(centre_tap(image, problem), 1, (groups, -1))[:, :, :per_group]
    scale = identity_rows(alpha, problem.K, problem.C // groups, groups)
    term = centre * scale.view(1, groups, per_group, 1, 1)
    return F.pad(term, (0, 0, 0, 0, 0, problem.K // groups - per_group)).flatten(1, 2)
