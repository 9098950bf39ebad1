"""The torch backend's weight preparation on a CPU: torch's weight-norm kernels, and the rows they do wrong."""

import pytest
import torch
from tolerance import assert_as_good_as_torch

from triton_dirac import cpu_prep, dirac_weight, reference, torch_backend

SHAPES = {
    "2-D": ((6, 6, 3, 3), 1),
    "more filters": ((9, 4, 3, 3), 1),
    "more channels": ((4, 9, 3, 3), 1),
    "grouped": ((8, 3, 3, 5), 2),
    "1-D": ((5, 7, 4), 1),
    "3-D": ((5, 7, 2, 3, 3), 1),
    "one filter": ((1, 2, 1, 1), 1),
    "long rows": ((3, 700, 3, 3), 1),
}


def parameters(shape, shared=False):
    count = 1 if shared else shape[0]
    return torch.randn(shape), torch.randn(count), torch.randn(count)


def results(function, weight, alpha, beta, grad, dtype, **options):
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (weight, alpha, beta)]
    output = function(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


def check(weight, alpha, beta, grad=None, **options):
    grad = torch.randn(weight.shape) if grad is None else grad
    ours = results(dirac_weight, weight, alpha, beta, grad, torch.float32, backend="torch", **options)
    exact = results(reference.dirac_weight, weight, alpha, beta, grad, torch.float64, **options)
    plain = results(reference.dirac_weight, weight, alpha, beta, grad, torch.float32, **options)
    for name, *tensors in zip(("output", "weight", "alpha", "beta"), ours, exact, plain, strict=True):
        assert_as_good_as_torch(name, *tensors)
    return ours


@pytest.mark.parametrize("shared", [False, True], ids=["per filter", "shared"])
@pytest.mark.parametrize("shape, groups", SHAPES.values(), ids=SHAPES)
def test_both_passes_are_those_of_the_reference(shape, groups, shared):
    check(*parameters(shape, shared), groups=groups)


@pytest.mark.parametrize("shape, groups", [SHAPES["2-D"], SHAPES["grouped"], SHAPES["one filter"]])
def test_layouts_are_kept(shape, groups):
    weight, alpha, beta = parameters(shape)
    expected = check(weight, alpha, beta, grad := torch.randn(shape), groups=groups)
    last = weight.to(memory_format=torch.channels_last)
    for weights in (last, torch.stack([weight, weight], dim=-1)[..., 0]):
        for gradient in (grad, grad.to(memory_format=torch.channels_last), grad.expand(2, *shape)[0]):
            found = check(weights, alpha, beta, gradient, groups=groups)
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    prepared = dirac_weight(last, alpha, beta, groups=groups, backend="torch")
    assert prepared.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 10.0])
@pytest.mark.parametrize("shared", [False, True], ids=["per filter", "shared"])
def test_rows_that_the_kernels_do_wrong_are_done_again(eps, shared):
    weight, alpha, beta = parameters((9, 5, 3, 3), shared)
    weight[0] = 0
    for row, size in enumerate((1e-30, 1e-14, 1e-13, 1e-5, 1e13, 1e18, -1e18), start=1):
        weight[row] *= size
    unfit = cpu_prep.unfit_rows(torch.linalg.vector_norm(weight.double().flatten(1), dim=1).float(), eps)
    assert unfit is not None
    assert set(unfit.tolist()) >= {0, 1, 2, 5, 6, 7}
    grad = torch.randn(weight.shape)
    ours = results(dirac_weight, weight, alpha, beta, grad, torch.float32, backend="torch", eps=eps)
    exact = results(reference.dirac_weight, weight, alpha, beta, grad, torch.float64, eps=eps)
    for name, found, expected in zip(("output", "weight"), ours, exact, strict=False):  # row by row
        scale = expected.flatten(1).abs().amax(1)
        errors = (found.double() - expected).flatten(1).abs().amax(1)
        assert (errors <= 2e-6 * scale).all(), f"{name}: {errors / scale}"
    for found, expected in zip(ours[2:], exact[2:], strict=True):
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_small_gradients_at_huge_filters_keep_their_second_term():
    """torch's backward divides by the norm three times: beyond 1e12 the quotient underflows."""
    weight, alpha, beta = parameters((4, 64, 3, 3))
    check(weight * 1e18, alpha, beta, 1e-6 * torch.randn(weight.shape))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_in_its_filter(value):
    weight, alpha, beta = parameters((4, 4, 3, 3))
    weight[1, 2, 0, 0] = value
    ours, plain = (
        results(function, weight, alpha, beta, torch.ones(weight.shape), torch.float32, **options)
        for function, options in ((dirac_weight, {"backend": "torch"}), (reference.dirac_weight, {}))
    )
    for found, expected in zip(ours[:2], plain[:2], strict=True):
        keep = [0, 2, 3]
        assert torch.allclose(found[keep], expected[keep], atol=1e-6)
    assert torch.equal(ours[0][1].isnan(), plain[0][1].isnan())


def test_gradients_share_no_memory_with_what_they_come_from():
    weight, alpha, beta = (tensor.requires_grad_() for tensor in parameters((1, 1, 1, 1)))
    grad = torch.ones(1, 1, 1, 1)
    dalpha = torch.autograd.grad(dirac_weight(weight, alpha, beta, backend="torch"), alpha, grad)[0]
    assert dalpha.data_ptr() != grad.data_ptr()


@pytest.mark.parametrize("shape, groups", SHAPES.values(), ids=SHAPES)
def test_the_diagonal_is_that_of_the_backend(shape, groups):
    turned = torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))
    for tensor in (torch.randn(shape), torch.randn(2, *shape)[1], turned):
        assert torch.equal(cpu_prep.diagonal(tensor, groups), torch_backend.diagonal(tensor, groups).squeeze(0))


def test_nothing_else_goes_to_the_kernels():
    weight = torch.randn(4, 4, 3, 3)
    assert cpu_prep.can_run(weight)
    assert cpu_prep.can_run(torch.nn.Parameter(weight))
    for other in (weight.double(), weight.bfloat16(), weight.to("meta"), weight[:0]):
        assert not cpu_prep.can_run(other)
    with torch._subclasses.FakeTensorMode():
        assert not cpu_prep.can_run(torch.randn(4, 4, 3, 3))


def test_no_graph_is_recorded_where_none_is_wanted():
    weight, alpha, beta = (tensor.requires_grad_() for tensor in parameters((4, 4, 3, 3)))
    with torch.no_grad():
        assert not dirac_weight(weight, alpha, beta, backend="torch").requires_grad
    assert dirac_weight(weight, alpha, beta, backend="torch").requires_grad
