"""dgrad against float64, for every loader, dtype and stride phase."""

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
from triton_dirac.conv import dgrad_configs as tuning
from triton_dirac.conv.dgrad import dgrad, plan_dgrad, with_k_contiguous
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import TARGETS


def check(problem, config, device, dtype=torch.float32, precision="ieee", alpha=True):
    case = Case(problem, dtype, device, alpha=alpha)
    dx = dgrad(case.dy, case.w, case.alpha, problem, precision=precision, config=config)
    assert dx.dtype == dtype
    assert dx.is_contiguous(memory_format=torch.channels_last)
    assert_as_good_as_torch("input gradient", dx, case.dgrad(torch.float64), case.dgrad(dtype))


@pytest.mark.parametrize("name", PROBLEMS)
def test_gather(name, device):
    check(PROBLEMS[name], GATHER, device)


@pytest.mark.parametrize("name", BATCHED)
def test_batch_order(name, device):
    check(BATCHED[name], BATCH, device)


@pytest.mark.parametrize(
    "name", ["stride 2", "channel tail across taps", "groups", "groups of odd size", "batch, groups"]
)
def test_k_contiguous_filters(name, device, monkeypatch):
    """What AMD's matrix units are given; the kernel does not ask on which GPU it runs."""
    asked = []
    monkeypatch.setattr(tuning, "wants_k_contiguous", lambda config, target: asked.append(target) or True)
    check((PROBLEMS | BATCHED)[name], BATCH if name in BATCHED else GATHER, device)
    assert asked


def test_k_contiguous_filters_are_those_of_the_gradient_s_convolution():
    w = torch.randn(6, 2, 3, 3)
    k_contiguous = with_k_contiguous(w.to(memory_format=torch.channels_last), 3)
    assert k_contiguous.shape == (6, 3, 3, 2)
    assert k_contiguous.is_contiguous()
    assert k_contiguous[2 * 2 + 1, 0, 2, 1] == w[2 * 2 + 1, 1, 2, 0]
    assert [tuning.wants_k_contiguous(GATHER, TARGETS[name]) for name in ("cuda:90", "hip:gfx942")] == [False, True]


@pytest.mark.parametrize("name", [*BATCHED, "taps fastest", "dilation", "uneven padding, even window", "pointwise"])
@pytest.mark.parametrize("config", [TILE, TWO_PARTS, PERSISTENT], ids=lambda config: config.name)
@pytest.mark.usefixtures("two_programs")
def test_tile(config, name, device):
    """What descriptors cannot read, the tile loader leaves to the gather loader."""
    check((PROBLEMS | BATCHED)[name], config, device, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [GATHER, BATCH, TILE, PERSISTENT], ids=lambda config: config.loader)
def test_half_precision(dtype, config, device):
    check(BATCHED["batch"], config, device, dtype)


def test_default_config(device):
    check(PROBLEMS["stride 2"], None, device)
    check(PROBLEMS["stem"], None, device)
    check(PROBLEMS["depthwise"], None, device)


@pytest.mark.parametrize("config, dtype", every_config(), ids=lambda value: getattr(value, "name", str(value)))
def test_every_config(config, dtype, device):
    check(problem_for(config), config, device, dtype)


def test_without_identity(device):
    check(PROBLEMS["stride 2"], GATHER, device, alpha=False)


def test_all_phases_in_one_launch():
    problem = ConvProblem(2, 16, 8, 8, 32, 3, 3, stride=(2, 3), padding=ONE)
    shapes = (problem.output_shape, problem.weight_shape, problem.input_shape)
    dy, w, dx = (torch.empty(s, device="meta", memory_format=torch.channels_last) for s in shapes)
    (launch,) = plan_dgrad(dy, w, dx, None, problem, config=GATHER)
    assert launch.grid[1] == 6


def test_expanded_upstream_gradient(device):
    """``.sum().backward()`` sends one number, expanded."""
    case = Case(PROBLEMS["taps fastest"], torch.float32, device)
    case.dy = torch.ones((), device=device).expand(case.problem.output_shape)
    dx = dgrad(case.dy, case.w, case.alpha, case.problem, config=GATHER)
    assert_as_good_as_torch("input gradient", dx, case.dgrad(torch.float64))


@pytest.mark.parametrize("config", [GATHER, BATCH, TILE, PERSISTENT], ids=lambda config: config.loader)
def test_empty_batch(config, device):
    problem = ConvProblem(0, 16, 5, 5, 16, 3, 3, padding=ONE)
    case = Case(problem, torch.float32, device)
    assert dgrad(case.dy, case.w, case.alpha, problem, config=config).shape == (0, 16, 5, 5)


def test_infinities_stay_with_their_pixels(device):
    """Strided phases mask the channel tail in both operands; a neighbouring image is never multiplied by zero."""
    problem = ConvProblem(2, 8, 6, 6, 20, 3, 3, stride=(2, 2), padding=ONE)
    case = Case(problem, torch.float32, device, alpha=False)
    case.dy[1] = float("inf")
    dx = dgrad(case.dy, case.w, None, problem, config=GATHER)
    assert torch.isfinite(dx[0]).all()
    assert not torch.isfinite(dx[1]).any()
