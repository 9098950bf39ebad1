"""How the Triton kernels become PyTorch operators, ``torch.ops.triton_dirac.*``; when eager code skips the dispatcher.

Each operator has an exact schema, a fake kernel (shapes without data, for torch.compile and export) and a gradient,
and is opaque to the compiler: eager, compiled and interpreted runs all take the same path. Gradients of gradients
come from the operator's twin in the room's ``torch_backend``. Convolutions have an autocast rule and a FLOP formula.

The rooms' functions (``op.py``, ``dirac_op.py``) are the eager entry points: they skip PyTorch's dispatcher, which
costs more host time than the launch, when nothing needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from triton_dirac.runtime.tracing import is_plain

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


def short_cut(function: type[torch.autograd.Function], operator: Callable[..., Tensor]) -> tuple[Callable, Callable]:
    """(call, again): an operator's eager entry points, by an autograd.Function of its tensors, settings, options and
    replay that does the same below the dispatcher.

    ``call(tensors, settings, options=None)``: ``options`` are the caller's arguments, by which ``replay.find`` finds
    the call when it comes again, if it is to. ``again(tensors, replay)``: on tensors that ``replay`` fits.
    """
    # function.apply without its search for functorch's wrappers, which is_plain has excluded.
    apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def call(tensors: tuple[Tensor | None, ...], settings: tuple, options: tuple | None = None) -> Tensor:
        if torch.compiler.is_compiling() or not is_plain(*tensors):
            return operator(*tensors, *settings)
        return apply(*tensors, settings, options, None)

    def again(tensors: tuple[Tensor | None, ...], replay: Any) -> Tensor:
        return apply(*tensors, replay.settings, None, replay)

    return call, again


def may_launch(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be launched at once: no gradient is being recorded and nothing is tracing."""
    return not torch.is_grad_enabled() and is_plain(*tensors)
