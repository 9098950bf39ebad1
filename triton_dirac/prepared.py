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


def _prepare(layers: Sequence[_DiracConv]) -> None:
    """One launch for each device, backend and form among the layers: as a rule, one."""
    batches = defaultdict(list)
    for layer in layers:
        layer.prepared = None
        if layer.identity == "dirac" and has_plain_parameters(layer):
            dtype = autocast_dtype(layer.weight) or layer.weight.dtype
            on_triton = use_triton(layer.backend, dtype, layer.weight.device)
            split = uses_split(layer.form, dtype, on_triton and layer.dims < 3)  # torch convolves in 3-D
            batches[layer.weight.device, dtype, on_triton, split].append(layer)
    for (_, dtype, on_triton, split), batch in batches.items():
        weights = dirac_weights(
            [(layer.weight, layer.alpha, layer.beta) for layer in batch],
            identity=not split,
            dtype=dtype,
            memory_format=torch.channels_last if on_triton else None,
            groups=[layer.groups for layer in batch],
            backend="triton" if on_triton else "torch",
        )
        for layer, weight in zip(batch, weights, strict=True):
            layer.prepared = Prepared(weight, layer.alpha if split else None, state_of(layer))
