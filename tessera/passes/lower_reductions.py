"""Reductions and scans along an axis.

Where each line of the axis lies inside one warp a reduction is one op. Where warps share lines, each warp reduces what
it has of a line, in blocks as large as no other warp has a part of, and the blocks meet in shared memory. A few every
thread combines for itself; many, a few threads a line do for all. A scan of more than one block always takes the way
through shared memory: it scans inside blocks, and each block takes in the totals of those before it.
"""

from __future__ import annotations

from tessera.dtypes import i32
from tessera.ir.core import Builder, Op, Value
from tessera.ir.layout import RegisterLayout, splits_blocks, warp_part
from tessera.ir.numeric import BLOCK
from tessera.ir.ops.reductions import accumulate_dtype
from tessera.ir.types import dtype_of, int_shape, tile_layout
from tessera.passes.assign_layouts import layout_along, sliced
from tessera.passes.lower_tiles import spread
from tessera.passes.lowering import Lowering, rule

SCANS = {"cumsum": "sum", "cummax": "max"}
FEW_BLOCKS = 32  # that every thread combines again rather than wait at a barrier for some that do


@rule("reduce_sum", "reduce_max", "reduce_min")
def lower_reduction(lowering: Lowering, op: Op, builder: Builder) -> None:
    source = _arranged(lowering, builder, op)
    kind = op.name.removeprefix("reduce_")
    value = _reduce(lowering, builder, kind, source, op.attributes["axis"], lowering.layouts.tile[op.result])
    value.name = value.name or op.result.name
    lowering.define(op.result, value, builder)


def _arranged(lowering: Lowering, builder: Builder, op: Op) -> Value:
    """The operand in a layout in which no block of 32 along the axis is split over warps."""
    source = lowering.mapping[op.operands[0]]
    layout = tile_layout(source.type)
    if splits_blocks(layout, op.attributes["axis"] % len(layout.shape)):
        source = lowering.convert(builder, source, layout_along(op, lowering.schedule))
    return source


def _reduce(lowering: Lowering, builder: Builder, kind: str, source: Value, axis: int, wanted: RegisterLayout) -> Value:
    """The reduction of `source`; in `wanted` where it comes out of shared memory anyway."""
    layout = tile_layout(source.type)
    rank = len(layout.shape)
    along = axis % rank
    if layout.group_axis != along and all(name != "warp" for name, _ in layout.axis_bits(along)):
        return builder.value(f"reduce_{kind}", source, axis=axis)
    size = max(BLOCK, warp_part(layout, along))
    partial = builder.value("reduce_blocks", source, axis=axis, combine=kind, size=size)
    buffer, dtype = _to_shared(lowering, builder, partial), dtype_of(source.type)
    shape = int_shape(partial.type)
    if shape[axis] <= FEW_BLOCKS:
        return builder.value("fold_blocks", buffer, axis=axis, combine=kind, dtype=dtype, layout=wanted)
    kept = tuple(1 if number == along else extent for number, extent in enumerate(shape))
    lines = lowering.scratch(builder, kept, accumulate_dtype(dtype), "lines")
    builder.op("fold_lines", [buffer, lines], axis=axis, combine=kind)
    zeros = lowering.zeros(builder, rank)
    vector = lowering.shared_vector(wanted, accumulate_dtype(dtype), zeros)
    value = builder.value("ld_shared", lines, *zeros, shape=kept, layout=wanted, vector=vector)
    return value if accumulate_dtype(dtype) == dtype else builder.value("cast", value, dtype=dtype)


def _to_shared(lowering: Lowering, builder: Builder, value: Value) -> Value:
    shape, dtype, layout = int_shape(value.type), dtype_of(value.type), tile_layout(value.type)
    buffer = lowering.scratch(builder, shape, dtype, "blocks")
    zeros = lowering.zeros(builder, len(shape))
    builder.op("st_shared", [buffer, value, *zeros], vector=lowering.shared_vector(layout, dtype, zeros))
    return buffer


@rule("argmax", "argmin")
def lower_index(lowering: Lowering, op: Op, builder: Builder) -> None:
    """The lowest index among the elements that equal the extremum or are NaN, the others counting as no index."""
    source = _arranged(lowering, builder, op)
    shape, layout = int_shape(source.type), tile_layout(source.type)
    axis = op.attributes["axis"]
    small = sliced(layout, shape, int_shape(op.result.type))
    kind = op.name.removeprefix("arg")
    extremum = lowering.convert(builder, _reduce(lowering, builder, kind, source, axis, small), small)
    level = spread(lowering, builder, extremum, shape, layout, "extremum")
    found = builder.value("eq", source, level)
    if dtype_of(source.type).is_float:
        found = builder.value("or", found, builder.value("ne", source, source))
    index = builder.value("iota", shape=shape, axis=axis, dtype=i32, layout=layout)
    beyond = builder.value("constant", value=shape[axis], dtype=i32)
    candidate = builder.value("where", found, index, beyond)
    value = _reduce(lowering, builder, "min", candidate, axis, lowering.layouts.tile[op.result])
    value.name = value.name or op.result.name
    lowering.define(op.result, value, builder)


@rule("cumsum", "cummax")
def lower_scan(lowering: Lowering, op: Op, builder: Builder) -> None:
    source = _arranged(lowering, builder, op)
    axis, kind, dtype = op.attributes["axis"], SCANS[op.name], dtype_of(op.result.type)
    value = builder.value("scan_blocks", source, axis=axis, combine=kind, hint=op.result.name)
    if int_shape(source.type)[axis] > BLOCK:
        totals = builder.value("block_totals", value, axis=axis, hint="totals")
        buffer = _to_shared(lowering, builder, totals)
        value = builder.value("carry_blocks", buffer, value, axis=axis, combine=kind, dtype=dtype, hint=op.result.name)
    elif dtype_of(value.type) != dtype:
        value = builder.value("cast", value, dtype=dtype, hint=op.result.name)
    lowering.define(op.result, value, builder)
