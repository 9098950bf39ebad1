"""One layer's weight preparation against the definition in float64: every output and gradient, by name."""

import math

import pytest
import torch

from tests.tolerance import assert_as_good_as_torch
from triton_dirac.reference import dirac_weight
from triton_dirac.weight_prep.single import (
    LONGEST_ROW,
    is_channels_last,
    plan_weight_prep,
    plan_weight_prep_backward,
    prep_backward_bytes,
    prep_bytes,
    weight_prep,
    weight_prep_backward,
)

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


def last(tensor):
    """The same values, channel innermost in memory."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def parameters(shape, dtype, device, shared=False):
    count = 1 if shared else shape[0]
    weight = torch.randn(shape, device=device).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return weight, torch.randn(count, device=device, dtype=wide), torch.randn(count, device=device, dtype=wide)


def reference(weight, alpha, beta, grad, dtype, **options):
    """(What, dweight, dalpha, dbeta) of the definition, computed in ``dtype``."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in (weight, alpha, beta)]
    out = dirac_weight(*leaves, **options)
    grads = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True, materialize_grads=True)
    return out.detach(), *grads


def check(weight, alpha, beta, grad=None, dtype=None, channels_last=False, **options):
    """Forward and backward against float64; returns What, norm and the gradients."""
    out, norm = weight_prep(weight, alpha, beta, dtype=dtype, channels_last=channels_last, **options)
    if grad is None:
        grad = torch.randn(weight.shape, device=weight.device, dtype=torch.float32).to(out.dtype)
        grad = last(grad) if channels_last else grad
    grads = weight_prep_backward(grad, weight, alpha, beta, norm, **options)
    exact = reference(weight, alpha, beta, grad, torch.float64, **options)
    plain = reference(weight, alpha, beta, grad, None, **options)
    names = ("What", "dweight", "dalpha", "dbeta")
    for name, actual, expected, by_torch in zip(names, (out, *grads), exact, plain, strict=True):
        assert_as_good_as_torch(name, actual, expected, by_torch)
    norms = torch.linalg.vector_norm(weight.double().flatten(1), dim=1)
    assert_as_good_as_torch("norm", norm, norms)
    assert out.dtype == (dtype or weight.dtype)
    assert [g.dtype for g in grads] == [weight.dtype, alpha.dtype, beta.dtype]
    return out, norm, *grads


SHAPES = {
    "row of 1": (5, 1, 1, 1),
    "row of 7": (6, 7, 1),
    "row of 80": (3, 80, 1, 1),
    "row of 127": (4, 127, 1),
    "row of 129": (3, 43, 3),
    "row of 720, K < C": (7, 80, 3, 3),
    "K = C": (9, 9, 3, 3),
    "K > C": (37, 5, 3, 3),
    "3-D window": (4, 6, 2, 3, 3),
    "even window": (4, 4, 2, 4),
    "more rows than a program owns": (131, 2, 3, 3),
    "longer than registers hold": (2, 911, 3, 3),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["OIHW", "OHWI"])
def test_shapes(shape, channels_last, device):
    weight, alpha, beta = parameters(shape, torch.float32, device)
    out, *_ = check(weight, alpha, beta, channels_last=channels_last)
    two_layouts = shape[1] > 1 and math.prod(shape[2:]) > 1
    assert is_channels_last(out) == (channels_last and two_layouts)


@pytest.mark.parametrize("storage", DTYPES)
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(storage, out_dtype, device):
    weight, alpha, beta = parameters((5, 24, 3, 3), DTYPES[storage], device)
    check(weight, alpha, beta, dtype=DTYPES[out_dtype], channels_last=True)
    check(weight, alpha.to(weight.dtype), beta.to(weight.dtype))


@pytest.mark.parametrize("weight_last", [False, True], ids=["OIHW", "OHWI"])
@pytest.mark.parametrize("out_last", [False, True], ids=["to OIHW", "to OHWI"])
@pytest.mark.parametrize("channels", [20, 1000], ids=["short", "long"])
def test_layouts(channels, weight_last, out_last, device):
    weight, alpha, beta = parameters((3, channels, 3, 3), torch.float32, device)
    weight = last(weight) if weight_last else weight
    _, _, dweight, *_ = check(weight, alpha, beta, channels_last=out_last)
    assert dweight.stride() == weight.stride()


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("channels_last", [False, True], ids=["OIHW", "OHWI"])
@pytest.mark.parametrize("shape", [(12, 3, 3, 3), (6, 7, 3, 3)], ids=["K > C", "K < C"])
def test_groups(shape, groups, channels_last, device):
    check(*parameters(shape, torch.float32, device), groups=groups, channels_last=channels_last)


