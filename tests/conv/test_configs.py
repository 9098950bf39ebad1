"""The tile tables of fprop and dgrad, and the tile arithmetic that chooses among them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from triton_dirac.conv import configs as gemm_configs
from triton_dirac.conv import cycles, wgrad_configs
from triton_dirac.conv import dgrad_configs as dgrad
from triton_dirac.conv import fprop_configs as fprop
from triton_dirac.conv.config import MOST_CONFIGS, Config, checked
from triton_dirac.conv.configs import configs, gemm_of
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import TARGETS, listed

ONE = (1, 1, 1, 1)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
H100, A100 = TARGETS["cuda:90"], TARGETS["cuda:80"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
def test_tables_are_few_reasoned_and_fit(target, dtype, vectors, precision):
    offered = configs(dtype, vectors, target, precision)
    assert 0 < len(offered) <= MOST_CONFIGS
    assert len({config.name for config in offered}) == len(offered)
    for config in offered:
        assert config.reason
        assert cycles.shared_bytes(config, dtype.itemsize, target) <= target.shared_bytes


def test_a_table_says_what_is_wrong_with_it():
    row = Config(64, 64, 64, 4, 4, reason="wide layers")
    rows = [replace(row, block_k=16 * (i + 1)) for i in range(MOST_CONFIGS)]
    assert checked(rows, "configs") == rows
    with pytest.raises(
        ValueError, match=r"fprop's configs: 25 rows, at most 24, since .* take out one .*64x64x64 w4 s4"
    ):
        checked([*rows, replace(row, num_warps=8)], "fprop's configs")
    with pytest.raises(ValueError, match="two rows are 64x64x64 w4 s4 gather g8; take out one"):
        checked([row, replace(row, reason="another")], "configs")
    with pytest.raises(ValueError, match="64x64x64 w4 s4 gather has no reason; say in `reason`"):
        checked([replace(row, reason="")], "configs")


def test_a_row_too_many_is_refused_where_it_is_picked_from(monkeypatch):
    rows = tuple(Config(16, 16, 16 * i, 4, 2, reason="one of many") for i in range(1, 30))
    for table in (gemm_configs, wgrad_configs):
        monkeypatch.setattr(table, "_HALF", rows)
        with pytest.raises(ValueError, match=r"configs of torch\.float16 ieee for cuda:80: "):
            table.configs(torch.float16, True, A100)


@pytest.mark.parametrize("table", [gemm_configs, wgrad_configs], ids=["gemm", "wgrad"])
def test_what_a_row_says_of_registers_holds(table, monkeypatch):
    said = {16: True, 32: False, 64: None}
    rows = tuple(Config(16, 16, k, 4, 2, all_registers=flag, reason="a test") for k, flag in said.items())
    monkeypatch.setattr(table, "_HALF", rows)
    found = {c.block_k: c.all_registers for c in table.configs(torch.float16, True, A100) if c.reason == "a test"}
    assert found == {16: True, 32: False, 64: True}


def test_costs_are_by_the_rates_of_the_gpu_at_hand():
    config = Config(128, 128, 64, 8, 3)
    l4, rtx4090 = (listed("cuda:89", gpu) for gpu in ("NVIDIA L4", "NVIDIA GeForce RTX 4090"))
    clocks = [
        cycles.estimated_cycles(config, 2, replace(gpu, units=100, shared_bytes=99 * 1024), programs=800, steps=100)
        for gpu in (A100, l4, rtx4090)
    ]
    assert clocks == sorted(clocks)
    assert len(set(clocks)) == 3
    problem = ConvProblem(128, 64, 56, 56, 64, 3, 3, padding=ONE)
    split = partial(wgrad_configs.estimated_cycles, problem, torch.float16, Config(64, 64, 64, 4, 4), 64)
    assert split(replace(A100, memory_bytes=l4.memory_bytes)) > split(A100)


@pytest.mark.parametrize("kernel", [fprop, dgrad], ids=["fprop", "dgrad"])
@pytest.mark.parametrize(
    "problem",
    [
        ConvProblem(128, 160, 32, 32, 160, 3, 3, padding=ONE),
        ConvProblem(1, 512, 7, 7, 512, 3, 3, padding=ONE),
        ConvProblem(256, 3, 224, 224, 64, 7, 7, stride=(2, 2), padding=(3, 3, 3, 3)),
        ConvProblem(0, 16, 8, 8, 16, 3, 3),
        ConvProblem(1, 1, 1, 1, 1, 1, 1),
        ConvProblem(8, 64, 9, 9, 64, 3, 3, stride=(4, 4), groups=4),
        ConvProblem(128, 64, 600, 600, 64, 3, 3, padding=ONE),
    ],
    ids=str,
)
def test_default_is_offered_everywhere(kernel, problem):
    for target in TARGETS.values():
        for dtype in DTYPES:
            assert kernel.default(problem, dtype, target) in kernel.offered(problem, dtype, target)


def test_batches_that_fill_a_tile_walk_in_batch_order():
    problem = ConvProblem(128, 160, 8, 8, 160, 3, 3, padding=ONE)
    assert fprop.default(problem, torch.float16, A100).loader == "batch"
    one_image = ConvProblem(1, 160, 8, 8, 160, 3, 3, padding=ONE)
    assert {config.loader for config in fprop.offered(one_image, torch.float16, A100)} == {"gather"}


def test_descriptors_only_where_they_are_tma_and_apply():
    problem = ConvProblem(128, 256, 14, 14, 256, 3, 3, padding=ONE)
    descriptors = {"tile", "persistent"}
    assert fprop.default(problem, torch.float16, H100).loader in descriptors
    assert descriptors.isdisjoint(config.loader for config in fprop.offered(problem, torch.float16, A100))
    strided = ConvProblem(128, 256, 14, 14, 256, 3, 3, stride=(2, 2), padding=ONE)
    assert descriptors.isdisjoint(config.loader for config in fprop.offered(strided, torch.float16, H100))


def test_images_that_int32_offsets_cannot_span_keep_to_pixel_order():
    problem = ConvProblem(128, 64, 1100, 1100, 64, 3, 3, padding=ONE)
    assert "batch" not in {config.loader for config in fprop.offered(problem, torch.float16, A100)}


def test_elements_count_each_tensor_once():
    assert ConvProblem(2, 3, 5, 5, 4, 3, 3).elements == 150 + 108 + 72
    assert ConvProblem(2, 4, 5, 5, 4, 3, 3, groups=2).elements == 2 * 4 * (25 + 9) + 4 * 2 * 9


def test_inside_share_counts_pairs():
    """3x3 "same" on 2x2: every pixel reads 4 of 9 taps, in fprop as in dgrad."""
    problem = ConvProblem(1, 16, 2, 2, 16, 3, 3, padding=ONE)
    for backward in (False, True):
        assert gemm_of(problem, backward).inside == pytest.approx(4 / 9)


def test_dgrad_swaps_the_images():
    problem = ConvProblem(4, 32, 8, 8, 96, 3, 3, stride=(2, 2), padding=ONE)
    gemm = gemm_of(problem, True)
    assert (gemm.channels, gemm.columns, gemm.phases, gemm.pixels) == (96, 32, 4, 16)
    assert gemm.taps == pytest.approx(9 / 4)
