"""The public functions: every wrong argument gets its error, every backend the same numbers and gradients."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import triton_dirac as td
from tests.placement import DEVICE
from tests.tolerance import ABSOLUTE, assert_as_good_as_torch
from triton_dirac import reference
from triton_dirac.conv.epilogue import ACTIVATIONS
from triton_dirac.identity_term import diagonal

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def dirac_arguments(filters=6, channels=4, window=(3, 3), dtype=torch.float32, device=DEVICE, groups=1):
    weight = torch.randn(filters, channels // groups, *window, dtype=dtype, device=device)
    alpha = torch.rand(filters, dtype=dtype, device=device) + 0.5
    beta = torch.rand(filters, dtype=dtype, device=device) * 0.2 + 0.05
    return weight, alpha, beta


# --- errors -----------------------------------------------------------------------------------------------

WEIGHT, ALPHA, BETA = torch.randn(6, 4, 3, 3), torch.ones(6), torch.ones(6)
IMAGE = torch.randn(2, 4, 8, 8)
KNOWN = ", ".join(map(repr, ACTIVATIONS))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"input": torch.randn(8, 8)}, ValueError, r"input must have shape .* got \(8, 8\)"),
        ({"weight": torch.randn(6, 4, 3)}, ValueError, r"weight must have shape .* got \(6, 4, 3\)"),
        ({"input": torch.randn(2, 5, 8, 8)}, ValueError, r"input has 5 channels, but weight .* takes 4"),
        ({"weight": WEIGHT.double()}, TypeError, r"weight must have input's dtype torch.float32 or float32"),
        ({"weight": torch.ones(6, 4, 3, 3, dtype=torch.int32)}, TypeError, r"weight must be floating-point"),
        ({"alpha": torch.ones(5)}, ValueError, r"alpha must have shape \(6,\) or \(1,\), got \(5,\)"),
        ({"beta": torch.ones(6, 1)}, ValueError, r"beta must have shape \(6,\) or \(1,\), got \(6, 1\)"),
        (
            {"alpha": torch.ones(6).double()},
            TypeError,
            r"alpha must have weight's dtype .* got torch.float64",
        ),
        ({"bias": torch.ones(4)}, ValueError, r"bias must have shape \(6,\), got \(4,\)"),
        ({"bias": torch.ones(6).double()}, TypeError, r"bias must have input's dtype"),
        (
            {"beta": torch.ones(6, device="meta")},
            ValueError,
            r"beta must be on weight's device (cpu|cuda:0), got meta",
        ),
        ({"input": IMAGE.to("meta")}, ValueError, r"weight must be on input's device meta, got (cpu|cuda:0)"),
        ({"stride": 0}, ValueError, r"stride must be a positive integer below 2 \*\* 31 or a pair of them, got 0"),
        ({"stride": (1, 2, 3)}, ValueError, r"stride must be .* got \(1, 2, 3\)"),
        ({"dilation": 0}, ValueError, r"dilation must be a positive integer"),
        ({"padding": -1}, ValueError, r"padding must be a non-negative integer .* got -1"),
        ({"padding": "full"}, ValueError, r"padding must be .* 'same' or 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, r"padding='same' needs stride 1"),
        ({"groups": 3}, ValueError, r"groups must be a positive integer that divides .* got 3"),
        ({"groups": 0}, ValueError, r"groups must be a positive integer .* got 0"),
        ({"input": torch.randn(2, 4, 2, 2)}, ValueError, r"output would be empty \(0 x 0\)"),
        ({"eps": 0.0}, ValueError, r"eps must be positive, got 0.0"),
        ({"form": "folded"}, ValueError, r"form must be one of 'split', 'materialised', got 'folded'"),
        ({"backend": "cuda"}, ValueError, r"backend must be one of 'auto', 'triton', 'torch', got 'cuda'"),
        ({"activation": "gelu"}, ValueError, f"activation must be None or one of {KNOWN}, got 'gelu'"),
        ({"precision": "tf64"}, ValueError, r"precision must be None or one of .* got 'tf64'"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_wrong_arguments(change, error, message, backend):
    arguments = {"input": IMAGE, "weight": WEIGHT, "alpha": ALPHA, "beta": BETA, "backend": backend}
    with pytest.raises(error, match=message):
        td.dirac_conv2d(**(arguments | change))


def test_wrong_arguments_of_conv2d():
    with pytest.raises(TypeError, match=r"weight must have input's dtype torch.float32, got torch.float16"):
        td.conv2d(IMAGE, WEIGHT.half())
    with pytest.raises(ValueError, match=r"weight must not be empty"):
        td.conv2d(torch.randn(1, 0, 8, 8), torch.randn(6, 0, 3, 3))


def test_wrong_arguments_of_dirac_weight():
    with pytest.raises(ValueError, match=r"weight must have shape .* got \(6, 4\)"):
        td.dirac_weight(WEIGHT[:, :, 0, 0], ALPHA, BETA)
    with pytest.raises(TypeError, match=r"dtype must be a floating-point dtype, got torch\.int32"):
        td.dirac_weight(WEIGHT, ALPHA, BETA, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"memory_format of a 4-D weight must be .* got torch\.channels_last_3d"):
        td.dirac_weight(WEIGHT, ALPHA, BETA, memory_format=torch.channels_last_3d)


def test_float64_on_triton_says_what_takes_it():
    with pytest.raises(TypeError, match=r"backend 'triton' takes .* got torch.float64 \(backend 'torch' takes it\)"):
        td.conv2d(IMAGE.double(), WEIGHT.double(), backend="triton")


def test_triton_on_a_cpu_says_how_to_get_it():
    """Outside the interpreter, which only another process can be."""
    code = (
        "import torch, triton_dirac as td\n"
        "td.conv2d(torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3), backend='triton')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert "RuntimeError: backend 'triton' cannot run on cpu" in result.stderr
    assert "TRITON_INTERPRET=1" in result.stderr


# --- numbers ----------------------------------------------------------------------------------------------

GEOMETRIES = [
    {"padding": 1},
    {"stride": 2, "padding": (2, 0)},
    {"padding": "same", "dilation": (1, 2)},
    {"padding": "valid"},
    {"stride": (1, 3), "padding": 3, "dilation": 2},
    {"padding": 1, "groups": 2},
]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("form", ["split", "materialised"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_dirac_conv2d_and_every_gradient(geometry, dtype, form, backend, device):
    groups = geometry.get("groups", 1)
    weight, alpha, beta = dirac_arguments(dtype=dtype, device=device, groups=groups)
    image = torch.randn(2, 4, 9, 7, dtype=dtype, device=device)
    bias = torch.randn(6, dtype=dtype, device=device)
    leaves = {"input": image, "weight": weight, "alpha": alpha, "beta": beta, "bias": bias}

    def run(function, dtype, **options):
        tensors = {k: v.detach().to(dtype).requires_grad_() for k, v in leaves.items()}
        output = function(**tensors, **geometry, **options)
        torch.manual_seed(1)
        output.backward(torch.randn(output.shape).to(output))
        return {"output": output.detach()} | {k: v.grad for k, v in tensors.items()}

    expected = run(reference.dirac_conv2d, torch.float64)
    in_dtype = run(reference.dirac_conv2d, dtype)
    actual = run(td.dirac_conv2d, dtype, form=form, backend=backend)
    for name in expected:
        assert_as_good_as_torch(f"{backend} {form} {name}", actual[name], expected[name], in_dtype[name])


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("alphas", [1, 7])
def test_conv2d_with_every_epilogue_from_an_expanded_gradient(alphas, activation, backend, device):
    image, weight = torch.randn(2, 5, 6, 7, device=device), torch.randn(7, 5, 3, 3, device=device)
    bias, alpha = torch.randn(7, device=device), torch.randn(alphas, device=device)

    def run(function, dtype, **options):
        x, w, b, a = (t.to(dtype).requires_grad_() for t in (image, weight, bias, alpha))
        output = function(x, w, b, padding=1, alpha=a, activation=activation, **options)
        output.sum().backward()
        return output.detach(), x.grad, w.grad, b.grad, a.grad

    names = ("output", "input", "weight", "bias", "alpha")
    expected = run(reference.conv2d, torch.float64)
    actual = run(td.conv2d, torch.float32, backend=backend, precision="ieee")
    for name, mine, theirs in zip(names, actual, expected, strict=True):
        assert_as_good_as_torch(f"{backend} {name}", mine, theirs)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dirac_conv2d_with_an_activation_and_every_gradient(dtype, activation, backend, device):
    """Twice: the second call is done as the first was."""
    names = ("input", "weight", "alpha", "beta", "bias")
    for _ in range(2):
        image = torch.randn(2, 4, 5, 6, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        leaves = [image, *dirac_arguments(dtype=dtype, device=device), torch.randn(6, dtype=dtype, device=device)]
        grad = torch.randn(2, 6, 5, 6, device=device, dtype=dtype)

        def run(function, dtype, leaves=leaves, grad=grad, **options):
            tensors = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
            output = function(*tensors, padding=1, activation=activation, **options)
            return [output.detach(), *torch.autograd.grad(output, tensors, grad.to(dtype))]

        expected, in_dtype = run(reference.dirac_conv2d, torch.float64), run(reference.dirac_conv2d, dtype)
        actual = run(td.dirac_conv2d, dtype, backend=backend)
        for name, *three in zip(("output", *names), actual, expected, in_dtype, strict=True):
            assert_as_good_as_torch(f"{backend} {name}", *three)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_activations_at_extremes_are_torchs(dtype, activation, backend):
    infinity = float("inf")
    shifts = torch.tensor([-infinity, -6e4, -104.0, -90.0, -20.0, -0.0, 0.0, 20.0, 6e4, infinity, float("nan")])
    image, weight = torch.zeros(1, 2, 3, 3, dtype=dtype), torch.zeros(11, 2, 1, 1, dtype=dtype)

    def run(function, dtype, **options):
        bias = shifts.to(image.dtype).to(dtype).requires_grad_()
        output = function(image.to(dtype), weight.to(dtype), bias, activation=activation, **options)
        return torch.autograd.grad(output[:, :, 0, 0].sum(), bias)[0]

    expected = run(reference.conv2d, torch.float64).to(dtype)
    actual = run(td.conv2d, dtype, backend=backend)
    at_nan = [gradient_at_nan(activation, entries) for entries in (1, 64)]
    assert any(torch.equal(actual[-1:].nan_to_num(-1), one) for one in torch.stack(at_nan).to(dtype).nan_to_num(-1))
    rounding = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual[:-1], expected[:-1], rtol=rounding, atol=1e-6, equal_nan=True)


def gradient_at_nan(activation, entries):
    """Torch's, which for hardtanh is 1 in short tensors and 0 in those that its vector loops take, of one entry."""
    z = torch.full((entries,), float("nan"), requires_grad=True)
    return torch.autograd.grad(getattr(F, activation)(z).sum(), z)[0][:1]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autocast_of_an_activation(activation, backend):
    narrow = [t.bfloat16() for t in (IMAGE, WEIGHT, ALPHA)]

    def run(function, dtype, **options):
        x, w, b = (t.to(dtype).requires_grad_() for t in narrow)
        output = function(x, w, b, padding=1, activation=activation, **options)
        return output, *torch.autograd.grad(output, (x, w, b), torch.ones_like(output))

    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        results = run(td.conv2d, torch.float32, backend=backend)
    assert [result.dtype for result in results] == [torch.bfloat16, *[torch.float32] * 3]
    expected, in_dtype = run(reference.conv2d, torch.float64), run(reference.conv2d, torch.bfloat16)
    for name, mine, theirs, rounded in zip("yxwb", results, expected, in_dtype, strict=True):
        atol = ABSOLUTE[torch.bfloat16] * theirs.abs().max().item()  # gradients in float32 are of a pass in bfloat16
        assert_as_good_as_torch(name, mine.detach(), theirs.detach(), rounded.detach(), atol)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_unbatched_input(backend):
    output = td.conv2d(IMAGE[0], WEIGHT, padding=1, backend=backend)
    assert_as_good_as_torch("output", output, F.conv2d(IMAGE[0].double(), WEIGHT.double(), padding=1))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_empty_batch(backend):
    image = torch.randn(0, 4, 8, 8, requires_grad=True)
    weight = WEIGHT.clone().requires_grad_()
    output = td.conv2d(image, weight, padding=1, backend=backend)
    assert output.shape == (0, 6, 8, 8)
    output.sum().backward()
    assert image.grad.shape == image.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 4, 2, 3), (4, 6, 3, 3, 2)])
