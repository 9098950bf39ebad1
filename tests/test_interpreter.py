"""The quickened interpreter is Triton's: it puts back what it replaced for a launch, and overflowing integers raise."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests import interpreter
from triton_dirac.runtime.launch import Launch

pytestmark = pytest.mark.interpreted


@triton.jit
def _plus(a, b):
    return a + b


@triton.jit
def _sum_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, _plus(x, x) + tl.sum(x))


@triton.jit
def _head_kernel(x_ptr, y_ptr, least, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    mask = (at < 2) & (tl.program_id(0) >= least)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=mask, other=7.0), mask=mask)


def twice_and_sum(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    Launch(_sum_kernel, (1,), {"x_ptr": x, "y_ptr": y}, {"BLOCK": len(x)}).run()
    return y


def builtins() -> dict[str, object]:
    """What the interpreter replaces, by name."""
    owners = {"tl": tl, "tl.core": tl.core, "tl.math": tl.math, "tl.tensor": tl.tensor}
    found = {f"{owner}.{name}": value for owner, of in owners.items() for name, value in vars(of).items()}
    return {name: value for name, value in found.items() if tl.core.is_builtin(value)}


def test_a_launch_puts_back_what_it_replaced():
    before = builtins()
    assert {"tl.arange", "tl.core.arange", "tl.math.exp", "tl.tensor.__add__"} <= set(before)
    for _ in "ab":
        torch.testing.assert_close(twice_and_sum(torch.arange(4.0)), 2 * torch.arange(4.0) + 6)
        assert builtins() == before


def test_after_a_launch_that_failed_the_next_is_right():
    with pytest.raises(triton.runtime.errors.InterpreterError):
        Launch(_sum_kernel, (1,), {"x_ptr": torch.ones(1), "y_ptr": torch.ones(1)}, {"BLOCK": 3}).run()
    torch.testing.assert_close(twice_and_sum(torch.ones(2)), torch.full((2,), 4.0))


@pytest.mark.parametrize("least, expected", [(0, [1.0, 1.0, 0.0, 0.0]), (1, [0.0] * 4)])
def test_a_comparison_of_scalars_is_broadcast_as_a_mask(least, expected):
    """Triton 3.9's interpreter broadcasts it as integers, which it does not take for a mask."""
    y = torch.zeros(4)
    Launch(_head_kernel, (1,), {"x_ptr": torch.ones(4), "y_ptr": y, "least": least}, {"BLOCK": 4}).run()
    assert y.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32])
def test_integers_that_overflow_raise(dtype):
    largest = torch.iinfo(dtype).max // 2
    fits = torch.tensor([largest, 0], dtype=dtype)
    twice_and_sum(fits // 2)
    with pytest.raises(triton.runtime.errors.InterpreterError, match=f"int{8 * dtype.itemsize} overflows in add"):
        twice_and_sum(fits + 1)


def test_numpys_dtypes_are_tritons():
    names = {}
    for dtype in (tl.int1, tl.int32, tl.float16, tl.bfloat16, tl.float32, tl.pointer_type(tl.float32)):
        for shaped in (dtype, tl.block_type(dtype, [4])):
            names[str(shaped)] = interpreter.interpreter._get_np_dtype(shaped).name
    assert names["int1"] == names["<['4'], int1>"] == "bool"
    assert names["bf16"] == "uint16"
    assert names["pointer<fp32>"] == "uint64"


@triton.jit
def _cast_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(y_ptr.dtype.element_ty))


@pytest.mark.parametrize("source, target", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_bfloat16_is_read_and_rounded_as_torch_does(source, target):
    """Of all bit patterns: subnormal numbers, ties, infinities and NaN among them."""
    bits = torch.arange(2**16, dtype=torch.int32)
    x = (bits << 16).view(torch.float32)
    if source is torch.bfloat16:
        x = x.bfloat16()
    else:
        x = torch.cat([x, ((bits << 16) + 0x7FFF).view(x.dtype), ((bits << 16) + 0x8000).view(x.dtype)])
        x = torch.cat([x, x.new_zeros(2**16)])
    y = torch.empty_like(x, dtype=target)
    Launch(_cast_kernel, (1,), {"x_ptr": x, "y_ptr": y}, {"BLOCK": len(x)}).run()
    torch.testing.assert_close(y, x.to(target), rtol=0, atol=0, equal_nan=True)
