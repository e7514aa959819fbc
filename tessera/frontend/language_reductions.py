"""Reductions and scans of tiles along an axis.

Their order is defined (`tessera.ir.numeric`), so a sum has the same bits on every lane. With axis=None the last axis is
reduced first, then the one before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tessera.dtypes import f32, i32
from tessera.frontend.evaluator_arithmetic import elementwise
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe
from tessera.frontend.language import Intrinsic, intrinsic
from tessera.ir.dims import Size
from tessera.ir.types import shape_text


def _operand(emit: Emitter, x: Any) -> Handle:
    tile = emit.tile(x, "x")
    if tile.dtype.is_bool:
        emit.fail(
            "TS204",
            f"'{emit.text('x')}' is {describe(tile)}; count with tile.cast({emit.text('x')}, ts.i32) first",
            "x",
        )
    return tile


def _axis(emit: Emitter, tile: Handle, axis: Any) -> int:
    """The axis as written, counted from the first."""
    rank, text = len(tile.shape), emit.text("x")
    number = emit.concrete(axis, emit.text("axis"), "axis= is a compile-time constant")
    if not -rank <= number < rank:
        emit.fail("TS304", f"'{text}' has {rank} axes {shape_text(tile.shape)}, so there is no axis {number}", "axis")
    return number % rank


def _keep(emit: Emitter, keepdims: Any) -> bool:
    if type(keepdims) is not bool:
        emit.fail("TS203", f"keepdims= is True or False, not {describe(keepdims)}", "keepdims")
    return keepdims


def _reduced(emit: Emitter, op: str, tile: Handle, axis: Any, keepdims: bool) -> Handle:
    """`op` along one axis, or along all of them from the last; a tile always keeps at least one axis."""
    axes = range(len(tile.shape)) if axis is None else (_axis(emit, tile, axis),)
    reduced = tile
    for number in reversed(axes):
        reduced = emit.emit(op, reduced, axis=number - len(tile.shape))
    shape: tuple[Size, ...] = tuple(size for number, size in enumerate(tile.shape) if number not in axes)
    return reduced if keepdims else emit.reshape(reduced, shape or (1,))


def _reduction(op: str) -> Callable[..., Any]:
    def build(emit: Emitter, x: Any, axis: Any = None, keepdims: Any = False) -> Handle:
        """the axis is dropped unless `keepdims`; without `axis` all elements are reduced, to a tile [1]"""
        return _reduced(emit, op, _operand(emit, x), axis, _keep(emit, keepdims))

    return build


for _name in ("sum", "max", "min"):
    Intrinsic(f"tile.{_name}", _reduction(f"reduce_{_name}"), op=f"reduce_{_name}")


@intrinsic("tile.mean")
def mean(emit: Emitter, x: Any, axis: Any = None, keepdims: Any = False) -> Handle:
    """The sum in f32 divided by the number of elements, rounded once to x's dtype (f32 for integers)."""
    tile = _operand(emit, x)
    total = _reduced(emit, "reduce_sum", emit.cast(tile, f32), axis, _keep(emit, keepdims))
    count: Size = 1
    for number, size in enumerate(tile.shape):
        if axis is None or number == _axis(emit, tile, axis):
            count = count * size
    text = emit.text("x")
    average = elementwise(emit, "div", (total, emit.cast(emit.operand(count, text), f32)), (text, f"its size {count}"))
    return emit.cast(average, tile.dtype) if tile.dtype.is_float else average


def _index(op: str) -> Callable[..., Any]:
    def build(emit: Emitter, x: Any, axis: Any = None, keepdims: Any = False) -> Handle:
        """the axis is dropped unless `keepdims`; without `axis` the index counts all elements in row-major order"""
        tile, keep = _operand(emit, x), _keep(emit, keepdims)
        if axis is not None:
            return _reduced(emit, op, tile, axis, keep)
        count: Size = 1
        for size in tile.shape:
            count = count * size
        found = _reduced(emit, op, emit.reshape(tile, (count,)), 0, True)
        return emit.reshape(found, (1,) * len(tile.shape)) if keep else found

    return build


for _name in ("argmax", "argmin"):
    Intrinsic(f"tile.{_name}", _index(_name), op=_name)


def _scan(op: str) -> Callable[..., Any]:
    def build(emit: Emitter, x: Any, axis: Any = -1) -> Handle:
        tile = _operand(emit, x)
        return emit.emit(op, tile, axis=_axis(emit, tile, axis) - len(tile.shape))

    return build


Intrinsic("tile.cummax", _scan("cummax"), op="cummax")


@intrinsic("tile.cumsum")
def cumsum(emit: Emitter, x: Any, axis: Any = -1, reverse: Any = False) -> Handle:
    """Sum of each element and those before it along `axis`, in f32.

    With `reverse` of each element and those behind it, as (total - sum up to it) + element: right to the last bits of
    the total, not of a much smaller sum.
    """
    tile = _operand(emit, x)
    along = _axis(emit, tile, axis) - len(tile.shape)
    if type(reverse) is not bool:
        emit.fail("TS203", f"reverse= is True or False, not {describe(reverse)}", "reverse")
    if not reverse:
        return emit.emit("cumsum", tile, axis=along)
    wide = emit.cast(tile, f32) if tile.dtype.is_float else tile
    texts = ("the total", "the sum up to an element")
    total = emit.spread(emit.emit("reduce_sum", wide, axis=along), wide.shape)
    rest = elementwise(emit, "sub", (total, emit.emit("cumsum", wide, axis=along)), texts)
    return emit.cast(elementwise(emit, "add", (rest, wide), ("what follows", emit.text("x"))), tile.dtype)


@intrinsic("tile.arange")
def arange(emit: Emitter, n: Any, dtype: Any = i32) -> Handle:
    """The tile [0, 1, ..., n - 1]."""
    shape = emit.shape(n, "n")
    if len(shape) != 1:
        emit.fail("TS304", f"tile.arange makes one axis, not {shape_text(shape)}; use tile.iota for more", "n")
    return _iota(emit, shape, 0, dtype)


@intrinsic("tile.iota")
def iota(emit: Emitter, shape: Any, axis: Any = -1, dtype: Any = i32) -> Handle:
    """A tile in which every element is its own index along `axis`."""
    sizes = emit.shape(shape)
    rank = len(sizes)
    number = emit.concrete(axis, emit.text("axis"), "axis= is a compile-time constant")
    if not -rank <= number < rank:
        emit.fail("TS304", f"a tile {shape_text(sizes)} has no axis {number}", "axis")
    return _iota(emit, sizes, number % rank - rank, dtype)


def _iota(emit: Emitter, shape: tuple[Size, ...], axis: int, dtype: Any) -> Handle:
    kind = emit.dtype(dtype)
    if kind.is_bool:
        emit.fail("TS204", "indices are numbers, not bool", "dtype")
    return emit.emit("iota", shape=shape, axis=axis, dtype=kind)
