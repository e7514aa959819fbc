"""Tile-level ops on references: windows of global tensors, per-program buffers, asynchronous copies and barriers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.errors import SourceError
from tessera.ir import bounds, values
from tessera.ir.bounds import Bar, lift
from tessera.ir.core import Op, Value
from tessera.ir.opdef import ALIGNED, ASYNC, COLLECTIVE, PURE, REQUIRED, STRUCTURAL, TILE, Lowering, define
from tessera.ir.ops.elementwise import is_index
from tessera.ir.types import (
    BufferType,
    ListType,
    ScalarType,
    TileType,
    TokenType,
    Type,
    ViewType,
    dtype_of,
    shape_text,
)

TILE_ONLY = frozenset((TILE,))
TO_TARGET = Lowering(decomposed_by="lower_to_target")


def expect_view(op: Op, operand: str) -> ViewType:
    value = op.operand(operand)
    if not isinstance(value.type, ViewType):
        raise SourceError(
            "TS203", f"'{operand}' of {op.name} must be a tensor in global memory, but '{value.name or '?'}' is not"
        )
    return value.type


def expect_buffer(op: Op, operand: str) -> BufferType:
    value = op.operand(operand)
    if not isinstance(value.type, BufferType):
        raise SourceError(
            "TS203", f"'{operand}' of {op.name} must be a shared buffer, but '{value.name or '?'}' is not"
        )
    return value.type


def _same_shape(op: Op, left: Any, right: Any, what: str) -> None:
    if left.shape != right.shape:
        raise SourceError("TS301", f"{what}: the shapes {shape_text(left.shape)} and {shape_text(right.shape)} differ")


def _element_type(op: Op) -> tuple[Type, ...]:
    tensors, index = op.operand("tensors"), op.operand("index")
    if not isinstance(tensors.type, ListType):
        raise SourceError("TS203", f"'{tensors.name or '?'}' is not a list of tensors")
    if not is_index(index.type):
        raise SourceError("TS203", f"the index '{index.name or '?'}' of '{tensors.name}' is not an integer")
    return (tensors.type.element,)


def _element(op: Op, tensors: list[values.View], index: Any) -> values.View:
    (number,) = set(_int64(index).tolist())  # programs that want different tensors run apart
    if not 0 <= number < len(tensors):
        name, count = op.operand("tensors").name, len(tensors)
        raise SourceError("TS504", f"the index {number} is outside the list '{name}', whose length is {count}")
    return tensors[number]


define(
    "element",
    "tensors index",
    _element_type,
    "the tensor at `index`, from 0, of a list of tensors",
    PURE,
    evaluate=_element,
    lower=Lowering(template="window"),
)


def _window_type(op: Op) -> tuple[Type, ...]:
    source = expect_view(op, "view")
    extents, kept = op.attributes["extents"], op.attributes["kept"]
    if not len(op.operands) - 1 == len(extents) == len(kept) == len(source.shape):
        raise SourceError("TS304", f"a window of a tensor {shape_text(source.shape)} needs {len(source.shape)} indices")
    for offset in op.operands[1:]:
        if not is_index(offset.type):
            raise SourceError("TS203", f"the window offset '{offset.name or '?'}' is not an integer")
    return (ViewType(tuple(e for e, keep in zip(extents, kept, strict=True) if keep), source.dtype),)


def _window(op: Op, view: values.View, *offsets: Any) -> values.View:
    masked = [is_loaded(value) for value in op.operands[1:]]
    return view.narrow(list(map(_int64, offsets)), op.attributes["extents"], op.attributes["kept"], masked)


def _int64(scalar: Any) -> np.ndarray:
    return np.asarray(scalar.r if isinstance(scalar, Bar) else scalar).astype(np.int64)


def is_loaded(value: Value) -> bool:
    """Whether an index was loaded from a tensor, or computed from one that was: it is masked, not checked."""
    pending, seen = [value], set()
    while pending:
        op = pending.pop().defining_op
        if op is None or op.id in seen:
            continue
        seen.add(op.id)
        if "reads" in op.definition.effects.values():
            return True
        pending += op.operands
    return False


define(
    "window",
    "view *offsets",
    _window_type,
    "the window of `extents` at `offsets`, an index per axis; axes that are not `kept` have extent 1 and are dropped",
    PURE,
    attributes={"extents": REQUIRED, "kept": REQUIRED},
    evaluate=_window,
    lower=Lowering(template="window"),
)


def _limit_type(op: Op) -> tuple[Type, ...]:
    view = expect_view(op, "view")
    if len(op.operands) - 1 != len(view.shape):
        raise SourceError("TS304", f"a tensor {shape_text(view.shape)} takes {len(view.shape)} limits")
    for limit in op.operands[1:]:
        if not is_index(limit.type):
            raise SourceError("TS203", f"the limit '{limit.name or '?'}' is not an integer")
    return (view,)


define(
    "limit",
    "view *limits",
    _limit_type,
    "the same view, of which elements at index `limits` and beyond, a limit per axis, count as outside the tensor",
    PURE,
    evaluate=lambda op, view, *limits: view.limit(list(map(_int64, limits))),
    lower=Lowering(template="window"),
)


def _load_type(op: Op) -> tuple[Type, ...]:
    view = expect_view(op, "view")
    return (TileType(view.shape, view.dtype) if view.shape else ScalarType(view.dtype),)


define(
    "load",
    "view",
    _load_type,
    "the view's elements, zero outside its tensor; a scalar for a view without axes; where it becomes a copy of a "
    "loop, `stages` may be in flight at once if the author says so",
    STRUCTURAL,
    effects={"view": "reads"},
    attributes={"stages": None},
    levels=TILE_ONLY,
    evaluate=lambda op, view: view.load(),
    lower=TO_TARGET,
)


def _store_type(op: Op) -> tuple[Type, ...]:
    view, tile = expect_view(op, "view"), op.operand("value").type
    if not isinstance(tile, TileType):
        raise SourceError("TS203", "a store takes a tile")
    _same_shape(op, view, tile, "a store of a tile to a window")
    check_mask(op)
    return ()


def check_mask(op: Op) -> None:
    """The optional mask of a store: one tile of bools of the value's shape. Raises SourceError TS301."""
    tile = op.operand("value").type
    for mask in op.operands[2:]:
        shaped = isinstance(mask.type, TileType) and isinstance(tile, TileType) and mask.type.shape == tile.shape
        if len(op.operands) > 3 or not shaped or not dtype_of(mask.type).is_bool:
            raise SourceError("TS301", "the mask of a store must be one tile of bools of the shape of its value")


