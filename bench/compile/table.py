"""Rows of the kernel table -> what a person reads."""

from __future__ import annotations

import os
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .run import distinct_rows

COLUMNS = (
    *("kernel", "layer", "dtype", "config", "regs", "spills", "shared", "matrix", "loops", "instr/mma"),
    *("loads", "stores", "TMA", "s"),
)


def console() -> Console:
    """Standard output; a file or pipe is given the width that whole rows need."""
    return Console() if os.isatty(1) else Console(width=230)


def print_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """One table a target; a kernel that serves several layers is shown once, with their number."""
    for target in dict.fromkeys(row["target"] for row in rows):
        of_target = [row for row in rows if row["target"] == target]
        title = f"{target} ({of_target[0]['gpu']}), counted from machine code"
        table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in COLUMNS[:4] else "right", no_wrap=True)
        for row, same in distinct_rows(of_target):
            layer = row["layer"] + (f" +{same - 1}" if same > 1 else "")
            table.add_row(row["kernel"], layer, row["dtype"], *_cells(row))
        console.print(table)
        for row, _ in distinct_rows(row for row in of_target if row["error"]):
            where = f"{row['kernel']} {row['layer']} {row['dtype']}"
            console.print(Text(f"  {where}: {row['error']}", style="red"), no_wrap=True, overflow="ellipsis")
    failed = sum(not row["ok"] for row in rows)
    spilling = sum(bool(row["spills"]) for row in rows)
    kernels = len({(row["target"], row.get("key")) for row in rows if row.get("key")})
    console.print(f"{kernels} kernels in {len(rows)} rows: {failed} rows failed, {spilling} spill registers")


def _cells(row: dict[str, Any]) -> list[Text]:
    if row["registers"] is None:
        return [Text(row["config"] or "")]
    ratio, fma = row["loop_instructions_per_mma"], row["loop_instructions_per_fma"]
    loop = f"{ratio:.2f}" if ratio else f"{fma:.2f}/fma" if fma else ""
    return [
        Text(row["config"], style="" if row["ok"] else "red"),
        Text(str(row["registers"])),
        Text(str(row["spills"]), style="red" if row["spills"] else ""),
        Text(f"{row['shared_bytes'] / 1024:.0f}K", style="" if row["ok"] else "red"),
        Text(f"{row['mma_count']} {row['mma']}" if row["mma"] else "none"),
        Text(str(row["loops_with_mma"]) if row["mma"] else ""),
        Text(loop),
        Text(widths(row["loads"])),
        Text(widths(row["stores"])),
        Text("yes" if row["tma"] else ""),
        Text(f"{row['compile_seconds']:.1f}"),
    ]


def widths(counts: dict[str, int]) -> str:
    """Instructions by bytes a thread: {"16": 8, "2": 1} -> ``8x16B 1x2B``."""
    return " ".join(f"{n}x{size}B" for size, n in counts.items())
