"""Matrix products: a rolled loop over k-blocks of fragment loads and matrix instructions.

Where the left operand is in registers, which have no index at run time, the k-blocks are one straight line.

Which instruction, and how its operands are loaded, is data in `tessera.target.fragments`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera import dtypes
from tessera.dtypes import i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Op, Value
from tessera.ir.layout import RegisterLayout
from tessera.ir.ops.tiles import format_of, k_block
from tessera.ir.products import FP8
from tessera.ir.types import dtype_of, int_shape, tile_layout
from tessera.passes.access import divisor_of
from tessera.passes.assign_layouts import whole_operand
from tessera.passes.lower_warpgroups import lower_to_wgmma
from tessera.passes.lowering import Lowering, rule
from tessera.passes.register_operands import MMA_LIMIT, in_registers
from tessera.passes.stored_parts import parts_of
from tessera.passes.warpgroup import by_warpgroups, why_not
from tessera.target.fragments import (
    LDMATRIX_ROW_BYTES,
    OPERAND_LOADS,
    PRODUCT_INSTRUCTIONS,
    ProductInstruction,
    vector_registers,
)

THREAD_REGISTERS = 255  # the most that a thread can have
VECTOR_BYTES = 16  # the widest access to shared memory


@dataclass(frozen=True)
class Operand:
    """Where one operand of a product lies: `offsets` into `buffer`, which holds its transpose where `transposed`.

    `shape` and `layout` are those of the fragment of one k-block; `load` the Target op that loads it, `vector` bytes
    an access where it loads by elements.
    """

    role: str
    buffer: Value
    offsets: list[Value]
    transposed: bool
    shape: tuple[int, int]
    layout: RegisterLayout
    load: str
    vector: int

    @property
    def k_axis(self) -> int:
        """The axis of the buffer that runs along k."""
        return _k_axis(self.role, self.transposed)

    def fragment(self, builder: Builder, k: Value, instruction: ProductInstruction) -> Value:
        """The fragment at k, in the instruction's format."""
        at = [builder.value("add", o, k) if axis == self.k_axis else o for axis, o in enumerate(self.offsets)]
        dtype = dtype_of(self.buffer.type) if instruction.parts > 1 else dtypes.parse(instruction.operand)
        by_elements = {"dtype": dtype, "vector": self.vector}
        value = builder.value(
            self.load,
            self.buffer,
            *at,
            shape=self.shape,
            layout=self.layout,
            role=self.role,
            transposed=self.transposed,
            hint=self.role,
            **(by_elements if self.load == "ld_operand" else {}),
        )
        if instruction.parts > 1:
            return value
        return builder.value(instruction.rounding, value, hint=self.role) if instruction.rounding else value


def _k_axis(role: str, transposed: bool) -> int:
    return (1 if role == "a" else 0) ^ transposed


