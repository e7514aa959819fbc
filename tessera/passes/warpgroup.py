"""Products that warpgroups compute: four warps each, 64 rows at a time, right operand in shared memory.

A product for which the schedule asks for wgmma and whose operands it cannot take is computed by mma.sync.
"""

from __future__ import annotations

from math import prod

from tessera.ir.core import Op, Value
from tessera.ir.layout import shared_layout
from tessera.ir.ops.control import constant_value
from tessera.ir.types import dtype_of, int_shape
from tessera.target.matrix_descriptors import Role, descriptor_mismatch
from tessera.target.schedule import Schedule
from tessera.target.wgmma import MOST_IN_LINE, WGMMA_INSTRUCTIONS, WGMMA_ROWS, WGMMA_WARPS

ROW_STEP, COLUMN_STEP = 8, 64  # what a window of a buffer must begin at multiples of


def by_warpgroups(product: Op, schedule: Schedule) -> bool:
    """Whether warpgroups compute a product. They share out its rows, and no rows are left over."""
    return schedule.family == "wgmma" and why_not(product, schedule.warps) is None


def why_not(product: Op, warps: int) -> str | None:
    """Why warpgroups cannot compute a product, in one sentence; None when they can."""
    (m, n), depth = int_shape(product.result.type), depth_of(product)
    dtypes = {dtype_of(value.type).name for value in product.operands[:2]}
    instruction = WGMMA_INSTRUCTIONS.get(dtypes.pop())
    if dtypes or instruction is None or not instruction.transposes:
        return "it multiplies operands that they do not take"
    step = WGMMA_ROWS // WGMMA_WARPS * warps
    if warps % WGMMA_WARPS or m % step:
        return f"its {m} rows are not shared out by {warps} warps, {WGMMA_WARPS} at a time with {WGMMA_ROWS} rows"
    columns = instruction.columns(n)
    if not columns or depth % instruction.k:
        return f"there are no instructions for its {n} columns or its depth of {depth}"
    if m // step * (n // columns) * (depth // instruction.k) > MOST_IN_LINE:
        return f"it takes more than {MOST_IN_LINE} instructions in a straight line"
    if not all(map(_begins_well, product.operands[:2])):
        return (
            f"its operands are parts of buffers that begin at no multiple of {ROW_STEP} rows and {COLUMN_STEP} columns"
        )
    return _no_descriptor(product, "a", 0) or _no_descriptor(product, "b", columns)


def _no_descriptor(product: Op, role: Role, columns: int) -> str | None:
    """Why wgmma cannot read an operand from the buffer that it is read from, or from one of its own, as `why_not`;
    `columns` of one instruction for b.
    """
    value, flipped = product.operands["ab".index(role)], product.attributes[f"transpose_{role}"]
    read = value.defining_op
    lies_in = read.operands[0] if read is not None and read.name == "read" else value
    dtype, (*leading, width) = dtype_of(value.type), int_shape(lies_in.type)
    layout = shared_layout(prod(leading), width, dtype.bytes)
    return descriptor_mismatch(layout, role, flipped, WGMMA_INSTRUCTIONS[dtype.name], columns)


def depth_of(product: Op) -> int:
    return int_shape(product.operands[0].type)[0 if product.attributes["transpose_a"] else 1]


def _begins_well(operand: Value) -> bool:
    """Whether a descriptor can say where an operand begins, if it is a part of a buffer."""
    read = operand.defining_op
    if read is None or read.name != "read" or len(read.operands) == 1:
        return True
    row, column = map(constant_value, read.operands[1:])
    return row is not None and column is not None and row % ROW_STEP == 0 and column % COLUMN_STEP == 0
