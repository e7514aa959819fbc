"""Load a tile in front of a loop that would load it again in every iteration, where registers hold it meanwhile.

Only where copies are a role of their own: what they bring is in registers soon, and a slot that is filled once is one
that later iterations have for themselves. Exact: nothing in the kernel writes the tensor.
"""

from __future__ import annotations

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.opdef import COUNTED
from tessera.ir.ops.control import loop_range
from tessera.ir.types import TileType, dtype_of
from tessera.passes.ahead import computed_behind
from tessera.target.reuse import written_tensors
from tessera.target.schedule import Schedule, elements, root

REGISTERS = 80  # 32-bit registers of a thread for what is carried over one loop: a third of what it can have


def hoist_tiles(kernel: Kernel, schedule: Schedule) -> Kernel:
    if schedule.copies != "tma":
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _Hoister(kernel, schedule.warps * 32).block(kernel.body, builder, mapping)
    return new


class _Hoister:
    def __init__(self, kernel: Kernel, threads: int):
        self.written, self.threads = written_tensors(kernel), threads

    def block(self, block: Block, builder: Builder, mapping: Mapping) -> None:
        for op in block.ops:
            if any(result in mapping for result in op.results):
                continue  # it stands in front of the loop
            builder.at(op)
            if op.definition.has(COUNTED) and loop_range(op.operands[:3]):
                for inner in self._invariant(op):
                    clone_op(builder.at(inner), inner, mapping)
                builder.at(op)
            if op.regions:
                clone_with_regions(builder, op, mapping, lambda old, inner: self.block(old, inner, mapping))
            else:
                clone_op(builder, op, mapping)

    def _invariant(self, loop: Op) -> list[Op]:
        """The loads of the loop that give the same tile in all iterations, with what their windows are computed by."""
        (body,) = loop.regions
        inside, found = set(body.ops), dict[Op, None]()
        left = REGISTERS * self.threads * 4
        for op in body.ops:
            if op.name != "load" or not isinstance(op.result.type, TileType) or root(op.operands[0]) in self.written:
                continue
            size = elements(op.result) * dtype_of(op.result.type).bytes
            behind = computed_behind(op.operands[0], inside)
            if behind is not None and size <= left:
                left -= size
                found |= dict.fromkeys([*behind, op])
        return [op for op in body.ops if op in found]
