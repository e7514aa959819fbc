"""Products that warpgroups compute: one batch of instructions each, in flight until something needs the sums."""

from __future__ import annotations

from tessera.ir.core import Builder, Op, Value
from tessera.ir.ops.control import constant_value
from tessera.ir.types import int_shape
from tessera.passes.assign_layouts import whole_operand
from tessera.passes.lowering import Lowering
from tessera.passes.register_operands import in_registers
from tessera.passes.warpgroup import depth_of


def lower_to_wgmma(lowering: Lowering, op: Op, builder: Builder) -> None:
    """One batch of instructions, in flight until something needs its sums."""
    a_layout, _, layout = lowering.layouts.product[op.id]
    sums = op.operands[2:]
    fresh = not sums or _is_zero(sums[0])
    operands, offsets = [], []
    for index in range(2):
        value = op.operands[index]
        if index == 0 and in_registers(op):
            operands.append(lowering.convert(builder, lowering.mapping[value], whole_operand(op, a_layout)))
            continue
        read = value.defining_op
        assert read is not None and read.name == "read", "stage_operands ran before"
        operands.append(lowering.mapping[read.operands[0]])
        offsets += [lowering.mapping[v] for v in read.operands[1:]] or lowering.zeros(builder, 2)
    if not fresh:
        operands.append(lowering.convert(builder, lowering.mapping[sums[0]], layout))
    result = builder.value(
        "wgmma",
        *operands,
        *offsets,
        shape=int_shape(op.result.type),
        layout=layout,
        depth=depth_of(op),
        transpose_a=op.attributes["transpose_a"],
        transpose_b=op.attributes["transpose_b"],
        fresh=fresh,
        hint=op.result.name or "acc",
    )
    lowering.mapping[op.result] = result
    lowering.start(op)


def _is_zero(value: Value) -> bool:
    op = value.defining_op
    return op is not None and op.name == "full" and constant_value(op.operands[0]) == 0
