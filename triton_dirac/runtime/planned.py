"""Functions that plan, and their plans, kept for the next call of the same kind.

Checking and planning cost the host several times what launching does, and a training step repeats its few calls.
What a plan depends on is in its key (options, sizes, switches, addresses that are not aligned) or told by a guard of
torch.compile (types, dtypes, devices, strides, what is trained, transforms and modes at work).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial, reduce
from operator import or_

import torch
from torch import Tensor

from triton_dirac.runtime import autotune
from triton_dirac.runtime.direct import ALIGNMENT
from triton_dirac.runtime.plan import Plan, Tensors
from triton_dirac.runtime.remembered import MOST_ALIKE, Remembered
from triton_dirac.runtime.tracing import autocast_dtype, is_observed, is_watched


def _float32_products() -> str:
    return torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]


if hasattr(torch._C, "_get_fp32_precision_getter"):
    # What the function reads, without the Python around it: that costs 3 us a call.
    _float32_products = partial(torch._C._get_fp32_precision_getter, "cuda", "conv")  # type: ignore[assignment]

Function = Callable[..., Sequence[Tensor | None]]
_is_deterministic = torch._C._get_deterministic_algorithms


class Planned:
    """A function that plans, ``function(plan, *tensors, *settings) -> outputs``, and the plans that it has made.

    ``backward``, of a differentiable function, plans its gradients; each plan has its own ``Planned`` of that.
    """

    def __init__(self, function: Function, backward: Function | None = None) -> None:
        self._function, self._backward = function, backward
        self._plans: Remembered[dict[tuple[bool, ...], Plan]] = Remembered()  # by which addresses are odd

    def __call__(self, tensors: Tensors, settings: tuple) -> Sequence[Tensor | None]:
        """The outputs, planned once for all calls like this one; ``settings`` tell which tensors are None."""
        known = self.find(tensors, settings)
        return self.first(tensors, settings, settings)[0] if known is None else known[0].run(tensors, known[1])

    def find(self, tensors: Tensors, options: Hashable) -> tuple[Plan, list[int]] | None:
        """(the plan of an earlier call on tensors like these, addresses of these). ``options``: the settings, or what
        these follow from; they tell which tensors are None. None while somebody traces or intercepts, too."""
        if is_watched():
            return None
        given = [tensor for tensor in tensors if tensor is not None]
        plans = self._plans.find(_key(given, options), given)  # its guard tells of tracers and transforms
        if plans is None:
            return None
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        plan = plans.get(_odd(addresses))
        if plan is None or (plan.autocast is not None and plan.autocast != autocast_dtype(given[0])):
            return None  # the guard tells whether there is any autocast, and not to which dtype
        return plan, addresses

    def first(self, tensors: Tensors, options: Hashable, settings: tuple) -> tuple[Sequence[Tensor | None], Plan]:
        """The outputs of a call that is not known, of ordinary tensors, and its plan, which is kept for ``find``.

        Not in a capture, where picks are not settled.
        """
        given = [tensor for tensor in tensors if tensor is not None]
        plan = Plan(tensors)
        outputs = self._function(plan, *plan.given, *settings)
        plan.finish(outputs)
        plan.settings, plan.autocast = settings, autocast_dtype(given[0])
        plan.trained = any(tensor.requires_grad for tensor in given)
        plan.backward = Planned(self._backward) if self._backward else None
        capturing = given[0].is_cuda and torch.cuda.is_current_stream_capturing()
        if plan.complete and not capturing and not given[0].is_meta and not is_observed():
            key = _key(given, options)
            plans = self._plans.find(key, given) or {}
            if len(plans) == MOST_ALIKE:
                plans.clear()
            plans[_odd([0 if tensor is None else tensor.data_ptr() for tensor in tensors])] = plan
            self._plans.keep(key, given, plans)
        return outputs, plan

    def __len__(self) -> int:
        return len(self._plans)


def _key(given: Sequence[Tensor], options: Hashable) -> tuple:
    """All that a plan depends on and a guard does not tell, and sizes, by which it is found soon."""
    first, second = given[0], given[1]
    return (
        options,
        first.shape,
        second.shape,
        len(given),
        _is_deterministic(),
        first.dtype is torch.float32 and _float32_products(),
        autotune.times_forgotten(),
    )


def _odd(addresses: list[int]) -> tuple[bool, ...]:
    """Which are not aligned, if any; other kernels are compiled, and other ones taken, for them."""
    if reduce(or_, addresses) % ALIGNMENT == 0:
        return ()
    return tuple([address % ALIGNMENT != 0 for address in addresses])
