"""What torch is doing around a call: tracing, transforming, casting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

PLAIN = (Tensor, torch.nn.Parameter)
_tracing_state = torch._C._get_tracing_state
_function_modes = torch._C._len_torch_function_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack


def is_transformed() -> bool:
    """Whether vmap, torch.func.grad, jvp or forward-mode differentiation is at work."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_observed() -> bool:
    """Whether somebody traces, transforms or intercepts what torch does: the dispatcher must see every operation, and
    nothing may be remembered of it, or done as remembered."""
    return (
        torch.compiler.is_compiling()
        or _tracing_state() is not None
        or _function_modes() > 0
        or _dispatch_modes() > 0
        or _transforms() is not None
        or forward_ad._current_level >= 0
    )


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the tensors are ordinary ones and nothing is tracing: the dispatcher has nothing to add."""
    if torch._C._len_torch_dispatch_stack() or is_transformed():
        return False
    for tensor in tensors:  # noqa: SIM110 -- the generator of all() costs as much as the rest
        if tensor is not None and (type(tensor) not in PLAIN or tensor.is_neg()):
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
