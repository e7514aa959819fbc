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

What makes this right, and what `tessera.ir.verify_order` checks again on the result: nothing reads a stage before the
wait for its copy (*read after write*), no copy into a stage starts before its readers are done (*write after read*; the
barrier behind the wait stands between them), no copy is in flight when the bytes may serve something else (*drain*).
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.dtypes import i32, i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.core import uses as uses_of
from tessera.ir.opdef import COUNTED, PURE
from tessera.ir.ops.control import constant_value, loop_range
from tessera.ir.types import TileType, ViewType, dtype_of
from tessera.passes.assign_layouts import assign_layouts
from tessera.passes.canonicalise import canonicalise
from tessera.passes.lower_to_target import lower_to_target
from tessera.passes.place_shared import place_shared
from tessera.target.arch import Arch
from tessera.target.schedule import Schedule, elements, root
from tessera.target.schedules import pins_of


@dataclass
class Plan:
    """A loop to pipeline: its copies, the ops of its body that make their windows, and how many stages they get.

    `trips` is the number of iterations where that is known.
    """

    loop: Op
    copies: list[Op]
    feeding: list[Op]
    stages: int
    trips: int | None

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

    Fewer where the loop is shorter, or where shared memory does not hold them. Raises SourceError TS501 where it does
    not hold the stages that are pinned.
    """
    plans = _plans(kernel, schedule)
    if plans:
        wanted = [plan.stages for plan in plans]
        _fit(kernel, plans, schedule, arch)
        if "stages" in pins_of(kernel):
            _check_pinned(plans, wanted, arch)
    return _rewrite(kernel, plans)


def _rewrite(kernel: Kernel, plans: list[Plan]) -> Kernel:
    plans = [plan for plan in plans if plan.stages > 1]
    if not plans:
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _Rewriter(plans, mapping).block(kernel.body, builder)
    return new


# Which loops ----------------------------------------------------------------------------------------------------------


def _plans(kernel: Kernel, schedule: Schedule) -> list[Plan]:
    written = {
        root(value)
        for op in kernel.body.walk()
        for effect, value in op.definition.effects_of(op)
        if effect != "reads" and isinstance(value.type, ViewType)
    }
    used = uses_of(kernel.body)
    plans = []
    for op in kernel.body.walk():
        if not op.definition.has(COUNTED) or not constant_value(op.operand("step")):
            continue
        trips = _trips(op)
        if trips is not None and trips < 2:
            continue
        finder = _Finder(op, used, written)
        found = [copy for copy in op.regions[0].ops if copy.name == "copy_async" and finder.movable(copy)]
        if found:
            asked = [copy.attributes["stages"] for copy in found if copy.attributes["stages"] is not None]
            stages = max(asked) if asked and "stages" not in pins_of(kernel) else schedule.stages
            stages = stages if trips is None else min(stages, trips)
            plans.append(Plan(op, found, finder.feeding(found), stages, trips))
    return plans


class _Finder:
    """Which copies of a loop may start iterations ahead."""

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
        if copy.attributes["stages"] == 1 or allocated is None or allocated.attributes["stages"] != 1:
            return False
        waits = self.used.get(copy.result, [])
        if len(waits) != 1 or waits[0].name != "wait" or waits[0] not in self.body.ops:
            return False
        landed = self.place[waits[0].id]
        for user in self.used[buffer]:
            if user is not copy and (user.name != "read" or self.place.get(user.id, -1) < landed):
                return False
        return root(view) not in self.written and self._slice(view) is not None

    def feeding(self, copies: list[Op]) -> list[Op]:
        """The ops of the body behind the windows of copies, in order."""
        needed = {op.id for copy in copies for op in self._slice(copy.operand("view")) or ()}
        return [op for op in self.body.ops if op.id in needed]

    def _slice(self, value: Value) -> list[Op] | None:
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
            inner = self._slice(operand)
            if inner is None:
                return None
            found += inner
        return found


def _trips(loop: Op) -> int | None:
    indices = loop_range(loop.operands[:3])
    return None if indices is None else len(indices)


def _fit(kernel: Kernel, plans: list[Plan], schedule: Schedule, arch: Arch) -> None:
    """Takes stages away, where there are most, until shared memory holds all that the kernel needs."""
    layouts = assign_layouts(kernel, schedule)
    tiles = [v for op in kernel.body.walk() for v in op.results if isinstance(v.type, TileType)]
    # Any tile may go through shared memory on its way to another layout.
    beside = max((elements(tile) * dtype_of(tile.type).bytes for tile in tiles), default=0)
    beside += sum(layout.bytes for layout in layouts.buffer.values())
    sizes = [sum(layouts.buffer[buffer].bytes for buffer in plan.buffers) for plan in plans]
    while max(plan.stages for plan in plans) > 1:
        total = beside + sum(size * (plan.stages - 1) for size, plan in zip(sizes, plans, strict=True))
        if total <= arch.shared_bytes_per_block or _holds(kernel, plans, schedule, arch):
            return
        max(plans, key=lambda plan: plan.stages).stages -= 1


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


def _holds(kernel: Kernel, plans: list[Plan], schedule: Schedule, arch: Arch) -> bool:
    """Whether the kernel fits with these plans, found by placing it: buffers not alive together share bytes."""
    try:
        place_shared(lower_to_target(canonicalise(_rewrite(kernel, plans)), schedule), arch)
    except SourceError as error:
        if error.code != "TS501":
            raise
        return False
    return True


# The loop -------------------------------------------------------------------------------------------------------------


class _Rewriter:
    def __init__(self, plans: list[Plan], mapping: Mapping):
        self.plans = {plan.loop.id: plan for plan in plans}
        self.stages = {buffer: plan.stages for plan in plans for buffer in plan.buffers}
        self.mapping = mapping

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            self.op(op, builder.at(op))

    def op(self, op: Op, builder: Builder) -> None:
        if op.id in self.plans:
            self.loop(self.plans[op.id], builder)
        elif op.regions:
            clone_with_regions(builder, op, self.mapping, self.block)
        elif op.results and op.results[0] in self.stages:
            clone_op(builder, op, self.mapping, stages=self.stages[op.results[0]])
        else:
            clone_op(builder, op, self.mapping)

    def loop(self, plan: Plan, builder: Builder) -> None:
        loop, (body,) = plan.loop, plan.loop.regions
        lower, upper, step = (self.mapping[value] for value in loop.operands[:3])
        ahead = plan.stages - 1
        for op in plan.allocations:
            self.op(op, builder.at(op))
        builder.at(loop)
        # The stage to be used and the one to be refilled, which is the one that was used last.
        turns = [builder.value("constant", value=number, dtype=i32) for number in (0, ahead)]
        groups = []
        for number in range(ahead):
            offset = builder.at(loop).value("constant", value=number * plan.step, dtype=i64)
            index = builder.value("add", lower, offset) if number else lower
            stage = builder.value("constant", value=number, dtype=i32)
            groups.append(self.start(plan, builder, index, stage, upper, known=plan.trips is not None))
        initial = [self.mapping[value] for value in loop.operands[3:]]
        copy = Block()
        for argument in body.arguments:
            self.mapping[argument] = copy.add_argument(argument.type, argument.name)
        used, refilled = (copy.add_argument(v.type, name) for v, name in zip(turns, ("used", "refilled"), strict=True))
        flying = [copy.add_argument(group.type) for group in groups]
        inner = builder.inner(copy)
        inner.at(*plan.copies).op("wait", [flying[0]])
        offset = inner.at(loop).value("constant", value=ahead * plan.step, dtype=i64)
        index = inner.value("add", self.mapping[body.arguments[0]], offset)
        group = self.start(plan, inner, index, refilled, upper, known=False)
        allocations = {buffer: self.mapping[buffer] for buffer in plan.buffers}
        for buffer, allocated in allocations.items():
            self.mapping[buffer] = inner.value("stage", allocated, used, hint=buffer.name)
        carried = self.iteration(plan, body, inner)
        following = self.next_turn(inner.at(loop), used, plan.stages)
        inner.op("yield", [*carried, following, used, *flying[1:], group])
        self.mapping.update(allocations)
        operands = [lower, upper, step, *initial, *turns, *groups]
        new = builder.at(loop).op(
            loop.name, operands, [copy], [result.name for result in loop.results], **loop.attributes
        )
        count = len(loop.results)
        self.mapping.update(zip(loop.results, new.results[:count], strict=True))
        builder.at(*plan.copies).op("wait", new.results[count + len(turns) :])

    def start(self, plan: Plan, builder: Builder, index: Value, stage: Value, upper: Value, known: bool) -> Value:
        """The group of the copies for the iteration at `index`; an empty one where the loop ends before."""

        def copies(at: Builder) -> list[Value]:
            local = {**self.mapping, plan.loop.regions[0].arguments[0]: index}
            for op in plan.feeding:
                clone_op(at, op, local)
            tokens = []
            for copy in plan.copies:
                buffer, view = self.mapping[copy.operand("buffer")], local[copy.operand("view")]
                target = at.at(copy).value("stage", buffer, stage, hint=copy.operand("buffer").name)
                tokens.append(at.value("copy_async", target, view, bypass_l1=copy.attributes["bypass_l1"]))
            return tokens

        if known:
            tokens = copies(builder)
        else:
            builder.at(*plan.copies)
            runs = builder.value("lt" if plan.step > 0 else "gt", index, upper)
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
