"""wgrad against float64: both orders of pixels, every config that can be picked, hostile sizes, split reductions."""

from dataclasses import replace

import pytest
import torch

from tests.conv.gemm_cases import BATCHED, ONE, PROBLEMS, Case
from tests.tolerance import assert_as_good_as_torch
from triton_dirac.conv import cycles
from triton_dirac.conv import wgrad_configs as tuning
from triton_dirac.conv.config import Config, has_vectors
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.conv.wgrad import (
    INT32_LIMIT,
    plan_wgrad,
    split_steps,
    wgrad,
    workspace_shape,
)
from triton_dirac.runtime.targets import TARGETS

GATHER = Config(32, 32, 16, 4, 2, "gather")
BATCH = Config(32, 32, 16, 4, 2, "batch")
TILE = Config(16, 32, 16, 4, 2, "tile")
TWO_PARTS = Config(32, 32, 16, 4, 2, "tile", extra_n=16)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# What wgrad alone needs beside the problems of all passes: its sum runs over pixels and may be split, its rows are
# filters and its columns taps and channels, which along a filter row are what a tile of the tile loader reads.
SUMS = {
    "splits that begin amid rows and images": ConvProblem(3, 8, 7, 7, 8, 3, 3, padding=ONE),
    "strided images, several to a split": ConvProblem(5, 8, 7, 5, 8, 3, 3, stride=(2, 2), padding=ONE),
    "five tiles of filters by three of columns": ConvProblem(1, 80, 5, 5, 129, 1, 1),
}
BATCHED_SUMS = {
    "fewer images than a step": ConvProblem(7, 8, 4, 4, 8, 3, 3, padding=ONE),
    "odd channels, element by element": ConvProblem(16, 5, 4, 4, 7, 3, 3, padding=ONE),
}
FILTER_ROWS = {
    "a filter row that ends amid a tile": ConvProblem(16, 8, 4, 5, 40, 3, 3, padding=ONE),
    "a filter row narrower than a tile": ConvProblem(16, 8, 3, 3, 8, 2, 1, padding=(1, 0, 0, 0)),
    "a tap of the row alone reads at either end": ConvProblem(16, 8, 1, 4, 16, 1, 3, padding=(0, 0, 2, 2)),
    "dilated rows, few images": ConvProblem(5, 16, 6, 4, 16, 3, 2, padding=(2, 2, 0, 1), dilation=(2, 1)),
}


def check(problem, dtype, device, **options):
    case = Case(problem, dtype, device)
    dw = wgrad(case.dy, case.x, problem, dtype=dtype, **options)
    assert dw.is_contiguous(memory_format=torch.channels_last)
    assert_as_good_as_torch("dw", dw, case.wgrad(torch.float64), case.wgrad(dtype))


def split(problems, own):
    """(problem, split_k): each in three splits, wgrad's own in one as well, which writes dw without a workspace."""
    cases = [(name, problem, 3) for name, problem in (problems | own).items()]
    cases += [(name, problem, 1) for name, problem in own.items()]
    return [pytest.param(problem, split_k, id=f"{name}-{split_k}") for name, problem, split_k in cases]


@pytest.mark.parametrize("problem, split_k", split(PROBLEMS, SUMS))
def test_pixel_order(problem, split_k, device):
    check(problem, torch.float32, device, config=GATHER, split_k=split_k)


def test_the_last_group_of_tiles_is_of_those_that_are_left(device):
    check(SUMS["five tiles of filters by three of columns"], torch.float32, device, config=replace(GATHER, group_m=2))


@pytest.mark.parametrize("problem, split_k", split(BATCHED, BATCHED_SUMS))
def test_batch_order(problem, split_k, device):
    check(problem, torch.float32, device, config=BATCH, split_k=split_k)


LEFT = ("batch not full", "batch, dilation", "batch, groups")  # 20 filters, dilated columns, groups


@pytest.mark.parametrize("config, split_k", [(TILE, 3), (TWO_PARTS, 1)], ids=lambda v: getattr(v, "name", str(v)))
@pytest.mark.parametrize("name", [name for name in BATCHED | FILTER_ROWS if name not in LEFT])
def test_tile(name, config, split_k, device):
    problem = (BATCHED | FILTER_ROWS)[name]
    assert tuning.tile_applies(problem, torch.float16)
    check(problem, torch.float16, device, config=config, split_k=split_k)


@pytest.mark.parametrize("name", LEFT)
def test_tile_leaves_what_descriptors_cannot_read_to_another_loader(name, device):
    assert not tuning.tile_applies(BATCHED[name], torch.float16)
    check(BATCHED[name], torch.float16, device, config=TWO_PARTS)


