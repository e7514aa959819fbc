"""What a kernel of a function costs, so that fusion can compare one kernel with two. The model, per row:

    bytes of the rows that it reads and writes
    + for each product, bytes of its right operand / rows of a program / L2_SHARE,
    or operations of its products of f32 / F32_OPERATIONS where these are more,
    or those of its other products / WALKED_OPERATIONS where it walks over lines and these are more
    + LAUNCH_BYTES

Rows go through memory once. A right operand is read by every program, from the L2 cache, which delivers L2_SHARE times
what memory does; so a kernel whose programs hold few rows, since lines must be whole, pays for its product. Products of
f32 have no tensor cores, and others in kernels that walk over lines have few rows and no warpgroups: memory waits for
them; each of the three works while the others do. A launch takes as long as LAUNCH_BYTES of each of NOMINAL_ROWS rows.
The number of rows of a call decides nothing: plans serve all of them. Sizes that decide are compiled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera.errors import SourceError
from tessera.ir.core import Op, Value
from tessera.ir.dims import Size, evaluate, symbols
from tessera.ir.ops.tiles import format_of
from tessera.ir.types import dtype_of, shape_of
from tessera.passes.graph_groups import columns_of, is_along, source_of

L2_SHARE = 4  # 5.5 TB/s and more of an A100's or H100's L2 cache, against 1.5 to 3 TB/s of its memory
F32_OPERATIONS = 16  # for each byte of memory: 67e12 a second and 3.35 TB/s of an H100, 19.5e12 and 2 TB/s of an A100
WALKED_OPERATIONS = 64  # the same of mma.sync with 16 or 32 rows: a fifth of what tensor cores of an H100 do, estimated
NOMINAL_ROWS = 4096
LAUNCH_BYTES = 1536  # 2 us at 3 TB/s are 6 MB, a row's share of which this is

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
    operands those that are computed from them or from another product.
    """
    lines: list[Size] = []
    hard: set[Value] = set()  # behind a product or something along a line, of which a part is no cheaper than all
    for op in ops:
        behind = any(source_of(value, hard) in hard for value in op.operands)
        if is_along(op):
            lines.append(columns_of(shape_of(op.operands[0].type)))
        if op.name == "matmul" and source_of(op.operands[0], hard) in hard:
            lines.append(columns_of(shape_of(op.operands[0].type)))
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


def nominal_rows(ops: Sequence[Op], sizes: Sizes) -> int:
    """Rows of a program where there are many."""
    lines = [sizes.decide(columns) for columns in whole_lines(ops)]
    return _rows_of_lines(lines) if lines else PRODUCT_ROWS


def _rows_of_lines(lines: Sequence[int]) -> int:
    return max(LEAST_PRODUCT_ROWS, min(MOST_ROWS, WHOLE_ELEMENTS // power_of_two(max(lines))))


def row_cost(
    ops: Sequence[Op], read: Sequence[Value], stored: Sequence[Value], sizes: Sizes, rows: int | None = None
) -> int:
    """The cost of a row group by the model of this module, in bytes per row. `read`, `stored`: its tensors of rows;
    `rows`: of a program that walks over lines.
    """
    moved, walks = 0, rows is not None
    for value in (*read, *stored):
        moved += sizes.decide(columns_of(shape_of(value.type))) * dtype_of(value.type).bytes
    rows = rows or nominal_rows(ops, sizes)
    operations = {True: 0, False: 0}  # by whether they are of f32
    for op in ops:
        if op.name == "matmul":
            depth, columns = (sizes.decide(size) for size in shape_of(op.operands[1].type)[-2:])
            moved += depth * columns * dtype_of(op.operands[1].type).bytes // (rows * L2_SHARE)
            operations[format_of(op) == "f32"] += 2 * depth * columns
    others = operations[False] // WALKED_OPERATIONS if walks else 0
    return LAUNCH_BYTES + max(moved, operations[True] // F32_OPERATIONS, others)


__all__ = [
    "LAUNCH_BYTES", "L2_SHARE", "NOMINAL_ROWS", "Sizes", "count", "power_of_two", "program_rows", "row_cost",
    "whole_lines",
]  # fmt: skip
