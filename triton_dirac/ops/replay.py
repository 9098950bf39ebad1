"""Calls done again: what was checked and planned once is looked up, and its launches run on other tensors.

Checking and planning cost the host several times what launching does, and a training step repeats its few layers.
A call is found by its options, its image's and weight's shapes and the switches it depends on; whether its tensors
are like the earlier ones in all else is told by the guard that torch.compile had made for this.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from triton_dirac.kernels.launch import Launch, Template
from triton_dirac.tracing import autocast_dtype

try:  # types, dtypes, devices, sizes, strides and dispatch keys of all tensors, in one call of C++
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # no call is remembered
    TensorGuards = None  # type: ignore[assignment, misc]

# What torch.backends.cudnn.conv.fp32_precision reads, without the Python around it: that costs 3 us a call.
_float32_products = partial(torch._C._get_fp32_precision_getter, "cuda", "conv")

Tensors = Sequence[Tensor | None]
MOST_CALLS = 1024  # options times shapes; a net has tens
MOST_ALIKE = 16  # of equal options and shapes: dtypes, layouts, frozen or trained

_remembered: dict[tuple, list[Replay]] = {}


class Replay:
    """A call as it was done before, without its tensors.

    ``settings`` are its checked arguments that are no tensors. ``steps`` are its launches, or None where they are not
    all there is to do: a tensor is copied, or torch convolves. Then it is only the checks that are saved.
    """

    def __init__(self, settings: Any, tensors: Tensors, outputs: Tensors, launches: Sequence[Launch] | None) -> None:
        self.settings = settings
        self.guard = TensorGuards(*_given(tensors), dynamic_dims_sizes=None, dynamic_dims_strides=None)
        self.autocast = autocast_dtype(_image(tensors))
        self.outputs = [(t.shape, t.stride(), t.dtype) for t in _given(outputs)]
        found = [Template.of(launch, (*tensors, *outputs)) for launch in launches or ()]
        steps = [step for step in found if step is not None]
        self.steps = steps if launches is not None and len(steps) == len(found) else None
        described = {place for step in steps for _, place, *_ in step.descriptors}
        self.aligned = [place for place in described if place < len(tensors)]

    def fits(self, tensors: Tensors) -> bool:
        """Whether ``tensors`` are like the earlier ones in all but content and address."""
        if not self.guard.check(*_given(tensors)):
            return False
        if self.autocast is not None and self.autocast != autocast_dtype(_image(tensors)):
            return False
        return not any(tensors[place].data_ptr() % 16 for place in self.aligned)  # type: ignore[union-attr]

    def run(self, tensors: Tensors) -> list[Tensor]:
        """The outputs, by the launches alone."""
        new = _image(tensors).new_empty_strided
        outputs = [new(shape, strides, dtype=dtype) for shape, strides, dtype in self.outputs]
        everything = (*tensors, *outputs)
        for step in self.steps:  # type: ignore[union-attr]
            step.run(everything)
        return outputs


def find(tensors: Tensors, options: tuple) -> Replay | None:
    """How a call of these options on tensors like these, image and weight first, was done before, if it was."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return None
    try:
        alike = _remembered[_key(tensors, options)]
    except (KeyError, TypeError):  # a list among the options cannot be looked up
        return None
    for replay in alike:
        if replay.fits(tensors):
            return replay
    return None


def remember(
    tensors: Tensors, options: tuple, settings: Any, outputs: Tensors, launches: Sequence[Launch], usual: int
) -> None:
    """Keep a call of ordinary tensors for ``find``. It usually takes ``usual`` launches, and one fewer where torch
    convolves; one that took more, to measure kernels or in parts, is not kept."""
    image = _image(tensors)
    capturing = image.is_cuda and torch.cuda.is_current_stream_capturing()  # picks are not settled then
    if TensorGuards is None or capturing or len(launches) not in (usual, usual - 1):
        return
    key = _key(tensors, options)
    try:
        alike = _remembered.get(key, [])
    except TypeError:
        return
    if len(_remembered) >= MOST_CALLS or len(alike) >= MOST_ALIKE:
        _remembered.clear()
    replay = Replay(settings, tensors, outputs, launches if len(launches) == usual else None)
    _remembered[key] = [*alike, replay]


def _key(tensors: Tensors, options: tuple) -> tuple:
    """All that a call depends on and a guard does not tell; which tensors are None is among the options."""
    image, weight = tensors[:2]
    return (
        image.shape,  # type: ignore[union-attr]
        weight.shape,  # type: ignore[union-attr]
        options,
        torch.are_deterministic_algorithms_enabled(),
        image.dtype is torch.float32 and _float32_products(),  # type: ignore[union-attr]
    )


def _given(tensors: Tensors) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _image(tensors: Tensors) -> Tensor:
    return tensors[0]  # type: ignore[return-value]
