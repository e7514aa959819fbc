"""What the programs of a grid read alike: which ids decide what a tile holds."""

from __future__ import annotations

from tessera.ir.core import Kernel, Op, Value, uses
from tessera.ir.types import BufferType


def shares_operands_both_ways(kernel: Kernel) -> bool:
    """Whether the operands of a product depend on one of grid axes 0 and 1 each: then programs beside each other along
    either axis read one of them alike.
    """
    used = uses(kernel.body)
    axes = [
        [axes_behind(value, used) & {0, 1} for value in op.operands[:2]]
        for op in kernel.body.walk()
        if op.name == "mma"
    ]
    return any(sorted(map(sorted, pair)) == [[0], [1]] for pair in axes)


def axes_behind(value: Value, used: dict[Value, list[Op]]) -> set[int]:
    """The grid axes whose ids decide what a value is; `used` as `uses` gives it."""
    found: set[int] = set()
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        op = current.defining_op
        ops = [op] if op is not None else []
        if isinstance(current.type, BufferType):
            ops += [user for user in used.get(current, ()) if _writes(user, current)]
        for op in ops:
            inside = [inner for region in op.regions for inner in region.walk()]
            found |= {one.attributes["axis"] for one in (op, *inside) if one.name == "program_id"}
            for operand in (operand for one in (op, *inside) for operand in one.operands):
                if operand not in seen:
                    seen.add(operand)
                    waiting.append(operand)
    return found


def _writes(op: Op, buffer: Value) -> bool:
    return any(effect != "reads" and value is buffer for effect, value in op.definition.effects_of(op))
