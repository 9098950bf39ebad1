"""fprop against float64, for every loader, dtype and epilogue."""

from __future__ import annotations

import pytest
import torch

from tests.conv.gemm_cases import (
    BATCH,
    BATCHED,
    GATHER,
    ONE,
    PERSISTENT,
    PROBLEMS,
    TILE,
    TWO_PARTS,
    Case,
    every_config,
    problem_for,
)
from tests.tolerance import assert_as_good_as_torch
from triton_dirac.conv.config import Config
from triton_dirac.conv.fprop import fprop, fprop_bytes, plan_fprop
from triton_dirac.conv.problem import ConvProblem


def check(problem, config, device, dtype=torch.float32, relu=False, precision="ieee", alpha=True):
    case = Case(problem, dtype, device, alpha=alpha)
    y = fprop(case.x, case.w, case.bias, case.alpha, problem, relu=relu, precision=precision, config=config)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = case.fprop(torch.float64, relu=relu)
    assert_as_good_as_torch("output", y, expected, case.fprop(dtype, relu=relu))


@pytest.mark.parametrize("name", PROBLEMS)
def test_gather(name, device):
    check(PROBLEMS[name], GATHER, device)


@pytest.mark.parametrize("name", BATCHED)
def test_batch_order(name, device):
    check(BATCHED[name], BATCH, device)


@pytest.mark.parametrize("config", [TILE, TWO_PARTS, PERSISTENT], ids=lambda config: config.name)
@pytest.mark.parametrize("name", [*BATCHED, "taps fastest", "dilation", "uneven padding, even window", "pointwise"])
@pytest.mark.usefixtures("two_programs")
def test_tile(name, config, device):
    """What descriptors cannot read, the tile loader leaves to the gather loader."""
    check((PROBLEMS | BATCHED)[name], config, device, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [GATHER, BATCH, TILE, PERSISTENT], ids=lambda config: config.loader)
def test_half_precision_with_relu(dtype, config, device):
    check(BATCHED["batch"], config, device, dtype, relu=True)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_precisions_are_accepted(precision, device):
    """The interpreter multiplies in float32 whatever the precision; on a GPU tf32 errs by design."""
    if device.type == "cuda" and precision == "tf32":
        pytest.skip("tf32 is not held to float32's tolerance")
    check(PROBLEMS["taps fastest"], GATHER, device, precision=precision)


def test_default_config(device):
    check(PROBLEMS["taps fastest"], None, device)
    check(PROBLEMS["stem"], None, device)
    check(PROBLEMS["depthwise"], None, device)
    check(ConvProblem(1, 2, 1, 40, 3, 1, 33, padding=(0, 0, 16, 16)), None, device)  # beyond WINDOW


@pytest.mark.parametrize("config, dtype", every_config(), ids=lambda value: getattr(value, "name", str(value)))
def test_every_config(config, dtype, device):
    check(problem_for(config), config, device, dtype)


def test_without_bias_and_identity(device):
    case = Case(PROBLEMS["groups"], torch.float32, device, alpha=False)
    y = fprop(case.x, case.w, None, None, case.problem, config=GATHER)
    expected = case.fprop(torch.float64, relu=False) - case.bias.double().view(1, -1, 1, 1)
    assert_as_good_as_torch("output", y, expected)


def test_one_alpha_for_all_filters(device):
    case = Case(PROBLEMS["taps fastest"], torch.float32, device)
    case.alpha = torch.tensor([1.5], device=device)
    y = fprop(case.x, case.w, case.bias, case.alpha, case.problem, config=GATHER)
    assert_as_good_as_torch("output", y, case.fprop(torch.float64, relu=False))


@pytest.mark.parametrize("config", [GATHER, BATCH, TILE, PERSISTENT], ids=lambda config: config.loader)
def test_empty_batch(config, device):
    problem = ConvProblem(0, 16, 5, 5, 16, 3, 3, padding=ONE)
    case = Case(problem, torch.float32, device)
    assert fprop(case.x, case.w, case.bias, case.alpha, problem, config=config).shape == (0, 16, 5, 5)


