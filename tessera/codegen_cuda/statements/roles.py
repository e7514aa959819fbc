"""Roles of warps, and the barriers of the rings between them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.statements.common import known_number, register_count
from tessera.codegen_cuda.statements.registry import statement
from tessera.ir.core import Op, Value
from tessera.ir.ops.roles import shares_of
from tessera.ir.stages import allocated_bytes
from tessera.ir.types import BARRIER_BYTES, RingType, dtype_of

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


@statement("ring")
def _ring(emitter: Emitter, op: Op) -> dict[str, Any]:
    type_ = op.result.type
    assert isinstance(type_, RingType)
    return {
        "out": emitter.name(op.result),
        "offset": op.attributes["offset"],
        "bytes": allocated_bytes(op),
        "stages": type_.stages * op.attributes["shares"],
        "barrier": BARRIER_BYTES,
        "empty": type_.stages * op.attributes["shares"] * BARRIER_BYTES,
        "arrivals": op.attributes["arrivals"] // op.attributes["shares"] * op.attributes["cluster"],
    }


def full_barrier(emitter: Emitter, ring: Value, stage: Value, share: int | str = 0, behind: int = 0) -> str:
    """The address of the barrier that completes when the copies of a slot, or of a share of it, have landed; or of the
    one so many bytes behind it.
    """
    number, step = known_number(stage), BARRIER_BYTES * shares_of(ring)
    fixed = behind + (number or 0) * step + (share * BARRIER_BYTES if isinstance(share, int) else 0)
    terms = [f"(int){emitter.name(stage)} * {step}"] if number is None else []
    terms += [f"{share} * {BARRIER_BYTES}"] if isinstance(share, str) else []
    return " + ".join([emitter.name(ring), *terms, *([str(fixed)] if fixed else [])])


def _share(emitter: Emitter, op: Op) -> int | str:
    """Of which share an op is: a producer's says so, a consumer's is the one of its warp."""
    made = op.operand("ring").defining_op
    assert made is not None
    if "share" in op.attributes or made.attributes["shares"] == 1:
        return op.get("share", 0)
    return f"({emitter.warp} / {made.attributes['arrivals'] // made.attributes['shares']})"


@statement("ring_acquire", "ring_expect", "ring_wait", "ring_release")
def _slot(emitter: Emitter, op: Op) -> dict[str, Any]:
    ring, stage = op.operand("ring"), op.operand("stage")
    assert isinstance(ring.type, RingType)
    share, made = _share(emitter, op), ring.defining_op
    assert made is not None
    texts: dict[str, Any] = {
        "full": full_barrier(emitter, ring, stage, share),
        "empty": full_barrier(emitter, ring, stage, share, allocated_bytes(made) // 2),
    }
    if "phase" in op.definition.operands:
        number = known_number(op.operand("phase"))
        texts["phase"] = f"(int){emitter.name(op.operand('phase'))}" if number is None else str(number)
    if op.name == "ring_expect":
        texts["bytes"] = op.attributes["bytes"]
    if op.name == "ring_release":
        texts["tiles"] = [_words(emitter, tile) for tile in op.operands[2:]]
        texts["cluster"] = made.attributes["cluster"]
    return texts


def _words(emitter: Emitter, tile: Value) -> dict[str, Any]:
    """The first element of each 32-bit register of a tile: it is there when all of the register is."""
    step = max(1, 4 // dtype_of(tile.type).bytes)
    return {"name": emitter.name(tile), "count": register_count(tile), "step": step}


@statement("roles")
def _roles(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {
        "names": op.attributes["names"],
        "ends": list(itertools.accumulate(op.attributes["warps"][1:])),
        "registers": op.attributes["registers"],
        "cluster": op.attributes["cluster"],
    }
