"""The direct kernels against float64: depthwise and tiny groups, all three passes, with the split form's identity."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.tolerance import assert_as_good_as_torch
from triton_dirac.conv.direct import (
    direct_dgrad,
    direct_fprop,
    direct_split_k,
    direct_wgrad,
    plan_direct_fprop,
    prefers_direct,
)
from triton_dirac.conv.epilogue import ACTIVATIONS, PLAIN, Epilogue
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.reference import dirac_delta
from triton_dirac.runtime.launch import Launch
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
    "many images to a step": ConvProblem(150, 2, 3, 3, 2, 2, 2, groups=2),
    "one pixel": ConvProblem(3, 1, 3, 3, 1, 3, 3),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def tensors(problem, dtype, device):
    """x, w, dy in the dtype, channels_last, and bias, alpha."""
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    dense = [torch.randn(s).to(device, dtype, memory_format=torch.channels_last) for s in shapes]
    return *dense, torch.randn(problem.K, device=device, dtype=dtype), torch.randn(problem.K, device=device)


def torch_passes(problem, x, w, dy, bias, alpha, dtype, activation=None):
    """(y, dx, dw) by torch's convolution with alpha on the diagonal of the weight's centre."""
    x, w = x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
    scale = alpha.to(dtype).view(-1, 1, 1, 1) * dirac_delta(w.shape, problem.groups, dtype=dtype, device=x.device)
    top, bottom, left, right = problem.padding
    padded = F.pad(x, (left, right, top, bottom))
    y = F.conv2d(padded, w + scale, bias.to(dtype), problem.stride, 0, problem.dilation, problem.groups)
    dx, dw = torch.autograd.grad(y, (x, w), dy.to(dtype))
    y = y if activation is None else getattr(F, activation)(y)
    return y.detach(), dx, dw


def check(problem, dtype, device):
    x, w, dy, bias, alpha = tensors(problem, dtype, device)
    expected = torch_passes(problem, x, w, dy, bias, alpha, torch.float64)
    same_dtype = torch_passes(problem, x, w, dy, bias, alpha, dtype)
    actual = (
        direct_fprop(x, w, problem, Epilogue(bias, alpha)),
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


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue_parts(activation, device):
    """Without bias and identity, with one alpha for all filters, with an activation (which keeps NaN)."""
    problem = PROBLEMS["two channels a filter"]
    x, w, dy, bias, alpha = tensors(problem, torch.float32, device)
    none = torch.zeros_like(bias)
    plain = torch_passes(problem, x, w, dy, none, none, torch.float64)
    assert_as_good_as_torch("y", direct_fprop(x, w, problem), plain[0])
    assert_as_good_as_torch("dx", direct_dgrad(dy, w, None, problem), plain[1])
    one = torch_passes(problem, x, w, dy, bias, alpha[:1].expand(7), torch.float64, activation)
    assert_as_good_as_torch("y", direct_fprop(x, w, problem, Epilogue(bias, alpha[:1], activation)), one[0])
    x[0, 0, 0, 0] = float("nan")
    assert direct_fprop(x, w, problem, Epilogue(bias, None, activation)).isnan().any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_padding_is_not_multiplied(device):
    """An infinite weight on a tap that reads padding must not make NaN of it."""
    problem = PROBLEMS["depthwise"]
    x, w, dy, bias, _ = tensors(problem, torch.float32, device)
    w[:, :, 0, 0] = float("inf")
    y = direct_fprop(x, w, problem, Epilogue(bias))
    assert y[:, :, 0].isfinite().all()
    assert y[:, :, :, 0].isfinite().all()
    dx = direct_dgrad(dy, w, None, problem)
    assert dx[:, :, -1].isfinite().all()


def test_bitwise_the_same_however_formatted(device):
    problem = PROBLEMS["two filters a channel, uneven"]
    x, w, dy, bias, alpha = tensors(problem, torch.float32, device)
    first = direct_wgrad(dy, x, problem, dtype=torch.float32, split_k=2)
    assert torch.equal(first, direct_wgrad(dy.contiguous(), x.contiguous(), problem, dtype=torch.float32, split_k=2))
    y = direct_fprop(x, w, problem, Epilogue(bias, alpha))
    assert torch.equal(y, direct_fprop(x.contiguous(), w.contiguous(), problem, Epilogue(bias, alpha)))


def test_empty_batch(device):
    problem = ConvProblem(0, 8, 5, 5, 8, 3, 3, padding=SAME, groups=8)
    x, w, dy, bias, alpha = tensors(problem, torch.float32, device)
    assert direct_fprop(x, w, problem, Epilogue(bias, alpha)).shape == problem.output_shape
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


@pytest.mark.interpreted
def test_an_image_of_more_than_two_to_the_31_pixels(tmp_path):
    """P * Q = 2^32 + 65536 would be 65536 in int32. The images are a hole in a file: they take no memory."""
    height, width, first = 65536, 65537, 65536
    problem = ConvProblem(2, 1, height, width, 1, 1, 1)
    image = torch.from_file(str(tmp_path / "hole"), shared=True, size=2 * height * width, dtype=torch.float16)
    image[: first + 256] = 3.0
    output = torch.full((first + 256,), -1.0, dtype=torch.float16)
    (launch,) = plan_direct_fprop(image, torch.ones(1, 1, 1, 1).half(), output, problem, PLAIN)
    replace(launch, grid=(257,)).run()
    assert (output == 3).all()


@pytest.mark.parametrize("grid", [(2**31,), (1, 65536), (1, 1, 65536)])
def test_more_programs_than_a_launch_takes_are_refused(grid):
    with pytest.raises(ValueError, match="too large for one launch: a grid of "):
        Launch(None, grid, {})
