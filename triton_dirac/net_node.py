"""What the nodes of autograd's graph have in common that prepare all layers of a net at once, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor, Tensor]  # weight, alpha, beta


def layers_of(tensors: Sequence[Tensor]) -> list[Layer]:
    """Layers from their tensors in a row, as an autograd.Function takes them."""
    return list(zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True))


def prepare_trained_apart(
    layers: Sequence[Layer], prepare: Callable[[list[int], bool], Sequence[Tensor]]
) -> list[Tensor]:
    """The filters of all layers, by ``prepare(indices, whether they are trained)``, called at most twice.

    One node for all would have a frozen layer's filters taken for trained ones.
    """
    wanted = torch.is_grad_enabled()
    trained = [wanted and any(tensor.requires_grad for tensor in layer) for layer in layers]
    results: dict[int, Tensor] = {}
    for state in (True, False):
        indices = [index for index, wants in enumerate(trained) if wants == state]
        if indices:
            results |= zip(indices, prepare(indices, state), strict=True)
    return [results[index] for index in range(len(layers))]


class Kept:
    """A layer's tensors for a backward that may run more than once.

    A node for all layers takes part in every backward that reaches one of them, and reentrant checkpointing runs one
    for each part of the net; what ``save_for_backward`` keeps is freed after the first. These live as long as the
    graph, and a backward too many is not refused. Inputs of the node only: an output would keep itself alive.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)
        self._versions = self._current()

    def unchanged(self) -> tuple[Tensor, ...]:
        """The tensors; RuntimeError if one was written to since."""
        if self._versions != self._current():
            shape = tuple(self.tensors[0].shape)
            raise RuntimeError(
                f"the weight of shape {shape}, its alpha or its beta, needed for gradient computation, has been "
                "modified by an inplace operation between forward and backward"
            )
        return self.tensors

    def _current(self) -> list[int]:
        return [0 if tensor.is_inference() else tensor._version for tensor in self.tensors]
