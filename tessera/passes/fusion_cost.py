"""What a kernel of a function costs, so that fusion can compare one kernel with two. The model, per row:

    bytes of the rows that it reads and writes
    + for each product, bytes of its right operand / rows of a program / L2_SHARE,
    or operations of its products of f32 / F32_OPERATIONS where these are more,
    or those of mma.sync / its rate: of f32 in parts, and of all others where it holds or walks over lines
    + for each iteration of a program that does, ITERATION_BYTES, and for each panel PANEL_BYTES / rows that a
    multiprocessor has at once
    + LAUNCH_BYTES

Rows go through memory once. A right operand is read by every program, from the L2 cache, which delivers L2_SHARE times
what memory does; so a kernel whose programs hold few rows, since lines must be whole, pays for its product. Products of
f32 have no tensor cores, and others in kernels that hold or walk over lines have few rows and no warpgroups: memory
waits for them; each of the three works while the others do. An iteration of a loop waits for its slices and for the
last warp, and a panel for what it loads, reduces and keeps besides: nothing but other blocks hides that. A launch takes
as long as LAUNCH_BYTES of each of NOMINAL_ROWS rows.
The number of rows of a call decides nothing: plans serve all of them. Sizes that decide are compiled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.errors import SourceError
from tessera.ir.core import Op, Value
from tessera.ir.dims import Size, evaluate, symbols
from tessera.ir.ops.tiles import format_of
from tessera.ir.products import SPLIT, SPLIT_PARTS
from tessera.ir.types import dtype_of, shape_of
from tessera.passes.graph_groups import columns_of, is_along, source_of

L2_SHARE = 4  # 5.5 TB/s and more of an A100's or H100's L2 cache, against 1.5 to 3 TB/s of its memory
F32_OPERATIONS = 16  # for each byte of memory: 67e12 a second and 3.35 TB/s of an H100, 19.5e12 and 2 TB/s of an A100
WALKED_OPERATIONS = 64  # the same of mma.sync with 16 or 32 rows: a fifth of what tensor cores of an H100 do, estimated
HELD_OPERATIONS = 160  # the same where a warp has several rows of instructions and all columns, estimated
NOMINAL_ROWS = 4096
LAUNCH_BYTES = 1536  # 2 us at 3 TB/s are 6 MB, a row's share of which this is
# What a multiprocessor's share of memory's bandwidth, 3 TB/s over 132, moves meanwhile: 0.4 us of a slice of a product
# that copies have brought ahead, and 2 us of a panel. A kernel of 24 slices and 44 panels, with 32 rows and two blocks
# of 4 warps, took 687 us for 32768 rows: 4 turns of 170 us, a sixth of it for products of f32.
ITERATION_BYTES, PANEL_BYTES = 9 << 10, 45 << 10
SLICE_DEPTH, SLICE_COLUMNS = 64, 128  # of operands that the tile compiler brings in slices

PRODUCT_ROWS = 256  # of a program that multiplies: more than the tile compiler computes at a time, so it may share them
MOST_PRODUCT_ROWS = 1024  # where there are very many
MULTIPROCESSORS = 132  # of an H100
WIDEST_RESIDENT = 256  # columns and depth of a right operand that the tile compiler keeps in shared memory
LEAST_SHARED_ROWS = 32  # of a program where there are few rows
LEAST_PRODUCT_ROWS = 16  # of an instruction
TILE_ELEMENTS = 4096  # of the widest tile of a program that does not multiply
WHOLE_ELEMENTS = 1 << 13  # of a line-wise tile of a program that multiplies: 64 registers of 128 threads
MOST_ROWS = 128  # of a program whose lines are whole


class Sizes:
    """The dims of a call. `fixed` collects those whose values a kernel is made for."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        self.dims = dims
        self.fixed: dict[str, int] = {}

    def fix(self, size: Size) -> int:
        """The value of a size, for code that is made for it."""
        found = self.decide(size)
        if found == 0:
            raise SourceError("TS301", f"the size {size} is 0, but a reduction or a product needs an element")
        return found

    def decide(self, size: Size) -> int:
        """The value of a size by which something is decided."""
        self.fixed.update({name: self.dims[name] for name in symbols(size)})
        return evaluate(size, self.dims)

    def guess(self, size: Size) -> int:
        """The value of a size, where only speed depends on it."""
        return evaluate(size, self.dims)


def count(shape: Sequence[Size]) -> Size:
    total: Size = 1
    for size in shape:
        total = total * size
    return total


def power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def whole_lines(ops: Sequence[Op]) -> list[Size]:
    """Columns of the lines that programs with a product hold whole: those that are reduced or scanned, and of left
    operands those that are computed from them or from another product; of f32 in parts they count twice.
    """
    lines: list[Size] = []
    hard: set[Value] = set()  # behind a product or something along a line, of which a part is no cheaper than all
    for op in ops:
        behind = any(source_of(value, hard) in hard for value in op.operands)
        if is_along(op):
            lines.append(columns_of(shape_of(op.operands[0].type)))
        if op.name == "matmul" and source_of(op.operands[0], hard) in hard:
            columns = columns_of(shape_of(op.operands[0].type))
            lines.append(2 * columns if format_of(op) == SPLIT else columns)
        if behind or is_along(op) or op.name == "matmul":
            hard.update(op.results)
    return lines


