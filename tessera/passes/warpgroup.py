"""Products that warpgroups compute: four warps each, 64 rows at a time, right operand in shared memory.

A product for which the schedule asks for wgmma and whose operands it cannot take is computed by mma.sync.
"""

from __future__ import annotations

from tessera.ir.core import Op
from tessera.ir.types import dtype_of, int_shape
from tessera.target.schedule import Schedule

WARPGROUP = 4  # warps
ROWS = 16  # of a product that one warp holds of each instruction
COLUMNS = 8  # that a product is a multiple of
MOST_COLUMNS = 256  # of one instruction


def by_warpgroups(product: Op, schedule: Schedule) -> bool:
    """Whether warpgroups compute a product. They share out its rows, and no rows are left over."""
    return schedule.family == "wgmma" and why_not(product, schedule.warps) is None


def why_not(product: Op, warps: int) -> str | None:
    """Why warpgroups cannot compute a product, in one sentence; None when they can."""
    (m, n), depth = int_shape(product.result.type), depth_of(product)
    dtypes = {dtype_of(value.type).name for value in product.operands[:2]}
    if dtypes not in ({"bf16"}, {"f16"}):
        return f"it multiplies {' by '.join(sorted(dtypes))}"
    if warps % WARPGROUP or m % (ROWS * warps):
        return f"its {m} rows are not shared out by {warps} warps, four at a time with 64 rows"
    if n % COLUMNS or depth % ROWS:
        return f"its {n} columns are no multiple of {COLUMNS}, or its depth of {depth} none of {ROWS}"
    return None


def depth_of(product: Op) -> int:
    return int_shape(product.operands[0].type)[0 if product.attributes["transpose_a"] else 1]
