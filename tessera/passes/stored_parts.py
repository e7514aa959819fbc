"""Left operands of products that are multiplied in parts: the parts, and the buffers that have them apart.

An f32 operand is the sum of three of bf16. A buffer that nothing but such products read, by several warps with the same
rows, may have the parts in the place of the numbers (`apart`): they are taken apart once, by the threads that write
them, rather than by every warp for every fragment, and a fragment of each is a matrix. It takes half as many bytes
again, so `pipeline` decides, which knows what stages of copies leave. Exact: the same parts are multiplied in the same
order.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera import dtypes
from tessera.dtypes import f32
from tessera.ir.core import Builder, Kernel, Op, Value, uses
from tessera.ir.layout import SharedLayout
from tessera.ir.layout_shared import shared_layout
from tessera.ir.ops.tiles import format_of
from tessera.ir.types import dtype_of
from tessera.passes.assign_layouts import Layouts
from tessera.target.fragments import PRODUCT_INSTRUCTIONS, ProductInstruction


@dataclass(frozen=True)
class StoredParts:
    """Buffers of the parts of what a buffer is written, the lowest first, for an instruction that multiplies them."""

    instruction: ProductInstruction
    buffers: list[Value]


def instruction_of_parts(buffer: Value, used: dict[Value, list[Op]], layouts: Layouts) -> ProductInstruction | None:
    """The instruction that multiplies the parts of what a buffer is written, where they are best stored; else None."""
    found: ProductInstruction | None = None
    for op in used.get(buffer, ()):
        if op.name == "write" and dtype_of(op.operands[1].type) == dtype_of(buffer.type):
            continue
        if op.name != "read":
            return None
        for product in used.get(op.result, ()):
            if product.name != "mma" or product.operands[0] is not op.result or op.result in product.operands[1:]:
                return None
            found = PRODUCT_INSTRUCTIONS[format_of(product)]
            alike = any(not any(vector) for vector in layouts.product[product.id][0].block.group("warp"))
            if found.parts == 1 or not alike:
                return None
    return found


def buffers_of_parts(kernel: Kernel, layouts: Layouts) -> list[Op]:
    """The allocations of buffers that may have parts in the place of numbers."""
    used = uses(kernel.body)
    found = [op for op in kernel.body.walk() if op.name == "alloc_shared" and op.attributes["stages"] == 1]
    return [op for op in found if instruction_of_parts(op.result, used, layouts) is not None]


def part_layout(whole: SharedLayout, instruction: ProductInstruction) -> SharedLayout:
    """The layout of one part of a buffer of this layout."""
    return shared_layout(whole.rows, whole.cols, dtypes.parse(instruction.operand).bytes)


def parts_of(builder: Builder, value: Value, instruction: ProductInstruction) -> list[Value]:
    """The tiles whose sum a tile is, the lowest first. What is not finite, or rounds to that, has no lower parts."""
    narrow, rest = dtypes.parse(instruction.operand), value
    parts: list[Value] = []
    zero, infinite = (builder.value("constant", value=v, dtype=f32) for v in (0.0, float("inf")))
    for number in range(instruction.parts):
        part = builder.value("cast", rest, dtype=narrow, hint="part")
        parts.insert(0, part)
        if number + 1 < instruction.parts:
            wide = builder.value("cast", part, dtype=f32)
            rest = builder.value("sub", rest, wide, hint="rest")
            if not number:  # what is left of a finite number is finite
                finite = builder.value("lt", builder.value("abs", wide), infinite)
                rest = builder.value("where", finite, rest, zero, hint="rest")
    return parts


__all__ = ["StoredParts", "buffers_of_parts", "instruction_of_parts", "part_layout", "parts_of"]
