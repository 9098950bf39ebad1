"""What the table shows of a listing: matrix instructions, the steady loop, widths of global accesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .listing import Listing


@dataclass(frozen=True)
class Isa:
    """How one instruction set spells what is counted; each function takes an opcode.

    ``matrix`` names the kind of matrix instruction or None; ``access`` gives ("load" | "store", bytes one
    thread moves) for a vector access to global memory or None; ``multiply`` tells whether it is a float32
    multiply-add of the vector unit (what a float32 "ieee" dot is made of on NVIDIA); ``spill`` whether it
    moves a spilled register; ``tma`` whether it is a bulk tensor copy.
    """

    matrix: Callable[[str], str | None]
    access: Callable[[str], tuple[str, int] | None]
    multiply: Callable[[str], bool]
    spill: Callable[[str], bool]
    tma: Callable[[str], bool]


def count(listing: Listing, isa: Isa) -> dict[str, Any]:
    """Counts of one kernel.

    The steady loop is, of the loops that hold matrix instructions, the one with the fewest instructions for
    each; branches inside it are counted as if all its blocks ran. A kernel without matrix instructions has
    ``loop_instructions_per_fma`` instead, over its multiply-adds.
    """
    ops = [instruction.op for instruction in listing.instructions]
    kinds = [isa.matrix(op) for op in ops]
    multiplies = [isa.multiply(op) for op in ops]
    accesses = Counter(access for op in ops if (access := isa.access(op)))
    loops = listing.loops()
    with_matrix = [(loop, found) for loop in loops if (found := sum(kinds[i] is not None for i in loop))]
    with_multiply = [(loop, found) for loop in loops if (found := sum(multiplies[i] for i in loop))]
    steady, mma = _steady(with_matrix)
    fma_loop, fma = _steady([] if with_matrix else with_multiply)
    return {
        "mma": "+".join(sorted({kind for kind in kinds if kind})) or None,
        "mma_count": sum(kind is not None for kind in kinds),
        "loops_with_mma": len(with_matrix),
        "loop_instructions": len(steady) if mma else None,
        "loop_mma": mma or None,
        "loop_instructions_per_mma": len(steady) / mma if mma else None,
        "loop_instructions_per_fma": len(fma_loop) / fma if fma else None,
        "loop_spill_accesses": sum(isa.spill(ops[i]) for i in steady or fma_loop),
        "loop_mix": dict(Counter(ops[i].split(".")[0] for i in steady or fma_loop).most_common()),
        "instructions": len(ops),
        "loads": _widths(accesses, "load"),
        "stores": _widths(accesses, "store"),
        "tma": any(map(isa.tma, ops)),
    }


def _steady(loops: list[tuple[list[int], int]]) -> tuple[list[int], int]:
    return min(loops, key=lambda loop: len(loop[0]) / loop[1], default=([], 0))


def _widths(accesses: Counter[tuple[str, int]], direction: str) -> dict[str, int]:
    """Instructions by the bytes that each moves per thread, widest first: {"16": 8, "2": 1}."""
    found = {size: n for (kind, size), n in accesses.items() if kind == direction}
    return {str(size): found[size] for size in sorted(found, reverse=True)}
