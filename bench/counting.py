"""Launches and bytes of a call, counted instead of timed.

Torch operations are counted as they are dispatched: on a GPU each is a kernel or more, on a CPU each is a pass
of its own over memory. An operation is said to read its tensor arguments once and to write its results once.
Our kernels are counted from their planned launches, from the very plan that is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.suite import Contender, Row
from triton_dirac.runtime.launch import Launch
from triton_dirac.tuning.work import STORAGE
from triton_dirac.weight_prep import cpu as cpu_prep

# They return memory and do not touch it.
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
OVERWRITES = ("copy_", "fill_", "zero_")


@dataclass(frozen=True)
class Count:
    launches: int
    bytes: int


def of_call(row: Row, contender: Contender, call: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
    """What torch's operations launch and move in ``call``; nothing of suites and contenders that are not counted."""
    is_counted = row.suite.launch_bytes is not None and contender.engine == "eager" and not contender.graph
    if not is_counted or (device.type == "cuda" and contender.name == "auto"):  # there it is our planned launches
        return []
    counted = count_operations(call)
    if device.type == "cuda":
        return [_entry(row, contender, count_kernels(call), counted.bytes, "GPU kernels, torch.profiler")]
    return [_entry(row, contender, counted.launches, counted.bytes, "operations dispatched by torch")]


def of_plans(row: Row, contender: Contender) -> list[dict[str, Any]]:
    """What our kernels launch and move: from plans for meta tensors, which are the same wherever the tensors are."""
    if row.suite.launch_bytes is None or contender.engine != "triton" or contender.graph:
        return []
    work = row.work(torch.device("meta"))
    launches = planned_launches(contender.build(work))
    moved = sum(row.suite.launch_bytes(launch, work) for launch in launches)
    return [_entry(row, contender, len(launches), moved, "planned launches")]


def _entry(row: Row, contender: Contender, launches: int, moved: int, how: str) -> dict[str, Any]:
    _, least = row.suite.cost(row.subject.problem, STORAGE[row.dtype], row.direction)
    names = {**row.names(contender.name), "label": "counted", "counted_by": how}
    return {**names, "launches": launches, "bytes": moved, "least_bytes": least}


def count_operations(call: Callable[[], Any]) -> Count:
    """Operations that ``call`` dispatches to kernels, autograd's included; views and allocations are none."""
    counter = _Counter()
    # Ours takes the fused CPU kernels in eager code only, and would take the counter for something else.
    with patch.object(cpu_prep, "is_plain", lambda *tensors: True), counter:
        call()
    return Count(counter.launches, counter.bytes)


def planned_launches(call: Callable[[], Any]) -> list[Launch]:
    """Kernels of ours that ``call`` would launch; none is run."""
    launches: list[Launch] = []
    with patch.object(Launch, "run", lambda self: launches.append(self) if all(self.grid) else None):
        call()
    return launches


def count_kernels(call: Callable[[], Any]) -> int:
    """Kernels, copies and fills that a GPU executes for ``call``, as torch.profiler sees them."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def tensor_bytes(values: Iterable[Any]) -> int:
    """Bytes of all tensors among ``values``, each once."""
    return sum(map(_bytes, _tensors(values)))


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        written = list(_tensors([result]))
        name = function._schema.name.split("::")[1]
        aliases = [value.alias_info for value in function._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if written and not is_view and name not in ALLOCATIONS:
            read = list(_tensors([args, list((kwargs or {}).values())]))
            self.launches += 1
            self.bytes += sum(map(_bytes, written)) + sum(map(_bytes, read[1:] if name in OVERWRITES else read))
        return result


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _bytes(tensor: Tensor) -> int:
    """Of the distinct elements: an expanded dimension is read once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = 1
    for size, stride in sizes:
        count *= size if stride or size == 0 else 1
    return count * tensor.element_size()
