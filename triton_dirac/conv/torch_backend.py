"""The "torch" backend of the convolution: what the kernels compute, in torch operations, for CPUs, float64 and
everything Triton lacks. Differentiable any number of times.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from triton_dirac.conv.epilogue import finish_by_torch, identity_dgrad
from triton_dirac.conv.problem import ConvProblem


def conv2d(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor | None,
    problem: ConvProblem,
    activation: str | None = None,
) -> Tensor:
    """activation(conv(x, w) + bias + alpha * x[centre tap]), as the Triton fprop computes it in one pass."""
    padding, sides = _own_padding(problem)
    padded = F.pad(image, sides) if sides else image
    bias = None if bias is None else bias.to(weight.dtype)
    output = F.conv2d(padded, weight, bias, problem.stride, padding, problem.dilation, problem.groups)
    return finish_by_torch(output, image, alpha, problem, activation)


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
    return dimage + identity_dgrad(grad, alpha, problem).to(grad.dtype)


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
