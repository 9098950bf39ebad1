"""GPU targets: what tuning and compiling need to know of a GPU, whether or not it is here.

Shared memory is the most one thread block (workgroup) may use. Sources: CUDA C++ Programming Guide, table
"Technical Specifications per Compute Capability"; AMD CDNA 3 and CDNA 4 instruction set manuals (LDS).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Target:
    """``name`` is ``cuda:<capability>`` or ``hip:<arch>``, as Triton's GPUTarget spells them."""

    name: str
    gpu: str
    units: int  # streaming multiprocessors or compute units
    shared_bytes: int
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


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("cuda:80", "A100", 108, 163 * 1024),
        Target("cuda:90", "H100 SXM", 132, 227 * 1024),
        Target("cuda:100", "B200", 148, 227 * 1024),
        Target("cuda:120", "RTX 5090", 170, 99 * 1024),
        Target("hip:gfx942", "MI300X", 304, 64 * 1024, 64),
        Target("hip:gfx950", "MI355X", 256, 160 * 1024, 64),
    )
}
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
    return Target(name, properties.name, properties.multi_processor_count, shared, warp_size)
