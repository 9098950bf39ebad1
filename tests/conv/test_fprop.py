"""fprop against float64, for every loader, dtype and epilogue."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

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
from triton_dirac.conv.epilogue import ACTIVATIONS, Epilogue
from triton_dirac.conv.fprop import fprop, plan_fprop
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.taps import tap_bits, vector_width


def check(problem, config, device, dtype=torch.float32, activation=None, precision="ieee", alpha=True):
    case = Case(problem, dtype, device, alpha=alpha)
    y = fprop(case.x, case.w, problem, case.epilogue(activation), precision=precision, config=config)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = case.fprop(torch.float64, activation)
    assert_as_good_as_torch("output", y, expected, case.fprop(dtype, activation))


@pytest.mark.parametrize("name", PROBLEMS)
def test_gather(name, device):
    check(PROBLEMS[name], GATHER, device)


def test_a_step_wider_than_the_sum(device):
    """The mask of what lies beyond the last tap may not be a bit that no integer has."""
    check(ConvProblem(1, 1, 4, 5, 3, 3, 3, padding=ONE), replace(GATHER, block_k=64), device)


@pytest.mark.parametrize("name", BATCHED)
def test_batch_order(name, device):
    check(BATCHED[name], BATCH, device)


@pytest.mark.parametrize("config", [TILE, TWO_PARTS, PERSISTENT], ids=lambda config: config.name)
@pytest.mark.parametrize("name", [*BATCHED, "taps fastest", "dilation", "uneven padding, even window", "pointwise"])
@pytest.mark.usefixtures("two_programs")
def test_tile(name, config, device):
    """What descriptors cannot read, the tile loader leaves to the gather loader."""
    check((PROBLEMS | BATCHED)[name], config, device, torch.float16)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [GATHER, BATCH, TILE, TWO_PARTS, PERSISTENT], ids=lambda config: config.name)
def test_every_activation(activation, dtype, config, device):
    check(ConvProblem(16, 16, 1, 2, 32, 1, 3, padding=(0, 0, 1, 1)), config, device, dtype, activation)


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
    y = fprop(case.x, case.w, case.problem, config=GATHER)
    expected = case.fprop(torch.float64) - case.bias.double().view(1, -1, 1, 1)
    assert_as_good_as_torch("output", y, expected)


def test_one_alpha_for_all_filters(device):
    case = Case(PROBLEMS["taps fastest"], torch.float32, device)
    case.alpha = torch.tensor([1.5], device=device)
    y = fprop(case.x, case.w, case.problem, case.epilogue(), config=GATHER)
    assert_as_good_as_torch("output", y, case.fprop(torch.float64))


@pytest.mark.parametrize("config", [GATHER, BATCH, TILE, TWO_PARTS, PERSISTENT], ids=lambda config: config.name)
@pytest.mark.usefixtures("two_programs")
def test_alphas_of_filters_without_an_identity_are_not_read(config, device):
    """A channel that the image lacks is read as 0, which an infinite alpha would make NaN."""
    case = Case(ConvProblem(16, 32, 2, 2, 64, 3, 3, padding=ONE), torch.float16, device)
    y = fprop(case.x, case.w, case.problem, case.epilogue(), config=config)
    case.alpha[32:] = float("inf")
    assert torch.equal(fprop(case.x, case.w, case.problem, case.epilogue(), config=config), y)


@pytest.mark.parametrize("config", [GATHER, BATCH, TILE, PERSISTENT], ids=lambda config: config.loader)
def test_empty_batch(config, device):
    problem = ConvProblem(0, 16, 5, 5, 16, 3, 3, padding=ONE)
    case = Case(problem, torch.float32, device)
    assert fprop(case.x, case.w, problem, case.epilogue(), config=config).shape == (0, 16, 5, 5)


def test_inputs_of_any_memory_format(device):
    problem = PROBLEMS["taps fastest"]
    case = Case(problem, torch.float32, device)
    wide = torch.randn(2, 16, 3, 8, device=device)
    case.x, case.w = wide[..., ::2], case.w.expand(1, *case.w.shape)[0].flip(2)
    y = fprop(case.x, case.w, problem, case.epilogue(), config=GATHER)
    assert_as_good_as_torch("output", y, case.fprop(torch.float64))


@pytest.mark.parametrize("config", [GATHER, TILE, TWO_PARTS, PERSISTENT], ids=lambda config: config.name)
@pytest.mark.parametrize("channels", [24, 20])
def test_infinities_stay_with_their_pixels(config, channels, device):
    """A channel tail or a tile's surplus row must not multiply a neighbour's inf by zero."""
    problem = ConvProblem(2, channels, 4, 4, 8, 3, 3, padding=ONE)
    case = Case(problem, torch.float32, device, alpha=False)
    case.x[1] = float("inf")
    y = fprop(case.x, case.w, problem, case.epilogue(), config=config)
    assert torch.isfinite(y[0]).all()
    assert not torch.isfinite(y[1]).any()
    case.x[1], case.w[4:] = 0, float("nan")
    y = fprop(case.x, case.w, problem, case.epilogue(), config=config)
    assert torch.isfinite(y[:, :4]).all()
    assert y[:, 4:].isnan().all()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [GATHER, BATCH, TILE, PERSISTENT], ids=lambda config: config.loader)
def test_activations_at_extremes_are_torchs(config, dtype, activation, device):
    """Each channel's bias is all that there is. exp(-z) overflows below -88, which must not become inf * 0."""
    infinity = float("inf")
    extremes = [float("nan"), infinity, -infinity, 0.0, 1e-3, -1e-3, 20, -20, -80, -88, -90, -104, 1e4, -1e4, 6e4, -6e4]
    bias = torch.tensor(extremes, device=device, dtype=dtype)
    problem = ConvProblem(16, 16, 1, 1, 16, 1, 1)
    x, w = (torch.zeros(16, 16, 1, 1, device=device, dtype=dtype) for _ in "xw")
    y = fprop(x, w, problem, Epilogue(bias, None, activation), config=config)
    expected = getattr(F, activation)(bias.double()).to(dtype).expand(16, 16)
    rounding = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.flatten(1), expected, rtol=rounding, atol=1e-12, equal_nan=True)


