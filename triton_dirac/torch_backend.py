"""The "torch" backend: the same functions in torch operations, for CPUs, float64 and everything Triton lacks.

Differentiable any number of times. Unlike ``reference``, the weight preparation saves no more than the norms: its
backward is the closed form (DiracNets, arXiv 1706.00388). On a CPU ``cpu_prep`` is quicker still.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from triton_dirac import reference
from triton_dirac.problem import ConvProblem
from triton_dirac.tracing import is_transformed

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
    filters, _, *window = weight.shape
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


def dirac_weight_forward(
    weight: Tensor, alpha: Tensor, beta: Tensor, *, eps: float, identity: bool, groups: int
) -> tuple[Tensor, Tensor]:
    """(What, norms) in the norms' dtype, step by step."""
    norm = row_norms(weight)
    scale = _filters_first(beta.to(norm.dtype) / norm.clamp_min(eps), weight.dim())
    prepared = weight.to(norm.dtype) * scale
    if identity:
        diagonal(prepared, groups).add_(identity_rows(alpha, weight.shape[0], weight.shape[1], groups))
    return prepared, norm


class _DiracWeight(torch.autograd.Function):
    """Closed-form backward of the weight preparation; saves W, alpha, beta and the K norms."""

    @staticmethod
    def forward(ctx, weight, alpha, beta, eps, identity, dtype, groups):
        prepared, norm = dirac_weight_forward(weight, alpha, beta, eps=eps, identity=identity, groups=groups)
        ctx.eps, ctx.identity, ctx.groups = eps, identity, groups
        ctx.save_for_backward(weight, alpha, beta, norm)
        return prepared.to(dtype)

    @staticmethod
    def backward(ctx, grad):
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
    grad = grad.to(norm.dtype)
    clamped = norm < eps
    length = torch.where(clamped, eps, norm)
    wide = weight.to(norm.dtype)
    dot = torch.linalg.vecdot(grad.flatten(1), (wide / _filters_first(length, weight.dim())).flatten(1))
    scale = beta.to(norm.dtype) / length
    along = torch.where(clamped, torch.zeros_like(dot), dot / length)
    dweight = _filters_first(scale, weight.dim()) * (grad - _filters_first(along, weight.dim()) * wide)
    dbeta = dot if beta.shape[0] == dot.shape[0] else dot.sum(0, keepdim=True)
    if not identity:
        dalpha = torch.zeros_like(alpha)
    else:
        entries = diagonal(grad, groups)
        if alpha.shape[0] == 1:
            dalpha = entries.sum().view(1)
        else:
            dalpha = F.pad(entries, (0, alpha.shape[0] // groups - entries.shape[-1])).flatten()
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
    if is_transformed():  # each operation in its place, for rules of every kind
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return reference.dirac_weight(wide, alpha, beta, eps=eps, identity=identity, groups=groups).to(dtype)
    return _DiracWeight.apply(weight, alpha, beta, eps, identity, dtype, groups)


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
    centre = centre_tap(image, problem).unflatten(1, (groups, -1))[:, :, :per_group]
    scale = identity_rows(alpha, problem.K, problem.C // groups, groups)
    term = centre * scale.view(1, groups, per_group, 1, 1)
    return F.pad(term, (0, 0, 0, 0, 0, problem.K // groups - per_group)).flatten(1, 2)
