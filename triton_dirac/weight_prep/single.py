"""Weight preparation of one layer: normalise every filter, scale it, add the identity; forward and backward.

    What_k   = alpha_k * I_k + beta_k * u_k             u_k = W_k / n_k,  n_k = max(||W_k||_2, eps)
    dalpha_k = G_k at the identity's place               G = dL/dWhat;  0 for filters without an identity term
    dbeta_k  = <G_k, u_k>
    dW_k     = beta_k / n_k * (G_k - <G_k, u_k> u_k)      where ||W_k|| < eps: beta_k / eps * G_k

One pass each: forward reads W and writes What (and K norms), backward reads G and W and writes dW. Cast and
change of layout (OIHW, OHWI) happen in the same pass. Sums are float32, float64 for float64 weights.
Source: DiracNets, arXiv 1706.00388; the identity's place is torch.nn.init.dirac_'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.plan import Plan
from triton_dirac.weight_prep.rows import backward_rows, prepare_rows

# Warps and tile depend on the row alone and nothing is contracted, so that a row is summed in the same order
# alone and among other layers. change_layout needs more than one warp.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
PROGRAM_ELEMENTS = 4096  # elements of a program, 16 a thread: short rows are taken several at once
LEAST_BLOCK = 32  # columns; bounds the rows of a program, of which each thread keeps alpha, beta, norm, ...
# Longest row that is kept in registers, 32 elements a thread, of 32 bits and of 64 (backward keeps two such
# rows). Longer rows are read a second time.
LONGEST_ROW = {4: 8192, 8: 4096}


@triton.jit
def weight_prep_kernel(
    weight_ptr, alpha_ptr, beta_ptr, out_ptr, norm_ptr,
    filters, channels, taps, centre, per_group,
    EPS: tl.constexpr, IDENTITY: tl.constexpr,
    ALPHA_STEP: tl.constexpr, BETA_STEP: tl.constexpr, WEIGHT_LAST: tl.constexpr, OUT_LAST: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """Program i prepares the rows from i * ROWS on; see ``prepare_rows``."""
    prepare_rows(
        weight_ptr, alpha_ptr, beta_ptr, out_ptr, norm_ptr,
        tl.program_id(0) * ROWS, filters, channels, taps, centre, per_group,
        EPS, IDENTITY, ALPHA_STEP, BETA_STEP, WEIGHT_LAST, OUT_LAST, ALIGN, ROWS, BLOCK, LOOP,
    )  # fmt: skip


@triton.jit
def weight_prep_backward_kernel(
    grad_ptr, weight_ptr, beta_ptr, norm_ptr, dweight_ptr, dalpha_ptr, dbeta_ptr,
    filters, channels, taps, centre, per_group,
    EPS: tl.constexpr, IDENTITY: tl.constexpr,
    BETA_STEP: tl.constexpr, WEIGHT_LAST: tl.constexpr, GRAD_LAST: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """Program i takes the rows from i * ROWS on; see ``backward_rows``."""
    backward_rows(
        grad_ptr, weight_ptr, beta_ptr, norm_ptr, dweight_ptr, dalpha_ptr, dbeta_ptr,
        tl.program_id(0) * ROWS, filters, channels, taps, centre, per_group,
        EPS, IDENTITY, BETA_STEP, WEIGHT_LAST, GRAD_LAST, ALIGN, ROWS, BLOCK, LOOP,
    )  # fmt: skip


@dataclass(frozen=True)
class Filters:
    """A filter bank (K, C / groups, *window) as rows, and where the identity stands in them."""

    filters: int
    channels: int
    taps: int
    centre: int  # tap of the window's centre
    per_group: int  # filters of a group

    @classmethod
    def of(cls, shape: tuple[int, ...], groups: int) -> Filters:
        filters, channels, *window = shape
        centre = 0
        for size in window:
            centre = centre * size + size // 2
        return cls(filters, channels, math.prod(window), centre, filters // groups)

    @property
    def length(self) -> int:
        return self.channels * self.taps


@dataclass(frozen=True)
class RowTile:
    """How rows are cut into programs: ROWS rows of BLOCK padded columns, or LOOP over one long row."""

    rows: int
    block: int
    loop: bool
    align: int  # a power of two, up to 16, that divides the row length

    @classmethod
    def of(cls, length: int, itemsize: int) -> RowTile:
        """The tile for rows of ``length`` elements whose weights have ``itemsize`` bytes."""
        longest = LONGEST_ROW[max(4, itemsize)]
        align = math.gcd(length, 16)
        if length > longest:
            return cls(1, longest, True, align)
        block = max(LEAST_BLOCK, triton.next_power_of_2(length))
        return cls(max(1, PROGRAM_ELEMENTS // block), block, False, align)

    @property
    def constexprs(self) -> dict[str, Any]:
        return {"ALIGN": self.align, "ROWS": self.rows, "BLOCK": self.block, "LOOP": self.loop}


def is_channels_last(tensor: Tensor) -> bool:
    """True for dense (K, *window, C) memory. A tensor dense in both layouts counts as contiguous."""
    return not tensor.is_contiguous() and tensor.movedim(1, -1).is_contiguous()


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself where it is dense in either layout, else a contiguous copy."""
    return tensor if tensor.is_contiguous() or is_channels_last(tensor) else tensor.contiguous()


