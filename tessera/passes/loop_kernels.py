"""What kernels of row groups are built with whose products add along their depth in loops.

A product of a program's rows is a loop over slices of its depth: slices of rows in memory, or of a buffer of what was
computed, times slices of the right operand. Exact: a sum is added in the order that defines it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tessera.dtypes import f32, i64
from tessera.ir.core import Block, Op, Value
from tessera.ir.types import Shape, dtype_of, shape_of
from tessera.passes.fusion_cost import Sizes, count
from tessera.passes.graph_access import rows_in_place
from tessera.passes.graph_groups import Group, columns_of, is_alias, is_view, rows_of
from tessera.passes.graph_kernels import RowKernel

VECTOR = 16  # bytes of the widest access to shared memory, and a thread has 8 elements of a line side by side


class LoopKernel(RowKernel):
    """A kernel whose programs have `block` rows."""

    def start(self, group: Group, block: int, sizes: Sizes, skipped: frozenset[Op]) -> None:
        self.begin(group, sizes, skipped)
        self.flat = False
        self.rows, self.batch = self.maker.dim("M", count(group.rows)), 1
        self.block = block
        self.offsets = self.maker.programs([(self.rows, self.block)])
        self.zero = self.maker.index(0)
        self.sources: dict[tuple[Value, Shape], Value] = {}

    def _in_memory(self, value: Value) -> bool:
        """Whether a value is loaded, not made."""
        op = value.defining_op
        return op is None or op not in self.inside or is_view(op) or is_alias(op)

    def _width(self, value: Value) -> int:
        return self.sizes.fix(columns_of(shape_of(value.type)))

    def _filled(self, columns: int, number: float) -> Value:
        builder = self.maker.builder
        scalar = builder.value("constant", value=number, dtype=f32)
        return builder.value("full", scalar, shape=(self.block, columns), dtype=f32)

    def _buffer(self, value: Value) -> Value:
        """A buffer for a line. Vectors that reach beyond the last column of a line find zeros there."""
        builder, dtype, width = self.maker.builder, dtype_of(value.type), self._width(value)
        vector = max(8, VECTOR // dtype.bytes)
        columns = -(-width // vector) * vector
        name = value.name or "line"
        buffer = builder.value("alloc_shared", shape=(self.block, columns), dtype=dtype, swizzle="xor", hint=name)
        if columns > width:
            zeros = builder.value("cast", self._filled(vector, 0.0), dtype=dtype)
            builder.op("write", [buffer, zeros, self.zero, self.maker.index(columns - vector)])
        return buffer

    def _over(
        self, size: int, step: int, carried: Sequence[Value], make: Callable[[Value, int, Sequence[Value]], list[Value]]
    ) -> list[Value]:
        """Walks over [0, size): a loop over whole steps, and the rest; `make` gives what is carried on."""
        found, whole = list(carried), size // step * step
        maker, builder, known = self.maker, self.maker.builder, dict(self.made)
        if whole > step:
            bounds = [builder.value("constant", value=number, dtype=i64) for number in (0, whole, step)]
            body = Block()
            start = body.add_argument(bounds[0].type, "column")
            inside = [body.add_argument(value.type, value.name) for value in found]
            maker.builder = builder.inner(body)
            made = make(start, step, inside)
            maker.builder.op("yield", made)
            maker.builder, self.made = builder, dict(known)
            names = [value.name for value in made]
            found = list(builder.op("for", [*bounds, *found], [body], names).results)
        elif whole:
            found = make(self.zero, step, found)
        if size > whole:
            found = make(maker.index(whole) if whole else self.zero, size - whole, found)
        self.made = known
        return found

    def _loaded(self, value: Value, start: Value, extent: int) -> Value:
        """The columns [start, start + extent) of a tensor in memory, or of a part of one."""
        found, starts = self._access(value)
        if self._one_row(value):
            at = [*([None] * (len(found.axes) - 1)), start]
            tile, flipped = self._tile(found, starts, at, (1, extent), known=True)
            return self._widened(self._upright((tile, flipped)), value)
        in_rows = rows_in_place(value, found) if found.viewed else (0, 0)
        assert in_rows is not None
        (first, column), root = in_rows, found.root if found.viewed else value
        rows = self.maker.dim_of(count(rows_of(shape_of(root.type))))
        view = self._source(root, (rows, self._width(root)))
        at = [self._plus(self.offsets[0], first), self._plus(start, column)]
        tile = self.maker.load(self.maker.window(view, at, (self.block, extent), (True, True)))
        return self._widened(tile, value)

    def _source(self, value: Value, shape: Shape) -> Value:
        """A tensor is one parameter, however often it is read."""
        if (value, shape) not in self.sources:
            self.sources[value, shape] = self.maker.view(value, shape)
        return self.sources[value, shape]

    def _right(self, value: Value, starts: tuple[Value, Value], extents: tuple[int, int]) -> tuple[Value, bool]:
        """A part of the right operand of a product, and whether it is transposed."""
        found, first = self._access(value)
        tile, flipped = self._tile(found, first, list(starts), extents, known=True)
        return self._widened(tile, value), flipped


__all__ = ["LoopKernel"]
