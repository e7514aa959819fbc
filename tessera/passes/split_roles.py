"""Split a kernel into a producer, whose one thread starts copies, and the consumers, who compute.

Both run through the same loops and conditions. What the copies of one wait bring is a slot of a ring: the producer
waits until the slot is empty, says how many bytes will come and starts the copies; the consumers wait for them, and
release the slot when they have read it. Groups of copies whose buffers are alike take turns in one ring. A group that
runs once has a ring of one slot that nobody releases, and one that is kept as many as it runs: what it brings stays.

Exact: values only move. A kernel in which copies do anything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tessera.dtypes import i32
from tessera.errors import SourceError
from tessera.ir.clusters import cluster_of, differing, differing_blocks
from tessera.ir.core import (
    Block,
    Builder,
    Kernel,
    Mapping,
    Op,
    Value,
    add_notes,
    clone_kernel,
    clone_op,
    new_kernel_like,
)
from tessera.ir.opdef import COUNTED, ELEMENTWISE, LOOP
from tessera.ir.ops.control import carried_values
from tessera.ir.stages import allocation
from tessera.ir.types import BufferType, ListType, TileType, ViewType
from tessera.passes.ahead import written_tensors
from tessera.passes.assign_layouts import assign_layouts
from tessera.passes.canonicalise import canonicalise
from tessera.passes.copy_groups import CopyGroup, copy_groups
from tessera.passes.lower_to_target import lower_to_target
from tessera.passes.place_shared import place_shared
from tessera.passes.warpgroup import by_warpgroups
from tessera.target.arch import Arch
from tessera.target.role_registers import role_registers
from tessera.target.schedule import Schedule, root
from tessera.target.schedules import MOST_WARPS, pins_of
from tessera.target.tensor_maps import rows_of_part, why_not
from tessera.target.wgmma import WGMMA_WARPS

LEAST_STAGES = 2  # of a ring that is filled again and again: one slot is filled while one is read


@dataclass(eq=False)
class _Ring:
    """`order` is the place of a ring among those of the kernel; `buffers` are the staged buffers of a slot."""

    order: int
    groups: list[CopyGroup]
    stages: int
    cluster: int = 1  # programs whose producers fill one another's slots
    value: Value | None = None
    buffers: list[Value] = field(default_factory=list)


@dataclass(frozen=True)
class _Slot:
    """The next slot of a ring, and the parity of its round."""

    stage: Value
    phase: Value


_State = dict[int, _Slot]  # by the order of the ring


def split_roles(kernel: Kernel, schedule: Schedule, arch: Arch, limited: bool = True) -> Kernel:
    """The kernel in roles; itself, with a note of the reason, where that cannot be.

    Rings have at most `schedule.stages` slots, and at least two: as many as the shared memory of `arch` holds, and all
    where they are not `limited` so. Raises SourceError TS501 where that does not hold the stages that are pinned.
    """
    if schedule.copies != "tma":
        return kernel
    groups = copy_groups(kernel)
    if isinstance(groups, str):
        return _noted(kernel, groups)
    needed = _needed(kernel, groups)
    reason = _reason(kernel, schedule, groups, needed)
    if needed is None or reason:
        return _noted(kernel, reason)
    for group in groups:
        _release_behind_products(group, schedule)
    wanted = max(LEAST_STAGES, schedule.stages)
    pinned = "stages" in pins_of(kernel)
    for stages in range(wanted, LEAST_STAGES - 1, -1):
        new = _Splitter(kernel, replace(schedule, stages=stages), arch, groups, needed).run()
        if not limited or holds(new, replace(schedule, blocks=1) if pinned else schedule, arch):
            return new
        if pinned:
            raise SourceError(
                "TS501",
                f"the schedule is pinned to {wanted} stages, and the shared memory of {arch.name} does not hold so "
                f"many slots of {', '.join(repr(buffer.name) for group in groups for buffer in group.buffers)}",
                kernel.loc,
            )
    blocks = f" of {schedule.blocks} blocks" if schedule.blocks > 1 else ""
    return _noted(kernel, f"shared memory does not hold {LEAST_STAGES} slots{blocks} of what is copied")


def _noted(kernel: Kernel, reason: str) -> Kernel:
    new, _ = clone_kernel(kernel)
    note = f"copies = 'tma' has no effect: {reason}"
    add_notes(new, note)
    _dissolve_clusters(new)
    return new


def holds(kernel: Kernel, schedule: Schedule, arch: Arch) -> bool:
    """Whether a multiprocessor holds as many blocks as it is to run, found by placing their buffers: some share bytes.

    Those blocks are all there are: one that had to wait for another would double the time.
    """
    try:
        placed = place_shared(lower_to_target(canonicalise(kernel), schedule), arch)
    except SourceError as error:
        if error.code != "TS501":
            raise
        return False
    bytes_of_block = placed.attributes["shared_bytes"] + arch.reserved_shared_bytes
    return bytes_of_block * schedule.blocks <= arch.shared_bytes_per_sm


def _dissolve_clusters(kernel: Kernel) -> None:
    """Lets a kernel of which no program loads for another start its programs one by one."""
    cluster = kernel.attributes.pop("cluster", 1)
    if cluster > 1:
        note = f"cluster = {cluster} has no effect: its programs load nothing alike"
        add_notes(kernel, note)


def _reason(kernel: Kernel, schedule: Schedule, groups: list[CopyGroup], needed: set[Value] | None) -> str:
    """What keeps a kernel from being split, as a clause; empty where nothing does."""
    if not groups:
        return "nothing is copied into shared memory"
    if schedule.warps % WGMMA_WARPS:
        return f"{schedule.warps} warps are no whole warpgroups"
    if schedule.warps + WGMMA_WARPS > MOST_WARPS:
        return f"a block has no warpgroup beside {schedule.warps} warps"
    if needed is None:
        return "what is copied depends on what was computed"
    layouts = assign_layouts(kernel, schedule)
    for group in groups:
        for copy in group.copies:
            buffer, view = allocation(copy.operands[0]), copy.operands[1]
            assert isinstance(buffer.type, BufferType)
            type_ = BufferType(buffer.type.shape, buffer.type.dtype, layouts.buffer[buffer])
            stages = group.kept or (max(LEAST_STAGES, schedule.stages) if group.in_loop else 1)
            reason = why_not(view, type_, kernel, stages=stages, load=True)
            if reason:
                return f"'{buffer.name}': {reason}"
    return ""


def _release_behind_products(group: CopyGroup, schedule: Schedule) -> None:
    """Moves the release of a slot behind the products that take, from registers, all that was read from it.

    The instruction of a product has its operand when it is issued, so what was read has arrived: no thread needs to
    look at it first.
    """
    ops, last = group.block.ops, group.last
    for tile in group.read:
        made = {tile}
        product = None
        for op in ops[ops.index(group.wait) :]:
            if op.name == "mma" and op.operands[0] in made and by_warpgroups(op, schedule):
                product = op
                break
            if (op.definition.has(ELEMENTWISE) or op.name == "reshape") and any(v in made for v in op.operands):
                made.update(op.results)
        if product is None:
            return
        last = product if ops.index(product) > ops.index(last) else last
    if group.read:
        group.last, group.read = last, []


def _loaded_alike(kernel: Kernel, schedule: Schedule, rings: list[_Ring]) -> set[int]:
    """The copies of windows that all programs of a cluster have alike, which come to each slot of a ring in turn."""
    cluster = cluster_of(kernel)
    if cluster == 1:
        return set()
    values, layouts, found = differing(kernel), assign_layouts(kernel, schedule), set[int]()
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


def _held_long(group: CopyGroup, groups: dict[int, CopyGroup], stages: int) -> bool:
    """Whether its slot is held while all others of a ring would be taken: slots are taken in turn."""
    ops = group.block.ops
    between = ops[ops.index(group.wait) + 1 : ops.index(group.last) + 1]
    alike = {wait for wait, other in groups.items() if other.signature == group.signature and other.in_turn}
    if any(inner.id in alike for op in between for region in op.regions for inner in region.walk()):
        return True
    return sum(op.id in alike for op in between) >= stages


class _Splitter:
    def __init__(self, kernel: Kernel, schedule: Schedule, arch: Arch, groups: list[CopyGroup], needed: set[Value]):
        self.kernel, self.schedule, self.arch, self.needed = kernel, schedule, arch, needed
        self.rings = _rings(groups, schedule.stages)
        self.ring_of = {group.wait.id: ring for ring in self.rings for group in ring.groups}
        self.group_of_copy = {copy.id: group for group in groups for copy in group.copies}
        self.group_of_wait = {group.wait.id: group for group in groups}
        self.alike = _loaded_alike(kernel, schedule, self.rings)
        for ring in self.rings:
            if any(copy.id in self.alike for group in ring.groups for copy in group.copies):
                ring.cluster = cluster_of(kernel)
        self.released: dict[int, list[CopyGroup]] = {}  # by the op after which they are
        for group in groups:
            if group.in_turn:
                self.released.setdefault(group.last.id, []).append(group)
        self.buffers = {buffer for group in groups for buffer in group.buffers}
        self.stacked: dict[Value, Value] = {}  # buffers whose stages stay, in the new kernel
        self.slots: dict[int, _Slot] = {}  # by the wait of a group, the slot that its role is at

    def run(self) -> Kernel:
        new, builder, mapping = new_kernel_like(self.kernel)
        warps = self.schedule.warps
        for op in self.kernel.body.ops:
            if op.name == "alloc_shared" and op.result not in self.buffers:
                clone_op(builder, op, mapping)
        for ring in self.rings:
            self._allocate(ring, builder)
        registers = role_registers(self.arch, warps, WGMMA_WARPS, self.schedule.blocks, bool(self.alike))
        regions = []
        for role in (self._produce, self._consume):
            body = Block()
            inner = builder.inner(body)
            inside = {**mapping, **self.stacked}
            state = {ring.order: self._first(inner) for ring in self.rings}
            role(self.kernel.body, inner, inside, state)
            inner.op("yield", [])
            regions.append(body)
        builder.origin = self.kernel.origin or builder.origin
        cluster = cluster_of(self.kernel) if self.alike else 1
        builder.op(
            "roles", [], regions, names=("load", "compute"), warps=(1, warps), registers=registers, cluster=cluster
        )
        new.attributes["producer_warps"] = WGMMA_WARPS  # a warpgroup shares its registers
        if cluster == 1:
            _dissolve_clusters(new)
        return new

    def _allocate(self, ring: _Ring, builder: Builder) -> None:
        first = ring.groups[0]
        builder.at(first.wait)
        ring.value = builder.value(
            "ring", stages=ring.stages, arrivals=self.schedule.warps, cluster=ring.cluster, hint=f"ring_{ring.order}"
        )
        for buffer in first.buffers:
            op = buffer.defining_op
            assert op is not None
            attributes = {**op.attributes, "stages": ring.stages}
            ring.buffers.append(builder.at(op).value("alloc_shared", hint=buffer.name, **attributes))
            if first.kept:
                self.stacked[buffer] = ring.buffers[-1]

    def _first(self, builder: Builder) -> _Slot:
        builder.origin = self.kernel.origin or builder.origin
        return _Slot(*(builder.value("constant", value=0, dtype=i32, hint=name) for name in ("slot", "round")))

    # ---- the two roles ----

    def _produce(self, block: Block, builder: Builder, mapping: Mapping, state: _State) -> None:
        """The scalars, windows and regions that the copies need, and these."""
        for op in block.ops:
            builder.at(op)
            group = self.group_of_wait.get(op.id)
            if group is not None:
                self._copy(group, builder, mapping, state)
            elif op.regions and self._copies_inside(op):
                self._region(op, builder, mapping, state, self._produce)
            elif any(result in self.needed for result in op.results):
                clone_op(builder, op, mapping)

    def _copy(self, group: CopyGroup, builder: Builder, mapping: Mapping, state: _State) -> None:
        """Where the consumers wait for them, so that both take slots in the same order."""
        ring = self.ring_of[group.wait.id]
        assert ring.value is not None
        slot = state[ring.order]
        builder.op("ring_acquire", [ring.value, slot.stage, slot.phase])
        builder.op("ring_expect", [ring.value, slot.stage], bytes=group.bytes)
        for index, copy in enumerate(group.copies):
            buffer = _staged(ring, index, slot, builder)
            operands = [buffer, mapping[copy.operands[1]], ring.value, slot.stage]
            programs = ring.cluster if copy.id in self.alike else 1
            builder.at(copy).op("tma_load", operands, multicast=programs)
        state[ring.order] = _next(ring, slot, builder)

    def _consume(self, block: Block, builder: Builder, mapping: Mapping, state: _State) -> None:
        """All but the copies."""
        for op in block.ops:
            builder.at(op)
            group = self.group_of_wait.get(op.id)
            if group is not None:
                self._await(group, builder, mapping, state)
            elif op.id in self.group_of_copy or op.name == "alloc_shared" and self._is_allocated(op, mapping):
                continue
            elif op.regions and self._copies_inside(op):
                self._region(op, builder, mapping, state, self._consume)
            elif op.name != "yield":
                clone_op(builder, op, mapping)
            for group in self.released.get(op.id, ()):
                ring, slot = self.ring_of[group.wait.id], self.slots[group.wait.id]
                assert ring.value is not None
                read = [mapping[value] for value in group.read]
                builder.op("ring_release", [ring.value, slot.stage, *read])

    def _is_allocated(self, op: Op, mapping: Mapping) -> bool:
        return op.result in self.buffers or op.result in mapping

    def _await(self, group: CopyGroup, builder: Builder, mapping: Mapping, state: _State) -> None:
        ring = self.ring_of[group.wait.id]
        assert ring.value is not None
        slot = state[ring.order]
        builder.op("ring_wait", [ring.value, slot.stage, slot.phase])
        for index, buffer in enumerate(() if group.kept else group.buffers):
            mapping[buffer] = _staged(ring, index, slot, builder)
        self.slots[group.wait.id] = slot
        state[ring.order] = _next(ring, slot, builder)

    # ---- regions ----

    def _copies_inside(self, op: Op) -> bool:
        return any(inner.name == "copy_async" for region in op.regions for inner in region.walk())

    def _rings_inside(self, op: Op) -> list[_Ring]:
        """The rings whose slots a region moves on."""
        found = {
            self.ring_of[self.group_of_copy[inner.id].wait.id].order
            for region in op.regions
            for inner in region.walk()
            if inner.name == "copy_async"
        }
        return [ring for ring in self.rings if ring.order in found]

    def _region(
        self,
        op: Op,
        builder: Builder,
        mapping: Mapping,
        state: _State,
        role: Callable[[Block, Builder, Mapping, _State], None],
    ) -> None:
        """A loop or condition that carries the slots of the rings inside beside what it carried."""
        kept = [index for index, result in enumerate(op.results) if role == self._consume or result in self.needed]
        rings = self._rings_inside(op)
        is_loop = op.definition.has(LOOP)
        fixed = 3 if op.definition.has(COUNTED) else 0
        leading = op.operands[:fixed] if is_loop else op.operands
        operands = [mapping[value] for value in leading]
        if is_loop:
            operands += [mapping[op.operands[fixed + index]] for index in kept]
            operands += [value for ring in rings for value in (state[ring.order].stage, state[ring.order].phase)]
        regions = []
        for region in op.regions:
            body = Block()
            inner_state = dict(state)
            if is_loop:
                offset = 1 if fixed else 0
                for argument in region.arguments[:offset]:
                    mapping[argument] = body.add_argument(argument.type, argument.name)
                for index in kept:
                    argument = region.arguments[offset + index]
                    mapping[argument] = body.add_argument(argument.type, argument.name)
                for ring in rings:
                    slot = state[ring.order]
                    inner_state[ring.order] = _Slot(
                        body.add_argument(slot.stage.type, "slot"), body.add_argument(slot.phase.type, "round")
                    )
            inner = builder.inner(body)
            role(region, inner, mapping, inner_state)
            final = region.ops[-1]
            values = [mapping[final.operands[index]] for index in kept]
            values += [v for ring in rings for v in (inner_state[ring.order].stage, inner_state[ring.order].phase)]
            inner.at(final).op("yield", values)
            regions.append(body)
        names = [op.results[index].name for index in kept] + ["slot", "round"] * len(rings)
        new = builder.at(op).op(op.name, operands, regions, names, **op.attributes)
        for index, result in zip(kept, new.results, strict=False):
            mapping[op.results[index]] = result
        for number, ring in enumerate(rings):
            stage, phase = new.results[len(kept) + 2 * number : len(kept) + 2 * number + 2]
            state[ring.order] = _Slot(stage, phase)


def _staged(ring: _Ring, index: int, slot: _Slot, builder: Builder) -> Value:
    buffer = ring.buffers[index]
    return builder.value("stage", buffer, slot.stage, hint=buffer.name) if ring.stages > 1 else buffer


def _next(ring: _Ring, slot: _Slot, builder: Builder) -> _Slot:
    """The slot after this one; behind the last one comes the first, in the next round."""
    if all(not group.in_loop for group in ring.groups):
        return slot
    one, zero, last = (builder.value("constant", value=v, dtype=i32) for v in (1, 0, ring.stages - 1))
    wraps = builder.value("eq", slot.stage, last)
    stage = builder.value("where", wraps, zero, builder.value("add", slot.stage, one), hint="slot")
    phase = builder.value("where", wraps, builder.value("sub", one, slot.phase), slot.phase, hint="round")
    return _Slot(stage, phase)


def _rings(groups: list[CopyGroup], stages: int) -> list[_Ring]:
    """A ring for each signature of groups in loops, and one for each group that runs once, or that keeps its slot while
    others of its kind come and go.
    """
    rings: list[_Ring] = []
    shared: dict[tuple[object, ...], _Ring] = {}
    by_wait = {group.wait.id: group for group in groups}
    for group in groups:
        own = not group.in_turn or _held_long(group, by_wait, max(LEAST_STAGES, stages))
        ring = None if own else shared.get(group.signature)
        if ring is None:
            ring = _Ring(len(rings), [], _stages(group, own, stages))
            rings.append(ring)
            if not own:
                shared[group.signature] = ring
        ring.groups.append(group)
    return rings


def _stages(group: CopyGroup, own: bool, stages: int) -> int:
    if group.kept or not group.in_loop:
        return group.kept or 1
    return LEAST_STAGES if own else max(LEAST_STAGES, stages)


def _needed(kernel: Kernel, groups: list[CopyGroup]) -> set[Value] | None:
    """The values that the producer computes: windows, bounds and conditions, and what these are made of; None where a
    tile is among them, or what the kernel itself has written, which the producer may come too early for.
    """
    written = written_tensors(kernel)
    inside = {group.wait.id for group in groups}
    pending = [copy.operands[1] for group in groups for copy in group.copies]
    arguments: dict[Value, list[Value]] = {}
    for op in kernel.body.walk():
        if any(inner.id in inside for region in op.regions for inner in region.walk()):
            pending += op.operands[:3] if op.definition.has(COUNTED) else op.operands[:1]
            if op.definition.has(LOOP) and not op.definition.has(COUNTED):
                return None  # what ends it may be computed from what the copies bring
        if op.definition.has(LOOP):
            for initial, argument, final, result in carried_values(op):
                arguments[argument] = arguments[result] = [initial, final, argument, result]
        elif op.regions:
            for index, result in enumerate(op.results):
                arguments[result] = [region.ops[-1].operands[index] for region in op.regions] + op.operands[:1]
    needed: set[Value] = set()
    while pending:
        value = pending.pop()
        if value in needed:
            continue
        if isinstance(value.type, TileType):
            return None
        needed.add(value)
        pending += arguments.get(value, ())
        op = value.defining_op
        if op is not None and any(v in written or not isinstance(v.type, (ViewType, ListType)) for v in _accessed(op)):
            return None
        if op is not None and not op.regions:
            pending += op.operands
        elif op is not None:
            pending += [v for region in op.regions for inner in region.walk() for v in inner.operands
                        if not isinstance(v.type, TileType) and v.defining_op is not None]  # fmt: skip
    return needed


def _accessed(op: Op) -> list[Value]:
    """The tensors and buffers that an op reads or changes, in its regions too."""
    ops = [op, *(inner for region in op.regions for inner in region.walk())]
    return [root(value) for inner in ops for _, value in inner.definition.effects_of(inner)]


__all__ = ["LEAST_STAGES", "holds", "split_roles"]
