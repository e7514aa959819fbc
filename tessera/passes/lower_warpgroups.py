"""Products that warpgroups compute: one batch of instructions each, in flight until something needs the sums.

Of fp8 operands there is a batch for each part of k, whose sums are waited for and added in f32.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.dtypes import i64
from tessera.ir.core import Builder, Op, Value
from tessera.ir.layout import RegisterLayout
from tessera.ir.ops.control import constant_value
from tessera.ir.products import FP8, FP8_FAST, FP8_PART
from tessera.ir.types import int_shape
from tessera.passes.assign_layouts import whole_operand
from tessera.passes.lowering import Lowering
from tessera.passes.register_operands import in_registers
from tessera.passes.warpgroup import columns_of, depth_of


def lower_to_wgmma(lowering: Lowering, op: Op, builder: Builder) -> None:
    a_layout, _, layout = lowering.layouts.product[op.id]
    sums = op.operands[2:]
    acc = None if not sums or _is_zero(sums[0]) else lowering.convert(builder, lowering.mapping[sums[0]], layout)
    batch = _Batch(op, columns_of(op, lowering.schedule), layout, *_operands(lowering, op, a_layout, builder))
    if op.attributes["precision"] == FP8:
        lowering.define(op.result, _in_parts(batch, acc, builder), builder)
        return
    lowering.mapping[op.result] = batch.start(builder, acc, 0, depth_of(op), op.attributes["precision"])
    lowering.start(op)


@dataclass(frozen=True)
class _Batch:
    """What the instructions of a product take: tiles or buffers, and where windows of buffers begin."""

    product: Op
    columns: int  # of an instruction
    layout: RegisterLayout
    operands: list[Value]
    offsets: list[list[Value]]

    def start(self, builder: Builder, acc: Value | None, k: int, depth: int, precision: str | None) -> Value:
        """The sums, in flight, of the product from `k` on."""
        op = self.product
        return builder.value(
            "wgmma",
            *self.operands,
            *([] if acc is None else [acc]),
            *(value for offsets in self._offsets(builder, k) for value in offsets),
            shape=int_shape(op.result.type),
            layout=self.layout,
            depth=depth,
            columns=self.columns,
            transpose_a=op.attributes["transpose_a"],
            transpose_b=op.attributes["transpose_b"],
            fresh=acc is None,
            precision=precision,
            hint=op.result.name or "acc",
        )

    def _offsets(self, builder: Builder, k: int) -> list[list[Value]]:
        """Those of windows that begin `k` further on. Operands of more than one part run along k, in rows."""
        if not k:
            return self.offsets
        step = builder.value("constant", value=k, dtype=i64)
        return [[row, builder.value("add", column, step)] for row, column in self.offsets]


def _operands(
    lowering: Lowering, op: Op, a_layout: RegisterLayout, builder: Builder
) -> tuple[list[Value], list[list[Value]]]:
    operands: list[Value] = []
    offsets: list[list[Value]] = []
    for index in range(2):
        value = op.operands[index]
        if index == 0 and in_registers(op):
            operands.append(lowering.convert(builder, lowering.mapping[value], whole_operand(op, a_layout)))
            continue
        read = value.defining_op
        assert read is not None and read.name == "read", "stage_operands ran before"
        operands.append(lowering.mapping[read.operands[0]])
        offsets.append([lowering.mapping[v] for v in read.operands[1:]] or lowering.zeros(builder, 2))
    return operands, offsets


def _in_parts(batch: _Batch, acc: Value | None, builder: Builder) -> Value:
    """The sums of one part after the other, each added to those before."""
    depth, name = depth_of(batch.product), batch.product.result.name or "acc"
    for k in range(0, depth, FP8_PART):
        part = batch.start(builder, None, k, min(FP8_PART, depth - k), FP8_FAST)
        part = builder.value("wgmma_wait", part, hint="part")
        acc = part if acc is None else builder.value("add", acc, part, hint=name)
    assert acc is not None, "a product has a depth"
    return acc


def _is_zero(value: Value) -> bool:
    op = value.defining_op
    return op is not None and op.name == "full" and constant_value(op.operands[0]) == 0
