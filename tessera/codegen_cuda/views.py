"""Views in C: a pointer at the window's origin, the elements that remain along each axis, and what is known of both.

A number that is known at compile time stays a Python int, so that masks which always hold vanish from the text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tessera.codegen_cuda.names import size_text
from tessera.ir.dims import Size
from tessera.ir.intervals import Interval
from tessera.ir.types import ViewType

Number = int | str


@dataclass(frozen=True)
class ViewNames:
    """A window's place: `pointer` at its origin and, per kept axis, what follows.

    `remaining` elements to the tensor's end, of which `at_least` so many are shown to remain (None: nothing is shown),
    `valid` ones inside the window as an int (0..extent), the `first` valid element (0 unless the origin may be
    negative), the stride in elements.
    """

    pointer: str
    dtype: str
    remaining: tuple[Number, ...]
    at_least: tuple[int | None, ...]
    valid: tuple[Number, ...]
    first: tuple[Number, ...]
    strides: tuple[Number, ...]
    extents: tuple[Size, ...]
    inside: str = ""  # condition of the dropped axes; empty when it always holds

    def offset(self, coordinates: list[str]) -> str:
        """Element offset of coordinates from the origin; 64-bit as soon as a stride is more than 1."""
        terms = []
        for coordinate, stride in zip(coordinates, self.strides, strict=True):
            terms.append(coordinate if stride == 1 else f"(ts_i64)({coordinate}) * {stride}")
        return " + ".join(terms) or "0"

    def row_condition(self, coordinates: list[str], covered: tuple[int, ...]) -> str:
        """Whether all but the last coordinate are inside; `covered[axis]` is how far coordinates can reach."""
        parts = []
        for axis, (coordinate, reach) in enumerate(zip(coordinates[:-1], covered, strict=False)):
            if self.first[axis] != 0:
                parts.append(f"{coordinate} >= {self.first[axis]}")
            if not self._covers(axis, reach):
                parts.append(f"{coordinate} < {self.valid[axis]}")
        return " && ".join(parts)

    def row_covers(self, axis: int, reach: int) -> bool:
        """Whether every coordinate below `reach` of an axis is inside."""
        return self._covers(axis, reach) and self.first[axis] == 0

    def _covers(self, axis: int, reach: int) -> bool:
        valid = self.valid[axis]
        return isinstance(valid, int) and reach <= valid

    def moved(self, axis: int, by: str, reach: int) -> ViewNames:
        """The same masks for coordinates along `axis` that are `by` too low; with that, they can reach `reach`."""
        valid, first = list(self.valid), list(self.first)
        if not self._covers(axis, reach):
            valid[axis] = f"{valid[axis]} - {by}"
        if first[axis] != 0:
            first[axis] = f"{first[axis]} - {by}"
        return replace(self, valid=tuple(valid), first=tuple(first))

    def column_is_whole(self, reach: int) -> bool:
        """Whether every coordinate below `reach` of the last axis is inside."""
        return self.row_covers(-1, reach)


def parameter_view(name: str, type_: ViewType, strides: tuple[Size, ...], read_only: bool) -> ViewNames:
    """`dtype` of a view is the pointee's type, const for a parameter that the kernel only reads."""
    remaining = tuple(size if isinstance(size, int) else size_text(size) for size in type_.shape)
    steps = tuple(stride if isinstance(stride, int) else size_text(stride) for stride in strides)
    zeros = (0,) * len(remaining)
    dtype = f"const {type_.dtype.cuda}" if read_only else type_.dtype.cuda
    at_least = tuple(size if isinstance(size, int) else 0 for size in type_.shape)
    return ViewNames(name, dtype, remaining, at_least, remaining, zeros, steps, type_.shape)


class WindowAxis:
    """One axis of a window: what the text must compute of it, given where its offset `lies`, and how many elements
    behind it were `shown` to remain otherwise.

    `left` elements from the offset to the tensor's end, `at_least` so many for sure, and the `first` valid element as
    in `ViewNames`; `lines` declare those that are variables. `conditions`: those under which the one element of an axis
    that is dropped is inside.
    """

    def __init__(
        self,
        number: int,
        extent: Size,
        constant: int | None,
        offset: str,
        lies: Interval,
        shown: int | None,
        source: ViewNames,
        name: str,
    ):
        self.number, self.extent = number, extent
        (low, high), remaining, first = lies, source.remaining[number], source.first[number]
        behind = source.at_least[number]
        self.at_least = shown if behind is None or high is None else max(behind - high, shown or behind - high)
        self.lines: list[str] = []
        starts = low is not None and low >= 0 and first == 0
        self.conditions = [] if starts else [f"{offset} >= {first}"]
        if not self._remain(1):
            self.conditions.append(f"{offset} < {remaining}")
        # A tensor beyond 2^31 along an axis needs 64 bits there, wherever its windows are.
        ends = (remaining, low, high)
        self.narrow = all(isinstance(end, int) and abs(end) < 1 << 30 for end in ends)
        self.left = self._left(remaining, constant, offset, f"{name}_left{number}")
        self.first: Number = 0
        if not starts:
            self.first = f"{name}_first{number}"
            size = size_text(extent)
            self.lines.append(f"const int {self.first} = (int)ts_imin(ts_imax({first} - {offset}, 0), {size});")

    def _remain(self, count: Size) -> bool:
        """Whether so many elements are shown to remain."""
        return isinstance(count, int) and self.at_least is not None and self.at_least >= count

    def _left(self, remaining: Number, constant: int | None, offset: str, name: str) -> Number:
        if isinstance(remaining, int) and constant is not None:
            return remaining - constant
        if constant == 0:
            return remaining
        if self._remain(self.extent):  # only windows of this one may want it
            return f"({remaining} - {offset})"
        if self.narrow:
            self.lines.append(f"const int {name} = (int)({remaining} - {offset});")
        else:
            self.lines.append(f"const ts_i64 {name} = {remaining} - {offset};")
        return name

    def count(self) -> Number:
        """How many elements of the window are inside the tensor."""
        if isinstance(self.extent, int):
            if self._remain(self.extent):
                return self.extent
            if isinstance(self.left, int):
                return max(0, min(self.left, self.extent))
        left, extent = self.left, size_text(self.extent)
        if self.narrow and isinstance(self.extent, int):
            upper = f"{left} < {extent} ? {left} : {extent}"
            return upper if self._remain(0) else f"{left} < 0 ? 0 : {upper}"
        return f"(int)ts_imin({left if self._remain(0) else f'ts_imax({left}, 0)'}, {extent})"
