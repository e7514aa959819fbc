"""Roles of warps, and the barriers of the rings between them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.statements.common import known_number, register_count
from tessera.codegen_cuda.statements.registry import statement
from tessera.ir.core import Op, Value
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
        "bytes": type_.bytes,
        "stages": type_.stages,
        "barrier": BARRIER_BYTES,
        "empty": type_.stages * BARRIER_BYTES,
        "arrivals": op.attributes["arrivals"] * op.attributes["cluster"],
    }


def full_barrier(emitter: Emitter, ring: Value, stage: Value) -> str:
    """The address of the barrier that completes when a slot's copies have landed."""
    number = known_number(stage)
    offset = f"(int){emitter.name(stage)} * {BARRIER_BYTES}" if number is None else str(number * BARRIER_BYTES)
    return f"{emitter.name(ring)} + {offset}" if offset != "0" else emitter.name(ring)


@statement("ring_acquire", "ring_expect", "ring_wait", "ring_release")
def _slot(emitter: Emitter, op: Op) -> dict[str, Any]:
    ring, stage = op.operand("ring"), op.operand("stage")
    assert isinstance(ring.type, RingType)
    full = full_barrier(emitter, ring, stage)
    texts: dict[str, Any] = {"full": full, "empty": f"{full} + {ring.type.stages * BARRIER_BYTES}"}
    if "phase" in op.definition.operands:
        number = known_number(op.operand("phase"))
        texts["phase"] = f"(int){emitter.name(op.operand('phase'))}" if number is None else str(number)
    if op.name == "ring_expect":
        texts["bytes"] = op.attributes["bytes"]
    if op.name == "ring_release":
        texts["tiles"] = [_words(emitter, tile) for tile in op.operands[2:]]
        made = ring.defining_op
        assert made is not None
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
