"""Calls that are wrong in one argument: refused by TypeError, ValueError or RuntimeError, and by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import triton_dirac as td
from tests.fuzz.geometry import geometries

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

NOT_TENSORS = [None, 1.0, "weight", [[1.0]], object()]
NO_SIZE = [0, -1, 1.5, "1", None, (1, 2, 3), (1,) * 4, (1, -2), (), object(), math.nan]
NO_GROUPS = [0, -1, 1.5, "2", None, (1, 2), 7]
NO_CHOICE = ["", "RELU", "fast", 1, True, object()]

# name of the argument -> what makes it wrong, given the right value
Spoil = Callable[[Any, Any], Any]  # (draw, value) -> wrong value


def one_of(values: list) -> Spoil:
    return lambda draw, value: draw(st.sampled_from(values))


def wrong_tensor(draw, value: torch.Tensor) -> Any:
    """Of another rank, of a length that fits nothing, of integers or complex numbers, elsewhere, or no tensor."""
    makes = [
        lambda t: t[0] if t.dim() == 1 else t.flatten(),
        lambda t: t[None, None],
        lambda t: torch.cat([t, t, t], dim=0)[: 2 * t.shape[0] + 1] if t.dim() == 1 else t[..., :0],
        lambda t: t.int(),
        lambda t: t.bool(),
        lambda t: t.to(torch.complex64),
        lambda t: t.to("meta"),
        lambda t: t.to_sparse(),
        lambda t: draw(st.sampled_from(NOT_TENSORS)),
    ]
    return draw(st.sampled_from(makes))(value)


SPOILS: dict[str, Spoil] = {
    "image": wrong_tensor,
    "weight": wrong_tensor,
    "alpha": wrong_tensor,
    "beta": wrong_tensor,
    "bias": wrong_tensor,
    "stride": one_of(NO_SIZE),
    "padding": one_of([size for size in NO_SIZE if size != 0] + ["full", ""]),
    "dilation": one_of(NO_SIZE),
    "groups": one_of(NO_GROUPS),
    "activation": one_of(NO_CHOICE),
    "precision": one_of(["", "fp32", 1, True]),
    "form": one_of([*NO_CHOICE, None]),
    "eps": one_of([0.0, -1e-3, math.nan, "1e-12", None, (1,)]),
    "backend": one_of(["cuda", "", None, 1]),
}
NAMES = {"image": "input"}  # in the functions' signatures


def accepted(name: str, value: Any) -> bool:
    """What only looks wrong: None where an argument may be left out, and gradients' own type of number."""
    return value is None and name in ("bias", "activation", "precision")


def spoiled(data, arguments: dict[str, Any], device) -> tuple[str, dict[str, Any]]:
    name = data.draw(st.sampled_from([n for n in arguments if n in SPOILS and arguments[n] is not None]), label="name")
    wrong = SPOILS[name](data.draw, arguments[name])
    if accepted(name, wrong):
        wrong = object()
    return name, arguments | {name: wrong}


def refuse(function: Callable[..., Any], name: str, arguments: dict[str, Any]) -> None:
    called = {NAMES.get(key, key): value for key, value in arguments.items()}
    with pytest.raises((TypeError, ValueError, RuntimeError)) as refused:
        function(**called)
    assert type(refused.value) in (TypeError, ValueError, RuntimeError), repr(refused.value)
    wrong, said = arguments[name], str(refused.value)
    if not isinstance(wrong, torch.Tensor):
        assert NAMES.get(name, name) in said, f"{name} is not named: {said}"
    else:  # two shapes that disagree have two names
        tensors = [NAMES.get(other, other) for other, value in arguments.items() if isinstance(value, torch.Tensor)]
        assert any(tensor in said for tensor in tensors), f"{name} is not named: {said}"


@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@pytest.mark.parametrize("function", [td.conv2d, td.dirac_conv2d], ids=lambda f: f.__name__)
@given(data=st.data())
def test_convolution(data, function, backend, device):
    geometry = data.draw(geometries(), label="geometry")
    filters = geometry.weight[0]
    vector = torch.ones(filters, device=device)
    arguments = dict(zip(geometry._fields[2:], geometry[2:], strict=True)) | {
        "image": torch.ones(geometry.image, device=device), "weight": torch.ones(geometry.weight, device=device),
        "bias": vector, "alpha": vector, "activation": "relu", "precision": "ieee", "backend": backend,
    }  # fmt: skip
    if function is td.dirac_conv2d:
        arguments |= {"beta": vector, "form": "split", "eps": 1e-12}
    if data.draw(st.booleans(), label="after a right call of the same shapes"):
        function(**{NAMES.get(key, key): value for key, value in arguments.items()})
    name, arguments = spoiled(data, arguments, device)
    if name == "groups" and arguments["groups"] == 7 == geometry.groups:
        return
    refuse(function, name, arguments)


@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@pytest.mark.parametrize("one", [True, False], ids=["dirac_weight", "dirac_weights"])
@given(data=st.data())
def test_weights(data, one, backend, device):
    window = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3), label="window")
    vector = torch.ones(4, device=device)
    arguments = {
        "weight": torch.ones(4, 2, *window, device=device), "alpha": vector, "beta": vector,
        "groups": 2, "eps": 1e-12, "backend": backend,
    }  # fmt: skip
    name, arguments = spoiled(data, arguments, device)

    def call(weight, alpha, beta, **options):
        layer = (weight, alpha, beta)
        return td.dirac_weight(*layer, **options) if one else td.dirac_weights([layer], **options)

    if not one and isinstance(arguments["groups"], tuple):
        return
    refuse(call, name, arguments)
