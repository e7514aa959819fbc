"""Powers of two that divide integer scalars, given powers of two that divide the dims."""

from __future__ import annotations

from collections.abc import Mapping

from tessera.ir.core import Kernel, Value
from tessera.ir.dims import divisor
from tessera.ir.opdef import CONSTANT, COUNTED
from tessera.ir.ops.elementwise import is_index

LIMIT = 1 << 20

Loops = Mapping[int, tuple[Value, Value]]


def loops_of(kernel: Kernel) -> dict[int, tuple[Value, Value]]:
    """(lower, step) of every loop by the identity of its region's block: blocks do not know the op that holds them."""
    return {
        id(op.regions[0]): (op.operands[0], op.operands[2]) for op in kernel.body.walk() if op.definition.has(COUNTED)
    }


def power_of_two(number: int) -> int:
    """The largest power of two, at most LIMIT, that divides a number; 0 is divisible by all."""
    return min(number & -number, LIMIT) if number else LIMIT


def divisor_of(value: Value, dims: Mapping[str, int], loops: Loops, found: dict[Value, int] | None = None) -> int:
    """A power of two that divides an integer scalar. `found` keeps results between calls."""
    cache: dict[Value, int] = {} if found is None else found
    pending = [value]
    while pending:
        current = pending[-1]
        missing = [part for part in _parts(current, loops) if part not in cache]
        if current in cache or not missing:
            pending.pop()
            if current not in cache:
                cache[current] = _combine(current, dims, [cache[part] for part in _parts(current, loops)])
        else:
            pending += missing
    return cache[value]


def _parts(value: Value, loops: Loops) -> list[Value]:
    """The values whose divisors decide: a loop's index is lower + i * step."""
    op = value.defining_op
    if op is None:
        return list(loops.get(id(value.owner), ())) if value.index == 0 else []
    if op.name == "where":
        return op.operands[1:]
    linear = op.name in ("add", "sub", "mul", "mod", "neg", "cast")
    return op.operands if linear and all(is_index(operand.type) for operand in op.operands) else []


def _combine(value: Value, dims: Mapping[str, int], parts: list[int]) -> int:
    op = value.defining_op
    if op is None:
        return min(parts, default=1)
    if op.definition.has(CONSTANT):
        return power_of_two(int(op.attributes["value"]))
    if op.name == "size":
        return divisor(op.attributes["size"], dims, LIMIT)
    if op.name == "program_id":
        return power_of_two(op.attributes["scale"])
    if op.name == "mul" and parts:
        return min(parts[0] * parts[1], LIMIT)
    return min(parts, default=1)
