"""Functions that plan, and their plans, kept for the next call of the same kind.

Checking and planning cost the host several times what launching does, and a training step repeats its few calls.
What a plan depends on is in its key (options, sizes, switches, addresses that are not aligned) or told by a guard of
torch.compile (types, dtypes, devices, strides, what is trained, transforms and modes at work).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from triton_dirac.runtime import autotune
from triton_dirac.runtime.direct import ALIGNMENT
from triton_dirac.runtime.plan import Plan, Tensors
from triton_dirac.runtime.remembered import Remembered
from triton_dirac.runtime.tracing import PLAIN, autocast_dtype


def _float32_products() -> str:
    return torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]


if hasattr(torch._C, "_get_fp32_precision_getter"):
    # What the function reads, without the Python around it: that costs 3 us a call.
    _float32_products = partial(torch._C._get_fp32_precision_getter, "cuda", "conv")  # type: ignore[assignment]

_is_deterministic = torch._C._get_deterministic_algorithms


class Planned:
    """A function that plans, ``function(plan, *tensors, *settings) -> outputs``, and the plans that it has made.

    ``options`` are what a call is found by: the settings themselves, or whatever the settings follow from.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor | None]]) -> None:
        self._function = function
        self._plans: Remembered[Plan] = Remembered()

    def __call__(self, tensors: Tensors, settings: tuple) -> Sequence[Tensor | None]:
        """The outputs, planned once for all calls like this one."""
        plan = self.find(tensors, settings)
        return self.first(tensors, settings, settings) if plan is None else plan.run(tensors)

    def find(self, tensors: Tensors, options: Hashable) -> Plan | None:
        """The plan of an earlier call of these options on tensors like these."""
        key, given = _key(tensors, options)
        if key is None:
            return None
        plan = self._plans.find(key, given)
        if plan is not None and plan.autocast is not None and plan.autocast != autocast_dtype(given[0]):
            return None  # the guard tells whether there is any autocast, and not to which dtype
        return plan

    def first(self, tensors: Tensors, options: Hashable, settings: tuple) -> Sequence[Tensor | None]:
        """The outputs of a call that is not known, of ordinary tensors; its plan is kept for ``find``.

        Not in a capture, where picks are not settled.
        """
        key, given = _key(tensors, options)
        plan = Plan(tensors)
        outputs = self._function(plan, *plan.given, *settings)
        plan.finish(settings, outputs, autocast_dtype(given[0]), any(tensor.requires_grad for tensor in given))
        capturing = given[0].is_cuda and torch.cuda.is_current_stream_capturing()
        if key is not None and plan.complete and not capturing and not given[0].is_meta:
            self._plans.keep(key, given, plan)
        return outputs

    def __len__(self) -> int:
        return len(self._plans)


def _key(tensors: Tensors, options: Hashable) -> tuple[Hashable | None, list[Tensor]]:
    """(all that a plan depends on and a guard does not tell, and sizes, by which it is found soon; the tensors that
    are not None). No key if there is something else than a plain tensor."""
    given: list[Tensor] = []
    together, absent, bit = 0, 0, 1
    for tensor in tensors:
        if tensor is None:
            absent |= bit
        else:
            if type(tensor) not in PLAIN:
                return None, [tensor]
            given.append(tensor)
            together |= tensor.data_ptr()
        bit <<= 1
    first = given[0]
    key = (
        options,
        first.shape,
        given[1].shape,
        absent,
        together % ALIGNMENT and tuple(tensor.data_ptr() % ALIGNMENT == 0 for tensor in given),
        _is_deterministic(),
        first.dtype is torch.float32 and _float32_products(),
        autotune.times_forgotten(),
    )
    return key, given
