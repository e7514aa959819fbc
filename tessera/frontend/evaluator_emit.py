"""The emitter: turns operands of any kind into IR values, and makes ops at the author's location.

Language functions and the evaluator build all IR through it. It holds what is known of a kernel while it is traced:
the dims, the open regions, the copies in flight, and the call being built, from which messages take the author's
words.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from tessera.dtypes import DType, NumericType, boolean, f32, f64, i64
from tessera.errors import SourceError
from tessera.frontend.evaluator_copies import CopyGroups
from tessera.frontend.evaluator_values import (
    RUN_TIME,
    Context,
    Handle,
    Site,
    Window,
    describe,
    is_number,
    plain,
    quoted,
)
from tessera.ir import dims
from tessera.ir.core import Block, Builder, Value
from tessera.ir.dims import Dim, Size
from tessera.ir.types import ScalarType, Shape, ViewType, shape_text
from tessera.location import Loc


class Emitter:
    """Builds the IR of one kernel. `static` gives dims the values that decisions at compile time may use."""

    def __init__(
        self, body: Block, dim_names: tuple[str, ...], static: dict[str, int], constants: dict[str, Any], place: Loc
    ) -> None:
        self.context = Context(dim_names, constants)
        self.dim_names = dim_names
        self.static = static
        self.decided: set[str] = set()  # dims whose value a decision at compile time has used
        self.copies = CopyGroups()
        self.builders = [Builder(body)]
        self.place = place
        self.site: Site | None = None
        self.singles: set[Value] = set()  # scalars computed in f32 by the device, also where their operands are known
        self._symbols = itertools.count()

    # -- places and messages

    @property
    def block(self) -> Block:
        return self.builders[-1].block

    @property
    def depth(self) -> int:
        """How many run-time regions are open."""
        return len(self.builders) - 1

    @contextmanager
    def region(self, block: Block) -> Iterator[None]:
        """Everything inside is built into `block`, the region of an op that is made afterwards."""
        self.builders.append(Builder(block))
        try:
            yield
        finally:
            self.builders.pop()

    def text(self, argument: str) -> str:
        """The author's text of an argument of the call being built."""
        return self.site.texts.get(argument, argument) if self.site else argument

    def fail(self, code: str, message: str, argument: str | None = None) -> NoReturn:
        """Raises a SourceError at an argument of the call being built, or at the whole of it."""
        place = self.site.places.get(argument, self.place) if self.site and argument else self.place
        raise SourceError(code, message, place)

    # -- ops

    def make(self, name: str, *operands: Any, regions: Sequence[Block] = (), **attributes: Any) -> list[Value]:
        """Makes an op at the current place; operands are handles or values. Its results."""
        builder = self.builders[-1]
        builder.origin = (self.place,)
        values = [self.value(operand) if isinstance(operand, Handle) else operand for operand in operands]
        try:
            return builder.op(name, values, regions, **attributes).results
        except SourceError as error:
            raise error.at(self.place) from None

    def emit(self, name: str, *operands: Any, known: Size | None = None, **attributes: Any) -> Handle:
        """Makes an op of one result. `known` is its value as a size; an integer without one gets a fresh symbol."""
        (value,) = self.make(name, *operands, **attributes)
        return self.handle(value, known)

    def handle(self, value: Value, size: Size | None = None) -> Handle:
        handle = Handle(value, self.block, size)
        if size is None and handle.is_int:
            handle.size = self.fresh()
        return handle

    def fresh(self) -> Dim:
        """A new symbol for a run-time integer of which nothing is known."""
        return dims.symbol(f"{RUN_TIME}v{next(self._symbols)}")

    def value(self, handle: Handle) -> Value:
        """The IR value, after checking that it exists here."""
        if all(handle.block is not builder.block for builder in self.builders):
            name = f"'{handle.value.name}'" if handle.value.name else "this value"
            raise SourceError(
                "TS201",
                f"{name} was computed inside a run-time loop or branch and does not exist outside it",
                self.place,
            )
        return handle.value

    # -- scalars and sizes

    def number(self, number: float | bool, dtype: DType | None = None) -> Handle:
        """A constant: weak, as a literal in arithmetic is, unless its dtype is given."""
        kind = boolean if type(number) is bool else i64 if type(number) is int else f32
        if type(number) is int and abs(number) >= 2**63:
            raise SourceError("TS401", f"the integer {number} does not fit i64", self.place)
        known = number if type(number) is int and (dtype or kind).is_int else None
        return self.emit("constant", value=number, dtype=dtype or kind, weak=dtype is None, known=known)

    def index(self, value: Any, what: str) -> Handle:
        """An integer operand of an op (an offset, a loop bound): from an int, a size or a run-time integer."""
        value = plain(value)
        if isinstance(value, Handle) and value.is_view and not value.shape:
            value = self.load(value)
        if isinstance(value, Handle) and value.is_int:
            return value
        if type(value) is int:
            return self.number(value, i64)
        if isinstance(value, Dim):
            return self.emit("size", size=value, known=value)
        self.fail("TS203", f"{what} must be an integer, but it is {describe(value)}")

    def concrete(self, value: Any, text: str, why: str) -> int:
        """A size as a number. Raises SourceError TS205 naming the dim that has no value at compile time."""
        value = plain(value)
        if type(value) is int or type(value) is bool:
            return int(value)
        if isinstance(value, Dim):
            unknown = sorted(dims.symbols(value) - set(self.static))
            if unknown:
                name = f"the dim '{unknown[0]}'" if str(value) == unknown[0] else f"the dim '{unknown[0]}' of '{text}'"
                raise SourceError("TS205", f"{why}, so {name} must be static, and it is not", self.place)
            self.decided |= dims.symbols(value)
            return dims.evaluate(value, self.static)
        if isinstance(value, Handle):
            raise SourceError("TS205", f"{why}, but '{text}' is {describe(value)}, known only at run time", self.place)
        raise SourceError("TS203", f"{why}, which takes an integer, but '{text}' is {describe(value)}", self.place)

    def dtype(self, value: Any, argument: str = "dtype") -> DType:
        if isinstance(value, NumericType):
            value = value.dtype
        if not isinstance(value, DType):
            self.fail(
                "TS203",
                f"'{argument}' takes a dtype such as ts.bf16, but {quoted(self.text(argument))} is {describe(value)}",
                argument,
            )
        if value == f64:
            self.fail("TS204", f"kernels do not compute in {value.name}", argument)
        return value

    def shape(self, value: Any, argument: str = "shape") -> Shape:
        """A shape of compile-time sizes from a list or tuple (or a single size for one axis)."""
        sizes = [plain(size) for size in (value if isinstance(value, (list, tuple)) else [value])]
        for size in sizes:
            if isinstance(size, Handle):
                self.fail(
                    "TS205", f"a size in '{self.text(argument)}' is {describe(size)}, known only at run time", argument
                )
            if type(size) is not int and not isinstance(size, Dim):
                self.fail("TS203", f"a size in '{self.text(argument)}' is {describe(size)}, not an integer", argument)
            if isinstance(size, int) and size < 1:
                self.fail("TS301", f"a size in '{self.text(argument)}' is {size}; sizes are positive", argument)
        return tuple(sizes)

    # -- tiles

    def load(self, view: Handle) -> Handle:
        """The elements of a view; one integer of a tensor is a run-time integer like any other, 64 bits wide."""
        loaded = self.emit("load", view)
        return self.cast(loaded, i64) if loaded.is_int else loaded

    def read(self, buffer: Handle) -> Handle:
        """The tile in a whole buffer."""
        self.check_landed(buffer)
        return self.emit("read", buffer)

    def write(self, buffer: Handle, tile: Handle) -> None:
        self.check_landed(buffer)
        self.make("write", buffer, tile)

    def check_landed(self, buffer: Handle) -> None:
        """Raises SourceError TS502 while a copy into the buffer is in flight."""
        copy = self.copies.into(buffer.value)
        if copy is not None:
            name = buffer.value.name or "this buffer"
            raise SourceError(
                "TS502",
                f"'{name}' is used here, but the copy into it on line {copy.loc.line} has not been waited for",
                self.place,
            )

    def operand(self, value: Any, text: str) -> Handle:
        """Anything that may take part in arithmetic, as a tile or a scalar: views are loaded, buffers are read."""
        value = plain(value)
        if isinstance(value, Handle):
            if value.is_view:
                return self.load(value)
            if value.is_buffer:
                return self.read(value)
            if value.is_tile or value.is_scalar:
                return value
        if is_number(value):
            return self.number(value)
        if isinstance(value, Dim):
            return self.emit("size", size=value, known=value)
        raise SourceError(
            "TS203", f"{quoted(text)} is {describe(value)}, where a tile or a number is needed", self.place
        )

    def tile(self, value: Any, argument: str) -> Handle:
        """An argument of the call being built as a tile."""
        if isinstance(value, Handle) and not value.is_scalar and (not value.is_view or value.shape):
            return self.operand(value, self.text(argument))
        self.fail("TS203", f"'{argument}' takes a tile, but '{self.text(argument)}' is {describe(value)}", argument)

    def full(self, shape: Shape, value: Any, dtype: DType, text: str) -> Handle:
        """A tile filled with a number or a scalar."""
        value = plain(value)
        scalar: Handle
        if isinstance(value, (int, float)):
            if dtype.is_int and not float(value).is_integer():
                raise SourceError("TS204", f"{quoted(text)} is {value}, which {dtype.name} cannot hold", self.place)
            scalar = self.number(float(value) if dtype.is_float else int(value), dtype)
        else:
            scalar = self.operand(value, text)
            if not scalar.is_scalar:
                raise SourceError("TS203", f"'{text}' is {describe(scalar)}, where one number is needed", self.place)
            scalar = self.cast(scalar, dtype)
        return self.emit("full", scalar, shape=shape, dtype=dtype)

    def cast(self, value: Handle, dtype: DType) -> Handle:
        """`value` in `dtype`; nothing where it has that dtype already."""
        weak = isinstance(value.type, ScalarType) and value.type.weak
        if value.dtype == dtype and not weak:
            return value
        return self.emit("cast", value, dtype=dtype, known=value.size if dtype == i64 else None)

    def reshape(self, tile: Handle, shape: Shape) -> Handle:
        return tile if tile.shape == shape else self.emit("reshape", tile, shape=shape)

    def broadcast(self, values: Sequence[Handle], texts: Sequence[str]) -> list[Handle]:
        """Tiles of one shape from tiles whose axes, counted from the last, are equal or 1; scalars stay scalars."""
        tiles = [(value, text) for value, text in zip(values, texts, strict=True) if value.is_tile]
        if len({tile.shape for tile, _ in tiles}) <= 1:
            return list(values)
        rank = max(len(tile.shape) for tile, _ in tiles)
        common: list[Size] = [1] * rank
        for tile, _ in tiles:
            for axis, size in enumerate(tile.shape, rank - len(tile.shape)):
                if common[axis] == 1:
                    common[axis] = size
                elif size not in (1, common[axis]):
                    (left, left_text), (right, right_text) = _differing(tiles, axis - rank)
                    raise SourceError(
                        "TS301",
                        f"'{left_text}' is {shape_text(left.shape)} and '{right_text}' is "
                        f"{shape_text(right.shape)}: axis {axis} is {left.shape[axis - rank]} in one "
                        f"and {right.shape[axis - rank]} in the other"
                        f"{self.values_text(left.shape[axis - rank], right.shape[axis - rank])}",
                        self.place,
                    )
        return [self.spread(value, tuple(common)) if value.is_tile else value for value in values]

    def values_text(self, a: Size, b: Size) -> str:
        """What a message about two sizes adds where their values are known."""
        return ""

    def spread(self, tile: Handle, shape: Shape) -> Handle:
        """A tile repeated to a shape that it is known to broadcast to."""
        tile = self.reshape(tile, (1,) * (len(shape) - len(tile.shape)) + tile.shape)
        return tile if tile.shape == shape else self.emit("broadcast", tile, shape=shape)

    # -- views

    def parameter_view(self, value: Value) -> Handle:
        assert isinstance(value.type, ViewType)
        rank = len(value.type.shape)
        window = Window(value, (0,) * rank, value.type.shape, (True,) * rank)
        return Handle(value, self.block, window=window)


def _differing(tiles: list[tuple[Handle, str]], axis: int) -> list[tuple[Handle, str]]:
    """The first two tiles whose sizes along `axis` (from the last) differ and are not 1."""
    chosen: list[tuple[Handle, str]] = []
    for tile, text in tiles:
        if (
            len(tile.shape) >= -axis
            and tile.shape[axis] != 1
            and all(t.shape[axis] != tile.shape[axis] for t, _ in chosen)
        ):
            chosen.append((tile, text))
    return chosen[:2]
