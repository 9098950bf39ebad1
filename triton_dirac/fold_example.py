"""What happens on an example: which batch-norm follows which convolution there, and whether a folded model agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from triton_dirac.fold_evidence import Neighbours, Pairs, copy_of, is_conv, is_norm, name_pairs, pairs_of
from triton_dirac.modules import _DiracConv

Fold = Callable[[nn.Module, Pairs, Sequence[str]], nn.Module]  # of pairs, and Dirac layers by name, in place

# Of the largest entry. In float64 folding differs by rounding alone, 1e-13 in deep nets, and the slip of a single
# eps of a batch-norm is 1e-6.
ROUGHLY = 0.2  # what is left of the same in the model's own dtype, which it may narrow on its way
AGREES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def run(model: nn.Module, example: Any) -> Any:
    """model(example): a tuple is the positional arguments, a dictionary those by name, anything else the only one."""
    if isinstance(example, tuple):
        return model(*example)
    return model(**example) if isinstance(example, dict) else model(example)


@contextmanager
def plainly() -> Iterator[None]:
    """Within it nothing but the model decides how it computes: neither inference mode nor autocast."""
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        yield


def ordinary(example: Any) -> Any:
    """The example without inference tensors, which a graph cannot hold."""
    return tree_map_only(Tensor, lambda tensor: tensor.clone() if tensor.is_inference() else tensor, example)


def _ways(model: nn.Module) -> Iterator[None]:
    """Two calls, without and with gradients: a forward may look at the mode, and at what its last call has left."""
    graphs = not any(parameter.is_inference() for parameter in model.parameters())
    for enabled in (False, graphs):
        with torch.set_grad_enabled(enabled):
            yield


def pairs_seen(model: nn.Module, example: Any) -> Pairs:
    """Pairs of which the batch-norm took just what the convolution gave, each time that either was called."""
    copied = copy_of(model)
    names = {module: name for name, module in copied.named_modules()}
    followers: Neighbours = {}
    sources: Neighbours = {}
    outputs: dict[int, tuple[nn.Module, Tensor, int]] = {}

    def after_conv(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs[id(output)] = module, output, output._version

    def after_norm(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        source = outputs.pop(id(inputs[0]), None) if inputs else None
        unchanged = source is not None and source[1]._version == source[2]
        sources.setdefault(module, set()).add(source[0] if source is not None and unchanged else None)
        if source is not None:
            followers.setdefault(source[0], set()).add(module if unchanged else None)

    for module in names:
        if is_conv(module):
            module.register_forward_hook(after_conv)  # type: ignore[arg-type]
        elif is_norm(module):
            module.register_forward_hook(after_norm)  # type: ignore[arg-type]
    for _ in _ways(model):
        run(copied, example)
    for conv, _, _ in outputs.values():  # that no batch-norm took
        followers.setdefault(conv, set()).add(None)
    return name_pairs(pairs_of(followers, sources), names)


class NothingToCompare(ValueError):
    """An example's output has no values."""


class Check:
    """A model's output on an example, for folded copies to be held against; in float64 where the model computes in it.

    Raises:
        NothingToCompare: there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        fold: Fold,
        dtype: torch.dtype | None = torch.float64,
        tolerance: float | None = None,
    ) -> None:
        self.fold = fold
        self.model = copy_of(model) if dtype is None else _wide(model)
        self.example = example if dtype is None else tree_map_only(Tensor, _widened, example)
        self.dtype, self.tolerance = dtype, tolerance
        self.expected = self._output(self.model)
        if not self.expected or any(tensor.is_meta for tensor in self.expected):
            raise NothingToCompare("example must give outputs with values: there is no tensor with data to compare")

    def is_steady(self) -> bool:
        """Whether the model computes the same as before when nothing is folded."""
        return self._agrees(self._output(self.model))

    def agrees(self, pairs: Pairs, layers: Sequence[str]) -> bool:
        """Whether the model computes the same when these are folded."""
        try:
            return self._agrees(self._output(self.fold(copy_of(self.model), pairs, layers)))
        except Exception:  # whatever a forward does when it does not find what it asks its layers for
            return False

    def _output(self, model: nn.Module) -> list[Tensor]:
        copied, outputs = copy_of(model), []
        for _ in _ways(model):
            outputs += [tensor.detach().clone() for tensor in _tensors(run(copied, self.example))]
        return outputs

    def _agrees(self, actual: list[Tensor]) -> bool:
        if len(actual) != len(self.expected):
            return False
        return all(
            _same(mine, theirs, self.dtype, self.tolerance) for mine, theirs in zip(actual, self.expected, strict=True)
        )


def check_of(model: nn.Module, example: Any, fold: Fold) -> Check:
    """In float64, or else in the model's own dtype where its forward does not take that."""
    try:
        return Check(model, example, fold)
    except NothingToCompare:
        raise
    except Exception:
        return Check(model, example, fold, None)


def agreeing(check: Check, layers: Sequence[str], kept: Pairs, others: Pairs) -> Pairs:
    """``kept`` and as many of ``others`` as leave the model's output what it is, found by halves."""
    both = kept | others
    if not others or check.agrees(both, layers):
        return both
    if len(others) == 1:
        return kept
    items = list(others.items())
    kept = agreeing(check, layers, kept, dict(items[: len(items) // 2]))
    return agreeing(check, layers, kept, dict(items[len(items) // 2 :]))


def _wide(model: nn.Module) -> nn.Module:
    copied = copy_of(model).double()
    for module in copied.modules():
        if isinstance(module, _DiracConv):
            module.backend = "torch"  # which takes float64
    return copied


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _tensors(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """Tensors in a model's output, in order: in tuples, lists, dictionaries and objects that hold such."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, Mapping)):
        entries = value.values() if isinstance(value, Mapping) else value
        for entry in entries:
            yield from _tensors(entry, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        yield from _tensors(vars(value), depth - 1)


def _same(actual: Tensor, expected: Tensor, dtype: torch.dtype | None, tolerance: float | None) -> bool:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if not (expected.is_floating_point() or expected.is_complex()):  # indices of what is nearly equal may swap
        return dtype is None or torch.equal(actual, expected)
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return False
    if not torch.equal(actual[~finite].nan_to_num(), expected[~finite].nan_to_num()):
        return False
    actual, expected = actual[finite], expected[finite]
    largest = expected.abs().max().item() if actual.numel() else 0.0
    error = (actual - expected).abs().max().item() if actual.numel() else 0.0
    tolerance = AGREES.get(dtype or expected.dtype, AGREES[torch.float32]) if tolerance is None else tolerance
    return error <= tolerance * largest
