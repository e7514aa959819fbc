"""Load a tile without the axes of size 1 that a reshape would drop, where nothing else uses them.

    x = load (window t, b, m, k: [1, 64, 64])         x = load (window t, b, m, k: [64, 64])
    mma (reshape x: [64, 64]), w                 ->   mma x, w

Matrix instructions read an operand from the buffer that it is copied to; behind a reshape it would go through
registers. Exact.
"""

from __future__ import annotations

from tessera.ir.core import (
    Block,
    Builder,
    Kernel,
    Mapping,
    Op,
    Value,
    clone_op,
    clone_with_regions,
    new_kernel_like,
    uses,
)
from tessera.ir.types import int_shape


def squeeze_loads(kernel: Kernel) -> Kernel:
    used = uses(kernel.body)
    found = {op.operands[0].defining_op: op for op in kernel.body.walk() if _squeezes(op, used)}
    if not found:
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _block(kernel.body, builder, mapping, found)
    return new


def _squeezes(op: Op, used: dict[Value, list[Op]]) -> bool:
    """Whether an op only drops axes of size 1 of a tile that is loaded for it alone."""
    if op.name != "reshape":
        return False
    load = op.operands[0].defining_op
    if load is None or load.name != "load" or len(used[load.result]) != 1:
        return False
    window = load.operands[0].defining_op
    if window is None or window.name != "window" or any(user.name != "mma" for user in used.get(op.result, [])):
        return False
    return tuple(size for size in int_shape(load.result.type) if size != 1) == int_shape(op.result.type)


def _block(block: Block, builder: Builder, mapping: Mapping, found: dict[Op | None, Op]) -> None:
    reshapes = set(found.values())
    for op in block.ops:
        builder.at(op)
        if op in found:
            window = op.operands[0].defining_op
            assert window is not None
            extents = window.attributes["extents"]
            kept = tuple(keep and size != 1 for keep, size in zip(window.attributes["kept"], extents, strict=True))
            view = builder.at(window).value(
                "window", *(mapping[value] for value in window.operands), extents=extents, kept=kept
            )
            value = builder.at(op).value("load", view, hint=op.result.name, **op.attributes)
            mapping[op.result] = mapping[found[op].result] = value
        elif op in reshapes:
            continue
        elif op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _block(old, inner, mapping, found))
        else:
            clone_op(builder, op, mapping)


__all__ = ["squeeze_loads"]
