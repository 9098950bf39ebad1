"""Tensors without content, and tensors that share one's memory, made without torch's dispatcher.

What is called here is what torch.compile's own code calls; torch promises it to nobody. Where it is not there, public
functions do the same, at twice the host time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo import guards

Sizes = Sequence[int]


def _empty(shape: Sizes, strides: Sizes, dtype: torch.dtype, *, device: str) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _sharing(tensor: Tensor, shape: Sizes, strides: Sizes, offset: int) -> Tensor:
    """A tensor in the memory of ``tensor``, so many elements behind its first; no view for autograd."""
    start = tensor.storage_offset() + offset
    return tensor.new_empty(0).set_(tensor.untyped_storage(), start, shape, strides)


# By type of device, (shape, strides, dtype) -> a tensor on the current one.
EMPTY: dict[str, Callable[[Sizes, Sizes, torch.dtype], Tensor]] = {
    device: getattr(guards, f"_empty_strided_{device}", partial(_empty, device=device)) for device in ("cpu", "cuda")
}
sharing: Any = getattr(guards, "_reinterpret_tensor", _sharing)
