"""A planned kernel launch as plain data: run it here, or compile it for a GPU that is not here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

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

    def run(self, **others: Any) -> None:
        """Launch on the tensors' device; nothing is launched for an empty grid.

        ``others`` are the arguments, tensors and their descriptors, that a ``Template``'s launch lacks.
        """
        note(self)
        if 0 in self.grid:
            return
        arguments = {**self.args, **others}
        launch = partial(self.kernel[self.grid], **arguments, **self.constexprs, **self.options)
        if INTERPRETED:
            with _INTERPRETER:
                _with_room(launch)
        else:
            with _on_device_of(arguments):
                launch()


def _on_device_of(arguments: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Triton launches on the current device, wherever the tensors are."""
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    return nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device)


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


@contextmanager
def unrecorded() -> Iterator[None]:
    """What this thread launches inside is told to no ``recorded`` block: a trial, whose tensors nobody is to hold."""
    launches, _recorder.launches = getattr(_recorder, "launches", None), None
    try:
        yield
    finally:
        _recorder.launches = launches


class Tiles(NamedTuple):
    """A tensor descriptor without its tensor, which is the ``place``-th of a call; its address must divide by 16."""

    argument: str
    place: int
    shape: list[int]
    strides: list[int]
    block_shape: list[int]


@dataclass(frozen=True)
class Template:
    """A launch without its tensors, to be run on others of the same shapes, strides and dtypes.

    ``places`` are (argument, index among the call's tensors).
    """

    launch: Launch
    places: tuple[tuple[str, int], ...]
    tiles: tuple[Tiles, ...]

    @classmethod
    def of(cls, launch: Launch, tensors: Sequence[Tensor | None]) -> Template | None:
        """None if the launch holds a tensor that is not among ``tensors`` (a copy), or if two of ``tensors`` are the
        same memory, which does not tell which of them an argument was."""
        given = {index: tensor for index, tensor in enumerate(tensors) if tensor is not None}
        indices = {id(tensor): index for index, tensor in given.items()}
        addresses = {tensor.data_ptr(): index for index, tensor in given.items()}
        if len(addresses) < len(given):
            return None
        rest, places, tiles = {}, [], []
        for name, value in launch.args.items():
            if value is None or isinstance(value, (int, float)):
                rest[name] = value
            elif id(value) in indices:
                places.append((name, indices[id(value)]))
            elif isinstance(value, TensorDescriptor) and value.base.data_ptr() in addresses:
                place = addresses[value.base.data_ptr()]
                tiles.append(Tiles(name, place, value.shape, value.strides, value.block_shape))
            else:
                return None
        return cls(replace(launch, args=rest), tuple(places), tuple(tiles))

    def run(self, tensors: Sequence[Tensor | None]) -> None:
        arguments: dict[str, Any] = {name: tensors[index] for name, index in self.places}
        for argument, place, *layout in self.tiles:
            arguments[argument] = TensorDescriptor(tensors[place], *layout)
        self.launch.run(**arguments)
