"""Make a kernel persistent: as many programs as the device runs at a time, each of which does the work of several.

With `Schedule.persistent` a kernel of grid (g0, g1, ...) becomes one of a single axis, with a loop around its body:

    a, b = program_id(0), program_id(1)     grid min(g0 * g1, multiprocessors * blocks)
    ...                                     for p in range(program_id(0), g0 * g1, num_programs(0)):
                                                a, b = p % g0, p // g0
                                                ...

With a last axis of clusters of c (`form_clusters`) the loop is over clusters, and the grid is min(g0 * g1,
multiprocessors * blocks // c) * c: program p of the launch is in cluster p // c, at place p % c.

Where programs side by side work on parts of a row in turn, as many are launched as keep each one to its part.

Programs of the launch take those of the kernel in turns, in the order in which the grid would have started them, so
that those that run at one time are neighbours as before. Every program of the launch has one at least. Exact: each
program of the kernel runs once, and does the same.
"""

from __future__ import annotations

import math

from tessera.dtypes import i64
from tessera.ir import dims
from tessera.ir.clusters import PLACE_AXIS, cluster_of
from tessera.ir.core import (
    Block,
    Builder,
    Kernel,
    Op,
    Value,
    add_notes,
    clone_kernel,
    clone_op,
    clone_with_regions,
    new_kernel_like,
)
from tessera.ir.dims import Size
from tessera.ir.ops.control import constant_value
from tessera.ir.ops.effects import order_dependent
from tessera.ir.programs import MULTIPROCESSORS, counts_multiprocessors, names_program
from tessera.target.arch import Arch
from tessera.target.schedule import Schedule


def persist(kernel: Kernel, schedule: Schedule, arch: Arch) -> Kernel:
    """The kernel with a persistent loop; itself where there is one program, or where the order of programs shows.

    That is in prints and assertions, which name their program, and in sums of floats by atomics; a note then says so.
    """
    grid = kernel.attributes.get("grid", (1,))
    if not schedule.persistent or counts_multiprocessors(grid) or math.prod(grid) == 1:
        return kernel
    reason = why_in_order(kernel)
    if reason:
        new, _ = clone_kernel(kernel)
        note = f"persistent = true has no effect: {reason}"
        add_notes(new, note)
        return new
    return _Persistence(kernel, grid, arch).kernel(schedule.blocks)


def why_in_order(kernel: Kernel) -> str:
    """What keeps the programs of a kernel in the order of its grid, as a clause; empty where nothing does."""
    if any(names_program(op) for op in kernel.body.walk()):
        return "prints and assertions name the program that they are of"
    names = sorted(order_dependent(kernel))
    return f"the sums in {', '.join(map(repr, names))} depend on the order of programs" if names else ""