define(
    "store",
    "view value *mask",
    _store_type,
    "rounds a tile to the tensor's dtype and writes what lies inside the tensor and, with a mask, where that holds",
    STRUCTURAL,
    ALIGNED,
    effects={"view": "writes"},
    levels=TILE_ONLY,
    evaluate=lambda op, view, value, mask=None: view.store(value, mask),
    lower=TO_TARGET,
)

define(
    "alloc_shared",
    "",
    lambda op: (BufferType(tuple(op.attributes["shape"]), op.attributes["dtype"]),),
    "a logical buffer of the program, undefined until written; where it lives is the compiler's choice; with `stages` "
    "above 1 it exists as often, and `stage` refers to one; what products in parts read of it is in parts if `apart`",
    attributes={"shape": REQUIRED, "dtype": REQUIRED, "swizzle": "none", "stages": 1, "apart": False},
    levels=TILE_ONLY,
    lower=TO_TARGET,
)


def _stage_type(op: Op) -> tuple[Type, ...]:
    buffer, index = expect_buffer(op, "buffer"), op.operand("index")
    allocation = op.operand("buffer").defining_op
    if allocation is None or (allocation.get("stages") or 1) < 2:
        raise SourceError("TS703", f"the buffer '{op.operand('buffer').name or '?'}' has no stages")
    if not is_index(index.type):
        raise SourceError("TS203", f"the number '{index.name or '?'}' of a stage is not an integer")
    return (buffer,)


def _stage(op: Op, stages: list[values.Buffer], index: Any) -> values.Buffer:
    (number,) = set(_int64(index).tolist())  # programs that want different stages run apart
    if not 0 <= number < len(stages):
        raise SourceError("TS504", f"'{op.operand('buffer').name}' has {len(stages)} stages and no number {number}")
    return stages[number]


