"""Tensors for a backward that may run more than once.

A node that prepares all layers of a net takes part in every backward that reaches one of them, and reentrant
checkpointing runs one for each part of the net; what ``save_for_backward`` keeps is freed after the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Kept:
    """Inputs of a node, or tensors that only it has. Its outputs are not for here: the two would keep each other."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._versions = [_version(tensor) for tensor in tensors]

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors; RuntimeError if one was changed since."""
        if self._versions != [_version(tensor) for tensor in self._tensors]:
            raise RuntimeError(
                "a weight, alpha or beta needed for gradient computation has been modified by an inplace operation "
                "between forward and backward"
            )
        return self._tensors


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
