"""The tolerance rule itself: what it admits, and what it must not."""

import math

import pytest
import torch

from tests.tolerance import ABSOLUTE, assert_as_good_as_torch, max_error

EXPECTED = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def off_by(error: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (EXPECTED - torch.tensor([0.0, 0.0, error], dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_error_is_the_largest_difference(sign):
    assert max_error(off_by(sign * 0.25), EXPECTED) == 0.25
    assert max_error(EXPECTED, EXPECTED) == 0
    assert max_error(torch.empty(0), torch.empty(0)) == 0


def test_a_single_nan_or_infinity_is_no_small_error():
    for value in (math.nan, math.inf):
        actual = EXPECTED.clone()
        actual[1] = value
        with pytest.raises(AssertionError, match=r"^y: max error"):
            assert_as_good_as_torch("y", actual, EXPECTED, torch_result=off_by(0.1))
    nan = torch.full((3,), math.nan)
    with pytest.raises(AssertionError):
        assert_as_good_as_torch("NaN never equals NaN", nan, nan)


def test_twice_torchs_error_is_admitted_and_no_more():
    by_torch = off_by(0.125)
    assert_as_good_as_torch("y", off_by(0.25), EXPECTED, by_torch, atol=0.0)
    for error in (0.2501, 0.375):
        with pytest.raises(AssertionError, match=r"exceeds 2\.500e-01"):
            assert_as_good_as_torch("y", off_by(error), EXPECTED, by_torch, atol=0.0)
    assert_as_good_as_torch("y", off_by(0.3), EXPECTED, by_torch, atol=0.06)
    with pytest.raises(AssertionError):
        assert_as_good_as_torch("y", off_by(0.3), EXPECTED, by_torch, atol=0.04)


@pytest.mark.parametrize("dtype, rounding", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_without_torch_the_rounding_of_the_largest_value(dtype, rounding):
    assert ABSOLUTE[dtype] == rounding
    scale = 2.0  # the largest magnitude is the negative value's
    exact = off_by(0.0, torch.float64)
    actual = exact.to(dtype)
    assert_as_good_as_torch("y", actual, actual.double() + torch.tensor([0.0, 0.0, 0.9 * scale * rounding]))
    with pytest.raises(AssertionError, match=rf"exceeds {scale * rounding:.3e}"):
        assert_as_good_as_torch("y", actual, actual.double() + torch.tensor([0.0, 0.0, 1.1 * scale * rounding]))


def test_nothing_is_right_and_zero_admits_zero_only():
    assert_as_good_as_torch("y", torch.empty(0, 3), torch.empty(0, 3, dtype=torch.float64))
    zero = torch.zeros(2)
    assert_as_good_as_torch("y", zero, zero)
    with pytest.raises(AssertionError):
        assert_as_good_as_torch("y", torch.tensor([0.0, 1e-30]), zero)


def test_shapes_must_agree():
    with pytest.raises(AssertionError, match=r"y: shape \(3,\), expected \(1, 3\)"):
        assert_as_good_as_torch("y", EXPECTED, EXPECTED[None])