def test_bitwise_equal_from_run_to_run(device):
    case = Case(BATCHED["batch"], torch.float32, device)
    first, second = (fprop(case.x, case.w, case.problem, case.epilogue(), config=BATCH) for _ in "ab")
    assert torch.equal(first, second)


@pytest.mark.parametrize("size, width", [(64, 16), (24, 8), (34, 2), (17, 1)])
def test_vectors_are_the_widest_that_divide(size, width):
    """Numbers do not tell: what is not a power of two, the compiler would load element by element."""
    assert vector_width(size) == width


@pytest.mark.parametrize("most, bits", [((3, 3), 32), ((1, 30), 32), ((15, 15), 32), ((1, 31), 64), ((16, 2), 64)])
def test_taps_are_walked_in_the_narrowest_integer(most, bits):
    """Numbers do not tell: a wider one is right and takes more registers."""
    integer, _ = tap_bits(*most)
    assert integer.primitive_bitwidth == bits


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
        (launch,) = plan_fprop(x, w, y, problem, config=config)
        assert str(launch.constexprs["OFFSET"]) == offset


def test_more_than_2_to_31_rows_are_split():
    problem = ConvProblem(2048, 1, 1024, 1024, 8, 1, 1)
    x, w, y = meta(problem)
    launches = plan_fprop(x, w, y, problem, config=Config(128, 16, 16, 4, 2))
    assert sum(launch.args["N"] for launch in launches) == 2048
    assert all(launch.args["N"] * 1024 * 1024 < 2**31 - 128 for launch in launches)


def test_windows_beyond_31_are_refused():
    problem = ConvProblem(1, 16, 1, 40, 16, 1, 33, padding=(0, 0, 16, 16))
    x, w, y = meta(problem)
    with pytest.raises(ValueError, match=r"windows up to 31x31 are supported, got 1x33"):
        plan_fprop(x, w, y, problem, config=GATHER)
