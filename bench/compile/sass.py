"""NVIDIA machine code: cubin -> SASS (nvdisasm of Triton's wheel) -> listing, registers, spills.

Opcodes are those of NVIDIA's "CUDA Binary Utilities", section "Instruction Set Reference".
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from .counts import Isa
from .listing import Instruction, Listing

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_BRANCH_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_ENDS = ("EXIT", "RET", "BRX", "JMX")
_MATRIX = (
    (re.compile(r"[HIQ]GMMA\b"), "wgmma"),
    (re.compile(r"UTC\w*MMA\b"), "tcgen05"),
    (re.compile(r"[HIDQO]MMA\b"), "mma.sync"),
)
_WIDTH = re.compile(r"\.(?:[US](8|16)|(64|128|256))\b")


def parse(text: str) -> Listing:
    """Listing of ``nvdisasm -c`` text."""
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            predicate, op, operands = found.groups()
            target = _BRANCH_TARGET.search(operands) if op.startswith("BRA") else None
            # A uniform branch has its condition as first operand: BRA.U !UP0, `(.L_x_4)
            conditional = predicate is not None or (target is not None and "," in operands)
            ends = target is not None or op.split(".")[0] in _ENDS
            instructions.append(Instruction(op, target[1] if target else "", conditional or not ends))
    return Listing(tuple(instructions), labels)


def matrix(op: str) -> str | None:
    """The kind of matrix instruction as PTX calls it: ``HGMMA.64x128x16.F32`` -> ``wgmma``."""
    return next((kind for pattern, kind in _MATRIX if pattern.match(op)), None)


def access(op: str) -> tuple[str, int] | None:
    """Direction and bytes per thread of a global access: ``LDGSTS.E.BYPASS.128`` -> ("load", 16)."""
    name = op.split(".")[0]
    if name not in ("LDG", "LDGSTS", "STG"):
        return None
    bits = [int(narrow or wide) for narrow, wide in _WIDTH.findall(op)]
    return ("store" if name == "STG" else "load"), min(bits, default=32) // 8


ISA = Isa(
    matrix=matrix,
    access=access,
    multiply=lambda op: op.startswith("FFMA"),
    spill=lambda op: op.split(".")[0] in ("LDL", "STL"),
    tma=lambda op: op.startswith(("UTMALDG", "UTMASTG", "UTMAREDG")),
)


def resources(cubin: bytes, tools: Path) -> dict[str, int]:
    """Registers and spills of a cubin; ``tools`` is the folder of nvdisasm and cuobjdump.

    ``spills`` is the stack in bytes per thread: Triton's kernels have no other use of it.
    """
    usage = _run(tools / "cuobjdump", "--dump-resource-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump reports no registers: {usage!r}")
    return {"registers": int(found[1]), "spills": int(found[2])}


def disassemble(cubin: bytes, tools: Path) -> Listing:
    """Listing of a cubin: half a second of nvdisasm, as much as compiling it took."""
    return parse(_run(tools / "nvdisasm", "-c", cubin))


def _run(tool: Path, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
