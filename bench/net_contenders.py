"""The implementations that are compared on all Dirac layers of a net, prepared in one call.

Prepared weights have the layout that convolutions want: channels-last on a GPU, torch's own on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import triton_dirac
from bench.compiled import compiled_for_all_sizes
from bench.contenders import delta_of, eager_weight, weight_norm_weight
from bench.suite import GRAPH, Build, Contender, Results, Work
from triton_dirac.weight_prep.net_node import LayerTensors

Prepare = Callable[[Sequence[LayerTensors]], Sequence[Tensor]]


def layout_on(device: torch.device) -> torch.memory_format:
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def layers_of(work: Work) -> list[LayerTensors]:
    return list(zip(*(work.inputs[name] for name in ("weight", "alpha", "beta")), strict=True))


def call_of(prepare: Prepare, work: Work) -> Callable[[], Results]:
    """A call that yields the prepared weights, and with a backward those of weights, alphas and betas after them."""
    if work.direction == "forward":
        layers = layers_of(work)

        def forward() -> Results:
            with torch.no_grad():
                return (tuple(prepare(layers)),)

        return forward
    layers = [tuple(tensor.detach().requires_grad_() for tensor in layer) for layer in layers_of(work)]  # type: ignore
    leaves = [tensor for kind in zip(*layers, strict=True) for tensor in kind]
    grads, count = work.inputs["grad"], len(layers)

    def forward_backward() -> Results:
        outputs = tuple(prepare(layers))
        found = torch.autograd.grad(outputs, leaves, grads)
        return outputs, found[:count], found[count : 2 * count], found[2 * count :]

    return forward_backward


def _build(prepare: Callable[[Work], Prepare]) -> Build:
    return lambda work: call_of(prepare(work), work)


@dataclass(frozen=True)
class Replay:
    """Holds the call that was captured: a graph has the addresses of its tensors and keeps none of them alive."""

    graph: torch.cuda.CUDAGraph
    call: Callable[[], Results]
    results: Results

    def __call__(self) -> Results:
        self.graph.replay()
        return self.results


def replayed(build: Build) -> Build:
    """``build``'s call captured in a CUDA graph: what remains of it when launches cost nothing."""

    def build_graph(work: Work) -> Callable[[], Results]:
        call = build(work)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # whatever is compiled or allocated at first use must be so before capture
                call()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()

        return Replay(graph, call, results)

    return build_graph


def graphed(contender: Contender) -> Contender:
    """The same by another name, replayed."""
    return replace(contender, name=contender.name + GRAPH, build=replayed(contender.build), graph=True)


def normalize_weight(
    weight: Tensor, alpha: Tensor, beta: Tensor, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    """beta * F.normalize(W), then alpha added to the diagonal alone."""
    prepared = F.normalize(weight.flatten(1)).view_as(weight) * beta.view(-1, 1, 1, 1)
    _, _, height, width = weight.shape
    diagonal = prepared[:, :, height // 2, width // 2].diagonal()
    diagonal.add_(alpha[: diagonal.shape[0]])
    return prepared.to(dtype, memory_format=layout)


def _with_deltas(chain: Callable[..., Tensor], work: Work) -> Prepare:
    deltas = [delta_of(tuple(weight.shape)).to(work.device) for weight in work.inputs["weight"]]
    layout = layout_on(work.device)
    return lambda layers: [
        chain(*layer, delta, work.storage, layout) for layer, delta in zip(layers, deltas, strict=True)
    ]


def _compiled(work: Work) -> Prepare:
    """One graph for sizes of any value: a net has up to 32 layers."""
    return _with_deltas(compiled_for_all_sizes(eager_weight, work.storage, layout_on(work.device), work.device), work)


def _without_deltas(chain: Callable[..., Tensor]) -> Callable[[Work], Prepare]:
    def prepare(work: Work) -> Prepare:
        layout = layout_on(work.device)
        return lambda layers: [chain(*layer, work.storage, layout) for layer in layers]

    return prepare


def _options(work: Work, backend: str) -> dict[str, Any]:
    return {"dtype": work.storage, "memory_format": layout_on(work.device), "backend": backend}


def _per_layer(work: Work) -> Prepare:
    options = _options(work, "triton")
    return lambda layers: [triton_dirac.dirac_weight(*layer, **options) for layer in layers]


def _one_launch(backend: str) -> Callable[[Work], Prepare]:
    return lambda work: partial(triton_dirac.dirac_weights, **_options(work, backend))


PLAIN = (
    Contender("reference", "eager", _build(partial(_with_deltas, eager_weight))),
    Contender("normalize", "eager", _build(_without_deltas(normalize_weight))),
    Contender("weight_norm", "eager", _build(_without_deltas(weight_norm_weight))),
    Contender("compile", "compile", _build(_compiled)),
    Contender("triton", "triton", _build(_per_layer)),
    Contender("triton-one-launch", "triton", _build(_one_launch("triton"))),
    Contender("auto", "eager", _build(_one_launch("auto"))),
)
GRAPHED = tuple(graphed(known) for known in PLAIN if known.name != "auto")
NET_WEIGHT_PREP = (*PLAIN, *GRAPHED)
