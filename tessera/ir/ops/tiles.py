"""Ops that make, reshape, reduce and multiply tiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera.dtypes import f32, i64, round_to
from tessera.errors import SourceError
from tessera.ir import bounds, numeric
from tessera.ir.bounds import Bar, lift
from tessera.ir.core import Op
from tessera.ir.layout import transposed_layout
from tessera.ir.opdef import (
    CONSTANT,
    EVERY_LEVEL,
    GRAPH,
    PURE,
    REQUIRED,
    STRUCTURAL,
    TARGET,
    TILE,
    Lowering,
    define,
)
from tessera.ir.products import (
    FAST_ACCUM,
    FP8,
    FP8_FAST,
    FP8_PART,
    K_BLOCKS,
    SPLIT,
    SPLIT_PARTS,
    TF32,
    is_fp8,
    operand_dtypes,
    product_format,
)
from tessera.ir.types import ScalarType, TileType, Type, dtype_of, int_shape, shape_text


def expect_tile(op: Op, operand: str) -> TileType:
    value = op.operand(operand)
    if not isinstance(value.type, TileType):
        raise SourceError("TS203", f"'{operand}' of {op.name} must be a tile, but '{value.name or '?'}' is not")
    return value.type


define(
    "constant",
    "",
    lambda op: (ScalarType(op.attributes["dtype"], op.attributes["weak"]),),
    "a number known at compile time; weak when it is a Python literal",
    PURE,
    CONSTANT,
    attributes={"value": REQUIRED, "dtype": f32, "weak": False},
    evaluate=lambda op: round_to(op.attributes["dtype"], np.array([op.attributes["value"]])),
    levels=EVERY_LEVEL,
    lower=Lowering(template="constant"),
)

define(
    "size",
    "",
    lambda op: (ScalarType(i64),),
    "the value of a size over the kernel's dims",
    PURE,
    attributes={"size": REQUIRED},
    levels=EVERY_LEVEL,
    lower=Lowering(template="size"),
)

define(
    "program_id",
    "",
    lambda op: (ScalarType(i64),),
    "index of the program along a grid axis, times `scale` (a coarsened grid launches every scale-th id)",
    PURE,
    attributes={"axis": REQUIRED, "scale": 1},
    lower=Lowering(template="program_id"),
)


define(
    "num_programs",
    "",
    lambda op: (ScalarType(i64),),
    "how many programs the launch has along a grid axis",
    PURE,
    attributes={"axis": REQUIRED},
    lower=Lowering(template="num_programs"),
)


def _full_type(op: Op) -> tuple[Type, ...]:
    return (TileType(tuple(op.attributes["shape"]), op.attributes["dtype"], op.attributes["layout"]),)


def _full(op: Op, value: Any) -> Any:
    shape, dtype = int_shape(op.result.type), dtype_of(op.result.type)
    value = bounds.round_explicit(dtype, value) if isinstance(value, Bar) else round_to(dtype, value)
    return lift(lambda x: np.broadcast_to(x.reshape(-1, *(1,) * len(shape)), (x.shape[0], *shape)), value)


define(
    "full",
    "value",
    _full_type,
    "a tile with every element equal to the scalar `value`, rounded to dtype",
    PURE,
    STRUCTURAL,
    attributes={"shape": REQUIRED, "dtype": REQUIRED, "layout": None},
    evaluate=_full,
    levels=EVERY_LEVEL,
    lower=Lowering(template="full"),
)


def _broadcast_type(op: Op) -> tuple[Type, ...]:
    source, shape = expect_tile(op, "a"), tuple(op.attributes["shape"])
    fits = len(source.shape) == len(shape) and all(s in (1, t) for s, t in zip(source.shape, shape, strict=True))
    if not fits:
        raise SourceError("TS301", f"a tile {shape_text(source.shape)} does not broadcast to {shape_text(shape)}")
    return (TileType(shape, source.dtype, op.attributes["layout"]),)


define(
    "broadcast",
    "a",
    _broadcast_type,
    "a with its axes of size 1 repeated to `shape`",
    PURE,
    STRUCTURAL,
    attributes={"shape": REQUIRED, "layout": None},
    evaluate=lambda op, a: lift(lambda x: np.broadcast_to(x, (x.shape[0], *int_shape(op.result.type))), a),
    levels=EVERY_LEVEL,
    lower=Lowering(template="broadcast"),
)


def _reshape_type(op: Op) -> tuple[Type, ...]:
    source, shape = expect_tile(op, "a"), tuple(op.attributes["shape"])
    counts: list[Any] = []
    for sizes in (source.shape, shape):
        count: Any = 1
        for size in sizes:
            count = count * size
        counts.append(count)
    if counts[0] != counts[1]:
        raise SourceError("TS301", f"a tile {shape_text(source.shape)} cannot be reshaped to {shape_text(shape)}")
    return (TileType(shape, source.dtype, op.attributes["layout"]),)


define(
    "reshape",
    "a",
    _reshape_type,
    "the elements of a in row-major order under another shape; at Target level the same registers under another name",
    PURE,
    STRUCTURAL,
    attributes={"shape": REQUIRED, "layout": None},
    evaluate=lambda op, a: lift(lambda x: x.reshape(x.shape[0], *int_shape(op.result.type)), a),
    levels=EVERY_LEVEL,
    lower=Lowering(template="reshape"),
)


def _transpose_type(op: Op) -> tuple[Type, ...]:
    source = expect_tile(op, "a")
    if len(source.shape) < 2:
        raise SourceError("TS304", f"transpose takes a tile of at least two axes, not {shape_text(source.shape)}")
    layout = transposed_layout(source.layout) if source.layout is not None else None
    return (TileType((*source.shape[:-2], source.shape[-1], source.shape[-2]), source.dtype, layout),)


define(
    "transpose",
    "a",
    _transpose_type,
    "a with its last two axes exchanged; at Target level every element stays in its thread",
    PURE,
    STRUCTURAL,
    evaluate=lambda op, a: lift(lambda x: np.swapaxes(x, -1, -2), a),
    lower=Lowering(template="broadcast"),
)


def _iota_type(op: Op) -> tuple[Type, ...]:
    shape, axis = tuple(op.attributes["shape"]), op.attributes["axis"]
    if not -len(shape) <= axis < len(shape):
        raise SourceError("TS304", f"axis {axis} is outside a tile of {len(shape)} axes")
    return (TileType(shape, op.attributes["dtype"], op.attributes["layout"]),)


def _iota(op: Op) -> Any:
    shape = int_shape(op.result.type)
    axis = op.attributes["axis"] % len(shape)
    index = round_to(dtype_of(op.result.type), np.arange(shape[axis]))
    return np.broadcast_to(index.reshape(-1, *(1,) * (len(shape) - axis - 1)), (1, *shape))


define(
    "iota",
    "",
    _iota_type,
    "a tile in which every element is its own index along `axis`",
    PURE,
    attributes={"shape": REQUIRED, "axis": REQUIRED, "dtype": REQUIRED, "layout": None},
    evaluate=_iota,
    levels=EVERY_LEVEL,
    lower=Lowering(template="elementwise"),
)


def _extract_type(op: Op) -> tuple[Type, ...]:
    source, starts, extents = expect_tile(op, "a"), op.attributes["starts"], op.attributes["extents"]
    if not len(starts) == len(extents) == len(source.shape):
        raise SourceError(
            "TS304", f"a part of a tile {shape_text(source.shape)} needs a start and an extent for each axis"
        )
    for axis, (start, extent, size) in enumerate(zip(starts, extents, source.shape, strict=True)):
        if not (isinstance(start, int) and isinstance(extent, int) and isinstance(size, int)):
            continue
        if not (0 <= start and 0 < extent and start + extent <= size):
            raise SourceError(
                "TS504", f"the part {start}:{start + extent} leaves axis {axis} of a tile {shape_text(source.shape)}"
            )
    return (TileType(tuple(extents), source.dtype),)


def _extract(op: Op, a: Any) -> Any:
    starts, extents = op.attributes["starts"], op.attributes["extents"]
    index = (slice(None), *(slice(start, start + extent) for start, extent in zip(starts, extents, strict=True)))
    return lift(lambda x: x[index], a)


define(
    "extract",
    "a",
    _extract_type,
    "the part of a of `extents` at the constant `starts`",
    PURE,
    STRUCTURAL,
    attributes={"starts": REQUIRED, "extents": REQUIRED},
    levels=frozenset((GRAPH, TILE)),
    evaluate=_extract,
    lower=Lowering(decomposed_by="lower_to_target"),
)


def negative_axis(op: Op, rank: int) -> int:
    axis = op.attributes["axis"]
    if not -rank <= axis < rank:
        raise SourceError("TS304", f"axis {axis} is outside a tile of {rank} axes")
    return axis if axis < 0 else axis - rank


def _mma_type(op: Op) -> tuple[Type, ...]:
    a, b = expect_tile(op, "a"), expect_tile(op, "b")
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise SourceError("TS304", f"mma takes tiles of two axes, not {shape_text(a.shape)} and {shape_text(b.shape)}")
    known = product_format(a.dtype, b.dtype, op.attributes["precision"]) is not None
    if not known and product_format(a.dtype, b.dtype) is None:
        raise SourceError("TS204", f"mma takes {operand_dtypes()}, not {a.dtype.name} and {b.dtype.name}")
    if not known:
        raise SourceError(
            "TS402", f"products of {a.dtype.name} and {b.dtype.name} have no precision {op.attributes['precision']!r}"
        )
    m, k = reversed(a.shape) if op.attributes["transpose_a"] else a.shape
    k_of_b, n = reversed(b.shape) if op.attributes["transpose_b"] else b.shape
    if k != k_of_b:
        raise SourceError(
            "TS301", f"mma of {shape_text(a.shape)} and {shape_text(b.shape)}: the inner sizes {k} and {k_of_b} differ"
        )
    layout = None
    for acc in op.operands[2:]:
        if not isinstance(acc.type, TileType) or acc.type.shape != (m, n) or acc.type.dtype != f32:
            raise SourceError("TS301", f"the accumulator of this mma must be an f32 tile {shape_text((m, n))}")
        layout = acc.type.layout
    return (TileType((m, n), f32, layout),)


def format_of(op: Op) -> str:
    """The format in which a product multiplies its operands. Operands of Target products have it already."""
    a, b = (dtype_of(value.type) for value in op.operands[:2])
    found = product_format(a, b, op.attributes.get("precision"))
    assert found is not None, "the type rule of products ran before"
    return found


def k_block(op: Op) -> int:
    """How many products the matrix unit sums before it rounds into the accumulator."""
    return K_BLOCKS[format_of(op)]


# Below this the last of three parts is less than bf16's smallest number: what is lost of one is no more than that.
SPLIT_LOSES = 2.0**-110


def _mma_operands(op: Op, a: Any, b: Any) -> tuple[Any, Any]:
    if format_of(op) == TF32:
        a, b = round_tf32(a), round_tf32(b)
    a = lift(lambda x: np.swapaxes(x, -1, -2), a) if op.attributes.get("transpose_a") else a
    b = lift(lambda x: np.swapaxes(x, -1, -2), b) if op.attributes.get("transpose_b") else b
    return a, b


def round_tf32(x: Any) -> Any:
    """Values or bars rounded to tf32, a rounding that nothing skips."""
    return bounds.rounded_explicitly(numeric.round_tf32, x) if isinstance(x, Bar) else numeric.round_tf32(x)


def mma_evaluate(op: Op, a: Any, b: Any, acc: Any = None) -> Any:
    a, b = in_parts(op, *_mma_operands(op, a, b))
    start = np.zeros((1, a.shape[-2], b.shape[-1]), np.float32) if acc is None else acc
    if op.attributes.get("precision") == FP8:
        return numeric.matmul_in_parts(a, b, start, k_block(op), FP8_PART)
    return numeric.matmul(a, b, start, k_block(op))


def mma_bound(op: Op, a: Bar, b: Bar, acc: Bar | None = None) -> Bar:
    return product_bound(op, *_mma_operands(op, a, b), acc)


def in_parts(op: Op, a: Any, b: Any) -> tuple[Any, Any]:
    """Arrays whose product by the k-block rule is that of `a` and `b`: of f32 in parts, each k-block once for each."""
    return numeric.in_bf16_parts(a, b, k_block(op)) if format_of(op) == SPLIT else (a, b)


def product_bound(op: Op, a: Bar, b: Bar, acc: Bar | None) -> Bar:
    """The bar of a product of operands that are in its format and lie as in mathematics."""
    if format_of(op) == SPLIT:
        lost = np.where(np.abs(a.r) + a.e < SPLIT_LOSES, SPLIT_LOSES, 0.0)
        return bounds.matmul(Bar(a.r, a.e + lost), b, acc, k_block(op) // SPLIT_PARTS)
    if is_fp8(*(dtype_of(value.type) for value in op.operands[:2])):
        in_place = op.attributes.get("precision") in (FAST_ACCUM, FP8_FAST)
        return bounds.matmul_fp8(a, b, acc, k_block(op), in_place)
    return bounds.matmul(a, b, acc, k_block(op))


define(
    "mma",
    "a b *acc",
    _mma_type,
    "acc + a @ b, accumulated in f32; 8- and 16-bit operands on tensor cores, f32 in true f32 unless `precision` is "
    "tf32, which rounds the operands; fp8 operands as f16, unless it is fp8, with sums in f32 after every 128 of k, or "
    "fp8_fast, with sums in the matrix unit; f32 times bf16 in three parts of bf16 where it is bf16x3",
    PURE,
    attributes={"transpose_a": False, "transpose_b": False, "precision": None},
    levels=frozenset((TILE,)),
    evaluate=mma_evaluate,
    bound=mma_bound,
    lower=Lowering(decomposed_by="lower_to_target"),
)


__all__ = [
    "TARGET",
    "format_of",
    "in_parts",
    "k_block",
    "mma_bound",
    "mma_evaluate",
    "negative_axis",
    "product_bound",
    "round_tf32",
]
