"""AMD machine code: the compiler's assembly text -> listing, registers, spills.

Opcodes are those of AMD's CDNA 3, CDNA 4 and RDNA 3 instruction set manuals.
"""

from __future__ import annotations

import re

from .counts import Isa
from .listing import Instruction, Listing

_LABEL = re.compile(r"^(\.LBB\w+):")
_INSTRUCTION = re.compile(r"^\s+([a-z]\w+)(.*)")
_BRANCH_TARGET = re.compile(r"\.LBB\w+")
_ACCESS = re.compile(r"(?:global|buffer|flat)_(load|store)_(?:lds_)?(?:format_)?(\w+)")
_SIZES = {
    1: "ubyte sbyte byte b8 u8 i8",
    2: "ushort sshort short b16 u16 i16",
    4: "dword b32",
    8: "dwordx2 b64",
    12: "dwordx3 b96",
    16: "dwordx4 b128",
}
_BYTES = {name: size for size, names in _SIZES.items() for name in names.split()}


def parse(text: str) -> Listing:
    """Listing of the assembly text; directives and comments are dropped, waits and no-ops are kept."""
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            op, operands = found.groups()
            target = _BRANCH_TARGET.search(operands) if op.startswith(("s_branch", "s_cbranch")) else None
            falls_through = op not in ("s_branch", "s_endpgm", "s_setpc_b64")
            instructions.append(Instruction(op, target[0] if target else "", falls_through))
    return Listing(tuple(instructions), labels)


def matrix(op: str) -> str | None:
    """The kind of matrix instruction: ``v_mfma_f32_32x32x8_f16`` -> ``mfma``."""
    if op.startswith(("v_mfma", "v_smfmac")):
        return "mfma"
    return "wmma" if op.startswith(("v_wmma", "v_swmmac")) else None


def access(op: str) -> tuple[str, int] | None:
    """Direction and bytes per lane of a global access: ``buffer_load_dwordx4`` -> ("load", 16)."""
    found = _ACCESS.match(op)
    if found is None:
        return None
    size = found[2].split("_")  # short_d16_hi and d16_u8 fill half a register
    return found[1], next((_BYTES[part] for part in size if part in _BYTES), 2 if "d16" in size else 4)


ISA = Isa(
    matrix=matrix,
    access=access,
    multiply=lambda op: op.startswith(("v_fma_f32", "v_fmac_f32", "v_pk_fma_f32", "v_dual_fmac_f32")),
    spill=lambda op: op.startswith("scratch_"),
    tma=lambda op: op.startswith(("tensor_load_to_lds", "tensor_store_from_lds")),
)


def resources(text: str) -> dict[str, int]:
    """Registers and spills. ``registers`` counts vector and accumulation registers of a lane.

    ``spills`` counts vector registers kept in memory; scalar registers spill into lanes of vector ones.
    """
    numbers = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", text, re.MULTILINE)}
    if "vgpr_count" not in numbers:
        raise ValueError("the assembly text has no .vgpr_count")
    return {
        "registers": numbers["vgpr_count"],
        "spills": numbers.get("vgpr_spill_count", 0),
        "scalar_registers": numbers.get("sgpr_count", 0),
        "scalar_spills": numbers.get("sgpr_spill_count", 0),
    }
