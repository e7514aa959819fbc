"""The tree in which sums are defined, for walks that make one block after the other."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.dtypes import i64
from tessera.ir.core import Builder, Value


def waiting_sums(
    builder: Builder,
    waiting: Sequence[Value],
    part: Value,
    start: Value,
    size: int,
    hint: str = "",
    endless: bool = False,
) -> list[Value]:
    """What waits for its neighbour, for each power of two of blocks, when the sum `part` of another block has come,
    that of `size` elements from `start` on: it goes where the number of the block has its lowest 0, and meets those
    that wait at the 1s below. `endless`: there may be more blocks than powers, so the last one adds up all that comes.
    """

    def number(value: int) -> Value:
        return builder.value("constant", value=value, dtype=i64)

    behind = builder.value("add", builder.value("floordiv", start, number(size)), number(1))
    found = []
    for level, known in enumerate(waiting):
        last = level + 1 == len(waiting)
        met = builder.value("add", known, part, hint=hint) if endless or not last else part
        period, place = (1 << level, 0) if endless and last else (2 << level, 1 << level)
        here = builder.value("eq", builder.value("mod", behind, number(period)), number(place))
        found.append(builder.value("where", here, met if last else part, known, hint=hint))
        part = met
    return found


__all__ = ["waiting_sums"]