def test_dirac_weight_in_one_two_and_three_dimensions(shape, backend):
    weight, alpha, beta = torch.randn(shape), torch.randn(shape[0]), torch.randn(1)
    expected = reference.dirac_weight(weight.double(), alpha.double(), beta.double())
    assert_as_good_as_torch("weight", td.dirac_weight(weight, alpha, beta, backend=backend), expected)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_dirac_weight_memory_format_and_dtype(backend):
    prepared = td.dirac_weight(
        WEIGHT, ALPHA, BETA, dtype=torch.bfloat16, memory_format=torch.channels_last, backend=backend
    )
    assert prepared.dtype == torch.bfloat16
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    assert not prepared.is_contiguous()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_frozen_weight_costs_no_wgrad_and_alpha_still_learns(backend):
    """alpha's gradient does not need the weight's: the centre tap is summed directly."""
    weight, alpha, beta = dirac_arguments(dtype=torch.float64)
    expected_alpha = alpha.clone().requires_grad_()
    grad = torch.randn(2, 6, 8, 8)
    reference.dirac_conv2d(IMAGE.double(), weight, expected_alpha, beta, padding=1).backward(grad.double())
    alpha32 = alpha.float().requires_grad_()
    td.dirac_conv2d(IMAGE, weight.float(), alpha32, beta.float(), padding=1, backend=backend).backward(grad)
    assert_as_good_as_torch("alpha", alpha32.grad, expected_alpha.grad)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_input_and_keeps_the_parameters(dtype, backend):
    weight, alpha, beta = (t.requires_grad_() for t in dirac_arguments())
    with torch.autocast(DEVICE.type, dtype=dtype):
        output = td.dirac_conv2d(IMAGE, weight, alpha, beta, padding=1, backend=backend)
        plain = td.conv2d(IMAGE, WEIGHT, padding=1, backend=backend)
    assert output.dtype == plain.dtype == dtype
    output.float().sum().backward()
    assert weight.grad.dtype == alpha.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_split_form_keeps_small_weights_that_the_materialised_form_loses(backend):
    """bfloat16 near 1 is spaced 0.0078: a centre weight of 0.004 beside alpha = 1 rounds away."""
    weight, alpha, _ = dirac_arguments(16, 16)
    beta = torch.full((16,), 0.01)
    image = torch.randn(1, 16, 8, 8).bfloat16()
    exact = [t.double() for t in (image, weight, alpha, beta)]
    expected = reference.dirac_conv2d(*exact, padding=1) - reference.dirac_conv2d(
        *exact[:3], torch.zeros(16).double(), padding=1
    )  # what the filters add to alpha * x

    def learned(form):
        prepared = td.dirac_weight(
            weight, alpha, beta, identity=form == "materialised", dtype=torch.bfloat16, backend=backend
        ).double()
        if form == "materialised":
            diagonal(prepared, 1).sub_(alpha.double())
        return F.conv2d(image.double(), prepared, padding=1)

    errors = {form: (learned(form) - expected).abs().max() for form in ("split", "materialised")}
    assert errors["split"] < errors["materialised"] / 10


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_window_without_taps_is_refused(backend):
    """It has no centre: the backward kernel would read the identity's place in an empty gradient."""
    weight, vector = torch.ones(4, 2, 0, 2), torch.ones(4)
    with pytest.raises(ValueError, match=r"weight must have a window of one tap or more, got shape \(4, 2, 0, 2\)"):
        td.dirac_weight(weight, vector, vector, backend=backend)
    with pytest.raises(ValueError, match=r"layers\[0\]: weight must have a window of one tap or more"):
        td.dirac_weights([(weight, vector, vector)], backend=backend)
