"""Views in C: a pointer at the window's origin, the elements that remain along each axis, and what is known of both.

A number that is known at compile time stays a Python int, so that masks which always hold vanish from the text.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.codegen_cuda.names import size_text
from tessera.ir.core import Value
from tessera.ir.dims import Size, symbols
from tessera.ir.types import ViewType

Number = int | str


@dataclass(frozen=True)
class ViewNames:
    """A window's place: `pointer` at its origin and, per kept axis, what follows.

    `remaining` elements to the tensor's end, `valid` ones inside the window as an int (0..extent), the `first` valid
    element (0 unless the origin may be negative), the stride in elements.
    """

    pointer: str
    dtype: str
    remaining: tuple[Number, ...]
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
        for coordinate, valid, first, reach in zip(coordinates[:-1], self.valid, self.first, covered, strict=False):
            if first != 0:
                parts.append(f"{coordinate} >= {first}")
            if not (isinstance(valid, int) and reach <= valid):
                parts.append(f"{coordinate} < {valid}")
        return " && ".join(parts)

    def column_is_whole(self, reach: int) -> bool:
        """Whether every coordinate below `reach` of the last axis is inside."""
        return isinstance(self.valid[-1], int) and reach <= self.valid[-1] and self.first[-1] == 0


def parameter_view(name: str, type_: ViewType, strides: tuple[Size, ...], read_only: bool) -> ViewNames:
    """`dtype` of a view is the pointee's type, const for a parameter that the kernel only reads."""
    remaining = tuple(size if isinstance(size, int) else size_text(size) for size in type_.shape)
    steps = tuple(stride if isinstance(stride, int) else size_text(stride) for stride in strides)
    zeros = (0,) * len(remaining)
    dtype = f"const {type_.dtype.cuda}" if read_only else type_.dtype.cuda
    return ViewNames(name, dtype, remaining, remaining, zeros, steps, type_.shape)


def is_nonnegative(value: Value, loops: dict[int, tuple[Value, Value]]) -> bool:
    """Whether an index is shown never to be negative: ids, sizes, constants, and what sums, products, divisions, minima
    and maxima make of such.
    """
    op = value.defining_op
    if op is None:
        loop = loops.get(id(value.owner)) if value.index == 0 else None
        return loop is not None and all(is_nonnegative(v, loops) for v in loop)
    if op.name == "constant":
        return op.attributes["value"] >= 0
    if op.name == "size":
        size = op.attributes["size"]
        return (
            isinstance(size, int)
            and size >= 0
            or not isinstance(size, int)
            and (all(number > 0 for _, number in size.terms) and bool(symbols(size)))
        )
    if op.name == "program_id":
        return True
    if op.name == "max":
        return any(is_nonnegative(v, loops) for v in op.operands)
    return op.name in ("add", "mul", "floordiv", "mod", "min") and all(is_nonnegative(v, loops) for v in op.operands)
