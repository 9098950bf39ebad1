"""Memory that tells on kernels: what is allocated is full of NaN, and a launch may touch its own tensors only.

Poison is for every device. Addresses are checked in Triton's interpreter, which has all of them at hand: each element
that a kernel loads or stores unmasked must lie inside a tensor of that launch, between its first element and its last;
a guard zone of any width, around inputs too, and reads that change no number are found as well. triton-viz has such a
check, for kernels that are decorated with it, and brings a web server along.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _device
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_dirac.runtime.memory import EMPTY

ALLOCATORS = {
    torch: ("empty", "empty_like", "empty_strided"),
    Tensor: ("new_empty", "new_empty_strided"),
}


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch hands out empty is full of NaN, buffers of bytes as well: 0xFF in every byte is a NaN of any width."""
    _device._device_constructors()  # what ``with torch.device(...)`` concerns: noted once, and as torch's own functions
    for owner, names in ALLOCATORS.items():
        for name in names:
            monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
    for device, allocate in EMPTY.items():
        monkeypatch.setitem(EMPTY, device, _poisoned(allocate))


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        if tensor.dtype == torch.uint8:
            return tensor.fill_(0xFF)
        if tensor.is_floating_point():
            tensor.detach().fill_(float("nan"))  # also of one that was asked for with requires_grad
        return tensor

    return poisoned


def guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads and stores outside of a launch's tensors raise, and the launch with them."""
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    run, load, store = executor.__call__, builder.create_masked_load, builder.create_masked_store
    launches: list[np.ndarray] = []  # the launch at work is the last: (first byte, byte behind) of its tensors

    def guarded_run(self, *args, **kwargs):
        launches.append(_extents([*args, *kwargs.values()], by_address="table_ptr" in kwargs))
        try:
            return run(self, *args, **kwargs)
        finally:
            launches.pop()

    def guarded_load(self, ptrs, mask, *rest, **hints):
        _check("reads", ptrs, mask, launches[-1])
        return load(self, ptrs, mask, *rest, **hints)

    def guarded_store(self, ptrs, value, mask, *rest, **hints):
        _check("writes", ptrs, mask, launches[-1])
        return store(self, ptrs, value, mask, *rest, **hints)

    monkeypatch.setattr(executor, "__call__", guarded_run)
    monkeypatch.setattr(builder, "create_masked_load", guarded_load)
    monkeypatch.setattr(builder, "create_masked_store", guarded_store)


def _extents(arguments: list[Any], by_address: bool) -> np.ndarray:
    """Where the launch's tensors lie. A launch over layers has tensors in its table only: any that lives will do."""
    tensors = list(_tensors(arguments))
    if by_address:
        tensors += [*_settled, *_living()]
    extents = []
    for tensor in tensors:
        if tensor.layout == torch.strided and tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            extents.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()))
    return np.array(extents, dtype=np.uint64).reshape(-1, 2)


_settled: list[Tensor] = []  # those that lived when settle was called


def settle() -> None:
    """Take what lives now, half a million objects of imported modules, out of all later searches and collections."""
    gc.collect()
    _settled.extend(_living())
    gc.freeze()


def _living() -> Iterator[Tensor]:
    return (thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter) and thing.is_cpu)


def _tensors(arguments: list[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, TensorDescriptor):
            yield argument.base


def _check(what: str, ptrs: Any, mask: Any, extents: np.ndarray) -> None:
    addresses = np.broadcast_to(ptrs.data, np.broadcast_shapes(ptrs.data.shape, mask.data.shape))
    addresses = addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)]
    if not addresses.size:
        return
    size = np.uint64(ptrs.get_element_ty().primitive_bitwidth // 8)
    low, high = addresses.min(), addresses.max() + size
    if ((extents[:, 0] <= low) & (high <= extents[:, 1])).any():  # as a rule, all are in one tensor
        return
    inside = (extents[:, :1] <= addresses) & (addresses + size <= extents[:, 1:])
    outside = addresses[~inside.any(axis=0)]
    if outside.size:
        nearest = extents.ravel()[np.abs(extents.ravel().astype(np.int64) - np.int64(outside[0])).argmin()]
        raise IndexError(
            f"a kernel {what} {outside.size} elements outside of its tensors, the first "
            f"{int(outside[0]) - int(nearest):+d} bytes from the nearest end or beginning of one"
        )
