"""The check that gates timing: at most twice the error of torch in the same dtype, against float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Value = Tensor | tuple[Tensor, ...]  # of a layer, or of a net one for each layer

# Allowed beside twice torch's error, as a part of the largest true value: what rounding once and summing in
# another order may cost. TF32 keeps float16's ten bits of mantissa.
ROUNDING = {"float32": 1e-5, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class Error:
    """max |result - truth| of one tensor; ``scale`` is max |truth|, ``torch_error`` plain torch's error."""

    tensor: str
    error: float
    scale: float
    torch_error: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.tensor} off by {self.error:.2e} (torch {self.torch_error:.2e}, scale {self.scale:.2e})"


def max_error(result: Tensor, truth: Tensor) -> float:
    """max |result - truth| in float64. NaN if either holds one, and infinite if the shapes differ."""
    if result.shape != truth.shape:
        return float("inf")
    if truth.numel() == 0:
        return 0.0
    return (result.detach().double() - truth).abs().max().item()


def check(
    results: Mapping[str, Value], truth: Mapping[str, Value], torch_errors: Mapping[str, Sequence[float]], dtype: str
) -> list[Error]:
    """One Error for each result in ``truth``: passed if error <= 2 * torch_error + rounding * scale.

    Of a result with several parts, the part that comes nearest to what is allowed, or goes furthest beyond it.
    """
    return [
        max(
            (
                _error(name, *of_part, dtype)
                for of_part in zip(parts(results[name]), parts(true), torch_errors[name], strict=True)
            ),
            key=_beside_torch,
        )
        for name, true in truth.items()
    ]


def parts(value: Value) -> Sequence[Tensor]:
    return (value,) if isinstance(value, Tensor) else value


def _error(tensor: str, result: Tensor, true: Tensor, torch_error: float, dtype: str) -> Error:
    scale = true.abs().max().item() if true.numel() else 0.0
    error = max_error(result, true)
    return Error(tensor, error, scale, torch_error, error <= 2 * torch_error + ROUNDING[dtype] * scale)


def _beside_torch(error: Error) -> tuple[bool, float]:
    """Failures first, NaN among them; then by error over torch's own."""
    ratio = error.error / error.torch_error if error.torch_error else error.error
    return not error.passed, ratio


def failures(errors: Sequence[Error]) -> str | None:
    """What failed, in words; None if nothing did."""
    failed = [str(error) for error in errors if not error.passed]
    return f"failed the check against float64: {'; '.join(failed)}" if failed else None