def empty_filters(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, device: Any) -> Tensor:
    """An empty filter bank of either layout, for windows of any number of dimensions."""
    if not channels_last:
        return torch.empty(shape, dtype=dtype, device=device)
    strides, step = [0] * len(shape), 1
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        strides[dim] = step
        step *= shape[dim]
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)  # no view: it may be written to in place


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of norms and sums: float32, float64 for float64 weights."""
    return torch.promote_types(dtype, torch.float32)


def plan_weight_prep(
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    out: Tensor,
    norm: Tensor,
    *,
    eps: float = 1e-12,
    identity: bool = True,
    groups: int = 1,
) -> list[Launch]:
    """The launch of ``weight_prep`` on given, dense tensors; allocates nothing, takes meta tensors too."""
    filters = Filters.of(tuple(weight.shape), groups)
    tile = RowTile.of(filters.length, weight.element_size())
    constexprs = {
        "EPS": eps,
        "IDENTITY": identity,
        "ALPHA_STEP": int(alpha.numel() > 1),
        "BETA_STEP": int(beta.numel() > 1),
        "WEIGHT_LAST": is_channels_last(weight),
        "OUT_LAST": is_channels_last(out),
        **tile.constexprs,
    }
    tensors = {"weight_ptr": weight, "alpha_ptr": alpha, "beta_ptr": beta, "out_ptr": out, "norm_ptr": norm}
    return [_launch(weight_prep_kernel, tensors, filters, tile, constexprs)]


def plan_weight_prep_backward(
    grad: Tensor,
    weight: Tensor,
    beta: Tensor,
    norm: Tensor,
    dweight: Tensor,
    dalpha: Tensor,
    dbeta: Tensor,
    *,
    eps: float = 1e-12,
    identity: bool = True,
    groups: int = 1,
) -> list[Launch]:
    """The launch of ``weight_prep_backward``; dalpha and dbeta have one element per filter."""
    filters = Filters.of(tuple(weight.shape), groups)
    tile = RowTile.of(filters.length, weight.element_size())
    constexprs = {
        "EPS": eps,
        "IDENTITY": identity,
        "BETA_STEP": int(beta.numel() > 1),
        "WEIGHT_LAST": is_channels_last(weight),
        "GRAD_LAST": is_channels_last(grad),
        **tile.constexprs,
    }
    tensors = {
        "grad_ptr": grad,
        "weight_ptr": weight,
        "beta_ptr": beta,
        "norm_ptr": norm,
        "dweight_ptr": dweight,
        "dalpha_ptr": dalpha,
        "dbeta_ptr": dbeta,
    }
    return [_launch(weight_prep_backward_kernel, tensors, filters, tile, constexprs)]


def _launch(
    kernel: Any, tensors: dict[str, Tensor], filters: Filters, tile: RowTile, constexprs: dict[str, Any]
) -> Launch:
    grid = (triton.cdiv(filters.filters, tile.rows),)
    return Launch(kernel, grid, {**tensors, **vars(filters)}, constexprs, OPTIONS)


def weight_prep(
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    eps: float = 1e-12,
    identity: bool = True,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    groups: int = 1,
    steps: Plan | None = None,
) -> tuple[Tensor, Tensor]:
    """(What, norm): What as ``reference.dirac_weight`` has it, norm = ||W_k||_2 unclamped, for the backward.

    weight: (K, C / groups, *window), any layout. alpha, beta: (K,) or (1,). What has weight's shape,
    ``dtype`` (weight's if None) and the layout OIHW, or OHWI for ``channels_last``. norm: (K,) float32,
    float64 for float64 weights. ``identity=False`` leaves the identity term out (alpha is then not read).
    """
    steps = steps or Plan()
    weight = steps.do(dense, weight)
    out = steps.new(empty_filters(tuple(weight.shape), channels_last, dtype or weight.dtype, weight.device))
    norm = steps.new(torch.empty(weight.shape[0], dtype=norm_dtype(weight.dtype), device=weight.device))
    alpha, beta = steps.do(Tensor.contiguous, alpha), steps.do(Tensor.contiguous, beta)
    for launch in plan_weight_prep(weight, alpha, beta, out, norm, eps=eps, identity=identity, groups=groups):
        steps.launch(launch)
    return out, norm


def weight_prep_backward(
    grad: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: Tensor,
    norm: Tensor,
    *,
    eps: float = 1e-12,
    identity: bool = True,
    groups: int = 1,
    steps: Plan | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dweight, dalpha, dbeta) for grad = dL/dWhat, any float dtype and layout; norm is ``weight_prep``'s.

    dweight has weight's dtype and layout. dalpha, dbeta have alpha's and beta's shape and dtype; for shape
    (1,) the filters' gradients are summed in norm's dtype. With ``identity=False`` dalpha is 0; in the split
    form, where the convolution adds the identity, keep ``identity=True``: grad is that of What all the same.
    """
    steps = steps or Plan()
    grad, weight, beta = steps.do(dense, grad), steps.do(dense, weight), steps.do(Tensor.contiguous, beta)
    dweight = steps.new(torch.empty_like(weight))
    dalpha, dbeta = (
        steps.new(norm.new_empty(norm.shape, dtype=p.dtype if p.numel() == norm.numel() else norm.dtype))
        for p in (alpha, beta)
    )
    for launch in plan_weight_prep_backward(
        grad, weight, beta, norm, dweight, dalpha, dbeta, eps=eps, identity=identity, groups=groups
    ):
        steps.launch(launch)
    return dweight, steps.do(shared_sum, dalpha, alpha), steps.do(shared_sum, dbeta, beta)


def shared_sum(per_filter: Tensor, parameter: Tensor) -> Tensor:
    """The gradient of alpha or beta from its filters' gradients: their sum where one value serves all."""
    if parameter.numel() == per_filter.numel():
        return per_filter
    return per_filter.sum(0, keepdim=True).to(parameter.dtype)


def prep_bytes(shape: tuple[int, ...], in_dtype: torch.dtype, out_dtype: torch.dtype) -> int:
    """Least bytes of the forward: W read once, What written once."""
    return math.prod(shape) * (in_dtype.itemsize + out_dtype.itemsize)


def prep_backward_bytes(shape: tuple[int, ...], weight_dtype: torch.dtype, grad_dtype: torch.dtype) -> int:
    """Least bytes of the backward: G and W read once, dW written once."""
    return math.prod(shape) * (2 * weight_dtype.itemsize + grad_dtype.itemsize)


def prep_flops(shape: tuple[int, ...]) -> int:
    """Forward: a square, a sum, a division and a product for each weight."""
    return 4 * math.prod(shape)


def prep_backward_flops(shape: tuple[int, ...]) -> int:
    """Backward: a division, a product and a sum; then a product, a difference, a division and a product."""
    return 7 * math.prod(shape)
