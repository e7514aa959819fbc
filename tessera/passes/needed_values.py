"""What a producer has to compute for the copies that it starts."""

from __future__ import annotations

from tessera.ir.core import Kernel, Op, Value
from tessera.ir.opdef import COUNTED, LOOP
from tessera.ir.ops.control import carried_values
from tessera.ir.types import ListType, TileType, ViewType
from tessera.passes.copy_groups import CopyGroup
from tessera.target.reuse import written_tensors
from tessera.target.schedule import root


def needed_values(kernel: Kernel, groups: list[CopyGroup]) -> set[Value] | None:
    """The values that the producer computes: windows, bounds and conditions, and what these are made of; None where a
    tile is among them, or what the kernel itself has written, which the producer may come too early for.
    """
    written = written_tensors(kernel)
    inside = {group.wait.id for group in groups}
    pending = [copy.operands[1] for group in groups for copy in group.copies]
    arguments: dict[Value, list[Value]] = {}
    for op in kernel.body.walk():
        if any(inner.id in inside for region in op.regions for inner in region.walk()):
            pending += op.operands[:3] if op.definition.has(COUNTED) else op.operands[:1]
            if op.definition.has(LOOP) and not op.definition.has(COUNTED):
                return None  # what ends it may be computed from what the copies bring
        if op.definition.has(LOOP):
            for initial, argument, final, result in carried_values(op):
                arguments[argument] = arguments[result] = [initial, final, argument, result]
        elif op.regions:
            for index, result in enumerate(op.results):
                arguments[result] = [region.ops[-1].operands[index] for region in op.regions] + op.operands[:1]
    needed: set[Value] = set()
    while pending:
        value = pending.pop()
        if value in needed:
            continue
        if isinstance(value.type, TileType):
            return None
        needed.add(value)
        pending += arguments.get(value, ())
        op = value.defining_op
        if op is not None and any(v in written or not isinstance(v.type, (ViewType, ListType)) for v in _accessed(op)):
            return None
        if op is not None and not op.regions:
            pending += op.operands
        elif op is not None:
            pending += [v for region in op.regions for inner in region.walk() for v in inner.operands
                        if not isinstance(v.type, TileType) and v.defining_op is not None]  # fmt: skip
    return needed


def _accessed(op: Op) -> list[Value]:
    """The tensors and buffers that an op reads or changes, in its regions too."""
    ops = [op, *(inner for region in op.regions for inner in region.walk())]
    return [root(value) for inner in ops for _, value in inner.definition.effects_of(inner)]


__all__ = ["needed_values"]
