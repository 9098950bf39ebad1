"""Triton's interpreter in less than half of its time, with one check more and bfloat16 as hardware has it.

For each call of a device function it looks up and replaces all functions of ``triton.language``, which the launch has
done already: here a launch does it once, and what is to be replaced is looked up once. For each sum, difference and
product of signed integers it finds by some ten operations of its own whether they overflow, and drops the answer unless
it was made with ``debug``: here numpy finds it, and it raises. It makes a table of all dtypes whenever it looks for
numpy's: here the answers are kept. It cuts float32 off to bfloat16, where hardware rounds to nearest even, and reads
subnormal bfloat16 as other numbers: here bfloat16 is float32's upper half.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

# What kernels and Triton's own device functions call by: both are replaced for a launch.
_LANGUAGE = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
_OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


class _Scope(interpreter._LangPatchScope):
    """Triton's, that knows what it replaced and when it is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced: list[tuple[Any, str, Any]] = []

    def set_attr(self, obj: Any, name: str, value: Any) -> None:
        super().set_attr(obj, name, value)
        self.replaced.append((obj, name, value))

    def restore(self) -> None:
        super().restore()
        _at_work.remove(self)


_at_work: list[_Scope] = []  # at most one: launches take turns (``triton_dirac.runtime.launch``)


def quicken() -> None:
    """From now on in this process."""
    patch_lang, np_dtype_of = interpreter._patch_lang, interpreter._get_np_dtype
    replacements: list[tuple[Any, str, Any]] = []
    np_dtypes: dict[str, np.dtype[Any]] = {}

    def patched_once(function: Any) -> _Scope:
        if _at_work:
            return _at_work[0]
        if replacements:
            scope = _Scope()
            for replacement in replacements:
                scope.set_attr(*replacement)
        else:
            scope = patch_lang(_LANGUAGE)
            replacements.extend(scope.replaced)
        _at_work.append(scope)
        return scope

    def np_dtype(dtype: Any) -> np.dtype[Any]:
        name = dtype.scalar.name
        if name not in np_dtypes:
            np_dtypes[name] = np_dtype_of(dtype)
        return np_dtypes[name]

    convert = interpreter._convert_float

    def convert_float(values: Any, source: tl.dtype, target: tl.dtype, rounding: Any) -> Any:
        known = _CONVERSIONS.get((source.name, target.name))
        return convert(values, source, target, rounding) if known is None else known(values)

    interpreter._convert_float = convert_float
    interpreter._LangPatchScope = _Scope
    interpreter._patch_lang = patched_once
    interpreter._get_np_dtype = np_dtype
    TritonSemantic.binary_op_sanitize_overflow_impl = _check_overflow


def _bfloat16_to_float32(values: Any) -> Any:
    """Bits to bits."""
    return np.left_shift(values, 16, dtype=np.uint32)


def _float32_to_bfloat16(values: Any) -> Any:
    """The bits of the nearest, of two the even one; NaN stays NaN, which rounding its bits might make infinite."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64).reshape(np.shape(values))
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, nearest).astype(np.uint16)


_CONVERSIONS = {("bf16", "fp32"): _bfloat16_to_float32, ("fp32", "bf16"): _float32_to_bfloat16}


def _check_overflow(self: Any, lhs: Any, rhs: Any, binary_op: Any) -> None:
    dtype = lhs.type.scalar
    if dtype.int_bitwidth >= 64 or dtype.is_int_unsigned():  # unsigned integers wrap by definition
        return
    name = binary_op.__name__
    exact = _OPERATIONS[name](lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
    if exact.size and not dtype.get_int_min_value() <= exact.min() <= exact.max() <= dtype.get_int_max_value():
        raise OverflowError(f"{dtype} overflows in {name}: from {exact.min()} to {exact.max()}")
