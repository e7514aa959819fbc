"""Tile IR to Target IR for the sm_80 lane: every tile gets registers, every buffer a place, every access a width.

Products become a loop over k-blocks of fragment loads and matrix instructions; copies become cp.async groups; a store
whose register layout would make narrow accesses goes through shared memory. Exact. Barriers and placement follow in
later passes.
"""

from __future__ import annotations

from tessera.ir.core import Kernel, add_notes, new_kernel_like
from tessera.passes import (  # noqa: F401  register their rules
    lower_copies,
    lower_effects,
    lower_memory,
    lower_products,
    lower_reductions,
    lower_tiles,
    lower_tma_stores,
)
from tessera.passes.assign_layouts import assign_layouts
from tessera.passes.lowering import Lowering
from tessera.passes.warpgroup import why_not
from tessera.target.arch import Arch
from tessera.target.schedule import Schedule


def lower_to_target(kernel: Kernel, schedule: Schedule, arch: Arch) -> Kernel:
    """Raises SourceError TS102 for a tile op that this lane does not have yet."""
    layouts = assign_layouts(kernel, schedule)
    new, builder, mapping = new_kernel_like(kernel)
    new.attributes["warps"] = schedule.warps
    reasons = _left_to_mma_sync(kernel, schedule)
    if reasons:
        notes = (f"family = 'wgmma' has no effect on a product: {reason}" for reason in reasons)
        add_notes(new, *notes)
    lowering = Lowering(kernel, layouts, schedule, mapping, arch.stmatrix)
    lowering.block(kernel.body, builder)
    new.body.ops[:0] = lowering.allocations
    lower_tma_stores.wait_for_stores(new)
    lower_copies.count_groups(new)
    return new


def _left_to_mma_sync(kernel: Kernel, schedule: Schedule) -> list[str]:
    """Why warpgroups do not compute products that they are asked for, each reason once."""
    products = [op for op in kernel.body.walk() if op.name == "mma"] if schedule.family == "wgmma" else []
    return list(dict.fromkeys(reason for op in products if (reason := why_not(op, schedule)) is not None))