@rule("mma")
def lower_mma(lowering: Lowering, op: Op, builder: Builder) -> None:
    """A rolled loop over k-blocks: load the fragments of a and b, multiply, accumulate."""
    if by_warpgroups(op, lowering.schedule):
        return lower_to_wgmma(lowering, op, builder)
    if format_of(op) == FP8:
        reason = why_not(op, lowering.schedule) or "the schedule does not ask for them"
        raise SourceError("TS703", f"only warpgroups multiply in the format of this product: {reason}", op.loc)
    if in_registers(op):
        return _from_registers(lowering, op, builder)
    instruction, depth = PRODUCT_INSTRUCTIONS[format_of(op)], k_block(op)
    layouts = lowering.layouts.product[op.id]
    a, b = _left(lowering, builder, op, layouts[0]), _operand(lowering, builder, op, 1, layouts[1])
    start = _start(lowering, builder, op, layouts[2])
    extent = int_shape(op.operands[0].type)[0 if op.attributes["transpose_a"] else 1]
    blocks = -(-extent // depth)
    zero, bound, stride = (builder.value("constant", value=v, dtype=i64) for v in (0, blocks * depth, depth))
    body = Block()
    k, acc = body.add_argument(zero.type, "k"), body.add_argument(start.type, op.result.name or "acc")
    inner = builder.inner(body)
    fragments = [operand.fragment(inner, k, instruction) for operand in a]
    right = b.fragment(inner, k, instruction)
    total: Value = acc
    for part in fragments if len(fragments) > 1 else _parts(inner, fragments[0], instruction):
        total = inner.value(instruction.multiply, part, right, total, hint=op.result.name or "acc")
    inner.op("yield", [total])
    unroll = _unroll(blocks, instruction, *layouts)
    loop = builder.op("for", [zero, bound, stride, start], [body], [op.result.name], unroll=unroll)
    lowering.define(op.result, loop.result, builder)


def _from_registers(lowering: Lowering, op: Op, builder: Builder) -> None:
    """A straight line of k-blocks: take the fragment of a from its registers, load that of b, multiply, accumulate."""
    instruction, depth = PRODUCT_INSTRUCTIONS[format_of(op)], k_block(op)
    layouts = lowering.layouts.product[op.id]
    a = lowering.convert(builder, lowering.mapping[op.operands[0]], whole_operand(op, layouts[0]))
    b = _operand(lowering, builder, op, 1, layouts[1])
    acc = _start(lowering, builder, op, layouts[2])
    rows, extent = int_shape(op.operands[0].type)
    for offset in range(0, extent, depth):
        part = builder.value("fragment", a, shape=(rows, depth), layout=layouts[0], offset=offset, hint="a")
        loaded = b.fragment(builder, builder.value("constant", value=offset, dtype=i64), instruction)
        acc = builder.value(instruction.multiply, part, loaded, acc, hint=op.result.name or "acc")
    lowering.define(op.result, acc, builder)


def _parts(builder: Builder, left: Value, instruction: ProductInstruction) -> list[Value]:
    """The fragments of a left operand whose sum it is, the lowest first: itself, or parts of fewer bits."""
    if instruction.parts == 1:
        return [left]
    parts = parts_of(builder, left, instruction)
    shape, layout = int_shape(left.type), tile_layout(left.type)
    return [builder.value("fragment", p, shape=shape, layout=layout, offset=0, hint="a") for p in parts]


def _unroll(
    blocks: int, instruction: ProductInstruction, a: RegisterLayout, b: RegisterLayout, acc: RegisterLayout
) -> int:
    """How many k-blocks are one straight line: as many as divide `blocks` and keep within MMA_LIMIT instructions.

    Multiply-adds of true f32 count as one for a row of four. Their operands stay in registers for a whole k-block, and
    the next one's are loaded early where the loop is unrolled: it is not where both do not fit.
    """
    operands, sums = a.registers_per_thread + b.registers_per_thread, acc.registers_per_thread
    atom = instruction.atom
    if atom is not None:
        cost = (a.registers_per_thread // atom.a.size("register")) * (b.registers_per_thread // atom.b.size("register"))
        cost *= instruction.parts
    else:
        cost = sums // 4 if sums + 2 * operands < THREAD_REGISTERS else MMA_LIMIT
    return max(d for d in range(1, blocks + 1) if blocks % d == 0 and (d == 1 or d * cost <= MMA_LIMIT))


def _start(lowering: Lowering, builder: Builder, op: Op, layout: RegisterLayout) -> Value:
    """What the product is added to, in the accumulator's layout."""
    if len(op.operands) > 2:
        return lowering.convert(builder, lowering.mapping[op.operands[2]], layout)
    dtype = dtype_of(op.result.type)
    zero = builder.value("constant", value=0.0, dtype=dtype)
    return builder.value("full", zero, shape=int_shape(op.result.type), dtype=dtype, layout=layout)


def _left(lowering: Lowering, builder: Builder, op: Op, layout: RegisterLayout) -> list[Operand]:
    """The left operand, or its parts where they are stored, the lowest first."""
    read = op.operands[0].defining_op
    parts = lowering.parts.get(read.operands[0]) if read is not None and read.operands else None
    return [_operand(lowering, builder, op, 0, layout, buffer) for buffer in (parts.buffers if parts else [None])]


def _operand(
    lowering: Lowering, builder: Builder, op: Op, index: int, layout: RegisterLayout, part: Value | None = None
) -> Operand:
    """`part`: the buffer of a part of the operand."""
    read = op.operands[index].defining_op
    assert read is not None and read.name == "read", "stage_operands ran before"
    role, transposed = "ab"[index], op.attributes["transpose_b" if index else "transpose_a"]
    depth, extent = k_block(op), int_shape(op.result.type)[index]
    dtype = dtype_of(op.operands[index].type if part is None else part.type)
    along_k = _k_axis(role, transposed) == 1
    load = OPERAND_LOADS[dtype.name, format_of(op)][0 if along_k else 1]
    limit = _column_divisor(lowering, read, depth if along_k else 0)
    if limit * dtype.bytes < LDMATRIX_ROW_BYTES:
        load = "ld_operand"
    return Operand(
        role,
        lowering.mapping[read.operands[0]] if part is None else part,
        [lowering.mapping[v] for v in read.operands[1:]] or lowering.zeros(builder, 2),
        transposed,
        (depth, extent) if index else (extent, depth),
        layout,
        load,
        _vector(layout, 0 if transposed else 1, dtype.bytes, limit),
    )


def _column_divisor(lowering: Lowering, read: Op, step: int) -> int:
    """A power of two that divides the first column of every fragment; `step` is that of a column that runs along k."""
    divisors = [step] if step else []
    if len(read.operands) > 1:
        divisors.append(divisor_of(read.operands[-1], lowering.kernel.attributes.get("divisors", {}), lowering.loops))
    return min(divisors, default=VECTOR_BYTES)


def _vector(layout: RegisterLayout, axis: int, item: int, limit: int) -> int:
    """Bytes of the widest access along an axis of the fragment that lies along the buffer's rows."""
    width = min(VECTOR_BYTES // item, limit)
    while vector_registers(layout, axis, width) is None:
        width //= 2
    return width * item
