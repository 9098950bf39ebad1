"""The third table: global bytes that a weight preparation moves, counted from machine code, beside the least.

Triton's intermediate code says which accesses move whole tiles, which a value a row (alpha, beta, norm, their
gradients) and which one word (the tables of a launch for a whole net). A tile's are straight-line code: every
thread issues each of them once, padding masked off. So instructions x bytes a thread x threads, over the bytes
of the tiles, is how often an element is read (or written): 1.00 where it is touched once. One instruction for
each other access is left out of this; what those move is added from the plan, once for each row and program.

    moved / least = (tile accesses + what rows and tables add) / (W read and What written once; G and W read, dW)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.net_contenders import layers_of
from bench.net_weights import NetWeights, shapes
from bench.test_weight_prep_nets import SUITE
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.targets import TARGETS as KNOWN
from triton_dirac.weight_prep import multi as weight_prep_multi

from . import plans
from .jobs import Job
from .table import widths

TARGETS = ("cuda:80", "cuda:90", "hip:gfx942")
DTYPES = ("bfloat16", "float32")
ACCEPTED = (*DTYPES, "float16")  # that may be asked for
WEIGHT_BYTES = 4  # parameters are float32
ROW_READS = {False: 4, True: 8}  # backward: beta; beta and norm (and one element of the gradient)
ROW_WRITES = {False: 4, True: 8}  # norm; dalpha and dbeta
TABLE_READS = 8 + 8 * weight_prep_multi.WORDS.value  # of one program of the launch for a whole net
COLUMNS = ("kernel", "net", "layer", "dtype", "launches", "loads", "stores", "bytes/weight", "least", "ratio", "spills")


def jobs_of(targets: Sequence[str], dtypes: Sequence[str], nets: Sequence[str]) -> list[Job]:
    """Every distinct Dirac layer of the nets by itself, then all layers of a net in one launch."""
    jobs = []
    for target in targets:
        for dtype in dtypes:
            for net in nets:
                counts = {shape: shapes(net).count(shape) for shape in shapes(net)}
                for kernel, planner in (("weight_prep", "plans:prep"), ("weight_prep_multi", "bytes:prep_net")):
                    of_net = counts if kernel == "weight_prep" else {shapes(net)[0]: 1}
                    for backward in (False, True):
                        for (k, c, r, s), count in of_net.items():
                            name = kernel + " backward" * backward
                            layer = f"{c}-{k} {r}x{s}" if kernel == "weight_prep" else NetWeights.name
                            problem, arguments = ConvProblem(1, c, r, s, k, r, s), {"backward": backward}
                            planner_name = f"bench.compile.{planner}"
                            jobs.append(Job(name, planner_name, net, layer, dtype, target, problem, count, arguments))
    return jobs


def prep_net(job: Job) -> tuple[str, list[Launch]]:
    """In the worker: all Dirac layers of the job's net in one launch, as ``plans.prep`` prepares each."""
    layers = layers_of(SUITE.work(shapes(job.net), job.dtype, "forward", torch.device("meta")))
    launches, prepared, norms = weight_prep_multi.plan_weight_prep_multi(
        layers, identity=False, dtype=plans.dtype_of(job), channels_last=True
    )
    if job.arguments["backward"]:
        launches, *_ = weight_prep_multi.plan_weight_prep_multi_backward(prepared, layers, norms)
    return f"{len(launches[0].constexprs['KINDS'])} kinds w{launches[0].options['num_warps']}", launches


def add_moved(
    rows: Iterable[dict[str, Any]], jobs: Iterable[Job], found: dict[tuple[str, ...], dict[str, Any]]
) -> None:
    """What is counted here, into the rows of ``run.rows_of``, in place; ``found`` remembers it from call to call."""
    known = {(job.kernel, job.net, job.layer, job.dtype, job.target): job for job in jobs}
    for row in rows:
        key = (row["kernel"], row["net"], row["layer"], row["dtype"], row["target"])
        if key not in found:
            nothing = dict.fromkeys(["bytes_per_weight", "moved_over_least"])
            found[key] = moved(row, known[key]) if row["ok"] else nothing
        row |= found[key]


