"""Slots that come in shares: whose rows each warp of the consumers reads. A part of `tessera.ir.verify`.

A warp waits for the copies of its own share alone. What it read of another one might not have arrived, or be the next
round's already, so every load from such a slot has to be of a layout that gives a warp rows of its share.
"""

from __future__ import annotations

from functools import lru_cache

from tessera.ir.core import Op, Value
from tessera.ir.layout import RegisterLayout
from tessera.ir.ops.control import constant_value
from tessera.ir.ops.roles import fills_ring, shares_of
from tessera.ir.ops.tma import axis_of_shares
from tessera.ir.stages import allocation
from tessera.ir.types import BufferType, int_shape
from tessera.ir.verify_order import invalid, name_of

LOADS = frozenset(("ld_shared", "ld_matrices"))


@lru_cache(maxsize=1024)
def each_has_its_rows(layout: RegisterLayout, axis: int, extent: int, shares: int, first: int = 0) -> bool:
    """Whether the warps of each of so many equal parts of a block hold rows of their own share alone, of `extent` rows
    along `axis` of a buffer, in a tile that begins at row `first` of it.
    """
    rows = layout.all_coordinates()[..., axis] + first
    if len(rows) % shares or extent % shares:
        return False
    own = [number * shares // len(rows) for number in range(len(rows))]
    return all((part // (extent // shares) == share).all() for part, share in zip(rows, own, strict=True))


def check_shares(roles: Op) -> None:
    """Raises SourceError TS703 for an op of consumers that may look at another share than that of its warp."""
    producer, *consumers = roles.regions
    shares: dict[Value, int] = {}
    for op in producer.walk():
        if fills_ring(op) and shares_of(op.operand("ring")) > 1:
            shares[allocation(op.operand("buffer"))] = shares_of(op.operand("ring"))
    for op in (op for region in consumers for op in region.walk()):
        for effect, value in op.definition.effects_of(op):
            buffer = allocation(value) if isinstance(value.type, BufferType) else None
            if buffer in shares and effect == "reads" and not _reads_its_rows(op, shares[buffer]):
                raise invalid(f"{op.name} of {name_of(buffer)}, which comes in shares, reads rows of another", op.loc)


def _reads_its_rows(op: Op, shares: int) -> bool:
    if op.name not in LOADS:
        return False
    shape = int_shape(op.operands[0].type)
    axis = axis_of_shares(shape)
    first = None if axis is None else constant_value(op.operands[1 + axis])
    if axis is None or first is None:
        return False
    return each_has_its_rows(op.attributes["layout"], axis, shape[axis], shares, first)


__all__ = ["check_shares", "each_has_its_rows"]
