"""The kernel of a row group whose lines are walked over: panels of columns, in loops, with what is kept in buffers.

`graph_walks` says which walks there are. A program has `block` rows. Where a panel's columns do not divide a line, the
rest comes after the loop, so that every reduction sees the elements of a line and no others. Products add along their
depth in loops, too. Exact: every element is computed by the same ops, every sum in the order that defines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from tessera.dtypes import i64
from tessera.ir.core import Op, Value
from tessera.ir.numeric import BLOCK
from tessera.ir.types import ScalarType, dtype_of
from tessera.passes.fusion_cost import LEAST_PRODUCT_ROWS, Sizes, count, power_of_two
from tessera.passes.graph_groups import Group
from tessera.passes.graph_kernels import KernelMaker
from tessera.passes.graph_walks import DEPTHS, IDENTITIES, PANEL, Walk, Walks, is_column, walked_rows
from tessera.passes.loop_kernels import LoopKernel
from tessera.passes.tree_sums import waiting_sums


@dataclass
class Cut:
    """The columns [start, start + extent) of a line, and what is made of them. `walk`: in which they are computed,
    None where all that is kept is there.
    """

    start: Value
    extent: int
    walk: Walk | None = None
    tiles: dict[Value, Value] = field(default_factory=dict)


class LineKernel(LoopKernel):
    """`walks`: those of the group."""

    def __init__(self, group: Group, walks: Walks, sizes: Sizes, skipped: frozenset[Op]) -> None:
        rows = power_of_two(sizes.guess(count(group.rows)))
        self.start(group, max(LEAST_PRODUCT_ROWS, min(rows, walked_rows(walks, sizes))), sizes, skipped)
        self.walks = walks
        self.views: dict[Value, Value] = {}
        self.buffers: dict[Value, Value] = {}
        self.filled: set[Value] = set()  # of what is kept, that of walks so far
        self._before_walks()
        for step in walks.steps:
            if isinstance(step, Walk):
                self._walk(step)
            else:
                self._make(step)
        for value in group.outputs:
            if is_column(value):
                self._need(value)
                self.maker.store(self._window(self.views[value], value), self.made[value])

    # -- walks

    def _before_walks(self) -> None:
        """Outputs and buffers, numbers, and columns in memory: they are the same in all panels."""
        for op in self.group.ops:
            for value in op.operands:
                if isinstance(value.type, ScalarType) or is_column(value) and self._in_memory(value):
                    self._need(value)
        for value in self.group.outputs:
            self.views[value] = self.maker.view(value, self._rows_shape(value), "out")
        for value in self.walks.kept:
            self.buffers[value] = self._buffer(value)

    def _walk(self, walk: Walk) -> None:
        lines = [*walk.kept, *walk.stored, *(op.operands[0] for op in walk.reduced)]
        (width,) = {self._width(value) for value in lines}
        step = BLOCK if any(op.name == "reduce_sum" for op in walk.reduced) else PANEL
        states = [_states(op, width) for op in walk.reduced]
        starts = [0, *accumulate(states)]
        identities = [IDENTITIES[op.name] for op, n in zip(walk.reduced, states, strict=True) for _ in range(n)]
        initial = [self._filled(1, number) for number in identities]

        def panel(start: Value, extent: int, found: Sequence[Value]) -> list[Value]:
            cut = Cut(start, extent, walk)
            for value in walk.kept:
                self.maker.builder.op("write", [self.buffers[value], self._part(value, cut), self.zero, start])
            for value in walk.stored:
                shape = (self.block, extent)
                view = self.maker.window(self.views[value], [self.offsets[0], start], shape, (True, True))
                self.maker.store(view, self._part(value, cut))
            known = [found[first:last] for first, last in pairwise(starts)]
            return [v for op, states in zip(walk.reduced, known, strict=True) for v in self._taken_in(op, states, cut)]

        found = self._over(width, step, initial, panel)
        for op, (first, last) in zip(walk.reduced, pairwise(starts), strict=True):
            self.made[op.result] = self._reduced(op, found[first:last], width)
        self.filled.update(walk.kept)

    def _taken_in(self, op: Op, known: Sequence[Value], cut: Cut) -> list[Value]:
        """What a row is reduced to so far, with one more panel; of a sum, what waits for its neighbour."""
        line, builder = self._part(op.operands[0], cut), self.maker.builder.at(op)
        part = builder.value(op.name, line, axis=1, hint=op.result.name)
        if op.name != "reduce_sum":
            combine = {"reduce_max": "max", "reduce_min": "min"}[op.name]
            return [builder.value(combine, known[0], part, hint=op.result.name)]
        return waiting_sums(builder, known, part, cut.start, BLOCK, op.result.name)

    def _reduced(self, op: Op, states: Sequence[Value], width: int) -> Value:
        """What a row is reduced to in all panels: a sum still adds up what waits, the last blocks first."""
        blocks, builder = -(-width // BLOCK), self.maker.builder.at(op)
        waiting = [state for level, state in enumerate(states) if op.name != "reduce_sum" or blocks >> level & 1]
        total = waiting[0]
        for state in waiting[1:]:
            total = builder.value("add", state, total, hint=op.result.name)
        return total

    # -- panels

    def _part(self, value: Value, cut: Cut) -> Value:
        """The columns of a cut of a line; all of a column, or of a number."""
        if isinstance(value.type, ScalarType) or is_column(value):
            self._need(value)
            return self.made[value]
        if value not in cut.tiles:
            cut.tiles[value] = self._panel(value, cut)
        return cut.tiles[value]

    def _panel(self, value: Value, cut: Cut) -> Value:
        op = value.defining_op
        if value in self.filled:
            shape = (self.block, cut.extent)
            return self.maker.builder.value("read", self.buffers[value], self.zero, cut.start, extents=shape)
        if op is None or self._in_memory(value):
            return self._loaded(value, cut.start, cut.extent)
        if op.name == "matmul":
            assert cut.walk is not None and cut.walk.product is op, "no product is computed twice"
            return self._product(op, cut)
        operands = [self._part(operand, cut) for operand in op.operands]
        if op in self.skipped or self._keeps(op, operands):
            return operands[0]
        builder, shape = self.maker.builder.at(op), (1 if self._one_row(value) else self.block, cut.extent)
        if op.name == "iota":
            numbers = builder.value("iota", shape=shape, axis=1, dtype=i64)
            numbers = builder.value("add", numbers, cut.start)
            return builder.value("cast", numbers, hint=op.result.name, dtype=op.attributes["dtype"])
        changed = {"shape": shape} if op.name in ("broadcast", "full") else {}
        return builder.value(op.name, *operands, hint=op.result.name, **{**op.attributes, **changed})

    def _keeps(self, op: Op, operands: Sequence[Value]) -> bool:
        return op.name == "cast" and op.attributes["implicit"] and dtype_of(operands[0].type) == op.attributes["dtype"]

    # -- products

    def _product(self, op: Op, cut: Cut) -> Value:
        """A panel of a product, added up along its depth."""
        left, precision = op.operands[0], op.attributes["precision"]
        step = DEPTHS[dtype_of(left.type).bytes]

        def block(start: Value, extent: int, found: Sequence[Value]) -> list[Value]:
            tile = self._part(left, Cut(start, extent))
            matrix, flipped = self._right(op.operands[1], (start, cut.start), (extent, cut.extent))
            builder, name = self.maker.builder.at(op), op.result.name
            return [
                builder.value("mma", tile, matrix, *found, hint=name, precision=precision, transpose_b=flipped)
            ]  # fmt: skip

        (total,) = self._over(self._width(left), step, [self._filled(cut.extent, 0.0)], block)
        return total


def _states(op: Op, width: int) -> int:
    """How many columns a walk carries for a reduction of lines of `width`."""
    return (-(-width // BLOCK)).bit_length() if op.name == "reduce_sum" else 1


def line_kernel(group: Group, walks: Walks, sizes: Sizes, skipped: frozenset[Op]) -> KernelMaker:
    """`skipped`: implicit casts whose operand serves in the place of their result; none of a value that is kept."""
    return LineKernel(group, walks, sizes, skipped).maker


__all__ = ["line_kernel"]
