"""Tensor functions that make, move and choose elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tessera.dtypes import f32, i64, promote
from tessera.errors import SourceError
from tessera.frontend.evaluator_values import Handle, describe, plain
from tessera.frontend.evaluator_windows import Slice, Subscript
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.language import FUNCTION, Intrinsic
from tessera.frontend.language_math import product
from tessera.ir.dims import Dim, Size
from tessera.ir.types import Shape, shape_text


def tensor_function(name: str, scope: str = FUNCTION) -> Any:
    """Declares the decorated function as `ts.<name>`, which works inside a @ts.function."""
    return lambda build: Intrinsic(f"ts.{name}", build, scope=scope)


# Choosing elements ----------------------------------------------------------------------------------------------------


def subscript_tensor(emit: TensorEmitter, tensor: Handle, text: str, items: Sequence[Subscript]) -> Handle:
    """`x[1, :, a:b, -1]`: an index drops its axis, a slice clips as in Python. Raises TS203, TS301, TS304 or TS504."""
    shape = tensor.shape
    gaps = [position for position, item in enumerate(items) if item.value is Ellipsis]
    written = len(items) - len(gaps)
    if len(gaps) > 1 or written > len(shape):
        raise SourceError(
            "TS304",
            f"'{text}' has {len(shape)} axes {shape_text(shape)}, but {written} indices are given",
            items[-1].loc,
        )
    position = gaps[0] if gaps else len(items)
    whole = Subscript(Slice(None, None), ":", emit.place)
    filled = [*items[:position], *[whole] * (len(shape) - written), *items[position + len(gaps) :]]
    starts: list[Size] = []
    extents: list[Size] = []
    kept: list[Size] = []
    for axis, (size, item) in enumerate(zip(shape, filled, strict=True)):
        if isinstance(item.value, Slice):
            start, extent = _clipped(emit, size, item, axis, text)
            kept.append(extent)
        else:
            start, extent = _index(emit, size, item, axis, text), 1
        starts.append(start)
        extents.append(extent)
    part = tensor if tuple(extents) == shape else emit.emit(
        "extract", tensor, starts=tuple(starts), extents=tuple(extents)
    )  # fmt: skip
    return emit.reshape(part, tuple(kept))


def _clipped(emit: TensorEmitter, size: Size, item: Subscript, axis: int, text: str) -> tuple[Size, Size]:
    start, stop = plain(item.value.start), plain(item.value.stop)
    if start in (None, 0) and stop is None:
        return 0, size
    why = f"'{item.text}' clips axis {axis} of '{text}'"
    length = emit.concrete(size, text, why)
    begin, end, _ = slice(
        *(None if bound is None else emit.concrete(bound, item.text, why) for bound in (start, stop))
    ).indices(length)
    if end <= begin:
        raise SourceError(
            "TS301", f"'{item.text}' of axis {axis} of '{text}', whose size is {length}, is empty", item.loc
        )
    return begin, end - begin


def _index(emit: TensorEmitter, size: Size, item: Subscript, axis: int, text: str) -> int:
    value = plain(item.value)
    if not isinstance(value, (int, Dim)) or isinstance(value, bool):
        raise SourceError("TS203", f"'{item.text}' is no index: it is {describe(value)}", item.loc)
    why = f"'{item.text}' indexes axis {axis} of '{text}'"
    index, length = emit.concrete(value, item.text, why), emit.concrete(size, text, why)
    if not -length <= index < length:
        has = f"'{text}' has {length} rows" if axis == 0 else f"the size of that axis is {length}"
        where = f"index {index} is outside axis {axis} of '{text}'"
        raise SourceError("TS504", f"{where}: {has}{emit.longer_lists(length)}", item.loc)
    return index % length


# Shapes ---------------------------------------------------------------------------------------------------------------


def axis_of(emit: TensorEmitter, axis: Any, rank: int) -> int:
    """An axis counted from the first. Raises TS203 or TS304."""
    axis = plain(axis)
    if type(axis) is not int:
        emit.fail("TS203", f"'axis' takes an axis of a tensor, an int, but '{emit.text('axis')}' is {describe(axis)}",
                  "axis")  # fmt: skip
    if not -rank <= axis < rank:
        emit.fail("TS304", f"axis {axis} is outside a tensor of {rank} axes", "axis")
    return axis % rank


@tensor_function("reshape")
def reshape(emit: TensorEmitter, x: Any, shape: Any) -> Handle:
    """The elements of `x` in row-major order under another shape with as many elements; one size may be -1."""
    tensor = emit.tile(x, "x")
    wanted = [plain(size) for size in (shape if isinstance(shape, (list, tuple)) else [shape])]
    if any(type(size) is int and size == -1 for size in wanted):
        rest, total = product([size for size in wanted if size != -1]), product(tensor.shape)
        left = _divided(total, rest)
        if wanted.count(-1) != 1 or left is None:
            emit.fail("TS301", f"'{emit.text('x')}' is {shape_text(tensor.shape)}, from which '{emit.text('shape')}' "
                      "does not give the size -1", "shape")  # fmt: skip
        wanted = [left if size == -1 else size for size in wanted]
    return emit.reshape(tensor, emit.shape(wanted))


def _divided(total: Size, rest: Size) -> Size | None:
    """total / rest where it is known to be whole."""
    if rest == 1:
        return total
    if isinstance(total, int) and isinstance(rest, int):
        return total // rest if rest and total % rest == 0 else None
    from tessera.ir.dims import floordiv

    quotient = floordiv(total, rest)
    return quotient if quotient * rest == total else None


@tensor_function("transpose")
def transpose(emit: TensorEmitter, x: Any, axes: Any = None) -> Handle:
    """`x` with its axes in the order `axes`; without it, its last two exchanged."""
    tensor = emit.tile(x, "x")
    rank = len(tensor.shape)
    if axes is None:
        if rank < 2:
            emit.fail("TS304", f"'{emit.text('x')}' has {rank} axes; a transpose needs two", "x")
        order = (*range(rank - 2), rank - 1, rank - 2)
    else:
        order = tuple(axis_of(emit, axis, rank) for axis in (axes if isinstance(axes, (list, tuple)) else [axes]))
    return permuted(emit, tensor, order)


def permuted(emit: TensorEmitter, tensor: Handle, order: Sequence[int]) -> Handle:
    order = tuple(order)
    return tensor if order == tuple(range(len(order))) else emit.emit("permute", tensor, permutation=order)


@tensor_function("broadcast_to")
def broadcast_to(emit: TensorEmitter, x: Any, shape: Any) -> Handle:
    """`x` repeated to `shape`, its axes counted from the last."""
    sizes = emit.shape(shape)
    operand = emit.operand(x, emit.text("x"))
    if operand.is_scalar:
        return emit.full(sizes, operand, operand.dtype, emit.text("x"))
    tail = sizes[len(sizes) - len(operand.shape) :]
    if len(operand.shape) > len(sizes) or any(s != 1 and s != t for s, t in zip(operand.shape, tail, strict=True)):
        emit.fail("TS301", f"'{emit.text('x')}' is {shape_text(operand.shape)}, which does not broadcast to "
                  f"{shape_text(sizes)}", "x")  # fmt: skip
    return emit.spread(operand, sizes)


# Joining --------------------------------------------------------------------------------------------------------------


def tensors_of(emit: TensorEmitter, tensors: Any, what: str, argument: str = "tensors") -> list[Handle]:
    """The tensors of a list argument. Raises TS203 where it is no list, holds something else, or is empty."""
    text = emit.text(argument)
    if not isinstance(tensors, (list, tuple)):
        emit.fail("TS203", f"{what} takes a list of tensors, but '{text}' is {describe(tensors)}", argument)
    if not tensors:
        empty = emit.empty_list()
        reason = f", because {empty} is empty" if empty else ""
        emit.fail("TS203", f"{what} of no tensors: the list '{text}' is empty{reason}", argument)
    return [_element(emit, item, what, f"{text}[{i}]") for i, item in enumerate(tensors)]


def _element(emit: TensorEmitter, item: Any, what: str, text: str) -> Handle:
    if not isinstance(item, Handle) or not item.is_tile:
        raise SourceError("TS203", f"{what} takes tensors, but '{text}' is {describe(item)}", emit.place)
    return item


def alike(emit: TensorEmitter, handles: list[Handle]) -> list[Handle]:
    """Tensors in the widest dtype among theirs."""
    widest = handles[0].dtype
    for handle in handles[1:]:
        widest = promote(widest, handle.dtype)
    return [emit.cast(handle, widest) for handle in handles]


@tensor_function("concatenate")
def concatenate(emit: TensorEmitter, tensors: Any, axis: Any = 0) -> Handle:
    """Tensors one after the other along `axis`, in the widest dtype among theirs."""
    handles = tensors_of(emit, tensors, "ts.concatenate")
    return joined(emit, handles, axis_of(emit, axis, len(handles[0].shape)))


def joined(emit: TensorEmitter, handles: list[Handle], axis: int) -> Handle:
    first = handles[0].shape
    for handle in handles[1:]:
        for other, size in enumerate(handle.shape[: len(first)]):
            if other != axis:
                emit.unify(size, first[other])
    return handles[0] if len(handles) == 1 else emit.emit("concatenate", *alike(emit, handles), axis=axis)


@tensor_function("stack")
def stack(emit: TensorEmitter, tensors: Any, axis: Any = 0) -> Handle:
    """Tensors of one shape along a new axis, in the widest dtype among theirs."""
    return stacked(emit, tensors_of(emit, tensors, "ts.stack"), axis)


def stacked(emit: TensorEmitter, handles: list[Handle], axis: Any) -> Handle:
    place, shape = axis_of(emit, axis, len(handles[0].shape) + 1), handles[0].shape
    for handle in handles[1:]:
        if len(handle.shape) != len(shape) or not all(map(emit.unify, handle.shape, shape)):
            emit.fail("TS301", f"ts.stack takes tensors of one shape, not {shape_text(shape)} and "
                      f"{shape_text(handle.shape)}")  # fmt: skip
    wide: Shape = (*shape[:place], 1, *shape[place:])
    return joined(emit, [emit.reshape(handle, wide) for handle in alike(emit, handles)], place)


# Making ---------------------------------------------------------------------------------------------------------------


@tensor_function("full")
def full(emit: TensorEmitter, shape: Any, value: Any, dtype: Any = f32) -> Handle:
    """A tensor of which every element is `value`."""
    return emit.full(emit.shape(shape), value, emit.dtype(dtype), emit.text("value"))


@tensor_function("zeros")
def zeros(emit: TensorEmitter, shape: Any, dtype: Any = f32) -> Handle:
    """A tensor of zeros."""
    return emit.full(emit.shape(shape), 0, emit.dtype(dtype), "0")


@tensor_function("ones")
def ones(emit: TensorEmitter, shape: Any, dtype: Any = f32) -> Handle:
    """A tensor of ones."""
    return emit.full(emit.shape(shape), 1, emit.dtype(dtype), "1")


@tensor_function("zeros_like")
def zeros_like(emit: TensorEmitter, x: Any) -> Handle:
    """Zeros of the shape and dtype of `x`."""
    return emit.full(emit.tile(x, "x").shape, 0, x.dtype, "0")


@tensor_function("ones_like")
def ones_like(emit: TensorEmitter, x: Any) -> Handle:
    """Ones of the shape and dtype of `x`."""
    return emit.full(emit.tile(x, "x").shape, 1, x.dtype, "1")


@tensor_function("arange")
def arange(emit: TensorEmitter, stop: Any, dtype: Any = i64) -> Handle:
    """The integers 0, 1, ... below `stop`."""
    return emit.emit("iota", shape=emit.shape(stop, "stop"), axis=0, dtype=emit.dtype(dtype))
