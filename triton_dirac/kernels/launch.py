"""A planned kernel launch as plain data: run it here, or compile it for a GPU that is not here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import FunctionType
from typing import Any

import triton
from torch import Tensor

# Triton decides when a kernel is decorated, so what held at import is what holds.
INTERPRETED: bool = triton.knobs.runtime.interpret
# The interpreter puts its own functions into triton.language while a kernel runs: one kernel at a time.
_INTERPRETER = threading.RLock()
_recorder = threading.local()


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

    def run(self, **tensors: Tensor | None) -> None:
        """Launch on the tensors' device; nothing is launched for an empty grid.

        ``tensors`` are the arguments that a launch taken apart by ``replayable`` lacks.
        """
        note(self)
        if 0 in self.grid:
            return
        launch = self.kernel[self.grid]
        if not INTERPRETED:
            launch(**self.args, **tensors, **self.constexprs, **self.options)
            return
        with _INTERPRETER:
            _with_room(partial(launch, **self.args, **tensors, **self.constexprs, **self.options))


def note(launch: Launch) -> None:
    """Tell this thread's ``recorded`` block, if there is one, of a launch."""
    if (launches := getattr(_recorder, "launches", None)) is not None:
        launches.append(launch)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches that this thread runs inside."""
    outer = getattr(_recorder, "launches", None)
    launches: list[Launch] = []
    _recorder.launches = launches
    try:
        yield launches
    finally:
        _recorder.launches = outer
        if outer is not None:
            outer.extend(launches)


def replayable(launch: Launch, tensors: Sequence[Tensor | None]) -> tuple[Launch, list[tuple[str, int]]] | None:
    """(the launch without its tensors, [(argument, index in ``tensors``)]) for running it again on others.

    None if it holds a tensor that is not among ``tensors`` (a copy) or a tensor descriptor, or if two of
    ``tensors`` are the same, which does not tell which of them an argument was.
    """
    places = {id(tensor): index for index, tensor in enumerate(tensors) if tensor is not None}
    if len(places) < sum(tensor is not None for tensor in tensors):
        return None
    rest, binding = {}, []
    for name, value in launch.args.items():
        if value is None or isinstance(value, (int, float)):
            rest[name] = value
        elif id(value) in places:
            binding.append((name, places[id(value)]))
        else:
            return None
    return replace(launch, args=rest), binding