@pytest.mark.parametrize("channels, block_n", [(40, 32), (8, 16)], ids=["ends in the last tap", "ends in another"])
def test_columns_that_two_tiles_share_are_the_same_in_both(channels, block_n, device):
    """In every split: either tile may be the last to write. The last tile of the 3 taps' columns begins in another tap
    than its neighbour, which may end in another one too, and each could leave out pixels that the other reads."""
    config = replace(TILE, block_n=block_n)
    problem = ConvProblem(16, channels, 4, 4, 16, 1, 3, padding=(0, 0, 2, 2))
    case = Case(problem, torch.float16, device)
    dy, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (case.dy, case.x))
    dw = torch.empty(problem.weight_shape, device=device, memory_format=torch.channels_last)
    whole, without_last = (torch.zeros(workspace_shape(problem, config, 3), device=device) for _ in range(2))
    for workspace in (whole, without_last):
        launch, _ = plan_wgrad(dy, x, dw, workspace, problem, config=config, split_k=3)
        (programs,) = launch.grid
        replace(launch, grid=(programs - (workspace is without_last),)).run()
    last, neighbour = (workspace.view(3, 16, 3 * channels)[-1] for workspace in (whole, without_last))
    end = 3 * channels // block_n * block_n
    assert not neighbour[:, end:].any()
    assert torch.equal(last[:, :end], neighbour[:, :end])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("side", [0, -1], ids=["top left", "bottom right"])
@pytest.mark.parametrize("config", [BATCH, TILE], ids=lambda c: c.loader)
def test_pixels_at_which_a_tap_reads_padding_are_left_out(config, side, device):
    """Where a tile's columns are of one tap. Multiplied by zeros, an infinite gradient would tell."""
    problem = ConvProblem(16, 32, 3, 3, 16, 3, 3, padding=ONE)
    case = Case(problem, torch.float16, device)
    case.dy[:, :, side] = case.dy[:, :, :, side] = float("inf")
    finite = wgrad(case.dy, case.x, problem, dtype=torch.float32, config=config).isfinite()
    assert finite[:, :, side, side].all()
    assert not finite.flatten(2)[:, :, 1:-1].any()


def test_tile_leaves_misaligned_tensors_to_another_loader(device):
    case = Case(BATCHED["batch"], torch.float16, device)
    x = case.x
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=device)[1:].view(x.permute(0, 2, 3, 1).shape)
    shifted = shifted.permute(0, 3, 1, 2).copy_(x)
    assert shifted.data_ptr() % 16
    dw = wgrad(case.dy, shifted, case.problem, dtype=x.dtype, config=TILE)
    assert_as_good_as_torch("dw", dw, case.wgrad(torch.float64), case.wgrad(x.dtype))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("config", [GATHER, BATCH, TILE], ids=lambda c: c.loader)
def test_half_precision(config, dtype, device):
    check(BATCHED["batch"], dtype, device, config=config, split_k=2)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_precision_is_accepted(precision, device):
    check(PROBLEMS["taps fastest"], torch.float32, device, precision=precision)


def pickable():
    """Each tile that any target may be given, with a problem that it is offered for."""
    seen = {}
    for dtype in (torch.float16, torch.float32):
        for vectors in (True, False):
            for target in TARGETS.values():
                for config in tuning.configs(dtype, vectors, target):
                    tile = config.block_m, config.block_n, config.block_k, config.loader, vectors
                    seen.setdefault(tile, (replace(config, reason=""), dtype, vectors))
    return list(seen.values())


@pytest.mark.parametrize("config, dtype, vectors", pickable(), ids=lambda v: getattr(v, "name", str(v)))
def test_every_config_that_can_be_picked(config, dtype, vectors, device):
    channels, filters = (40, 72) if vectors else (3, 33)
    problem = ConvProblem(config.block_k if config.loader == "batch" else 5, channels, 4, 5, filters, 2, 2)
    assert not vectors or has_vectors(dtype, problem.C // problem.groups)
    check(problem, dtype, device, config=config, split_k=2)


def test_default_path_and_formats(device):
    """No config, no split: NCHW and expanded inputs give what dense channels_last ones give."""
    problem = PROBLEMS["taps fastest"]
    case = Case(problem, torch.float32, device)
    dy, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (case.dy, case.x))
    dense = wgrad(dy, x, problem, dtype=torch.float32)
    assert_as_good_as_torch("dw", dense, case.wgrad(torch.float64))
    assert torch.equal(dense, wgrad(case.dy, case.x, problem, dtype=torch.float32))
    case.dy = torch.ones((), device=device).expand(problem.output_shape)
    assert_as_good_as_torch("dw of a sum", wgrad(case.dy, x, problem, dtype=torch.float32), case.wgrad(torch.float64))


def test_depthwise_takes_the_direct_kernel(device, monkeypatch):
    import triton_dirac.conv.wgrad as module

    monkeypatch.setattr(module, "plan_wgrad", None)
    check(ConvProblem(2, 8, 5, 5, 8, 3, 3, padding=ONE, groups=8), torch.float32, device)


