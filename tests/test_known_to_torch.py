"""Convolutions that torch computes are checked once: later ones like them give what they would have given at first."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import triton_dirac as td
from tests.runtime.test_planned import calls_of
from tests.tolerance import assert_as_good_as_torch
from triton_dirac import functional, known_to_torch, reference
from triton_dirac.runtime.signature_cache import SignatureCache

pytestmark = pytest.mark.cpu
NAMES = {"conv2d": ("input", "weight", "bias", "alpha"), "dirac_conv2d": ("input", "weight", "alpha", "beta", "bias")}


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(known_to_torch, "_problems", SignatureCache())


def tensors(function: str, seed: int = 0, size: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"input": (2, 3, size, size), "weight": (4, 3, 3, 3)}
    return {name: torch.randn(shapes.get(name, (4,)), generator=generator) for name in NAMES[function]}


def call(function: str, inputs: dict[str, torch.Tensor], **options) -> torch.Tensor:
    return getattr(td, function)(**inputs, **({"padding": 1, "backend": "torch"} | options))


def assert_right(function: str, inputs: dict[str, torch.Tensor], output: torch.Tensor, **options) -> None:
    wide = {name: tensor.detach().double() for name, tensor in inputs.items()}
    expected = getattr(reference, function)(**wide, **({"padding": 1} | options))
    assert_as_good_as_torch("output", output.detach(), expected)


@pytest.mark.parametrize("function", NAMES)
def test_a_call_like_an_earlier_one_is_not_checked_again_and_is_of_its_own_tensors(function, monkeypatch):
    for seed in range(3):
        inputs = {name: tensor.requires_grad_() for name, tensor in tensors(function, seed).items()}
        output = call(function, inputs)
        assert_right(function, inputs, output)
        wide = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
        exact = getattr(reference, function)(**wide, padding=1)
        upstream = torch.randn_like(output)
        mine = torch.autograd.grad(output, inputs.values(), upstream)
        theirs = torch.autograd.grad(exact, wide.values(), upstream.double())
        for name, actual, expected in zip(inputs, mine, theirs, strict=True):
            assert_as_good_as_torch(name, actual, expected)
        monkeypatch.setattr(functional, "check_call", None)


@pytest.mark.parametrize("function", NAMES)
@pytest.mark.parametrize(
    "options", [{"groups": 3}, {"stride": 2}, {"dilation": 2}, {"activation": "relu"}, {"padding": 0}], ids=str
)
def test_other_options_are_other_calls(function, options):
    inputs = tensors(function)
    call(function, inputs)
    if "groups" in options:
        inputs["weight"] = inputs["weight"][:3, :1]
        inputs = {name: tensor[:3] if tensor.dim() == 1 else tensor for name, tensor in inputs.items()}
    for _ in range(2):
        assert_right(function, inputs, call(function, inputs, **options), **options)


@pytest.mark.parametrize("function", NAMES)
def test_tensors_that_differ_are_checked(function):
    """Each of these errors is the one that a first call raises."""
    inputs = tensors(function)
    wrong = {
        "alpha": (torch.ones(3), ValueError, "alpha must have shape"),
        "bias": (torch.ones(5), ValueError, "bias must have shape"),
        "weight": (torch.randn(4, 2, 3, 3), ValueError, "input has 3 channels, but weight"),
        "input": (torch.randn(2, 3), ValueError, "input must have shape"),
    }
    for name, (tensor, error, message) in wrong.items():
        call(function, inputs)
        with pytest.raises(error, match=message):
            call(function, inputs | {name: tensor})
    with pytest.raises(TypeError, match="weight must have input's dtype"):
        call(function, inputs | {"weight": inputs["weight"].half()})
    with pytest.raises(ValueError, match="groups must be a positive integer"):
        call(function, inputs, groups=1.0)
    inputs["weight"].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="weight must have memory"):
        call(function, inputs)


@pytest.mark.parametrize("function", NAMES)
def test_autocast_casts_what_was_known_without_it(function):
    inputs = tensors(function)
    for dtype in (None, torch.bfloat16, torch.float16, None, torch.float16):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            assert call(function, inputs).dtype == (dtype or torch.float32)


@pytest.mark.parametrize("function", NAMES)
def test_what_was_known_under_autocast_to_one_dtype_is_cast_to_another(function):
    """Also where nothing had to be cast before: to the bit what it is where nothing is known."""
    inputs = tensors(function)
    for name in ("input", "weight")[: 2 if function == "conv2d" else 1]:
        inputs[name] = inputs[name].bfloat16()
    found = []
    for dtype in (torch.float16, torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            found.append(call(function, inputs))
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("function", NAMES)
def test_transforms_and_compilers_see_every_operation(function):
    inputs = tensors(function)
    image = inputs.pop("input")
    expected = call(function, {"input": image, **inputs})
    run = partial(call, function)
    several = torch.vmap(lambda scale: run({"input": image * scale, **inputs}))(torch.ones(2))
    torch.testing.assert_close(several, torch.stack([expected, expected]))
    compiled = torch.compile(lambda image: run({"input": image, **inputs}), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), expected)
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda image: run({"input": image, **inputs}))(image)
    assert any("convolution" in str(node.target) for node in traced.graph.nodes)
    torch.testing.assert_close(traced(2 * image), run({"input": 2 * image, **inputs}))


@pytest.mark.parametrize("function, most", [("conv2d", 95), ("dirac_conv2d", 140)])
def test_a_known_call_makes_few_calls(function, most):
    """What it costs beside torch's convolution, counted instead of timed: 195 and 258 where all is checked."""
    inputs = tensors(function)
    for _ in range(2):
        call(function, inputs)
    calls = calls_of(lambda: call(function, inputs))
    assert len(calls) <= most, (len(calls), calls)
