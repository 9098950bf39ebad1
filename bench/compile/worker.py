"""``python -m bench.compile.worker FOLDER``: plans and compiles what it reads, one JSON line in, one out.

A process of its own because a process that interprets kernels cannot compile them, and because a compiler
may crash or hang. The launch is specialised by Triton's own JIT code, so that what is analysed is what a
GPU would be given: arguments equal to 1 become constants, divisibility by 16 and small buffers are known.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.targets import TARGETS, Target

from . import amdgcn, sass, ttgir
from .counts import count
from .jobs import Job

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
GRACE = 0.5  # seconds that an idle worker has to leave by itself
TENSOR_MEMORY_COLUMNS = 512  # of a Blackwell multiprocessor; Triton launches no kernel that needs more


def plan(job: Job) -> tuple[str, list[Launch]]:
    """The config's name and the launches that the job's planner makes of it on meta tensors."""
    module, function = job.planner.split(":")
    return getattr(importlib.import_module(module), function)(job)


def specialise(launch: Launch, target: Target) -> tuple[ASTSource, GPUTarget, dict[str, Any]]:
    """What the JIT would compile for this launch on ``target``: source, target, options."""
    kernel = launch.kernel
    while not isinstance(kernel, JITFunction):  # an autotuner's or heuristics' kernel
        kernel = kernel.fn
    gpu = GPUTarget(target.backend, target.arch, target.warp_size)
    backend = make_backend(gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    keywords = {**launch.args, **launch.constexprs, **launch.options}
    bound, specialisation, options = bind(**keywords)
    parsed, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialisation, options)
    return ASTSource(kernel, signature, constants, attributes), gpu, parsed.__dict__


def key(source: ASTSource, options: dict[str, Any]) -> str:
    """Equal for launches that compile to the same binary on one target."""
    return hashlib.sha256(f"{source.hash()} {sorted(options.items(), key=str)}".encode()).hexdigest()[:16]


def measure(
    source: ASTSource, gpu: GPUTarget, options: dict[str, Any], target: Target, *, counted: bool = True
) -> dict[str, Any]:
    """Compile and, if ``counted``, count. ``error`` says what a launch would refuse although the kernel compiles."""
    start = time.perf_counter()
    compiled = triton.compile(source, target=gpu, options=options)
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
        return measure(*specialise(launches[request["launch"]], target), target, counted=request["counted"])
    planned = []
    for launch in launches:
        source, _, options = specialise(launch, target)
        planned.append({"entry": source.name, "key": key(source, options), "grid": list(launch.grid)})
    return {"ok": True, "config": config, "launches": planned}


def main(folder: str) -> None:
    """Serve requests until the input ends, then remove ``folder``; what compilers print goes to the error stream."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=listen, args=(requests, folder), daemon=True).start()
    try:
        for line in iter(requests.get, None):
            print(json.dumps(reply_to(line)), file=replies, flush=True)
    except BrokenPipeError:  # whoever asked is gone
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def reply_to(line: str) -> dict[str, Any]:
    try:
        return answer(json.loads(line))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return {"ok": False, "error": describe(error)}


def listen(requests: SimpleQueue[str | None], folder: str) -> None:
    """Pass the input on. It ends when the asking process ends, killed or not: then nobody waits for a kernel that may
    take minutes, or hang, and nobody else removes the folder."""
    for line in sys.stdin:
        requests.put(line)
    requests.put(None)
    time.sleep(GRACE)  # an idle worker is gone by now
    shutil.rmtree(folder, ignore_errors=True)
    if os.getpgid(0) == os.getpid():  # with the compilers that it started
        os.killpg(0, signal.SIGKILL)


def describe(error: BaseException) -> str:
    """The first cause's kind and words, and where: Triton quotes pages of source between them."""
    cause, where = error, ""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip(" ^")]
    if cause is not error or len(lines) > 3:
        where = f" ({str(error).strip().splitlines()[0]})"
    return f"{type(cause).__name__}: {' | '.join(lines[-2:])[:500]}{where}"


if __name__ == "__main__":
    main(sys.argv[1])
