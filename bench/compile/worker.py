"""``python -m bench.compile.worker FOLDER``: plans and compiles what it reads, one JSON line in, one out.

A process of its own because a process that interprets kernels cannot compile them, and because a compiler
may crash or hang. The launch is specialised by Triton's own JIT code, so that what is analysed is what a
GPU would be given: arguments equal to 1 become constants, divisibility by 16 and small buffers are known.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import triton

from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.specialise import Specialised, specialise
from triton_dirac.runtime.targets import TARGETS, Target
from triton_dirac.runtime.workers import serve

from . import amdgcn, sass, ttgir
from .counts import count
from .jobs import Job

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSOR_MEMORY_COLUMNS = 512  # of a Blackwell multiprocessor; Triton launches no kernel that needs more


def plan(job: Job) -> tuple[str, list[Launch]]:
    """The config's name and the launches that the job's planner makes of it on meta tensors."""
    module, function = job.planner.split(":")
    return getattr(importlib.import_module(module), function)(job)


def measure(specialised: Specialised, target: Target, *, counted: bool = True) -> dict[str, Any]:
    """Compile and, if ``counted``, count. ``error`` says what a launch would refuse although the kernel compiles."""
    start = time.perf_counter()
    compiled = specialised.compile()
    seconds = time.perf_counter() - start
    counts: dict[str, Any] = {}
    if target.backend == "cuda":
        binary = compiled.asm["cubin"]
        resources = sass.resources(binary, TOOLS)
        if counted:
            counts = count(sass.disassemble(binary, TOOLS), sass.ISA)
    else:
        text = compiled.asm["amdgcn"]
        resources = amdgcn.resources(text)
        if counted:
            counts = count(amdgcn.parse(text), amdgcn.ISA)
    shared = compiled.metadata.shared
    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    error = None
    if shared > target.shared_bytes:
        error = f"needs {shared} bytes of shared memory, {target.gpu} has {target.shared_bytes}"
    elif columns > TENSOR_MEMORY_COLUMNS:
        error = f"needs {columns} columns of tensor memory, {target.gpu} has {TENSOR_MEMORY_COLUMNS}"
    return {
        "ok": error is None,
        "error": error,
        "compile_seconds": seconds,
        "triton": triton.__version__,
        "shared_bytes": shared,
        "tensor_memory_columns": columns,
        "ir_accesses": ttgir.accesses(compiled.asm["ttgir"]),
        **resources,
        **counts,
    }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Plan a job (its launches' entry names and keys), or compile its launch number ``launch``."""
    job = Job.from_json(request["job"])
    target = TARGETS[job.target]
    config, launches = plan(job)
    if "launch" in request:
        return measure(specialise(launches[request["launch"]], target), target, counted=request["counted"])
    planned = []
    for launch in launches:
        specialised = specialise(launch, target)
        planned.append({"entry": specialised.source.name, "key": specialised.key, "grid": list(launch.grid)})
    return {"ok": True, "config": config, "launches": planned}


if __name__ == "__main__":
    serve(answer, sys.argv[1])
