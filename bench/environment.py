"""What a result was obtained on, as plain data for the results file."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
COMMIT = "TRITON_DIRAC_COMMIT"  # names the commit that the tree is a copy of
CLOCKS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
}

Run = Callable[[list[str]], str | None]


def output_of(command: list[str]) -> str | None:
    """What ``command`` prints; None if it is not there, fails or takes more than 10 s."""
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def clocks(run: Run = output_of) -> dict[str, float | None] | None:
    """The GPU's clocks (MHz), temperature (C) and power (W) now, as nvidia-smi says; None where it cannot."""
    query = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader,nounits"]
    line = _first_line(run([*query, "-i", _gpu_id()]))
    if line is None:
        return None
    return {name: _number(text) for name, text in zip(CLOCKS.values(), line.split(","), strict=True)}


def code() -> str:
    """Twelve digits that tell the sources of kernels and benches from any others."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ("triton_dirac", "bench") for path in (ROOT / room).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def load() -> float | None:
    """Processes that wanted a core, on average over the last minute; before a run, those that disturb it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def environment(
    command: str,
    clocks_before: dict | None = None,
    clocks_after: dict | None = None,
    load_before: float | None = None,
    run: Run = output_of,
) -> dict[str, Any]:
    """The machine, the versions and the commit; ``command`` is how the program was called."""
    has_gpu = torch.cuda.is_available()
    told = os.environ.get(COMMIT)  # before git: a copy may have a repository of its own, of another state
    is_checkout = told is None and (ROOT / ".git").exists()  # a plain copy may lie inside another project's checkout
    changed = run(["git", "status", "--porcelain", "--untracked-files=no"]) if is_checkout else None
    return {
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "driver": _driver(run) if has_gpu else None,
        "clocks_before": clocks_before,
        "clocks_after": clocks_after,
        "load_before": load_before,
        "torch": torch.__version__,
        "triton": _triton_version(),
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if has_gpu else None,
        "cudnn_benchmark_limit": torch.backends.cudnn.benchmark_limit if has_gpu else None,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": run(["git", "rev-parse", "HEAD"]) if is_checkout else told,
        "code": code(),
        "dirty": None if changed is None else bool(changed),
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _gpu_id() -> str:
    """nvidia-smi counts all GPUs, torch only the visible ones."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    return visible or "0"


def _driver(run: Run) -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return _first_line(run([*query, "-i", _gpu_id()]))


def _first_line(text: str | None) -> str | None:
    return text.splitlines()[0].strip() if text else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]": a GPU that does not tell
        return None


def _triton_version() -> str | None:
    try:
        import triton
    except ModuleNotFoundError:
        return None
    return triton.__version__


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
