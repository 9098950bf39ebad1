"""All Dirac layers of a model prepared in one launch, without changing the model's code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from triton_dirac.functional import dirac_weights, use_triton, uses_split
from triton_dirac.modules import Prepared, _DiracConv, has_plain_parameters, state_of
from triton_dirac.runtime.tracing import autocast_dtype


@contextmanager
def prepared(model: nn.Module) -> Iterator[nn.Module]:
    """Within it, every call of ``model`` first prepares the weights of all its Dirac layers in one launch.

    Their gradients are one launch too, when the last layer's has arrived. Numbers are those of the layers'
    own preparation.

    >>> with prepared(model):
    ...     loss = model(images).square().mean()
    ...     loss.backward()

    Weights are prepared anew at each call of ``model`` (the module given here, or one that contains it), in
    the autocast dtype or else the parameters'. A layer whose input has another dtype, whose parameters are
    sharded at that time (FSDP2 shards layer by layer) or whose identity is version 1's prepares its own. Keep
    backward inside the block if parts are recomputed there (gradient checkpointing). One thread at a time.

    Raises:
        ValueError: ``model`` has no Dirac convolution.
    """
    layers = [module for module in model.modules() if isinstance(module, _DiracConv)]
    if not layers:
        raise ValueError(f"model must contain Dirac convolutions, got {type(model).__name__} without any")
    handle = model.register_forward_pre_hook(_Hook(model))
    try:
        yield model
    finally:
        handle.remove()
        for layer in layers:
            layer.prepared = None


class _Hook:
    """Prepares before ``model`` runs. Copies, of a model that is copied or saved in the block, do nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model: nn.Module | None = model

    def __call__(self, module: nn.Module, inputs: object) -> None:
        if module is self.model:
            _prepare([layer for layer in module.modules() if isinstance(layer, _DiracConv)])

    def __getstate__(self) -> dict[str, None]:
        return {"model": None}


class _Batch(NamedTuple):
    """Layers that are prepared in one launch: of one device, backend and form."""

    layers: list[int]  # indices
    on_triton: bool
    split: bool
    dtype: torch.dtype
    groups: tuple[int, ...]

    def prepare(self, tensors: Sequence[Parameters]) -> tuple[list[Tensor], list[Tensor | None]]:
        """(filters, the identity term's alpha where that is not in them)"""
        alphas: list[Tensor | None] = [alpha if self.split else None for _, alpha, _ in tensors]
        if self.on_triton and may_batch(tensors):
            net = Net(1e-12, not self.split, self.dtype, True, self.groups, alpha_apart=self.split)
            # Its node gives alpha's gradient from that of the filters, which a convolution would work out once more.
            return weight_preps(tensors, net), [None if alpha is None else alpha.detach() for alpha in alphas]
        layout = {"memory_format": torch.channels_last if self.on_triton else None, "groups": self.groups}
        backend = "triton" if self.on_triton else "torch"
        return dirac_weights(tensors, identity=not self.split, dtype=self.dtype, backend=backend, **layout), alphas


_known: Remembered[list[_Batch]] = Remembered()


def _prepare(layers: Sequence[_DiracConv]) -> None:
    tensors = [parameters_of(layer) for layer in layers]
    flat = [tensor for three in tensors for tensor in three]
    ways = tuple([(layer.form, layer.backend, layer.groups, layer.identity, layer.dims) for layer in layers])
    key = ways, autocast_dtype(flat[0])
    batches = None if is_observed() else _known.find(key, flat)
    if batches is None:
        batches = _batches(layers, tensors)
        if is_plain(*flat) and not is_observed():
            _known.keep(key, flat, batches)
    for batch in batches:
        some = [tensors[i] for i in batch.layers]
        for i, *ready in zip(batch.layers, *batch.prepare(some), strict=True):
            set_prepared(layers[i], Prepared(*ready, state_of(tensors[i])))


def _batches(layers: Sequence[_DiracConv], tensors: Sequence[Parameters]) -> list[_Batch]:
    """As a rule, one."""
    batches = defaultdict(list)
    for i, (layer, three) in enumerate(zip(layers, tensors, strict=True)):
        layer.prepared = None
        if layer.identity == "dirac" and all(type(tensor) in (Tensor, nn.Parameter) for tensor in three):
            weight = three[0]
            dtype = autocast_dtype(weight) or weight.dtype
            on_triton = use_triton(layer.backend, dtype, weight.device)
            split = uses_split(layer.form, dtype, on_triton and layer.dims < 3)  # torch convolves in 3-D
            batches[weight.device, on_triton, split, dtype].append(i)
    return [_Batch(some, *way[1:], tuple(layers[i].groups for i in some)) for way, some in batches.items()]
