"""The tile tables of fprop and dgrad, and the tile arithmetic that chooses among them."""

from __future__ import annotations

import pytest
import torch

from triton_dirac.conv import dgrad_configs as dgrad
from triton_dirac.conv import fprop_configs as fprop
from triton_dirac.conv.configs import configs, gemm_of, shared_bytes
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import TARGETS

ONE = (1, 1, 1, 1)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
H100, A100 = TARGETS["cuda:90"], TARGETS["cuda:80"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
def test_tables_are_few_reasoned_and_fit(target, dtype, vectors, precision):
    offered = configs(dtype, vectors, target, precision)
    assert 0 < len(offered) <= 24
    assert len({config.name for config in offered}) == len(offered)
    for config in offered:
        assert config.reason
        assert shared_bytes(config, dtype, target) <= target.shared_bytes


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
