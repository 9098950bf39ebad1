"""What a call does, written down while it is done for the first time, to be done again without planning.

Splits, boxes, grids, picks, workspaces' shapes and outputs' strides follow from sizes, dtypes and switches, never from
numbers or addresses. So a plan made for one call serves every call of its kind: ``planned`` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_dirac.runtime import direct
from triton_dirac.runtime.launch import INTERPRETED, Launch, current_device
from triton_dirac.runtime.memory import EMPTY

Tensors = Sequence[Tensor | None]
# What is done to (all tensors, their addresses, the stream or None for Triton's JIT to launch).
Act = Callable[[list[Tensor], list[int], "int | None"], None]
data_ptr = Tensor.data_ptr


class Plan:
    """The tensors to allocate, and acts upon them and the call's own: operations of torch and launches.

    A function that plans is given a ``Plan`` and does its work through it, once: what it allocates is made ``new``,
    other operations are done by ``do``, kernels by ``launch``. After ``finish`` the plan holds no tensor, and ``run``
    does all of that again for the tensors of another call of the same kind.
    """

    backward: Any  # of a differentiable call: the plans of its backward
    settings: tuple  # the call's checked arguments that are no tensors
    autocast: torch.dtype | None  # to which inputs are cast around the call
    trained: bool  # whether a tensor asked for a gradient

    def __init__(self, tensors: Tensors = ()) -> None:
        self.complete = True  # whether this is all there is to do
        self.launches: list[_Launched] = []
        # In a row all tensors of a call: given, new, made by acts. Of one given twice, two to tell apart.
        self._given: list[Tensor] = []
        self.given: Tensors = [None if tensor is None else self._give(tensor) for tensor in tensors]
        self._new: list[Tensor] = []
        self._made: list[Tensor] = []
        self._to_finish: list[Callable[[], Act]] = []

    def _give(self, tensor: Tensor) -> Tensor:
        again = any(tensor is other for other in self._given)
        self._given.append(tensor.detach() if again else tensor)
        return self._given[-1]

    def new(self, tensor: Tensor) -> Tensor:
        """``tensor``, just allocated, without content, on the device of the call's first."""
        self._new.append(tensor)
        return tensor

    def do(self, function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
        """``function(*arguments)``. Where that is an argument itself, as of ``contiguous``, it will be next time."""
        result = function(*arguments)
        if not any(result is argument for argument in arguments):
            self._made.append(result)
            self._to_finish.append(lambda: _operation(function, [self._place(argument) for argument in arguments]))
        return result

    def do_all(self, function: Callable[..., list[Tensor]], *arguments: Tensor | None) -> list[Tensor]:
        """``function(*arguments)``, which makes several tensors, all of them new."""
        results = function(*arguments)
        self._made += results
        self._to_finish.append(lambda: _operations(function, [self._place(argument) for argument in arguments]))
        return results

    def launch(self, launch: Launch) -> None:
        """Launch now, by Triton's JIT; later by the compiled kernel itself, where ``direct`` can."""
        compiled = launch.run()

        def act() -> Act:
            tensors = {name: value for name, value in launch.args.items() if isinstance(value, Tensor)}
            places = {name: self._place(value) for name, value in tensors.items()}
            for name, value in launch.args.items():
                if isinstance(value, TensorDescriptor):
                    places[name] = self._place_at(value.base.data_ptr())
            if not self.complete:
                return _nothing
            launched = _Launched(launch, places, compiled)  # type: ignore[arg-type]
            self.launches.append(launched)
            return launched.act

        if 0 not in launch.grid:
            self._to_finish.append(act)

    def finish(self, outputs: Tensors) -> None:
        """That is all; ``outputs`` are what ``run`` returns."""
        device = self._given[0].device
        aligned = not reduce(or_, map(data_ptr, self._given)) % direct.ALIGNMENT  # what is new is always
        self._acts = [act() for act in self._to_finish]
        self._outputs = [self._place(output) for output in outputs]
        self._layouts = [(tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in self._new]
        self._kind, self._device = device.type, device.index
        by_jit = INTERPRETED or device.type == "meta" or not aligned
        self._stream_of = None if by_jit else direct.current_stream()
        self.given = ()
        del self._given, self._new, self._made, self._to_finish

    def run(self, tensors: list[Tensor], addresses: list[int]) -> list[Tensor | None]:
        """The outputs for these tensors, without those that are None; both lists are added to."""
        index = self._device
        if index is not None and index != torch.cuda.current_device():
            with current_device(index):
                return self.run(tensors, addresses)
        empty = EMPTY[self._kind]
        for layout in self._layouts:
            made = empty(*layout)
            tensors.append(made)
            addresses.append(made.data_ptr())
        stream = None
        if self._stream_of is not None and direct.undisturbed():
            stream = self._stream_of(index or 0)
        for act in self._acts:
            act(tensors, addresses, stream)
        return [None if place is None else tensors[place] for place in self._outputs]

    def _place(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        for place, known in enumerate((*self._given, *self._new, *self._made)):
            if known is tensor:
                return place
        self.complete = False
        return None

    def _place_at(self, address: int) -> int | None:
        """Of the tensor at an address, which a descriptor tells; if there are two, it does not tell which."""
        known = enumerate((*self._given, *self._new, *self._made))
        places = [place for place, tensor in known if tensor.data_ptr() == address]
        self.complete = self.complete and len(places) == 1
        return places[0] if places else None


def _nothing(tensors, addresses, stream) -> None: ...


def _operation(function: Callable[..., Tensor], places: list[int | None]) -> Act:
    def act(tensors, addresses, stream) -> None:
        made = function(*[None if place is None else tensors[place] for place in places])
        tensors.append(made)
        addresses.append(made.data_ptr())

    return act


def _operations(function: Callable[..., list[Tensor]], places: list[int | None]) -> Act:
    def act(tensors, addresses, stream) -> None:
        made = function(*[None if place is None else tensors[place] for place in places])
        tensors += made
        addresses += map(data_ptr, made)

    return act


class _Launched:
    """A launch without its tensors, whose places it knows."""

    def __init__(self, launch: Launch, places: dict[str, int], compiled: Any) -> None:
        self.kernel, self._places = launch.kernel, places
        self.direct = self._bound(launch, compiled)
        self._tried = compiled is not None
        self._descriptors = {}
        args = dict(launch.args)
        for name in places:
            if isinstance(args[name], TensorDescriptor):
                self._descriptors[name] = args[name].shape, args[name].strides, args[name].block_shape
            args[name] = None
        self._launch = replace(launch, args=args)

    def act(self, tensors: list[Tensor], addresses: list[int], stream: int | None) -> None:
        if stream is not None and self.direct is not None and self.direct(addresses, stream):
            return
        self.by_jit(tensors)

    def by_jit(self, tensors: list[Tensor]) -> None:
        args: dict[str, Any] = {name: tensors[place] for name, place in self._places.items()}
        args |= {name: TensorDescriptor(args[name], *layout) for name, layout in self._descriptors.items()}
        launch = replace(self._launch, args={**self._launch.args, **args})
        compiled = launch.run()
        if not self._tried and compiled is not None:
            self.direct, self._tried = self._bound(launch, compiled), True

    def _bound(self, launch: Launch, compiled: Any) -> direct.Direct | None:
        return direct.bind(launch.kernel, compiled, launch.grid, {**launch.args, **launch.constexprs}, self._places)
