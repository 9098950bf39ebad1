"""When eager code may skip torch's dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the tensors are ordinary ones and nothing is tracing: the dispatcher has nothing to add."""
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    for tensor in tensors:  # noqa: SIM110 -- the generator of all() costs as much as the rest
        if tensor is not None and type(tensor) not in _PLAIN:
            return False
    return True
