"""A planned kernel launch as plain data: run it here, or compile it for a GPU that is not here."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import triton

# Triton decides when a kernel is decorated, so what held at import is what holds.
INTERPRETED: bool = triton.knobs.runtime.interpret
# The interpreter puts its own functions into triton.language while a kernel runs: one kernel at a time.
_INTERPRETER = threading.RLock()


@dataclass(frozen=True)
class Launch:
    """One launch of one Triton kernel.

    ``args`` are the kernel's run-time arguments by name (tensors, integers, floats, tensor descriptors or
    None), ``constexprs`` its compile-time ones, ``options`` the compiler's (num_warps, num_stages, ...).
    Tensors may live on the "meta" device: such a launch can be compiled and analysed but not run.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Launch on the tensors' device; nothing is launched for an empty grid."""
        if not all(self.grid):
            return
        with _INTERPRETER if INTERPRETED else nullcontext():
            self.kernel[self.grid](**self.args, **self.constexprs, **self.options)
