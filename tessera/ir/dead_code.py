"""Drops what no result depends on, in place: for passes on blocks of pure ops that they have just built."""

from __future__ import annotations

from tessera.ir.core import Block, Op, Value
from tessera.ir.opdef import PURE
from tessera.ir.types import TileType


def drop_unused(block: Block) -> list[Op]:
    """Drops pure ops, and ops whose regions are, whose results nothing uses; also results of regions that nothing uses.

    What it returns are the dropped ops on which no other op depends, in program order: what the author wrote in vain.
    """
    read = {id(value) for op in block.walk() for value in op.operands}
    used: set[int] = set()
    roots: list[Op] = []

    def clean(block: Block) -> None:
        kept = []
        for op in reversed(block.ops):
            wanted = [id(result) in used for result in op.results]
            if op.results and not any(wanted) and (op.definition.has(PURE) or op.regions):
                if not any(id(result) in read for result in op.results):
                    roots.append(op)
                continue
            if op.regions and not all(wanted) and not op.operands:
                _keep_results(op, wanted)
            used.update(id(value) for value in op.operands)
            for region in op.regions:
                clean(region)
            kept.append(op)
        block.ops[:] = reversed(kept)

    clean(block)
    return roots[::-1]


def unused_notes(roots: list[Op], body: Block) -> list[str]:
    """What to tell the author of a function about dropped roots: tensors with a name, in the function's own lines.

    A line of which one result is used, as in a loop that is unrolled, is not in vain.
    """
    used = {op.loc for op in body.walk()}
    notes: dict[str, None] = {}
    for op in roots:
        if op.loc is None or op.loc.call_site is not None or op.loc in used or op.regions:
            continue
        for result in op.results:
            if isinstance(result.type, TileType) and result.name and not result.name.startswith("_"):
                notes[f"'{result.name}' is never used: it is not computed (line {op.loc.line})"] = None
    return list(notes)


def _keep_results(op: Op, wanted: list[bool]) -> None:
    """Ends the regions of an op that only runs them with the wanted values."""
    for region in op.regions:
        end = region.ops[-1]
        end.operands[:] = [value for value, keep in zip(end.operands, wanted, strict=True) if keep]
    kept: list[Value] = [result for result, keep in zip(op.results, wanted, strict=True) if keep]
    for index, result in enumerate(kept):
        result.index = index
    op.results[:] = kept


__all__ = ["drop_unused", "unused_notes"]
