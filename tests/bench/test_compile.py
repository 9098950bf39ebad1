"""bench.compile: reading machine code, and compiling in workers that may fail, crash or hang."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from bench.compile import amdgcn, configs, loops, sass
from bench.compile.counts import count
from bench.compile.jobs import KERNELS, Job
from bench.compile.pool import Pool
from bench.compile.run import distinct_rows, rows_of
from triton_dirac.conv.config import Config
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import TARGETS

PROBLEM = ConvProblem(8, 64, 16, 16, 64, 3, 3, padding=(1, 1, 1, 1))

# nvdisasm -c: a loop of one matrix instruction, its wait moved behind the end, and a loop without any.
SASS = """
gemm:
.text.gemm:
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/               @P1 BRA `(.L_x_1) ;
.L_x_0:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R5], [R2.64], P0 ;
        /*0030*/              @!P0 LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0040*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0050*/               @P2 BRA `(.L_x_3) ;
.L_x_2:
        /*0060*/                   UIADD3 UR4, UPT, UPT, UR4, 0x1, URZ ;
        /*0070*/                   BRA.U UP0, `(.L_x_0) ;
.L_x_1:
        /*0080*/                   STG.E.64 desc[UR4][R2.64], R8 ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   STL [R1], R8 ;
        /*00b0*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*00c0*/                   BRA `(.L_x_4);
        /*00d0*/                   NOP;
"""

# Block .LBB0_3 runs once although a branch leads back from it to .LBB0_2.
AMDGCN = """
	.text
gemm:                                   ; @gemm
; %bb.0:
	s_load_dwordx4 s[4:7], s[0:1], 0x8
	s_cbranch_scc0 .LBB0_3
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	buffer_load_dwordx4 v[0:3], v8, s[4:7], 0 offen
	global_load_ushort v4, v[6:7], off
	v_mfma_f32_32x32x8_f16 a[0:15], v[0:1], v[2:3], a[0:15]
	v_mfma_f32_32x32x8_f16 a[16:31], v[0:1], v[2:3], a[16:31]
	s_waitcnt vmcnt(0)
	s_cbranch_scc1 .LBB0_1
.LBB0_2:
	v_mfma_f32_32x32x8_f16 a[0:15], v[0:1], v[2:3], a[0:15]
	global_store_dwordx2 v[6:7], v[0:1], off
	s_endpgm
.LBB0_3:
	v_mov_b32_e32 v0, 0
	s_branch .LBB0_2
	.section	.rodata,"a",@progbits
	.amdhsa_kernel gemm
	.end_amdhsa_kernel
	.amdgpu_metadata
amdhsa.kernels:
  - .agpr_count:     32
    .sgpr_count:     24
    .sgpr_spill_count: 2
    .vgpr_count:     60
    .vgpr_spill_count: 7
	.end_amdgpu_metadata
"""


def test_sass_loop_includes_blocks_moved_behind_it():
    found = count(sass.parse(SASS), sass.ISA)
    assert (found["mma"], found["mma_count"], found["loops_with_mma"]) == ("mma.sync", 1, 1)
    assert found["loop_instructions"] == 8  # six in place, and the two of .L_x_3
    assert found["loop_instructions_per_mma"] == 8
    assert found["loop_spill_accesses"] == 1
    assert (found["loads"], found["stores"], found["tma"]) == ({"16": 1, "2": 1}, {"8": 1}, False)


def test_amdgcn_branch_backwards_to_code_that_runs_once_is_no_loop():
    listing, resources = amdgcn.parse(AMDGCN), amdgcn.resources(AMDGCN)
    found = count(listing, amdgcn.ISA)
    assert (found["mma"], found["mma_count"], found["loops_with_mma"]) == ("mfma", 3, 1)
    assert found["loop_instructions_per_mma"] == 3
    assert (found["loads"], found["stores"]) == ({"16": 1, "2": 1}, {"8": 1})
    assert resources == {"registers": 60, "spills": 7, "scalar_registers": 24, "scalar_spills": 2}


def test_nested_loops_are_two_and_the_inner_one_is_steady():
    text = """
.L_x_0:
        /*0000*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0020*/               @P0 BRA `(.L_x_1) ;
        /*0030*/                   IADD3 R1, R1, R1, RZ ;
        /*0040*/                   IADD3 R1, R1, R1, RZ ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
"""
    found = count(sass.parse(text), sass.ISA)
    assert (found["loops_with_mma"], found["loop_instructions"], found["loop_mma"]) == (2, 2, 1)


def test_loop_of_a_dot_without_matrix_instructions_is_counted_by_multiply_adds():
    text = """
.L_x_0:
        /*0000*/                   FFMA R8, R4, R6, R8 ;
        /*0010*/                   FFMA R9, R4, R6, R9 ;
        /*0020*/               @P0 BRA `(.L_x_0) ;
        /*0030*/                   EXIT ;
