"""wgmma as data: how its operands lie in shared memory, and how many columns one instruction has.

Source: "Asynchronous warpgroup level matrix instructions" of the PTX ISA, shared memory layout and matrix descriptor. The
128-byte swizzle was checked on an H100 with both operands in both orders; the narrower ones follow the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.ir.layout import SharedLayout

GROUP_WARPS = 4
GROUP_ROWS = 64  # of a product that a warpgroup computes at once
STEP_BYTES = 32  # of a row along k that one instruction takes: 16 elements of 16 bits, 32 of 8
MOST_COLUMNS, COLUMN_STEP = 256, 8  # of one instruction
MOST_STEPS = 32  # instructions in one straight line: the time of ptxas explodes beyond
PATTERN_ROWS = 8  # after which the chunks of a swizzled row lie as before


@dataclass(frozen=True)
class Descriptor:
    """The distances that a matrix descriptor names, in bytes, and its swizzle.

    `stride`: between groups of 8 rows of the buffer. `leading`: between panels of columns, where rows run across k; the
    hardware ignores it otherwise.
    """

    leading: int
    stride: int
    swizzle: int


def descriptor_of(layout: SharedLayout, across: bool) -> Descriptor:
    """`across`: whether the rows of the buffer run across k. Raises ValueError for a layout that has none."""
    reason = why_no_descriptor(layout)
    if reason:
        raise ValueError(reason)
    return Descriptor(layout.panel_stride if across else 16, PATTERN_ROWS * layout.pitch, layout.pitch)


def why_no_descriptor(layout: SharedLayout) -> str | None:
    """Why no descriptor says how a buffer lies, as a clause; None where one does."""
    if not layout.is_permuted:
        return f"rows of {layout.pitch} bytes are not swizzled"
    if layout.rows % PATTERN_ROWS:
        return f"{layout.rows} rows are not whole groups of {PATTERN_ROWS}"
    return None


def instruction_columns(columns: int) -> int:
    """The columns of one instruction: the most that divide a product of so many."""
    return next(n for n in range(min(columns, MOST_COLUMNS), 0, -1) if columns % n == 0 and n % COLUMN_STEP == 0)
