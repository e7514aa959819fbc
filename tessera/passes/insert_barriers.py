"""Insert the block barriers that shared memory needs: between a write and the reads of other threads, and back.

A buffer is *dirty* from a write (an asynchronous one from its wait, which makes the copies of the waiting thread
visible to that thread only) until a barrier, and *busy* from a read until a barrier. A read of a dirty buffer and a
write to a dirty or busy one need a barrier in between. A loop body is entered in the state that its own end leaves
behind as well. Buffers that share bytes (`place_shared` ran before) count as one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.opdef import ASYNC, COLLECTIVE, LOOP
from tessera.ir.types import BufferType, ViewType
from tessera.passes.place_shared import share_bytes
from tessera.target.schedule import root


@dataclass
class State:
    """Buffers by what a barrier has not separated yet; `flying`: buffers with copies not waited for."""

    dirty: set[Value] = field(default_factory=set)
    busy: set[Value] = field(default_factory=set)
    flying: set[Value] = field(default_factory=set)
    tracked: frozenset[Value] = frozenset()

    def clear(self) -> None:
        self.dirty.clear()
        self.busy.clear()

    def copy(self) -> State:
        return State(set(self.dirty), set(self.busy), set(self.flying), self.tracked)

    def merge(self, other: State) -> bool:
        """Joins the states of two paths; tells whether this one grew."""
        before = (len(self.dirty), len(self.busy), len(self.flying))
        self.dirty |= other.dirty
        self.busy |= other.busy
        self.flying |= other.flying
        return before != (len(self.dirty), len(self.busy), len(self.flying))


def insert_barriers(kernel: Kernel) -> Kernel:
    needed: set[int] = set()
    _flow(kernel.body, State(tracked=_tracked(kernel)), needed)
    if not needed:
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _copy(kernel.body, builder, mapping, needed)
    return new


def _flow(block: Block, state: State, needed: set[int]) -> None:
    """Runs the block over `state`, noting the ops before which a barrier is needed."""
    for op in block.ops:
        if op.definition.has(COLLECTIVE):
            state.clear()
            continue
        if op.regions:
            _flow_regions(op, state, needed)
            continue
        reads = _buffers(op, "reads") | _tensors(op, state.tracked, "reads")
        buffers = _buffers(op, "writes")
        writes = buffers | _tensors(op, state.tracked, "writes", "accumulates")
        if op.id in needed or _meet(reads, state.dirty) or _meet(writes, state.dirty | state.busy):
            needed.add(op.id)
            state.clear()
        state.busy |= reads
        if op.definition.has(ASYNC):
            state.flying |= buffers
        else:
            state.dirty |= writes
        if op.name == "async_wait":
            known, landed = _landed(op.operands)
            state.dirty |= landed if known else state.flying
            state.flying -= landed


def _landed(tokens: list[Value]) -> tuple[bool, set[Value]]:
    """The buffers that the copies behind `tokens` wrote, and whether those are all: one from a loop hides its copy."""
    known, buffers = True, set()
    for token in tokens:
        op = token.defining_op
        if op is None or op.regions:
            known = False
        elif op.definition.has(ASYNC):
            buffers |= _buffers(op, "writes")
        else:
            inner_known, inner = _landed(op.operands)
            known, buffers = known and inner_known, buffers | inner
    return known, buffers


def _meet(buffers: set[Value], others: set[Value]) -> bool:
    return any(
        share_bytes(a, b) if isinstance(a.type, BufferType) and isinstance(b.type, BufferType) else a is b
        for a in buffers
        for b in others
    )


def _flow_regions(op: Op, state: State, needed: set[int]) -> None:
    if op.definition.has(LOOP):
        entry = state.copy()
        while True:  # the needed set only grows, and with it what a pass clears
            inside = entry.copy()
            _flow(op.regions[0], inside, needed)
            if not entry.merge(inside):
                break
        state.merge(inside)
        return
    exits = []
    for region in op.regions:
        inside = state.copy()
        _flow(region, inside, needed)
        exits.append(inside)
    state.clear()
    for exit_state in exits:
        state.merge(exit_state)


def _buffers(op: Op, effect: str) -> set[Value]:
    return {
        value for kind, value in op.definition.effects_of(op) if kind == effect and isinstance(value.type, BufferType)
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


def _copy(block: Block, builder: Builder, mapping: Mapping, needed: set[int]) -> None:
    for op in block.ops:
        builder.at(op)
        if op.id in needed:
            builder.op("barrier")
        if op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _copy(old, inner, mapping, needed))
        else:
            clone_op(builder, op, mapping)
