"""How the programs of a row group have its lines: held by several warps, walked over in panels, or a warp's own."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.ir.core import Op, Value
from tessera.ir.types import dtype_of, shape_of
from tessera.passes.fusion_cost import Programs, Sizes, whole_lines, whole_programs
from tessera.passes.graph_walks import (
    Again,
    Walks,
    lines_behind_products,
    must_walk,
    walked_programs,
    walked_rows,
    why_not_walk,
)
from tessera.passes.held_lines import SHARED_BYTES, Held, held_shape

PADDED = 64  # columns of a product that the warps of a program share out


def held_lines(ops: Sequence[Op], sizes: Sizes) -> Held | None:
    """The shape of a kernel whose warps share the lines that they hold; None of another one."""
    return held_shape(ops, lines_behind_products(ops, sizes), sizes)


def walks(ops: Sequence[Op], sizes: Sizes) -> bool:
    """Whether a kernel has lines behind products that registers do not hold."""
    return held_lines(ops, sizes) is None and bool(must_walk(ops, sizes))


def why_no_lines(ops: Sequence[Op], stored: Sequence[Value], again: Again, sizes: Sizes) -> str | None:
    """Why a group with products cannot be one kernel, as an author reads it; `again` as of `Walks`."""
    if held_lines(ops, sizes) is not None:
        return None
    if not must_walk(ops, sizes):
        return _why_not_whole(ops, sizes)
    why = why_not_walk(ops, sizes)
    if why is None and walked_rows(Walks(ops, stored, again), sizes) == 0:
        why = "shared memory does not hold what is kept of them"
    if why is None:
        return None
    return f"lines of {must_walk(ops, sizes)} columns behind a product are more than registers hold, and {why}"


def _why_not_whole(ops: Sequence[Op], sizes: Sizes) -> str | None:
    """The same of lines that warps have to themselves: narrow right operands are there whole, and padded."""
    for op in ops if whole_lines(ops) else ():
        if op.name == "matmul":
            depth, columns = (sizes.decide(size) for size in shape_of(op.operands[1].type)[-2:])
            if columns < PADDED and depth * PADDED * dtype_of(op.operands[1].type).bytes > SHARED_BYTES:
                return f"shared memory does not hold {depth} x {columns} of a product beside lines that are whole"
    return None


def line_programs(ops: Sequence[Op], stored: Sequence[Value], again: Again, sizes: Sizes) -> Programs | None:
    """What decides of the programs of a group whose lines behind products stay whole; None of one without them."""
    held = held_lines(ops, sizes)
    if held is not None:
        return held.programs
    if must_walk(ops, sizes):
        return walked_programs(Walks(ops, stored, again), sizes)
    return whole_programs(ops, sizes) if lines_behind_products(ops, sizes) else None


__all__ = ["held_lines", "line_programs", "walks", "why_no_lines"]
