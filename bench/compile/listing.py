"""An assembly listing as data: instructions, labels and the loops they form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Instruction:
    """An instruction: opcode with modifiers, the label it may branch to, whether the next may follow it."""

    op: str
    target: str = ""
    falls_through: bool = True


@dataclass(frozen=True)
class Listing:
    """Instructions in program order, and for each label the index of the instruction it precedes."""

    instructions: tuple[Instruction, ...]
    labels: Mapping[str, int]

    @cached_property
    def blocks(self) -> dict[int, range]:
        """Basic blocks by the index of their first instruction."""
        size = len(self.instructions)
        ends = {i + 1 for i, found in enumerate(self.instructions) if found.target or not found.falls_through}
        starts = sorted({0, *self.labels.values(), *ends} - {size})
        return {start: range(start, end) for start, end in zip(starts, [*starts[1:], size], strict=True)}

    def successors(self, block: int) -> list[int]:
        last = self.blocks[block][-1]
        instruction = self.instructions[last]
        following = [last + 1] if instruction.falls_through else []
        if instruction.target in self.labels:
            following.append(self.labels[instruction.target])
        return [index for index in following if index in self.blocks]

    def loops(self) -> list[list[int]]:
        """Instruction indices of each natural loop, outermost and first come first.

        A branch backwards in the text is not enough: compilers move blocks that run once behind their
        successors. A loop is an edge to a block that dominates the edge's origin, with all blocks that
        reach the origin without passing that header; edges to one header are one loop.
        """
        order = self._postorder()[::-1]
        known = set(order)
        predecessors: dict[int, list[int]] = {block: [] for block in order}
        for block in order:
            for following in self.successors(block):
                predecessors[following].append(block)
        dominators = dict.fromkeys(order, known) | {block: {block} for block in order[:1]}
        changed = True
        while changed:
            changed = False
            for block in order[1:]:
                found = {block}.union(set.intersection(*(dominators[p] for p in predecessors[block])))
                changed |= found != dominators[block]
                dominators[block] = found
        bodies: dict[int, set[int]] = {}
        for block in order:
            for header in self.successors(block):
                if header in dominators[block]:
                    body = bodies.setdefault(header, {header})
                    waiting = [block]
                    while waiting:
                        member = waiting.pop()
                        if member not in body:
                            body.add(member)
                            waiting += predecessors[member]
        return [
            [index for member in sorted(body) for index in self.blocks[member]]
            for _, body in sorted(bodies.items(), key=lambda loop: (loop[0], -len(loop[1])))
        ]

    def _postorder(self) -> list[int]:
        """Blocks that can be reached, each after all that it leads to except around a loop."""
        if not self.instructions:
            return []
        order: list[int] = []
        seen = {0}
        stack = [(0, iter(self.successors(0)))]
        while stack:
            block, following = stack[-1]
            child = next((c for c in following if c not in seen), None)
            if child is None:
                order.append(block)
                stack.pop()
            else:
                seen.add(child)
                stack.append((child, iter(self.successors(child))))
        return order
