"""Start loads from global memory before the computation that stands between them, so that they fly together.

Inside a stretch of ops without regions, barriers or asynchronous ops, loads of tensors that the kernel never writes
move in front of everything that does not feed them. A load keeps its registers from there on, so tiles move only while
together they stay below `REGISTERS` a thread. What all programs load alike does not move past a step at which the warps
of a line wait for one another: the level-1 cache has it, and registers are what keeps other blocks away. Exact: values
only become known earlier.
"""

from __future__ import annotations

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.opdef import ASYNC, COLLECTIVE, PURE
from tessera.ir.types import ScalarType, TileType, ViewType, dtype_of, tile_layout
from tessera.target.row_lines import FOLDS, is_common
from tessera.target.schedule import root

REGISTERS = 64  # 32-bit registers of hoisted tiles: a quarter of what a thread can have


def hoist_loads(kernel: Kernel) -> Kernel:
    written = {
        root(value) for op in kernel.body.walk() for effect, value in op.definition.effects_of(op) if effect != "reads"
    }
    new, builder, mapping = new_kernel_like(kernel)
    _copy(kernel.body, builder, mapping, written)
    return new


def _copy(block: Block, builder: Builder, mapping: Mapping, written: set[Value]) -> None:
    for op in _ordered(block.ops, written):
        builder.at(op)
        if op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _copy(old, inner, mapping, written))
        else:
            clone_op(builder, op, mapping)


def _ordered(ops: list[Op], written: set[Value]) -> list[Op]:
    """The ops with the early ones of each stretch in front, both in the order in which they stood."""
    result: list[Op] = []
    early: list[Op] = []
    late: list[Op] = []
    late_values: set[Value] = set()
    registers = 0
    folded = False
    for op in ops:
        folded |= op.name in FOLDS
        if _ends_stretch(op):
            result += [*early, *late, op]
            early, late, late_values, registers = [], [], set(), 0
            continue
        cost = _registers(op)
        movable = _is_early(op, written) and not any(value in late_values for value in op.operands)
        movable = movable and not (cost and folded and is_common(op.operands[0]))
        if movable and registers + cost <= REGISTERS:
            early.append(op)
            registers += cost
        else:
            late.append(op)
            late_values.update(op.results)
    return [*result, *early, *late]


def _ends_stretch(op: Op) -> bool:
    return bool(op.regions) or op.definition.has(COLLECTIVE) or op.definition.has(ASYNC) or op.name == "async_wait"


def _is_early(op: Op, written: set[Value]) -> bool:
    """Index arithmetic, windows, and loads of what nothing writes."""
    if len(op.results) != 1:
        return False
    if op.definition.has(PURE):
        return isinstance(op.results[0].type, (ScalarType, ViewType))
    effects = op.definition.effects_of(op)
    return bool(effects) and all(
        effect == "reads" and isinstance(value.type, ViewType) and root(value) not in written
        for effect, value in effects
    )


def _registers(op: Op) -> int:
    type_ = op.results[0].type if op.results else None
    if not isinstance(type_, TileType):
        return 0
    return -(-tile_layout(type_).registers_per_thread * dtype_of(type_).bytes // 4)
