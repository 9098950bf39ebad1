"""Small tables of addresses and sizes that a kernel reads, uploaded only when they change."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class _Entry:
    table: Tensor
    stream: Any
    uploaded: Any  # event; None on a CPU


class DescriptorTables:
    """int64 tables by key, on their device; the ``capacity`` most recently used are kept.

    A hit costs no copy, a miss one asynchronous copy from pinned memory: the host never waits for the device.
    Nothing but integers is held, so a table keeps no parameter alive; keys must hold whatever the table's
    content depends on.

    CUDA graphs: a table that a capture uses is kept for good, because the graph holds its address. One that
    has to be built in a capture is copied again at each replay, from pinned memory that is kept as well and
    was set aside before, since allocating it while capturing is not allowed everywhere. Such a table is not
    offered outside its graph: it is empty until the first replay.
    """

    def __init__(self, capacity: int = 32) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._captured: list[Tensor] = []
        self._spare: list[Tensor] = []

    def get(self, key: Hashable, device: torch.device, words: Callable[[], Sequence[int]]) -> Tensor:
        """The table of ``key`` on ``device``; ``words()`` gives its content where it is not there yet."""
        if device.type != "cuda":
            if key not in self._entries:
                table = _tensor(words()).to(device)
                self._remember(key, _Entry(table, None, None))
            self._entries.move_to_end(key)
            return self._entries[key].table
        return self._get_cuda(key, device, words)

    def _get_cuda(self, key: Hashable, device: torch.device, words: Callable[[], Sequence[int]]) -> Tensor:
        capturing = torch.cuda.is_current_stream_capturing()
        stream = torch.cuda.current_stream(device)
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            if capturing:
                self._captured.append(entry.table)
            elif stream != entry.stream:
                stream.wait_event(entry.uploaded)
                entry.table.record_stream(stream)
            return entry.table
        content = _tensor(words())
        if capturing:
            pinned = self._take_spare(content.numel()).copy_(content)
            table = self._upload(pinned, device)
            self._captured += [pinned, table]
            return table
        table = self._upload(self._pinned(content.numel()).copy_(content), device)
        self._remember(key, _Entry(table, stream, stream.record_event()))
        self._set_aside(content.numel())
        return table

    def _remember(self, key: Hashable, entry: _Entry) -> None:
        self._entries[key] = entry
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def _set_aside(self, words: int) -> None:
        """Keep pinned memory for a table of each of the sizes seen last, should a capture have to build one."""
        if all(spare.numel() != words for spare in self._spare):
            self._spare = [*self._spare[-3:], self._pinned(words)]

    def _take_spare(self, words: int) -> Tensor:
        for index, spare in enumerate(self._spare):
            if spare.numel() == words:
                return self._spare.pop(index)
        return self._pinned(words)

    @staticmethod
    def _pinned(words: int) -> Tensor:
        return torch.empty(words, dtype=torch.int64, device="cpu", pin_memory=True)

    @staticmethod
    def _upload(pinned: Tensor, device: torch.device) -> Tensor:
        return pinned.to(device, non_blocking=True)


def _tensor(words: Sequence[int]) -> Tensor:
    """By way of an array: gradients may lie elsewhere at each step, and from a list torch takes 5 us more."""
    if not words:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    return torch.frombuffer(array("q", words), dtype=torch.int64)
