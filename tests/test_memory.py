"""The checks of memory that all kernel tests run under find what they are there for."""

import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_dirac.runtime.launch import Launch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="addresses are checked in the interpreter")


@triton.jit
def copy_kernel(source, target, first, size, BLOCK: tl.constexpr):
    offset = first + tl.arange(0, BLOCK)
    tl.store(target + offset, tl.load(source + offset, mask=offset < size), mask=offset < size)


@triton.jit
def unused_read_kernel(source, target, size, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    value = tl.load(source + offset)
    tl.store(target + offset, tl.where(offset < size, value, 0.0), mask=offset < size)


@triton.jit
def tile_kernel(tiles, target, BLOCK: tl.constexpr):
    tl.store(target + tl.arange(0, BLOCK), tiles.load([0]))


def copy(source, target, first, size):
    Launch(copy_kernel, (1,), {"source": source, "target": target, "first": first, "size": size}, {"BLOCK": 8}).run()


def test_a_launch_within_its_tensors():
    source, target = torch.randn(5), torch.empty(5)
    copy(source, target, 0, 5)
    assert torch.equal(source, target)
    wide = torch.randn(20)
    copy(wide[5:10], target, 0, 5)  # neighbours in memory are not the launch's
    copy(wide[::4], wide, 0, 5)


@pytest.mark.parametrize("first, size", [(0, 6), (-1, 5)], ids=["behind", "before"])
def test_a_read_of_one_element_outside(first, size):
    memory = torch.randn(64)  # which is there to be read: nothing crashes by itself
    with pytest.raises(Exception, match="reads 1 elements outside"):
        copy(memory[9:14], memory[32:], first, size)


def test_a_write_of_one_element_outside():
    memory = torch.randn(64)
    with pytest.raises(Exception, match=r"writes 1 elements outside .* \+0 bytes"):
        copy(memory[:16], memory[32:37], 0, 6)


def test_a_read_that_changes_no_number():
    args = {"source": torch.randn(64)[:5], "target": torch.empty(8), "size": 5}
    with pytest.raises(Exception, match="reads 3 elements outside"):
        Launch(unused_read_kernel, (1,), args, {"BLOCK": 8}).run()


def test_descriptors_are_known():
    tiles = TensorDescriptor.from_tensor(torch.ones(16), [16])
    target = torch.empty(16)
    Launch(tile_kernel, (1,), {"tiles": tiles, "target": target}, {"BLOCK": 16}).run()
    assert target.eq(1).all()
    with pytest.raises(Exception, match="writes 8 elements outside"):
        Launch(tile_kernel, (1,), {"tiles": tiles, "target": torch.ones(64)[:8]}, {"BLOCK": 16}).run()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_empty_is_nan(dtype):
    like = torch.ones(4, dtype=dtype)
    made = [
        torch.empty(4, dtype=dtype), torch.empty_like(like), torch.empty_strided((4,), (1,), dtype=dtype),
        like.new_empty(4), like.new_empty_strided((4,), (1,)), torch.empty(64, dtype=torch.uint8).view(dtype),
    ]  # fmt: skip
    assert all(tensor.isnan().all() for tensor in made)
