"""Operands of products that are computed, and which of them another launch could compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tessera.ir.core import Block, Kernel, Op, Value, uses
from tessera.ir.opdef import COUNTED, ELEMENTWISE, PURE, REDUCTION, SCAN, STRUCTURAL
from tessera.ir.ops.control import loop_range
from tessera.ir.types import ViewType
from tessera.target.reuse import ops_behind, root, written_names


@dataclass(frozen=True)
class Operand:
    """A computed operand of a product, and the counted loops around it, outermost first."""

    value: Value
    around: tuple[Op, ...]

    @property
    def ranges(self) -> tuple[range, ...]:
        found = [loop_range(loop.operands[:3]) for loop in self.around]
        return tuple(indices for indices in found if indices is not None)

    @property
    def count(self) -> int:
        """How many of it a program computes."""
        return prod(len(indices) for indices in self.ranges)


def computed_operands(kernel: Kernel, reasons: list[str] | None = None) -> list[Operand]:
    """The operands of products that are computed from what is loaded, each once, in the order of the program.

    `reasons` is told why others are not among them.
    """
    changed = written_names(kernel)
    used = uses(kernel.body)
    found: dict[Value, Operand] = {}
    for around, op in _with_loops(kernel.body, ()):
        if op.name != "mma":
            continue
        for operand in op.operands[:2]:
            value = _computed(operand)
            if value is None or value in found:
                continue
            inside = ops_behind([value], used)
            why = _why_not(kernel, value, inside, around, changed)
            if not why:
                found[value] = Operand(value, tuple(loop for loop in around if _holds(loop, value)))
            elif reasons is not None:
                reasons.append(f"'{value.name or 'an operand'}' of '{kernel.name}' {why}")
    return list(found.values())


def _with_loops(block: Block, around: tuple[Op, ...]) -> list[tuple[tuple[Op, ...], Op]]:
    """Every op of a block, with the ops around it, outermost first."""
    found = []
    for op in block.ops:
        found.append((around, op))
        for region in op.regions:
            found += _with_loops(region, (*around, op))
    return found


def _computed(operand: Value) -> Value | None:
    """The arithmetic behind an operand, below what only moves its elements; None for one that is loaded."""
    op = operand.defining_op
    while op is not None and op.definition.has(STRUCTURAL) and len(op.operands) == 1:
        operand, op = op.operands[0], op.operands[0].defining_op
    kinds = (ELEMENTWISE, REDUCTION, SCAN)
    return operand if op is not None and any(map(op.definition.has, kinds)) else None


def _why_not(kernel: Kernel, value: Value, inside: set[Op], around: Sequence[Op], changed: set[str]) -> str:
    """Why another launch cannot compute a value, as the end of a sentence; empty where it can."""
    loops = [op for op in around if _holds(op, value)]
    if any(op.name == "mma" for op in inside):
        return "is computed from another product"
    for op in inside:
        for effect, read in op.definition.effects_of(op):
            if effect != "reads" or not isinstance(read.type, ViewType):
                return "is computed from a buffer that the kernel fills"
            if root(read).name in changed:
                return f"is computed from '{root(read).name}', which the kernel writes"
        if not op.definition.effects_of(op) and not op.definition.has(PURE):
            return "is computed by what is no arithmetic"
    carried = {argument for loop in loops for region in loop.regions for argument in region.arguments[1:]}
    taken = {operand for op in inside for operand in op.operands}
    if carried & taken:
        return "is computed from what a loop carries"
    if any(not op.definition.has(COUNTED) or loop_range(op.operands[:3]) is None for op in loops):
        return "is computed in a branch, or in a loop whose length only the run knows"
    if any(op.regions for op in inside):
        return "is computed by a loop"
    return ""


def _holds(op: Op, value: Value) -> bool:
    return any(value in inner.results for region in op.regions for inner in region.walk())


__all__ = ["Operand", "computed_operands"]
