"""The "torch" backend: the same functions in torch operations, for CPUs, float64 and everything Triton lacks.

Differentiable any number of times. Unlike ``reference`` it is written to be quick: the weight preparation reads
W twice and writes once, and its backward is the closed form (DiracNets, arXiv 1706.00388).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_dirac.problem import ConvProblem

# Squares of 1e18, this many of them, still fit float32; longer sums are finished in float64.
_NORM_CHUNK = 256


def row_norms(weight: Tensor) -> Tensor:
    """||W_k||_2 per filter, (K,), in float32 (float64 for float64) for filters of 1e-30 to 1e18 alike."""
    if weight.dtype == torch.float64:
        return torch.linalg.vector_norm(weight.flatten(1), dim=1)
    rows = weight.flatten(1).float()
    length = rows.shape[1]
    chunk = next((size for size in range(min(_NORM_CHUNK, length), 31, -1) if length % size == 0), 0)
    if chunk == 0:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).float()
    partial = torch.linalg.vector_norm(rows.unflatten(1, (-1, chunk)), dim=2)
    return torch.linalg.vector_norm(partial, dim=1, dtype=torch.float64).float()


def diagonal(weight: Tensor, groups: int) -> Tensor:
    """View of the entries that the identity touches: (groups, min(K, C) / groups), the window's centre tap."""
    filters, channels, *window = weight.shape
    centre = weight.unflatten(0, (groups, filters // groups))
    for size in window:
        centre = centre.select(3, size // 2)
    return centre.diagonal(dim1=1, dim2=2)


def identity_rows(per_filter: Tensor, filters: int, channels: int, groups: int) -> Tensor:
    """alpha, (K,) or (1,), as (groups, min(K, C) / groups): the entries that have an identity term.

    ``channels`` is C / groups, as in the weight's shape.
    """
    per_group = filters // groups
    return per_filter.expand(filters).unflatten(0, (groups, per_group))[:, : min(per_group, channels)]


def _filters_first(per_filter: Tensor, dim: int) -> Tensor:
    return per_filter.view((-1,) + (1,) * (dim - 1))


class _DiracWeight(torch.autograd.Function):
    """Closed-form backward of the weight preparation; saves W, alpha, beta and the K norms."""

    @staticmethod
    def forward(weight, alpha, beta, eps, identity, dtype, groups):
        norm = row_norms(weight)
        scale = _filters_first(beta.to(norm.dtype) / norm.clamp_min(eps), weight.dim())
        prepared = weight.to(norm.dtype) * scale
        if identity:
            entries = diagonal(prepared, groups)
            entries += identity_rows(alpha, weight.shape[0], weight.shape[1], groups)
        return prepared.to(dtype), norm

    @staticmethod
    def setup_context(ctx, inputs, output):
        weight, alpha, beta, ctx.eps, ctx.identity, _, ctx.groups = inputs
        ctx.save_for_backward(weight, alpha, beta, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, grad, _):
        weight, alpha, beta, norm = ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward: let torch see every step, the norm's too
            norm = row_norms(weight)
        gradients = dirac_weight_backward(
            grad, weight, alpha, beta, norm, eps=ctx.eps, identity=ctx.identity, groups=ctx.groups
        )
        return *gradients, None, None, None, None


def dirac_weight_backward(
    grad: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    norm: Tensor,
    *,
    eps: float,
    identity: bool,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dW, dalpha, dbeta) from G = dL/dWhat.

    dalpha_k = G[k, k, centre];  dbeta_k = <G_k, u_k>;  dW_k = beta_k / n_k * (G_k - <G_k, u_k> u_k), and
    beta_k / eps * G_k where ||W_k|| < eps.
    """
    clamped = norm < eps
    length = torch.where(clamped, eps, norm)
    grad_wide, wide = grad.to(norm.dtype), weight.to(norm.dtype)
    dot = torch.linalg.vecdot(grad_wide.flatten(1), (wide / _filters_first(length, weight.dim())).flatten(1))
    scale = beta.to(norm.dtype) / length
    along = torch.where(clamped, torch.zeros_like(dot), dot / length)
    dweight = _filters_first(scale, weight.dim()) * (grad_wide - _filters_first(along, weight.dim()) * wide)
    dbeta = dot if beta.shape[0] == dot.shape[0] else dot.sum(0, keepdim=True)
    dalpha = torch.zeros_like(alpha, dtype=norm.dtype)
    if identity:
        entries = diagonal(grad_wide, groups)
        if alpha.shape[0] == 1:
            dalpha = entries.sum().view(1)
        else:
            padding = alpha.shape[0] // groups - entries.shape[1]
            dalpha = F.pad(entries, (0, padding)).flatten()
    return dweight.to(weight.dtype), dalpha.to(alpha.dtype), dbeta.to(beta.dtype)


def dirac_weight(
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    eps: float,
    identity: bool,
    dtype: torch.dtype,
    groups: int,
) -> Tensor:
    """diag(alpha) * I + diag(beta) * W / max(||W_k||, eps), rounded once, to ``dtype``."""
    return _DiracWeight.apply(weight, alpha, beta, eps, identity, dtype, groups)[0]


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

    The identity term is added in float32 and the sum rounded once more where the dtype is narrower.
    """
    top, bottom, left, right = problem.padding
    if (top, left) == (bottom, right):
        padded, padding = image, (top, left)
    else:
        padded, padding = F.pad(image, (left, right, top, bottom)), (0, 0)
    output = F.conv2d(padded, weight, bias, problem.stride, padding, problem.dilation, problem.groups)
    if alpha is not None:
        groups, per_group = problem.groups, problem.identity_per_group
        identity = centre_tap(image, problem).unflatten(1, (groups, -1))[:, :, :per_group]
        scale = identity_rows(alpha, problem.K, problem.C // groups, groups)
        term = (identity * scale.view(1, groups, per_group, 1, 1)).to(output.dtype)
        rest = problem.K // groups - per_group
        output = output + F.pad(term, (0, 0, 0, 0, 0, rest)).flatten(1, 2)
    return output.relu() if relu else output
