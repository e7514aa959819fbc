"""Divides by what many elements share through one reciprocal.

    %wide = broadcast %s                    %y = divisor %s
    %q = div %a, %wide               ->     %wide, %inverse = broadcast %s, broadcast %y
                                            %q = div_by %a, %wide, %inverse

An IEEE division is a reciprocal of the special function unit, which takes a warp eight times as long as an addition,
seven further instructions and a branch; tiny numerators, which a softmax has many of, take a subroutine of a hundred.
By the shared reciprocal a thread divides all its elements with four multiplications and additions each, with eleven
where some are tiny, and with one where a scalar divisor is a power of two. Exact: `div_by` rounds correctly as well.
"""

from __future__ import annotations

import math

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.opdef import CONSTANT
from tessera.ir.types import TileType, dtype_of, shape_of, tile_layout

LEAST_SHARED = 4  # quotients of a thread by one divisor, from which on a reciprocal of its own is worth it


def share_divisors(kernel: Kernel) -> Kernel:
    if not any(_shared(op) is not None for op in kernel.body.walk()):
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _copy(kernel.body, builder, mapping)
    return new


def _copy(block: Block, builder: Builder, mapping: Mapping) -> None:
    for op in block.ops:
        builder.at(op)
        source = _shared(op)
        if source is not None:
            a, b = (mapping[value] for value in op.operands)
            inverse = builder.value("divisor", mapping[source])
            if isinstance(inverse.type, TileType):
                shape = shape_of(op.result.type)
                inverse = builder.value("broadcast", inverse, shape=shape, layout=tile_layout(op.result.type))
            mapping[op.result] = builder.value("div_by", a, b, inverse, hint=op.result.name)
        elif op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _copy(old, inner, mapping))
        else:
            clone_op(builder, op, mapping)


def _shared(op: Op) -> Value | None:
    """The divisor of a division, before it was spread, where enough elements of a thread have the same one."""
    if op.name != "div" or not isinstance(op.operands[0].type, TileType):
        return None
    if not all(dtype_of(value.type).is_float for value in op.operands):
        return None
    count, divisor = tile_layout(op.result.type).registers_per_thread, op.operands[1]
    if isinstance(divisor.type, TileType):
        spread = divisor.defining_op
        if spread is None or spread.name != "broadcast":
            return None
        source = spread.operands[0]
        return source if count >= LEAST_SHARED * tile_layout(source.type).registers_per_thread else None
    return None if count < LEAST_SHARED or _is_power_of_two(divisor) else divisor


def _is_power_of_two(value: Value) -> bool:
    """Whether a number is a constant by which the CUDA compiler multiplies instead."""
    op = value.defining_op
    return op is not None and op.definition.has(CONSTANT) and math.frexp(abs(float(op.attributes["value"])))[0] == 0.5
