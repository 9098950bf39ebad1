"""``python -m bench.compile [--loops | --configs | --bytes] [--json FILE] ...``: see ``bench/compile/__init__.py``.

Exit code 0; 1 where nothing compiles, where something that was named has no row, and where --configs finds a fault;
2 for options or a file that cannot be used; 130 or 143 where it was stopped: then the file has what is compiled so far.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.environment import environment
from bench.layers import Layer, layers
from bench.net_weights import WHOLE_NETS
from bench.nets import NETS
from triton_dirac.runtime import files
from triton_dirac.runtime.targets import TARGETS

from . import bytes as moved
from . import configs, loops, selection
from . import table as kernel_table
from .jobs import KERNELS, PEERS, Job, jobs_of_layer
from .run import rows_of
from .selection import split

DTYPES = ("bfloat16", "float32", "tf32", "float16")
# DiracNet-34 has DiracNet-18's layers.
DEFAULT_NETS = [name for name, net in NETS.items() if net.by_default and name != "DiracNet-34"]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.compile", description=__doc__)
    names = "comma-separated; default: "
    parser.add_argument("--targets", help=names + ",".join(TARGETS))
    parser.add_argument("--kernels", help=f"comma-separated parts of names; all: {', '.join(KERNELS)}")
    parser.add_argument("--nets", help=f"{names}{','.join(DEFAULT_NETS)}; all: {', '.join(NETS)}")
    parser.add_argument("--layers", help="comma-separated parts of layer names; default: see --all")
    parser.add_argument("--dtypes", help=f"{names}bfloat16, and float32,tf32 for one layer; also float16, tf32x3")
    every = "every layer in every dtype, not only each net's stem and the Dirac layer with the most work"
    parser.add_argument("--all", action="store_true", help=every)
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--loops", action="store_true", help="main loops at equal tiles, beside a plain GEMM")
    table.add_argument("--configs", action="store_true", help="every offered config: none may spill or not fit")
    table.add_argument("--bytes", action="store_true", help="global bytes of the weight preparation of whole nets")
    parser.add_argument("--peers", action="store_true", help="add other projects' kernels (--loops has them)")
    parser.add_argument("--json", type=_path, help="write the rows to this file, while they are made and at the end")
    parser.add_argument("--jobs", type=_positive(int), default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--timeout", type=_positive(float), default=120, help="seconds for one kernel")
    options = parser.parse_args(arguments)
    if wrong := selection.mistake(options):
        parser.error(wrong)
    options.selected = jobs_of(options)
    if wrong := selection.without(options.selected, options):
        parser.error(wrong)
    if options.json:  # now, and not after an hour of compiling
        try:
            files.require_writable(options.json)
        except OSError as error:
            parser.error(
                f"--json {options.json}: cannot be written ({error}); accepted is a file that is or can be made"
            )
    return options


def _path(text: str) -> Path:
    """``~`` is the home directory here too: no shell expands it in --json=~/rows.json."""
    return Path(os.path.expanduser(text))


def _positive(kind: type) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}; accepted is a number above 0")
        return value

    return parsed


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """The jobs of the table that is asked for."""
    targets, dtypes, kernels = (split(getattr(options, name)) for name in ("targets", "dtypes", "kernels"))
    if options.bytes:
        nets = split(options.nets) or list(WHOLE_NETS)
        return moved.jobs_of(targets or moved.TARGETS, dtypes or moved.DTYPES, nets)
    if options.loops or options.configs:
        table = loops if options.loops else configs
        return table.jobs_of(targets or list(table.TARGETS), dtypes or table.DTYPES, kernels or [""])
    return kernel_jobs(options)


def kernel_jobs(options: argparse.Namespace) -> list[Job]:
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
    """The layers on the image, and that in which the net spends most of its arithmetic: a Dirac layer if it has any."""
    stems = [layer for layer in of_net if not layer.needs_input_grad]
    others = [layer for layer in of_net if layer.needs_input_grad]
    dirac = [layer for layer in others if layer.has_identity]
    most = sorted(dirac or others, key=lambda layer: layer.count * layer.problem.flops)[-1:]
    return [*stems, *most]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile what is selected, write the rows, print the table."""
    options = parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the terminal's encoding lacks is spelled out
        sys.stdout.reconfigure(errors="backslashreplace")
    command = " ".join(["python -m bench.compile", *(sys.argv[1:] if arguments is None else arguments)])
    header = {"kind": "compile", "environment": environment(command)}
    found: dict[tuple[str, ...], dict[str, Any]] = {}

    def write(rows: list[dict[str, Any]], planned: int) -> None:
        """Rows as they are known so far; ``planned`` tells how many there will be."""
        if options.bytes:
            moved.add_moved(rows, options.selected, found)
        elif options.loops:
            loops.add_ratios(rows)
        if options.json:
            files.replace(options.json, json.dumps({**header, "planned": planned, "rows": rows}, indent=1))

    problem = None
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what there is is written
    try:
        pool = {"workers": options.jobs, "timeout": options.timeout}
        rows = rows_of(options.selected, counted=not options.configs, keep=write, **pool)
        write(rows, len(rows))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        if options.json is None:
            raise
        problem = f"--json {options.json}: {error}"
    finally:
        signal.signal(signal.SIGTERM, before)
    table = {"": kernel_table, "loops": loops, "configs": configs, "bytes": moved}[selection.table_of(options)]
    table.print_rows(rows, kernel_table.console())
    if options.json and not problem:
        print(f"written: {options.json}")
    return verdict(rows, options, problem)


def verdict(rows: list[dict[str, Any]], options: argparse.Namespace, problem: str | None) -> int:
    """The exit code, and why it is not 0."""
    if problem:
        print(f"bench.compile: {problem}", file=sys.stderr)
        return 2
    if wrong := selection.without(rows, options):
        print(f"bench.compile: {wrong}: no such kernel is offered", file=sys.stderr)
        return 1
    if not any(row["ok"] for row in rows):
        print(f"bench.compile: none of {len(rows)} kernels compiles", file=sys.stderr)
        return 1
    return 1 if options.configs and configs.faults(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
