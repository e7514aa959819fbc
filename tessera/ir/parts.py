"""Which part of a shared buffer a store or a load touches: what barriers need not separate does not overlap."""

from __future__ import annotations

from tessera.ir.core import Op, Value
from tessera.ir.ops.control import constant_value
from tessera.ir.types import tile_layout

Window = tuple[tuple[int, int], ...]  # start and end along each axis


def window_in(op: Op, buffer: object) -> Window | None:
    """The window of `buffer` that an op stores to or loads from; None where it is all of it, or not known here."""
    if op.name not in ("st_shared", "ld_shared") or op.operands[0] is not buffer:
        return None
    tile: Value = op.operand("value") if op.name == "st_shared" else op.result
    offsets = [constant_value(value) for value in op.operands[2 if op.name == "st_shared" else 1 :]]
    shape = tile_layout(tile.type).shape  # padding included
    if None in offsets or len(offsets) != len(shape):
        return None
    return tuple((start, start + size) for start, size in zip(offsets, shape, strict=True))


def overlap(one: Window | None, other: Window | None) -> bool:
    """Whether two windows of one buffer have elements in common; those that are not known may have."""
    if one is None or other is None:
        return True
    axes = zip(one, other, strict=True)
    return all(start < other_end and other_start < end for (start, end), (other_start, other_end) in axes)


__all__ = ["Window", "overlap", "window_in"]
