"""The "torch" backend of the weight preparation: in torch operations, for CPUs, float64 and everything Triton lacks.

Differentiable any number of times. Unlike ``reference``, it saves no more than the norms: its backward is the closed
form (DiracNets, arXiv 1706.00388). On a CPU ``cpu`` is quicker still.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_dirac import reference
from triton_dirac.identity_term import centred, diagonal, identity_rows, with_identity
from triton_dirac.runtime.tracing import is_traced, is_transformed

# Squares of 1e18, this many of them, still fit float32; longer sums are finished in float64.
_NORM_CHUNK = 256
_LEAST = 1e-18  # what squares of smaller numbers lack in float32 shows in their norm


def row_norms(weight: Tensor, eps: float = 0.0) -> Tensor:
    """||W_k||_2 per filter, (K,), in float32 (float64 for float64), right from ``eps`` on up to filters of 1e18."""
    if weight.dtype == torch.float64:
        return torch.linalg.vector_norm(weight.flatten(1), dim=1)
    rows = weight.flatten(1).float()
    length = rows.shape[1]
    chunk = next((size for size in range(min(_NORM_CHUNK, length), 31, -1) if length % size == 0), 0)
    if chunk == 0 or eps < _LEAST:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).float()
    partial = torch.linalg.vector_norm(torch.unflatten(rows, 1, (-1, chunk)), dim=2)
    return torch.linalg.vector_norm(partial, dim=1, dtype=torch.float64).float()


def _filters_first(per_filter: Tensor, dim: int) -> Tensor:
    return per_filter.view((-1,) + (1,) * (dim - 1))


def dirac_weight_forward(
    weight: Tensor, alpha: Tensor, beta: Tensor, *, eps: float, identity: bool, groups: int
) -> tuple[Tensor, Tensor]:
    """(What, norms) in the norms' dtype, step by step."""
    norm = row_norms(weight, eps)
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
            norm = row_norms(weight, ctx.eps)
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
    if torch.compiler.is_exporting():
        return _for_export(weight, alpha, beta, eps, identity, groups).to(dtype)
    if is_transformed() or is_traced():  # each operation in its place, for rules of every kind
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return reference.dirac_weight(wide, alpha, beta, eps=eps, identity=identity, groups=groups).to(dtype)
    return _DiracWeight.apply(weight, alpha, beta, eps, identity, dtype, groups)


def _for_export(weight: Tensor, alpha: Tensor, beta: Tensor, eps: float, identity: bool, groups: int) -> Tensor:
    """What in float32 at least, in operations that ONNX has: no writing into views, and no loop to be unrolled."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scaled = reference.dirac_weight(wide, alpha, beta, eps=eps, identity=False)
    if not identity:
        return scaled
    filters, channels, *window = weight.shape
    matrix = torch.eye(filters // groups, channels, dtype=wide.dtype, device=wide.device).repeat(groups, 1)
    return with_identity(scaled, alpha, centred(matrix, window))
