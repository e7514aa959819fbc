"""Roles: warps of a block that do different things at once, and the rings through which they hand buffers on.

A producer fills the slots of a ring with copies, consumers wait for a slot, read it and release it. The barriers of a
ring are counters in shared memory; the buffers of a slot are those that its copies fill, of as many stages as the ring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tessera.errors import SourceError
from tessera.ir.bounds import Bar
from tessera.ir.core import Kernel, Op, Value
from tessera.ir.opdef import ASYNC, BRANCH, REQUIRED, Lowering, define
from tessera.ir.ops.control import yielded_types
from tessera.ir.ops.elementwise import is_index
from tessera.ir.rings import Ring
from tessera.ir.types import RingType, TileType, Type

# Most bytes that an mbarrier can expect in one phase.
MOST_BYTES = (1 << 20) - 1


def expect_ring(op: Op) -> RingType:
    """The type of the operand `ring`, where the operand `stage` is a number. Raises SourceError TS203."""
    ring, stage = op.operand("ring"), op.operand("stage")
    if not isinstance(ring.type, RingType):
        raise SourceError("TS203", f"{op.name} takes a ring, but '{ring.name or '?'}' is none")
    if not is_index(stage.type):
        raise SourceError("TS203", f"the slot '{stage.name or '?'}' of {op.name} is not an integer")
    return ring.type


def integer(scalar: Any) -> int:
    """The number that a scalar is in all programs of a batch."""
    (number,) = set(np.asarray(scalar.r if isinstance(scalar, Bar) else scalar).astype(np.int64).tolist())
    return number


def shares_of(ring: Value) -> int:
    """How many shares each slot of a ring comes in."""
    return ring.defining_op.attributes["shares"] if ring.defining_op is not None else 1


def uses_ring(op: Op) -> bool:
    """Whether an op takes a ring: it stays among the others that do, in their order."""
    return any(isinstance(value.type, RingType) for value in op.operands)


def computing_warps(kernel: Kernel) -> int:
    """The warps of a block that compute: those of all teams of consumers, where a Target kernel has roles."""
    roles = next((op for op in kernel.body.ops if op.name == "roles"), None)
    return kernel.attributes["warps"] if roles is None else sum(roles.attributes["warps"][1:])


def fills_ring(op: Op) -> bool:
    """Whether an op is a copy that a slot of a ring counts."""
    return op.definition.has(ASYNC) and uses_ring(op)


define(
    "ring",
    "",
    lambda op: (RingType(op.attributes["stages"]),),
    "barriers for a ring of `stages` slots, all of them empty: a slot is full when its copies have landed, and empty "
    "again when `arrivals` consumers, a warp each, have released it in each of the `cluster` programs whose producers "
    "fill one another's slots; `readers` roles wait for each round; a slot comes in `shares`, each with barriers of "
    "its own, for as many of the consumers one after the other; `offset` is where they lie in shared memory (-1 until "
    "placed)",
    attributes={"stages": REQUIRED, "arrivals": REQUIRED, "cluster": 1, "readers": 1, "shares": 1, "offset": -1},
    evaluate=lambda op: Ring.new(
        op.result.name or "ring", op.attributes["stages"], op.attributes["readers"], op.attributes["shares"]
    ),
    lower=Lowering(template="ring"),
)


def _slot_type(op: Op) -> tuple[Type, ...]:
    expect_ring(op)
    if "phase" in op.definition.operands and not is_index(op.operand("phase").type):
        raise SourceError("TS203", f"the phase '{op.operand('phase').name or '?'}' of {op.name} is not an integer")
    return ()


def _define_slot_op(name: str, operands: str, doc: str, evaluate: Callable[..., None], **facets: Any) -> None:
    define(
        name,
        operands,
        facets.pop("type_rule", _slot_type),
        doc,
        effects={"ring": "accumulates"},
        evaluate=evaluate,
        lower=Lowering(template=name),
        **facets,
    )


_define_slot_op(
    "ring_acquire",
    "ring stage phase",
    "the producer waits until slot `stage`, or a `share` of it, is empty; `phase` is 0 in the first round of the ring, "
    "1 in the second, 0 in the third, and so on",
    lambda op, ring, stage, phase: ring.acquire(integer(stage), integer(phase), op.attributes["share"]),
    attributes={"share": 0},
)


def _expect_type(op: Op) -> tuple[Type, ...]:
    if not 0 < op.attributes["bytes"] <= MOST_BYTES:
        raise SourceError("TS703", f"{op.attributes['bytes']} bytes: a slot takes from 1 to {MOST_BYTES} in a round")
    return _slot_type(op)


_define_slot_op(
    "ring_expect",
    "ring stage",
    "the producer announces the `bytes` that the copies of this round bring into slot `stage`, or a `share` of it",
    lambda op, ring, stage: ring.expect(integer(stage), op.attributes["bytes"], op.attributes["share"]),
    attributes={"bytes": REQUIRED, "share": 0},
    type_rule=_expect_type,
)

_define_slot_op(
    "ring_wait",
    "ring stage phase",
    "the consumers wait until the copies of this round into slot `stage` have landed; `phase` as of `ring_acquire`",
    lambda op, ring, stage, phase: ring.wait(integer(stage), integer(phase)),
)


def _release_type(op: Op) -> tuple[Type, ...]:
    for value in op.operands[2:]:
        if not isinstance(value.type, TileType):
            raise SourceError("TS203", f"'{value.name or '?'}', which {op.name} waits for, is not a tile")
    return _slot_type(op)


_define_slot_op(
    "ring_release",
    "ring stage *values",
    "the consumers have read slot `stage` in this round, each warp for itself; `values` are tiles that were loaded "
    "from it, which have arrived before anything else may be copied there",
    lambda op, ring, stage, *values: ring.release(integer(stage)),
    type_rule=_release_type,
)


def _roles_type(op: Op) -> tuple[Type, ...]:
    names, warps, registers = (op.attributes[name] for name in ("names", "warps", "registers"))
    if not len(names) == len(warps) == len(registers) == len(op.regions):
        raise SourceError("TS703", "roles take a name, warps and registers for each of their regions")
    if len(set(names)) != len(names) or min(warps) < 1:
        raise SourceError("TS703", "roles need names that differ, and a warp each")
    if any(number and not (24 <= number <= 256 and number % 8 == 0) for number in registers):
        raise SourceError("TS703", f"registers {registers} of roles: multiples of 8 from 24 to 256, or 0 to leave them")
    for region in op.regions:
        if region.arguments or yielded_types(op, region):
            raise SourceError("TS703", "a role takes nothing and yields nothing")
    return ()


define(
    "roles",
    "",
    _roles_type,
    "runs its regions at once, each by `warps` warps of its own with `registers` registers a thread (0: as compiled): "
    "first the producer, one thread of which works, then the consumers, the first warps of the block, in one team or "
    "several, which do not meet; the programs of a `cluster` begin and end together",
    BRANCH,
    regions=2,
    more_regions=True,
    attributes={"names": REQUIRED, "warps": REQUIRED, "registers": REQUIRED, "cluster": 1},
    lower=Lowering(template="roles"),
)

__all__ = ["MOST_BYTES", "computing_warps", "expect_ring", "fills_ring", "integer", "shares_of", "uses_ring"]
