"""The rings through which a producer hands copies on to consumers: which copies share one, and how slots go round.

Where each warpgroup of the consumers reads rows of its own of all that a slot brings, the slot comes in shares, one for
each of them: a warpgroup starts when its rows are there and hands them back when it has read them, so the warpgroups
drift apart, and one computes while another one's rows are on their way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tessera.dtypes import i32
from tessera.ir.clusters import cluster_of, differing, differing_blocks
from tessera.ir.core import Block, Builder, Kernel, Op, Value, uses
from tessera.ir.opdef import LOOP
from tessera.ir.ops.tma import axis_of_shares
from tessera.ir.stages import allocation
from tessera.ir.types import BufferType, int_shape
from tessera.ir.verify_shares import each_has_its_rows
from tessera.passes.assign_layouts import Layouts
from tessera.passes.copy_groups import CopyGroup
from tessera.target.schedule import Schedule
from tessera.target.tensor_maps import rows_of_part, why_not
from tessera.target.wgmma import WGMMA_ROWS, WGMMA_WARPS

# Bytes on their way to a multiprocessor that keep DRAM busy: 4.2 TB/s for 2 us, over 132 of them. More requests at once
# delay those that are needed first: sums of one gated delta (D = 128) were faster by 4 % and more with 2 slots (a
# program, 64 KiB) than with 4 when this was chosen (H200).
ENOUGH_IN_FLIGHT = 64 << 10
LEAST_STAGES = 2  # of a ring that is filled again and again: one slot is filled while one is read
# Slots up to which a ring that others are filled around takes the room of theirs. Products of a launched operand were
# faster by 2 to 5 % with 4 slots of 40 KiB beside 2 of 16 than with 3 and 3; with 5 of 32 KiB beside 2 no faster than
# with 4 and 4 (H200).
TAKES_ROOM = 4


@dataclass(eq=False)
class Ring:
    """`order` is the place of a ring among those of the kernel; `buffers` are the staged buffers of a slot; `teams` of
    consumers wait for each of its rounds.
    """

    order: int
    groups: list[CopyGroup]
    stages: int
    teams: tuple[int, ...] = (0,)
    cluster: int = 1  # programs whose producers fill one another's slots
    shares: int = 1  # of a slot, a warpgroup's rows each
    value: Value | None = None
    buffers: list[Value] = field(default_factory=list)


@dataclass(frozen=True)
class Slot:
    """The next slot of a ring, and the parity of its round."""

    stage: Value
    phase: Value


def staged(ring: Ring, index: int, slot: Slot, builder: Builder) -> Value:
    buffer = ring.buffers[index]
    return builder.value("stage", buffer, slot.stage, hint=buffer.name) if ring.stages > 1 else buffer


def next_slot(ring: Ring, slot: Slot, builder: Builder) -> Slot:
    """The slot after this one; behind the last one comes the first, in the next round."""
    if all(not group.in_loop for group in ring.groups):
        return slot
    one, zero, last = (builder.value("constant", value=v, dtype=i32) for v in (1, 0, ring.stages - 1))
    wraps = builder.value("eq", slot.stage, last)
    stage = builder.value("where", wraps, zero, builder.value("add", slot.stage, one), hint="slot")
    phase = builder.value("where", wraps, builder.value("sub", one, slot.phase), slot.phase, hint="round")
    return Slot(stage, phase)


def slot_counts(groups: list[CopyGroup], most: int, least: int) -> Iterator[tuple[int, int]]:
    """How many slots rings may have, most first: all of them, and those around others (`_is_around`)."""
    around = any(_is_around(group, groups) for group in groups)
    for stages in range(most, least - 1, -1):
        yield stages, stages
        if around and LEAST_STAGES < stages <= TAKES_ROOM:
            yield stages, LEAST_STAGES


def _is_around(group: CopyGroup, groups: list[CopyGroup]) -> bool:
    """Whether a loop lies beside a group that comes again and again, and fills slots of others in each of its turns."""
    inside = {op.id for beside in group.block.ops for region in beside.regions for op in region.walk()}
    return group.in_turn and any(other.in_turn and other.wait.id in inside for other in groups)


def make_rings(groups: list[CopyGroup], stages: int, around: int, teams: int) -> list[Ring]:
    """A ring for each signature of groups in loops, and one for each group that runs once, or that keeps its slot while
    others of its kind come and go. What comes again and again has one for each team. With `around` slots at most where
    all its groups are around others, whose rounds lie between theirs.
    """
    rings: list[Ring] = []
    shared: dict[tuple[object, ...], Ring] = {}
    by_wait = {group.wait.id: group for group in groups}
    for group in groups:
        own = not group.in_turn or _held_long(group, by_wait, max(LEAST_STAGES, stages))
        ring = None if own else shared.get(group.signature)
        if ring is None:
            ring = Ring(len(rings), [], _stages(group, own, stages))
            rings.append(ring)
            if not own:
                shared[group.signature] = ring
        ring.groups.append(group)
    for ring in [ring for ring in rings if teams > 1]:
        if ring.groups[0].in_turn:
            rings += [Ring(len(rings) + team - 1, ring.groups, ring.stages, (team,)) for team in range(1, teams)]
        else:
            ring.teams = tuple(range(teams))
    for ring in rings:
        if all(_is_around(group, groups) for group in ring.groups):
            ring.stages = min(ring.stages, around)
    return rings


def _stages(group: CopyGroup, own: bool, stages: int) -> int:
    if group.kept or not group.in_loop:
        return group.kept or 1
    return LEAST_STAGES if own else max(LEAST_STAGES, stages)


def slots_of_use(ring: Ring, programs: Op | None) -> int:
    """How many slots of a ring there is a use for: those that a turn of the loop over `programs` takes, or as many as
    keep memory busy. All that it has where that is not known.
    """
    if programs is None or not all(group.in_turn for group in ring.groups):
        return ring.stages
    waits = {op.id for op in _straight(programs.regions[0])}
    if not all(group.wait.id in waits for group in ring.groups):
        return ring.stages
    enough = -(-ENOUGH_IN_FLIGHT // ring.groups[0].bytes)
    return min(ring.stages, max(LEAST_STAGES, len(ring.groups), enough))


def _straight(block: Block) -> Iterator[Op]:
    """The ops that a turn runs once at most: those of the block, and of what it guards."""
    for op in block.ops:
        yield op
        for region in () if op.definition.has(LOOP) else op.regions:
            yield from _straight(region)


def loaded_alike(kernel: Kernel, layouts: Layouts, rings: list[Ring]) -> set[int]:
    """The copies of windows that all programs of a cluster have alike, which come to each slot of a ring in turn."""
    cluster = cluster_of(kernel)
    if cluster == 1:
        return set()
    values, found = differing(kernel), set[int]()
    apart = differing_blocks(kernel, values)
    for ring in rings:
        if any(id(group.block) in apart for group in ring.groups):
            continue
        for copy in (copy for group in ring.groups for copy in group.copies):
            buffer, view = allocation(copy.operands[0]), copy.operands[1]
            assert isinstance(buffer.type, BufferType)
            type_ = BufferType(buffer.type.shape, buffer.type.dtype, layouts.buffer[buffer])
            rows = rows_of_part(type_, cluster)
            if view not in values and rows and why_not(view, type_, kernel, stages=ring.stages, rows=rows) is None:
                found.add(copy.id)
    return found


def shares_of_ring(kernel: Kernel, schedule: Schedule, ring: Ring, layouts: Layouts) -> int:
    """The warpgroups of the consumers, if each reads rows of its own of what comes into the ring again and again;
    else 1.
    """
    warpgroups = schedule.warps // WGMMA_WARPS
    if warpgroups == 1 or ring.cluster > 1 or len(ring.teams) > 1 or not all(group.in_turn for group in ring.groups):
        return 1
    used = uses(kernel.body)
    for copy in (copy for group in ring.groups for copy in group.copies):
        buffer, view = allocation(copy.operands[0]), copy.operands[1]
        assert isinstance(buffer.type, BufferType)
        shape = int_shape(buffer.type)
        axis = axis_of_shares(shape)
        if axis is None or shape[axis] % (warpgroups * WGMMA_ROWS):  # of fewer rows a copy is not worth its instruction
            return 1
        type_ = BufferType(buffer.type.shape, buffer.type.dtype, layouts.buffer[buffer])
        rows = rows_of_part(type_, warpgroups)
        if why_not(view, type_, kernel, stages=ring.stages * warpgroups, rows=rows, load=True):
            return 1
        reads = [user for user in used[buffer] if user is not copy]
        if not all(_by_warpgroup(read, axis, warpgroups, used, layouts) for read in reads):
            return 1
    return warpgroups


def _by_warpgroup(read: Op, axis: int, warpgroups: int, used: dict[Value, list[Op]], layouts: Layouts) -> bool:
    """Whether each warpgroup reads the rows of its own share of a whole buffer, into registers."""
    if len(read.operands) > 1 or any(user.name == "mma" for user in used.get(read.result, ())):
        return False
    return each_has_its_rows(layouts.tile[read.result], axis, int_shape(read.result.type)[axis], warpgroups)


def _held_long(group: CopyGroup, groups: dict[int, CopyGroup], stages: int) -> bool:
    """Whether its slot is held while all others of a ring would be taken: slots are taken in turn."""
    ops = group.block.ops
    between = ops[ops.index(group.wait) + 1 : ops.index(group.last) + 1]
    alike = {wait for wait, other in groups.items() if other.signature == group.signature and other.in_turn}
    if any(inner.id in alike for op in between for region in op.regions for inner in region.walk()):
        return True
    return sum(op.id in alike for op in between) >= stages


__all__ = [
    "LEAST_STAGES",
    "Ring",
    "Slot",
    "loaded_alike",
    "make_rings",
    "next_slot",
    "shares_of_ring",
    "slot_counts",
    "slots_of_use",
    "staged",
]
