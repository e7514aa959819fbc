"""Addresses in shared memory: a thread's part, computed once, and constants beside it.

A swizzled layout S is not a sum. But where the bits of a constant place c are none of those that a thread's place t can
have, S(t + c) = (S(t) ^ S_x(c)) + S_a(c): S_x are the chunk bits that the swizzle crosses, S_a is the rest. ptxas folds
an addend into the access itself, so that a loop needs a register for each S_x, of which there are few, and no
arithmetic for the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tessera.codegen_cuda.statements.common import known_number
from tessera.ir.core import Op, Value
from tessera.ir.layout import RegisterLayout, SharedLayout
from tessera.ir.types import buffer_layout

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter

MOST_VALUES = 64  # of an offset, that are looked at one by one


@dataclass(frozen=True)
class Coordinate:
    """A row or column of a buffer: the term `thread`, in which only `bits` can be set (-1: nobody knows which), the
    number `fixed`, and scalars, each times a number.
    """

    thread: str
    bits: int
    fixed: int = 0
    offsets: tuple[tuple[Value, int], ...] = ()

    def plus(self, thread: str, bits: int) -> Coordinate:
        """With another term of the thread. Where it can have a bit that this has, the sum carries."""
        carries = self.bits & bits  # as of repeats that are three groups of warps apart
        return replace(self, thread=f"{self.thread} + {thread}", bits=-1 if carries else self.bits | bits)

    def at(self, offset: Value) -> Coordinate:
        """Further on by a scalar: one that is constant is a number."""
        number = known_number(offset)
        if number is not None:
            return replace(self, fixed=self.fixed + number)
        return replace(self, offsets=(*self.offsets, (offset, 1)))

    def below(self, size: int, inner: Coordinate) -> Coordinate:
        """The row of this place of an outer axis and `inner` of the next, which has `size` places."""
        shared = self.bits * size & inner.bits or inner.bits >= size
        return Coordinate(
            f"({self.thread}) * {size} + {inner.thread}",
            -1 if shared or size & (size - 1) else self.bits * size | inner.bits,
            self.fixed * size + inner.fixed,
            (*((value, scale * size) for value, scale in self.offsets), *inner.offsets),
        )

    def beside(self, emitter: Emitter) -> int | str:
        """The constant part; text where it is constant in an unrolled loop only."""
        terms = [f"(int){emitter.name(v)}" + (f" * {scale}" if scale != 1 else "") for v, scale in self.offsets]
        return " + ".join([*terms, *([str(self.fixed)] if self.fixed else [])]) if terms else self.fixed

    def whole(self, emitter: Emitter) -> str:
        beside = self.beside(emitter)
        return f"{beside} + {self.thread}" if beside else self.thread

    def is_disjoint(self, emitter: Emitter, op: Op) -> bool:
        """Whether the constant part has none of the thread's bits, whatever the scalars are when `op` runs."""
        lows = [emitter.ranges.interval(value, op)[0] for value, _ in self.offsets]
        if self.bits < 0 or self.fixed < 0 or any(low is None or low < 0 for low in lows):
            return False
        step = min((emitter.ranges.divisor(value) * scale for value, scale in self.offsets), default=0)
        if not self.offsets or self.bits < step & -step:
            return self.fixed & self.bits == 0
        (value, scale), *others = self.offsets
        low, high = emitter.ranges.interval(value, op)
        if others or low is None or high is None or (high - low) // emitter.ranges.divisor(value) >= MOST_VALUES:
            return False
        values = range(low, high + 1, emitter.ranges.divisor(value))
        return all((number * scale + self.fixed) & self.bits == 0 for number in values)


def thread_bits(layout: RegisterLayout, axis: int, *parts: str) -> int:
    """The bits of a coordinate that "lane" or "warp" can set."""
    bits = 0
    for part in parts:
        for vector in layout.warp_steps if part == "warp" else layout.block.group(part):
            bits |= vector[axis]
    return bits


def shared_address(emitter: Emitter, op: Op, buffer: Value, row: Coordinate, column: Coordinate) -> str:
    """The address of an element of `buffer` that `op` reads, in the form above where it holds.

    What is constant comes last, the place of the buffer too: before the rest, the compiler adds each of those anew.
    """
    layout = buffer_layout(buffer.type)
    name = emitter.layouts.buffer(layout)
    if not (row.is_disjoint(emitter, op) and column.is_disjoint(emitter, op)):
        return f"{emitter.name(buffer)} + {name}({row.whole(emitter)}, {column.whole(emitter)})"
    turn, start = emitter.places[buffer]
    thread = f"{name}({row.thread}, {column.thread})"
    text = split_offset(emitter, layout, thread, row.beside(emitter), column.beside(emitter), start)
    return " + ".join(["shared_base", *([turn] if turn else []), text])


def split_offset(
    emitter: Emitter, layout: SharedLayout, thread: str, row: int | str, column: int | str, start: int = 0
) -> str:
    """The offset, `start` added, of the place (row, column) further on than the one at `thread`, whose bits are
    others.
    """
    crossed, added = "", []
    if isinstance(row, int) and isinstance(column, int):
        bits, rest = layout.split(row, column)
        crossed, start = str(bits) if bits else "", start + rest
    else:
        emitter.layouts.split.add(layout)
        name = emitter.layouts.buffer(layout)
        crossed = f"{name}_x({row}, {column})" if layout.is_permuted else ""
        added = [f"{name}_a({row}, {column})"]
    return " + ".join([f"({thread} ^ {crossed})" if crossed else thread, *added, *([str(start)] if start else [])])
