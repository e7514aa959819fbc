"""Operands of products that are computed, and which of them another launch could compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from tessera.ir.core import Block, Kernel, Op, Value, uses
from tessera.ir.dims import Size
from tessera.ir.opdef import CONSTANT, COUNTED, ELEMENTWISE, PURE, REDUCTION, SCAN, STRUCTURAL
from tessera.ir.ops.control import loop_range
from tessera.ir.types import TileType, ViewType, int_shape
from tessera.passes.sum_loops import InLoops
from tessera.target.reuse import ops_behind, root, written_names


@dataclass(frozen=True)
class Operand(InLoops):
    """A computed operand of a product."""

    value: Value

    @property
    def count(self) -> int:
        """How many of it a program computes."""
        return prod(self.trips)


@dataclass(frozen=True)
class Part:
    """The part of a tensor of this shape, at these offsets, that a tile is computed from element by element."""

    shape: tuple[Size, ...]
    offsets: tuple[Value, ...]


def part_of(value: Value) -> Part | None:
    """What a tile is a part of where an element is computed from those of tensors at its own place and from constants,
    and is zero where these are: outside of the tensors, where they read as zero. None for other tiles.
    """
    parts: set[Part] = set()
    zero = _of_zeros(value, int_shape(value.type), parts)
    return parts.pop() if len(parts) == 1 and zero is not None and not zero.any() else None


def _of_zeros(value: Value, shape: tuple[int, ...], parts: set[Part]) -> np.ndarray | None:
    """What an element is where those of tensors are zero; None where it depends on more than constants. `parts` gets
    what is loaded.
    """
    op = value.defining_op
    if op is None:
        return None
    if op.definition.has(CONSTANT):
        return np.full((1,), op.attributes["value"], np.float32)
    if op.name == "load":
        part = _part(op.operands[0], shape)
        if part is None:
            return None
        parts.add(part)
        return np.zeros((1,) * (1 + len(shape)), np.float32)
    if not op.definition.has(ELEMENTWISE) or op.definition.evaluate is None:
        return None
    if isinstance(op.result.type, TileType) and int_shape(op.result.type) != shape:
        return None
    operands = [_of_zeros(operand, shape, parts) for operand in op.operands]
    if any(operand is None for operand in operands):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(op.definition.evaluate(op, *operands), np.float32)


def _part(view: Value, shape: tuple[int, ...]) -> Part | None:
    """The window of a whole tensor that a tile is loaded through."""
    window = view.defining_op
    if window is None or window.name != "window" or not all(window.attributes["kept"]):
        return None
    made = window.operands[0].defining_op
    tensor = window.operands[0].type
    if made is not None and made.name != "element" or not isinstance(tensor, ViewType):
        return None
    if window.attributes["extents"] != shape or len(window.operands) != 1 + len(shape):
        return None
    return Part(tuple(tensor.shape), tuple(window.operands[1:]))


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
                found[value] = Operand(tuple(loop for loop in around if _holds(loop, value)), value)
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


__all__ = ["Operand", "Part", "computed_operands", "part_of"]
