"""Cut the sum of a product along K into parts for programs of their own: few programs with long loops fill no GPU.

With `Schedule.split_k` = s a kernel of the first form becomes the two others, which run one after the other:

    acc = for k in range(0, K, step): mma      @name_parts, on s times as many programs:
    store f(acc)                                   part, acc = id % s, for k in the iterations of the part: mma
                                                   store acc to partials[part, ids, ...]
                                               @name_sum, on the programs of the kernel:
                                                   acc = partials[0, ...] + partials[1, ...] + ... + initial
                                                   store f(acc)

`partials` is a workspace: an f32 tensor [s, grid, iterations of loops around, tile]. The parts count on grid axis 2,
the slowest, so that programs that run at one time are of one part and share what they read of it. They are ranges of
whole iterations whose lengths differ by at most one.

Everything else that the kernel does stays with the sum, whose elements then lie with programs of a few rows each: it
only moves memory. Not exact: partial sums are rounded before they are added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tessera.dtypes import f32
from tessera.errors import SourceError
from tessera.ir.affine import loop_progression
from tessera.ir.core import Block, Builder, Kernel, Op, Value, clone_op, clone_with_regions, uses
from tessera.ir.dims import Size, evaluate
from tessera.ir.programs import names_program
from tessera.ir.types import ViewType, int_shape
from tessera.passes.distribute import distribute
from tessera.passes.launches import LaunchMaker, constant, free_stem, size_value
from tessera.passes.subtile import subtile
from tessera.passes.sum_loops import SumLoop, sum_loops
from tessera.target.reuse import ops_behind, written, written_names
from tessera.target.schedule import Schedule, root, schedule_of

PART_AXIS = 2  # of the grid
SUM_WARPS = 4
# Of the sum, what a thread has of the result and, since all its loads fly at once, of all parts together.
RESULTS_PER_THREAD, LOADS_PER_THREAD = 8, 64


def split_k(kernel: Kernel, schedule: Schedule, sizes: Mapping[str, int]) -> list[Kernel]:
    """The kernel alone, or its parts and their sum.

    `sizes`: values of dims for which the schedule was made. Raises SourceError TS512 where the kernel has no such loop,
    one with fewer iterations than parts, or one that depends on what another sums or on what the kernel writes.
    """
    if schedule.split_k == 1:
        return [kernel]
    loops = _loops(kernel, schedule.split_k, sizes)
    spaces = _spaces(kernel, loops, schedule.split_k)
    parts = _Parts(kernel, spaces).kernel()
    _check_reads(parts, kernel, schedule.split_k)
    return [parts, _Sum(kernel, spaces, schedule).kernel()]


def _loops(kernel: Kernel, count: int, sizes: Mapping[str, int]) -> list[SumLoop]:
    if count < 1:
        raise SourceError("TS512", f"split_k is {count}, and there is at least one part", kernel.loc)
    found = sum_loops(kernel)
    if not found:
        message = f"split_k = {count}: '{kernel.name}' has no loop that sums a product and whose sum is used behind it"
        raise SourceError("TS512", message, kernel.loc)
    used = uses(kernel.body)
    for loop in found:
        inside = [value for op in loop.op.regions[0].walk() for value in op.operands]
        behind = ops_behind([*loop.op.operands, *inside], used)
        if any(other.op in behind for other in found if other is not loop):
            message = f"split_k = {count}: a product of '{kernel.name}' takes what another one sums"
            raise SourceError("TS512", message, loop.op.loc)
        try:
            trips = evaluate(loop_progression(loop.op)[1].count, sizes)
        except KeyError:
            continue  # only a launch knows
        if trips < count:
            times = f"{trips} iteration{'s' if trips != 1 else ''}"
            raise SourceError("TS512", f"split_k = {count}: a loop of '{kernel.name}' has {times}", loop.op.loc)
    return found


def _check_reads(parts: Kernel, kernel: Kernel, count: int) -> None:
    """Raises SourceError TS512 where the parts read what the kernel writes: they run before it does."""
    written = written_names(kernel)
    for op in parts.body.walk():
        for effect, value in op.definition.effects_of(op):
            if effect == "reads" and isinstance(value.type, ViewType) and root(value).name in written:
                message = f"split_k = {count}: '{kernel.name}' writes '{root(value).name}', which its product reads"
                raise SourceError("TS512", message, op.loc)


def _grid(kernel: Kernel) -> tuple[Size, Size, Size]:
    first, second, third = (*kernel.attributes["grid"], 1, 1, 1)[:3]
    return first, second, third


@dataclass(frozen=True)
class _Space:
    """The workspace of a result of a loop: f32 tiles by part, grid index and iteration of the loops around."""

    loop: SumLoop
    name: str
    shape: tuple[Size, ...]
    tile: tuple[int, ...]

    @property
    def type(self) -> ViewType:
        return ViewType(self.shape, f32)

    def window(self, builder: Builder, workspace: Value, places: list[Value]) -> Value:
        """The tile at an index for each axis but its own."""
        zero = constant(builder, 0)
        return builder.value(
            "window",
            workspace,
            *places,
            *[zero] * len(self.tile),
            extents=(*[1] * len(places), *self.tile),
            kept=(*[False] * len(places), *[True] * len(self.tile)),
        )


def _spaces(kernel: Kernel, loops: list[SumLoop], count: int) -> list[_Space]:
    """In the order of loops and of their results, under names that no parameter has."""
    results = [(loop, result) for loop in loops for result in loop.op.results]
    stem = free_stem(kernel, "partials")
    found = []
    for number, (loop, result) in enumerate(results):
        name = stem if len(results) == 1 else f"{stem}_{number}"
        tile = int_shape(result.type)
        found.append(_Space(loop, name, (count, *kernel.attributes["grid"], *loop.trips, *tile), tile))
    return found


class _Rewriter(LaunchMaker, ABC):
    """Copies a kernel, but for the loops that have workspaces."""

    def __init__(self, kernel: Kernel, spaces: list[_Space]):
        super().__init__(kernel, {space.name: space.type for space in spaces})
        self.spaces = spaces
        self.loops = {space.loop.op: space.loop for space in spaces}

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            builder.at(op)
            if op in self.loops:
                self.sum_loop(builder, self.loops[op], [space for space in self.spaces if space.loop.op is op])
            elif op.regions:
                clone_with_regions(builder, op, self.mapping, self.block)
            else:
                self.op(op, builder)

    def op(self, op: Op, builder: Builder) -> None:
        clone_op(builder, op, self.mapping)

    @abstractmethod
    def sum_loop(self, builder: Builder, loop: SumLoop, spaces: list[_Space]) -> None:
        """Puts something in the place of a loop, whose results have these workspaces."""

    def places(self, builder: Builder, loop: SumLoop) -> list[Value]:
        """Where the tiles of this program, in these iterations of the loops around, lie in a part of a workspace."""
        found = [self.grid_index(builder, axis) for axis in range(len(self.old.attributes["grid"]))]
        return [*found, *self.turns(builder, loop)]


class _Parts(_Rewriter):
    """Each program sums its part of the iterations."""

    def __init__(self, kernel: Kernel, spaces: list[_Space]):
        super().__init__(kernel, spaces)
        self.builder.at(*self.loops)
        self.count = schedule_of(kernel).split_k
        number = self.builder.value("program_id", axis=PART_AXIS)
        counted = constant(self.builder, self.count)
        if _grid(kernel)[PART_AXIS] == 1:
            self.part, self.index = number, constant(self.builder, 0)
        else:
            self.part = self.builder.value("mod", number, counted)
            self.index = self.builder.value("floordiv", number, counted)

    def kernel(self) -> Kernel:
        self.block(self.old.body, self.builder)
        first, second, third = _grid(self.old)
        self.new.attributes["grid"] = (first, second, third * self.count)
        return self.finish(f"{self.old.name}_parts", "out", schedule_of(self.old))

    def op(self, op: Op, builder: Builder) -> None:
        if written(op) or names_program(op):
            return  # the sum does it
        if op.name == "program_id" and op.attributes["axis"] == PART_AXIS:
            scale = op.attributes["scale"]
            index = self.index if scale == 1 else builder.value("mul", self.index, constant(builder, scale))
            self.mapping[op.result] = index
        elif op.name == "num_programs" and op.attributes["axis"] == PART_AXIS:
            self.mapping[op.result] = size_value(builder, _grid(self.old)[PART_AXIS])
        else:
            clone_op(builder, op, self.mapping)

    def grid_index(self, builder: Builder, axis: int) -> Value:
        return self.index if axis == PART_AXIS else super().grid_index(builder, axis)

    def sum_loop(self, builder: Builder, loop: SumLoop, spaces: list[_Space]) -> None:
        old = loop.op
        lower, upper, step = (self.mapping[value] for value in old.operands[:3])
        trips = builder.value("neg", builder.value("floordiv", builder.value("sub", lower, upper), step))
        trips = builder.value("max", trips, constant(builder, 0))
        following = builder.value("add", self.part, constant(builder, 1))
        bounds = [self._end(builder, lower, step, trips, part) for part in (self.part, following)]
        body = Block()
        for argument in old.regions[0].arguments:
            self.mapping[argument] = body.add_argument(argument.type, argument.name)
        self.block(old.regions[0], builder.inner(body))
        zero = builder.at(old).value("constant", value=0.0)
        initial = [builder.value("full", zero, shape=space.tile, dtype=f32) for space in spaces]
        names = [result.name for result in old.results]
        new = builder.op(old.name, [*bounds, step, *initial], [body], names, **old.attributes)
        places = [self.part, *self.places(builder, loop)]
        for space, result in zip(spaces, new.results, strict=True):
            builder.op("store", [space.window(builder, self.workspaces[space.name], places), result])
        self.mapping.update(zip(old.results, new.results, strict=True))  # what uses them is dropped

    def _end(self, builder: Builder, lower: Value, step: Value, trips: Value, part: Value) -> Value:
        """The index at which a part begins, and the one before it ends."""
        done = builder.value("floordiv", builder.value("mul", part, trips), constant(builder, self.count))
        return builder.value("add", lower, builder.value("mul", done, step))


class _Sum(_Rewriter):
    """Adds the parts in ascending order, and does everything else that the kernel did."""

    def __init__(self, kernel: Kernel, spaces: list[_Space], schedule: Schedule):
        super().__init__(kernel, spaces)
        self.schedule = schedule

    def kernel(self) -> Kernel:
        self.block(self.old.body, self.builder)
        schedule = replace(self.schedule, split_k=1, group=0)
        moves = not any(op.name == "mma" for op in self.new.body.walk())
        if not moves or schedule.subtile or schedule.streamed or schedule.rows:
            return self.finish(f"{self.old.name}_sum", "in", schedule)  # cut into programs and slices as it was
        schedule = _of_sum(self.spaces[0].tile, self.schedule.split_k)
        return distribute(subtile(self.finish(f"{self.old.name}_sum", "in", schedule), schedule))

    def sum_loop(self, builder: Builder, loop: SumLoop, spaces: list[_Space]) -> None:
        places = self.places(builder, loop)
        for space, first, result in zip(spaces, loop.op.operands[3:], loop.op.results, strict=True):
            total: Value | None = None
            for part in range(self.schedule.split_k):
                number = constant(builder, part)
                window = space.window(builder, self.workspaces[space.name], [number, *places])
                loaded = builder.value("load", window)
                total = loaded if total is None else builder.value("add", total, loaded, hint=result.name)
            assert total is not None
            if not _is_zero(first):
                total = builder.value("add", total, self.mapping[first], hint=result.name)
            self.mapping[result] = total


def _of_sum(tile: tuple[int, ...], count: int) -> Schedule:
    """How the sum of `count` tiles, which is loads and additions, is laid out: a few rows for each program."""
    elements = SUM_WARPS * 32 * max(4, min(RESULTS_PER_THREAD, LOADS_PER_THREAD // count))
    return Schedule(SUM_WARPS, rows=max(1, min(elements // tile[-1], tile[-2])))


def _is_zero(value: Value) -> bool:
    """Whether a tile is a constant zero."""
    op = value.defining_op
    if op is None or op.name != "full":
        return False
    number = op.operands[0].defining_op
    return number is not None and number.name == "constant" and number.attributes["value"] == 0
