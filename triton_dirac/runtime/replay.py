"""Calls done again: the launches of an earlier one, run on other tensors of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triton_dirac.runtime import autotune
from triton_dirac.runtime.launch import Launch, Template, recorded
from triton_dirac.runtime.remembered import Remembered
from triton_dirac.runtime.tracing import autocast_dtype


def _float32_products() -> str:
    return torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]


if hasattr(torch._C, "_get_fp32_precision_getter"):
    # What the function reads, without the Python around it: that costs 3 us a call.
    _float32_products = partial(torch._C._get_fp32_precision_getter, "cuda", "conv")  # type: ignore[assignment]

Tensors = Sequence[Tensor | None]


class Replay:
    """A call as it was done before, without its tensors.

    ``settings`` are its checked arguments that are no tensors. ``steps`` are its launches, or None where they are not
    all there is to do: a tensor is copied, or torch convolves. Then it is only the checks that are saved.
    """

    def __init__(self, settings: Any, tensors: Tensors, outputs: Tensors, launches: Sequence[Launch] | None) -> None:
        self.settings = settings
        self.autocast = autocast_dtype(_image(tensors))
        like = _image(tensors).dtype  # which need not be named: that saves half a microsecond
        self.outputs = [(t.shape, t.stride(), {} if t.dtype == like else {"dtype": t.dtype}) for t in _given(outputs)]
        found = [Template.of(launch, (*tensors, *outputs)) for launch in launches or ()]
        steps = [step for step in found if step is not None]
        self.steps = steps if launches is not None and len(steps) == len(found) else None
        described = {tiles.place for step in steps for tiles in step.tiles}
        self.aligned = [place for place in described if place < len(tensors)]

    def fits(self, tensors: Tensors) -> bool:
        """Whether autocast is as it was and addresses are what tensor descriptors take; a guard has told the rest."""
        if self.autocast is not None and self.autocast != autocast_dtype(_image(tensors)):
            return False
        return not any(tensors[place].data_ptr() % 16 for place in self.aligned)  # type: ignore[union-attr]

    def run(self, tensors: Tensors) -> list[Tensor]:
        """The outputs, by the launches alone."""
        new: Any = _image(tensors).new_empty_strided
        outputs = [new(shape, strides, **dtype) for shape, strides, dtype in self.outputs]
        everything = (*tensors, *outputs)
        for step in self.steps:  # type: ignore[union-attr]
            step.run(everything)
        return outputs


_calls: Remembered[Replay] = Remembered()


def find(tensors: Tensors, options: tuple) -> Replay | None:
    """How a call of these options on tensors like these, image and weight first, was done before, if it was."""
    replay = _calls.find(_key(tensors, options), _given(tensors))
    return replay if replay is not None and replay.fits(tensors) else None


def remember(
    tensors: Tensors, options: tuple, settings: Any, outputs: Tensors, launches: Sequence[Launch], usual: int
) -> None:
    """Keep a call of ordinary tensors for ``find``. It usually takes ``usual`` launches, and one fewer where torch
    convolves; one that took more, to measure kernels or in parts, is not kept. Nor is one in a capture, where picks are
    not settled, or of odd addresses, which other kernels may do."""
    capturing = _image(tensors).is_cuda and torch.cuda.is_current_stream_capturing()
    odd = any(tensor.data_ptr() % 16 for tensor in _given(tensors))
    if not capturing and not odd and len(launches) in (usual, usual - 1):
        replay = Replay(settings, tensors, outputs, launches if len(launches) == usual else None)
        _calls.keep(_key(tensors, options), _given(tensors), replay)


def outputs_of(
    run: Callable[..., Sequence[Tensor]],
    tensors: Tensors,
    settings: Any,
    options: tuple | None,
    replay: Replay | None,
    usual: int,
) -> Sequence[Tensor]:
    """A call's outputs: by ``replay``'s launches where it has them, else ``run(*tensors, *settings)``, remembered under
    ``options`` if there are any. ``usual``: see ``remember``."""
    if replay is not None and replay.steps is not None:
        return replay.run(tensors)
    with recorded() as launches:
        outputs = run(*tensors, *settings)
    if options is not None:
        remember(tensors, options, settings, outputs, launches, usual)
    return outputs


def _key(tensors: Tensors, options: tuple) -> tuple:
    """All that a call depends on and a guard does not tell; which tensors are None is among the options."""
    image, weight = tensors[:2]
    return (
        image.shape,  # type: ignore[union-attr]
        weight.shape,  # type: ignore[union-attr]
        options,
        torch.are_deterministic_algorithms_enabled(),
        image.dtype is torch.float32 and _float32_products(),  # type: ignore[union-attr]
        autotune.times_forgotten(),
    )


def _given(tensors: Tensors) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _image(tensors: Tensors) -> Tensor:
    return tensors[0]  # type: ignore[return-value]
