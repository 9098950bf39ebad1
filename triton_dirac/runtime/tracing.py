"""What torch is doing around a call: tracing, transforming, casting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

PLAIN = (Tensor, torch.nn.Parameter)
_tracing_state = torch._C._get_tracing_state
_function_modes = torch._C._len_torch_function_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_mode_at = torch._C._get_function_stack_at
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_transforms = torch._C._functorch.peek_interpreter_stack


def is_transformed() -> bool:
    """Whether vmap, torch.func.grad, jvp or forward-mode differentiation is at work."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether torch.jit.trace is at work."""
    return not torch.compiler.is_compiling() and _tracing_state() is not None


def is_watched() -> bool:
    """Whether someone intercepts what torch does without a trace on tensors or in the thread's dispatch keys."""
    return (
        torch.compiler.is_compiling()
        or (_function_modes() > 0 and not _is_default_device())
        or _dispatch_modes() > 0
        or forward_ad._current_level >= 0
    )


def _is_default_device() -> bool:
    """Whether ``torch.set_default_device`` is all: it tells functions that make tensors where, if nobody else does."""
    return _function_modes() == 1 and type(_function_mode_at(0)) is DeviceContext


def is_observed() -> bool:
    """Whether somebody traces, transforms or intercepts what torch does: the dispatcher must see every operation, and
    nothing may be remembered of it, or done as remembered."""
    return is_watched() or is_traced() or _transforms() is not None


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the tensors are ordinary ones and nobody looks on: the dispatcher has nothing to add."""
    if is_observed():
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in PLAIN or tensor.is_neg() or _is_batched(tensor)):
            return False
    return True


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """The dtype to cast to under autocast, None outside it; integers and float64 stay, as in torch."""
    if not torch.compiler.is_compiling() and not _is_any_autocast_enabled():
        return None
    device_type = input.device.type
    if device_type not in ("cuda", "cpu") or input.dtype == torch.float64 or not input.is_floating_point():
        return None
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)
