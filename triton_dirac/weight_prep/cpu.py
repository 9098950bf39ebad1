"""Weight preparation in one pass on a CPU, of one layer or all, by the kernels that torch has for its weight norm.

They read and write everything once, where a norm and a product are two passes over memory. What they lack: they
square in float32, so that rows of 1e19 overflow, and know no eps, so that zero filters give NaN. A layer with such a
row is prepared step by step by ``torch_backend``; there are hardly ever any.

Every call of torch counts here: ten of them take as long as the kernel does for a layer of 32 filters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_dirac.identity_term import identity_rows
from triton_dirac.runtime.tracing import is_plain
from triton_dirac.weight_prep import torch_backend
from triton_dirac.weight_prep.net_node import Kept, LayerTensors, layers_of, prepare_trained_apart, trained_and_frozen

# Norms between which no square underflows or overflows and, in the backward, no <G, W> / n^3 does.
SMALLEST, LARGEST = 1e-12, 1e12


class NetLayout(NamedTuple):
    """What does not change from one preparation of the same layers to the next."""

    layouts: list[_Layout]
    trained: list[int]  # indices of layers of which something asks for a gradient
    frozen: list[int]


def net_of(layers: Sequence[LayerTensors], groups: Sequence[int]) -> NetLayout | None:
    """None unless all weights are float32 filter banks on a CPU, and this is eager code on ordinary tensors."""
    for weight, alpha, beta in layers:
        if weight.dtype is not torch.float32 or not weight.is_cpu or not weight.numel():
            return None
        if not is_plain(weight, alpha, beta):
            return None
    layouts = [_layout(layer[0].shape, layer[0].stride(), group) for layer, group in zip(layers, groups, strict=True)]
    return NetLayout(layouts, *trained_and_frozen(layers))


def dirac_weights(layers: Sequence[LayerTensors], net: NetLayout, *, eps: float, identity: bool) -> list[Tensor]:
    """What of each layer, float32, in its weight's layout. One node of the graph, since each costs 20 us."""

    def prepare(some: Sequence[LayerTensors], layouts: Sequence[_Layout], trained: bool) -> Sequence[Tensor]:
        if not trained:
            return _forward(some, layouts, eps, identity)[0]
        return _DiracWeights.apply(layouts, eps, identity, *[tensor for layer in some for tensor in layer])

    prepared = prepare_trained_apart(layers, net.layouts, net.trained, net.frozen, prepare)
    return [layout.as_weight(dense) for layout, dense in zip(net.layouts, prepared, strict=True)]


class _DiracWeights(torch.autograd.Function):
    """All layers, from their tensors to filters as ``_Layout.dense`` has them; keeps the tensors and the norms."""

    @staticmethod
    def forward(ctx, layouts, eps, identity, *tensors):
        layers = layers_of(tensors)
        prepared, norms, ctx.stepwise = _forward(layers, layouts, eps, identity)
        ctx.layouts, ctx.eps, ctx.identity = layouts, eps, identity
        ctx.kept = None
        if len(layers) == 1:
            ctx.save_for_backward(*tensors, *norms)
        else:
            ctx.kept, ctx.norms = Kept(tensors), norms
        ctx.set_materialize_grads(False)
        return tuple(prepared)

    @staticmethod
    def backward(ctx, *grads):
        gradients: list[Tensor | None] = []
        if ctx.kept:
            needed = [grad is not None for grad in grads for _ in range(3)]
            layers = [
                (*layer, norm) for layer, norm in zip(layers_of(ctx.kept.unchanged(needed)), ctx.norms, strict=True)
            ]
        else:
            layers = [ctx.saved_tensors]
        for index, (grad, layout) in enumerate(zip(grads, ctx.layouts, strict=True)):
            if grad is None:
                gradients += (None, None, None)
                continue
            weight, alpha, beta, norm = layers[index]
            if torch.is_grad_enabled() or index in ctx.stepwise:
                # If a second derivative follows, let torch see every step, the norm's too.
                norm = torch_backend.row_norms(weight, ctx.eps) if torch.is_grad_enabled() else norm.view(-1)
                gradients += torch_backend.dirac_weight_backward(
                    *(layout.as_weight(grad), weight, alpha, beta, norm),
                    eps=ctx.eps,
                    identity=ctx.identity,
                    groups=layout.groups,
                )
            else:
                gradients += _backward(grad.contiguous(), weight, alpha, beta, norm, layout, ctx.identity)
        return None, None, None, *gradients


