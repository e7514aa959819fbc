"""Insert the block barriers that shared memory needs: between a write and the reads of other threads, and back.

A buffer is *dirty* from a write (an asynchronous one from its wait, which makes the copies of the waiting thread
visible to that thread only) until a barrier, and *busy* from a read until a barrier. A read of a dirty buffer and a
write to a dirty or busy one need a barrier in between. A loop body is entered in the state that its own end leaves
behind as well. Buffers that share bytes (`place_shared` ran before) count as one, and so do the stages of a buffer: a
copy into one stage makes nothing dirty until it is waited for, so that one barrier behind that wait, and in front of
the copy that refills what the iteration before has read, serves both. Windows of one buffer at constant places, which
stores write and loads read, count apart where they do not overlap.

Roles meet at a barrier of the block before they begin, and hand buffers on through rings: a copy that a ring counts
makes nothing dirty. Inside of a role a barrier is one of its own threads.

A barrier that what comes before a loop or a branch asks for stands in front of it, one that an iteration asks of
another, or of itself, inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.opdef import ASYNC, COLLECTIVE, COUNTED, LOOP
from tessera.ir.ops.control import loop_range
from tessera.ir.ops.wgmma import buffers_behind
from tessera.ir.parts import Window, overlap, window_in
from tessera.ir.stages import allocation, landing
from tessera.ir.types import BufferType, ViewType
from tessera.passes.place_shared import share_bytes
from tessera.target.schedule import root


@dataclass(frozen=True)
class Part:
    """A window of a buffer at a constant place: start and end along each axis."""

    buffer: Value
    window: Window


Place = Value | Part


@dataclass
class State:
    """Buffers, parts of them, and tensors, by what a barrier has not separated yet."""

    dirty: set[Place] = field(default_factory=set)
    busy: set[Place] = field(default_factory=set)

    def clear(self) -> None:
        self.dirty.clear()
        self.busy.clear()

    def copy(self) -> State:
        return State(set(self.dirty), set(self.busy))

    def merge(self, other: State) -> bool:
        """Joins the states of two paths; tells whether this one grew."""
        before = (len(self.dirty), len(self.busy))
        self.dirty |= other.dirty
        self.busy |= other.busy
        return before != (len(self.dirty), len(self.busy))


def insert_barriers(kernel: Kernel) -> Kernel:
    needed: set[int] = set()
    flow = _Flow(kernel)
    flow.block(kernel.body, State(), needed)
    if not needed and not any(op.name == "roles" for op in kernel.body.ops):
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _Copier(mapping, needed, flow.fenced).block(kernel.body, builder)
    return new


class _Flow:
    """`tracked`: tensors whose accesses must be ordered too; `landing`: the buffers of the copies behind a token.

    `multiplied`: buffers that wgmma reads, through the asynchronous proxy; `fenced`: the ops in front of whose barriers
    each thread makes what it has written visible to that.
    """

    def __init__(self, kernel: Kernel):
        self.tracked = _tracked(kernel)
        self.multiplied = {b for op in kernel.body.walk() if op.name == "wgmma" for b in _buffers(op, "reads")}
        self.fenced: set[int] = set()
        self.alone: dict[int, set[int]] = {}  # what the regions of an op need whatever comes before it
        self.landing = landing(kernel.body)

    def block(self, block: Block, state: State, needed: set[int]) -> None:
        """Runs the block over `state`, noting the ops before which a barrier is needed."""
        for op in block.ops:
            if op.get("scope") == "warp":  # each warp for itself: nobody else meets the rows that it stores
                stored = _buffers(op, "reads")
                state.dirty = {place for place in state.dirty if _whole(place) not in stored}
            elif op.definition.has(COLLECTIVE):
                self._meet_all(op, state)
            elif op.name == "roles":
                self._roles(op, state, needed)
            elif op.regions:
                self._region_op(op, state, needed)
            else:
                self._access(op, state, needed)

    def _access(self, op: Op, state: State, needed: set[int]) -> None:
        reads = _places(op, "reads") | _tensors(op, self.tracked, "reads")
        if op.name == "wgmma_wait":  # a barrier before it did not end what its products read
            reads |= {allocation(buffer) for buffer in buffers_behind(op)}
        writes = _places(op, "writes") | _tensors(op, self.tracked, "writes", "accumulates")
        if op.id in needed or _meet(reads, state.dirty) or _meet(writes, state.dirty | state.busy):
            needed.add(op.id)
            self._meet_all(op, state)
        state.busy |= reads
        if not op.definition.has(ASYNC):
            state.dirty |= writes
        if op.name == "async_wait":
            for token in op.operands:
                state.dirty |= self.landing.get(token, set())

    def _meet_all(self, op: Op, state: State) -> None:
        """All threads meet in front of `op`, or at it."""
        if _meet(self.multiplied, state.dirty):
            self.fenced.add(op.id)
        state.clear()

    def _roles(self, op: Op, state: State, needed: set[int]) -> None:
        state.clear()
        for region in op.regions:
            self.block(region, State(), needed)

    def _region_op(self, op: Op, state: State, needed: set[int]) -> None:
        if op.id not in self.alone:
            self.alone[op.id] = set()
            self._regions(op, State(), self.alone[op.id])
        needed |= self.alone[op.id]
        if op.id in needed:
            self._meet_all(op, state)
        seen, before = set(needed), state.copy()
        self._regions(op, state, seen)
        if seen != needed:  # what came before meets what is inside
            needed.add(op.id)
            self._meet_all(op, before)
            state.clear()
            self._regions(op, state, needed)

    def _regions(self, op: Op, state: State, needed: set[int]) -> None:
        """Runs the regions of an op over `state`, as often as they may run."""
        if op.definition.has(LOOP):
            entry = state.copy()
            while True:  # the needed set only grows, and with it what a pass clears
                inside = entry.copy()
                self.block(op.regions[0], inside, needed)
                if not entry.merge(inside):
                    break
            if op.definition.has(COUNTED) and loop_range(op.operands[:3]):
                state.clear()  # it runs, and what its last iteration leaves is all that is left
            state.merge(inside)
            return
        exits = []
        for region in op.regions:
            inside = state.copy()
            self.block(region, inside, needed)
            exits.append(inside)
        state.clear()
        for exit_state in exits:
            state.merge(exit_state)


def _meet(places: Iterable[Place], others: Iterable[Place]) -> bool:
    return any(_overlap(a, b) for a in places for b in others)


def _overlap(a: Place, b: Place) -> bool:
    first, second = _whole(a), _whole(b)
    if isinstance(a, Part) and isinstance(b, Part) and first is second:
        return overlap(a.window, b.window)
    both = isinstance(first.type, BufferType) and isinstance(second.type, BufferType)
    return share_bytes(first, second) if both else first is second


def _whole(place: Place) -> Value:
    return place.buffer if isinstance(place, Part) else place


def _places(op: Op, effect: str) -> set[Place]:
    """The buffers that an op reads or writes; of a store or a load at a constant place that part."""
    return {_part(op, buffer) or buffer for buffer in _buffers(op, effect)}


def _part(op: Op, buffer: Value) -> Part | None:
    window = window_in(op, buffer)
    return None if window is None else Part(buffer, window)


def _buffers(op: Op, effect: str) -> set[Value]:
    return {
        allocation(value)
        for kind, value in op.definition.effects_of(op)
        if kind == effect and isinstance(value.type, BufferType)
    }


def _tracked(kernel: Kernel) -> frozenset[Value]:
    """Tensors that the kernel both changes and reads: what other threads do to them must be ordered too."""
    read, written, added = set[Value](), set[Value](), set[Value]()
    for op in kernel.body.walk():
        for effect, value in op.definition.effects_of(op):
            if isinstance(value.type, ViewType):
                {"reads": read, "writes": written}.get(effect, added).add(root(value))
    return frozenset((read & (written | added)) | (written & added))


def _tensors(op: Op, tracked: frozenset[Value], *effects: str) -> set[Value]:
    return {
        root(value)
        for kind, value in op.definition.effects_of(op)
        if kind in effects and isinstance(value.type, ViewType) and root(value) in tracked
    }


@dataclass
class _Copier:
    """Clones a kernel with a barrier in front of each op that is `needed`, which also makes the writes of the `fenced`
    visible. `threads`: of the team that the current block belongs to, whose barrier `number` is its own; 0 for all of
    the block's.
    """

    mapping: Mapping
    needed: set[int]
    fenced: set[int]
    threads: int = 0
    number: int = 0

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            builder.at(op)
            if op.id in self.fenced and (op.id in self.needed or op.definition.has(COLLECTIVE)):
                builder.op("fence_async")  # not of paths that were only tried
            if op.id in self.needed:
                builder.op("barrier", id=self.number, threads=self.threads)
            if op.name == "roles":
                self._roles(op, builder)
            elif op.regions:
                clone_with_regions(builder, op, self.mapping, self.block)
            elif self.threads and op.name == "barrier":
                clone_op(builder, op, self.mapping, id=self.number, threads=self.threads)
            elif self.threads and "threads" in op.definition.attributes:
                clone_op(builder, op, self.mapping, threads=self.threads)
            else:
                clone_op(builder, op, self.mapping)

    def _roles(self, roles: Op, builder: Builder) -> None:
        """A team of consumers meets at the hardware's barrier of its role's number; the producer meets nobody."""
        regions = iter(enumerate(roles.attributes["warps"]))

        def region(block: Block, inner: Builder) -> None:
            self.number, warps = next(regions)
            self.threads = 32 * warps
            self.block(block, inner)

        clone_with_regions(builder, roles, self.mapping, region)
        self.number = self.threads = 0
