"""A kernel that Triton's JIT has compiled and launched once, launched again without it.

At each launch the JIT binds and inspects every argument: 15 to 40 us of host time for kernels of 40. What changes from
one launch of a plan to the next are addresses and the stream; the rest is prepared here once.

All that is assumed of Triton's inside is in this file. It was read in 3.6, 3.7, 3.8 and 3.9:

- ``kernel[grid](...)`` returns the CompiledKernel, whose ``run`` is, for NVIDIA, a ``CudaLauncher``;
- called with grid, stream, function, metadata, hooks and the kernel's arguments, that one calls its ``launch``, a
  function in C, once, with positional arguments only; behind ``wrap_handle_tensordesc`` if there are descriptors;
- C takes an integer for a pointer, and a tensor descriptor as what ``wrap_handle_tensordesc`` makes of it.

In which order and how nested they arrive differs and is not assumed: a copy of the launcher is called once with a
Python function in C's place, and what that is given is what C is given later, with addresses in the marked places. If
anything is not as above the JIT goes on launching, and says so once. It also does on other than NVIDIA's GPUs, and
while a profiler's hooks or a debugging switch are set: ``undisturbed``.
"""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

ALIGNMENT = 16  # bytes: what Triton specialises a kernel on, pointer by pointer
MOST_MAPS = 512  # encoded descriptors of one argument, by address; a training step comes back to the same ones

Direct = Callable[[list[int], int], bool]  # (addresses of a plan's tensors, stream) -> whether it was launched


class NotAsKnown(Exception):
    """Triton's launcher does not do what is written above."""


def undisturbed() -> bool:
    """Whether a launch may pass by the JIT: no hook listens, and kernels need not be compiled in another way."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook  # None, a function, or a chain with .calls
    if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
        return False
    return not (runtime.debug or triton.knobs.compilation.instrumentation_mode)


def current_stream() -> Callable[[int], int]:
    """The function from a device's index to the stream that torch has current there."""
    return triton.runtime.driver.active.get_current_stream


def bind(
    kernel: Any, compiled: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], places: Mapping[str, int]
) -> Direct | None:
    """The launch of ``compiled``, which ``kernel[grid](**arguments)`` returned, for other addresses.

    ``places``: of the arguments that are tensors or descriptors, the index of their tensor's address. None if this
    kernel has to be launched by the JIT; a tensor that is not aligned is one reason.
    """
    if type(compiled) is not CompiledKernel or type(compiled.run).__name__ != "CudaLauncher":
        return None
    if kernel.pre_run_hooks or any(_base(arguments[name]).data_ptr() % ALIGNMENT for name in places):
        return None
    if compiled.metadata.global_scratch_size or compiled.metadata.profile_scratch_size:
        return None  # memory that the launcher allocates at each launch
    try:
        return _bind(kernel, compiled, grid, arguments, places)
    except (NotAsKnown, AttributeError, TypeError) as error:
        _warn_once(f"Triton {triton.__version__}'s JIT launches all kernels, at several times the host time: {error}")
        return None


