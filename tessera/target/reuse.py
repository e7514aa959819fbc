"""What a tile depends on: the ops behind it, and which ids decide what it holds, so which programs read it alike."""

from __future__ import annotations

from collections.abc import Iterable

from tessera.ir.core import Kernel, Op, Value, uses
from tessera.ir.types import BufferType, ViewType


def root(value: Value) -> Value:
    """The parameter behind a view; other values are their own root."""
    while isinstance(value.type, ViewType) and value.defining_op is not None:
        value = value.defining_op.operands[0]  # a window, or a window with a limit
    return value


def written(op: Op) -> list[Value]:
    """The views that an op writes."""
    return [v for e, v in op.definition.effects_of(op) if e != "reads" and isinstance(v.type, ViewType)]


def written_tensors(kernel: Kernel) -> set[Value]:
    """The parameters that a kernel writes."""
    return {root(value) for op in kernel.body.walk() for value in written(op)}


def written_names(kernel: Kernel) -> set[str]:
    """The parameters that a kernel writes."""
    return {root(value).name for op in kernel.body.walk() for value in written(op)}


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
    return {op.attributes["axis"] for op in ops_behind([value], used) if op.name == "program_id"}


def ops_behind(values: Iterable[Value], used: dict[Value, list[Op]]) -> set[Op]:
    """Every op that values are computed by, with what regions on the way hold and what fills buffers on the way."""
    found: set[Op] = set()
    waiting = list(values)
    seen = set(waiting)
    while waiting:
        current = waiting.pop()
        op = current.defining_op
        ops = [op] if op is not None else []
        if isinstance(current.type, BufferType):
            ops += [user for user in used.get(current, ()) if _writes(user, current)]
        for op in ops:
            inside = {op, *(inner for region in op.regions for inner in region.walk())}
            found |= inside
            new = {operand for one in inside for operand in one.operands} - seen
            seen |= new
            waiting += new
    return found


def _writes(op: Op, buffer: Value) -> bool:
    return any(effect != "reads" and value is buffer for effect, value in op.definition.effects_of(op))