define(
    "stage",
    "buffer index",
    _stage_type,
    "stage `index`, from 0, of a buffer that is allocated with several",
    PURE,
    evaluate=_stage,
    lower=Lowering(template="stage"),
)


def _copy_type(op: Op) -> tuple[Type, ...]:
    buffer, view = expect_buffer(op, "buffer"), expect_view(op, "view")
    _same_shape(op, buffer, view, f"copy into '{op.operand('buffer').name}'")
    if buffer.dtype != view.dtype:
        raise SourceError(
            "TS204",
            f"copy into '{op.operand('buffer').name}' of {buffer.dtype.name} from a tensor of "
            f"{view.dtype.name}: an asynchronous copy does not convert",
        )
    return (TokenType(),)


def check_landed(buffer: values.Buffer, name: str) -> None:
    """Raises SourceError TS502 while a copy into `buffer` is in flight."""
    if any(not token.done for token in buffer.in_flight):
        raise SourceError("TS502", f"'{name}' is used while an asynchronous copy into it is in flight")
    buffer.in_flight.clear()


def write_window(buffer: values.Buffer, index: tuple[Any, ...], value: Any) -> None:
    """Writes a tile, rounded to the buffer's dtype, and marks the elements defined.

    Raises SourceError TS502 while an asynchronous store reads the buffer.
    """
    if any(not token.done for token in buffer.leaving):
        raise SourceError("TS502", "a buffer is overwritten while an asynchronous store may still read it")
    buffer.leaving.clear()
    if isinstance(value, Bar):
        value = bounds.round_explicit(buffer.dtype, value)
        buffer.data.r[index], buffer.data.e[index] = value.r, value.e
    else:
        from tessera.dtypes import round_to

        buffer.data[index] = round_to(buffer.dtype, value)
    buffer.defined[index] = True


def whole(buffer: values.Buffer) -> tuple[Any, ...]:
    return (slice(None),) * buffer.defined.ndim


def _copy(op: Op, buffer: values.Buffer, view: values.View) -> values.Token:
    check_landed(buffer, op.operand("buffer").name)
    token = values.Token(lambda: write_window(buffer, whole(buffer), view.load()))
    buffer.in_flight.append(token)
    return token


define(
    "copy_async",
    "buffer view",
    _copy_type,
    "starts copying a window into a buffer of its shape and dtype, zero outside the tensor; done at the wait; of a "
    "loop's copies `stages` may be in flight at once where the author says so",
    ASYNC,
    effects={"buffer": "writes", "view": "reads"},
    attributes={"bypass_l1": False, "stages": None},
    levels=TILE_ONLY,
    evaluate=_copy,
    lower=TO_TARGET,
)


def _tokens(op: Op) -> tuple[Type, ...]:
    for value in op.operands:
        if not isinstance(value.type, TokenType):
            raise SourceError("TS203", f"{op.name} takes tokens")
    return ()


define(
    "no_copy",
    "",
    lambda op: (TokenType(),),
    "a token of nothing, which is complete: where a branch starts no copy",
    PURE,
    evaluate=lambda op: values.Token(lambda: None, done=True),
    lower=Lowering(template="no_copy"),
)


def _commit(op: Op, *tokens: values.Token) -> values.Token:
    def land() -> None:
        for token in tokens:
            token.wait()

    return values.Token(land)


define(
    "async_commit",
    "*tokens",
    lambda op: (*_tokens(op), TokenType()),
    "closes a group of copies; its token stands for all of them",
    evaluate=_commit,
    lower=Lowering(template="async_commit"),
)

define(
    "wait",
    "*tokens",
    _tokens,
    "completes the asynchronous ops of `tokens`",
    levels=TILE_ONLY,
    evaluate=lambda op, *tokens: [token.wait() for token in tokens] and None,
    lower=TO_TARGET,
)


