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
from dataclasses import asdict, replace

from tessera.dtypes import i64
from tessera.errors import SourceError
from tessera.ir.affine import loop_progression
from tessera.ir.core import Block, Builder, Kernel, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.dims import Size, evaluate
from tessera.ir.opdef import ORDERED, UNORDERED
from tessera.ir.types import ViewType, dtype_of, int_shape
from tessera.passes.canonicalise import canonicalise
from tessera.passes.distribute import distribute
from tessera.passes.subtile import subtile
from tessera.passes.sum_loops import SumLoop, sum_loops
from tessera.target.schedule import Schedule, root

PART_AXIS = 2  # of the grid
SUM_WARPS = 4
# Of the sum, what a thread has of the result and, since all its loads fly at once, of all parts together.
RESULTS_PER_THREAD, LOADS_PER_THREAD = 8, 64


def split_k(kernel: Kernel, schedule: Schedule, sizes: Mapping[str, int]) -> list[Kernel]:
    """The kernel alone, or its parts and their sum.

    `sizes`: values of dims for which the schedule was made. Raises SourceError TS511 where the kernel has not one loop
    to cut, or fewer iterations than parts.
    """
    if schedule.split_k == 1:
        return [kernel]
    loop = _loop(kernel, schedule.split_k, sizes)
    spaces = [_Space(kernel, loop, number, schedule.split_k) for number in range(len(loop.op.results))]
    parts = _Parts(kernel, loop, spaces, schedule.split_k).kernel()
    written = _written_names(kernel)
    for op in parts.body.walk():
        for effect, value in op.definition.effects_of(op):
            if effect == "reads" and isinstance(value.type, ViewType) and root(value).name in written:
                name = root(value).name
                message = f"split_k = {schedule.split_k}: '{kernel.name}' writes '{name}', which its product reads"
                raise SourceError("TS511", message, op.loc)
    return [parts, _Sum(kernel, loop, spaces, schedule).kernel()]


def _loop(kernel: Kernel, count: int, sizes: Mapping[str, int]) -> SumLoop:
    if count < 1:
        raise SourceError("TS511", f"split_k is {count}, and there is at least one part", kernel.loc)
    found = sum_loops(kernel)
    if len(found) != 1:
        has = f"{len(found)} of them" if found else "none"
        raise SourceError(
            "TS511",
            f"split_k = {count} cuts a loop that sums a product, with the sum used only behind it; '{kernel.name}' has "
            f"{has}",
            kernel.loc,
        )
    (loop,) = found
    try:
        trips = evaluate(loop_progression(loop.op)[1].count, sizes)
    except KeyError:
        return loop  # only a launch knows
    if trips < count:
        times = f"{trips} iteration{'s' if trips != 1 else ''}"
        raise SourceError("TS511", f"split_k = {count}: the loop of '{kernel.name}' has {times}", loop.op.loc)
    return loop


def _written(op: Op) -> list[Value]:
    """The views that an op writes."""
    return [v for e, v in op.definition.effects_of(op) if e != "reads" and isinstance(v.type, ViewType)]


def _written_names(kernel: Kernel) -> set[str]:
    """The parameters that a kernel writes."""
    return {root(value).name for op in kernel.body.walk() for value in _written(op)}


def _grid(kernel: Kernel) -> tuple[Size, Size, Size]:
    first, second, third = (*kernel.attributes["grid"], 1, 1, 1)[:3]
    return first, second, third


class _Space:
    """The workspace of one accumulator of the loop."""

    def __init__(self, kernel: Kernel, loop: SumLoop, number: int, count: int):
        self.loop, self.number = loop, number
        self.tile = int_shape(loop.op.results[number].type)
        self.axes = range(len(kernel.attributes["grid"]))
        taken = {parameter.name for parameter in kernel.parameters}
        hint = "partials" if len(loop.op.results) == 1 else f"partials_{number}"
        while hint in taken:
            hint += "_"
        self.name = hint
        shape = (count, *kernel.attributes["grid"], *loop.trips, *self.tile)
        self.type = ViewType(shape, dtype_of(loop.op.results[number].type))

    def window(self, builder: Builder, workspace: Value, places: list[Value]) -> Value:
        """The tile of a part; `places`: its number, the grid indices of its program, iterations of the loops around."""
        zero = builder.value("constant", value=0, dtype=i64)
        ones, rank = (1,) * len(places), len(self.tile)
        return builder.value(
            "window",
            workspace,
            *places,
            *[zero] * rank,
            extents=(*ones, *self.tile),
            kept=(*[False] * len(places), *[True] * rank),
        )


