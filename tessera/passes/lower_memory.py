"""Memory ops: loads, stores and buffers."""

from __future__ import annotations

import math

from tessera import dtypes
from tessera.ir.core import Builder, Op, Value
from tessera.ir.types import BufferType, TileType, dtype_of, int_shape, shape_of, tile_layout
from tessera.passes.assign_layouts import coalesced
from tessera.passes.lower_tma_stores import store_by_warps
from tessera.passes.lowering import Lowering, rule
from tessera.passes.stored_parts import StoredParts, instruction_of_parts, part_layout, parts_of
from tessera.target.schedule import elements

STAGED_STORE = 32 * 32  # elements from which a narrow store is worth a trip through shared memory


@rule("load")
def lower_load(lowering: Lowering, op: Op, builder: Builder) -> None:
    view = lowering.mapping[op.operands[0]]
    if not isinstance(op.result.type, TileType):
        lowering.mapping[op.result] = builder.value("ld_global", view, hint=op.result.name)
        return
    layout = lowering.layouts.tile[op.result]
    lowering.mapping[op.result] = builder.value(
        "ld_global",
        view,
        layout=layout,
        hint=op.result.name,
        vector=lowering.global_vector(op.operands[0], layout, op.result.type.dtype),
    )


@rule("store")
def lower_store(lowering: Lowering, op: Op, builder: Builder) -> None:
    if store_by_warps(lowering, op, builder):
        return
    view, value, *masks = op.operands
    new = lowering.mapping[value]
    dtype = dtype_of(view.type)
    vector = lowering.global_vector(view, tile_layout(new.type), dtype)
    wide = coalesced(value, lowering.schedule, dtype.bytes)
    best = lowering.global_vector(view, wide, dtype)
    staged = lowering.schedule.epilogue != "direct" and not masks and len(int_shape(new.type)) >= 2
    if staged and vector < best and elements(new) >= STAGED_STORE:
        if dtype_of(new.type) != dtype:
            new = builder.value("cast", new, dtype=dtype, hint=new.name)  # the store's own rounding, done earlier
        new, vector = lowering.convert(builder, new, wide), best
    builder.op("st_global", [lowering.mapping[view], new, *(lowering.mapping[m] for m in masks)], vector=vector)


@rule("alloc_shared")
def lower_alloc_shared(lowering: Lowering, op: Op, builder: Builder) -> None:
    type_ = op.result.type
    assert isinstance(type_, BufferType)
    layout = lowering.layouts.buffer[op.result]
    apart = op.attributes["apart"]
    instruction = instruction_of_parts(op.result, lowering.used, lowering.layouts) if apart else None
    if instruction is not None:
        dtype, layout = dtypes.parse(instruction.operand), part_layout(layout, instruction)
        made = [
            builder.value("shared", shape=type_.shape, dtype=dtype, layout=layout, hint=op.result.name)
            for _ in range(instruction.parts)
        ]
        lowering.parts[op.result] = StoredParts(instruction, made)
        return
    lowering.mapping[op.result] = builder.value(
        "shared",
        shape=type_.shape,
        dtype=type_.dtype,
        layout=layout,
        stages=op.attributes["stages"],
        hint=op.result.name,
    )


@rule("read")
def lower_read(lowering: Lowering, op: Op, builder: Builder) -> None:
    if all(user.name == "mma" and op.result in user.operands[:2] for user in lowering.used.get(op.result, ())):
        return  # the product loads its fragments itself
    type_ = op.result.type
    assert isinstance(type_, TileType)
    offsets = [lowering.mapping[v] for v in op.operands[1:]] or lowering.zeros(builder, len(type_.shape))
    layout = lowering.layouts.tile[op.result]
    old = op.operands[1:] or offsets
    buffer = lowering.mapping[op.operands[0]]
    if lowering.holds_matrices(buffer, layout, list(old), type_.shape):
        lowering.mapping[op.result] = builder.value(
            "ld_matrices", buffer, *offsets, shape=type_.shape, layout=layout, hint=op.result.name
        )
        return
    lowering.mapping[op.result] = builder.value(
        "ld_shared",
        buffer,
        *offsets,
        shape=type_.shape,
        layout=layout,
        vector=lowering.shared_vector(layout, type_.dtype, list(old)),
        hint=op.result.name,
    )


@rule("write")
def lower_write(lowering: Lowering, op: Op, builder: Builder) -> None:
    buffer, new = op.operands[0], lowering.mapping[op.operands[1]]
    parts = lowering.parts.get(buffer)
    if parts is None:
        _write(lowering, op, builder, lowering.mapping[buffer], new)
        return
    for each, part in zip(parts.buffers, parts_of(builder, new, parts.instruction), strict=True):
        _write(lowering, op, builder, each, part)


def _write(lowering: Lowering, op: Op, builder: Builder, buffer: Value, new: Value) -> None:
    offsets = [lowering.mapping[v] for v in op.operands[2:]] or lowering.zeros(builder, len(int_shape(new.type)))
    old = op.operands[2:] or offsets
    if lowering.store_matrices(builder, buffer, new, offsets, list(old)):
        return
    dtype = dtype_of(buffer.type)
    vector = lowering.shared_vector(tile_layout(new.type), dtype, list(old))
    if shape_of(buffer.type) != shape_of(new.type):  # what lies beside a part stays: no access may reach past it
        vector = min(vector, math.gcd(int_shape(new.type)[-1], vector // dtype.bytes) * dtype.bytes)
    builder.op("st_shared", [buffer, new, *offsets], vector=vector)