def _bind(kernel, compiled, grid, arguments, places) -> Direct:
    # Marks in place of tensors tell where C is given what, and keep no memory alive.
    marked = {name: _marked(arguments[name], place) for name, place in places.items()}
    described = [name for name in kernel.arg_names if isinstance(marked.get(name), TensorDescriptor)]
    size, stream = (*grid, 1, 1)[:3], object()

    def overhear(places_of: Mapping[str, Any]) -> tuple[list[Any], list[Any], bool]:
        """What C is given before the stream's place and after it, and whether the kernel's arguments are nested."""
        heard: list[tuple[Any, ...]] = []
        launcher = copy.copy(compiled.run)
        launcher.launch = _with_descriptors(compiled, lambda *all: heard.append(all))
        values = [{**arguments, **places_of}[name] for name in kernel.arg_names]
        launcher(*size, stream, compiled.function, compiled.packed_metadata, None, None, None, *values)
        ((*call,),) = heard
        at = [value is stream for value in call].index(True)
        return call[:at], call[at + 1 :], not any(_is_place(value) for value in call)

    head, tail, nested = overhear(marked)
    fixed, template = (tail[:-1], list(tail[-1])) if nested else ([], tail)
    slots = [(at, value.place) for at, value in enumerate(template) if type(value) is _Mark]
    maps = [at for at, value in enumerate(template) if _is_map(value)]
    if len(slots) + len(maps) != len(places) or len(maps) not in (0, len(described)):
        raise NotAsKnown(f"{len(slots)} pointers and {len(maps)} descriptors of {len(places)} tensors were passed on")
    for at in (*maps, *(at for at, _ in slots)):
        template[at] = 0
    arguments = {name: None if name in places else value for name, value in arguments.items()}
    encoded: list[tuple[int, int, dict[int, Any]]] = [
        (at, places[name], {}) for at, name in zip(maps, described, strict=bool(maps))
    ]

    def encode(values: list[Any], addresses: list[int]) -> None:
        """Fill in the maps of tensors at ``addresses``, and keep them."""
        here = {name: _marked(marked[name], places[name], addresses[places[name]]) for name in described}
        _, tail, _ = overhear({**marked, **here})
        found = tail[-1] if nested else tail
        for at, place, known in encoded:
            if len(known) >= MOST_MAPS:
                known.clear()
            values[at] = known[addresses[place]] = found[at]

    launch = _c_function(compiled.run.launch)
    return _launch_of(launch, head, fixed, template, slots, encoded, encode, nested, kernel.pre_run_hooks)


def _launch_of(launch, head, fixed, template, slots, encoded, encode, nested, hooks) -> Direct:
    def direct(addresses: list[int], stream: int) -> bool:
        values = template.copy()
        together, all_known = 0, True
        for at, place in slots:
            values[at] = address = addresses[place]
            together |= address
        for at, place, known in encoded:
            address = addresses[place]
            together |= address
            values[at] = found = known.get(address)
            all_known = all_known and found is not None
        if together % ALIGNMENT or hooks:
            return False
        if not all_known:
            encode(values, addresses)
        if nested:
            launch(*head, stream, *fixed, values)
        else:
            launch(*head, stream, *values)
        return True

    return direct


class _Mark:
    """Stands for a tensor where the JIT's launcher is listened to."""

    def __init__(self, place: int, dtype: torch.dtype, address: int) -> None:
        self.place, self.dtype, self.address = place, dtype, address

    def data_ptr(self) -> int:
        return self.address


def _is_map(value: Any) -> bool:
    return type(value).__name__ == "PyCUtensorMap"


def _is_place(value: Any) -> bool:
    return type(value) is _Mark or _is_map(value)


def _base(value: Any) -> Any:
    return value.base if isinstance(value, TensorDescriptor) else value


def _marked(value: Any, place: int, address: int | None = None) -> Any:
    """A mark in place of a tensor, or in a copy of the descriptor in place of its tensor."""
    base = _base(value)
    mark = _Mark(place, base.dtype, base.data_ptr() if address is None else address)
    if base is value:
        return mark
    described = copy.copy(value)
    described.base = mark
    return described


def _with_descriptors(compiled: CompiledKernel, listener: Callable[..., None]) -> Callable[..., None]:
    from triton.backends.nvidia.driver import wrap_handle_tensordesc

    return wrap_handle_tensordesc(listener, compiled.src.signature, getattr(compiled.metadata, "tensordesc_meta", None))


def _c_function(launch: Any) -> Any:
    """Triton's launch function itself, or the one that ``wrap_handle_tensordesc`` closed over."""
    if isinstance(launch, types.BuiltinFunctionType):
        return launch
    inside = [cell.cell_contents for cell in launch.__closure__ or ()]
    functions = [value for value in inside if isinstance(value, types.BuiltinFunctionType)]
    if len(functions) != 1:
        raise NotAsKnown(f"{len(functions)} functions in C behind {launch}")
    return functions[0]


_said: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=4)