class _Rewriter(ABC):
    """Copies a kernel, but for the loop. `mapping` holds the parameters, and the workspaces by name in `workspaces`."""

    def __init__(self, kernel: Kernel, loop: SumLoop, spaces: list[_Space]):
        self.old, self.loop, self.spaces = kernel, loop, spaces
        self.new, self.builder, self.mapping = new_kernel_like(kernel)
        self.workspaces = {space.name: self.new.body.add_argument(space.type, space.name) for space in spaces}
        self.scales = {
            op.attributes["axis"]: op.attributes["scale"] for op in kernel.body.walk() if op.name == "program_id"
        }

    def finished(self, suffix: str, role: str, schedule: Schedule) -> Kernel:
        """The new kernel; `role`: that of its workspaces. Both keep the signature that a call has."""
        new = canonicalise(self.new)
        new.name = f"{self.old.name}_{suffix}"
        written = _written_names(new)
        roles = [(name, given if name in written else "in") for name, given in self.old.attributes["parameters"]]
        new.attributes["parameters"] = (*roles, *((space.name, role) for space in self.spaces))
        new.attributes["workspaces"] = tuple(space.name for space in self.spaces)
        new.attributes["schedule"] = asdict(schedule)
        return new

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            builder.at(op)
            if op is self.loop.op:
                self.sum_loop(builder)
            elif op.regions:
                clone_with_regions(builder, op, self.mapping, self.block)
            else:
                self.op(op, builder)

    def op(self, op: Op, builder: Builder) -> None:
        clone_op(builder, op, self.mapping)

    @abstractmethod
    def sum_loop(self, builder: Builder) -> None:
        """Puts something in the place of the loop."""

    def places(self, builder: Builder) -> list[Value]:
        """Where the tiles of this program, in these iterations of the loops around, lie in a part of a workspace."""
        found = [self.grid_index(builder, axis) for axis in self.spaces[0].axes]
        for loop, indices in zip(self.loop.around, self.loop.ranges, strict=True):
            number = self.mapping[loop.regions[0].arguments[0]]
            if indices.start:
                number = builder.value("sub", number, _constant(builder, indices.start))
            found.append(_divided(builder, number, indices.step))
        return found

    def grid_index(self, builder: Builder, axis: int) -> Value:
        """The index of the program in the grid of the old kernel."""
        # The ids of one axis have one scale in a kernel.
        scale = self.scales.get(axis, 1)
        return _divided(builder, builder.value("program_id", axis=axis, scale=scale), scale)


