"""Matrix products: a rolled loop over k-blocks of fragment loads and matrix instructions."""

from __future__ import annotations

from tessera.dtypes import i64
from tessera.ir.core import Block, Builder, Op, Value
from tessera.ir.types import dtype_of, int_shape
from tessera.passes.lowering import Lowering, rule

MMA_LIMIT = 128  # mma.sync in one straight-line region: ptxas time explodes beyond


@rule("mma")
def lower_mma(lowering: Lowering, op: Op, builder: Builder) -> None:
    """A rolled loop over k-blocks: load the fragments of a and b, multiply, accumulate."""
    a_layout, b_layout, acc_layout = lowering.layouts.product[op.id]
    m, n = int_shape(op.result.type)
    flip_a, flip_b = op.attributes["transpose_a"], op.attributes["transpose_b"]
    depth = int_shape(op.operands[0].type)[0 if flip_a else 1]
    on_tensor_cores = dtype_of(op.operands[0].type).bits == 16
    k_block = 16 if on_tensor_cores else 8
    load, multiply = ("ldmatrix", "mma_sync") if on_tensor_cores else ("ld_operand", "fma_block")
    if len(op.operands) > 2:
        start = lowering.convert(builder, lowering.mapping[op.operands[2]], acc_layout)
    else:
        dtype = dtype_of(op.result.type)
        zero = builder.value("constant", value=0.0, dtype=dtype)
        start = builder.value("full", zero, shape=(m, n), dtype=dtype, layout=acc_layout)
    sources = [_operand_source(lowering, builder, value) for value in op.operands[:2]]

    def step(inner: Builder, k: Value, acc: Value) -> Value:
        loaded = []
        for role, (buffer, offsets), layout, flip, shape in (
            ("a", sources[0], a_layout, flip_a, (m, k_block)),
            ("b", sources[1], b_layout, flip_b, (k_block, n)),
        ):
            k_axis = (1 if role == "a" else 0) ^ flip
            at = [inner.value("add", o, k) if axis == k_axis else o for axis, o in enumerate(offsets)]
            loaded.append(
                inner.value(load, buffer, *at, shape=shape, layout=layout, role=role, transposed=flip, hint=role)
            )
        return inner.value(multiply, *loaded, acc, hint=op.result.name or "acc")

    blocks = -(-depth // k_block)
    zero, bound, stride = (builder.value("constant", value=v, dtype=i64) for v in (0, blocks * k_block, k_block))
    body = Block()
    k, acc = body.add_argument(zero.type, "k"), body.add_argument(start.type, op.result.name or "acc")
    inner = builder.inner(body)
    inner.op("yield", [step(inner, k, acc)])
    # One k-block's instructions: fragments of 8 (a) and 4 (b) registers; a true-f32 block is 8 FMA per accumulator.
    cost = (
        (a_layout.registers_per_thread // 8) * (b_layout.registers_per_thread // 4)
        if on_tensor_cores
        else (acc_layout.registers_per_thread // 4)
    )
    unroll = max(d for d in range(1, blocks + 1) if blocks % d == 0 and (d == 1 or d * cost <= MMA_LIMIT))
    loop = builder.op("for", [zero, bound, stride, start], [body], [op.result.name], unroll=unroll)
    lowering.define(op.result, loop.result, builder)


def _operand_source(lowering: Lowering, builder: Builder, value: Value) -> tuple[Value, list[Value]]:
    read = value.defining_op
    assert read is not None and read.name == "read", "stage_operands ran before"
    return lowering.mapping[read.operands[0]], [lowering.mapping[v] for v in read.operands[1:]] or lowering.zeros(
        builder, 2
    )
