"""Split a kernel into a producer, whose one thread starts copies, and the consumers, who compute.

Both run through the same loops and conditions. What the copies of one wait bring is a slot of a ring: the producer
waits until the slot is empty, says how many bytes will come and starts the copies; the consumers wait for them, and
release the slot when they have read it. Groups of copies whose buffers are alike take turns in one ring. A group that
runs once has a ring of one slot that nobody releases, and one that is kept as many as it runs: what it brings stays.
What stays through a persistent loop is waited for where it is used (`late_waits`).

With `Schedule.pingpong` the programs of a persistent kernel go to two teams of consumers in turn: one multiplies while
the other works on its sums and stores them. Each team has rings and buffers of its own, and is a role. The producer
fills the rings of one, then those of the other, so that the tensor cores have one team's products at a time. What it
loads once, in front of the loop over programs, all teams read.

Exact: values only move. A kernel in which copies do anything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial

from tessera.dtypes import i32
from tessera.errors import SourceError
from tessera.ir.clusters import cluster_of
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
    uses,
)
from tessera.ir.opdef import COUNTED, ELEMENTWISE, LOOP
from tessera.ir.programs import persistent_loop
from tessera.ir.stages import allocation
from tessera.ir.types import BufferType, dtype_of
from tessera.ir.verify_shares import check_shares
from tessera.passes.assign_layouts import Layouts, assign_layouts
from tessera.passes.canonicalise import canonicalise
from tessera.passes.copy_groups import CopyGroup, copy_groups
from tessera.passes.late_waits import late_waits
from tessera.passes.lower_to_target import lower_to_target
from tessera.passes.needed_values import needed_values
from tessera.passes.place_shared import place_shared
from tessera.passes.role_rings import (
    LEAST_STAGES,
    Ring,
    Slot,
    loaded_alike,
    make_rings,
    next_slot,
    shares_of_ring,
    slot_counts,
    slots_of_use,
    staged,
)
from tessera.passes.warpgroup import TEAMS, by_warpgroups
from tessera.target.arch import Arch
from tessera.target.role_registers import role_registers
from tessera.target.schedule import Schedule
from tessera.target.schedules import MOST_WARPS, pins_of
from tessera.target.tensor_maps import why_not
from tessera.target.wgmma import WGMMA_WARPS

NO_PRODUCER = "teams wait for a producer, and copies = 'tma' asks for one"
_State = dict[int, Slot]  # by the order of the ring


def split_roles(kernel: Kernel, schedule: Schedule, arch: Arch, limited: bool = True) -> Kernel:
    """The kernel in roles; itself, with a note of the reason, where that cannot be.

    Rings have at most `schedule.stages` slots, and at least two: as many as the shared memory of `arch` holds, and all
    where they are not `limited` so. Raises SourceError TS501 where that does not hold the stages that are pinned.
    """
    if schedule.copies != "tma":
        return _without_teams(clone_kernel(kernel)[0], NO_PRODUCER) if schedule.pingpong else kernel
    groups = copy_groups(kernel)
    if isinstance(groups, str):
        return _noted(kernel, groups)
    needed = needed_values(kernel, groups)
    reason = _reason(kernel, schedule, groups, needed)
    if needed is None or reason:
        return _noted(kernel, reason)
    for group in groups:
        _release_behind_products(group, schedule)
    wanted = max(LEAST_STAGES, schedule.stages)
    pinned = "stages" in pins_of(kernel)
    alone = _why_one_team(kernel, schedule, groups) if schedule.pingpong else ""
    teams = TEAMS if schedule.pingpong and not alone else 1
    layouts, in_shares = assign_layouts(kernel, schedule), True
    for stages, around in slot_counts(groups, wanted, wanted if pinned else LEAST_STAGES):
        slots = replace(schedule, stages=stages)
        split = partial(_Splitter, kernel, slots, around, arch, groups, needed, layouts, teams)
        new = split(in_shares).run()
        lowered = _lowered(new, schedule, arch) if limited else None
        if in_shares and lowered is not None and not _shares_stay(lowered):
            in_shares = False
            new = split(in_shares).run()
            lowered = _lowered(new, schedule, arch)
        if not limited or _fits(lowered, 1 if pinned else schedule.blocks, arch):
            return _without_teams(new, alone) if alone else new
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


def _without_teams(kernel: Kernel, reason: str) -> Kernel:
    add_notes(kernel, f"pingpong = true has no effect: {reason}")
    return kernel


def holds(kernel: Kernel, schedule: Schedule, arch: Arch) -> bool:
    """Whether a multiprocessor holds as many blocks as it is to run, found by placing their buffers: some share bytes.

    Those blocks are all there are: one that had to wait for another would double the time.
    """
    return _fits(_lowered(kernel, schedule, arch), schedule.blocks, arch)


def _lowered(kernel: Kernel, schedule: Schedule, arch: Arch) -> Kernel | None:
    """The Target kernel with its buffers placed; None where a block has no room for them."""
    try:
        return place_shared(lower_to_target(canonicalise(kernel), schedule, arch), arch)
    except SourceError as error:
        if error.code != "TS501":
            raise
        return None


def _fits(placed: Kernel | None, blocks: int, arch: Arch) -> bool:
    if placed is None:
        return False
    return (placed.attributes["shared_bytes"] + arch.reserved_shared_bytes) * blocks <= arch.shared_bytes_per_sm


def _shares_stay(lowered: Kernel) -> bool:
    """Whether the loads of a Target kernel are of the layouts for which its slots come in shares."""
    try:
        check_shares(next(op for op in lowered.body.ops if op.name == "roles"))
    except SourceError:
        return False
    return True


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


def _why_one_team(kernel: Kernel, schedule: Schedule, groups: list[CopyGroup]) -> str:
    """What keeps programs from going to two teams in turn, as a clause; empty where nothing does."""
    loop = persistent_loop(kernel)
    if loop is None:
        return "programs of the launch do the work of one each"
    if loop.results:
        return "its programs hand something on"
    if cluster_of(kernel) > 1:
        return "programs of a cluster load for one another"
    if TEAMS * schedule.warps + WGMMA_WARPS > MOST_WARPS:
        return f"a block has no room for {TEAMS} times {schedule.warps} warps and a producer"
    inside = {inner.id for inner in loop.regions[0].walk()}
    if any((group.wait.id in inside) != group.in_turn for group in groups):
        return "its programs keep what they load"
    outside = [op for op in kernel.body.walk() if op.id not in inside and op is not loop]
    if any(
        effect != "reads" and not isinstance(value.type, BufferType)
        for op in outside
        for effect, value in op.definition.effects_of(op)
    ):
        return "it changes tensors outside of the loop over programs"
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


class _Splitter:
    """`around`: slots of rings around others; `team`: whose copies and waits are made at the moment."""

    def __init__(
        self,
        kernel: Kernel,
        schedule: Schedule,
        around: int,
        arch: Arch,
        groups: list[CopyGroup],
        needed: set[Value],
        layouts: Layouts,
        teams: int,
        in_shares: bool,
    ) -> None:
        self.kernel, self.schedule, self.arch, self.needed = kernel, schedule, arch, needed
        self.team, self.teams = 0, teams
        loop = persistent_loop(kernel)
        self.programs = loop if teams > 1 else None
        self.rings = make_rings(groups, schedule.stages, around, teams)
        if "stages" not in pins_of(kernel):
            for ring in self.rings:
                ring.stages = slots_of_use(ring, loop)
        self.ring_of = {
            (team, group.wait.id): ring for ring in self.rings for group in ring.groups for team in ring.teams
        }
        self.group_of_copy = {copy.id: group for group in groups for copy in group.copies}
        self.group_of_wait = {group.wait.id: group for group in groups}
        self.alike = loaded_alike(kernel, layouts, self.rings)
        for ring in self.rings:
            if any(copy.id in self.alike for group in ring.groups for copy in group.copies):
                ring.cluster = cluster_of(kernel)
        self.used = uses(kernel.body)
        if in_shares:
            for ring in self.rings:
                ring.shares = shares_of_ring(kernel, schedule, ring, layouts)
        self.late = late_waits(loop, groups, lambda group: self._ring(group).stages, self.alike, teams)
        self.released: dict[int, list[CopyGroup]] = {}  # by the op after which they are
        behind = {group.wait.id: self._last(group) for group in groups if group.in_turn}
        for held in (False, True):  # what products have in registers first: nobody waits for these
            for group in groups:
                if group.in_turn and (behind[group.wait.id] is not group.last) is held:
                    self.released.setdefault(behind[group.wait.id].id, []).append(group)
        self.buffers = {buffer for group in groups for buffer in group.buffers}
        self.stacked: dict[Value, Value] = {}  # buffers whose stages stay, in the new kernel
        self.slots: dict[int, Slot] = {}  # by the wait of a group, the slot that its role is at

    def run(self) -> Kernel:
        new, builder, mapping = new_kernel_like(self.kernel)
        warps = self.schedule.warps
        own = [self._buffers(builder) for _ in range(self.teams)]
        for ring in self.rings:
            self._allocate(ring, builder)
        registers = role_registers(self.arch, self.teams * warps, WGMMA_WARPS, self.schedule.blocks, bool(self.alike))
        regions = [self._role(builder, {**mapping, **self.stacked}, self._produce)]
        for team in range(self.teams):
            self.team = team
            regions.append(self._role(builder, {**mapping, **own[team], **self.stacked}, self._consume))
        builder.origin = self.kernel.origin or builder.origin
        cluster = cluster_of(self.kernel) if self.alike else 1
        builder.op(
            "roles",
            [],
            regions,
            names=("load", "compute", *(f"compute_{team}" for team in range(1, self.teams))),
            warps=(1, *[warps] * self.teams),
            registers=(registers[0], *[registers[1]] * self.teams),
            cluster=cluster,
        )
        new.attributes["producer_warps"] = WGMMA_WARPS  # a warpgroup shares its registers
        slots = [ring.stages for ring in self.rings if ring.groups[0].in_turn]
        stages = max(slots, default=self.schedule.stages)
        new.attributes["schedule"] = asdict(replace(self.schedule, stages=stages))  # those that there are
        if cluster == 1:
            _dissolve_clusters(new)
        return new

    def _buffers(self, builder: Builder) -> Mapping:
        """The buffers of the kernel that no copy fills, for one team."""
        found: Mapping = {}
        for op in self.kernel.body.ops:
            if op.name == "alloc_shared" and op.result not in self.buffers:
                clone_op(builder, op, found)
        return found

    def _role(
        self, builder: Builder, mapping: Mapping, role: Callable[[Block, Builder, Mapping, _State], None]
    ) -> Block:
        body = Block()
        inner = builder.inner(body)
        role(self.kernel.body, inner, mapping, {ring.order: self._first(inner) for ring in self.rings})
        inner.op("yield", [])
        return body

    def _allocate(self, ring: Ring, builder: Builder) -> None:
        first = ring.groups[0]
        builder.at(first.wait)
        ring.value = builder.value(
            "ring",
            stages=ring.stages,
            arrivals=self.schedule.warps,
            cluster=ring.cluster,
            readers=len(ring.teams),
            shares=ring.shares,
            hint=f"ring_{ring.order}",
        )
        for buffer in first.buffers:
            op = buffer.defining_op
            assert op is not None
            attributes = {**op.attributes, "stages": ring.stages}
            ring.buffers.append(builder.at(op).value("alloc_shared", hint=buffer.name, **attributes))
            if first.kept:
                self.stacked[buffer] = ring.buffers[-1]

    def _first(self, builder: Builder) -> Slot:
        builder.origin = self.kernel.origin or builder.origin
        return Slot(*(builder.value("constant", value=0, dtype=i32, hint=name) for name in ("slot", "round")))

    def _last(self, group: CopyGroup) -> Op:
        """The op behind which a slot is released. Products that take it from shared memory are complete by then: of
        some in a row that add to the same sums, each with a left operand computed behind the one before, it is the
        last one, if the ring has slots to spare.
        """
        product, ops = group.last, group.block.ops
        reads = [read for buffer in group.buffers for read in self.used[buffer] if read.name == "read"]
        if any(user.name != "mma" for read in reads for user in self.used.get(read.result, ())):
            return group.last
        if product not in ops or product.name != "mma" or not by_warpgroups(product, self.schedule):
            return group.last
        while (following := self._added_to(product, ops)) is not None:
            product = following
        waits = [self.group_of_wait.get(op.id) for op in ops[ops.index(group.wait) : ops.index(product)]]
        held = sum(other is not None and self._ring(other) is self._ring(group) for other in waits)
        return product if held < self._ring(group).stages else group.last

    def _added_to(self, product: Op, ops: list[Op]) -> Op | None:
        """The product of a computed operand that alone takes the sums of another one, and adds to them."""
        users = self.used.get(product.result, [])
        if (
            len(users) != 1
            or users[0].name != "mma"
            or users[0] not in ops
            or product.result not in users[0].operands[2:]
        ):
            return None
        left = users[0].operands[0].defining_op
        return users[0] if left is not None and left.name != "read" else None

    def _ring(self, group: CopyGroup) -> Ring:
        """The ring that the copies of a group go through for the team of the moment."""
        return self.ring_of[self.team, group.wait.id]

    # ---- the roles ----

    def _produce(self, block: Block, builder: Builder, mapping: Mapping, state: _State) -> None:
        """The scalars, windows and regions that the copies need, and these."""
        for op in block.ops:
            builder.at(op)
            group = self.group_of_wait.get(op.id)
            if group is not None and group not in self.late.moved:
                self._copy(group, builder, mapping, state)
                self._copy_at_first(self.late.behind.get(op.id, ()), builder, mapping, state)
            elif op.regions and self._copies_inside(op):
                self._region(op, builder, mapping, state, self._produce)
            elif any(result in self.needed for result in op.results):
                clone_op(builder, op, mapping)

    def _copy_at_first(self, groups: Sequence[CopyGroup], builder: Builder, mapping: Mapping, state: _State) -> None:
        """What is copied in the first iteration of the persistent loop only; for all teams."""
        if not groups or self.team:
            return
        assert self.late.loop is not None
        program, first = self.late.loop.regions[0].arguments[0], self.late.loop.operands[0]
        body, otherwise = Block(), Block()
        inner = builder.inner(body)
        for group in groups:
            self._copy(group, inner.at(group.wait), mapping, state)
        inner.op("yield", [])
        builder.inner(otherwise).op("yield", [])
        builder.op("if", [builder.value("eq", mapping[program], mapping[first])], [body, otherwise])

    def _copy(self, group: CopyGroup, builder: Builder, mapping: Mapping, state: _State) -> None:
        """Where the consumers wait for them, so that both take slots in the same order."""
        ring = self._ring(group)
        assert ring.value is not None
        slot = state[ring.order]
        buffers: list[Value] = []
        for share in range(ring.shares):
            builder.at(group.wait).op("ring_acquire", [ring.value, slot.stage, slot.phase], share=share)
            builder.op("ring_expect", [ring.value, slot.stage], bytes=group.bytes // ring.shares, share=share)
            for index, copy in enumerate(group.copies):
                if not share:
                    buffers.append(staged(ring, index, slot, builder))
                operands = [buffers[index], mapping[copy.operands[1]], ring.value, slot.stage]
                programs = ring.cluster if copy.id in self.alike else 1
                builder.at(copy).op("tma_load", operands, multicast=programs, share=share)
        state[ring.order] = next_slot(ring, slot, builder)

    def _consume(self, block: Block, builder: Builder, mapping: Mapping, state: _State) -> None:
        """All but the copies."""
        for op in block.ops:
            builder.at(op)
            group = self.group_of_wait.get(op.id)
            for late in self.late.in_front.get(op.id, ()):
                self._wait(late, builder, state)
            if group is not None:
                self._await(group, builder, mapping, state)
            elif op.id in self.group_of_copy or op.name == "alloc_shared" and self._is_allocated(op, mapping):
                continue
            elif op.regions and self._copies_inside(op):
                self._region(op, builder, mapping, state, self._consume)
                for late in self.late.left if op is self.late.loop else ():
                    self._wait(late, builder, state)
            elif op.name != "yield":
                clone_op(builder, op, mapping)
            for group in self.released.get(op.id, ()):
                ring, slot = self._ring(group), self.slots[group.wait.id]
                assert ring.value is not None
                read = [mapping[value] for value in group.read]
                builder.op("ring_release", [ring.value, slot.stage, *read])

    def _is_allocated(self, op: Op, mapping: Mapping) -> bool:
        return op.result in self.buffers or op.result in mapping

    def _await(self, group: CopyGroup, builder: Builder, mapping: Mapping, state: _State) -> None:
        ring = self._ring(group)
        assert ring.value is not None
        slot = state[ring.order]
        if not self.late.is_late(group):
            self._wait(group, builder, state)
        for index, buffer in enumerate(() if group.kept else group.buffers):
            mapping[buffer] = staged(ring, index, slot, builder)
        self.slots[group.wait.id] = slot
        state[ring.order] = next_slot(ring, slot, builder)

    def _wait(self, group: CopyGroup, builder: Builder, state: _State) -> None:
        ring = self._ring(group)
        assert ring.value is not None
        builder.op("ring_wait", [ring.value, state[ring.order].stage, state[ring.order].phase])

    # ---- regions ----

    def _copies_inside(self, op: Op) -> bool:
        return any(inner.name == "copy_async" for region in op.regions for inner in region.walk())

    def _rings_inside(self, op: Op, teams: Iterable[int]) -> list[Ring]:
        """The rings of some teams whose slots a region moves on."""
        waits = {
            self.group_of_copy[inner.id].wait.id
            for region in op.regions
            for inner in region.walk()
            if inner.name == "copy_async"
        }
        found = {self.ring_of[team, wait].order for team in teams for wait in waits}
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
        produces, paired = role == self._produce, op is self.programs
        kept = [index for index, result in enumerate(op.results) if not produces or result in self.needed]
        rings = self._rings_inside(op, range(self.teams) if paired and produces else (self.team,))
        is_loop = op.definition.has(LOOP)
        fixed = 3 if op.definition.has(COUNTED) else 0
        leading = op.operands[:fixed] if is_loop else op.operands
        operands = [mapping[value] for value in leading]
        if paired:
            operands = self._in_turn(operands, 0 if produces else self.team, builder)
        if is_loop:
            operands += [mapping[op.operands[fixed + index]] for index in kept]
            operands += _numbers(state, rings)
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
                    inner_state[ring.order] = Slot(
                        body.add_argument(slot.stage.type, "slot"), body.add_argument(slot.phase.type, "round")
                    )
            inner = builder.inner(body)
            if paired and produces:
                self._produce_for_all(region, inner, mapping, inner_state)
            else:
                role(region, inner, mapping, inner_state)
            if produces and region is not op.regions[0]:
                self._copy_at_first(self.late.beside.get(op.id, ()), inner.at(op), mapping, inner_state)
            final = region.ops[-1]
            values = [mapping[final.operands[index]] for index in kept]
            inner.at(final).op("yield", [*values, *_numbers(inner_state, rings)])
            regions.append(body)
        names = [op.results[index].name for index in kept] + ["slot", "round"] * len(rings)
        new = builder.at(op).op(op.name, operands, regions, names, **op.attributes)
        for index, result in zip(kept, new.results, strict=False):
            mapping[op.results[index]] = result
        _move_on(state, rings, new.results[len(kept) :])

    # ---- teams ----

    def _in_turn(self, bounds: list[Value], team: int, builder: Builder) -> list[Value]:
        """The bounds of the loop over every so many-th program, from the team's first one on."""
        lower, upper, step = bounds
        return [self._ahead(lower, step, team, builder), upper, self._times(step, self.teams, builder)]

    def _ahead(self, program: Value, step: Value, team: int, builder: Builder) -> Value:
        return builder.value("add", program, self._times(step, team, builder)) if team else program

    def _times(self, step: Value, count: int, builder: Builder) -> Value:
        return builder.value("mul", step, builder.value("constant", value=count, dtype=dtype_of(step.type)))

    def _produce_for_all(self, block: Block, builder: Builder, mapping: Mapping, state: _State) -> None:
        """The copies of a program for the first team, then those of the next one, if there is one, for the second."""
        assert self.programs is not None
        program, upper, step = mapping[block.arguments[0]], *(mapping[v] for v in self.programs.operands[1:3])
        self._produce(block, builder, mapping, state)
        for team in range(1, self.teams):
            self.team = team
            rings = self._rings_inside(self.programs, (team,))
            number = self._ahead(program, step, team, builder)
            more = builder.value("lt", number, upper)
            body, otherwise, inner_state = Block(), Block(), dict(state)
            inner = builder.inner(body)
            self._produce(block, inner, {**mapping, block.arguments[0]: number}, inner_state)
            inner.op("yield", _numbers(inner_state, rings))
            builder.inner(otherwise).op("yield", _numbers(state, rings))
            new = builder.op("if", [more], [body, otherwise], ["slot", "round"] * len(rings))
            _move_on(state, rings, new.results)
        self.team = 0


def _numbers(state: _State, rings: list[Ring]) -> list[Value]:
    """The slots of rings as values, two for each."""
    return [value for ring in rings for value in (state[ring.order].stage, state[ring.order].phase)]


def _move_on(state: _State, rings: list[Ring], numbers: Sequence[Value]) -> None:
    for index, ring in enumerate(rings):
        state[ring.order] = Slot(*numbers[2 * index : 2 * index + 2])


__all__ = ["LEAST_STAGES", "holds", "split_roles"]
