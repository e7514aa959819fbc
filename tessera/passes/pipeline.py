"""Software pipelining: a loop's copies fill buffers that take turns, so that they fly while earlier ones are used.

With S stages, the loop

    for i: copy b <- window(i); wait; use b

becomes

    for the first S - 1 iterations: copy their stage; commit
    for i: wait for the oldest group; copy the stage that iteration i - 1 has read, for i + S - 1; commit; use a stage
    wait for what is left

A copy runs only where its iteration does, so it reads no address that the loop would not have read; the commit always
runs, so that the number of groups in flight is known. Which stage is used and which is refilled are numbers that the
loop carries beside the groups in flight. Exact: the same values are read from the same windows.

A loop inside another one would start anew, with nothing in flight, in each iteration of that. Where the bounds of both
are constants, the copies go on instead: behind the last windows of one outer iteration come the first of the next, and
the outer loop carries what is in flight.

What makes this right, and what `tessera.ir.verify_order` checks again on the result: nothing reads a stage before the
wait for its copy (*read after write*), no copy into a stage starts before its readers are done (*write after read*; the
barrier behind the wait stands between them), no copy is in flight when the bytes may serve something else (*drain*).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tessera.dtypes import i32, i64
from tessera.errors import SourceError
from tessera.ir.core import (
    Block,
    Builder,
    Kernel,
    Mapping,
    Op,
    Value,
    clone_kernel,
    clone_op,
    clone_with_regions,
    new_kernel_like,
)
from tessera.ir.core import uses as uses_of
from tessera.ir.opdef import COUNTED
from tessera.ir.ops.control import constant_value, loop_range
from tessera.ir.types import TileType, dtype_of
from tessera.passes.ahead import Ahead
from tessera.passes.assign_layouts import assign_layouts
from tessera.passes.canonicalise import canonicalise
from tessera.passes.lower_to_target import lower_to_target
from tessera.passes.place_shared import place_shared
from tessera.passes.stored_parts import buffers_of_parts
from tessera.target.arch import Arch
from tessera.target.reuse import written_tensors
from tessera.target.schedule import Schedule, elements
from tessera.target.schedules import pins_of


@dataclass
class Plan:
    """A loop to pipeline: its copies, the ops of its body that make their windows, and how many stages they get.

    `trips` is the number of iterations where that is known. `outer`: the loop around it through which copies go on, if
    there is one; its ops behind the windows are in `feeding`, too.
    """

    loop: Op
    copies: list[Op]
    feeding: list[Op]
    stages: int
    trips: int | None
    outer: Op | None = None

    @property
    def buffers(self) -> list[Value]:
        return [copy.operand("buffer") for copy in self.copies]

    @property
    def allocations(self) -> list[Op]:
        """The buffers that the body itself allocates: their stages outlive an iteration."""
        return [op for op in self.loop.regions[0].ops if op.results and op.results[0] in self.buffers]

    @property
    def step(self) -> int:
        step = constant_value(self.loop.operand("step"))
        assert step, "a loop of unknown step is not planned"
        return step


def pipeline(kernel: Kernel, schedule: Schedule, arch: Arch) -> Kernel:
    """Gives the copies of each loop where it can at most `schedule.stages` stages, or what the author asked for.

    Fewer where the loop is shorter, or where shared memory does not hold them: beside as many blocks as are pinned,
    unless stages are, too. Raises SourceError TS501 where it does not hold the stages that are pinned.
    """
    new, _ = clone_kernel(kernel)
    plans = _plans(new, schedule)
    if not plans:
        return kernel
    wanted = [plan.stages for plan in plans]
    _fit(new, plans, schedule, arch)
    if "stages" in pins_of(kernel):
        _check_pinned(plans, wanted, arch)
    return _rewrite(new, plans)


def _rewrite(kernel: Kernel, plans: list[Plan]) -> Kernel:
    plans = [plan for plan in plans if plan.stages > 1]
    if not plans:
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _Rewriter(plans, mapping).block(kernel.body, builder)
    return new


TURNS = 2  # numbers that a loop carries beside its groups: the stage to be used, and the one to be refilled

# Which loops ----------------------------------------------------------------------------------------------------------


def _plans(kernel: Kernel, schedule: Schedule) -> list[Plan]:
    written, used, plans = written_tensors(kernel), uses_of(kernel.body), []
    for op in kernel.body.walk():
        if not op.definition.has(COUNTED) or not constant_value(op.operand("step")):
            continue
        trips = _trips(op)
        if trips is not None and trips < 2:
            continue
        finder = Ahead(op, used, written)
        found = [copy for copy in op.regions[0].ops if copy.name == "copy_async" and finder.movable(copy)]
        if found:
            asked = [copy.attributes["stages"] for copy in found if copy.attributes["stages"] is not None]
            stages = max(asked) if asked and "stages" not in pins_of(kernel) else schedule.stages
            stages = stages if trips is None else min(stages, trips)
            plans.append(Plan(op, found, finder.feeding(found), stages, trips))
    parents = {inner.id: op for op in kernel.body.walk() for region in op.regions for inner in region.ops}
    for plan in plans if schedule.through else ():
        _go_on(plan, parents.get(plan.loop.id), plans, used, written)
    return plans


def _go_on(plan: Plan, outer: Op | None, plans: list[Plan], used: dict[Value, list[Op]], written: set[Value]) -> None:
    """Makes the loop around a planned one part of the plan, if copies can go on through it."""
    if outer is None or not outer.definition.has(COUNTED) or outer in [other.loop for other in plans]:
        return
    indices = loop_range(outer.operands[:3])
    if indices is None or len(indices) < 2 or plan.trips is None or plan.trips < plan.stages - 1 or plan.allocations:
        return
    finder = Ahead(outer, used, written)
    needed = [value for copy in plan.copies for value in (copy.operand("view"),)]
    needed += [value for op in plan.feeding for value in op.operands]
    behind = [finder.behind(value) for value in needed if value not in plan.loop.regions[0].arguments]
    inside = any(buffer in finder.made_at for buffer in plan.buffers)
    if inside or any(ops is None for ops in behind):
        return
    wanted = {op.id for ops in behind for op in ops or ()}
    plan.outer = outer
    plan.feeding = [*(op for op in outer.regions[0].ops if op.id in wanted), *plan.feeding]


def _trips(loop: Op) -> int | None:
    indices = loop_range(loop.operands[:3])
    return None if indices is None else len(indices)


def _fit(kernel: Kernel, plans: list[Plan], schedule: Schedule, arch: Arch) -> None:
    """Takes stages away, where there are most, until shared memory holds all that the kernel needs.

    Where the number of blocks is pinned and that of stages is not, shared memory of a multiprocessor is to hold as many
    blocks, or as many as leave every loop two stages. Beside these, buffers have `apart` what they can.
    """
    layouts = assign_layouts(kernel, schedule)
    tiles = [v for op in kernel.body.walk() for v in op.results if isinstance(v.type, TileType)]
    # Any tile may go through shared memory on its way to another layout.
    beside = max((elements(tile) * dtype_of(tile.type).bytes for tile in tiles), default=0)
    beside += sum(layout.bytes for layout in layouts.buffer.values())
    sizes = [sum(layouts.buffer[buffer].bytes for buffer in plan.buffers) for plan in plans]
    in_parts = buffers_of_parts(kernel, layouts)

    def holds(room: int) -> bool:
        total = beside + sum(size * (plan.stages - 1) for size, plan in zip(sizes, plans, strict=True))
        quick = total <= room and not any(op.attributes["apart"] for op in in_parts)
        return quick or _holds(kernel, plans, schedule, arch, room)

    pins, wanted = pins_of(kernel), [plan.stages for plan in plans]
    least = wanted if "stages" in pins else [min(stages, 2) for stages in wanted]
    for blocks in range(1 if "stages" in pins else pins.get("blocks", 1), 0, -1):
        for apart in (True, False) if in_parts else (False,):
            for op in in_parts:
                op.attributes["apart"] = apart
            _lower(plans, wanted, holds, arch.shared_bytes_beside(blocks))
            if all(plan.stages >= stages for plan, stages in zip(plans, least, strict=True)):
                return


def _lower(plans: list[Plan], wanted: list[int], holds: Callable[[int], bool], room: int) -> None:
    """Gives the plans as many of the stages that are wanted as fit so many bytes, or one where even that does not.

    Buffers of loops that are not alive together share bytes, and what one loop has to do without helps no other one.
    """
    for plan, stages in zip(plans, wanted, strict=True):
        plan.stages = stages
    while not holds(room):
        most = max(plans, key=lambda plan: plan.stages)
        if most.stages == 1:
            return
        most.stages -= 1
    for plan, stages in zip(plans, wanted, strict=True):
        while plan.stages < stages:
            plan.stages += 1
            if not holds(room):
                plan.stages -= 1
                break


def _check_pinned(plans: list[Plan], wanted: list[int], arch: Arch) -> None:
    for plan, stages in zip(plans, wanted, strict=True):
        if plan.stages < stages:
            names = ", ".join(f"'{buffer.name}'" for buffer in plan.buffers)
            raise SourceError(
                "TS501",
                f"the schedule is pinned to {stages} stages, and the shared memory of {arch.name} holds {plan.stages} "
                f"of {names}",
                plan.loop.loc,
            )


def _holds(kernel: Kernel, plans: list[Plan], schedule: Schedule, arch: Arch, room: int) -> bool:
    """Whether the kernel fits `room` with these plans, found by placing it: buffers not alive together share bytes."""
    try:
        placed = place_shared(lower_to_target(canonicalise(_rewrite(kernel, plans)), schedule, arch), arch)
    except SourceError as error:
        if error.code != "TS501":
            raise
        return False
    return placed.attributes["shared_bytes"] <= room


# The loop -------------------------------------------------------------------------------------------------------------


class _Rewriter:
    def __init__(self, plans: list[Plan], mapping: Mapping):
        self.plans = {plan.loop.id: plan for plan in plans}
        self.around: dict[int, list[Plan]] = {}
        for plan in plans:
            if plan.outer is not None:
                self.around.setdefault(plan.outer.id, []).append(plan)
        self.flying: dict[int, list[Value]] = {}  # of a plan with an outer loop: turns and groups at this point
        self.stages = {buffer: plan.stages for plan in plans for buffer in plan.buffers}
        self.mapping = mapping

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            self.op(op, builder.at(op))

    def op(self, op: Op, builder: Builder) -> None:
        if op.id in self.plans:
            self.loop(self.plans[op.id], builder)
        elif op.id in self.around:
            self.outer(op, self.around[op.id], builder)
        elif op.regions:
            clone_with_regions(builder, op, self.mapping, self.block)
        elif op.results and op.results[0] in self.stages:
            clone_op(builder, op, self.mapping, stages=self.stages[op.results[0]])
        else:
            clone_op(builder, op, self.mapping)

    def loop(self, plan: Plan, builder: Builder) -> None:
        loop, (body,) = plan.loop, plan.loop.regions
        for op in plan.allocations:
            self.op(op, builder.at(op))
        bounds = [self.mapping[value] for value in loop.operands[:3]]
        flying = self.flying[loop.id] if plan.outer else self.prologue(plan, builder.at(loop), bounds[0], None)
        initial = [self.mapping[value] for value in loop.operands[3:]]
        copy = Block()
        for argument in body.arguments:
            self.mapping[argument] = copy.add_argument(argument.type, argument.name)
        used, refilled, *groups = _arguments(copy, flying)
        inner = builder.inner(copy)
        inner.at(*plan.copies).op("wait", [groups[0]])
        group = self.following(plan, inner.at(loop), bounds[1], refilled)
        allocations = {buffer: self.mapping[buffer] for buffer in plan.buffers}
        for buffer, allocated in allocations.items():
            self.mapping[buffer] = inner.value("stage", allocated, used, hint=buffer.name)
        carried = self.iteration(plan, body, inner)
        following = self.next_turn(inner.at(loop), used, plan.stages)
        inner.op("yield", [*carried, following, used, *groups[1:], group])
        self.mapping.update(allocations)
        operands = [*bounds, *initial, *flying]
        names = [result.name for result in loop.results]
        new = builder.at(loop).op(loop.name, operands, [copy], names, **loop.attributes)
        count = len(loop.results)
        self.mapping.update(zip(loop.results, new.results[:count], strict=True))
        if plan.outer:
            self.flying[loop.id] = new.results[count:]
        else:
            builder.at(*plan.copies).op("wait", new.results[count + TURNS :])

    def outer(self, loop: Op, plans: list[Plan], builder: Builder) -> None:
        """A loop through which the copies of loops inside go on: it carries their turns and groups."""
        (body,) = loop.regions
        bounds = [self.mapping[value] for value in loop.operands[:3]]
        before: list[Value] = []
        for plan in plans:
            first = _first(plan, builder.at(plan.loop))
            before += self.prologue(plan, builder, first, bounds[0])
        copy = Block()
        for argument in body.arguments:
            self.mapping[argument] = copy.add_argument(argument.type, argument.name)
        carried = _arguments(copy, before)
        for plan in plans:
            count = TURNS + plan.stages - 1
            self.flying[plan.loop.id], carried = carried[:count], carried[count:]
        inner = builder.inner(copy)
        *ops, last = body.ops
        for op in ops:
            self.op(op, inner.at(op))
        after = [value for plan in plans for value in self.flying[plan.loop.id]]
        inner.at(last).op("yield", [*(self.mapping[value] for value in last.operands), *after])
        operands = [*bounds, *(self.mapping[value] for value in loop.operands[3:]), *before]
        names = [result.name for result in loop.results]
        new = builder.at(loop).op(loop.name, operands, [copy], names, **loop.attributes)
        count = len(loop.results)
        self.mapping.update(zip(loop.results, new.results[:count], strict=True))
        for plan in plans:
            tokens = new.results[count + TURNS : count + TURNS + plan.stages - 1]
            builder.at(*plan.copies).op("wait", tokens)
            count += TURNS + plan.stages - 1

    def prologue(self, plan: Plan, builder: Builder, first: Value, outer: Value | None) -> list[Value]:
        """Starts the copies of the first iterations, from index `first`; `outer`: the first index of the outer loop.

        Returns the stage to be used, the one to be refilled, which is the one that was used last, and the groups.
        """
        ahead = plan.stages - 1
        turns = [builder.value("constant", value=number, dtype=i32) for number in (0, ahead)]
        upper = self.mapping[plan.loop.operand("upper")] if plan.trips is None else None
        groups = []
        for number in range(ahead):
            offset = builder.at(plan.loop).value("constant", value=number * plan.step, dtype=i64)
            index = builder.value("add", first, offset) if number else first
            stage = builder.value("constant", value=number, dtype=i32)
            runs = None if upper is None else self.before(plan, builder.at(*plan.copies), index, upper)
            groups.append(self.start(plan, builder, index, outer, stage, runs))
        return [*turns, *groups]

    def following(self, plan: Plan, builder: Builder, upper: Value, stage: Value) -> Value:
        """Starts the copies for the iteration `stages` - 1 further on, in the next iteration of an outer loop if need
        be.
        """
        offset = builder.value("constant", value=(plan.stages - 1) * plan.step, dtype=i64)
        index = builder.value("add", self.mapping[plan.loop.regions[0].arguments[0]], offset)
        runs = self.before(plan, builder.at(*plan.copies), index, upper)
        if plan.outer is None:
            return self.start(plan, builder, index, None, stage, runs)
        assert plan.trips is not None
        number = self.mapping[plan.outer.regions[0].arguments[0]]
        span = builder.value("constant", value=plan.trips * plan.step, dtype=i64)
        index = builder.value("where", runs, index, builder.value("sub", index, span))
        step, end = (self.mapping[plan.outer.operand(name)] for name in ("step", "upper"))
        outer = builder.value("where", runs, number, builder.value("add", number, step))
        rising = (constant_value(plan.outer.operand("step")) or 0) > 0
        runs = builder.value("lt" if rising else "gt", outer, end)
        return self.start(plan, builder, index, outer, stage, runs)

    def before(self, plan: Plan, builder: Builder, index: Value, upper: Value) -> Value:
        """Whether an index of the loop has an iteration."""
        return builder.value("lt" if plan.step > 0 else "gt", index, upper)

    def start(
        self, plan: Plan, builder: Builder, index: Value, outer: Value | None, stage: Value, runs: Value | None
    ) -> Value:
        """The group of the copies for the iteration at `index`, and at `outer` of the loop around; an empty one where
        it does not run (None: it does).
        """

        def copies(at: Builder) -> list[Value]:
            local = {**self.mapping, plan.loop.regions[0].arguments[0]: index}
            if plan.outer is not None and outer is not None:
                local[plan.outer.regions[0].arguments[0]] = outer
            for op in plan.feeding:
                clone_op(at, op, local)
            tokens = []
            for copy in plan.copies:
                buffer, view = self.mapping[copy.operand("buffer")], local[copy.operand("view")]
                target = at.at(copy).value("stage", buffer, stage, hint=copy.operand("buffer").name)
                tokens.append(at.value("copy_async", target, view, bypass_l1=copy.attributes["bypass_l1"]))
            return tokens

        if runs is None:
            tokens = copies(builder)
        else:
            builder.at(*plan.copies)
            then, otherwise = Block(), Block()
            inside = builder.inner(then)
            inside.op("yield", copies(inside))
            inside = builder.inner(otherwise)
            nothing = inside.value("no_copy")
            inside.op("yield", [nothing] * len(plan.copies))
            tokens = builder.op("if", [runs], [then, otherwise]).results
        return builder.at(*plan.copies).value("async_commit", *tokens)

    def iteration(self, plan: Plan, body: Block, builder: Builder) -> list[Value]:
        """The rest of the body: without the copies, and without what waits for nothing else. Returns what it yields."""
        *ops, last = body.ops
        gone = {op.id for op in (*plan.copies, *plan.allocations)}
        landed = {copy.result for copy in plan.copies}
        for op in ops:
            if op.name == "wait" and landed & set(op.operands):
                others = [self.mapping[token] for token in op.operands if token not in landed]
                if others:
                    builder.at(op).op("wait", others)
            elif op.id not in gone:
                self.op(op, builder.at(op))
        return [self.mapping[value] for value in last.operands]

    def next_turn(self, builder: Builder, turn: Value, stages: int) -> Value:
        one, last, first = (builder.value("constant", value=v, dtype=i32) for v in (1, stages - 1, 0))
        return builder.value("where", builder.value("eq", turn, last), first, builder.value("add", turn, one))


def _arguments(block: Block, values: list[Value]) -> list[Value]:
    """Arguments of a loop's body that carry these turns and groups."""
    names = ("used", "refilled")
    return [
        block.add_argument(v.type, names[i] if i < TURNS and v.type == values[0].type else "")
        for i, v in enumerate(values)
    ]


def _first(plan: Plan, builder: Builder) -> Value:
    """The first index of a loop whose bounds are constants."""
    return builder.value("constant", value=constant_value(plan.loop.operand("lower")), dtype=i64)
