"""What was found out about a call, for the next one like it.

Checking and planning cost the host several times what launching does, and a training step repeats its few calls.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.autograd import forward_ad

try:  # types, dtypes, devices, sizes, strides and dispatch keys of all tensors, in one call of C++
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # nothing is remembered
    TensorGuards = None  # type: ignore[assignment, misc]

Value = TypeVar("Value")
MOST_KEYS = 1024  # options times shapes; a net has tens
MOST_ALIKE = 16  # of one key: dtypes, layouts, frozen or trained


class Remembered(Generic[Value]):
    """Values by key and by what the tensors were like in all but content and address, as a guard of torch.compile
    tells it: also of transforms and modes that were at work. Holds no tensor."""

    def __init__(self) -> None:
        self._values: dict[Hashable, list[tuple[Any, Value]]] = {}

    def find(self, key: Hashable, tensors: Sequence[Tensor]) -> Value | None:
        """The value kept for tensors like these, or None. Not for code that torch.compile traces."""
        if forward_ad._current_level >= 0:
            return None
        try:
            alike = self._values[key]
        except (KeyError, TypeError):  # a list among the options has no hash
            return None
        for guard, value in alike:
            if guard.check(*tensors):
                return value
        return None

    def keep(self, key: Hashable, tensors: Sequence[Tensor], value: Value) -> None:
        """Keep ``value`` for ordinary tensors like these, in place of what was kept for them before."""
        if TensorGuards is None:
            return
        try:
            alike = [kept for kept in self._values.get(key, ()) if not kept[0].check(*tensors)]
        except TypeError:
            return
        if len(self._values) >= MOST_KEYS or len(alike) >= MOST_ALIKE:
            self._values.clear()
            alike = []
        guard = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        self._values[key] = [*alike, (guard, value)]

    def __len__(self) -> int:
        return len(self._values)
