"""Compute a large store in slices: loops over sub-tiles of the stored tile, each computed from slices of its inputs.

Three reasons ask for it (all decided by the schedule): a tile that does not fit the registers, a buffer that does not
fit shared memory and is *streamed*, that is, read from the tensor it copies, in K and N tiles, where a product needs
it, and rows that are computed a few at a time (`rows`), which a later pass gives to programs of their own. Exact: every
element is computed by the same ops in the same order; a product's K loop keeps the order of its k-blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

from tessera.dtypes import i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, new_kernel_like
from tessera.ir.opdef import BRANCH, COUNTED, ELEMENTWISE, LOOP, PURE, REDUCTION, SCAN, TERMINATOR
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import TileType, ViewType, int_shape, shape_of, shape_text
from tessera.passes.padding import reaches_beyond
from tessera.passes.reshapes import axis_groups
from tessera.passes.resident import placed_operands
from tessera.passes.slicing import Cut, Part, Scope, Slicer, TooLarge
from tessera.target.schedule import REGISTER_TILE_LIMIT, Schedule, elements, plain_copies, root


def subtile(kernel: Kernel, schedule: Schedule) -> Kernel:
    """Raises SourceError TS501 where a tile is too large and an op on the way to its store needs all of it at once."""
    if not schedule.subtile and not schedule.streamed and not schedule.rows:
        return kernel
    copies = {buffer: op for buffer, op in plain_copies(kernel).items() if buffer.name in schedule.streamed}
    new, builder, mapping = new_kernel_like(kernel)
    driver = _Driver(schedule, copies, placed_operands(kernel, copies, schedule.resident), mapping)
    made_at = {result: place for place, op in enumerate(kernel.body.ops) for result in op.results}
    last_use = {value: place for place, op in enumerate(kernel.body.ops) for value in _taken(op)}
    for place, op in enumerate(kernel.body.ops):
        driver.keep(
            builder, op, [value for value, last in last_use.items() if made_at.get(value, place) < place < last]
        )
        if op.name == "store":
            driver.store(builder, op)
        elif op.id in {copy.id for copy in copies.values()} or op.results and op.results[0] in copies:
            continue  # a streamed buffer and its copy are gone; a wait loses the token
        elif op.name == "wait":
            tokens = [mapping[token] for token in op.operands if token in mapping]
            if tokens:
                builder.at(op).op("wait", tokens)
        elif op.regions and driver.in_parts(op):
            continue  # made again, in parts, where a store needs it
        elif not (op.results and isinstance(op.results[0].type, TileType)) or op.regions:
            # Tiles are made again where a slice needs them; what is no store takes them whole.
            inside = driver.take(builder, op)
            clone_op(builder.at(op), op, mapping)
            for value in inside:
                del mapping[value]  # made again where the next use needs it
    new.body.ops[:0] = driver.slicer.allocations
    return new


def _taken(op: Op) -> list[Value]:
    """What an op and the regions inside it use."""
    inside = [value for region in op.regions for inner in region.walk() for value in inner.operands]
    made = {result for region in op.regions for inner in region.walk() for result in inner.results}
    made |= {argument for block in _blocks(op) for argument in block.arguments}
    return [value for value in dict.fromkeys([*op.operands, *inside]) if value not in made]


def _blocks(op: Op) -> list[Block]:
    inner = [block for region in op.regions for other in region.walk() for block in other.regions]
    return [*op.regions, *inner]


def _written(op: Op) -> set[Value]:
    """The buffers and tensors that an op and the regions inside it change."""
    inner = [op, *(other for region in op.regions for other in region.walk())]
    return {root(ref) for each in inner for effect, ref in each.definition.effects_of(each) if effect != "reads"}


def _sources(value: Value) -> Iterator[tuple[Value, bool]]:
    """What a tile is read from, and whether only elementwise ops lie between."""
    waiting, seen = [(value, True)], set()
    while waiting:
        item = waiting.pop()
        value, elementwise = item
        op = value.defining_op
        if item in seen or op is None or not isinstance(value.type, TileType):
            continue
        seen.add(item)
        if op.regions:
            inner = [other for region in op.regions for other in region.walk()]
            yield from ((s, False) for o in inner for effect, s in o.definition.effects_of(o) if effect == "reads")
            waiting += [(v, False) for v in _taken(op)]
            continue
        yield from ((source, elementwise) for effect, source in op.definition.effects_of(op) if effect == "reads")
        waiting += [(operand, elementwise and op.definition.has(ELEMENTWISE)) for operand in op.operands]


def _same_window(a: Value, b: Value) -> bool:
    first, second = a.defining_op, b.defining_op
    if a is b or first is None or second is None:
        return a is b
    return (first.name, first.operands, first.attributes) == (second.name, second.operands, second.attributes)


def _in_parts(op: Op) -> bool:
    """Whether a region op can be computed again, in parts: loops with a count and branches that only read."""
    if not (op.definition.has(LOOP) and op.definition.has(COUNTED) or op.definition.has(BRANCH)):
        return False
    for inner in (other for region in op.regions for other in region.walk()):
        if inner.regions:
            if not _in_parts(inner):
                return False
            continue
        effects = inner.definition.effects_of(inner)
        only_reads = bool(effects) and all(e == "reads" and isinstance(v.type, ViewType) for e, v in effects)
        if not (only_reads or inner.definition.has(PURE) or inner.definition.has(TERMINATOR)):
            return False
    return any(isinstance(result.type, TileType) for result in op.results)


class _Driver:
    """Walks over the stores. `mapping` holds, of the tiles, those that are computed whole because what they read
    changes before their last use, and results of regions that were copied.
    """

    def __init__(self, schedule: Schedule, streamed: dict[Value, Op], placed: dict[Value, int], mapping: Mapping):
        self.schedule = schedule
        self.mapping = mapping
        self.limit = REGISTER_TILE_LIMIT * 32 * schedule.warps
        self.slicer = Slicer(mapping, streamed, schedule.block_k, placed)

    def in_parts(self, op: Op) -> bool:
        """Whether a region op waits until a store asks for parts of it: it can, and its tiles are too large or cut."""
        tiles = [result for result in op.results if isinstance(result.type, TileType)]
        inside = [r for region in op.regions for o in region.walk() for r in o.results if isinstance(r.type, TileType)]
        large = any(elements(tile) > self.limit for tile in (*tiles, *inside))
        return _in_parts(op) and (large or bool(self.schedule.rows))

    def keep(self, builder: Builder, op: Op, later: list[Value]) -> None:
        """Computes the tiles for `later` that read what this op changes, before it does."""
        written = _written(op)
        if not written:
            return
        for value in later:
            if value not in self.mapping and any(root(source) in written for source, _ in _sources(value)):
                self.mapping[value] = self.complete(builder, value)

    def take(self, builder: Builder, op: Op) -> list[Value]:
        """Puts the tiles that an op uses into the mapping, whole; those that were not there before."""
        added, scope = [], Scope(builder)
        for value in _taken(op):
            if value in self.mapping or not isinstance(value.type, TileType):
                if value not in self.mapping:  # a scalar of a region that is computed in parts
                    self.mapping[value] = self._guarded(self.slicer.scalar, scope, value)
                continue
            added.append(value)
        for value in added:
            made = self._guarded(self.slicer.whole, scope, value)
            scope.tiles[value, (None,) * len(shape_of(value.type))] = made
        for value in added:
            self.mapping[value] = scope.tiles[value, (None,) * len(shape_of(value.type))]
        return added

    def complete(self, builder: Builder, value: Value) -> Value:
        return self._guarded(self.slicer.whole, Scope(builder), value)

    def _guarded(self, make, *arguments):  # type: ignore[no-untyped-def]
        try:
            return make(*arguments)
        except TooLarge as reason:
            op = reason.value.defining_op
            name = f"'{reason.value.name}' " if reason.value.name else ""
            message = f"the tile {name}{shape_text(shape_of(reason.value.type))} {reason.why}"
            raise SourceError(
                "TS501", f"{message} and is too large for the registers", op.loc if op else None
            ) from None  # fmt: skip

    def store(self, builder: Builder, op: Op) -> None:
        """The store as a nest of loops over sub-tiles. Where an extent does not divide, the last one reaches beyond the
        tile; where it cannot, what is left comes after.
        """
        steps = self._steps(op)
        scope = Scope(builder.at(op))
        self._nest(scope, op, steps, {})

    def _nest(self, scope: Scope, op: Op, steps: list[tuple[int, int]], cuts: dict[int, Cut]) -> None:
        builder = scope.builder.at(op)
        if not steps:
            shape = shape_of(op.operand("value").type)
            part: Part = tuple(cuts.get(axis) for axis in range(len(shape)))
            values = [self._guarded(self.slicer.part, scope, value, part) for value in op.operands[1:]]
            view = self.slicer.window(scope, self.slicer.scalar(scope, op.operand("view")), part)
            builder.at(op).op("store", [view, *values])
            return
        (axis, step), *others = steps
        size = int_shape(op.operand("value").type)[axis]
        full = size // step * step
        beyond = 0 < full < size and self._reaches_beyond(op, axis)
        if beyond:
            full = size
        if full > step:
            bounds = [builder.value("constant", value=value, dtype=i64) for value in (0, full, step)]
            body = Block()
            start = body.add_argument(bounds[0].type, "start")
            inner = scope.inner(body)
            inner.program = bool(self.schedule.rows) and not self._walked(op, axis)
            self._nest(inner, op, others, {**cuts, axis: Cut(start, step, inner.depth, beyond=beyond)})
            inner.builder.op("yield")
            builder.op("for", bounds, [body], parallel=inner.program)
        elif full:
            self._nest(scope, op, others, {**cuts, axis: Cut(scope.at_zero(), step, scope.depth)})
        if size > full:
            start = builder.at(op).value("constant", value=full, dtype=i64)
            self._nest(scope, op, others, {**cuts, axis: Cut(start, size - full, scope.depth)})

    def _walked(self, op: Op, axis: int) -> bool:
        """Whether a program runs all slices of a store along an axis itself."""
        from_last = axis - len(int_shape(op.operand("value").type))
        return {"columns": -1, "rows": -2}.get(self.schedule.walk) == from_last

    def _steps(self, op: Op) -> list[tuple[int, int]]:
        """The axes of a store that are cut, outermost first, and their steps.

        With `rows`, the axes before the last take few rows at a time (leading ones a single index). Of the other axes
        the last one that can be cut takes `subtile`: columns where possible, else rows. None are cut where something
        needs all of them and all of the tile fits the registers.
        """
        value = op.operand("value")
        shape = int_shape(value.type)
        free = [] if self._overtakes(op) else [a for a in range(len(shape)) if not self._needs_whole(op, a)]
        steps = []
        if self.schedule.rows:
            for axis in free[: len(free)]:
                step = self.schedule.rows if axis == len(shape) - 2 else 1
                if axis < len(shape) - 1 and shape[axis] > step:
                    steps.append((axis, step))
        taken = {axis for axis, _ in steps}
        left = [axis for axis in free if axis not in taken and (axis == len(shape) - 1 or not self.schedule.rows)]
        if left:
            step = self.schedule.subtile
            steps.append((left[-1], step if 0 < step < shape[left[-1]] else shape[left[-1]]))
        if steps or elements(value) <= self.limit:
            return steps
        raise SourceError(
            "TS501",
            f"the tile {shape_text(shape_of(value.type))} is too large for the registers and cannot be "
            "computed in parts: an op needs all of it",
            value.defining_op.loc if value.defining_op else None,
        )

    def _overtakes(self, op: Op) -> bool:
        """Whether the first slices of a store would change what later ones still have to read."""
        view = op.operand("view")
        return any(
            root(source) is root(view) and not (elementwise and _same_window(source, view))
            for value in op.operands[1:]
            for source, elementwise in _sources(value)
        )

    def _reaches_beyond(self, op: Op, axis: int) -> bool:
        return not self.slicer.placed and all(
            reaches_beyond(value, axis, self.mapping, self.slicer.streamed, set()) for value in op.operands[1:]
        )

    def _needs_whole(self, op: Op, axis: int) -> bool:
        return any(needs_whole(value, axis, self.mapping, set()) for value in op.operands[1:])


def needs_whole(value: Value, axis: int, there: Mapping, seen: set[tuple[Value, int]]) -> bool:
    """Whether a slice along `axis` needs more than that slice of something, or would repeat work in every slice: a
    reduction or a scan along it, a reshape of it, a tile that is there already.
    """
    if not isinstance(value.type, TileType) or (value, axis) in seen:
        return False
    seen.add((value, axis))
    op, rank = value.defining_op, len(value.type.shape)
    if value in there:
        return value.type.shape[axis] != 1
    if op is None:
        return False  # carried by a loop that is asked about already
    if op.name in ("for", "if") and _in_parts(op):
        finals = [region.ops[-1].operands[value.index] for region in op.regions]
        initial = [op.operands[3 + value.index]] if op.name == "for" else []
        return any(needs_whole(v, axis, there, seen) for v in (*finals, *initial))
    if op.regions:
        return True
    if op.name == "reshape":
        return _reshape_needs_whole(op, axis, there, seen)
    if op.name == "transpose":
        return needs_whole(op.operands[0], _exchanged(axis, rank), there, seen)
    if op.name == "mma":
        if rank != 2:
            return True
        flipped = op.attributes["transpose_a" if axis == 0 else "transpose_b"]
        side = needs_whole(op.operands[0 if axis == 0 else 1], 1 - axis if flipped else axis, there, seen)
        return side or any(needs_whole(v, axis, there, seen) for v in op.operands[2:])
    along = op.definition.has(REDUCTION) or op.definition.has(SCAN)
    if along and negative_axis(op, rank) + rank == axis:
        return True
    if along or op.definition.has(ELEMENTWISE) or op.name in ("broadcast", "extract"):
        return any(needs_whole(v, axis, there, seen) for v in op.operands)
    return False


def _reshape_needs_whole(op: Op, axis: int, there: Mapping, seen: set[tuple[Value, int]]) -> bool:
    source, after = op.operands[0], int_shape(op.result.type)
    if after[axis] == 1:
        return _reduces(source)  # nothing is cut, but a reduction would be computed again in every slice
    olds, news = next(group for group in axis_groups(int_shape(source.type), after) if axis in group[1])
    if len(olds) > 1 and len(news) > 1:
        return True
    # Where axes merge, they are cut apart again behind the reshape; rows of rows that lie together stay rows.
    return any(needs_whole(source, old, there, seen) for old in olds)


def _reduces(value: Value) -> bool:
    """Whether a reduction, a scan or a product lies behind a tile."""
    op = value.defining_op
    if not isinstance(value.type, TileType):
        return False
    if op is None or op.regions or op.name == "mma" or op.definition.has(REDUCTION) or op.definition.has(SCAN):
        return True
    return any(_reduces(operand) for operand in op.operands)


def _exchanged(axis: int, rank: int) -> int:
    """The axis that a transpose of the last two axes puts at `axis`."""
    return {rank - 1: rank - 2, rank - 2: rank - 1}.get(axis, axis)
