"""The identity's term and its gradient in operations of torch: what the kernels' epilogue is held against."""

import pytest
import torch

from triton_dirac.conv.epilogue import identity_dgrad, identity_term
from triton_dirac.conv.problem import ConvProblem

ONE = (1, 1, 1, 1)
PROBLEMS = [
    ConvProblem(2, 4, 5, 6, 4, 3, 3, padding=ONE),  # pixel by pixel
    ConvProblem(2, 6, 5, 6, 4, 3, 3, padding=ONE),  # channels without a filter
    ConvProblem(2, 4, 5, 6, 6, 3, 3, padding=ONE),  # filters without an identity
    ConvProblem(2, 4, 7, 6, 4, 3, 3, stride=(2, 3), padding=ONE),
    ConvProblem(2, 4, 6, 7, 8, 3, 3, stride=(2, 2), padding=(0, 1, 2, 0), groups=2),
    ConvProblem(1, 3, 4, 5, 3, 2, 4, padding=(3, 2, 0, 4)),  # even windows; centres outside of the image
    ConvProblem(1, 3, 9, 8, 3, 3, 5, stride=(1, 2), dilation=(2, 1)),  # pixels without a centre
]


@pytest.mark.parametrize("alphas", ["each", "one"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_identity_s_dgrad_is_the_gradient_of_its_term(problem, alphas):
    alpha = torch.randn(problem.K if alphas == "each" else 1, dtype=torch.float64, requires_grad=True)
    image = torch.randn(problem.input_shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(problem.output_shape, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(identity_term(image, alpha, problem), image, grad)
    assert torch.equal(identity_dgrad(grad, alpha, problem), expected)
    assert torch.autograd.gradgradcheck(lambda g, a: identity_dgrad(g, a, problem), (grad, alpha))


def test_its_layout_and_type():
    grad = torch.randn(2, 4, 5, 6).bfloat16().to(memory_format=torch.channels_last)
    term = identity_dgrad(grad, torch.randn(4), PROBLEMS[0])
    assert term.dtype == torch.float32
    assert term.is_contiguous(memory_format=torch.channels_last)
