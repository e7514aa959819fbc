"""Subscripts of tensors, buffers and tiles: windows of constant extent.

Offsets into tensors and buffers may be known only at run time.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from tessera.errors import SourceError
from tessera.frontend.evaluator_arithmetic import binary
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import RUN_TIME, Handle, Window, describe, is_number, plain
from tessera.ir import dims
from tessera.ir.dims import Dim, Size
from tessera.ir.types import shape_text
from tessera.location import Loc


@dataclass(frozen=True)
class Slice:
    """`start:stop` of a subscript, evaluated; None where nothing is written."""

    start: Any
    stop: Any


@dataclass(frozen=True)
class Subscript:
    """One item of a subscript: its value (`Slice`, `Ellipsis`, or an index), the author's text, and its place."""

    value: Any
    text: str
    loc: Loc


@dataclass(frozen=True)
class Axis:
    """What a subscript chooses on one axis."""

    offset: Any
    extent: Size
    kept: bool


def choose_axes(emit: Emitter, handle: Handle, text: str, items: list[Subscript]) -> list[Axis]:
    """What the subscript chooses on each axis; axes without an item are whole. Raises TS203, TS303, TS304 or TS504."""
    shape = handle.shape
    gaps = [position for position, item in enumerate(items) if item.value is Ellipsis]
    written = len(items) - len(gaps)
    if len(gaps) > 1 or written > len(shape):
        raise SourceError(
            "TS304",
            f"'{text}' has {len(shape)} axes {shape_text(shape)}, but {written} indices are given",
            items[-1].loc,
        )
    whole = Subscript(Slice(None, None), ":", emit.place)
    position = gaps[0] if gaps else len(items)
    items = items[:position] + [whole] * (len(shape) - written) + items[position + 1 :]
    return [_axis(emit, size, item, text, axis) for axis, (size, item) in enumerate(zip(shape, items, strict=True))]


def _axis(emit: Emitter, size: Size, item: Subscript, text: str, axis: int) -> Axis:
    if not isinstance(item.value, Slice):
        offset = _bound(emit, item.value, size, item)
        if isinstance(offset, int) and isinstance(size, int) and not 0 <= offset < size:
            raise SourceError(
                "TS504", f"index {item.text} is outside axis {axis} of '{text}', whose size is {size}", item.loc
            )
        return Axis(offset, 1, False)
    start = 0 if item.value.start is None else _bound(emit, item.value.start, size, item)
    stop = size if item.value.stop is None else _bound(emit, item.value.stop, size, item)
    extent = _known(stop) - _known(start)
    if any(name.startswith(RUN_TIME) for name in dims.symbols(extent)):
        raise SourceError(
            "TS303",
            f"the extent of '{item.text}' on axis {axis} of '{text}' is stop - start = "
            f"{_readable(extent, start, stop)}, which is known only at run time",
            item.loc,
        )
    if isinstance(extent, int) and extent <= 0:
        raise SourceError(
            "TS303", f"the window '{item.text}' on axis {axis} of '{text}' has the extent {extent}", item.loc
        )
    return Axis(start, extent, True)


def _bound(emit: Emitter, value: Any, size: Size, item: Subscript) -> Any:
    """An index as int, size or run-time integer; a negative constant counts from the end."""
    value = plain(value)
    if type(value) is int:
        return size + value if value < 0 else value
    if isinstance(value, Dim):
        return value
    if isinstance(value, Handle) and value.is_view and not value.shape:
        value = emit.load(value)
    if isinstance(value, Handle) and value.is_int:
        return value
    raise SourceError("TS203", f"'{item.text}' is no index: {describe(value)} where an integer is needed", item.loc)


def _known(bound: Any) -> Size:
    if isinstance(bound, Handle):
        assert bound.size is not None, bound
        return bound.size
    return bound


def _readable(extent: Size, *bounds: Any) -> str:
    """The extent with the author's names for the run-time values in it, where they have one."""
    names: dict[str, Size] = {}
    for bound in bounds:
        if isinstance(bound, Handle) and bound.value.name and isinstance(bound.size, Dim):
            symbol = str(bound.size)
            if symbol.startswith(RUN_TIME) and symbol[1:].isalnum():
                names[symbol] = dims.symbol(bound.value.name)
    return str(dims.substitute(extent, names)).replace(RUN_TIME, "")


def subscript_view(emit: Emitter, view: Handle, text: str, items: list[Subscript]) -> Handle:
    """The window of a view. A window of a window is one window of the parameter, its offsets added."""
    return narrow(emit, view, text, choose_axes(emit, view, text, items))


