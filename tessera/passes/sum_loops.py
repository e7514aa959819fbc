"""Loops that sum a matrix product: counted loops that carry nothing but accumulators, and read what nothing changes."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.ir.core import Block, Kernel, Op, Value, uses
from tessera.ir.opdef import BRANCH, COUNTED, PURE, TERMINATOR
from tessera.ir.ops.control import loop_range
from tessera.ir.types import BufferType
from tessera.target.schedule import root


@dataclass(frozen=True)
class InLoops:
    """What lies inside counted loops of known range, outermost first."""

    around: tuple[Op, ...]

    @property
    def ranges(self) -> tuple[range, ...]:
        found = [loop_range(loop.operands[:3]) for loop in self.around]
        return tuple(indices for indices in found if indices is not None)

    @property
    def trips(self) -> tuple[int, ...]:
        """How many iterations the loops around it have."""
        return tuple(len(indices) for indices in self.ranges)


@dataclass(frozen=True)
class SumLoop(InLoops):
    """A loop whose results are f32 sums of products."""

    op: Op


def sum_loops(kernel: Kernel) -> list[SumLoop]:
    """The outermost such loops, at top level or inside loops of known range and branches that hand nothing on."""
    written = {
        root(value) for op in kernel.body.walk() for effect, value in op.definition.effects_of(op) if effect != "reads"
    }
    return _found(kernel.body, (), written, uses(kernel.body))


def _found(block: Block, around: tuple[Op, ...], written: set[Value], used: dict[Value, list[Op]]) -> list[SumLoop]:
    found: list[SumLoop] = []
    for op in block.ops:
        if op.definition.has(COUNTED) and _sums(op, written, used):
            found.append(SumLoop(around, op))
        elif op.definition.has(COUNTED) and not op.results and loop_range(op.operands[:3]) is not None:
            found += _found(op.regions[0], (*around, op), written, used)
        elif op.definition.has(BRANCH) and not op.results:
            for region in op.regions:
                found += _found(region, around, written, used)
    return found


def _sums(loop: Op, written: set[Value], used: dict[Value, list[Op]]) -> bool:
    (body,) = loop.regions
    if not loop.results or not all(_only_reads(op, written) for op in body.walk()):
        return False
    carried = zip(body.arguments[1:], body.ops[-1].operands, strict=True)
    return all(_accumulates(argument, final, used) for argument, final in carried)


def _only_reads(op: Op, written: set[Value]) -> bool:
    """Whether an op of the loop means the same in another program that runs other iterations.

    Buffers may be written outside of the loop: every program fills its own.
    """
    effects = op.definition.effects_of(op)
    if effects:
        return all(
            effect == "reads" and (isinstance(value.type, BufferType) or root(value) not in written)
            for effect, value in effects
        )
    known = op.definition.has(COUNTED) or op.definition.has(BRANCH)
    return known or op.definition.has(PURE) or op.definition.has(TERMINATOR)


def _accumulates(argument: Value, final: Value, used: dict[Value, list[Op]]) -> bool:
    """Whether `final` is the argument plus products, each step on the way used by the next one only."""
    value, after = final, None
    while value is not argument:
        op = value.defining_op
        if op is None or op.name != "mma" or len(op.operands) != 3 or not _used_once(value, after, used):
            return False
        value, after = op.operands[2], op
    return after is not None and _used_once(argument, after, used)


def _used_once(value: Value, user: Op | None, used: dict[Value, list[Op]]) -> bool:
    """Whether a value is an operand once, of `user`, or where that is None of the end of its block."""
    found = used.get(value, [])
    return len(found) == 1 and (found[0] is user if user is not None else found[0].definition.has(TERMINATOR))


__all__ = ["InLoops", "SumLoop", "sum_loops"]
