"""The processes that train together: started by torchrun, one for each GPU, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process's number ``rank`` of ``count``, and its ``device``."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes files and shows progress."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.count > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def gathered(self, value: Any) -> list[Any]:
        """All processes' values, in order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined(device: str | None = None) -> Iterator[Processes]:
    """Within it, torchrun's processes know one another. ``device``: "cuda", "cpu", or None: a GPU if there is one.

    Raises:
        ValueError: device is "cuda" and there is none, or torchrun's variables are no numbers.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be 'cpu' on this machine, which has no GPU, got 'cuda'")
    if _number("WORLD_SIZE", os.environ.get("WORLD_SIZE"), least=1) == 1:
        yield Processes(torch.device(kind))
        return
    rank = _number("LOCAL_RANK", os.environ.get("LOCAL_RANK"), least=0)
    own = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    processes = Processes(own, dist.get_rank(), dist.get_world_size())
    try:
        yield processes
        processes.wait()  # whoever closes its connections while another still talks may have that one aborted
    finally:
        dist.destroy_process_group()


def _number(variable: str, value: str | None, least: int) -> int:
    """The value of a variable that torchrun sets; ``least`` where nobody has."""
    text = value or str(least)
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{variable} must be an integer from {least} on, as torchrun sets it, got {text!r}")
    return int(text)
