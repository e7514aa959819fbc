"""Ops that move elements of tiles: broadcasts, reshapes, transposes, parts."""

from __future__ import annotations

import math

from tessera.dtypes import i64
from tessera.ir.core import Builder, Op, Value
from tessera.ir.layout import RegisterLayout, shared_layout
from tessera.ir.types import dtype_of, int_shape, tile_layout
from tessera.passes.assign_layouts import columns_layout, reshaped, sliced
from tessera.passes.lowering import Lowering, rule


@rule("broadcast")
def lower_broadcast(lowering: Lowering, op: Op, builder: Builder) -> None:
    source, layout = op.operands[0], lowering.layouts.tile[op.result]
    small = lowering.mapping[source]
    lowering.mapping[op.result] = spread(lowering, builder, small, int_shape(op.result.type), layout, op.result.name)


def spread(
    lowering: Lowering, builder: Builder, small: Value, shape: tuple[int, ...], layout: RegisterLayout, hint: str
) -> Value:
    """A tile whose axes of size 1 repeat to `shape`, in `layout`."""
    wanted = sliced(layout, shape, int_shape(small.type))
    small = lowering.convert(builder, small, wanted)
    return builder.value("broadcast", small, shape=shape, layout=layout, hint=hint)


@rule("reshape")
def lower_reshape(lowering: Lowering, op: Op, builder: Builder) -> None:
    """The same registers where `reshaped` has a layout, else one line of elements in shared memory."""
    source = lowering.mapping[op.operands[0]]
    shapes = int_shape(op.operands[0].type), int_shape(op.result.type)
    layout = reshaped(tile_layout(source.type), *shapes)
    if layout is not None:
        value = builder.value("reshape", source, shape=shapes[1], layout=layout, hint=op.result.name)
        return lowering.define(op.result, value, builder)
    dtype, count = dtype_of(source.type), math.prod(shapes[0])
    line = shared_layout(1, count, dtype.bytes, swizzle=False)
    buffer = builder.value("shared", shape=(count,), dtype=dtype, layout=line, hint=f"{op.result.name or 'tile'}_line")
    old, new = tile_layout(source.type), lowering.layouts.tile[op.result]
    builder.op("st_flat", [buffer, source], vector=_flat_vector(old, shapes[0], dtype.bytes))
    lowering.mapping[op.result] = builder.value(
        "ld_flat",
        buffer,
        shape=shapes[1],
        layout=new,
        vector=_flat_vector(new, shapes[1], dtype.bytes),
        hint=op.result.name,
    )


def _flat_vector(layout: RegisterLayout, shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of one access: consecutive along the last axis, at most 16, in rows that all start at a multiple of it."""
    return math.gcd(layout.contiguous(len(shape) - 1, 16 // itemsize), shape[-1]) * itemsize


@rule("transpose")
def lower_transpose(lowering: Lowering, op: Op, builder: Builder) -> None:
    value = builder.value("transpose", lowering.mapping[op.operands[0]], hint=op.result.name)
    lowering.define(op.result, value, builder)


@rule("extract")
def lower_extract(lowering: Lowering, op: Op, builder: Builder) -> None:
    """The same registers where whole blocks of columns are asked for; else through shared memory, from where any thread
    reads any part.
    """
    source = lowering.mapping[op.operands[0]]
    layout = columns_layout(op, tile_layout(source.type))
    if layout is not None:
        offset, shape = op.attributes["starts"][-1], op.attributes["extents"]
        value = builder.value("columns", source, shape=shape, layout=layout, offset=offset, hint=op.result.name)
        return lowering.define(op.result, value, builder)
    starts = [builder.value("constant", value=start, dtype=i64) for start in op.attributes["starts"]]
    lowering.mapping[op.result] = lowering.through_shared(
        builder, source, lowering.layouts.tile[op.result], starts, op.attributes["extents"]
    )
