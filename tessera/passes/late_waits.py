"""Where the roles meet over what stays through a persistent loop, so that no program waits for all of it at first.

    producer: w, w'; for p: x[p], x'[p]         w; for p: x[p]; x'[p]; if first: w'
    consumer: wait w, w'                   ->   for p:
              for p: x, w ... x', w' ...            wait x, w ... wait x', w' ...

Each iteration waits in front of the first op that needs such a copy: from the second one on such a wait passes at once,
as nobody fills the slot again. The copies that are needed first stay where they are, and fly while the producer finds
out where the program's own begin. The others are started in the first iteration, each behind those of the loop that it
is used with, and all in front of the first one of the loop that may have to wait for a slot. Where a guard leaves out
the work of a program, its other side starts them, and behind the loop everybody waits for what no work has needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tessera.ir.core import Block, Op
from tessera.passes.copy_groups import CopyGroup


@dataclass
class LateWaits:
    """The groups by the op `in_front` of which consumers wait for them. Of those that are `moved` into the loop,
    `behind`: whose copies follow the ones of a wait; `beside`: by the guards round these, on whose other side they are
    started. `left`: those that no program may need.
    """

    loop: Op | None = None
    in_front: dict[int, list[CopyGroup]] = field(default_factory=dict)
    moved: list[CopyGroup] = field(default_factory=list)
    behind: dict[int, list[CopyGroup]] = field(default_factory=dict)
    beside: dict[int, list[CopyGroup]] = field(default_factory=dict)
    left: list[CopyGroup] = field(default_factory=list)

    def is_late(self, group: CopyGroup) -> bool:
        return any(group in groups for groups in self.in_front.values())


def late_waits(
    loop: Op | None, groups: list[CopyGroup], stages: Callable[[CopyGroup], int], alike: set[int], teams: int
) -> LateWaits:
    """Of the groups that are copied once and used in a persistent `loop` alone. `stages`: slots that copies of a group
    have; `alike`: copies that programs of a cluster make for one another, which start together. Of several `teams` one
    may have no program.
    """
    found = LateWaits(loop)
    if loop is None:
        return found
    waits = {group.wait.id: group for group in groups if group.in_turn}
    for group in groups:
        joined = any(copy.id in alike for copy in group.copies)
        if group.in_loop or group.kept or joined or loop not in group.block.ops:
            continue
        guards, block = _place(loop, group)
        first = next((op for op in block.ops if _uses(op, group)), None)
        other = [op for op in group.block.ops if op is not loop and op not in group.copies and _uses(op, group)]
        behind = _copies_before(block, first, waits, stages) if first is not None and not other else None
        if first is None or behind is None:
            continue
        early = not found.in_front
        found.in_front.setdefault(first.id, []).append(group)
        if guards or teams > 1:
            found.left.append(group)
        if not early:
            found.moved.append(group)
            found.behind.setdefault(behind.id, []).append(group)
            for guard in guards:
                found.beside.setdefault(guard.id, []).append(group)
    return found


def _place(loop: Op, group: CopyGroup) -> tuple[list[Op], Block]:
    """The block of all uses in a loop, through guards that give nothing and have no other side."""
    guards: list[Op] = []
    (block,) = loop.regions
    while True:
        users = [op for op in block.ops if _uses(op, group)]
        if len(users) != 1 or not is_guard(users[0]):
            return guards, block
        guards.append(users[0])
        block = users[0].regions[0]


def is_guard(op: Op) -> bool:
    """Whether a branch gives nothing and has no other side."""
    return op.name == "if" and not op.results and len(op.regions[1].ops) == 1


def _uses(op: Op, group: CopyGroup) -> bool:
    return any(value in group.buffers for inner in _walk(op) for value in inner.operands)


def _copies_before(
    block: Block, first: Op, waits: dict[int, CopyGroup], stages: Callable[[CopyGroup], int]
) -> Op | None:
    """The last wait in front of `first` whose copies, and those before, find empty slots in the first iteration; None
    where there is none in this block.
    """
    taken: dict[tuple[object, ...], int] = {}
    last = None
    for op in block.ops[: block.ops.index(first)]:
        if any(inner.id in waits for region in op.regions for inner in region.walk()):
            break
        group = waits.get(op.id)
        if group is None:
            continue
        taken[group.signature] = taken.get(group.signature, 0) + 1
        if taken[group.signature] > stages(group):
            break
        last = op
    return last


def _walk(op: Op) -> Iterator[Op]:
    yield op
    for region in op.regions:
        yield from region.walk()


__all__ = ["LateWaits", "is_guard", "late_waits"]
