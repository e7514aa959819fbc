"""Stores of a kernel with roles: each warp puts its rows into shared memory, and one thread of it starts their copy.

The fragments of a product lie in 16 rows of a warp, so nobody waits for another warp. Stores take turns in two buffers,
so that one is written while the other is read.
"""

from __future__ import annotations

from math import prod

from tessera.ir.core import Block, Builder, Kernel, Op, Value
from tessera.ir.layout import RegisterLayout, shared_layout
from tessera.ir.ops.tma import WARP_ROWS
from tessera.ir.types import BufferType, dtype_of, int_shape
from tessera.passes.lowering import Lowering
from tessera.target.fragments import matrices_at_once
from tessera.target.tensor_maps import why_not

BUFFERS = 2


def store_by_warps(lowering: Lowering, op: Op, builder: Builder) -> bool:
    """Lowers a store so, and tells whether it could."""
    type_ = _staged_type(lowering, op)
    if type_ is None:
        return False
    view, value = op.operands
    new = lowering.mapping[value]
    if dtype_of(new.type) != type_.dtype:
        new = builder.value("cast", new, dtype=type_.dtype, hint=new.name)  # the rounding of the store, done earlier
    buffer, pending = _turn(lowering, op, type_)
    builder.op("tma_store_wait", scope="warp", pending=pending)
    builder.op("st_matrices", [buffer, new, *lowering.zeros(builder, len(type_.shape))])
    builder.op("tma_store", [lowering.mapping[view], buffer], scope="warp")
    return True


def _staged_type(lowering: Lowering, store: Op) -> BufferType | None:
    """The buffer through which warps can store their rows of a tile; None where they cannot."""
    view, value, *masks = store.operands
    if masks or lowering.schedule.epilogue == "direct" or not lowering.kernel.attributes.get("producer_warps"):
        return None
    shape, dtype = int_shape(value.type), dtype_of(view.type)
    if dtype.bits != 16 or not _holds_rows(lowering.layouts.tile[value], shape, lowering.schedule.warps):
        return None
    type_ = BufferType(shape, dtype, shared_layout(prod(shape[:-1]), shape[-1], dtype.bytes))
    return None if why_not(view, type_, lowering.kernel, rows=WARP_ROWS) else type_


def wait_for_stores(kernel: Kernel) -> None:
    """Shared memory must be there until all stores have read it: at the end of a role that starts any."""
    for op in kernel.body.walk():
        for region in op.regions if op.name == "roles" else ():
            if any(inner.name == "tma_store" for inner in region.walk()):
                last = Block()
                Builder(last, region.ops[-1].origin).op("tma_store_wait", scope="warp")
                region.ops[-1:-1] = last.ops


def _holds_rows(layout: RegisterLayout, shape: tuple[int, ...], warps: int) -> bool:
    """Whether each warp holds 16 rows of all columns, and the next warp the next ones, again and again."""
    if len(shape) < 2 or layout.shape != shape or not matrices_at_once(layout) or prod(shape[:-2]) != 1:
        return False
    row = len(shape) - 2
    wanted = [tuple(WARP_ROWS << bit if axis == row else 0 for axis in range(len(shape))) for bit in range(8)]
    steps = layout.warp_steps  # a group is as many rows further on as all warps of the one before it hold
    return layout.warps == warps and list(steps) == wanted[: len(steps)]


def _turn(lowering: Lowering, store: Op, type_: BufferType) -> tuple[Value, int]:
    """The buffer of a store, and how many stores may be in flight when it is written."""
    role = _role_of(lowering.kernel, store)
    everywhere = [op for op in role.walk() if op.name == "store" and _staged_type(lowering, op)]
    stores = [op for op in _block_of(role, store).ops if op in everywhere]
    alone, index = stores == everywhere, stores.index(store)
    previous = (index - 1) % len(stores) % BUFFERS
    key = (type_, index % BUFFERS, id(role))
    if key not in lowering.turns:
        top = Builder(Block(), store.origin)
        assert type_.layout is not None
        name = f"{store.operand('value').name or 'tile'}_stored"
        lowering.turns[key] = top.value("shared", shape=type_.shape, dtype=type_.dtype, layout=type_.layout, hint=name)
        lowering.allocations += top.block.ops
    return lowering.turns[key], 1 if alone and previous != index % BUFFERS else 0


def _role_of(kernel: Kernel, op: Op) -> Block:
    """The region of the role that an op is in: each has buffers of its own."""
    regions = (region for roles in kernel.body.ops if roles.name == "roles" for region in roles.regions)
    return next((region for region in regions if any(found is op for found in region.walk())), kernel.body)


def _block_of(block: Block, op: Op) -> Block:
    """The block that an op is in."""
    if op in block.ops:
        return block
    inner = (region for outer in block.ops for region in outer.regions)
    return next(_block_of(region, op) for region in inner if any(found is op for found in region.walk()))


__all__ = ["store_by_warps", "wait_for_stores"]
