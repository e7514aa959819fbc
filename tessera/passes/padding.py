"""Slices that reach past the end of a tile: where they can be computed.

A loop over slices of one extent ends, where that extent does not divide the tile, with a slice that reaches beyond.
What is computed there is thrown away, so it only must be safe to compute: a load of it is masked, and no integer is
divided by what a mask left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from tessera.ir.core import Mapping, Op, Value
from tessera.ir.opdef import ELEMENTWISE, REDUCTION, SCAN
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import TileType, dtype_of, int_shape
from tessera.passes.reshapes import axis_groups

DIVISIONS = ("floordiv", "mod", "div")  # of integers: by zero, an error of the run
OF_ZEROS_ZERO = ("add", "sub", "mul", "neg", "abs", "min", "max", "cast")
MADE_UP = ("full", "iota")  # of any shape that is asked for


def reaches_beyond(
    value: Value, axis: int, there: Mapping, streamed: Collection[Value], seen: set[tuple[Value, int]]
) -> bool:
    """Whether slices of a tile along `axis`, the last one past its end, can be computed.

    `there`: tiles that exist already; `streamed`: buffers that are read from the tensor that they copy. Any other
    buffer ends where its tile does.
    """
    if not isinstance(value.type, TileType) or int_shape(value.type)[axis] == 1 or (value, axis) in seen:
        return True
    seen.add((value, axis))
    op, rank = value.defining_op, len(value.type.shape)
    if value in there:
        return False
    if op is None:
        return True  # carried by a loop that is asked about already

    def follow(*values: Value, along: int = axis) -> bool:
        return all(reaches_beyond(v, along, there, streamed, seen) for v in values)

    if op.name in ("for", "if"):
        finals = [region.ops[-1].operands[value.index] for region in op.regions]
        initial = [op.operands[3 + value.index]] if op.name == "for" else []
        return follow(*finals, *initial)
    if op.regions:
        return False
    if op.name == "load" or op.name in MADE_UP:
        return True
    if op.name == "read":
        return op.operands[0] in streamed and len(op.operands) == 1
    if op.name == "transpose":
        return follow(op.operands[0], along={rank - 1: rank - 2, rank - 2: rank - 1}.get(axis, axis))
    if op.name == "mma":
        if rank != 2:
            return False
        flipped = op.attributes["transpose_a" if axis == 0 else "transpose_b"]
        side = follow(op.operands[0 if axis == 0 else 1], along=1 - axis if flipped else axis)
        return side and follow(*op.operands[2:])
    if op.name == "reshape":
        return _same_axis(op, axis, follow)
    if op.definition.has(REDUCTION) or op.definition.has(SCAN):
        return negative_axis(op, rank) + rank != axis and follow(*op.operands)
    divides_integers = op.name in DIVISIONS and dtype_of(value.type).is_int
    elementwise = op.definition.has(ELEMENTWISE) and not divides_integers
    same_rank = all(not isinstance(v.type, TileType) or len(v.type.shape) == rank for v in op.operands)
    return (elementwise or op.name == "broadcast") and same_rank and follow(*op.operands)


def zero_beyond(value: Value, axis: int, there: Mapping, streamed: Collection[Value]) -> bool:
    """Whether what a slice of a tile holds past the end of `axis` is zero, of either sign: what is loaded, and what is
    computed from such zeros alone.
    """
    if not isinstance(value.type, TileType) or int_shape(value.type)[axis] == 1 or value in there:
        return False
    op, rank = value.defining_op, len(value.type.shape)

    def follow(operand: Value, along: int = axis) -> bool:
        return zero_beyond(operand, along, there, streamed)

    if op is None or op.regions:
        return False
    if op.name == "load":
        return True
    if op.name == "read":
        return op.operands[0] in streamed and len(op.operands) == 1
    if op.name == "transpose":
        return follow(op.operands[0], {rank - 1: rank - 2, rank - 2: rank - 1}.get(axis, axis))
    if op.name == "reshape":
        return _same_axis(op, axis, follow)
    tiles = all(isinstance(v.type, TileType) and v.type.shape == value.type.shape for v in op.operands)
    return op.name in OF_ZEROS_ZERO and tiles and all(map(follow, op.operands))


def _same_axis(op: Op, axis: int, follow: Callable[..., bool]) -> bool:
    """Whether a reshape leaves an axis as it is and the same holds for its source."""
    source = op.operands[0]
    groups = axis_groups(int_shape(source.type), int_shape(op.result.type))
    olds, news = next(group for group in groups if axis in group[1])
    return len(olds) == 1 == len(news) and follow(source, along=olds[0])