def _forward(
    layers: Sequence[LayerTensors], layouts: Sequence[_Layout], eps: float, identity: bool
) -> tuple[list[Tensor], list[Tensor], set[int]]:
    """(What of each, dense; norms (K, 1, ..., 1); which layers the kernels do not do right)"""
    outputs, norms = [], []
    for (weight, alpha, beta), layout in zip(layers, layouts, strict=True):
        prepared, norm = torch._weight_norm_interface(layout.dense(weight), layout.per_row(beta), 0)
        if identity:
            layout.entries(prepared).add_(layout.identity_rows(alpha))
        outputs.append(prepared)
        norms.append(norm)
    stepwise = _unfit(norms, eps)
    for index in stepwise:
        layout = layouts[index]
        prepared, norm = torch_backend.dirac_weight_forward(
            *layers[index], eps=eps, identity=identity, groups=layout.groups
        )
        outputs[index], norms[index] = layout.dense(prepared), norm.view(layout.rows)
    return outputs, norms, stepwise


def _unfit(norms: Sequence[Tensor], eps: float) -> set[int]:
    """Layers with a norm that is below eps, extreme or NaN."""
    lowest = max(eps, SMALLEST)

    def fit(some: Tensor) -> bool:
        least, most = some.aminmax()
        return least.item() >= lowest and most.item() <= LARGEST

    together = norms[0] if len(norms) == 1 else torch.cat([norm.view(-1) for norm in norms])
    if fit(together):
        return set()
    return {index for index, norm in enumerate(norms) if not fit(norm)}


def _backward(
    grad: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, norm: Tensor, layout: _Layout, identity: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dW, dalpha, dbeta) from a dense gradient: see ``torch_backend.dirac_weight_backward``."""
    dweight, dbeta = torch.ops.aten._weight_norm_interface_backward.default(
        grad, layout.dense(weight), layout.per_row(beta), norm, 0
    )
    if not identity:
        dalpha = torch.zeros_like(alpha)
    elif alpha.shape[0] == 1:
        dalpha = layout.entries(grad).sum().view(1)
    else:  # a copy also where there is nothing to pad
        dalpha = F.pad(layout.entries(grad), (0, alpha.shape[0] // layout.groups - layout.sizes[-1])).view(-1)
    dbeta = dbeta.view(-1)
    if beta.shape[0] != dbeta.shape[0]:
        dbeta = dbeta.sum(0, keepdim=True)
    dweight = layout.as_weight(dweight)
    if dweight.stride() != weight.stride() and layout.is_dense:  # differ in dimensions of one, on which DDP insists
        dweight = dweight.as_strided(weight.shape, weight.stride())
    return dweight, dalpha.to(alpha.dtype), dbeta.to(beta.dtype)


class _Layout(NamedTuple):
    """How the kernels take a filter bank: as (K, *window, C) where ``last``, else as (K, C, *window); dense."""

    last: bool
    rows: tuple[int, ...]  # (K, 1, ..., 1)
    # Of the entries that the identity touches, in the dense bank: (groups,) min(K, C) / groups of them.
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    first: int
    channels: int  # of a group
    groups: int
    is_dense: bool  # the weight itself, in either order

    def dense(self, tensor: Tensor) -> Tensor:
        return (tensor.movedim(1, -1) if self.last else tensor).contiguous()

    def as_weight(self, dense: Tensor) -> Tensor:
        """As (K, C, *window) again."""
        return dense.movedim(-1, 1) if self.last else dense

    def per_row(self, per_filter: Tensor) -> Tensor:
        """(K,) or (1,) as (K, 1, ..., 1)"""
        if per_filter.shape[0] != self.rows[0]:
            per_filter = per_filter.expand(self.rows[0])
        return per_filter.contiguous().view(self.rows)

    def entries(self, dense: Tensor) -> Tensor:
        """View of what the identity touches: ``identity_term.diagonal`` in one call."""
        return dense.as_strided(self.sizes, self.strides, dense.storage_offset() + self.first)

    def identity_rows(self, alpha: Tensor) -> Tensor:
        """alpha for each of ``entries``."""
        if len(self.sizes) == 1 and alpha.shape[0] in (1, self.sizes[0]):
            return alpha
        return identity_rows(alpha, self.rows[0], self.channels, self.groups).view(self.sizes)


@lru_cache(maxsize=1024)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...], groups: int) -> _Layout:
    filters, channels, *window = shape
    is_last = _is_dense((filters, *window, channels), (strides[0], *strides[2:], strides[1]))
    is_first = _is_dense(shape, strides)
    last = is_last and not is_first
    taps = math.prod(window)
    centre = 0
    for size in window:
        centre = centre * size + size // 2
    channel_step, tap_step = (1, channels) if last else (taps, 1)
    diagonal_step = channels * taps + channel_step
    per_group = filters // groups
    sizes: tuple[int, ...] = (min(per_group, channels),)
    steps: tuple[int, ...] = (diagonal_step,)
    if groups > 1:
        sizes, steps = (groups, *sizes), (per_group * channels * taps, *steps)
    rows = (filters, *(1,) * (len(shape) - 1))
    return _Layout(last, rows, sizes, steps, centre * tap_step, channels, groups, is_first or is_last)


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements lie one after the other in the order of their indices."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
