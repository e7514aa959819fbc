"""Target-level ops of the sm_80 lane: each is one statement of CUDA, with its layout, vector width and place decided.

On the Target interpreter they work on whole tiles. A shared buffer has its physical, padded shape there, because matrix
operands are read past the logical edge, where the copies wrote zeros.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tessera.dtypes import f32, round_to
from tessera.errors import SourceError
from tessera.ir import values
from tessera.ir.bounds import Bar, lift
from tessera.ir.core import Op
from tessera.ir.opdef import ASYNC, COLLECTIVE, PURE, REQUIRED, STRUCTURAL, TARGET, Lowering, define
from tessera.ir.ops.memory import check_landed, check_mask, expect_buffer, expect_view, read_buffer, write_window
from tessera.ir.ops.tiles import expect_tile, mma_bound, mma_evaluate, round_tf32
from tessera.ir.types import BufferType, ScalarType, TileType, TokenType, Type, int_shape, shape_of, tile_layout

TARGET_ONLY = frozenset((TARGET,))


define(
    "shared",
    "",
    lambda op: (BufferType(tuple(op.attributes["shape"]), op.attributes["dtype"], op.attributes["layout"]),),
    "a buffer in shared memory at byte `offset` (-1 until placed) with a physical layout; its `stages` follow one "
    "another",
    attributes={"shape": REQUIRED, "dtype": REQUIRED, "layout": REQUIRED, "offset": -1, "stages": 1},
    levels=TARGET_ONLY,
    lower=Lowering(template="shared"),
)


def _global_load_type(op: Op) -> tuple[Type, ...]:
    view = expect_view(op, "view")
    if not view.shape:
        return (ScalarType(view.dtype),)
    return (TileType(view.shape, view.dtype, op.attributes["layout"]),)


define(
    "ld_global",
    "view",
    _global_load_type,
    "loads a window into registers, `vector` bytes an access, zero outside",
    STRUCTURAL,
    effects={"view": "reads"},
    attributes={"layout": None, "vector": 0},
    levels=TARGET_ONLY,
    evaluate=lambda op, view: view.load(),
    lower=Lowering(template="ld_global"),
)


def _global_store_type(op: Op) -> tuple[Type, ...]:
    view, tile = expect_view(op, "view"), expect_tile(op, "value")
    if view.shape != tile.shape:
        raise SourceError("TS703", "st_global of a tile to a window of another shape")
    check_mask(op)
    if any(tile_layout(mask.type) != tile.layout for mask in op.operands[2:]):
        raise SourceError("TS703", "st_global of a tile whose mask has another register layout")
    return ()


define(
    "st_global",
    "view value *mask",
    _global_store_type,
    "rounds a register tile to the tensor's dtype and stores what lies inside, `vector` bytes an access",
    STRUCTURAL,
    effects={"view": "writes"},
    attributes={"vector": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=lambda op, view, value, mask=None: view.store(value, mask),
    lower=Lowering(template="st_global"),
)


def _copy_type(op: Op) -> tuple[Type, ...]:
    buffer, view = expect_buffer(op, "buffer"), expect_view(op, "view")
    if buffer.dtype != view.dtype or len(buffer.shape) < len(view.shape):
        raise SourceError("TS703", "cp_async between a window and a buffer of another kind")
    return (TokenType(),)


def physical_shape(type_: BufferType) -> tuple[int, ...]:
    """The padded shape of a shared buffer as it is laid out. All axes but the last are the layout's rows, and only a
    buffer of two axes, which products read past its edges, has rows of padding.
    """
    layout, shape = type_.layout, int_shape(type_)
    if layout is None:
        return shape
    if len(shape) < 2:
        return (layout.cols,)
    if len(shape) > 2:
        return (*shape[:-1], layout.cols)
    return (layout.rows, layout.cols)


def _padded(tile: Any, shape: tuple[int, ...]) -> Any:
    widths = [(0, 0)] + [(0, full - size) for full, size in zip(shape, tile.shape[1:], strict=True)]
    return lift(lambda x: np.pad(x, widths), tile)


def _copy(op: Op, buffer: values.Buffer, view: values.View) -> values.Token:
    check_landed(buffer, op.operand("buffer").name)
    shape = buffer.defined.shape[1:]

    def land() -> None:
        write_window(buffer, (slice(None),) * (len(shape) + 1), _padded(view.load(), shape))

    token = values.Token(land)
    buffer.in_flight.append(token)
    return token


define(
    "cp_async",
    "buffer view",
    _copy_type,
    "starts copying a window into a shared buffer, `vector` bytes (16, 8, 4) an access, zeros outside the tensor and "
    "in the padding; `vector` below 4 means ordinary loads and stores, done at once; `whole`: "
    "no access is partly inside",
    ASYNC,
    effects={"buffer": "writes", "view": "reads"},
    attributes={"vector": REQUIRED, "bypass_l1": False, "whole": False},
    levels=TARGET_ONLY,
    evaluate=_copy,
    lower=Lowering(template="cp_async"),
)


define(
    "async_wait",
    "*groups",
    lambda op: (),
    "waits until at most the `pending` newest groups are in flight; `groups` are those that must then be complete",
    attributes={"pending": 0},
    levels=TARGET_ONLY,
    evaluate=lambda op, *groups: [group.wait() for group in groups] and None,
    lower=Lowering(template="async_wait"),
)


def _shared_load_type(op: Op) -> tuple[Type, ...]:
    buffer = expect_buffer(op, "buffer")
    if len(op.operands) - 1 != len(buffer.shape) or len(op.attributes["shape"]) != len(buffer.shape):
        raise SourceError("TS703", f"{op.name} needs an offset per axis of its buffer")
    return (TileType(tuple(op.attributes["shape"]), buffer.dtype, op.attributes["layout"]),)


define(
    "ld_shared",
    "buffer *offsets",
    _shared_load_type,
    "loads a window of a shared buffer into registers, `vector` bytes an access",
    STRUCTURAL,
    effects={"buffer": "reads"},
    attributes={"shape": REQUIRED, "layout": REQUIRED, "vector": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=lambda op, buffer, *offsets: read_buffer(op, buffer, offsets, op.attributes["shape"]),
    lower=Lowering(template="ld_shared"),
)


define(
    "ld_matrices",
    "buffer *offsets",
    _shared_load_type,
    "loads a window of a shared buffer of 16-bit elements into registers that hold it as 8x8 matrices, as fragments "
    "do, by ldmatrix: all that the layout covers lies in the buffer, and rows start at multiples of 16 bytes",
    STRUCTURAL,
    effects={"buffer": "reads"},
    attributes={"shape": REQUIRED, "layout": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=lambda op, buffer, *offsets: read_buffer(op, buffer, offsets, op.attributes["shape"]),
    lower=Lowering(template="ld_matrices"),
)


def _st_shared(op: Op, buffer: values.Buffer, value: Any, *offsets: Any) -> None:
    """Writes the window; a store of the whole logical tile fills the padding with zeros as well."""
    check_landed(buffer, op.operand("buffer").name)
    logical = shape_of(op.operand("buffer").type)
    if value.shape[1:] == logical:
        write_window(buffer, (slice(None),) * (len(logical) + 1), _padded(value, buffer.defined.shape[1:]))
        return
    index = buffer.window(
        [np.asarray(o.r if isinstance(o, Bar) else o).astype(np.int64) for o in offsets], value.shape[1:]
    )
    write_window(buffer, index, value)


define(
    "st_shared",
    "buffer value *offsets",
    lambda op: () if expect_tile(op, "value") and expect_buffer(op, "buffer") else (),
    "rounds a register tile to the buffer's dtype and stores it at `offsets`, `vector` bytes an access; a store of the "
    "whole tile fills the padding with zeros",
    STRUCTURAL,
    effects={"buffer": "writes"},
    attributes={"vector": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=_st_shared,
    lower=Lowering(template="st_shared"),
)


define(
    "st_matrices",
    "buffer value *offsets",
    lambda op: () if expect_tile(op, "value") and expect_buffer(op, "buffer") else (),
    "stores a register tile of 16-bit elements that holds it as 8x8 matrices, as fragments do, by stmatrix, at "
    "`offsets` of a buffer of its dtype; rows start at multiples of 16 bytes",
    STRUCTURAL,
    effects={"buffer": "writes"},
    levels=TARGET_ONLY,
    evaluate=_st_shared,
    lower=Lowering(template="st_matrices"),
)


def _fragment_type(op: Op) -> tuple[Type, ...]:
    buffer = expect_buffer(op, "buffer")
    return (TileType(tuple(op.attributes["shape"]), op.attributes.get("dtype", buffer.dtype), op.attributes["layout"]),)


def _load_operand(op: Op, buffer: values.Buffer, row: Any, column: Any) -> Any:
    tile = _load_fragment(op, buffer, row, column)
    return lift(lambda x: round_to(op.attributes["dtype"], x), tile)


def _load_fragment(op: Op, buffer: values.Buffer, row: Any, column: Any) -> Any:
    shape, transposed = op.attributes["shape"], op.attributes["transposed"]
    extents = shape[::-1] if transposed else shape
    tile = read_buffer(op, buffer, (row, column), extents)
    return lift(lambda x: np.swapaxes(x, -1, -2), tile) if transposed else tile


define(
    "ldmatrix",
    "buffer row column",
    _fragment_type,
    "loads matrix operand `role` (a: [M, k-block], b: [k-block, N]) as mma fragments from rows and columns of the "
    "buffer; `transposed`: the buffer holds the operand's transpose, read at (row, column) of the buffer; 4-byte "
    "elements only where the buffer's rows run along k",
    STRUCTURAL,
    effects={"buffer": "reads"},
    attributes={"shape": REQUIRED, "layout": REQUIRED, "role": REQUIRED, "transposed": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=_load_fragment,
    lower=Lowering(template="ldmatrix"),
)

define(
    "ld_operand",
    "buffer row column",
    _fragment_type,
    "loads a matrix operand by elements, `vector` bytes an access, and widens it exactly to `dtype`: f32, or f16 in "
    "packed pairs; other fields as of ldmatrix",
    STRUCTURAL,
    effects={"buffer": "reads"},
    attributes={
        "shape": REQUIRED,
        "layout": REQUIRED,
        "role": REQUIRED,
        "transposed": REQUIRED,
        "dtype": REQUIRED,
        "vector": REQUIRED,
    },
    levels=TARGET_ONLY,
    evaluate=_load_operand,
    lower=Lowering(template="ld_operand"),
)


def _part_type(op: Op) -> tuple[Type, ...]:
    tile, shape = expect_tile(op, "a"), tuple(op.attributes["shape"])
    layout, whole = op.attributes["layout"], tile_layout(tile)
    offset = op.attributes["offset"]
    if len(tile.shape) != 2 or shape[0] != tile.shape[0] or offset % shape[1] or offset + shape[1] > tile.shape[1]:
        raise SourceError("TS703", "fragment of no k-block of its tile")
    if layout != replace(whole, repeats=(whole.repeats[0], 1)) or layout.shape[1] != shape[1]:
        raise SourceError("TS703", "fragment of a tile that lies in other registers")
    return (TileType(shape, tile.dtype, layout),)


def _columns(op: Op, a: Any) -> Any:
    first, last = op.attributes["offset"], op.attributes["offset"] + op.attributes["shape"][-1]
    return lift(lambda x: x[..., first:last], a)


define(
    "fragment",
    "a",
    _part_type,
    "the mma fragments of the k-block from `offset` on of a matrix operand that is in registers, packed in words",
    PURE,
    STRUCTURAL,
    attributes={"shape": REQUIRED, "layout": REQUIRED, "offset": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=_columns,
    lower=Lowering(template="fragment"),
)


def _columns_type(op: Op) -> tuple[Type, ...]:
    tile, shape, offset = expect_tile(op, "a"), tuple(op.attributes["shape"]), op.attributes["offset"]
    layout, whole = op.attributes["layout"], tile_layout(tile)
    block = whole.repeat_shape[-1]
    if shape[:-1] != int_shape(tile)[:-1] or offset % block or offset + shape[-1] > int_shape(tile)[-1]:
        raise SourceError("TS703", "columns that are no whole blocks of their tile")
    part = replace(whole, repeats=(*whole.repeats[:-1], layout.repeats[-1]))
    if layout != part or layout.shape[-1] != shape[-1]:
        raise SourceError("TS703", "columns of a tile that lies in other registers")
    return (TileType(shape, tile.dtype, layout),)


define(
    "columns",
    "a",
    _columns_type,
    "the columns of a tile from `offset` on, some of its registers",
    PURE,
    STRUCTURAL,
    attributes={"shape": REQUIRED, "layout": REQUIRED, "offset": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=_columns,
    lower=Lowering(template="columns"),
)


define(
    "hold",
    "a",
    lambda op: (expect_tile(op, "a"),),
    "the same tile; what is computed of it is computed anew, not kept from before",
    PURE,
    STRUCTURAL,
    levels=TARGET_ONLY,
    evaluate=lambda op, a: a,
    lower=Lowering(template="hold"),
)


def _rounded_type(op: Op) -> tuple[Type, ...]:
    tile = expect_tile(op, "a")
    if tile.dtype != f32:
        raise SourceError("TS703", f"{op.name} of {tile.dtype.name} operands")
    return (tile,)


define(
    "round_tf32",
    "a",
    _rounded_type,
    "an f32 fragment rounded to tf32, to nearest, ties away from zero",
    PURE,
    levels=TARGET_ONLY,
    evaluate=lambda op, a: round_tf32(a),
    bound=lambda op, a: round_tf32(a),
    lower=Lowering(template="round_tf32"),
)


def _product_type(op: Op) -> tuple[Type, ...]:
    a, b, acc = expect_tile(op, "a"), expect_tile(op, "b"), expect_tile(op, "acc")
    if a.shape[1] != b.shape[0] or acc.shape != (a.shape[0], b.shape[1]) or acc.dtype != f32 or a.dtype != b.dtype:
        raise SourceError("TS703", f"{op.name} of operands that do not match")
    if a.dtype.name not in (("bf16", "f16", "f32") if op.name == "mma_sync" else ("f32",)):
        raise SourceError("TS703", f"{op.name} of {a.dtype.name} operands")
    return (acc,)


define(
    "mma_sync",
    "a b acc",
    _product_type,
    "acc + a @ b for one k-block by mma.sync: 16 deep for bf16 and f16, 8 for f32 operands rounded to tf32",
    PURE,
    levels=TARGET_ONLY,
    evaluate=mma_evaluate,
    bound=mma_bound,
    lower=Lowering(template="mma_sync"),
)

define(
    "fma_block",
    "a b acc",
    _product_type,
    "acc + a @ b for one k-block of 8 in true f32",
    PURE,
    levels=TARGET_ONLY,
    evaluate=mma_evaluate,
    bound=mma_bound,
    lower=Lowering(template="fma_block"),
)

COLLECTIVES = COLLECTIVE