def program_rows(ops: Sequence[Op], widest: int, rows: Size, sizes: Sizes) -> int:
    """How many rows a program of a row group takes at most. `widest`: columns of its widest tensor."""
    found = power_of_two(sizes.guess(rows))
    if not any(op.name == "matmul" for op in ops):
        return max(1, min(found, MOST_ROWS, TILE_ELEMENTS // power_of_two(widest)))
    lines = [sizes.decide(columns) for columns in whole_lines(ops)]
    most = _rows_of_lines(lines) if lines else _product_rows(ops, sizes.guess(rows), sizes)
    return max(LEAST_PRODUCT_ROWS, min(found, most))


def _product_rows(ops: Sequence[Op], rows: int, sizes: Sizes) -> int:
    """How many of so many rows a program with products takes, whose lines may be cut.

    Right operands that stay in shared memory want many rows, and every multiprocessor a program; of wider ones the tile
    compiler gives columns programs of their own, however many rows there are.
    """
    shapes = [shape_of(op.operands[1].type)[-2:] for op in ops if op.name == "matmul"]
    share = power_of_two(rows // MULTIPROCESSORS + 1) // 2  # the power of two below
    if share < PRODUCT_ROWS and max(sizes.decide(size) for shape in shapes for size in shape) <= WIDEST_RESIDENT:
        return max(LEAST_SHARED_ROWS, min(MOST_ROWS, share))
    return max(PRODUCT_ROWS, min(MOST_PRODUCT_ROWS, share // 2))


def why_no_loop(products: Sequence[Op], sizes: Sizes) -> str | None:
    """Why products are not for one kernel although their rows are, as a clause, or None.

    Those of one shape are iterations of a loop, whose operands stream through a ring; those of different ones, one
    after the other, where right operands stay in shared memory.
    """
    operands = [shape_of(op.operands[1].type)[-2:] for op in products]
    shapes = list(dict.fromkeys((sizes.decide(depth), sizes.decide(columns)) for depth, columns in operands))
    if len(shapes) == 1 or max(max(shape) for shape in shapes) <= WIDEST_RESIDENT:
        return None
    (depth, columns), (other_depth, other_columns) = shapes[:2]
    return (
        f"products by [{depth}, {columns}] and by [{other_depth}, {other_columns}] are no iterations of one loop, and "
        f"a right operand of more than {WIDEST_RESIDENT} rows or columns streams through shared memory"
    )


def nominal_rows(ops: Sequence[Op], sizes: Sizes) -> int:
    """Rows of a program where there are many."""
    lines = [sizes.decide(columns) for columns in whole_lines(ops)]
    return _rows_of_lines(lines) if lines else PRODUCT_ROWS


def _rows_of_lines(lines: Sequence[int]) -> int:
    return max(LEAST_PRODUCT_ROWS, min(MOST_ROWS, WHOLE_ELEMENTS // power_of_two(max(lines))))


@dataclass(frozen=True)
class Programs:
    """What decides of the programs of a kernel besides its bytes: `rows` of one, `blocks` that a multiprocessor holds,
    iterations of its loops over products, and panels that it walks over.
    """

    rows: int
    blocks: int = 1
    iterations: int = 0
    panels: int = 0

    @property
    def waits(self) -> int:
        """Bytes a row that could move during its iterations."""
        return (ITERATION_BYTES * self.iterations + PANEL_BYTES * self.panels) // (self.rows * self.blocks)

    @property
    def operations(self) -> int:
        """Those of products that tensor cores do while memory moves a byte."""
        return WALKED_OPERATIONS if self.panels else HELD_OPERATIONS

    def cost(self, weights: int) -> int:
        """Bytes a row, besides those of rows, where right operands have `weights` bytes."""
        return weights // (self.rows * L2_SHARE) + self.waits


def weight_bytes(product: Op, sizes: Sizes) -> int:
    """Bytes of the right operand of a product."""
    right = product.operands[1]
    depth, columns = (sizes.decide(size) for size in shape_of(right.type)[-2:])
    return depth * columns * dtype_of(right.type).bytes


def whole_programs(ops: Sequence[Op], sizes: Sizes) -> Programs:
    """Programs with a line behind a product that a warp holds: the tile compiler cuts products into slices."""
    iterations = 0
    for op in ops:
        if op.name == "matmul":
            depth, columns = (sizes.decide(size) for size in shape_of(op.operands[1].type)[-2:])
            iterations += -(-depth // SLICE_DEPTH) * -(-columns // SLICE_COLUMNS)
    return Programs(nominal_rows(ops, sizes), 2, iterations)


def row_cost(
    ops: Sequence[Op],
    read: Sequence[Value],
    stored: Sequence[Value],
    sizes: Sizes,
    programs: Programs | None = None,
) -> int:
    """The cost of a row group by the model of this module, in bytes per row. `read`, `stored`: its tensors of rows;
    `programs`: those of a kernel that holds or walks over lines.
    """
    moved = 0
    for value in (*read, *stored):
        moved += sizes.decide(columns_of(shape_of(value.type))) * dtype_of(value.type).bytes
    rows = programs.rows if programs is not None else nominal_rows(ops, sizes)
    scalar = sync = 0  # operations of f32 units and of mma.sync
    for op in ops:
        if op.name == "matmul":
            weights = weight_bytes(op, sizes)
            moved += weights // (rows * L2_SHARE)
            each = 2 * weights // dtype_of(op.operands[1].type).bytes
            if format_of(op) == "f32":
                scalar += each
            elif format_of(op) == SPLIT:
                sync += SPLIT_PARTS * each
            elif programs is not None:
                sync += each
    rate = programs.operations if programs is not None else HELD_OPERATIONS
    busy = max(moved, scalar // F32_OPERATIONS, sync // rate)
    return LAUNCH_BYTES + busy + (programs.waits if programs is not None else 0)


__all__ = [
    "LAUNCH_BYTES", "L2_SHARE", "NOMINAL_ROWS", "Programs", "Sizes", "count", "power_of_two", "program_rows",
    "row_cost", "weight_bytes", "whole_lines", "whole_programs",
]  # fmt: skip
