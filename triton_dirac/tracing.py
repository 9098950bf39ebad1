"""When eager code may skip torch's dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the tensors are ordinary ones and nothing is tracing: the dispatcher has nothing to add."""
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)
