"""What the GPU at hand can do: a large copy and large matmuls, under a short load and under a sustained one.

Under a sustained load clocks fall to what power and heat allow. Random normal values: zeros run faster than data.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from triton_dirac.runtime.device_time import Call, Device, device_seconds
from triton_dirac.tuning.work import STORAGE

COPIED = 2**30  # bytes, read once and written once
SIZE = 8192  # rows and columns of the matrices
SAMPLES, SUSTAINED_SECONDS = 7, 1.0

Loads = dict[str, dict[str, float]]  # name -> {"short": work per second, "sustained": work per second}


def measured(calls: Mapping[str, tuple[Call, float]], device: Device, seconds: float = SUSTAINED_SECONDS) -> Loads:
    """The rates of ``calls``, each with the work that it does: bytes of "copy", flops of the others."""
    found: Loads = {}
    for name, (call, work) in calls.items():
        call()  # whatever is loaded or chosen at first use
        short = statistics.median(device_seconds(device, call, 0.0)[0] for _ in range(SAMPLES))
        found[name] = {"short": work / short, "sustained": work / _sustained(call, device, seconds, short)}
    return found


def _sustained(call: Call, device: Device, seconds: float, once: float) -> float:
    """Seconds a call, in the second half of ``seconds`` of nothing else."""
    half = max(1, math.ceil(seconds / once / 2))
    middle, end = device.event(), device.event()
    for _ in range(half):
        call()
    middle.record()
    for _ in range(half):
        call()
    end.record()
    device.synchronize()
    return middle.elapsed_time(end) * 1e-3 / half


def of_gpu(dtypes: Sequence[str], device: Device, place: torch.device) -> Loads:
    """The ceilings of the GPU at ``place`` for a copy and for products in each of ``dtypes``."""
    source = torch.randn(COPIED // 4, device=place)
    found = measured({"copy": (partial(torch.empty_like(source).copy_, source), 2 * COPIED)}, device)
    del source
    for dtype in dtypes:
        a, b = (torch.randn(SIZE, SIZE, device=place).to(STORAGE[dtype]) for _ in range(2))
        out = torch.empty_like(a)
        with float32_matmuls(dtype):
            found |= measured({dtype: (partial(torch.matmul, a, b, out=out), 2 * SIZE**3)}, device)
    return found


def of_run(path: Path, gpu: str | None = None) -> Loads | None:
    """The ceilings that a results file or a journal states; None if it states none (of ``gpu``), or is neither."""
    try:
        text = path.read_text(encoding="utf-8")
        contents = [json.loads(text)] if path.suffix == ".json" else map(json.loads, text.splitlines())
        stated = [content["environment"] for content in contents if "environment" in content]
        return stated[-1].get("ceilings") if stated and gpu in (None, stated[-1].get("gpu")) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


@contextmanager
def float32_matmuls(dtype: str) -> Iterator[None]:
    """TF32 for "tf32", else full float32."""
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before
