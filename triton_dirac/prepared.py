"""All Dirac layers of a model prepared in one launch, without changing the model's code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triton_dirac.checks import check_layer
from triton_dirac.functional import HAS_TRITON, dirac_weights, use_triton, uses_split
from triton_dirac.modules import Prepared, _DiracConv, state_of
from triton_dirac.runtime.signature_cache import SignatureCache
from triton_dirac.runtime.tracing import PLAIN, autocast_dtype, is_observed, is_plain
from triton_dirac.weight_prep.net_node import LayerTensors, trained_and_frozen

if HAS_TRITON:
    from triton_dirac.weight_prep.op import NetSettings, weight_preps

EPS = 1e-12  # the smallest norm that is divided by, as everywhere by default


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
        ValueError: ``model`` has no Dirac convolution; when it is called: a layer's parameters are not on one device,
            or of shapes or types that do not go together. ``layers[i]`` is the i-th of ``model.modules()``.
    """
    layers = _dirac_layers(model)
    if not layers:
        raise ValueError(f"model must contain Dirac convolutions, got {type(model).__name__} without any")
    handle = model.register_forward_pre_hook(_Hook(model, layers))
    try:
        yield model
    finally:
        handle.remove()
        for layer in layers:
            vars(layer)["prepared"] = None  # an attribute set on a module takes torch two microseconds


def _dirac_layers(model: nn.Module) -> list[_DiracConv]:
    """In the order of ``model.modules()``, whose generators in each other take a step of many layers 1 us a layer."""
    layers, waiting, seen = [], [model], set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            if isinstance(module, _DiracConv):
                layers.append(module)
            for child in reversed(module._modules.values()):
                if child is not None:
                    waiting.append(child)
    return layers


class _Hook:
    """Prepares before ``model`` runs. Copies, of a model that is copied or saved in the block, do nothing."""

    def __init__(self, model: nn.Module, layers: list[_DiracConv]) -> None:
        self.model: nn.Module | None = model
        self.layers = layers

    def __call__(self, module: nn.Module, inputs: object) -> None:
        if module is self.model:
            _prepare(self.layers)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": None, "layers": []}


class _Batch(NamedTuple):
    """Layers that are prepared in one launch: of one device, backend and form."""

    layers: list[int]  # indices
    on_triton: bool
    split: bool
    dtype: torch.dtype
    net: NetSettings | None  # how, if on Triton
    trained: list[int]  # indices among ``layers``
    frozen: list[int]
    groups: list[int]

    def prepare(self, layers: Sequence[LayerTensors], plain: bool) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """(filters, the identity term's alpha where that is not in them); ``plain``: nobody looks on."""
        alphas = [alpha if self.split else None for _, alpha, _ in layers]
        if self.on_triton and plain:
            # Its node gives alpha's gradient out of the filters'; every convolution would work it out once more.
            alphas = [alpha if alpha is None else alpha.detach() for alpha in alphas]
            return weight_preps(layers, self.net, self.trained, self.frozen), alphas  # type: ignore[arg-type]
        layout: dict[str, Any] = {"memory_format": torch.channels_last if self.on_triton else None}
        layout |= {"groups": self.groups, "backend": "triton" if self.on_triton else "torch"}
        return dirac_weights(layers, identity=not self.split, dtype=self.dtype, **layout), alphas


_known: SignatureCache[list[_Batch]] = SignatureCache()


def _prepare(layers: Sequence[_DiracConv]) -> None:
    parameters = [layer._tensors()[:3] for layer in layers]
    flat = [*chain.from_iterable(parameters)]
    ways = tuple([(layer.form, layer.backend, layer.groups, layer.identity, layer.dims) for layer in layers])
    key = ways, autocast_dtype(flat[0])
    batches = None if is_observed() else _known.find(key, flat)
    plain = batches is not None or is_plain(*flat)
    if batches is None:
        batches = _batches(layers, parameters)
        if plain:
            _known.keep(key, flat, batches)
    for batch in batches:
        some = [parameters[i] for i in batch.layers]
        for i, three, filters, alpha in zip(batch.layers, some, *batch.prepare(some, plain), strict=True):
            vars(layers[i])["prepared"] = Prepared(filters, alpha, state_of(*three))


def _batches(layers: Sequence[_DiracConv], parameters: Sequence[LayerTensors]) -> list[_Batch]:
    """As a rule, one."""
    batches = defaultdict(list)
    for i, (layer, three) in enumerate(zip(layers, parameters, strict=True)):
        layer.prepared = None
        if layer.identity == "dirac" and all(type(tensor) in PLAIN for tensor in three):
            check_layer(i, three, EPS, layer.groups)
            weight = three[0]
            dtype = autocast_dtype(weight) or weight.dtype
            on_triton = use_triton(layer.backend, dtype, weight.device)
            split = uses_split(layer.form, dtype, on_triton and layer.dims < 3)  # torch convolves in 3-D
            batches[weight.device, on_triton, split, dtype].append(i)
    return [
        _batch(some, [parameters[i] for i in some], [layers[i].groups for i in some], *way)
        for way, some in batches.items()
    ]


def _batch(
    layers: list[int],
    parameters: Sequence[LayerTensors],
    groups: list[int],
    _: object,
    on_triton: bool,
    split: bool,
    dtype: torch.dtype,
) -> _Batch:
    net = NetSettings(EPS, not split, dtype, True, tuple(groups), alpha_apart=split) if on_triton else None
    return _Batch(layers, on_triton, split, dtype, net, *trained_and_frozen(parameters), groups)
