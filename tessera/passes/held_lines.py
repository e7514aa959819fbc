"""Which shape the programs of a row group have that hold their lines in registers: rows, warps, slices of products.

A line behind a product that is reduced, or multiplied once more, is best computed once and looked at where it is. Its
columns are shared by the warps of a program. Registers of a thread have room for the sums of a product, for lines that
live across one, and for as much again of what is computed from them; shared memory holds left operands that were
computed, lines in memory that are needed on both sides of a product, and slices of operands on their way. Of the shapes
that fit, the cost model of `fusion_cost` takes the cheapest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tessera.ir.core import Op, Value
from tessera.ir.ops.tiles import format_of
from tessera.ir.types import TileType, dtype_of, shape_of
from tessera.passes.fusion_cost import LEAST_PRODUCT_ROWS, Programs, Sizes, weight_bytes
from tessera.passes.graph_groups import (
    columns_of,
    is_alias,
    is_batched,
    is_lazy,
    is_made_again,
    is_view,
    is_widening,
    one_row,
)

LEAST_LINE, WIDEST_LINE = 256, 1024  # columns: a warp has shorter lines to itself, and of longer ones too few fit
MOST_PRODUCTS = 4  # each is code of its own, and a loop
SHARED_BYTES = 90 << 10  # of a block: the least that one has is 99 KB, and reductions want some
SLICE_BYTES = 20 << 10  # of a slice of the operands of a product, unless the shortest one has more
DEPTHS = (64, 32, 16)  # of a slice: whole k-blocks
STAGES = (3, 2, 1)
REGISTERS = 1 << 16  # of a multiprocessor
MOST_REGISTERS = 255  # of a thread
SHAPES = ((64, 16, 1), (32, 16, 1), (16, 16, 1), (32, 8, 2), (16, 8, 2), (32, 4, 2), (16, 4, 2))  # rows, warps, blocks


@dataclass(frozen=True)
class Held:
    """`rows` of a program of `warps`; `depths` of the slices of each product, in order, of which any multiprocessor
    holds `stages`, and one with more shared memory more of them; `blocks` that it is to hold at once.
    """

    rows: int
    warps: int
    blocks: int
    stages: int
    depths: tuple[int, ...]
    iterations: int  # of all loops

    @property
    def programs(self) -> Programs:
        return Programs(self.rows, self.blocks, self.iterations if self.stages > 1 else 2 * self.iterations)


def held_shape(ops: Sequence[Op], line: int, sizes: Sizes) -> Held | None:
    """The shape of the programs of a row group that is computed so, None of another one. `line`: columns of its widest
    line behind a product, 0 where there is none.
    """
    products = [op for op in ops if op.name == "matmul"]
    if not LEAST_LINE <= line <= WIDEST_LINE or len(products) > MOST_PRODUCTS or any(map(is_batched, products)):
        return None
    if any(format_of(op) == "f32" for op in products):
        return None
    widths = [sizes.decide(columns_of(shape_of(op.result.type))) for op in products]
    if max(widths) > WIDEST_LINE or min(widths) == 1:
        return None
    lives = _Lives(ops, sizes)
    fitting = [shape for each in SHAPES if (shape := _fitted(*each, products, max(widths), lives, sizes)) is not None]
    weights = sum(weight_bytes(op, sizes) for op in products)
    return min(fitting, key=lambda shape: shape.programs.cost(weights), default=None)


def _fitted(
    rows: int, warps: int, blocks: int, products: Sequence[Op], widest: int, lives: _Lives, sizes: Sizes
) -> Held | None:
    """The shape of so many rows, warps and blocks with the slices and stages that fit; None where none do."""
    rows_of_warps = min(rows // LEAST_PRODUCT_ROWS, warps)
    if widest * rows_of_warps < 32 * warps:  # a block of 32 columns is a warp's
        return None
    threads = 32 * warps
    registers = min(MOST_REGISTERS, REGISTERS // (threads * blocks))
    if 2 * rows * (widest + lives.across) > registers * threads:
        return None
    depths, slices, iterations = [], 0, 0
    for op in products:
        left, right = op.operands
        depth, columns = (sizes.decide(size) for size in shape_of(right.type)[-2:])
        padded = 8 * (warps // rows_of_warps) * (1 if columns < LEAST_LINE else 4)  # what its warps share out
        each = -(-columns // padded) * padded * dtype_of(right.type).bytes
        each += 0 if lives.computed(left) else rows * dtype_of(left.type).bytes
        step = next((step for step in DEPTHS if step * each <= SLICE_BYTES), DEPTHS[-1])
        depths.append(step)
        slices = max(slices, step * each)
        iterations += -(-depth // step)
    left_over = SHARED_BYTES - rows * lives.shared
    stages = next((stages for stages in STAGES if stages * slices <= left_over), None)
    return None if stages is None else Held(rows, warps, blocks, stages, tuple(depths), iterations)


class _Lives:
    """What lives across products: `across`, columns of lines in registers, and `shared`, bytes a row of buffers."""

    def __init__(self, ops: Sequence[Op], sizes: Sizes) -> None:
        self.inside = {op for op in ops if not is_lazy(op)}
        made = {result: phase for op, phase in _phases(ops) for result in op.results if op in self.inside}
        kept: dict[Value, None] = {}
        across: dict[Value, None] = {}
        for op, phase in _phases(ops):
            if op.name == "matmul" and self.computed(op.operands[0]):
                kept[narrowest(op.operands[0])] = None
            elif op in self.inside and op.name != "matmul":
                sources = _sources(op, self._in_memory)
                across.update((v, None) for v in sources if v in made and made[v] < phase and not _is_product(v))
        again = lines_read_again(ops, self._in_memory)
        columns = {value: sizes.decide(columns_of(shape_of(value.type))) for value in (*kept, *across, *again)}
        self.across = sum(columns[value] for value in across if columns[value] > 1)
        self.shared = sum(columns[value] * dtype_of(value.type).bytes for value in (*kept, *again))

    def computed(self, value: Value) -> bool:
        return not self._in_memory(narrowest(value))

    def _in_memory(self, value: Value) -> bool:
        op = value.defining_op
        return op is None or op not in self.inside and not is_made_again(op)


def _is_product(value: Value) -> bool:
    """Whether a value is the sums of a product, which are there anyway."""
    return value.defining_op is not None and value.defining_op.name == "matmul"


def narrowest(value: Value) -> Value:
    """What a value is cast from where that loses nothing."""
    while (op := value.defining_op) is not None and is_widening(op):
        value = op.operands[0]
    return value


def _phases(ops: Sequence[Op]) -> Iterator[tuple[Op, int]]:
    """Every op with the number of products up to it."""
    phase = 0
    for op in ops:
        phase += op.name == "matmul"
        yield op, phase


def _sources(op: Op, in_memory: Callable[[Value], bool]) -> list[Value]:
    """The tensors that an op needs, behind what is made again from them."""
    found, pending = [], list(op.operands)
    while pending:
        value = pending.pop()
        made = value.defining_op
        if not isinstance(value.type, TileType):
            continue
        if not in_memory(value) and made is not None and is_made_again(made):
            pending += made.operands
        else:
            found.append(value)
    return found


def lines_read_again(ops: Sequence[Op], in_memory: Callable[[Value], bool]) -> list[Value]:
    """The lines in memory, each all columns of a tensor, that are needed both before and behind a product."""
    phases: dict[Value, set[int]] = {}
    for op, phase in _phases(ops):
        if not is_lazy(op) and op.name != "matmul":
            for value in _sources(op, in_memory):
                if in_memory(value):
                    phases.setdefault(value, set()).add(phase)
    return [value for value, found in phases.items() if len(found) > 1 and _is_line(value)]


def _is_line(value: Value) -> bool:
    made, shape = value.defining_op, shape_of(value.type)
    moved = made is not None and (is_view(made) or is_alias(made))
    return not moved and not one_row(shape) and columns_of(shape) != 1


__all__ = ["Held", "held_shape", "lines_read_again", "narrowest"]