def _read_type(op: Op) -> tuple[Type, ...]:
    buffer, extents = expect_buffer(op, "buffer"), op.attributes["extents"]
    if extents is None and len(op.operands) == 1:
        return (TileType(buffer.shape, buffer.dtype),)
    if extents is None or len(op.operands) - 1 != len(extents) or len(extents) != len(buffer.shape):
        raise SourceError(
            "TS304", f"a window of a buffer {shape_text(buffer.shape)} needs an offset and an extent per axis"
        )
    return (TileType(tuple(extents), buffer.dtype),)


def read_buffer(op: Op, buffer: values.Buffer, offsets: tuple[Any, ...], extents: tuple[int, ...] | None) -> Any:
    return read_window(op.operand("buffer").name, buffer, offsets, extents)


def read_window(name: str, buffer: values.Buffer, offsets: Sequence[Any], extents: tuple[int, ...] | None) -> Any:
    """A window of the buffer that the author calls `name`, or all of it."""
    check_landed(buffer, name)
    try:
        index = (
            whole(buffer)
            if extents is None
            else buffer.window(
                [np.asarray(o.r if isinstance(o, Bar) else o).astype(np.int64) for o in offsets], extents
            )
        )
    except IndexError as error:
        raise SourceError("TS504", f"a window of '{name}' leaves it: {error}") from None
    if not buffer.defined[index].all():
        raise SourceError("TS503", f"'{name}' is read before all of its elements are written")
    return lift(lambda x: np.array(x[index]), buffer.data)  # a copy: the buffer may change while the tile is in use


define(
    "read",
    "buffer *offsets",
    _read_type,
    "a buffer's elements, or its window of `extents` at `offsets`",
    STRUCTURAL,
    effects={"buffer": "reads"},
    attributes={"extents": None},
    levels=TILE_ONLY,
    evaluate=lambda op, buffer, *offsets: read_buffer(op, buffer, offsets, op.attributes["extents"]),
    lower=TO_TARGET,
)


def _write_type(op: Op) -> tuple[Type, ...]:
    buffer, tile = expect_buffer(op, "buffer"), op.operand("value").type
    if not isinstance(tile, TileType):
        raise SourceError("TS203", "a write takes a tile")
    if len(op.operands) == 2:
        _same_shape(op, buffer, tile, f"write to '{op.operand('buffer').name}'")
    elif len(op.operands) - 2 != len(buffer.shape) or len(tile.shape) != len(buffer.shape):
        raise SourceError("TS304", f"a window of a buffer {shape_text(buffer.shape)} needs an offset per axis")
    return ()


def _write(op: Op, buffer: values.Buffer, value: Any, *offsets: Any) -> None:
    name = op.operand("buffer").name
    check_landed(buffer, name)
    try:
        index = (
            buffer.window(
                [np.asarray(o.r if isinstance(o, Bar) else o).astype(np.int64) for o in offsets], value.shape[1:]
            )
            if offsets
            else whole(buffer)
        )
    except IndexError as error:
        raise SourceError("TS504", f"a window of '{name}' leaves it: {error}") from None
    write_window(buffer, index, value)


define(
    "write",
    "buffer value *offsets",
    _write_type,
    "rounds a tile to the buffer's dtype and writes it, whole or at `offsets`",
    STRUCTURAL,
    effects={"buffer": "writes"},
    levels=TILE_ONLY,
    evaluate=_write,
    lower=TO_TARGET,
)


NAMED_BARRIERS = 16  # of a block; number 0 is that of all of its threads


def _barrier_type(op: Op) -> tuple[Type, ...]:
    number, threads = op.attributes["id"], op.attributes["threads"]
    if not 0 <= number < NAMED_BARRIERS or threads % 32 or (number == 0) != (threads == 0) or threads < 0:
        raise SourceError("TS703", f"barrier {number} of {threads} threads: 1 to 15 is of whole warps, 0 of the block")
    return ()


define(
    "barrier",
    "",
    _barrier_type,
    "waits for every thread of the block, or of a role: for `threads` threads by the hardware's barrier `id`; at Tile "
    "level it orders nothing that is not ordered already",
    COLLECTIVE,
    attributes={"id": 0, "threads": 0},
    evaluate=lambda op: None,
    lower=Lowering(template="barrier"),
)