"""
    found = count(sass.parse(text), sass.ISA)
    assert (found["mma"], found["loop_instructions_per_mma"]) == (None, None)
    assert found["loop_instructions_per_fma"] == 1.5


@pytest.mark.parametrize(
    "op, kind",
    [
        ("HMMA.16816.F32.BF16", "mma.sync"),
        ("HMMA.1688.F32.TF32", "mma.sync"),
        ("HGMMA.64x128x16.F32", "wgmma"),
        ("UTCHMMA", "tcgen05"),
        ("UTCQMMA.2CTA", "tcgen05"),
        ("FFMA", None),
        ("UTMALDG.4D", None),
    ],
)
def test_sass_matrix_kinds(op, kind):
    assert sass.matrix(op) == kind


@pytest.mark.parametrize(
    "isa, op, access",
    [
        (sass, "LDG.E.128.CONSTANT", ("load", 16)),
        (sass, "LDG.E", ("load", 4)),
        (sass, "LDG.E.U8", ("load", 1)),
        (sass, "LDG.E.ENL2.256", ("load", 32)),
        (sass, "LDGSTS.E.64", ("load", 8)),
        (sass, "STG.E.U16", ("store", 2)),
        (sass, "LDGDEPBAR", None),
        (sass, "LDS.128", None),
        (amdgcn, "global_load_dwordx4", ("load", 16)),
        (amdgcn, "buffer_load_dwordx4_lds", ("load", 16)),
        (amdgcn, "buffer_load_short_d16_hi", ("load", 2)),
        (amdgcn, "global_load_d16_b16", ("load", 2)),
        (amdgcn, "buffer_store_b128", ("store", 16)),
        (amdgcn, "global_store_byte", ("store", 1)),
        (amdgcn, "s_load_dwordx4", None),
        (amdgcn, "ds_read_b64", None),
    ],
)
def test_widths_of_global_accesses(isa, op, access):
    assert isa.access(op) == access


def job(planner: str, target: str = "cuda:80", **arguments) -> Job:
    return Job("probe", planner, "net", "layer", "float16", target, PROBLEM, arguments=arguments)


def probe(name: str, target: str = "cuda:80", **arguments) -> Job:
    return job(f"tests.bench.compile_probes:plan_{name}", target, **arguments)


def gemm(target: str) -> Job:
    config = dataclasses.asdict(Config(64, 64, 32, 4, 2))
    return job("bench.compile.floors:plan_gemm", target, config=config, masked=False)


def peer(name: str, **arguments) -> Job:
    """Of a problem with many steps: loops of constant length are unrolled if they are short."""
    config = dataclasses.asdict(Config(64, 64, 32, 4, 2))
    found = job(f"bench.compile.peers:plan_{name}", config=config, **arguments)
    return dataclasses.replace(found, problem=dataclasses.replace(PROBLEM, C=512))


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Everything that is compiled here, in one run of one worker."""
    return rows_of(
        [
            *(gemm("cuda:80"), gemm("cuda:90"), gemm("hip:gfx942")),
            *(probe("wrong"), probe("crash"), probe("spilling")),
            *(probe("copy"), probe("copy", n=7), probe("copy", n=32)),
            *(peer("inductor"), peer("flag_gems", layout="NHWC")),
        ],
        workers=1,
        timeout=60,
    )


@pytest.mark.parametrize("index, mma", [(0, "mma.sync"), (1, "wgmma"), (2, "mfma")])
def test_gemm_is_compiled_and_read(rows, index, mma):
    row = rows[index]
    assert (row["ok"], row["error"], row["mma"]) == (True, None, mma)
    assert row["registers"] > 0
    assert row["spills"] == 0
    assert row["shared_bytes"] > 0
    assert row["loops_with_mma"] == 1
    assert row["loop_instructions_per_mma"] > 1
    assert set(row["loads"]) == {"16"}  # as the JIT would have it: all is divisible by 16
    assert row["compile_seconds"] > 0
    assert row["config"] == "64x64x32 w4 s2 gather"


def test_kernel_that_does_not_compile_is_a_row(rows):
    assert not rows[3]["ok"]
    assert "no_such_name" in rows[3]["error"]
    assert rows[3]["registers"] is None


def test_crash_of_the_compiler_is_a_row(rows):
    assert not rows[4]["ok"]
    assert "SIGSEGV" in rows[4]["error"]


def test_spills_are_reported(rows):
    assert rows[5]["spills"] > 0
    assert rows[5]["ok"]  # it runs, slowly


def test_equal_specialisations_are_compiled_once(rows):
    divisible, odd, also_divisible = rows[6:9]
    assert divisible["key"] == also_divisible["key"] != odd["key"]
    assert divisible["compile_seconds"] == also_divisible["compile_seconds"]
    assert [same for row, same in distinct_rows(rows[6:9])] == [2, 1]


