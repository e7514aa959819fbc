"""Clusters of programs: which values are alike in all programs of one, so that one of them can load for the others.

In a grid of clusters axis 0 counts these, and the last axis the programs of each (`passes/form_clusters.py`). In that
of a persistent kernel, whose one axis counts programs, those of which p // c is the same form a cluster of c. What
depends on more than that number differs between them.
"""

from __future__ import annotations

from collections.abc import Callable

from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.opdef import COUNTED, LOOP
from tessera.ir.ops.control import carried_values, constant_value
from tessera.ir.ranges import Ranges
from tessera.ir.types import ViewType

PLACE_AXIS = 2  # of a grid of clusters: the place of a program in its cluster


def cluster_of(kernel: Kernel) -> int:
    """How many programs of a launch form a cluster; 1 where none do."""
    return kernel.attributes.get("cluster", 1)


def differing(kernel: Kernel) -> set[Value]:
    """The values that may differ between the programs of a cluster."""
    cluster = cluster_of(kernel)
    return derived(kernel, lambda op: op.name == "program_id", lambda op: _is_number_of_cluster(op, cluster))


def _is_number_of_cluster(op: Op, cluster: int) -> bool:
    made = op.operands[0].defining_op if op.name == "floordiv" else None
    is_id = made is not None and made.name == "program_id" and made.attributes == {"axis": 0, "scale": 1}
    return is_id and constant_value(op.operands[1]) == cluster


def differing_blocks(kernel: Kernel, values: set[Value]) -> set[int]:
    """By identity, the blocks that programs of a cluster may run through differently: not in turn, or not as often."""
    found: set[int] = set()
    ranges = Ranges(kernel)

    def visit(block: Block, inside: bool) -> None:
        if inside:
            found.add(id(block))
        for op in block.ops:
            counted = op.definition.has(COUNTED)
            ends = op.operands[:3] if counted else op.operands
            unclear = op.definition.has(LOOP) and not counted  # what ends it is computed inside
            differs = any(value in values and not _holds(value, ranges) for value in ends)
            for region in op.regions:
                visit(region, inside or unclear or differs)

    visit(kernel.body, False)
    return found


def _holds(condition: Value, ranges: Ranges) -> bool:
    """Whether a condition is known to hold: that a slice is not behind the last one."""
    op = condition.defining_op
    if op is None or op.name != "lt":
        return False
    (_, most), (least, _) = (ranges.interval(value) for value in op.operands)
    return most is not None and least is not None and most < least


def derived(kernel: Kernel, source: Callable[[Op], bool], cut: Callable[[Op], bool] = lambda op: False) -> set[Value]:
    """The values behind the results of `source` ops, and behind what is read from tensors; not those of `cut` ops."""
    found: set[Value] = set()

    def visit(block: Block) -> None:
        for op in block.ops:
            for region in op.regions:
                visit(region)
            if op.definition.has(LOOP):
                for initial, argument, final, result in carried_values(op):
                    _spread(found, [initial, final], [argument, result])
                if op.definition.has(COUNTED):
                    _spread(found, op.operands[:3], op.regions[0].arguments[:1])
            elif not cut(op):
                if source(op) or _reads_tensor(op):
                    found.update(op.results)
                finals = [value for region in op.regions for value in region.ops[-1].operands]
                _spread(found, [*op.operands, *finals], op.results)

    before = -1
    while before != len(found):  # loops carry values back to where they have been looked at
        before = len(found)
        visit(kernel.body)
    return found


def _spread(found: set[Value], sources: list[Value], results: list[Value]) -> None:
    if any(value in found for value in sources):
        found.update(results)


def _reads_tensor(op: Op) -> bool:
    return any(effect == "reads" and isinstance(value.type, ViewType) for effect, value in op.definition.effects_of(op))


__all__ = ["PLACE_AXIS", "cluster_of", "derived", "differing", "differing_blocks"]
