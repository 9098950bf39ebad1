"""A kernel launch as plain data: run it here, or compile it for a GPU that is not here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any

import torch
import triton
from torch import Tensor

from triton_dirac.runtime import interpreter

# Triton decides when a kernel is decorated, so what held at import is what holds.
INTERPRETED: bool = triton.knobs.runtime.interpret
if INTERPRETED:
    interpreter.mend()
MOST_PROGRAMS = 2**31 - 1, 65535, 65535  # CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
# The interpreter puts its own functions into triton.language while a kernel runs: one kernel at a time.
_INTERPRETER = threading.RLock()


def _call(function: Callable[[], object]) -> None:
    function()


# CPython keeps frames in chunks of 16 KiB and returns a chunk to the system as soon as its first frame ends. Where the
# interpreter's innermost calls straddle two chunks, that is a pair of system calls for every one of them: 587,037 in
# 19 s of tests. A caller with a frame of 320 KiB gets a chunk of 512, whose rest holds all that the kernel calls.
_with_room = FunctionType(_call.__code__.replace(co_stacksize=40_000), {})


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

    def __post_init__(self) -> None:
        for programs, most in zip(self.grid, MOST_PROGRAMS, strict=False):
            if programs > most:
                accepted = " x ".join(map(str, MOST_PROGRAMS))
                raise ValueError(f"too large for one launch: a grid of {self.grid}; at most {accepted} is accepted")

    @property
    def compiler_options(self) -> dict[str, int]:
        """``options``, and what Triton 3.9 warns of where it is left to its default: whether x * y + z is one FMA."""
        return {"enable_fp_fusion": triton.knobs.language.default_fp_fusion, **self.options}

    def run(self) -> Any:
        """Launch by Triton's JIT on the tensors' device; nothing is launched for an empty grid or meta tensors.

        Returns the compiled kernel, None where there is none.
        """
        device = next(value.device for value in self.args.values() if isinstance(value, Tensor))
        if 0 in self.grid or device.type == "meta":
            return None
        launch = partial(self.kernel[self.grid], **self.args, **self.constexprs, **self.compiler_options)
        if INTERPRETED:
            with _INTERPRETER:
                return _with_room(launch)
        with current_device(device.index):
            return launch()


def current_device(index: int | None) -> AbstractContextManager[Any]:
    """Triton launches on the current device, wherever the tensors are."""
    is_current = index is None or index == torch.cuda.current_device()
    return nullcontext() if is_current else torch.cuda.device(index)