@pytest.mark.parametrize("index", [9, 10])
def test_peers_are_read_from_their_packages(rows, index):
    row = rows[index]
    if row["error"] and "NotInstalled" in row["error"]:
        assert row["registers"] is None
        pytest.skip(row["error"])
    assert (row["ok"], row["mma"], row["loops_with_mma"]) == (True, "mma.sync", 1)
    assert row["loop_instructions_per_mma"] > rows[0]["loop_instructions_per_mma"]


def test_hanging_compiler_is_stopped_and_the_next_kernel_compiled():
    with Pool(1, timeout=60) as pool:
        requests = [{"job": probe(name).to_json()} for name in ("copy", "hang", "copy")]
        pool.ask_all(requests[:1])  # starting the process is not what is timed
        pool.workers[0].timeout = 0.5
        hung = pool.ask_all(requests[1:2])[0]
        pool.workers[0].timeout = 60
        after = pool.ask_all(requests[2:])[0]
    assert hung == {"ok": False, "error": "no answer within 0.5 s", "ended": "lost"}
    assert after.get("error") is None


def test_descriptors_are_compiled_where_hardware_copies_tiles():
    targets = {job.target for job in loops.jobs_of(list(TARGETS), ["float16"], ["fprop tile"]) if "tile" in job.kernel}
    assert targets == {"cuda:90", "cuda:100", "cuda:120"}


def test_loader_that_is_not_offered_has_no_launches():
    from bench.compile import plans

    offered = [Config(64, 64, 32, 4, 2, "gather"), Config(32, 64, 32, 4, 2, "batch")]
    tuning = SimpleNamespace(default=lambda *_: offered[1], offered=lambda *_: offered)
    assert plans.config_of(job("", loader="gather"), tuning) is offered[0]
    assert plans.config_of(job("", loader="tile"), tuning) is None
    assert plans.config_of(job(""), tuning) is offered[1]
    forced = dataclasses.asdict(Config(128, 64, 32, 4, 2, "gather"))
    assert plans.config_of(job("", config=forced, loader="tile"), tuning) == Config(128, 64, 32, 4, 2, "tile")


def test_jobs_cross_to_workers_unchanged():
    assert Job.from_json(json.loads(json.dumps(gemm("cuda:90").to_json()))) == gemm("cuda:90")


def test_ratio_is_to_the_floor_of_the_same_tile():
    row = {"layer": "a", "dtype": "float16", "target": "cuda:80"}
    found = [
        row | {"kernel": loops.FLOOR, "config": "128x128x64 w8 s3 gather", "loop_instructions_per_mma": 2.0},
        row | {"kernel": loops.FLOOR, "config": "128x64x64 w4 s4 gather", "loop_instructions_per_mma": 4.0},
        row | {"kernel": "conv_wgrad", "config": "128x64x64 w4 s4 split 3", "loop_instructions_per_mma": 5.0},
        row | {"kernel": "FlagGems NHWC", "config": "128x64x64 w4 s4 gather", "loop_instructions_per_mma": None},
    ]
    loops.add_ratios(found)
    assert [r["ratio_to_floor"] for r in found] == [1.0, 1.0, 1.25, None]


def test_faults_are_spills_and_what_does_not_fit():
    row = {"target": "cuda:80", "kernel": "conv_dgrad", "dtype": "float16", "layer": "wide", "config": "64x64x64"}
    rows = [
        row | {"ok": True, "spills": 0, "error": None},
        row | {"ok": True, "spills": 8, "error": None},
        row | {"ok": False, "spills": 0, "error": "needs 200 bytes of shared memory, A100 has 100"},
        row | {"ok": False, "spills": None, "error": "the compiling process died: SIGSEGV"},
    ]
    where = "cuda:80 conv_dgrad float16 wide 64x64x64: "
    assert configs.faults(rows) == [where + "8 bytes spilled", *(where + str(row["error"]) for row in rows[2:])]


def test_each_config_has_its_line(capsys):
    """Somebody who adds a row to a tuning table finds it, where it is offered and what it takes."""
    row = {
        "target": "cuda:80", "kernel": "conv_fprop relu", "dtype": "float16", "layer": "wide", "ok": True,
        "error": None, "config": "128x96x64 w4 s3 gather", "reason": "96 columns", "registers": 168, "spills": 0,
        "shared_bytes": 56 * 1024, "key": "a", "compile_seconds": 1.0,
    }  # fmt: skip
    reduce = row | {"kernel": "conv_wgrad: reduce", "config": "64x64 split 3"}
    configs.print_rows([row, row | {"target": "cuda:90", "registers": 180}, reduce], Console(width=200))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "128x96x64" in line]
    config = ["128x96x64", "w4", "s3", "gather"]
    kernel = ["conv_fprop", "relu"]
    assert lines == [[*kernel, *config, "cuda:80", "cuda:90", "float16", "1", "180", "56K", "0", "96", "columns"]]


def test_every_kernel_has_a_planner():
    from bench.compile import plans

    assert all(hasattr(plans, planner.split(":")[1]) for planner, _ in KERNELS.values())
