"""Number the programs of a two-dimensional grid in groups, so that those that run at one time share what they read.

A GPU starts programs in the order of grid axis 0, then axis 1, and runs as many at a time as it has room for: a wave.
In the author's order a wave is a few whole columns of blocks, which read nearly all blocks along axis 0 and few along
axis 1. With a group of g (`Schedule.group`) ids walk down g blocks of axis 0 before they move one block along axis 1:

    g = 2, grid (5, 3)       0 2 4      a wave of w programs reads about g + w / g blocks instead of w
    (axis 0 goes down)       1 3 5
                             6 8 10     the last group has the rows that are left
                             7 9 11
                             12 13 14

The grid of the launch stays as it is: only what a program does with its ids changes, and a third axis keeps its own.
Axis 0 is taken as it is at this point. Where `distribute` has joined loops with it, the axis counts column tiles
fastest already, so that neighbours share rows; a group is then of so many of those tiles. Exact: each program id is
taken once, by another program.
"""

from __future__ import annotations

from tessera.dtypes import i64
from tessera.errors import SourceError
from tessera.ir import dims
from tessera.ir.clusters import cluster_of
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.dims import Size
from tessera.ir.opdef import UNORDERED
from tessera.ir.programs import names_program
from tessera.target.schedule import Schedule

ORDERED_AXES = 2  # grid axes 0 and 1; of clusters where programs form some


def order_programs(kernel: Kernel, schedule: Schedule) -> Kernel:
    """The kernel with its programs in groups; itself where there is one group, or where the order of programs shows.

    Raises SourceError TS512 for a group of less than no blocks.
    """
    if schedule.group < 0:
        raise SourceError("TS512", f"group is {schedule.group}, and a group has one block or more", kernel.loc)
    grid = kernel.attributes.get("grid", ())
    group = max(1, schedule.group // cluster_of(kernel)) if schedule.group else 0
    ids = [op for op in kernel.body.walk() if op.name == "program_id" and op.attributes["axis"] < ORDERED_AXES]
    if not group or not ids or not _has_groups(grid, group):
        return kernel
    if any(names_program(op) or op.definition.has(UNORDERED) for op in kernel.body.walk()):
        return kernel  # sums of floats by atomics depend on the order of programs
    new, builder, mapping = new_kernel_like(kernel)
    taken = _ids(builder.at(*ids), grid[0], grid[1], group)
    _copy(kernel.body, builder, mapping, taken)
    return new


def _has_groups(grid: tuple[Size, ...], group: int) -> bool:
    """Whether the new order differs: with one group, or one column, it is that of the grid."""
    if len(grid) < ORDERED_AXES or grid[1] == 1:
        return False
    return not isinstance(grid[0], int) or group < grid[0]


def _ids(builder: Builder, first: Size, second: Size, group: int) -> tuple[Value, Value]:
    """The ids along both axes, before scaling, of the program that the launch gives number p in its own order."""

    def size(number: Size) -> Value:
        if isinstance(number, int):
            return builder.value("constant", value=number, dtype=i64)
        return builder.value("size", size=number)

    place, column = (builder.value("program_id", axis=axis) for axis in range(ORDERED_AXES))
    number = builder.value("add", place, builder.value("mul", column, size(first)))
    in_group = size(second * group)
    start = builder.value("mul", builder.value("floordiv", number, in_group), size(group))
    within = builder.value("mod", number, in_group)
    rows = size(group)
    if dims.mod(first, group) != 0:
        rows = builder.value("min", builder.value("sub", size(first), start), rows)
        rows = builder.value("max", rows, size(1))  # as it is, but seen to be positive: no offset is below zero
    row = builder.value("add", start, builder.value("mod", within, rows))
    return row, builder.value("floordiv", within, rows)


def _copy(block: Block, builder: Builder, mapping: Mapping, taken: tuple[Value, Value]) -> None:
    for op in block.ops:
        if op.name == "program_id" and op.attributes["axis"] < ORDERED_AXES:
            mapping[op.result] = _scaled(builder.at(op), op, taken[op.attributes["axis"]])
        elif op.regions:
            clone_with_regions(builder.at(op), op, mapping, lambda old, inner: _copy(old, inner, mapping, taken))
        else:
            clone_op(builder, op, mapping)


def _scaled(builder: Builder, op: Op, taken: Value) -> Value:
    scale = op.attributes["scale"]
    return taken if scale == 1 else builder.value("mul", taken, builder.value("constant", value=scale, dtype=i64))