def narrow(emit: Emitter, view: Handle, text: str, chosen: list[Axis]) -> Handle:
    """The part of a view that `chosen`, an entry per axis, describes."""
    axes = iter(chosen)
    outer = view.window
    assert outer is not None
    offsets, extents, kept = [], [], []
    for offset, extent, keep in zip(outer.offsets, outer.extents, outer.kept, strict=True):
        if keep:
            axis = next(axes)
            offset = axis.offset if offset == 0 else binary(emit, ast.Add, offset, axis.offset, (text, "offset"))
            extent, keep = axis.extent, axis.kept
        offsets.append(offset)
        extents.append(extent)
        kept.append(keep)
    window = Window(outer.base, tuple(offsets), tuple(extents), tuple(kept))
    emit.value(view)
    operands = [emit.index(offset, f"an offset in '{text}'") for offset in offsets]
    made = emit.emit("window", outer.base, *operands, extents=window.extents, kept=window.kept)
    made.window = window
    return made


def window_at(emit: Emitter, view: Handle, text: str, starts: list[Any], extents: list[Size]) -> Handle:
    """The window of `extents` at `starts` on the first axes of a view, whole on the others."""
    axes = [Axis(loaded_index(emit, start), extent, True) for start, extent in zip(starts, extents, strict=True)]
    axes += [Axis(0, size, True) for size in view.shape[len(axes) :]]
    return narrow(emit, view, text, axes)


def loaded_index(emit: Emitter, value: Any) -> Any:
    """An index; one element of a tensor is loaded."""
    value = plain(value)
    return emit.load(value) if isinstance(value, Handle) and value.is_view and not value.shape else value


def subscript_buffer(emit: Emitter, buffer: Handle, text: str, items: list[Subscript]) -> Handle:
    """The tile in a window of a buffer; indexed axes are dropped. Constant windows must lie inside it (TS504)."""
    axes = _inside(emit, buffer, text, items)
    emit.check_landed(buffer)
    offsets = [emit.index(axis.offset, f"an offset in '{text}'") for axis in axes]
    tile = emit.emit("read", buffer, *offsets, extents=tuple(axis.extent for axis in axes))
    return emit.reshape(tile, _kept_shape(axes))


def _inside(emit: Emitter, handle: Handle, text: str, items: list[Subscript]) -> list[Axis]:
    """What the subscript chooses of a buffer or a tile; raises TS504 for a constant window that leaves it."""
    axes = choose_axes(emit, handle, text, items)
    for number, (axis, size, item) in enumerate(zip(axes, handle.shape, _padded(items, len(axes)), strict=True)):
        room = _known(size) - _known(axis.offset) - axis.extent
        start = _known(axis.offset)
        if (isinstance(room, int) and room < 0) or (isinstance(start, int) and start < 0):
            place = item.loc if item else emit.place
            shown = item.text if item else ":"
            raise SourceError(
                "TS504", f"the window '{shown}' leaves axis {number} of '{text}', whose size is {size}", place
            )
    return axes


def _kept_shape(axes: list[Axis]) -> tuple[Size, ...]:
    """The axes that are sliced; a part of which every axis is indexed keeps one of size 1."""
    return tuple(axis.extent for axis in axes if axis.kept) or (1,)


def subscript_tile(emit: Emitter, tile: Handle, text: str, items: list[Subscript]) -> Handle:
    """A part of a tile at constant places; indexed axes are dropped. Raises TS205 for a place known at run time."""
    axes = _inside(emit, tile, text, items)
    starts = tuple(_known(axis.offset) for axis in axes)
    for axis, start in zip(axes, starts, strict=True):
        if any(name.startswith(RUN_TIME) for name in dims.symbols(start)):
            raise SourceError(
                "TS205",
                f"'{text}' is {describe(tile)}, whose elements lie in registers, so a part of it is chosen at compile "
                f"time, but the place '{_readable(start, axis.offset)}' is known only at run time; slice the tensor "
                "or buffer that it comes from",
                emit.place,
            )
    extents = tuple(axis.extent for axis in axes)
    part = tile if extents == tile.shape else emit.emit("extract", tile, starts=starts, extents=extents)
    return emit.reshape(part, _kept_shape(axes))


def write_buffer(emit: Emitter, buffer: Handle, text: str, items: list[Subscript], value: Any, value_text: str) -> None:
    """`buffer[...] = value`: a tile or a number, rounded to the buffer's dtype, to a window of the buffer."""
    axes = _inside(emit, buffer, text, items)
    extents, kept = tuple(axis.extent for axis in axes), _kept_shape(axes)
    if is_number(plain(value)):
        tile = emit.full(extents, value, buffer.dtype, value_text)
    else:
        tile = emit.operand(value, value_text)
        if tile.is_scalar:
            tile = emit.full(extents, tile, buffer.dtype, value_text)
        elif tile.shape != kept:
            raise SourceError(
                "TS301",
                f"'{value_text}' is {shape_text(tile.shape)}, but the window of '{text}' is {shape_text(kept)}",
                emit.place,
            )
    emit.check_landed(buffer)
    offsets = [emit.index(axis.offset, f"an offset in '{text}'") for axis in axes]
    emit.make("write", buffer, emit.reshape(tile, extents), *offsets)


def _padded(items: list[Subscript], rank: int) -> list[Subscript | None]:
    if any(item.value is Ellipsis for item in items):
        return [None] * rank
    return [*items, *[None] * (rank - len(items))]
