"""The op that computes tiles part by part, and which ops can be in it: those that work register by register."""

from __future__ import annotations

import math

from tessera.errors import SourceError
from tessera.ir.core import Block, Op
from tessera.ir.opdef import BRANCH, ELEMENTWISE, REQUIRED, TARGET, Lowering, define
from tessera.ir.types import TileType, Type, dtype_of, tile_layout

# Registers that one ldmatrix fills, or one stmatrix stores: up to four matrices of 16-bit elements, of each of which a
# lane holds a pair.
MATRICES = 8
_BY_MATRICES = ("ld_matrices", "st_matrices")
_SPREADS = ("full", "iota", "broadcast")  # fill their registers from elsewhere
_ACCESSES = {"ld_global": "view", "ld_shared": "buffer", "st_shared": "buffer"}


def register_count(op: Op) -> int:
    """Registers of the tiles of an op that works register by register: register r of its result, or what it stores of
    register r, needs only registers r of its operands. 0 for any other op.

    What a broadcast spreads is as small as it likes: it is read whole.
    """
    if not (op.definition.has(ELEMENTWISE) or op.name in ("reshape", *_BY_MATRICES, *_SPREADS, *_ACCESSES)):
        return 0
    values = op.results if op.name == "broadcast" else (*op.operands, *op.results)
    counts = {tile_layout(value.type).registers_per_thread for value in values if isinstance(value.type, TileType)}
    return counts.pop() if len(counts) == 1 else 0


def register_group(op: Op) -> int:
    """How many registers an op handles by one instruction, where it works register by register."""
    if op.name in _BY_MATRICES:
        return MATRICES
    if op.name not in _ACCESSES:
        return 1
    return max(1, op.attributes["vector"] // dtype_of(op.operand(_ACCESSES[op.name]).type).bytes)


def fits(ops: list[Op], parts: int) -> bool:
    """Whether the registers of ops that work register by register split into `parts` between their accesses."""
    count = register_count(ops[0])
    return count % parts == 0 and count // parts % math.lcm(*map(register_group, ops)) == 0


def _type(op: Op) -> tuple[Type, ...]:
    (body,) = op.regions
    if body.arguments or len(body.ops) < 2 or body.ops[-1].name != "yield":
        raise SourceError("TS703", "the region of an interleave takes nothing, computes something and ends in yield")
    *ops, end = body.ops
    _check_region(body, ops)
    if not fits(ops, op.attributes["parts"]):
        raise SourceError(
            "TS703",
            f"{register_count(ops[0])} registers do not split into {op.attributes['parts']} parts between accesses of "
            f"{math.lcm(*map(register_group, ops))}",
        )
    made = {result for inner in ops for result in inner.results}
    if not made.issuperset(end.operands):
        raise SourceError("TS703", "an interleave yields what its region computes")
    return tuple(value.type for value in end.operands)


def _check_region(body: Block, ops: list[Op]) -> None:
    counts = [register_count(inner) for inner in ops]
    for inner, count in zip(ops, counts, strict=True):
        if not count:
            raise SourceError("TS703", f"{inner.name} in an interleave does not work register by register")
        if count != counts[0]:
            raise SourceError("TS703", f"tiles of {counts[0]} and of {count} registers in one interleave")
        if inner.name == "broadcast" and (source := inner.operands[0].defining_op) in body.ops:
            raise SourceError("TS703", f"a broadcast in an interleave of what its own {source.name} gives")


define(
    "interleave",
    "",
    _type,
    "runs its region, of ops that work register by register, for one of `parts` equal parts of the registers after the "
    "other: what is inside needs registers for a part at a time only",
    BRANCH,
    regions=1,
    attributes={"parts": REQUIRED},
    levels=frozenset((TARGET,)),
    lower=Lowering(template="interleave"),
)

__all__ = ["fits", "register_count", "register_group"]
