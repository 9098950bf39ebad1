"""Every config of every tuning table, compiled on problems that take each of its paths: none may spill or not fit.

A spill costs a round trip through memory in every step; a config that needs more shared memory than a block may have
is refused at launch. Both depend on the target and on Triton's version, and neither can be read off a config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from triton_dirac.conv import dgrad_configs as dgrad
from triton_dirac.conv import fprop_configs as fprop
from triton_dirac.conv import wgrad_configs as wgrad
from triton_dirac.conv.config import Config
from triton_dirac.conv.epilogue import ACTIVATIONS
from triton_dirac.conv.problem import ConvProblem
from triton_dirac.runtime.targets import TARGETS

from . import plans
from .jobs import Job
from .run import distinct_rows

SAME = (1, 1, 1, 1)
# One problem for each path through the kernels. Batches of 256 are offered all orders by fprop and dgrad, and batch
# order alone by wgrad: the small batches are for its pixel order, at places (p, q) that are linear in memory and not.
PROBLEMS = {
    "wide": ConvProblem(256, 256, 28, 28, 256, 3, 3, padding=SAME),
    "channel tail": ConvProblem(256, 80, 32, 32, 80, 3, 3, padding=SAME),
    "five parts": ConvProblem(256, 320, 16, 16, 320, 3, 3, padding=SAME),
    "stride 2": ConvProblem(256, 256, 28, 28, 256, 3, 3, stride=(2, 2), padding=SAME),
    "odd channels": ConvProblem(256, 35, 32, 32, 35, 3, 3, padding=SAME),
    "stem": ConvProblem(256, 3, 224, 224, 64, 7, 7, stride=(2, 2), padding=(3, 3, 3, 3)),
}
SMALL = {
    "wide, small batch": ConvProblem(5, 256, 28, 28, 256, 3, 3, padding=SAME),
    "channel tail, small batch": ConvProblem(5, 80, 32, 32, 80, 3, 3, padding=SAME),
    "stride 2, small batch": ConvProblem(5, 256, 28, 28, 256, 3, 3, stride=(2, 2), padding=SAME),
}
Offered = Callable[..., list[Config]]
# Kernel -> its planner, what its table offers, on which problems, and the planner's arguments: all that an epilogue may
# hold, with each activation.
KERNELS: dict[str, tuple[str, Offered, dict[str, ConvProblem], dict[str, Any]]] = {
    **{
        f"conv_fprop {activation}": ("fprop", fprop.offered, PROBLEMS, {"activation": activation})
        for activation in ACTIVATIONS
    },
    "conv_dgrad": ("dgrad", dgrad.offered, PROBLEMS, {}),
    "conv_wgrad": ("wgrad", wgrad.offered, PROBLEMS | SMALL, {}),
}
DTYPES = ("float16", "bfloat16", "float32", *plans.TF32)


def jobs_of(
    targets: Sequence[str] = tuple(TARGETS), dtypes: Sequence[str] = DTYPES, kernels: Sequence[str] = ("",)
) -> list[Job]:
    """A job for each config that a problem is offered, with all that its epilogue may hold."""
    jobs = []
    for target in targets:
        for kernel in (name for name in KERNELS if any(part in name for part in kernels)):
            planner, offered, problems, arguments = KERNELS[kernel]
            for dtype in dtypes:
                for name, problem in problems.items():
                    planned = (kernel, f"bench.compile.plans:{planner}", "", name, dtype, target, problem)
                    job = Job(*planned, has_identity=name != "stem")
                    asked = problem, plans.dtype_of(job), TARGETS[target], plans.precision(job)
                    jobs += [
                        replace(job, arguments={"config": asdict(config), **arguments}) for config in offered(*asked)
                    ]
    return jobs


# Bytes that an activation may spill where a thread holds 128 sums: the exponential and quotient of silu do, of 6 in 158
# tiles on cuda:90, at most 32, and the loop touches none of them.
SPILLS = {"conv_fprop silu": 32}


def faults(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What is wrong with each row that spills, does not fit or does not compile; empty if nothing is."""
    return [
        f"{row['target']} {row['kernel']} {row['dtype']} {row['layer']} {row['config']}: "
        + (row["error"] or f"{row['spills']} bytes spilled")
        for row in rows
        if not row["ok"] or row["spills"] > SPILLS.get(row["kernel"], 0)
    ]


def table_of_configs(rows: Iterable[dict[str, Any]]) -> Table:
    """One line for each row of the tuning tables: where it is offered, and the most that it takes anywhere."""
    table = Table(title="each config", title_justify="left", box=SIMPLE)
    for column in ("kernel", "config", "targets", "dtypes", "problems", "regs", "shared", "spills", "reason"):
        table.add_column(column, justify="right" if column in ("regs", "shared", "spills") else "left", no_wrap=True)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["kernel"] in KERNELS:  # not a further kernel of the same plan
            groups.setdefault((row["kernel"], row["config"].partition(" split")[0]), []).append(row)
    for (kernel, config), group in groups.items():
        targets, dtypes, problems = (dict.fromkeys(row[name] for row in group) for name in ("target", "dtype", "layer"))
        table.add_row(
            *(kernel, config, " ".join(targets), " ".join(dtypes), str(len(problems))),
            str(max(row["registers"] or 0 for row in group)),
            f"{max(row['shared_bytes'] or 0 for row in group) / 1024:.0f}K",
            str(max(row["spills"] or 0 for row in group)),
            group[0]["reason"],
        )
    return table


def print_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """Each config; then one line a target, kernel and dtype: how many kernels, the most that any takes; the faults."""
    console.print(table_of_configs(rows))
    table = Table(title="all offered configs, counted from machine code", title_justify="left", box=SIMPLE)
    for column in ("target", "kernel", "dtype", "configs", "kernels", "regs", "shared", "of", "spilling", "failed"):
        table.add_column(column, justify="left" if column in ("target", "kernel", "dtype") else "right")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["target"], row["kernel"], row["dtype"]), []).append(row)
    for (target, kernel, dtype), group in groups.items():
        table.add_row(
            *(target, kernel, dtype),
            str(len({row["config"].partition(" split")[0] for row in group})),
            str(len(distinct_rows(group))),
            str(max((row["registers"] or 0 for row in group), default=0)),
            f"{max((row['shared_bytes'] or 0 for row in group), default=0) / 1024:.0f}K",
            f"{TARGETS[target].shared_bytes / 1024:.0f}K",
            *(str(sum(map(bool, found))) for found in ([r["spills"] for r in group], [not r["ok"] for r in group])),
        )
    console.print(table)
    for fault in faults(rows):
        console.print(f"  {fault}", style="red", no_wrap=True, overflow="ellipsis", markup=False)
    seconds = sum({row["key"]: row["compile_seconds"] or 0 for row in rows if row.get("key")}.values())
    kernels = len({(row["target"], row.get("key")) for row in rows if row.get("key")})
    console.print(f"{kernels} kernels in {len(rows)} rows, {seconds:.0f} s of compiling: {len(faults(rows))} faults")
