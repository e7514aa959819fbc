"""Products that warpgroups compute: four warps each, 64 rows at a time, right operand in shared memory.

A product for which the schedule asks for wgmma and whose operands it cannot take is computed by mma.sync. One of fp8
operands is another product there, so `choose_formats` decides, and says so in its format.
"""

from __future__ import annotations

from math import prod

from tessera.ir.core import Op, Value
from tessera.ir.layout import shared_layout
from tessera.ir.ops.control import constant_value
from tessera.ir.ops.tiles import format_of
from tessera.ir.products import FP8, is_fp8
from tessera.ir.types import dtype_of, int_shape
from tessera.target.arch import ARCHS
from tessera.target.matrix_descriptors import Role, descriptor_mismatch
from tessera.target.role_registers import register_limit
from tessera.target.schedule import WARPGROUP_LANE, Schedule
from tessera.target.wgmma import (
    MOST_IN_LINE,
    THREE_WARPGROUPS,
    WGMMA_INSTRUCTIONS,
    WGMMA_ROWS,
    WGMMA_WARPS,
    WgmmaInstruction,
)

ROW_STEP, COLUMN_STEP_BYTES = 8, 128  # what a window of a buffer must begin at multiples of
TEAMS = 2  # of consumers that take programs in turn
WARPGROUPS = (WGMMA_WARPS, 2 * WGMMA_WARPS, THREE_WARPGROUPS)  # what an author is told of


def by_warpgroups(product: Op, schedule: Schedule) -> bool:
    """Whether warpgroups compute a product. They share out its rows, and no rows are left over."""
    if schedule.family != "wgmma" or takes_fp8(product) and format_of(product) != FP8:
        return False
    return why_not(product, schedule) is None


def takes_fp8(product: Op) -> bool:
    """Whether both operands are fp8."""
    return is_fp8(*(dtype_of(value.type) for value in product.operands[:2]))


def columns_of(product: Op, schedule: Schedule) -> int:
    """The columns of each instruction of a product that warpgroups compute; 0 where there is none for its columns.

    The sums of one must fit what a thread starts with, beside a producer and another team where the schedule asks.
    """
    instruction = _instruction(product)
    warps = schedule.warps * (TEAMS if schedule.pingpong else 1) + (WGMMA_WARPS if schedule.copies == "tma" else 0)
    registers = register_limit(ARCHS[WARPGROUP_LANE], 32 * warps, schedule.blocks)
    return 0 if instruction is None else instruction.columns(int_shape(product.result.type)[1], registers)


def why_not(product: Op, schedule: Schedule) -> str | None:
    """Why warpgroups cannot compute a product, in one sentence; None when they can."""
    (m, n), depth, warps = int_shape(product.result.type), depth_of(product), schedule.warps
    instruction = _instruction(product)
    if instruction is None:
        return "it multiplies operands that they do not take"
    step = WGMMA_ROWS // WGMMA_WARPS * warps
    if warps % WGMMA_WARPS or m % step:
        shared = f"its {m} rows are not shared out by {warps} warps, {WGMMA_WARPS} at a time with {WGMMA_ROWS} rows"
        fits = [count for count in WARPGROUPS if m % (WGMMA_ROWS // WGMMA_WARPS * count) == 0]
        return f"{shared}; {' or '.join(map(str, fits))} warps would" if fits else shared
    columns = columns_of(product, schedule)
    if not columns or depth % instruction.k:
        return f"there are no instructions for its {n} columns or its depth of {depth}"
    if m // step * (n // columns) * (depth // instruction.k) > MOST_IN_LINE:
        return f"it takes more than {MOST_IN_LINE} instructions in a straight line"
    if not all(map(_begins_well, product.operands[:2])):
        step = COLUMN_STEP_BYTES // instruction.itemsize
        return f"its operands are parts of buffers that begin at no multiple of {ROW_STEP} rows and {step} columns"
    return _no_descriptor(product, "a", instruction, 0) or _no_descriptor(product, "b", instruction, columns)


def _instruction(product: Op) -> WgmmaInstruction | None:
    a, b = (dtype_of(value.type).name for value in product.operands[:2])
    return WGMMA_INSTRUCTIONS.get((a, b))


def _no_descriptor(product: Op, role: Role, instruction: WgmmaInstruction, columns: int) -> str | None:
    """Why wgmma cannot read an operand from the buffer that it is read from, or from one of its own, as `why_not`;
    `columns` of one instruction for b.
    """
    value, flipped = product.operands["ab".index(role)], product.attributes[f"transpose_{role}"]
    read = value.defining_op
    lies_in = read.operands[0] if read is not None and read.name == "read" else value
    *leading, width = int_shape(lies_in.type)
    layout = shared_layout(prod(leading), width, instruction.itemsize)
    return descriptor_mismatch(layout, role, flipped, instruction, columns)


def depth_of(product: Op) -> int:
    return int_shape(product.operands[0].type)[0 if product.attributes["transpose_a"] else 1]


def _begins_well(operand: Value) -> bool:
    """Whether a descriptor can say where an operand begins, if it is a part of a buffer."""
    read = operand.defining_op
    if read is None or read.name != "read" or len(read.operands) == 1:
        return True
    row, column = map(constant_value, read.operands[1:])
    step = COLUMN_STEP_BYTES // dtype_of(operand.type).bytes
    return row is not None and column is not None and row % ROW_STEP == 0 and column % step == 0
