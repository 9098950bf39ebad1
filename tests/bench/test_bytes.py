"""Bytes that a weight preparation moves: counted of listings made up here, and of two compiled kernels."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from bench.compile import bytes as moved
from bench.compile import plans, ttgir
from bench.compile.run import rows_of
from bench.net_weights import shapes

THREADS = 256


ONCE = {"4x1024": 1, "4": 2}


@pytest.mark.parametrize(
    "instructions, in_ir, times, width",
    [
        ({"16": 4, "4": 2}, ONCE, 1.0, 16),  # 4 x 16 B x 256 threads are the 4096 float32 of a tile
        ({"16": 6}, ONCE, 1.0, 16),  # four rows' values in a vector of their own
        ({"16": 8}, {"4x1024": 1}, 2.0, 16),  # read twice
        ({"16": 8}, {"4x1024": 2}, 2.0, 16),  # and Triton asked for it
        ({"16": 8}, ONCE, 1.5, 16),
        ({"16": 2, "4": 8}, ONCE, 1.0, 4),  # half of it in narrow accesses
        ({"4": 18}, ONCE, 1.0, 4),
        ({}, {}, 0.0, 0),
    ],
)
def test_how_often_a_tile_is_accessed(instructions, in_ir, times, width):
    assert moved._times(instructions, THREADS, 4096 * 4, in_ir, 1) == (times, width)


TTGIR = """
    %tile_27 = tt.load %tile_26 : !tt.ptr<i64> loc(#loc142)
    %beta_25 = tt.load %beta_24, %valid_22, %cst : tensor<4x!tt.ptr<f32>, #ttg.slice<{dim = 1}>> loc(#loc163)
    %tile_39 = tt.load %tile_38, %mask_37, %cst_4 : tensor<4x1024x!tt.ptr<f32>, #blocked> loc(#loc173)
    %tile_30 = amdg.buffer_load %w[%i], %mask {contiguity = 4 : i32} : tensor<4x1024xf32, #blocked> loc(#loc158)
    amdg.buffer_store %2, %norm_ptr[%row_11], %valid_14 : tensor<4xf32, #blocked2> loc(#loc140)
    tt.store %3, %out_73, %mask_37 : tensor<4x1024x!tt.ptr<bf16>, #blocked> loc(#loc151)
    %x = ttg.local_load %y : !ttg.memdesc<4x1024xf32, #shared> -> tensor<4x1024xf32, #blocked>
"""


def test_triton_s_own_accesses_are_told_by_shape():
    assert ttgir.accesses(TTGIR) == {"load": {"": 1, "4": 1, "4x1024": 2}, "store": {"4": 1, "4x1024": 1}}


def in_ir(tiles_read, tiles_written=1):
    return {"load": {"8x512": tiles_read, "8": 1}, "store": {"8x512": tiles_written, "8": 1}}


def job(kernel, backward=False, net="DiracNet-34-2", dtype="bfloat16"):
    jobs = moved.jobs_of(["cuda:90"], [dtype], [net])
    return next(j for j in jobs if j.kernel == kernel + " backward" * backward)


def test_jobs_are_every_distinct_layer_and_the_whole_net():
    jobs = moved.jobs_of(["cuda:80", "hip:gfx942"], ["float32"], ["DiracNet-34"])
    assert len(jobs) == 2 * (2 * 7 + 2)
    assert sum(j.count for j in jobs if j.kernel == "weight_prep" and j.target == "cuda:80") == 32
    assert len({j.problem.weight_shape for j in jobs}) == len(set(shapes("DiracNet-34")))


def test_one_read_and_one_write_come_to_the_least():
    row = {"loads": {"16": 4, "4": 1}, "stores": {"16": 2, "4": 1}, "ir_accesses": in_ir(1)}
    found = moved.moved(row, job("weight_prep"))
    assert (found["reads_per_element"], found["writes_per_element"]) == (1.0, 1.0)
    assert found["least_bytes_per_weight"] == 4 + 2
    assert found["bytes_per_weight"] == 6 + (4 + 4) / 288  # beta in, norm out, for rows of 288
    assert found["launches"] == 10
    twice = moved.moved(row | {"loads": {"16": 8, "4": 1}, "ir_accesses": in_ir(2)}, job("weight_prep"))
    assert twice["bytes_per_weight"] == found["bytes_per_weight"] + 4


def test_the_backward_reads_gradient_and_weight():
    row = {"loads": {"16": 6, "4": 2}, "stores": {"16": 4, "4": 2}, "ir_accesses": in_ir(2)}
    found = moved.moved(row, job("weight_prep", backward=True))
    assert found["least_bytes_per_weight"] == 4 + 2 + 4
    assert found["bytes_per_weight"] == 10 + (8 + 8 + 2) / 288


def test_a_launch_for_a_whole_net_pays_for_its_tables():
    of_net = job("weight_prep_multi")
    (launch,) = moved.prep_net(of_net)[1]
    kinds = len(launch.constexprs["KINDS"])
    assert moved._tile_elements(launch) == 4096 * kinds
    counted = {"loads": {"16": 4 * kinds, "8": 9}, "stores": {"16": 2 * kinds, "4": 1}}
    found = moved.moved(counted | {"ir_accesses": in_ir(kinds, kinds)}, of_net)
    assert found["launches"] == 1
    assert found["reads_per_element"] == found["writes_per_element"] == 1.0
    alone = moved.moved({"loads": {"16": 4}, "stores": {"16": 2}, "ir_accesses": in_ir(1)}, job("weight_prep"))
    assert found["moved_over_least"] > alone["moved_over_least"]


def test_the_plans_are_those_of_the_kernel_table():
    one = job("weight_prep")
    assert plans.prep(one)[1][0].constexprs["OUT_LAST"]
    assert moved.prep_net(job("weight_prep_multi", backward=True))[0].endswith("kinds w8")


@pytest.fixture(scope="module")
def rows():
    """One layer and its net, forward and backward, compiled for one GPU."""
    jobs = moved.jobs_of(["cuda:80"], ["bfloat16"], ["DiracNet-34-2"])
    found = rows_of(jobs, workers=2, timeout=120)
    moved.add_moved(found, jobs, {})
    assert all(row["ok"] for row in found), [row["error"] for row in found]
    return found


@pytest.mark.slow
def test_compiled_kernels_move_at_most_two_percent_more_than_the_least(rows):
    assert max(row["moved_over_least"] for row in rows) <= 1.02
    assert {row["reads_per_element"] for row in rows} == {row["writes_per_element"] for row in rows} == {1.0}
    assert min(min(row["load_width"], row["store_width"]) for row in rows) == 16
    assert not any(row["spills"] for row in rows)
    assert [row["launches"] for row in rows if row["kernel"].startswith("weight_prep_multi")] == [1, 1]


@pytest.mark.slow
def test_the_table_says_what_it_comes_to(rows):
    console = Console(record=True, width=230, file=SimpleNamespace(write=lambda text: None, flush=lambda: None))
    failed = {**rows[0], "ok": False, "error": "no such GPU"}
    moved.print_rows([*rows, failed], console)
    text = console.export_text()
    assert "counted from machine code" in text
    assert "no such GPU" in text
    assert f"{len(rows)} of {len(rows) + 1} compile; at most 1.00" in text
    assert moved.summary([failed]) == "no kernel compiles"
