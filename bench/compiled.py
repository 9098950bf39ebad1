"""torch.compile for contenders: never a silent fall back to eager code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor


def compiled(function: Any, **options: Any) -> Callable[..., Any]:
    """``torch.compile(function, fullgraph=True, **options)``, compiled afresh whatever was compiled before.

    Dynamo keeps eight graphs of one code object and runs eager code from the ninth on: each call of this compiles
    a code object of its own. (``torch.compiler.reset()`` would also drop what other contenders have compiled.)
    """
    import torch._dynamo

    torch._dynamo.config.fail_on_recompile_limit_hit = True  # an error, where one function meets too many sizes
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return torch.compile(own, fullgraph=True, **options)


@cache
def compiled_for_all_sizes(
    chain: Callable[..., Tensor], dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> Callable[..., Tensor]:
    """A weight preparation ``chain(weight, alpha, beta, delta, dtype, layout)``, compiled once for any sizes.

    On a CPU a graph takes 10 s to compile, and there are 34 layers; a net has up to 32 in one call.
    """
    of_any_size = compiled(chain, dynamic=True)
    # Sizes that are equal in its first call, torch.compile takes to be equal always: K, C, R, S differ here.
    weight = torch.ones(24, 16, 3, 5, device=device)
    delta = torch.nn.init.dirac_(torch.empty_like(weight))
    leaves = [weight, *(torch.ones(24, device=device) for _ in range(2))]
    with torch.no_grad():
        of_any_size(*leaves, delta, dtype, layout)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = of_any_size(*leaves, delta, dtype, layout)
    torch.autograd.grad(output, leaves, torch.ones_like(output))
    return of_any_size
