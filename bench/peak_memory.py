"""The most memory that a call holds at once, beyond what was allocated before it: activations, filters, gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Bytes, of torch's allocators: the GPU's where there is one. None of a call that allocates nothing there, such as
    a CUDA graph's replay, whose memory was taken when it was captured."""
    return (_on_a_gpu(call) if torch.cuda.is_available() else _on_a_cpu(call)) or None


def _on_a_gpu(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _on_a_cpu(call: Callable[[], object]) -> int:
    """The highest sum of what the profiler saw allocated and freed: torch keeps no count of a CPU's memory."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = most = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
