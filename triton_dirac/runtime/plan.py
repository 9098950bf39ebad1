"""What a call does, written down while it is done for the first time, to be done again without planning.

Splits, boxes, grids, picks, workspaces' shapes and outputs' strides follow from sizes, dtypes and switches, never from
numbers or addresses. So a plan made for one call serves every call of its kind: ``planned`` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_dirac.runtime import direct
from triton_dirac.runtime.launch import INTERPRETED, Launch, current_device

Tensors = Sequence[Tensor | None]
Step = Callable[[list[Tensor | None], list[int], "int | None"], None]


class Plan:
    """Steps over a list of tensors: those of a call, then those that the steps make, in order.

    A function that plans is given a ``Plan`` and does its work through it, once: what it allocates is made ``new``,
    other operations are done by ``do``, kernels by ``launch``. After ``finish`` the plan holds no tensor, and ``run``
    does all of that again for the tensors of another call of the same kind.
    """

    def __init__(self, tensors: Tensors = ()) -> None:
        self.complete = True  # whether the steps are all there is to do
        self._tensors: list[Tensor | None] = []
        for tensor in tensors:
            again = any(tensor is other for other in self._tensors if tensor is not None)
            self._tensors.append(tensor.detach() if again else tensor)  # type: ignore[union-attr]
        self.given: Tensors = tuple(self._tensors)
        self._steps: list[Step] = []
        self._outputs: list[int | None] = []

    def new(self, tensor: Tensor) -> Tensor:
        """``tensor``, just allocated, without content, on the device of the call's first."""
        shape, strides, dtype = tuple(tensor.shape), tensor.stride(), tensor.dtype
        first = self._tensors[0] if self._tensors else None
        options = {} if first is None or first.dtype == dtype else {"dtype": dtype}

        def allocate(tensors, addresses, stream) -> None:
            made = tensors[0].new_empty_strided(shape, strides, **options)
            tensors.append(made)
            addresses.append(made.data_ptr())

        self._note(allocate, tensor)
        return tensor

    def do(self, function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
        """``function(*arguments)``. Where that is an argument itself, as of ``contiguous``, it will be next time."""
        result = function(*arguments)
        if any(result is argument for argument in arguments):
            return result
        places = [self._place(argument) for argument in arguments]

        def apply(tensors, addresses, stream) -> None:
            made = function(*[None if place is None else tensors[place] for place in places])
            tensors.append(made)
            addresses.append(made.data_ptr())

        self._note(apply, result)
        return result

    def launch(self, launch: Launch) -> None:
        """Launch now, by Triton's JIT; later by the compiled kernel itself, where ``direct`` can."""
        compiled = launch.run()
        if 0 in launch.grid:
            return
        places: dict[str, Any] = {}
        for name, value in launch.args.items():
            if isinstance(value, Tensor):
                places[name] = self._place(value)
            elif isinstance(value, TensorDescriptor):
                places[name] = self._place_at(value.base.data_ptr())
        if self.complete:
            self._steps.append(_Launched(launch, places, compiled))

    def finish(
        self, settings: tuple, outputs: Tensors, autocast: torch.dtype | None = None, trained: bool = False
    ) -> None:
        """No more steps; ``outputs`` are what ``run`` returns. The rest is for whoever finds the plan: the checked
        arguments that are no tensors, what autocast cast to, whether a tensor asked for a gradient."""
        self.settings, self.autocast, self.trained = settings, autocast, trained
        self._outputs = [self._place(output) for output in outputs]
        device = self._tensors[0].device  # type: ignore[union-attr]
        self._device = device.index
        self._stream_of = None if INTERPRETED or device.type == "meta" else direct.current_stream()
        self._tensors, self.given = [], ()

    def run(self, tensors: Tensors) -> list[Tensor | None]:
        """The outputs for these tensors."""
        everything = list(tensors)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        index = self._device
        if index is not None and index != torch.cuda.current_device():
            with current_device(index):
                return self.run(tensors)
        stream = self._stream_of(index or 0) if self._stream_of and direct.undisturbed() else None
        for step in self._steps:
            step(everything, addresses, stream)
        return [None if place is None else everything[place] for place in self._outputs]

    def _note(self, step: Step, made: Tensor) -> None:
        self._steps.append(step)
        self._tensors.append(made)

    def _place(self, tensor: Tensor | None) -> int | None:
        for place, known in enumerate(self._tensors):
            if known is tensor:
                return None if tensor is None else place
        if tensor is not None:
            self.complete = False
        return None

    def _place_at(self, address: int) -> int | None:
        """Of the tensor at an address, which a descriptor tells; if there are two, it does not tell which."""
        places = [i for i, tensor in enumerate(self._tensors) if tensor is not None and tensor.data_ptr() == address]
        if len(places) == 1:
            return places[0]
        self.complete = False
        return None


class _Launched:
    """The step that launches a kernel: without its tensors, whose places it knows."""

    def __init__(self, launch: Launch, places: dict[str, int], compiled: Any) -> None:
        self._places, self._kernel = places, launch.kernel
        self._direct = self._bound(launch, compiled)
        self._tried = compiled is not None
        self._layouts = {}
        args = dict(launch.args)
        for name in places:
            if isinstance(args[name], TensorDescriptor):
                self._layouts[name] = args[name].shape, args[name].strides, args[name].block_shape
            args[name] = None
        self._launch = replace(launch, args=args)

    def __call__(self, tensors: list[Tensor | None], addresses: list[int], stream: int | None) -> None:
        direct = self._direct
        if stream is None or direct is None or not direct(addresses, stream):
            self._by_jit(tensors)

    def _by_jit(self, tensors: list[Tensor | None]) -> None:
        args: dict[str, Any] = {name: tensors[place] for name, place in self._places.items()}
        args |= {name: TensorDescriptor(args[name], *layout) for name, layout in self._layouts.items()}
        launch = replace(self._launch, args={**self._launch.args, **args})
        compiled = launch.run()
        if not self._tried and compiled is not None:
            self._direct, self._tried = self._bound(launch, compiled), True

    def _bound(self, launch: Launch, compiled: Any) -> direct.Direct | None:
        return direct.bind(launch.kernel, compiled, launch.grid, {**launch.args, **launch.constexprs}, self._places)
