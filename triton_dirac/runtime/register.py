"""How the Triton kernels become PyTorch operators, ``torch.ops.triton_dirac.*``; when eager code skips the dispatcher.

Each operator has an exact schema, a fake kernel (shapes without data, for torch.compile and export) and a gradient,
and is opaque to the compiler: eager, compiled and interpreted runs all take the same path. Gradients of gradients
come from the operator's twin in the room's ``torch_backend``. Convolutions have an autocast rule and a FLOP formula.

The rooms' functions (``op.py``, ``dirac_op.py``) are the eager entry points: they skip PyTorch's dispatcher, which
costs more host time than the launch, when nothing needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from triton_dirac.runtime.plan import Plan, Tensors
from triton_dirac.runtime.planned import Planned
from triton_dirac.runtime.tracing import PLAIN, is_plain

NAMESPACE = "triton_dirac"
GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
library = torch.library.Library(NAMESPACE, "DEF")


def define(signature: str, run: Callable, fake: Callable) -> Callable:
    """The operator of this schema: ``run`` on GPUs and, in Triton's interpreter, on CPUs; ``fake`` for tracing."""
    name = signature.split("(")[0]
    library.define(signature, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CUDA", "CPU"):
        library.impl(name, run, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def planned_run(planned: Planned, tensors: int) -> Callable:
    """What ``define`` runs: a planned function of ``tensors`` tensors and settings."""

    def run(*arguments):
        given = arguments[:tensors]
        settings = tuple([tuple(value) if isinstance(value, list) else value for value in arguments[tensors:]])
        options = _options_of(given, settings)
        outputs, _ = planned.outputs_and_plan(given, planned.find(given, options), (options, settings))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


def _options_of(tensors: Tensors, settings: tuple) -> Hashable:
    """What a call without options of its own is known by."""
    return settings, tuple([tensor is None for tensor in tensors])


def planned_gradients(ctx, tensors: Tensors, needed: tuple[bool, ...]) -> Sequence[Tensor | None] | None:
    """The gradients that are needed, by the plan of the backward of the call that ``ctx`` is of, from ``tensors`` and
    ``ctx.settings``. None where operators have to compute them: for tracers, and gradients of gradients."""
    plan = ctx.plan
    if plan is None or torch.is_grad_enabled():
        return None
    known = plan.backward.find(tensors, needed)  # all else follows from the plan
    if known is None and not is_plain(*tensors):
        return None
    return plan.backward.outputs_and_plan(tensors, known, (needed, (*ctx.settings, needed)))[0]


def through(steps: Plan | None, *ways: tuple[Callable, Callable]) -> list[Callable]:
    """``do`` and what is done: the first of each way with ``steps`` to note it in, or the second, an operator."""
    if steps is None:
        return [lambda function, *arguments: function(*arguments), *(operator for _, operator in ways)]
    return [steps.do, *(partial(planning, steps) for planning, _ in ways)]


def register_gradient(name: str, backward: Callable, setup_context: Callable) -> None:
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=library)


def register_autocast(name: str, op: Callable, cast: Callable[..., tuple]) -> None:
    """Under autocast call ``op`` with ``cast(autocast dtype, *arguments)``; what is added in float32 stays so."""
    for device_type in ("cuda", "cpu"):
        key = f"Autocast{device_type.upper()}"
        guard = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def run(*arguments, device_type=device_type, guard=guard):
            with torch._C._ExcludeDispatchKeyGuard(guard):
                return op(*cast(torch.get_autocast_dtype(device_type), *arguments))

        library.impl(name, run, key)


def twin_gradient(twin: Callable) -> tuple[Callable, Callable]:
    """(backward, setup_context) of an operator whose gradient is that of a torch function of equal arguments."""

    def setup_context(ctx, inputs, output):
        ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.rest = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))

    def backward(ctx, *grads):
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            arguments = list(ctx.rest)
            for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
                arguments[place] = tensor.view_as(tensor)  # a new node: gradients stop here, not at a leaf
            outputs = twin(*arguments)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            wanted = [place for place in ctx.places if ctx.needs_input_grad[place]]
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad and g is not None]
            found = torch.autograd.grad(
                [o for o, _ in pairs],
                [arguments[place] for place in wanted],
                [g for _, g in pairs],
                create_graph=again,
                allow_unused=True,
            )
        result: list[Tensor | None] = [None] * len(arguments)
        for place, gradient in zip(wanted, found, strict=True):
            result[place] = gradient
        return tuple(result)

    return backward, setup_context


def entry(function: type[torch.autograd.Function], planned: Planned, operator: Callable[..., Tensor]):
    """(again, call): an operator's entry points for eager code, by an autograd.Function that does the same below the
    dispatcher, of the tensors, what is known of the call and what it takes to plan it: see ``Planned``.

    ``again(tensors, options)``: the output of a call that is known, None of one that is not. ``call(tensors, settings,
    options)``: of a checked one; ``options`` are the caller's arguments, by which it is known when it comes again.
    """
    # function.apply without its search for functorch's wrappers, which is_observed has excluded.
    apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def again(tensors: Tensors, options: Hashable) -> Tensor | None:
        if options is None or type(tensors[0]) not in PLAIN:
            return None  # what stands in for a tensor is not asked for its sizes: torch.fx would note that
        known = planned.find(tensors, options)
        if known is None:
            return None
        plan, given, addresses = known
        if plan.trained and torch.is_grad_enabled():
            return apply(*tensors, known, None)
        return plan.run(given, addresses)[0]

    def call(tensors: Tensors, settings: tuple, options: Hashable = None) -> Tensor:
        if not is_plain(*tensors):
            return operator(*tensors, *settings)
        return apply(*tensors, None, (options or _options_of(tensors, settings), settings))

    return again, call


def may_launch(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be launched at once: no gradient is being recorded and nothing is tracing."""
    return not torch.is_grad_enabled() and is_plain(*tensors)