def test_groups_are_diracs(device):
    weight, _, _ = parameters((12, 3, 3, 3), torch.float32, device)
    ones, zeros = torch.ones(12, device=device), torch.zeros(12, device=device)
    out, _ = weight_prep(weight, ones, zeros, groups=3)
    assert torch.equal(out, torch.nn.init.dirac_(torch.empty_like(weight), groups=3))


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (3, 921, 3, 3)], ids=["short", "long"])
def test_shared_alpha_and_beta(shape, device):
    *_, dalpha, dbeta = check(*parameters(shape, torch.float32, device, shared=True))
    assert dalpha.shape == dbeta.shape == (1,)


@pytest.mark.parametrize("magnitude", [1e-30, 1e18, 1e-40, 1e36])
@pytest.mark.parametrize("channels", [5, 921], ids=["short", "long"])
def test_squares_that_leave_float32(magnitude, channels, device):
    """A plain sum of squares gives norm 0 or inf here. eps lies below the filters, so that they count."""
    weight, alpha, beta = parameters((4, channels, 3, 3), torch.float32, device)
    weight[1] *= magnitude
    weight[3] *= magnitude
    out, norm = weight_prep(weight, alpha, beta, eps=1e-45)
    exact = weight.double()
    expected = dirac_weight(exact, alpha.double(), beta.double(), eps=1e-45)
    # A row of 1e-40 has lost bits to its storage, not to the kernel.
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.double(), exact.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    if magnitude == 1e18:
        check(weight, alpha, beta)


@pytest.mark.parametrize("magnitude", [1e-250, 1e250])
def test_squares_that_leave_float64(magnitude, device):
    weight, alpha, beta = parameters((3, 5, 3, 3), torch.float64, device)
    out, _ = weight_prep(weight * magnitude, alpha, beta, eps=1e-300)
    torch.testing.assert_close(out, dirac_weight(weight, alpha, beta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype, powers", [(torch.float32, (-70, 62)), (torch.float64, (-500, 505))], ids=str)
@pytest.mark.parametrize("channels", [5, 921], ids=["short", "long"])
def test_norms_of_rows_scaled_by_a_power_of_two_are_scaled_exactly(channels, dtype, powers, device):
    """Squares of the scaled rows leave the dtype, or nearly."""
    weight, alpha, beta = parameters((16, channels, 3, 3), dtype, device)
    _, norm = weight_prep(weight, alpha, beta)
    for power in powers:
        _, scaled = weight_prep(weight * 2.0**power, alpha, beta)
        assert torch.equal(scaled, norm * 2.0**power)


@pytest.mark.parametrize("channels", [910, 921], ids=["short", "long"])
def test_squares_that_have_few_bits(channels, device):
    """Their sum is a normal number, but each is 600 times the smallest float32 and a half: 600 or 601."""
    smallest = 2.0**-149
    weight = torch.full((1, channels, 3, 3), math.sqrt(600.5 * smallest), device=device)
    _, norm = weight_prep(weight, torch.ones(1, device=device), torch.ones(1, device=device))
    torch.testing.assert_close(norm.double(), weight.double().flatten(1).norm(dim=1), rtol=1e-6, atol=0)


def test_float64_is_float64(device):
    weight, alpha, beta = parameters((3, 460, 3, 3), torch.float64, device)
    assert weight[0].numel() > LONGEST_ROW[8]
    for channels in (5, 460):
        check(weight[:, :channels], alpha, beta, eps=0.3)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 100.0])
@pytest.mark.parametrize("channels", [5, 921], ids=["short", "long"])
def test_filters_below_eps(eps, channels, device):
    """Zero filters, tiny ones, and (eps = 100) all: no projection in their gradient."""
    weight, alpha, beta = parameters((4, channels, 3, 3), torch.float32, device)
    weight[0] = 0
    weight[2] *= 1e-6
    check(weight, alpha, beta, eps=eps)


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_zero_filter_in_half_precision(storage, device):
    """The official code gives NaN here: 1e-12 underflows float16."""
    weight, alpha, beta = parameters((3, 4, 3, 3), DTYPES[storage], device)
    weight[1] = 0
    check(weight, alpha, beta)


@pytest.mark.parametrize("identity", [True, False])
def test_negative_zero(identity, device):
    weight, alpha, beta = parameters((3, 4, 3, 3), torch.float32, device)
    weight[:, 0] = -0.0
    out, _ = weight_prep(weight, alpha, beta.abs(), identity=identity)
    expected = dirac_weight(weight, alpha, beta.abs(), identity=identity)
    assert torch.equal(torch.signbit(out), torch.signbit(expected)), "sign of zero"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("channels", [4, 921], ids=["short", "long"])
def test_infinite_and_nan_weights(value, channels, device):
    weight, alpha, beta = parameters((3, channels, 3, 3), torch.float32, device)
    weight[1, 2, 1, 0] = value
    out, _ = weight_prep(weight, alpha, beta, channels_last=True)
    expected = dirac_weight(weight.double(), alpha.double(), beta.double())
    assert torch.equal(out.isnan(), expected.isnan()), "What is NaN in other places than the reference"
    number = ~expected.isnan()
    torch.testing.assert_close(out.double()[number], expected[number], rtol=1e-5, atol=1e-6)
    assert out[[0, 2]].isfinite().all(), "a filter's NaN reached its neighbours"


