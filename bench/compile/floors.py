"""The GEMMs that convolution loops are compared with: a GEMM without masks is the floor of a pointer loop.

Both operands are K-contiguous, as channels-last images and weights are: A (M, K), B (N, K), C (M, N).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from triton_dirac.conv.config import Config
from triton_dirac.runtime.launch import Launch

from .jobs import Job


@triton.jit
def gemm_unmasked(
    a_ptr, b_ptr, c_ptr,
    M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """C = A @ B.T with sizes that the blocks divide: two loads, one dot and two pointer steps a turn."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * K + k[None, :]
    b_ptrs = b_ptr + n[None, :] * K + k[:, None]
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, K, BLOCK_K):
        accumulator = tl.dot(tl.load(a_ptrs), tl.load(b_ptrs), accumulator)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator.to(c_ptr.dtype.element_ty))


@triton.jit
def gemm_masked(
    a_ptr, b_ptr, c_ptr,
    M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """C = A @ B.T for any sizes, every load masked in both directions, addresses made anew each turn."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a_mask = (m < M)[:, None] & (k < K)[None, :]
        b_mask = (k < K)[:, None] & (n < N)[None, :]
        a = tl.load(a_ptr + m[:, None] * K + k[None, :], mask=a_mask, other=0.0)
        b = tl.load(b_ptr + n[None, :] * K + k[:, None], mask=b_mask, other=0.0)
        accumulator = tl.dot(a, b, accumulator)
    c_ptrs = c_ptr + m[:, None] * N + n[None, :]
    tl.store(c_ptrs, accumulator.to(c_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def plan_gemm(job: Job) -> tuple[str, list[Launch]]:
    """The GEMM of the problem's fprop: M = N*P*Q, N = K, K = C*R*S; arguments "config" and "masked"."""
    p, config = job.problem, Config(**job.arguments["config"])
    dtype = getattr(torch, job.dtype)
    m, n, k = p.N * p.P * p.Q, p.K, p.C * p.R * p.S
    a, b, c = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((m, k), (n, k), (m, n)))
    launch = Launch(
        gemm_masked if job.arguments["masked"] else gemm_unmasked,
        (triton.cdiv(m, config.block_m), triton.cdiv(n, config.block_n)),
        {"a_ptr": a, "b_ptr": b, "c_ptr": c, "M": m, "N": n, "K": k},
        {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k},
        {"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    return config.name, [launch]