def test_inputs_of_any_memory_format(device):
    problem = PROBLEMS["taps fastest"]
    case = Case(problem, torch.float32, device)
    wide = torch.randn(2, 16, 5, 12, device=device)
    case.x, case.w = wide[..., ::2], case.w.expand(1, *case.w.shape)[0].flip(2)
    y = fprop(case.x, case.w, case.bias, case.alpha, problem, config=GATHER)
    assert_as_good_as_torch("output", y, case.fprop(torch.float64, relu=False))


@pytest.mark.parametrize("config", [GATHER, TILE, TWO_PARTS, PERSISTENT], ids=lambda config: config.name)
@pytest.mark.parametrize("channels", [24, 20])
def test_infinities_stay_with_their_pixels(config, channels, device):
    """A channel tail or a tile's surplus row must not multiply a neighbour's inf by zero."""
    problem = ConvProblem(2, channels, 4, 4, 8, 3, 3, padding=ONE)
    case = Case(problem, torch.float32, device, alpha=False)
    case.x[1] = float("inf")
    y = fprop(case.x, case.w, case.bias, None, problem, config=config)
    assert torch.isfinite(y[0]).all()
    assert not torch.isfinite(y[1]).any()
    case.x[1], case.w[4:] = 0, float("nan")
    y = fprop(case.x, case.w, case.bias, None, problem, config=config)
    assert torch.isfinite(y[:, :4]).all()
    assert y[:, 4:].isnan().all()


def test_relu_keeps_nan(device):
    case = Case(PROBLEMS["pointwise"], torch.float32, device, alpha=False)
    case.x[0, :, 0, 0] = float("nan")
    y = fprop(case.x, case.w, case.bias, None, case.problem, relu=True, config=GATHER)
    assert y[0, :, 0, 0].isnan().all()
    assert not y[1].isnan().any()


def test_bitwise_equal_from_run_to_run(device):
    case = Case(BATCHED["batch"], torch.float32, device)
    first, second = (fprop(case.x, case.w, case.bias, case.alpha, case.problem, config=BATCH) for _ in "ab")
    assert torch.equal(first, second)


def meta(problem: ConvProblem, dtype=torch.float16):
    shapes = (problem.input_shape, problem.weight_shape, problem.output_shape)
    return [torch.empty(s, dtype=dtype, device="meta", memory_format=torch.channels_last) for s in shapes]


def test_offsets_beyond_int32():
    """A tile whose images span 2^31 elements gets 64-bit offsets; bases are 64-bit always."""
    config = Config(128, 128, 64, 4, 3, "batch")
    large = ConvProblem(256, 64, 512, 512, 64, 3, 3, padding=ONE)
    small = ConvProblem(256, 64, 56, 56, 64, 3, 3, padding=ONE)
    for problem, offset in ((large, "int64"), (small, "int32")):
        x, w, y = meta(problem)
        (launch,) = plan_fprop(x, w, y, None, None, problem, config=config)
        assert str(launch.constexprs["OFFSET"]) == offset


def test_more_than_2_to_31_rows_are_split():
    problem = ConvProblem(2048, 1, 1024, 1024, 8, 1, 1)
    x, w, y = meta(problem)
    launches = plan_fprop(x, w, y, None, None, problem, config=Config(128, 16, 16, 4, 2))
    assert sum(launch.args["N"] for launch in launches) == 2048
    assert all(launch.args["N"] * 1024 * 1024 < 2**31 - 128 for launch in launches)


def test_windows_beyond_31_are_refused():
    problem = ConvProblem(1, 16, 1, 40, 16, 1, 33, padding=(0, 0, 16, 16))
    x, w, y = meta(problem)
    with pytest.raises(ValueError, match=r"windows up to 31x31 are supported, got 1x33"):
        plan_fprop(x, w, y, None, None, problem, config=GATHER)


def test_bytes_counts_each_tensor_once():
    assert fprop_bytes(ConvProblem(2, 3, 5, 5, 4, 3, 3), torch.float16) == 2 * (150 + 108 + 72)