def test_infinite_alpha_stays_at_its_place(device):
    weight, _, beta = parameters((5, 3, 3, 3), torch.float32, device)
    alpha = torch.full((5,), math.inf, device=device)
    out, _ = weight_prep(weight, alpha, beta)
    assert out.isinf().sum() == 3
    assert not out.isnan().any()


def test_without_identity_alpha_is_not_read(device):
    weight, _, beta = parameters((5, 3, 3, 3), torch.float32, device)
    alpha = torch.full((5,), math.nan, device=device)
    out, norm = weight_prep(weight, alpha, beta, identity=False)
    assert out.isfinite().all()
    _, dalpha, _ = weight_prep_backward(out, weight, alpha, beta, norm, identity=False)
    assert torch.equal(dalpha, torch.zeros(5, device=device)), "dalpha without identity"


def test_split_form_has_the_same_backward(device):
    """beta * u forward; the gradient of What gives dalpha all the same."""
    weight, alpha, beta = parameters((5, 3, 3, 3), torch.float32, device)
    _, norm = weight_prep(weight, alpha, beta, identity=False)
    grad = torch.randn_like(weight)
    grads = weight_prep_backward(grad, weight, alpha, beta, norm)
    exact = reference(weight, alpha, beta, grad, torch.float64)[1:]
    for name, actual, expected in zip(("dweight", "dalpha", "dbeta"), grads, exact, strict=True):
        assert_as_good_as_torch(name, actual, expected)


GRADS = {
    "expanded scalar": lambda w: torch.tensor(0.7, device=w.device).expand(w.shape),
    "expanded over filters": lambda w: torch.randn(w.shape[1:], device=w.device).expand(w.shape),
    "strided": lambda w: torch.randn(*w.shape[:-1], 2 * w.shape[-1], device=w.device)[..., ::2],
    "other layout": lambda w: last(torch.randn(w.shape, device=w.device)),
    "other dtype": lambda w: torch.randn(w.shape, device=w.device).bfloat16(),
    "zero": torch.zeros_like,
}


@pytest.mark.parametrize("make", GRADS.values(), ids=GRADS)
def test_upstream_gradients(make, device):
    weight, alpha, beta = parameters((6, 5, 3, 3), torch.float32, device)
    check(weight, alpha, beta, grad=make(weight))


def test_strided_parameters(device):
    weight, alpha, beta = parameters((12, 10, 3, 3), torch.float32, device)
    check(weight[::2, ::2], alpha[::2], beta[:1].expand(6))
    check(weight.transpose(0, 1), alpha[:10], beta[:10])


def test_parameters_that_are_not_aligned(device):
    memory = torch.randn(6 * 32 * 9 + 1, device=device)
    _, alpha, beta = parameters((6, 1), torch.float32, device)
    check(memory[1:].view(6, 32, 3, 3), alpha, beta)


@pytest.mark.parametrize("shape", [(7, 80, 3, 3), (2, 921, 3, 3)], ids=["short", "long"])
def test_deterministic(shape, device):
    weight, alpha, beta = parameters(shape, torch.float32, device)
    grad = torch.randn_like(weight)
    first, second = (check(weight, alpha, beta, grad=grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_filter_does_not_depend_on_its_neighbours(device):
    weight, alpha, beta = parameters((33, 7, 3, 3), torch.float32, device)
    out, _ = weight_prep(weight, alpha, beta)
    alone, _ = weight_prep(weight[20:21], alpha[20:21], beta[20:21], identity=False)
    assert torch.equal(out[20:21], alone)


def test_no_filters(device):
    weight, alpha, beta = parameters((0, 4, 3, 3), torch.float32, device)
    out, norm = weight_prep(weight, alpha, beta)
    assert out.shape == weight.shape
    dweight, dalpha, _ = weight_prep_backward(out, weight, alpha, beta, norm)
    assert dweight.shape == weight.shape
    assert dalpha.shape == (0,)


def test_plans_take_meta_tensors_and_are_one_launch():
    weight, vector = torch.empty(160, 80, 3, 3, device="meta"), torch.empty(160, device="meta")
    forward = plan_weight_prep(weight, vector, vector, weight, vector)
    backward = plan_weight_prep_backward(weight, weight, vector, vector, weight, vector, vector)
    assert len(forward) == len(backward) == 1
    assert forward[0].grid == backward[0].grid == (40,)


def test_bytes_are_one_read_and_one_write():
    shape, count = (4, 3, 3, 3), 4 * 27
    assert prep_bytes(shape, torch.float32, torch.bfloat16) == count * (4 + 2)
    assert prep_backward_bytes(shape, torch.float32, torch.bfloat16) == count * (4 + 2 + 4)