class _Persistence:
    def __init__(self, kernel: Kernel, grid: tuple[Size, ...], arch: Arch):
        self.cluster = cluster_of(kernel)
        self.old, self.grid, self.arch = kernel, grid if self.cluster == 1 else grid[:PLACE_AXIS], arch
        self.new, self.builder, self.mapping = new_kernel_like(kernel)

    def kernel(self, blocks: int) -> Kernel:
        total: Size = math.prod(self.grid)  # type: ignore[assignment, arg-type]
        at_once: Size = dims.symbol(MULTIPROCESSORS) * blocks
        if self.cluster > 1:
            at_once = dims.maximum(dims.floordiv(at_once, self.cluster), 1)
        self.fixed = self._fixed(blocks)
        if self.fixed > 1:
            at_once = dims.maximum(dims.floordiv(at_once, self.fixed), 1) * self.fixed
        self.new.attributes["grid"] = (dims.minimum(total, at_once) * self.cluster,)
        first, step = (self.builder.value(name, axis=0) for name in ("program_id", "num_programs"))
        self.place = first
        if self.cluster > 1:
            size = self._size(self.builder, self.cluster)
            self.place = self.builder.value("mod", first, size, hint="place")
            first, step = (self.builder.value("floordiv", value, size) for value in (first, step))
        bounds = [first, self._size(self.builder, total), step]
        self.remainder = (
            self.builder.value("mod", first, self._size(self.builder, self.fixed)) if self.fixed > 1 else None
        )
        body = Block()
        self.number = body.add_argument(first.type, "program")
        inner = self.builder.inner(body)
        self.ids = self._ids(inner)
        self._block(self.old.body, inner)
        inner.op("yield")
        self.builder.op("for", bounds, [body])
        return self.new

    def _fixed(self, blocks: int) -> int:
        """The number f of parts of a row that programs take in turn, if each should keep to one; 1 where none should.

        Program p works on part p % f. Where f divides the programs that run at one time, a program of the launch meets
        the same part again and again, and what belongs to it can stay. Of each, f must leave no multiprocessor idle.
        """
        parts = {
            constant_value(op.operands[1])
            for op in self.old.body.walk()
            if op.name == "mod" and _axis(op.operands[0]) == 0
        }
        part = parts.pop() if len(parts) == 1 else None
        if not isinstance(part, int) or part < 1 or dims.mod(self.grid[0], part) != 0:
            return 1
        return part if self.arch.typical_sm_count * blocks // self.cluster % part == 0 else 1

    def _is_part(self, op: Op) -> bool:
        return op.name == "mod" and _axis(op.operands[0]) == 0 and constant_value(op.operands[1]) == self.fixed

    def _ids(self, builder: Builder) -> list[Value]:
        """The index along each axis of the grid; axis 0 counts fastest. An axis of one program asks for no division."""
        found: list[Value] = []
        rest, behind = self.number, list(self.grid)
        while behind:
            extent = behind.pop(0)
            if extent == 1:
                found.append(self._size(builder, 0))
            elif all(size == 1 for size in behind):
                found.append(rest)
            else:
                size = self._size(builder, extent)
                found.append(builder.value("mod", rest, size))
                rest = builder.value("floordiv", rest, size)
        return found

    def _size(self, builder: Builder, size: Size) -> Value:
        if isinstance(size, int):
            return builder.value("constant", value=size, dtype=i64)
        return builder.value("size", size=size)

    def _block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            builder.at(op)
            if op.name == "program_id":
                self.mapping[op.result] = self._id(op, builder)
            elif op.name == "num_programs":
                self.mapping[op.result] = self._size(builder, self._extent(op.attributes["axis"]))
            elif self.remainder is not None and self._is_part(op):
                self.mapping[op.result] = self.remainder
            elif self._is_number(op):
                self.mapping[op.result] = self._number_of_two(builder)
            elif op.regions:
                clone_with_regions(builder, op, self.mapping, self._block)
            else:
                clone_op(builder, op, self.mapping)

    def _extent(self, axis: int) -> Size:
        return self.grid[axis] if axis < len(self.grid) else 1

    def _id(self, op: Op, builder: Builder) -> Value:
        axis, scale = op.attributes["axis"], op.attributes["scale"]
        if self.cluster > 1 and axis == PLACE_AXIS:
            return self.place
        index = self.ids[axis] if axis < len(self.ids) else self._size(builder, 0)
        return index if scale == 1 else builder.value("mul", index, self._size(builder, scale))

    def _is_number(self, op: Op) -> bool:
        """Whether an op computes the number of a program along the first two axes, as `order_programs` does."""
        if op.name != "add" or (product := op.operands[1].defining_op) is None or product.name != "mul":
            return False
        column, rows = product.operands
        ids = [_axis(value) for value in (op.operands[0], column)]
        made = rows.defining_op
        extent = made.attributes["size"] if made is not None and made.name == "size" else constant_value(rows)
        return ids == [0, 1] and extent == self.grid[0]

    def _number_of_two(self, builder: Builder) -> Value:
        if all(size == 1 for size in self.grid[2:]):
            return self.number
        return builder.value("mod", self.number, self._size(builder, self.grid[0] * self.grid[1]))


def _axis(value: Value) -> int | None:
    """The axis of which a value is the index of the program; None where it is none."""
    op = value.defining_op
    indexes = op is not None and op.name == "program_id" and op.attributes["scale"] == 1
    return op.attributes["axis"] if op is not None and indexes else None
