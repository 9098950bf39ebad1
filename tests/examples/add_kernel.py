"""A kernel as this project writes them: definition, kernel, launch as plain data, cost, check, machine code.

python tests/examples/add_kernel.py                       # on a GPU
TRITON_INTERPRET=1 python tests/examples/add_kernel.py    # anywhere, in Triton's interpreter
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.compile.jobs import Job
from bench.compile.plans import dtype_of
from triton_dirac.runtime.launch import INTERPRETED, Launch

BLOCK = 256


def definition(weight: Tensor) -> Tensor:
    """||W_k||_2 of each filter, (K,): what the kernel is held against."""
    return weight.flatten(1).square().sum(1).sqrt()


@triton.jit
def filter_norms_kernel(
    weight, norms,  # (K, LENGTH) contiguous; (K,) float32
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """norms[k] = ||weight[k]||_2: a program for each filter, summed in float32."""
    k = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, LENGTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(weight + k * LENGTH + at, mask=at < LENGTH, other=0.0).to(tl.float32)
        total += value * value
    tl.store(norms + k, tl.sqrt(tl.sum(total, 0)))


def plan(weight: Tensor, norms: Tensor) -> Launch:
    """The launch as data: it is run, or compiled for a GPU that is not there, from tensors without memory."""
    args = {"weight": weight, "norms": norms}
    constexprs = {"LENGTH": weight[0].numel(), "BLOCK": BLOCK}
    return Launch(filter_norms_kernel, (weight.shape[0],), args, constexprs, {"num_warps": 4})


def filter_norms(weight: Tensor) -> Tensor:
    """||W_k||_2 of each filter, (K,) float32."""
    norms = weight.new_empty(weight.shape[0], dtype=torch.float32)
    plan(weight.contiguous(), norms).run()
    return norms


def cost(weight: Tensor) -> tuple[int, int]:
    """The least (flops, bytes): every element read, squared and added once."""
    return 2 * weight.numel(), weight.numel() * weight.element_size() + 4 * weight.shape[0]


def planned(job: Job) -> tuple[str, list[Launch]]:
    """For bench.compile: (the config's name, the launches) of a layer; in TF32 tensors are float32."""
    weight = torch.empty(job.problem.weight_shape, dtype=dtype_of(job), device="meta")
    return f"{BLOCK} w4", [plan(weight, weight.new_empty(weight.shape[0], dtype=torch.float32))]


def main() -> None:
    if not (torch.cuda.is_available() or INTERPRETED):
        raise SystemExit("no GPU: set TRITON_INTERPRET=1")
    device = "cpu" if INTERPRETED else "cuda"
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        for filters, length in ((1, 1), (7, 255), (16, 256), (5, 1000)):
            weight = torch.randn(filters, length, device=device).to(dtype)
            true = definition(weight.double())
            error = (filter_norms(weight).double() - true).abs().max().item()
            allowed = 2 * (definition(weight).double() - true).abs().max().item() + 1e-6 * true.max().item()
            print(f"{dtype} {filters}x{length}: error {error:.1e}, allowed {allowed:.1e}")
            assert error <= allowed


if __name__ == "__main__":
    main()
