"""The reference itself, against torch.nn.init.dirac_ and sums written out by hand."""

import pytest
import torch
from torch.nn.init import dirac_

from triton_dirac import reference


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [(3,), (1, 1), (3, 3), (2, 4), (7, 1), (3, 2, 5)])
@pytest.mark.parametrize("filters, channels", [(4, 4), (4, 6), (6, 3), (2, 1)])
def test_delta_is_torchs_dirac(filters, channels, window, groups):
    shape = (filters, channels, *window)
    expected = dirac_(torch.empty(shape), groups)
    assert torch.equal(reference.dirac_delta(shape, groups, device=expected.device), expected)


def test_dirac_weight_written_out():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    alpha, beta = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = torch.empty_like(weight)
    for k in range(3):
        norm = sum(v * v for v in weight[k].flatten().tolist()) ** 0.5
        for c in range(2):
            for r in range(3):
                for s in range(3):
                    identity = alpha[k] if (k == c and r == 1 and s == 1) else 0.0
                    expected[k, c, r, s] = identity + beta[k] * weight[k, c, r, s] / norm
    torch.testing.assert_close(reference.dirac_weight(weight, alpha, beta), expected, rtol=1e-13, atol=1e-13)


def test_norm_is_clamped_not_shifted():
    weight = torch.full((2, 1, 1, 1), 1e-3, dtype=torch.float64)
    weight[1] = 3.0
    ones = torch.ones(2, dtype=torch.float64)
    prepared = reference.dirac_weight(weight, ones, ones, eps=1e-2, identity=False)
    torch.testing.assert_close(prepared.flatten(), torch.tensor([0.1, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_filter_is_the_identity_alone(dtype):
    ones = torch.ones(2, dtype=dtype)
    prepared = reference.dirac_weight(torch.zeros(2, 2, 3, 3, dtype=dtype), ones, ones)
    assert torch.equal(prepared, reference.dirac_delta((2, 2, 3, 3), dtype=dtype))


def test_gradients_are_the_published_formulas():
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    alpha = torch.randn(4, dtype=torch.float64, requires_grad=True)
    beta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    reference.dirac_weight(weight, alpha, beta).backward(grad)
    with torch.no_grad():
        norm = weight.flatten(1).norm(dim=1).view(4, 1, 1, 1)
        unit = weight / norm
        dot = (grad * unit).sum((1, 2, 3), keepdim=True)
        expected_weight = beta.view(4, 1, 1, 1) / norm * (grad - dot * unit)
    torch.testing.assert_close(alpha.grad[:3], grad[range(3), range(3), 1, 1])
    assert alpha.grad[3] == 0  # filter 3 has no identity term
    torch.testing.assert_close(beta.grad, dot.flatten())
    torch.testing.assert_close(weight.grad, expected_weight)
