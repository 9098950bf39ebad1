"""What torch is doing around a call: tracing, transforming, casting."""

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


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """The dtype to cast to under autocast, None outside it; float64 stays, as in torch."""
    device_type = input.device.type
    if device_type not in ("cuda", "cpu") or input.dtype == torch.float64:
        return None
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)
