"""The kinds of ops that functions are made of, as fusion sees them, and the groups that become kernels.

A *row group* computes, row by row, values whose axes but the last are the same: elementwise ops, reductions and scans
along the last axis, and matrix products with what feeds them and what follows. Some ops have no kernel at all: a
reshape is another name of its operand's memory, and what costs nothing to make again (constants, indices, wider dtypes,
rows and columns that are repeated, parts and orders of axes that a window describes) is made where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.ir.core import Op, Value
from tessera.ir.dims import Size
from tessera.ir.opdef import ELEMENTWISE, REDUCTION, SCAN
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import ScalarType, Shape, TileType, dtype_of, shape_of


@dataclass(eq=False)
class Group:
    """Ops of one kernel, in the order of the function, and the values that it stores.

    `rows`: the axes but the last of its values; `batched`: the second operand of a product has the leading axes, too.
    """

    ops: list[Op] = field(default_factory=list)
    rows: Shape = ()
    batched: bool = False
    outputs: list[Value] = field(default_factory=list)

    @property
    def products(self) -> list[Op]:
        return [op for op in self.ops if op.name == "matmul"]

    @property
    def results(self) -> set[Value]:
        return {result for op in self.ops for result in op.results}


def rows_of(shape: Shape) -> Shape:
    return shape[:-1]


def columns_of(shape: Shape) -> Size:
    return shape[-1] if shape else 1


def is_scalar_op(op: Op) -> bool:
    """Whether every kernel that needs the op's result computes it again: it has no elements."""
    return bool(op.results) and all(isinstance(result.type, ScalarType) for result in op.results)


def is_free(op: Op) -> bool:
    """Whether a row kernel makes the tensor out of nothing: a constant one, or an index along the last axis."""
    if op.name == "full":
        return True
    return op.name == "iota" and negative_axis(op, len(shape_of(op.result.type))) == -1


def is_widening(op: Op) -> bool:
    """Whether an op casts floats to wider ones: nothing is lost, and every kernel that needs the result casts again."""
    if op.name != "cast" or isinstance(op.result.type, ScalarType):
        return False
    narrow, wide = dtype_of(op.operands[0].type), op.attributes["dtype"]
    return narrow.is_float and wide.is_float and narrow.bits < wide.bits


def is_loaded(value: Value, used: Mapping[Value, list[Op]]) -> bool:
    """Whether something may load what a value was cast from: a product, and what looks at a part of its operand."""
    return any(
        user.name == "matmul" or is_view(user) or is_alias(user) or is_widening(user) and is_loaded(user.result, used)
        for user in used.get(value, [])
    )


def is_spread(op: Op) -> bool:
    """Whether an op repeats a column, or a row for all: every kernel that needs the result reads that instead."""
    return op.name == "broadcast" and _spreads_in_rows(op)


def is_view(op: Op) -> bool:
    """Whether the result is part of the operand, or the operand with its axes in another order."""
    return op.name in ("extract", "permute")


def is_copied(op: Op) -> bool:
    """Whether row kernels make the result again from its operand, which they read or make."""
    return is_widening(op) or is_spread(op)


def is_made_again(op: Op) -> bool:
    """Whether row kernels make the result themselves rather than read it."""
    return is_free(op) or is_copied(op)


def is_alias(op: Op) -> bool:
    """Whether the result is the operand's memory under another shape."""
    return op.name == "reshape"


def is_lazy(op: Op) -> bool:
    """Whether an op is done where something needs its result, and then perhaps by a load."""
    return is_made_again(op) or is_view(op) or is_alias(op)


def is_along(op: Op) -> bool:
    """Whether an op looks at all elements of a line: a reduction or a scan."""
    return op.definition.has(REDUCTION) or op.definition.has(SCAN)


def is_row_op(op: Op) -> bool:
    if op.definition.has(ELEMENTWISE) or op.name == "matmul" or is_free(op):
        return True
    if is_along(op):
        return negative_axis(op, len(shape_of(op.operands[0].type))) == -1
    return is_spread(op)


def is_batched(op: Op) -> bool:
    """Whether the right operand of a product has the leading axes of the left one."""
    return op.name == "matmul" and len(shape_of(op.operands[1].type)) > 2


def _spreads_in_rows(op: Op) -> bool:
    """Whether the operand has the result's rows, or one for all of them."""
    source, result = shape_of(op.operands[0].type), shape_of(op.result.type)
    return rows_of(source) == rows_of(result) or one_row(source)


def one_row(shape: Shape) -> bool:
    return all(size == 1 for size in rows_of(shape))


def source_of(value: Value, made: set[Value]) -> Value:
    """The value of `made` that `value` is made again from, or `value`."""
    found = value
    while found not in made:
        op = found.defining_op
        if op is None or not is_copied(op):
            return value
        found = op.operands[0]
    return found


def tensor(value: Value) -> TileType:
    assert isinstance(value.type, TileType)
    return value.type
