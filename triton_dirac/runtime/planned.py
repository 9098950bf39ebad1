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
from triton_dirac.runtime.plan import Plan, Tensors, data_ptr
from triton_dirac.runtime.signature_cache import MOST_ALIKE, SignatureCache
from triton_dirac.runtime.tracing import autocast_dtype, is_observed, is_watched


def _float32_products() -> str:
    return torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]


if hasattr(torch._C, "_get_fp32_precision_getter"):
    # What the function reads, without the Python around it: that costs 3 us a call.
    _float32_products = partial(torch._C._get_fp32_precision_getter, "cuda", "conv")  # type: ignore[assignment]

Known = tuple[Plan, list[Tensor], list[int]]
Function = Callable[..., Sequence[Tensor | None]]
_is_deterministic = torch._C._get_deterministic_algorithms


class Planned:
    """A function that plans, ``function(plan, *tensors, *settings) -> outputs``, and the plans that it has made.

    ``backward``, of a differentiable function, plans its gradients; each plan has its own ``Planned`` of that.
    """

    def __init__(self, function: Function, backward: Function | None = None) -> None:
        self._function, self._backward = function, backward
        self._plans: SignatureCache[dict[tuple[bool, ...], Plan]] = SignatureCache()  # by which addresses are odd

    def __call__(self, tensors: Tensors, settings: tuple) -> Sequence[Tensor | None]:
        """The outputs, planned once for all calls like this one; ``settings`` tell which tensors are None."""
        return self.outputs_and_plan(tensors, self.find(tensors, settings), (settings, settings))[0]

    def find(self, tensors: Tensors, options: Hashable) -> Known | None:
        """What ``outputs_and_plan`` takes: the plan of an earlier call on tensors like these, the tensors, addresses.

        ``options``: the settings, or what these follow from; they tell which tensors are None. None while somebody
        traces or intercepts, too."""
        if is_watched():
            return None
        given = [tensor for tensor in tensors if tensor is not None]
        if given[0].is_nested:  # it has no shape
            return None
        plans = self._plans.find(_key(given, options), given)  # its guard tells of tracers and transforms
        if plans is None:
            return None
        addresses = list(map(data_ptr, given))
        plan = plans.get(_odd(addresses))
        if plan is None or (plan.autocast is not None and plan.autocast != autocast_dtype(given[0])):
            return None  # the guard tells whether there is any autocast, and not to which dtype
        return plan, given, addresses

    def first(self, tensors: Tensors, options: Hashable, settings: tuple) -> tuple[Sequence[Tensor | None], Plan]:
        """The outputs of a call that is not known, of ordinary tensors, and its plan, which is kept for ``find``.

        Not in a capture, where picks are not settled.
        """
        given = [tensor for tensor in tensors if tensor is not None]
        for tensor in given:
            if not data_ptr(tensor) and tensor.numel() and not tensor.is_meta:
                raise ValueError(
                    f"the storage of a tensor of {tuple(tensor.shape)} was freed: a kernel would read at 0"
                )
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
            plans[_odd(list(map(data_ptr, given)))] = plan
            self._plans.keep(key, given, plans)
        return outputs, plan

    def outputs_and_plan(self, tensors: Tensors, known: Known | None, unknown: tuple[Hashable, tuple]):
        """The outputs, and the plan that they were made by; ``unknown``, (options, settings), if nothing is known."""
        if known is None:
            return self.first(tensors, *unknown)
        plan, given, addresses = known
        return plan.run(given, addresses), plan

    def __len__(self) -> int:
        return len(self._plans)


def _key(given: Sequence[Tensor], options: Hashable) -> tuple:
    """All that a plan depends on and a guard does not tell; and sizes, since few plans of one key are kept."""
    first = given[0]
    return (
        options,
        first.shape,
        len(given),  # or a guard would raise
        _is_deterministic(),
        first.dtype is torch.float32 and _float32_products(),
        autotune.times_forgotten(),
    )


def _odd(addresses: list[int]) -> tuple[bool, ...]:
    """Which are not aligned, if any; other kernels are compiled, and other ones taken, for them. And which are 0: of
    tensors without elements, and of freed ones, which no plan is kept for."""
    for address in addresses:
        if address % ALIGNMENT or not address:
            return tuple([address % ALIGNMENT != 0 or not address for address in addresses])
    return ()