class _Parts(_Rewriter):
    """Each program sums its part of the iterations."""

    def __init__(self, kernel: Kernel, loop: SumLoop, spaces: list[_Space], count: int):
        super().__init__(kernel, loop, spaces)
        self.count = count
        self.builder.at(loop.op)
        self.third = _grid(kernel)[PART_AXIS]
        number = self.builder.value("program_id", axis=PART_AXIS)
        counted = _constant(self.builder, count)
        if self.third == 1:
            self.part, self.index = number, _constant(self.builder, 0)
        else:
            self.part = self.builder.value("mod", number, counted)
            self.index = self.builder.value("floordiv", number, counted)

    def kernel(self) -> Kernel:
        self.block(self.old.body, self.builder)
        first, second, third = _grid(self.old)
        self.new.attributes["grid"] = (first, second, third * self.count)
        schedule = Schedule(**self.old.attributes["schedule"])
        return self.finished("parts", "out", schedule)

    def op(self, op: Op, builder: Builder) -> None:
        if _written(op) or op.definition.has(ORDERED) or op.definition.has(UNORDERED):
            return  # the sum does it
        if op.name == "program_id" and op.attributes["axis"] == PART_AXIS:
            scale = op.attributes["scale"]
            index = self.index if scale == 1 else builder.value("mul", self.index, _constant(builder, scale))
            self.mapping[op.result] = index
        elif op.name == "num_programs" and op.attributes["axis"] >= 1:
            self.mapping[op.result] = _size(builder, _grid(self.old)[op.attributes["axis"]])
        else:
            clone_op(builder, op, self.mapping)

    def grid_index(self, builder: Builder, axis: int) -> Value:
        return self.index if axis == PART_AXIS else super().grid_index(builder, axis)

    def sum_loop(self, builder: Builder) -> None:
        loop = self.loop.op
        lower, upper, step = (self.mapping[value] for value in loop.operands[:3])
        trips = builder.value("neg", builder.value("floordiv", builder.value("sub", lower, upper), step))
        trips = builder.value("max", trips, _constant(builder, 0))
        one = _constant(builder, 1)
        ends = [
            self._end(builder, lower, step, trips, part)
            for part in (self.part, builder.value("add", self.part, one))
        ]  # fmt: skip
        body = Block()
        for argument in loop.regions[0].arguments:
            self.mapping[argument] = body.add_argument(argument.type, argument.name)
        self.block(loop.regions[0], builder.inner(body))
        zero = builder.at(loop).value("constant", value=0.0)
        initial = [builder.value("full", zero, shape=s.tile, dtype=s.type.dtype) for s in self.spaces]
        names = [result.name for result in loop.results]
        new = builder.op(loop.name, [*ends, step, *initial], [body], names, **loop.attributes)
        places = [self.part, *self.places(builder)]
        for space, result in zip(self.spaces, new.results, strict=True):
            builder.op("store", [space.window(builder, self.workspaces[space.name], places), result])
        self.mapping.update(zip(loop.results, new.results, strict=True))  # what uses them is dropped

    def _end(self, builder: Builder, lower: Value, step: Value, trips: Value, part: Value) -> Value:
        """The index at which a part begins, and the one before it ends."""
        done = builder.value("floordiv", builder.value("mul", part, trips), _constant(builder, self.count))
        return builder.value("add", lower, builder.value("mul", done, step))


class _Sum(_Rewriter):
    """Adds the parts in ascending order, and does everything else that the kernel did."""

    def __init__(self, kernel: Kernel, loop: SumLoop, spaces: list[_Space], schedule: Schedule):
        super().__init__(kernel, loop, spaces)
        self.schedule = schedule

    def kernel(self) -> Kernel:
        self.block(self.old.body, self.builder)
        schedule = replace(self.schedule, split_k=1, group=0)
        moves = not any(op.name == "mma" for op in self.new.body.walk())
        if not moves or self.loop.around or schedule.subtile or schedule.streamed or schedule.rows:
            return self.finished("sum", "in", schedule)  # cut into programs and slices as it was
        schedule = _of_sum(self.spaces[0].tile, self.schedule.split_k)
        return distribute(subtile(self.finished("sum", "in", schedule), schedule))

    def sum_loop(self, builder: Builder) -> None:
        loop = self.loop.op
        places = self.places(builder)
        initial = loop.operands[3:]
        for space, first, result in zip(self.spaces, initial, loop.results, strict=True):
            total: Value | None = None
            for part in range(self.schedule.split_k):
                window = space.window(
                    builder, self.workspaces[space.name], [_constant(builder, part), *places]
                )  # fmt: skip
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


def _constant(builder: Builder, number: int) -> Value:
    return builder.value("constant", value=number, dtype=i64)


def _size(builder: Builder, size: Size) -> Value:
    return _constant(builder, size) if isinstance(size, int) else builder.value("size", size=size)


def _divided(builder: Builder, value: Value, by: int) -> Value:
    return value if by == 1 else builder.value("floordiv", value, _constant(builder, by))
