"""The kernel of a row group whose programs hold whole lines in registers, spread over as many warps as that takes.

Every value is one tile of all columns, so reductions look at registers, and each product is computed once. What a
program reads along its rows is loaded again behind a product, rather than held during it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera.ir.core import Op, Value
from tessera.ir.types import ScalarType, dtype_of, int_shape
from tessera.passes.fusion_cost import Sizes
from tessera.passes.graph_groups import Group, is_lazy, is_made_again
from tessera.passes.graph_kernels import KernelMaker
from tessera.passes.graph_walks import is_column
from tessera.passes.held_lines import Held, lines_read_again, narrowest
from tessera.passes.loop_kernels import VECTOR, LoopKernel


class HeldKernel(LoopKernel):
    """`shape`: of its programs."""

    def __init__(self, group: Group, shape: Held, sizes: Sizes, skipped: frozenset[Op]) -> None:
        self.start(group, shape.rows, sizes, skipped)
        self.kept: dict[Value, Value] = {}  # buffers of computed left operands
        self.maker.pins = {"warps": shape.warps, "blocks": shape.blocks}
        self.depths = dict(zip(group.products, shape.depths, strict=True))
        self.copies: dict[Value, tuple[Value, Value | None]] = {}  # buffers of lines, and tokens that nobody waited for
        for value in lines_read_again(group.ops, self._in_memory):
            if self._width(value) % VECTOR == 0:
                self._copy(value)
        for op in group.ops:
            if not is_lazy(op):
                self._make(op)
        for value in group.outputs:
            self._need(value)
            self.maker.store(
                self._window(self.maker.view(value, self._rows_shape(value), "out"), value), self.made[value]
            )

    def _copy(self, value: Value) -> None:
        """Has a line in a buffer from the start, while products are computed."""
        buffer = self._buffer(value)
        token = self.maker.builder.value("copy_async", buffer, self._window(self._view(value), value))
        self.copies[value] = buffer, token

    def _need(self, value: Value) -> None:
        if value in self.made or value not in self.copies:
            super()._need(value)
            return
        buffer, token = self.copies[value]
        if token is not None:
            self.maker.builder.op("wait", [token])
            self.copies[value] = buffer, None
        self.made[value] = self.maker.builder.value("read", buffer, hint=value.name)

    def _make(self, op: Op) -> None:
        if op.name != "matmul":
            super()._make(op)
            return
        self.made[op.result] = self._product(op)
        for value in list(self.made):
            maker = value.defining_op
            again = maker is not None and maker in self.inside and is_made_again(maker)
            if not (isinstance(value.type, ScalarType) or is_column(value)) and (self._in_memory(value) or again):
                del self.made[value]

    def _product(self, op: Op) -> Value:
        left, right = op.operands
        self._keep(left)
        columns = self._width(op.result)

        def block(start: Value, extent: int, found: Sequence[Value]) -> list[Value]:
            tile = self._slice(left, start, extent)
            matrix, flipped = self._right(right, (start, self.zero), (extent, columns))
            builder = self.maker.builder.at(op)
            attributes = {"precision": op.attributes["precision"], "transpose_b": flipped}
            return [builder.value("mma", tile, matrix, *found, hint=op.result.name, **attributes)]

        depth = self._width(left)
        (total,) = self._over(depth, min(self.depths[op], depth), [self._filled(columns, 0.0)], block)
        return total

    def _keep(self, value: Value) -> None:
        """Has a left operand that is computed in a buffer."""
        value = narrowest(value)
        if self._in_memory(value) or value in self.kept:
            return
        self._need(value)
        self.kept[value] = self._buffer(value)
        tile = self.made[value]
        if int_shape(tile.type)[0] != self.block:
            tile = self.maker.builder.value("broadcast", tile, shape=(self.block, int_shape(tile.type)[1]))
        self.maker.builder.op("write", [self.kept[value], tile, self.zero, self.zero])

    def _slice(self, value: Value, start: Value, extent: int) -> Value:
        """The columns [start, start + extent) of a left operand."""
        narrow = narrowest(value)
        if narrow in self.kept:
            shape = (self.block, extent)
            tile = self.maker.builder.value("read", self.kept[narrow], self.zero, start, extents=shape)
        else:
            tile = self._loaded(narrow, start, extent)
        if dtype_of(tile.type) != dtype_of(value.type):
            tile = self.maker.builder.value("cast", tile, dtype=dtype_of(value.type), implicit=True)
        return tile


def held_kernel(group: Group, shape: Held, sizes: Sizes, skipped: frozenset[Op]) -> KernelMaker:
    """`skipped`: implicit casts whose operand serves in the place of their result."""
    return HeldKernel(group, shape, sizes, skipped).maker


__all__ = ["held_kernel"]
