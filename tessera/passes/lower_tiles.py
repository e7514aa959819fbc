"""Ops on tiles whose layouts need care: broadcasts, reductions, reshapes."""

from __future__ import annotations

from tessera.errors import SourceError
from tessera.ir.core import Builder, Op
from tessera.ir.layout import row_reduction
from tessera.ir.types import int_shape, shape_text, tile_layout
from tessera.passes.assign_layouts import reshaped, sliced
from tessera.passes.lowering import Lowering, rule


@rule("broadcast")
def lower_broadcast(lowering: Lowering, op: Op, builder: Builder) -> None:
    layout = lowering.layouts.tile[op.result]
    source = op.operands[0]
    wanted = sliced(layout, int_shape(op.result.type), int_shape(source.type))
    small = lowering.convert(builder, lowering.mapping[source], wanted)
    lowering.mapping[op.result] = builder.value(
        "broadcast", small, shape=op.attributes["shape"], layout=layout, hint=op.result.name
    )


@rule("reduce_sum", "reduce_max", "reduce_min")
def lower_reduction(lowering: Lowering, op: Op, builder: Builder) -> None:
    source, axis = lowering.mapping[op.operands[0]], op.attributes["axis"]
    layout = tile_layout(source.type)
    rank = len(layout.shape)
    if any(name == "warp" for name, _ in layout.axis_bits(axis % rank)):
        inside = row_reduction(int_shape(source.type), lowering.schedule.warps, axis % rank, 1)
        source = lowering.convert(builder, source, inside)
    value = builder.value(op.name, source, axis=axis, hint=op.result.name)
    lowering.define(op.result, value, builder)


@rule("reshape")
def lower_reshape(lowering: Lowering, op: Op, builder: Builder) -> None:
    source = lowering.mapping[op.operands[0]]
    shapes = int_shape(op.operands[0].type), int_shape(op.result.type)
    layout = reshaped(tile_layout(source.type), *shapes)
    if layout is None:
        raise SourceError(
            "TS102",
            f"a reshape of {shape_text(shapes[0])} to {shape_text(shapes[1])} moves elements between "
            "threads, which has no lowering yet; only axes of size 1 can be added or dropped",
            op.loc,
        )
    value = builder.value("reshape", source, shape=shapes[1], layout=layout, hint=op.result.name)
    lowering.define(op.result, value, builder)


@rule("transpose")
def lower_transpose(lowering: Lowering, op: Op, builder: Builder) -> None:
    raise SourceError(
        "TS102", "a transpose outside a product has no lowering yet; use transpose_a or transpose_b of mma", op.loc
    )
