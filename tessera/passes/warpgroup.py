"""Products that warpgroups compute: four warps each, 64 rows at a time, right operand in shared memory.

A product for which the schedule asks for wgmma and whose operands it cannot take is computed by mma.sync.
"""

from __future__ import annotations

from tessera.ir.core import Op, Value
from tessera.ir.ops.control import constant_value
from tessera.ir.types import dtype_of, int_shape
from tessera.target.schedule import Schedule
from tessera.target.warpgroups import COLUMN_STEP as COLUMNS
from tessera.target.warpgroups import GROUP_ROWS, GROUP_WARPS, MOST_STEPS, instruction_columns

DEPTH = 16  # of one instruction, in elements of 16 bits
ROW_STEP, COLUMN_STEP = 8, 64  # what a window of a buffer must begin at multiples of


def by_warpgroups(product: Op, schedule: Schedule) -> bool:
    """Whether warpgroups compute a product. They share out its rows, and no rows are left over."""
    return schedule.family == "wgmma" and why_not(product, schedule.warps) is None


def why_not(product: Op, warps: int) -> str | None:
    """Why warpgroups cannot compute a product, in one sentence; None when they can."""
    (m, n), depth = int_shape(product.result.type), depth_of(product)
    dtypes = {dtype_of(value.type).name for value in product.operands[:2]}
    if dtypes not in ({"bf16"}, {"f16"}):
        return f"it multiplies {' by '.join(sorted(dtypes))}"
    if warps % GROUP_WARPS or m % (GROUP_ROWS // GROUP_WARPS * warps):
        return f"its {m} rows are not shared out by {warps} warps, {GROUP_WARPS} at a time with {GROUP_ROWS} rows"
    columns = COLUMNS if product.attributes["transpose_b"] else 2 * COLUMNS
    if n % columns or depth % DEPTH:
        return f"its {n} columns are no multiple of {columns}, or its depth of {depth} none of {DEPTH}"
    if m // GROUP_ROWS * GROUP_WARPS // warps * (n // instruction_columns(n)) * (depth // DEPTH) > MOST_STEPS:
        return f"it takes more than {MOST_STEPS} instructions in a straight line"
    if not all(map(_begins_well, product.operands[:2])):
        return f"its operands are parts of buffers that begin at no multiple of {ROW_STEP} rows and {COLUMN_STEP} columns"
    return None


def depth_of(product: Op) -> int:
    return int_shape(product.operands[0].type)[0 if product.attributes["transpose_a"] else 1]


def _begins_well(operand: Value) -> bool:
    """Whether a descriptor can say where an operand begins, if it is a part of a buffer."""
    read = operand.defining_op
    if read is None or read.name != "read" or len(read.operands) == 1:
        return True
    row, column = map(constant_value, read.operands[1:])
    return row is not None and column is not None and row % ROW_STEP == 0 and column % COLUMN_STEP == 0
