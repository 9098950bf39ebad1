"""What the nodes of autograd's graph have in common that prepare all layers of a net at once, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

LayerTensors = tuple[Tensor, Tensor, Tensor]  # weight, alpha, beta
Other = TypeVar("Other")  # what goes with a layer: its groups, its layout


def layers_of(tensors: Sequence[Tensor]) -> list[LayerTensors]:
    """Layers from their tensors in a row, as an autograd.Function takes them."""
    return list(zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True))


def trained_and_frozen(layers: Sequence[LayerTensors]) -> tuple[list[int], list[int]]:
    """Indices of the layers of which something asks for a gradient, and of the others."""
    trained = [any(tensor.requires_grad for tensor in layer) for layer in layers]
    return [i for i, wants in enumerate(trained) if wants], [i for i, wants in enumerate(trained) if not wants]


def prepare_trained_apart(
    layers: Sequence[LayerTensors],
    others: Sequence[Other],
    trained: list[int],
    frozen: list[int],
    prepare: Callable[[Sequence[LayerTensors], Sequence[Other], bool], Sequence[Tensor]],
) -> Sequence[Tensor]:
    """The filters of all layers by ``prepare(layers, their others, whether they are trained)``, in two calls at most.

    One node for all would have a frozen layer's filters taken for trained ones.
    """
    if not (trained and torch.is_grad_enabled()):
        return prepare(layers, others, False)
    if not frozen:
        return prepare(layers, others, True)
    results: dict[int, Tensor] = {}
    for indices, wanted in ((trained, True), (frozen, False)):
        some, their = [layers[i] for i in indices], [others[i] for i in indices]
        results |= zip(indices, prepare(some, their, wanted), strict=True)
    return [results[i] for i in range(len(layers))]


class Kept:
    """Layers' tensors in a row for a backward that may run more than once.

    A node for all layers takes part in every backward that reaches one of them, and reentrant checkpointing runs one
    for each part of the net; what ``save_for_backward`` keeps is freed after the first. These live as long as the
    graph, and a backward too many is not refused. Inputs of the node only: an output would keep itself alive.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._versions = versions(tensors)

    def unchanged(self, needed: Sequence[bool]) -> Sequence[Tensor]:
        """The tensors; RuntimeError if one of a layer that is needed was written to since."""
        now = versions(self._tensors)
        if now != self._versions:
            for index in range(len(now)):
                if needed[index // 3] and now[index] != self._versions[index]:
                    name, shape = ("weight", "alpha", "beta")[index % 3], tuple(self._tensors[index].shape)
                    raise RuntimeError(
                        f"the {name} of shape {shape}, needed for gradient computation, has been modified by an "
                        "inplace operation between forward and backward"
                    )
        return self._tensors


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """What tells whether a tensor was written to. Those made in inference mode have none: 0."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
