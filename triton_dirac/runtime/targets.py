"""GPU targets: what tuning, compiling and the cost models need to know of a GPU, whether or not it is here.

Shared memory is the most one thread block (workgroup) may use, registers those of a unit. Sources: CUDA C++ Programming
Guide, table "Technical Specifications per Compute Capability"; AMD CDNA 3 and CDNA 4 instruction set manuals (LDS, 512
vector registers of 64 lanes for each of four SIMDs).

Rates are per unit and clock. Multiply-adds and memory bytes are datasheet figures over units and boost clock: dense
16-bit products summed in float32, and peak bandwidth. Sources, in teraFLOP/s, GB/s and GHz: NVIDIA's datasheets for
A100 (312, 1555, 1.41), L4 (121, 300, 2.04), H100 SXM (989, 3350, 1.83), H200 (989, 4800, 1.83), B200 (2250, 8000,
1.85); the Ada and RTX Blackwell whitepapers for RTX 4090 (165, 1008, 2.52) and 5090 (209.5, 1792, 2.41); AMD's
datasheets for MI300X (1307, 5300, 2.1) and MI355X (2517, 8000, 2.4). None states L2's rate: the H200's was fitted
(``conv.cycles``), the others' are estimates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

import torch


@dataclass(frozen=True)
class Target:
    """``name`` is ``cuda:<capability>`` or ``hip:<arch>``, as Triton's GPUTarget spells them."""

    name: str
    gpu: str
    units: int  # streaming multiprocessors or compute units
    shared_bytes: int
    multiply_adds: int  # of 16 bits, by a unit's matrix instructions in a clock
    l2_bytes: float  # to a unit in a clock
    memory_bytes: float  # to a unit in a clock, where all units read
    registers: int = 65536  # of 32 bits, of a unit
    warp_size: int = 32

    @property
    def backend(self) -> str:
        return self.name.split(":")[0]

    @property
    def arch(self) -> int | str:
        kind, arch = self.name.split(":")
        return int(arch) if kind == "cuda" else arch

    @property
    def family(self) -> str:
        """AMD, or the NVIDIA generation of matrix instructions: mma.sync (cuda:80), wgmma (90), tcgen05 (100)."""
        if self.backend != "cuda":
            return "hip"
        return {9: "cuda:90", 10: "cuda:100"}.get(int(self.arch) // 10, "cuda:80")

    def precision(self, wanted: str) -> str:
        """``wanted`` where the target's matrix unit has it, else the more exact "ieee".

        Of AMD's only gfx942 multiplies in TF32, and Triton splits float32 into three of them for none.
        """
        has_it = self.backend == "cuda" or (self.arch, wanted) == ("gfx942", "tf32")
        return wanted if has_it else "ieee"


# The first of a name is compiled for where no GPU is at hand; the first of a family lends its rates (``listed``).
GPUS = (
    Target("cuda:80", "A100", 108, 163 * 1024, 1024, 60, 10.2),
    Target("cuda:89", "L4", 58, 99 * 1024, 512, 60, 2.5),
    Target("cuda:89", "RTX 4090", 128, 99 * 1024, 256, 60, 3.1),
    Target("cuda:90", "H100", 132, 227 * 1024, 2048, 75, 13.9),
    Target("cuda:90", "H200", 132, 227 * 1024, 2048, 75, 19.9),
    Target("cuda:100", "B200", 148, 227 * 1024, 4096, 75, 29.2),
    Target("cuda:120", "RTX 5090", 170, 99 * 1024, 256, 60, 4.4),
    Target("hip:gfx942", "MI300X", 304, 64 * 1024, 1024, 50, 8.3, registers=131072, warp_size=64),
    Target("hip:gfx950", "MI355X", 256, 160 * 1024, 2048, 50, 13.0, registers=131072, warp_size=64),
)
TARGETS: dict[str, Target] = {}
for _gpu in GPUS:
    TARGETS.setdefault(_gpu.name, _gpu)
INTERPRETER = TARGETS["cuda:80"]  # the interpreter has no GPU: it runs what an A100 would be given


@cache
def target_of(device: torch.device) -> Target:
    """The target of a device of this machine; the interpreter's for a CPU or meta device."""
    if device.type != "cuda":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        name, warp_size = f"hip:{properties.gcnArchName.split(':')[0]}", properties.warp_size
        shared = properties.shared_memory_per_block
    else:
        name, warp_size = f"cuda:{properties.major * 10 + properties.minor}", 32
        shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    like = listed(name, properties.name)
    units = properties.multi_processor_count
    return replace(like, name=name, gpu=properties.name, units=units, shared_bytes=shared, warp_size=warp_size)


def listed(name: str, gpu: str) -> Target:
    """The listed GPU whose rates a GPU has: of its model, else the first of its target, else of its family.

    >>> listed("cuda:90", "NVIDIA H200").gpu, listed("cuda:89", "NVIDIA L40S").gpu, listed("cuda:86", "NVIDIA A10").gpu
    ('H200', 'L4', 'A100')
    """
    by_model = [t for t in GPUS if t.name == name and re.search(rf"\b{re.escape(t.gpu)}\b", gpu)]
    family = replace(INTERPRETER, name=name).family
    return next(iter(by_model or [t for t in GPUS if t.name == name] or [t for t in GPUS if t.family == family]))