@pytest.mark.parametrize("config", [GATHER, BATCH, TILE], ids=lambda c: c.loader)
def test_empty_batch_gives_zeros(config, device):
    problem = ConvProblem(0, 8, 5, 5, 12, 3, 3, padding=ONE)
    case = Case(problem, torch.float32, device)
    dw = wgrad(case.dy, case.x, problem, dtype=torch.float32, config=config)
    assert torch.equal(dw, torch.zeros(problem.weight_shape, device=device))


def test_storage_dtype_of_the_result(device):
    case = Case(PROBLEMS["taps fastest"], torch.float16, device)
    dw = wgrad(case.dy, case.x, case.problem, dtype=torch.float32, config=GATHER, split_k=2)
    assert dw.dtype == torch.float32
    assert_as_good_as_torch("dw", dw, case.wgrad(torch.float64))


@pytest.mark.parametrize("config", [GATHER, BATCH, TILE], ids=lambda c: c.loader)
def test_bitwise_the_same_from_run_to_run(config, device):
    case = Case(BATCHED["batch"], torch.float16, device)
    runs = [wgrad(case.dy, case.x, case.problem, dtype=torch.float32, config=config, split_k=3) for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("config", [GATHER, BATCH, TILE, TWO_PARTS], ids=lambda c: c.name)
def test_rows_beyond_the_end_are_not_multiplied(config, device):
    """Surplus reads and missing images must not bring an infinity of a neighbour into a sum."""
    problem = ConvProblem(3, 8, 3, 3, 8, 3, 3, padding=ONE)
    dtype = torch.float16 if config.loader == "tile" else torch.float32
    case = Case(problem, dtype, device)
    case.x[2, :, 2, 2] = float("inf")
    dw = wgrad(case.dy, case.x, problem, dtype=dtype, config=config)
    expected = case.wgrad(torch.float64)
    finite = expected.isfinite()
    assert torch.equal(dw.isfinite(), finite)
    assert_as_good_as_torch("finite entries", dw[finite], expected[finite], case.wgrad(dtype)[finite])


def test_split_of_huge_problems():
    """int32 offsets bound a split; int64 bases place it. Nothing is allocated but on meta."""
    huge = ConvProblem(4096, 640, 64, 64, 640, 3, 3, padding=ONE)
    config = Config(128, 128, 64, 8, 3, "gather")
    splits, steps = split_steps(huge, config, 1)
    rows = steps * config.block_k
    assert splits > 1
    assert (rows // (huge.P * huge.Q) + 2) * huge.H * huge.W * huge.C <= INT32_LIMIT
    assert (splits - 1) * rows < huge.N * huge.P * huge.Q <= splits * rows
    workspace = torch.empty(workspace_shape(huge, config, 1), device="meta")
    tensors = [torch.empty(s, dtype=torch.float16, device="meta") for s in (huge.output_shape, huge.input_shape)]
    dw = torch.empty(huge.weight_shape, dtype=torch.float16, device="meta")
    main, second = plan_wgrad(*tensors, dw, workspace, huge, config=config, split_k=1)
    assert main.args["steps_per_split"] == steps
    assert second.args["splits"] == splits
    with pytest.raises(ValueError, match="64 images exceed int32"):
        split_steps(ConvProblem(64, 640, 512, 512, 640, 3, 3), replace(config, loader="batch"), 1)


def test_split_k_must_be_positive():
    with pytest.raises(ValueError, match="split_k must be at least 1, got 0"):
        split_steps(PROBLEMS["taps fastest"], GATHER, 0)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_configs_are_few_reasoned_and_fit(target):
    for dtype in DTYPES:
        offered = [c for vectors in (True, False) for c in tuning.configs(dtype, vectors, target)]
        assert all(tuning.configs(dtype, vectors, target, "tf32x3") for vectors in (True, False))
        assert 4 <= len(offered) <= 24
        assert all(config.reason for config in offered)
        assert all(cycles.shared_bytes(config, dtype.itemsize, target) <= target.shared_bytes for config in offered)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
@pytest.mark.parametrize("batch", [0, 1, 32, 100, 128])
def test_default_is_offered_and_its_workspace_bounded(batch, target):
    for channels, size in ((3, 32), (64, 56), (80, 32), (512, 7), (640, 8)):
        problem = ConvProblem(batch, channels, size, size, channels, 3, 3, padding=ONE)
        config = tuning.default(problem, torch.float16, target)
        assert config in tuning.offered(problem, torch.float16, target)
        splits = tuning.split_k(problem, config, target)
        shape = workspace_shape(problem, config, splits)
        assert shape is None or 4 * torch.Size(shape).numel() <= tuning.SPLIT_K_BYTES
        # Full batches walk one pixel of many images; others walk consecutive pixels.
        assert (config.loader != "gather") == (batch in (32, 128) and channels % 8 == 0)
