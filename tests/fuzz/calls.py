"""Making calls and holding what they give against ``expected``: one way for functions and modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.fuzz.expected import Convolve, Expected, Tensors, compare, of_convolution
from tests.fuzz.tensors import LAYOUTS, ORDINARY, Spec, specs
from tests.placement import CPU

CHANGED = "modified by an inplace operation"


class Backward(NamedTuple):
    """How gradients are asked for: what the upstream one is like, and what is written to before."""

    layout: str
    seed: int
    changed: str | None

    def grad(self, like: Tensor) -> Tensor:
        values = torch.randn(like.shape, generator=torch.Generator().manual_seed(self.seed), device=CPU)
        return LAYOUTS[self.layout](values.to(like.device, like.dtype))

    def change(self, output: Tensor, leaves: Tensors) -> bool:
        """Write to a tensor as an optimiser's step would; False where torch does not write to such a tensor."""
        target = output if self.changed == "output" else leaves.get(self.changed or "")
        if target is None:
            return False
        try:
            with torch.no_grad():
                target.mul_(3)
        except RuntimeError:  # several elements are one place in memory
            return False
        return True


def backwards(*names: str) -> st.SearchStrategy[Backward]:
    return st.builds(
        Backward,
        st.sampled_from(list(LAYOUTS)),
        st.integers(0, 999),
        st.sampled_from([None, None, None, "output", *names]),
    )


def make_leaves(tensors: dict[str, Spec | str | None], device: torch.device, round: int) -> Tensors:
    """Tensors by name; a spec that is another's name is that other's tensor."""
    made = {name: spec.make(device, round) for name, spec in tensors.items() if isinstance(spec, Spec)}
    return {name: made[spec] if isinstance(spec, str) else made.get(name) for name, spec in tensors.items()}


def check_convolution(
    function: Callable[[Tensors], Tensor],
    leaves: Tensors,
    tensors: dict[str, Spec | str | None],
    convolve: Convolve,
    backward: Backward,
    *,
    eps: float,
    groups: int,
    activation: str | None,
) -> None:
    """The output and all gradients of ``function(leaves)``, or a refusal because of ``backward.changed``."""
    before = {name: None if leaf is None else leaf.detach().clone() for name, leaf in leaves.items()}
    output = function(leaves)
    trained = {id(leaf): leaf for leaf in leaves.values() if leaf is not None and leaf.requires_grad}
    assert output.dtype == before["image"].dtype
    assert output.requires_grad == bool(trained), f"requires_grad is {output.requires_grad}"
    values = output.detach().clone()
    grad = backward.grad(output)

    def upstream(like: Tensor) -> Tensor:
        return torch.where(values <= 0, 0, grad) if activation == "relu" else grad

    expected = of_convolution(before, upstream, convolve, eps=eps, groups=groups, activation=activation)
    narrow = values.dtype
    hostile = {name for name, spec in tensors.items() if isinstance(spec, Spec) and spec.content in ("infinite", "nan")}
    finite = hostile <= {"image", "bias"}
    # relu makes 0 of -inf: a sum that is -inf in one form and inf - inf in another has a finite output or has none.
    compare("output", values, expected["output"], narrow, strict=finite and not (hostile and activation == "relu"))
    if not trained:
        return
    gradients = take_gradients(output, list(trained.values()), grad, backward, leaves)
    if gradients is None or not finite:
        return
    for leaf, gradient in zip(trained.values(), gradients, strict=True):
        names = [name for name, other in leaves.items() if other is leaf]
        compare(f"gradient of {' = '.join(names)}", gradient, _sum([expected[name] for name in names]), narrow)


def take_gradients(
    output: Tensor, trained: list[Tensor], grad: Tensor, backward: Backward, leaves: Tensors
) -> list[Tensor] | None:
    """Gradients, each of its tensor's dtype; None where torch refuses because one was written to."""
    changed = backward.change(output, leaves)
    try:
        gradients = torch.autograd.grad(output, trained, grad, retain_graph=True)  # outputs may share nodes
    except RuntimeError as error:
        if changed and CHANGED in str(error):
            return None
        raise
    assert [g.dtype for g in gradients] == [leaf.dtype for leaf in trained]
    return list(gradients)


def _sum(parts: list[Expected]) -> Expected:
    """The gradient of a tensor that is several arguments."""
    return Expected(*(sum(tensors[1:], tensors[0]) for tensors in zip(*parts, strict=True)))


def per_filter(filters: int, dtype: torch.dtype) -> st.SearchStrategy[Spec]:
    """alpha or beta: (K,) or (1,), of the weight's dtype or float32."""
    shapes = st.sampled_from([(filters,), (filters,), (1,)])
    dtypes = st.sampled_from([dtype, torch.promote_types(dtype, torch.float32)])
    both = st.tuples(shapes, dtypes)
    return both.flatmap(lambda kind: specs(*kind, contents=("normal", "normal", "zeros", "nan", "infinite")))


def images(shape: tuple[int, ...], dtype: torch.dtype) -> st.SearchStrategy[Spec]:
    """A batch, or a lone image where the batch is of one."""
    alone = st.booleans() if shape[0] == 1 else st.just(False)
    contents = (*ORDINARY, "infinite", "nan", "subnormal", "huge")
    return alone.flatmap(lambda lone: specs(shape[1:] if lone else shape, dtype, contents))


EPS = st.sampled_from([1e-12, 1e-12, 1e-3])
WEIGHTS = (*ORDINARY, "subnormal", "infinite", "nan")