def moved(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """What is counted of one compiled kernel; see the module's docstring."""
    launches = prep_net(job)[1] if job.kernel.startswith("weight_prep_multi") else plans.prep(job)[1]
    (launch,) = launches
    backward, other = job.arguments["backward"], torch.empty((), dtype=plans.dtype_of(job)).element_size()
    threads = launch.options["num_warps"] * KNOWN[job.target].warp_size
    read = WEIGHT_BYTES + other if backward else WEIGHT_BYTES
    written = WEIGHT_BYTES if backward else other
    of_net = job.kernel.startswith("weight_prep_multi")
    of_job = shapes(job.net) if of_net else [job.problem.weight_shape]
    weights, filters = sum(torch.Size(shape).numel() for shape in of_job), sum(shape[0] for shape in of_job)
    tiles = _tile_elements(launch)
    in_ir, kinds = row["ir_accesses"], len(launch.constexprs.get("KINDS", "1"))
    reads, load_width = _times(row["loads"], threads, tiles * read, in_ir["load"], kinds * (1 + backward))
    writes, store_width = _times(row["stores"], threads, tiles * written, in_ir["store"], kinds)
    beside = filters * (ROW_READS[backward] + ROW_WRITES[backward] + backward * other)
    beside += launch.grid[0] * TABLE_READS if of_net else 0
    bytes_moved = weights * (reads * read + writes * written) + beside
    return {
        "backward": backward,
        "launches": len(launches) * (1 if of_net else job.count),
        "reads_per_element": reads,
        "writes_per_element": writes,
        "load_width": load_width,
        "store_width": store_width,
        "bytes_per_weight": bytes_moved / weights,
        "least_bytes_per_weight": read + written,
        "moved_over_least": bytes_moved / weights / (read + written),
    }


def _tile_elements(launch: Launch) -> int:
    """Elements of a program's tile, padding included; over all branches of a launch for a whole net."""
    if "KINDS" in launch.constexprs:
        return sum(rows * block for *_, rows, block, loop in launch.constexprs["KINDS"])
    return launch.constexprs["ROWS"] * launch.constexprs["BLOCK"]


def _times(
    instructions: dict[str, int], threads: int, tile_bytes: int, in_ir: dict[str, int], least: int
) -> tuple[float, int]:
    """(how often the tiles are accessed, bytes a thread of the narrowest access that takes).

    ``instructions``: by bytes a thread, widest first. ``in_ir``: accesses by shape, ``least`` of which would be
    tiles if each were accessed once. The rows' and words' own are an instruction each at most, and may be as wide.
    """
    of_tiles = sum(count for shape, count in in_ir.items() if "x" in shape)
    others = sum(in_ir.values()) - of_tiles
    total, width = 0, 0
    for size, count in instructions.items():
        if total >= tile_bytes:
            break
        total, width = total + count * int(size) * threads, int(size)
    surplus = total - tile_bytes
    again = surplus - others * width * threads if surplus > 0 else surplus
    issued = 1 + (again if surplus < 0 else max(0, again)) / tile_bytes
    return max(issued, of_tiles / least), width


def print_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """One table a target, then what it comes to."""
    for target in dict.fromkeys(row["target"] for row in rows):
        of_target = [row for row in rows if row["target"] == target]
        title = f"{target} ({of_target[0]['gpu']}), counted from machine code"
        shown = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
        for column in COLUMNS:
            shown.add_column(column, justify="left" if column in COLUMNS[:4] else "right", no_wrap=True)
        for row in of_target:
            names = [row["kernel"], row["net"], row["layer"], row["dtype"]]
            shown.add_row(*names, *(_cells(row) if row["ok"] else [row["error"] or ""]))
        console.print(shown)
    console.print(summary(rows))


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["launches"]),
        widths(row["loads"]),
        widths(row["stores"]),
        f"{row['bytes_per_weight']:.3f}",
        str(row["least_bytes_per_weight"]),
        f"{row['moved_over_least']:.4f}",
        str(row["spills"]),
    ]


def summary(rows: list[dict[str, Any]]) -> str:
    good = [row for row in rows if row["ok"]]
    if not good:
        return "no kernel compiles"
    worst = max(good, key=lambda row: row["moved_over_least"])
    narrowest = min(min(row["load_width"], row["store_width"]) for row in good)
    return (
        f"{len(good)} of {len(rows)} compile; at most {worst['moved_over_least']:.4f} times the least bytes "
        f"({worst['kernel']}, {worst['net']} {worst['layer']}, {worst['target']}); narrowest access to a tile "
        f"{narrowest} bytes; {sum(row['spills'] > 0 for row in good)} spill"
    )
