"""Subscripts of tensors and buffers: windows of constant extent at offsets that may be known only at run time."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from tessera.errors import SourceError
from tessera.frontend.evaluator_arithmetic import binary
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import RUN_TIME, Handle, Window, describe, plain
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
    axes = iter(choose_axes(emit, view, text, items))
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


def subscript_buffer(emit: Emitter, buffer: Handle, text: str, items: list[Subscript]) -> Handle:
    """The tile in a window of a buffer; indexed axes are dropped. Constant windows must lie inside it (TS504)."""
    axes = choose_axes(emit, buffer, text, items)
    for number, (axis, size, item) in enumerate(zip(axes, buffer.shape, _padded(items, len(axes)), strict=True)):
        room = _known(size) - _known(axis.offset) - axis.extent
        start = _known(axis.offset)
        if (isinstance(room, int) and room < 0) or (isinstance(start, int) and start < 0):
            place = item.loc if item else emit.place
            shown = item.text if item else ":"
            raise SourceError(
                "TS504", f"the window '{shown}' leaves axis {number} of '{text}', whose size is {size}", place
            )
    emit.check_landed(buffer)
    offsets = [emit.index(axis.offset, f"an offset in '{text}'") for axis in axes]
    tile = emit.emit("read", buffer, *offsets, extents=tuple(axis.extent for axis in axes))
    return emit.reshape(tile, tuple(axis.extent for axis in axes if axis.kept))


def _padded(items: list[Subscript], rank: int) -> list[Subscript | None]:
    if any(item.value is Ellipsis for item in items):
        return [None] * rank
    return [*items, *[None] * (rank - len(items))]
