"""The direct kernels against float64: depthwise and tiny groups, all three passes, with the split form's identity."""

import pytest
import torch
import torch.nn.functional as F

from tests.tolerance import assert_as_good_as_torch
from triton_dirac.conv.direct import (
    direct_bytes,
    direct_dgrad,
    direct_fprop,
    direct_split_k,
    direct_wgrad,
    prefers_direct,
)
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.reference import dirac_delta
from triton_dirac.runtime.targets import TARGETS

SAME = (1, 1, 1, 1)
PROBLEMS = {
    "depthwise": ConvProblem(2, 80, 4, 5, 80, 3, 3, padding=SAME, groups=80),
    "129 channels": ConvProblem(1, 129, 3, 2, 129, 1, 1, groups=129),
    "two filters a channel, uneven": ConvProblem(2, 6, 9, 7, 12, 3, 2, (2, 1), (1, 2, 0, 1), (1, 2), 6),
    "two channels a filter": ConvProblem(1, 14, 7, 7, 7, 3, 3, padding=SAME, groups=7),
    "groups of 4, stride 2, dilation": ConvProblem(1, 8, 8, 9, 8, 3, 3, (2, 2), (2, 1, 2, 2), (2, 2), 2),
    "one group": ConvProblem(2, 3, 5, 5, 4, 2, 2, (1, 3)),
    "stride beyond the window": ConvProblem(1, 4, 7, 7, 4, 1, 1, (3, 3), groups=4),
    "one pixel": ConvProblem(3, 1, 3, 3, 1, 3, 3),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def tensors(problem, dtype, device):
    """x, w, dy in the dtype, channels_last, and bias, alpha."""
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    dense = [torch.randn(s).to(device, dtype, memory_format=torch.channels_last) for s in shapes]
    return *dense, torch.randn(problem.K, device=device, dtype=dtype), torch.randn(problem.K, device=device)


def torch_passes(problem, x, w, dy, bias, alpha, dtype, relu=False):
    """(y, dx, dw) by torch's convolution with alpha on the diagonal of the weight's centre."""
    x, w = x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
    scale = alpha.to(dtype).view(-1, 1, 1, 1) * dirac_delta(w.shape, problem.groups, dtype=dtype, device=x.device)
    top, bottom, left, right = problem.padding
    padded = F.pad(x, (left, right, top, bottom))
    y = F.conv2d(padded, w + scale, bias.to(dtype), problem.stride, 0, problem.dilation, problem.groups)
    dx, dw = torch.autograd.grad(y, (x, w), dy.to(dtype))
    return (y.relu() if relu else y).detach(), dx, dw


def check(problem, dtype, device):
    x, w, dy, bias, alpha = tensors(problem, dtype, device)
    expected = torch_passes(problem, x, w, dy, bias, alpha, torch.float64)
    same_dtype = torch_passes(problem, x, w, dy, bias, alpha, dtype)
    actual = (
        direct_fprop(x, w, bias, alpha, problem),
        direct_dgrad(dy, w, alpha, problem),
        direct_wgrad(dy, x, problem, dtype=dtype, split_k=2),
    )
    for name, *three in zip(("y", "dx", "dw"), actual, expected, same_dtype, strict=True):
        assert three[0].is_contiguous(memory_format=torch.channels_last)
        assert_as_good_as_torch(name, *three)


@pytest.mark.parametrize("name", PROBLEMS)
def test_all_passes(name, device):
    check(PROBLEMS[name], torch.float32, device)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision(dtype, device):
    check(PROBLEMS["two channels a filter"], dtype, device)


def test_epilogue_parts(device):
    """Without bias and identity, with one alpha for all filters, with relu (which keeps NaN)."""
    problem = PROBLEMS["two channels a filter"]
    x, w, dy, bias, alpha = tensors(problem, torch.float32, device)
    none = torch.zeros_like(bias)
    plain = torch_passes(problem, x, w, dy, none, none, torch.float64)
    assert_as_good_as_torch("y", direct_fprop(x, w, None, None, problem), plain[0])
    assert_as_good_as_torch("dx", direct_dgrad(dy, w, None, problem), plain[1])
    one = torch_passes(problem, x, w, dy, bias, alpha[:1].expand(7), torch.float64, relu=True)
    assert_as_good_as_torch("relu", direct_fprop(x, w, bias, alpha[:1], problem, relu=True), one[0])
    x[0, 0, 0, 0] = float("nan")
    assert direct_fprop(x, w, bias, None, problem, relu=True).isnan().any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_padding_is_not_multiplied(device):
    """An infinite weight on a tap that reads padding must not make NaN of it."""
    problem = PROBLEMS["depthwise"]
    x, w, dy, bias, _ = tensors(problem, torch.float32, device)
    w[:, :, 0, 0] = float("inf")
    y = direct_fprop(x, w, bias, None, problem)
    assert y[:, :, 0].isfinite().all()
    assert y[:, :, :, 0].isfinite().all()
    dx = direct_dgrad(dy, w, None, problem)
    assert dx[:, :, -1].isfinite().all()


def test_bitwise_the_same_however_formatted(device):
    problem = PROBLEMS["two filters a channel, uneven"]
    x, w, dy, bias, alpha = tensors(problem, torch.float32, device)
    first = direct_wgrad(dy, x, problem, dtype=torch.float32, split_k=2)
    assert torch.equal(first, direct_wgrad(dy.contiguous(), x.contiguous(), problem, dtype=torch.float32, split_k=2))
    y = direct_fprop(x, w, bias, alpha, problem)
    assert torch.equal(y, direct_fprop(x.contiguous(), w.contiguous(), bias, alpha, problem))


def test_empty_batch(device):
    problem = ConvProblem(0, 8, 5, 5, 8, 3, 3, padding=SAME, groups=8)
    x, w, dy, bias, alpha = tensors(problem, torch.float32, device)
    assert direct_fprop(x, w, bias, alpha, problem).shape == problem.output_shape
    assert direct_dgrad(dy, w, alpha, problem).shape == problem.input_shape
    dw = direct_wgrad(dy, x, problem, dtype=torch.float32)
    assert torch.equal(dw, torch.zeros(problem.weight_shape, device=device))


def test_what_prefers_direct():
    assert prefers_direct(ConvProblem(8, 64, 9, 9, 64, 3, 3, groups=64))
    assert prefers_direct(ConvProblem(8, 64, 9, 9, 64, 3, 3, groups=16))
    assert not prefers_direct(ConvProblem(8, 64, 9, 9, 64, 3, 3, groups=8))
    assert not prefers_direct(ConvProblem(8, 3, 9, 9, 64, 3, 3))


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_splits_are_never_empty(target):
    for batch, channels, size in ((0, 8, 7), (1, 32, 7), (128, 512, 14), (256, 32, 112)):
        problem = ConvProblem(batch, channels, size, size, channels, 3, 3, padding=SAME, groups=channels)
        splits = direct_split_k(problem, target)
        assert 1 <= splits <= 8 * target.units
    assert direct_bytes(problem, torch.float16) == 2 * (2 * 256 * 32 * 112 * 112 + 32 * 9)
