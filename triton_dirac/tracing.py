"""When eager code may skip torch's dispatcher, and when a transform of torch.func must see every operation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter)


def is_transformed() -> bool:
    """Whether vmap, torch.func.grad, jvp or forward-mode differentiation is at work."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the tensors are ordinary ones and nothing is tracing: the dispatcher has nothing to add."""
    if torch._C._len_torch_dispatch_stack() or is_transformed():
        return False
    for tensor in tensors:  # noqa: SIM110 -- the generator of all() costs as much as the rest
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg()):
            return False
    return True
