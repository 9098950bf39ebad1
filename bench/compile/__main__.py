"""``python -m bench.compile [--loops | --configs | --bytes] [--json FILE] ...``: see ``bench/compile/__init__.py``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.environment import environment
from bench.layers import NETS, Layer, layers
from bench.networks import NETWORKS
from triton_dirac.runtime.targets import TARGETS

from . import bytes as moved
from . import configs, loops
from .jobs import KERNELS, PEERS, Job, jobs_of_layer
from .run import rows_of
from .table import console, print_rows, write_json

DTYPES = ("bfloat16", "float32", "tf32", "float16")
DEFAULT_NETS = [net for net in NETS if net != "DiracNet-34"]  # which has DiracNet-18's layers


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.compile", description=__doc__)
    names = "comma-separated; default: "
    parser.add_argument("--targets", help=names + ",".join(TARGETS))
    parser.add_argument("--kernels", help=f"comma-separated parts of names; all: {', '.join(KERNELS)}")
    parser.add_argument("--nets", help=f"{names}{','.join(DEFAULT_NETS)}; also DiracNet-34")
    parser.add_argument("--layers", help="comma-separated parts of layer names; default: see --all")
    parser.add_argument("--dtypes", help=f"{names}bfloat16, and float32,tf32 for one layer; also float16, tf32x3")
    every = "every layer in every dtype, not only each net's stem and the Dirac layer with the most work"
    parser.add_argument("--all", action="store_true", help=every)
    parser.add_argument("--loops", action="store_true", help="main loops at equal tiles, beside a plain GEMM")
    parser.add_argument("--configs", action="store_true", help="every offered config: none may spill or not fit")
    parser.add_argument("--bytes", action="store_true", help="global bytes of the weight preparation of whole nets")
    parser.add_argument("--peers", action="store_true", help="add other projects' kernels (--loops has them)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one kernel")
    return parser.parse_args(arguments)


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """The jobs of the kernel table."""
    targets = split(options.targets) or list(TARGETS)
    nets = split(options.nets) or DEFAULT_NETS
    kernels = [name for name in KERNELS if any(part in name for part in split(options.kernels) or [""])]
    kernels += PEERS if options.peers else ()
    jobs = []
    for net in nets:
        wanted = split(options.layers)
        some = [layer for layer in layers(net) if any(part in layer.name for part in wanted or [""])]
        if not (options.all or wanted):
            some = representative(some)
        for dtype in split(options.dtypes) or (DTYPES if options.all else DTYPES[:3]):
            jobs += [
                job
                for target in targets
                for layer in some
                for job in jobs_of_layer(layer, kernels, dtype, target)
                if options.all or options.dtypes or is_default(job, nets[0], some[-1].name)
            ]
    jobs = list({(job.kernel, job.net, job.layer, job.dtype, job.target): job for job in jobs}.values())
    return sorted(jobs, key=lambda job: (targets.index(job.target), kernels.index(job.kernel)))


def is_default(job: Job, first_net: str, last_layer: str) -> bool:
    """One layer gets all kernels and dtypes; the others default picks and weight preparation in bfloat16."""
    is_one = job.net == first_net and job.layer.startswith((last_layer, "all"))
    is_pick = "loader" not in job.arguments and not job.kernel.startswith("conv_direct")
    is_first = job.dtype == DTYPES[0]
    return (is_pick and (is_one or is_first)) or (is_one and is_first)


def representative(of_net: Sequence[Layer]) -> list[Layer]:
    """The plain layers (the stem), and the Dirac layer in which the net spends most of its arithmetic."""
    most = max((x for x in of_net if x.dirac), key=lambda layer: layer.count * layer.problem.flops)
    return [layer for layer in of_net if not layer.dirac or layer is most]


def split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def main() -> None:
    options = parse()
    nets = NETWORKS if options.bytes else NETS
    for name, known in (("targets", TARGETS), ("nets", nets)):
        if unknown := [value for value in split(getattr(options, name)) if value not in known]:
            sys.exit(f"--{name}: {', '.join(unknown)} is not one of {', '.join(known)}")
    output = console()
    pool = {"workers": options.jobs, "timeout": options.timeout}
    if options.bytes:
        every = {"targets": moved.TARGETS, "dtypes": moved.DTYPES, "nets": tuple(NETWORKS)}
        asked = [split(getattr(options, name)) or default for name, default in every.items()]
        rows = moved.table(*asked, **pool)
        moved.print_rows(rows, output)
    elif options.loops or options.configs:
        table = loops if options.loops else configs
        targets, dtypes = split(options.targets) or list(table.TARGETS), split(options.dtypes) or table.DTYPES
        rows = rows_of(table.jobs_of(targets, dtypes, split(options.kernels) or [""]), counted=options.loops, **pool)
        if options.loops:
            loops.add_ratios(rows)
        table.print_rows(rows, output)
    else:
        rows = rows_of(jobs_of(options), **pool)
        print_rows(rows, output)
    if options.json:
        command = " ".join(["python -m bench.compile", *sys.argv[1:]])
        write_json({"kind": "compile", "environment": environment(command), "rows": rows}, options.json)
        print(f"written: {options.json}")
    if options.configs and configs.faults(rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
