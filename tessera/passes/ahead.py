"""What a loop can do iterations ahead: reads of tensors at places that the number of the iteration alone decides."""

from __future__ import annotations

from tessera.ir.core import Block, Op, Value
from tessera.ir.opdef import PURE
from tessera.ir.types import TileType
from tessera.target.schedule import root


def computed_behind(value: Value, inside: set[Op], index: Value | None = None) -> list[Op] | None:
    """The ops among those `inside` a loop that a value is computed by, pure ones alone; None where iterations may
    differ in it otherwise than by `index`.
    """
    found: dict[Op, None] = {}
    pending = [value]
    while pending:
        value = pending.pop()
        op = value.defining_op
        if value is index or op is not None and (op in found or op not in inside):
            continue
        if op is None:
            if isinstance(value.owner, Block) and any(inner in inside for inner in value.owner.ops):
                return None
            continue
        if op.regions or not op.definition.has(PURE):
            return None
        found[op] = None
        pending += op.operands
    return list(found)


class Ahead:
    """Which reads of tensors in the body of a loop may start iterations ahead."""

    def __init__(self, loop: Op, used: dict[Value, list[Op]], written: set[Value]):
        (self.body,) = loop.regions
        self.used, self.written = used, written
        self.place: dict[int, int] = {}  # position in the body of an op, or of the op of the body that holds it
        for number, op in enumerate(self.body.ops):
            self.place[op.id] = number
            for region in op.regions:
                self.place.update({inner.id: number for inner in region.walk()})
        self.made_at = {result: op for op in self.body.ops for result in op.results}

    def movable(self, copy: Op) -> bool:
        """Whether nothing but its iteration's number decides what a copy reads, and its buffer serves nothing else."""
        buffer, view = copy.operands
        allocated = buffer.defining_op
        if copy.attributes["stages"] == 1 or allocated is None or allocated.get("stages") != 1:
            return False  # what fills a stage is ahead already
        waits = self.used.get(copy.result, [])
        if len(waits) != 1 or waits[0].name != "wait" or waits[0] not in self.body.ops:
            return False
        landed = self.place[waits[0].id]
        for user in self.used[buffer]:
            if user is not copy and (user.name != "read" or self.place.get(user.id, -1) < landed):
                return False
        return root(view) not in self.written and self.behind(view) is not None

    def feeding(self, copies: list[Op]) -> list[Op]:
        """The ops of the body behind the windows of copies, in order."""
        needed = {op.id for copy in copies for op in self.behind(copy.operand("view")) or ()}
        return [op for op in self.body.ops if op.id in needed]

    def behind(self, value: Value) -> list[Op] | None:
        """The ops of the body that a value is computed by; None where one of them cannot run ahead."""
        if value in self.body.arguments[1:]:
            return None
        op = self.made_at.get(value)
        if op is None:
            return []  # from outside, or the index
        effects = op.definition.effects_of(op)
        constant = bool(effects) and all(e == "reads" and root(v) not in self.written for e, v in effects)
        if op.regions or isinstance(value.type, TileType) or not (op.definition.has(PURE) or constant):
            return None
        found = [op]
        for operand in op.operands:
            inner = self.behind(operand)
            if inner is None:
                return None
            found += inner
        return found
