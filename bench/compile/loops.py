"""The main loops at equal tiles: instructions a warp issues per matrix instruction, beside a plain GEMM's.

Two layers: one whose channels every K tile divides (ImageNet, 128 at 28x28) and one with a channel tail
(CIFAR, 80 = 64 + 16). The ratio is to the GEMM without masks of the same dtype, tile and target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.layers import Layer
from triton_dirac.conv.config import Config
from triton_dirac.conv.problem import ConvProblem

from .jobs import KERNELS, PEERS, Job

FLOOR = "GEMM, no masks"
# The GEMMs and peers, which take no ``all_registers``, are left to the assembler.
TILES = tuple(
    Config(*tile, all_registers=True)
    for tile in ((128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 64, 64, 4, 4), (128, 128, 32, 4, 4))
)
LAYERS = (
    ("DiracNet-18", ConvProblem(256, 128, 28, 28, 128, 3, 3, padding=(1, 1, 1, 1))),
    ("DiracNet-28-5", ConvProblem(128, 80, 32, 32, 80, 3, 3, padding=(1, 1, 1, 1))),
)
TARGETS = ("cuda:80", "cuda:90")
DTYPES = ("float16", "bfloat16")
GEMMS: dict[str, tuple[str, dict[str, Any]]] = {
    FLOOR: ("bench.compile.floors:plan_gemm", {"masked": False}),
    "GEMM, masks": ("bench.compile.floors:plan_gemm", {"masked": True}),
}
CANDIDATES = PEERS | {name: planner for name, planner in KERNELS.items() if "loader" in planner[1]}


def jobs_of(
    targets: Sequence[str] = TARGETS, dtypes: Sequence[str] = DTYPES, kernels: Sequence[str] = ("",)
) -> list[Job]:
    """All jobs of the table; ``kernels`` are parts of the names wanted beside the GEMMs."""
    wanted = {name: CANDIDATES[name] for name in CANDIDATES if any(part in name for part in kernels)}
    return [
        Job(
            *(kernel, planner, layer.net, layer.name, dtype, target, layer.problem, layer.count),
            {"config": asdict(tile), **arguments},
        )
        for target in targets
        for dtype in dtypes
        for tile in TILES
        for layer in (Layer({net: 1}, True, True, problem.N, problem) for net, problem in LAYERS)
        for kernel, (planner, arguments) in (GEMMS | wanted).items()
        if has_tma(target) or not kernel.endswith("tile")
    ]


def has_tma(target: str) -> bool:
    """Whether hardware copies tensor tiles; elsewhere Triton emulates descriptors, at 3 to 12 times the floor."""
    kind, arch = target.split(":")
    return kind == "cuda" and int(arch) >= 90


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """``ratio_to_floor`` of every row that has a loop, in place."""
    key = ("layer", "dtype", "target", "tile")
    for row in rows:
        row["tile"] = " ".join(row["config"].split()[:3])
    floors = {tuple(row[k] for k in key): row["loop_instructions_per_mma"] for row in rows if row["kernel"] == FLOOR}
    for row in rows:
        floor, found = floors.get(tuple(row[k] for k in key)), row["loop_instructions_per_mma"]
        row["ratio_to_floor"] = found / floor if found and floor else None


def print_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """One table a target and dtype: kernels by tiles, instructions per matrix instruction and their ratio."""
    for target, dtype in dict.fromkeys((row["target"], row["dtype"]) for row in rows):
        title = f"{target} {dtype}: loop instructions per matrix instruction (x floor)"
        table = Table(title=title, title_justify="left", box=SIMPLE)
        for column in ("kernel", "layer", *(" ".join(tile.name.split()[:3]) for tile in TILES)):
            table.add_column(column)
        cells: dict[tuple[str, str], dict[str, str]] = {}
        for row in rows:
            if (row["target"], row["dtype"]) == (target, dtype) and not row["kernel"].endswith(": reduce"):
                layer = "any" if row["kernel"] in GEMMS else row["layer"]
                cells.setdefault((row["kernel"], layer), {})[row["tile"]] = _cell(row)
        for (kernel, layer), found in cells.items():
            table.add_row(kernel, layer, *found.values())
        console.print(table)
        errors = (f"{row['kernel']}: {row['error']}" for row in rows if row["target"] == target and row["error"])
        for error in dict.fromkeys(errors):
            console.print(f"  {error}", style="red", no_wrap=True, overflow="ellipsis", markup=False)


def _cell(row: dict[str, Any]) -> str:
    """e.g. ``2.48 (1.10x) TMA``; what a good loop has not is said: spills, more loops than one."""
    if row["loop_instructions_per_mma"] is None:
        missing = "not installed" if "NotInstalled" in (row["error"] or "") else "failed"
        return "unrolled" if row["mma"] else missing
    notes = [f"{row['loop_instructions_per_mma']:.2f} ({row['ratio_to_floor']:.2f}x)"]
    notes += ["TMA"] if row["tma"] else []
    notes += [f"{row['spills']}B spilled, {row['loop_spill_accesses']} in loop"] if row["spills"] else []
    notes += [f"{row['loops_with_mma']} loops"] if row["loops_with_mma"] != 1 else []
    notes += [] if row["ok"] else ["does not fit"]
    return " ".join(notes)
