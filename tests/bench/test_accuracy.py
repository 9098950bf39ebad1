"""The check that gates timing."""

import torch

from bench.accuracy import check, failures, max_error

TRUE = torch.tensor([1.0, -4.0], dtype=torch.float64)


def verdict(result, torch_error=0.0, dtype="float32"):
    (error,) = check({"output": result}, {"output": TRUE}, {"output": [torch_error]}, dtype)
    return error


def test_error_is_the_largest_difference_in_float64():
    error = verdict(torch.tensor([1.5, -4.25]), torch_error=0.3)
    assert (error.tensor, error.error, error.scale, error.torch_error) == ("output", 0.5, 4.0, 0.3)


def test_twice_torchs_error_and_a_rounding_of_the_largest_value_are_allowed():
    assert verdict(TRUE + 0.6, torch_error=0.3).passed
    assert not verdict(TRUE + 0.601, torch_error=0.3).passed
    assert verdict(TRUE + 0.03, dtype="bfloat16").passed
    assert not verdict(TRUE + 0.03, dtype="float16").passed


def test_nan_wrong_shape_and_infinity_never_pass():
    assert not verdict(torch.tensor([1.0, float("nan")]), torch_error=1e9).passed
    assert not verdict(torch.ones(2, 1)).passed
    assert not verdict(torch.tensor([float("inf"), -4.0]), torch_error=1e9).passed
    # torch's own NaN excuses nobody's
    assert not verdict(torch.tensor([1.0, float("nan")]), torch_error=float("nan")).passed


def test_empty_tensors_are_equal():
    assert max_error(torch.ones(0, 3), torch.ones(0, 3).double()) == 0.0


def test_failures_name_the_tensor_and_its_error():
    errors = check(
        {"output": TRUE, "weight": TRUE + 1},
        {"output": TRUE, "weight": TRUE},
        {"output": [0.0], "weight": [0.01]},
        "float32",
    )
    assert failures(errors[:1]) is None
    assert failures(errors) == (
        "failed the check against float64: weight off by 1.00e+00 (torch 1.00e-02, scale 4.00e+00)"
    )
