"""Kernels that go wrong in known ways, for test_compile.py; compiled in worker processes."""

from __future__ import annotations

import os
import signal
import time

import torch
import triton
import triton.language as tl

from bench.compile.jobs import Job
from triton_dirac.runtime.launch import Launch


@triton.jit
def wrong(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(y_ptr + index, tl.load(x_ptr + index + no_such_name), mask=index < n)  # noqa: F821


@triton.jit
def spilling(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """One warp keeps all its values between two reductions: 512 registers a thread."""
    index = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index)
    x = x / tl.sqrt(tl.sum(x * x, 0))
    tl.store(y_ptr + index, x - tl.max(x, 0))


@triton.jit
def copy(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + index, tl.load(x_ptr + index, mask=index < n), mask=index < n)


def _launch(kernel, job: Job, block: int) -> tuple[str, list[Launch]]:
    x = torch.empty(1 << 20, device="meta")
    n = job.arguments.get("n", x.numel())
    arguments = {"x_ptr": x, "y_ptr": x, "n": n}
    return f"{block}", [Launch(kernel, (1,), arguments, {"BLOCK": block}, {"num_warps": 1})]


def plan_wrong(job: Job) -> tuple[str, list[Launch]]:
    return _launch(wrong, job, 128)


def plan_spilling(job: Job) -> tuple[str, list[Launch]]:
    return _launch(spilling, job, 16384)


def plan_copy(job: Job) -> tuple[str, list[Launch]]:
    return _launch(copy, job, 1024)


def plan_crash(job: Job) -> tuple[str, list[Launch]]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return "", []


def plan_hang(job: Job) -> tuple[str, list[Launch]]:
    time.sleep(60)
    return "", []
