"""The tolerance rule: a kernel may err at most twice as much as torch does in the same dtype."""

from __future__ import annotations

import torch
from torch import Tensor

# What a single rounding of a value of size 1 may cost, and sums in another order with it.
ABSOLUTE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def max_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| in float64; NaN anywhere gives NaN, which no tolerance admits."""
    if actual.numel() == 0:
        return 0.0
    return (actual.double().cpu() - expected.double().cpu()).abs().max().item()


def assert_as_good_as_torch(
    name: str,
    actual: Tensor,
    expected: Tensor,
    torch_result: Tensor | None = None,
    atol: float | None = None,
) -> None:
    """error(actual) <= 2 * error(torch in the same dtype) + atol, both against the float64 ``expected``.

    ``atol`` defaults to the dtype's rounding times the largest expected value. Shapes must agree; NaN never
    equals NaN. ``name`` says in the message what was wrong.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    scale = expected.abs().max().item() if expected.numel() else 0.0
    allowed = ABSOLUTE[actual.dtype] * scale if atol is None else atol
    if torch_result is not None:
        allowed += 2 * max_error(torch_result, expected)
    error = max_error(actual, expected)
    assert error <= allowed, f"{name}: max error {error:.3e} exceeds {allowed:.3e} (largest expected value {scale:.3e})"
