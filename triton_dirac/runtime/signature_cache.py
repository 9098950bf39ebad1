"""What was found out about a call, for the next one like it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor


def _make_guard_of() -> Callable[[Sequence[Tensor]], Any] | None:
    """What makes torch.compile's guard of tensors: types, dtypes, devices, sizes, strides and dispatch keys of all, in
    one call of C++. torch promises it to nobody: None where it is not there or does not tell what it should."""
    try:
        from torch._C._dynamo.guards import TensorGuards

        def guard_of(tensors: Sequence[Tensor]) -> Any:
            return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)

        one = torch.empty(2, 3, device="cpu")
        others = (one.t(), one.double(), one.new_empty(2, 2), one.to("meta"), one.clone().requires_grad_())
        guard = guard_of([one])
        works = guard.check(one.clone()) and not any(guard.check(other) for other in others)
    except (ImportError, TypeError, RuntimeError):
        return None
    return guard_of if works else None


Value = TypeVar("Value")
MOST_KEYS = 1024  # options times shapes; a net has tens
MOST_ALIKE = 16  # of one key: dtypes, layouts, frozen or trained
guard_of = _make_guard_of()


class SignatureCache(Generic[Value]):
    """Values by key and by the tensors' signature: what they were like in all but content and address, as a guard of
    torch.compile tells it; also which transforms and modes were at work. Holds no tensor."""

    def __init__(self) -> None:
        self._values: dict[Hashable, list[tuple[Callable[..., bool], Value]]] = {}

    def find(self, key: Hashable, tensors: Sequence[Tensor]) -> Value | None:
        """The value kept for tensors like these, or None. Not for code that somebody traces: see ``observed``."""
        try:
            alike = self._values[key]
            for tensor in tensors:
                if tensor.is_nested:  # a guard asks for its strides, and that ends the process
                    return None
        except (KeyError, TypeError, AttributeError):  # a list has no hash and is no tensor
            return None
        for is_like, value in alike:
            if is_like(*tensors):
                return value
        return None

    def keep(self, key: Hashable, tensors: Sequence[Tensor], value: Value) -> None:
        """Keep ``value`` for ordinary tensors like these, in place of what was kept for them before."""
        if guard_of is None:
            return
        try:
            alike = self._values.get(key)
        except TypeError:  # a list among the options
            return
        if alike is None and len(self._values) >= MOST_KEYS:
            self._values.clear()
        others = [kept for kept in alike or () if not kept[0](*tensors)]
        self._values[key] = [*others[1 - MOST_ALIKE :], (guard_of(tensors).check, value)]

    def __len__(self) -> int:
        return len(self._values)
