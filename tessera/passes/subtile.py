"""Compute a large store in slices: a loop over sub-tiles of the stored tile, each computed from slices of its inputs.

Two reasons ask for it (both decided by the schedule): a tile that does not fit the registers, and a buffer that does
not fit shared memory and is *streamed*, that is, read from the tensor it copies, in K and N tiles, where a product
needs it. Exact: every element is computed by the same ops in the same order; a product's K loop keeps the order of its
k-blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tessera.dtypes import i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, new_kernel_like
from tessera.ir.opdef import ELEMENTWISE, REDUCTION, SCAN
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import Shape, TileType, dtype_of, int_shape, shape_of, shape_text
from tessera.target.schedule import REGISTER_TILE_LIMIT, Schedule, elements, plain_copies, root


@dataclass(frozen=True)
class Slice:
    """The part [start, start + extent) of one axis of a tile."""

    axis: int
    start: Value
    extent: int

    def of(self, shape: Shape) -> Shape:
        """The shape of this part of a tile of shape `shape`."""
        return tuple(self.extent if axis == self.axis else size for axis, size in enumerate(shape))


def subtile(kernel: Kernel, schedule: Schedule) -> Kernel:
    """Raises SourceError TS501 where a tile is too large and an op on the way to its store needs all of it at once."""
    if not schedule.subtile and not schedule.streamed:
        return kernel
    copies = {buffer: op for buffer, op in plain_copies(kernel).items() if buffer.name in schedule.streamed}
    new, builder, mapping = new_kernel_like(kernel)
    slicer = _Slicer(schedule, copies, mapping)
    made_at = {result: place for place, op in enumerate(kernel.body.ops) for result in op.results}
    last_use = {value: place for place, op in enumerate(kernel.body.ops) for value in _taken(op)}
    for place, op in enumerate(kernel.body.ops):
        slicer.keep(
            builder, op, [value for value, last in last_use.items() if made_at.get(value, place) < place < last]
        )
        if op.name == "store":
            slicer.store(builder, op)
        elif op.id in {copy.id for copy in copies.values()} or op.results and op.results[0] in copies:
            continue  # a streamed buffer and its copy are gone; a wait loses the token
        elif op.name == "wait":
            tokens = [mapping[token] for token in op.operands if token in mapping]
            if tokens:
                builder.at(op).op("wait", tokens)
        elif not (op.results and isinstance(op.results[0].type, TileType)) or op.regions:
            # Tiles are made again where a slice needs them; what is no store takes them whole.
            for value in _taken(op):
                if isinstance(value.type, TileType) and value not in mapping:
                    mapping[value] = slicer.complete(builder, value)
            clone_op(builder.at(op), op, mapping)
            for value in [value for value in mapping if isinstance(value.type, TileType)]:
                op_of = value.defining_op
                if op_of is not None and not op_of.regions and value not in slicer.kept:
                    del mapping[value]  # made again where the next use needs it
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
    """What a tile is read from, and whether only elementwise ops lie between. A value that a region made has none."""
    waiting, seen = [(value, True)], set()
    while waiting:
        item = waiting.pop()
        value, elementwise = item
        op = value.defining_op
        if item in seen or op is None or op.regions or not isinstance(value.type, TileType):
            continue
        seen.add(item)
        yield from ((source, elementwise) for effect, source in op.definition.effects_of(op) if effect == "reads")
        waiting += [(operand, elementwise and op.definition.has(ELEMENTWISE)) for operand in op.operands]


def _same_window(a: Value, b: Value) -> bool:
    first, second = a.defining_op, b.defining_op
    if a is b or first is None or second is None:
        return a is b
    return (first.name, first.operands, first.attributes) == (second.name, second.operands, second.attributes)


class _Slicer:
    """`kept`: tiles that are computed whole, because what they read changes before their last use."""

    def __init__(self, schedule: Schedule, streamed: dict[Value, Op], mapping: Mapping):
        self.schedule = schedule
        self.streamed = streamed
        self.mapping = mapping
        self.kept: set[Value] = set()

    def keep(self, builder: Builder, op: Op, later: list[Value]) -> None:
        """Computes the tiles for `later` that read what this op changes, before it does."""
        written = _written(op)
        if not written:
            return
        for value in later:
            if value not in self.mapping and any(root(source) in written for source, _ in _sources(value)):
                self.mapping[value] = self.complete(builder, value)
                self.kept.add(value)

    def store(self, builder: Builder, op: Op) -> None:
        """The store as a loop over sub-tiles and, where the extent does not divide, one store of the rest."""
        value = op.operand("value")
        shape = int_shape(value.type)
        axis = self._axis(op)
        if axis is None:
            values = [self.complete(builder, value) for value in op.operands[1:]]
            builder.at(op).op("store", [self.mapping[op.operand("view")], *values])
            return
        size, step = shape[axis], self.schedule.subtile
        if not step or size <= step:
            step = size
        builder.at(op)
        full = size // step * step
        if full > step:
            zero, bound, stride = (builder.value("constant", value=v, dtype=i64) for v in (0, full, step))
            body = Block()
            start = body.add_argument(zero.type, "start")
            inner = builder.inner(body)
            self._store_slice(inner, op, Slice(axis, start, step))
            inner.op("yield")
            builder.op("for", [zero, bound, stride], [body])
        elif full:
            self._store_slice(builder, op, Slice(axis, builder.value("constant", value=0, dtype=i64), step))
        if size > full:
            start = builder.at(op).value("constant", value=full, dtype=i64)
            self._store_slice(builder, op, Slice(axis, start, size - full))

    def complete(self, builder: Builder, value: Value) -> Value:
        """A whole tile of the old kernel, with what it is computed from."""
        if not isinstance(value.type, TileType) or value in self.mapping:
            return self.mapping[value]
        op = value.defining_op
        if op is None or self._is_streamed(value):
            zero = builder.value("constant", value=0, dtype=i64)
            return self.value(builder, value, Slice(0, zero, int_shape(value.type)[0]), {})
        operands = [self.complete(builder, operand) for operand in op.operands]
        return builder.at(op).value(op.name, *operands, hint=value.name, **op.attributes)

    def _axis(self, op: Op) -> int | None:
        """The last axis along which a store needs no whole tile: columns where possible, else rows.

        None where there is none but all of the tile fits the registers.
        """
        value = op.operand("value")
        axes = range(len(shape_of(value.type)))
        if not self._overtakes(op):
            for axis in reversed(axes):
                if not any(self._needs_whole(value, axis) for value in op.operands[1:]):
                    return axis
        if elements(value) <= REGISTER_TILE_LIMIT * 32 * self.schedule.warps:
            return None
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

    def _store_slice(self, builder: Builder, op: Op, part: Slice) -> None:
        done: dict[tuple[Value, Slice], Value] = {}
        values = [self.value(builder, value, part, done) for value in op.operands[1:]]
        view = self.window(builder.at(op), op.operand("view"), part)
        builder.at(op).op("store", [view, *values])

    def window(self, builder: Builder, view: Value, part: Slice) -> Value:
        shape = shape_of(view.type)
        zero = builder.value("constant", value=0, dtype=i64)
        offsets = [part.start if axis == part.axis else zero for axis in range(len(shape))]
        extents = part.of(shape)
        return builder.value(
            "window", self.mapping.get(view, view), *offsets, extents=extents, kept=(True,) * len(shape), hint=view.name
        )

    def value(self, builder: Builder, value: Value, part: Slice, done: dict[tuple[Value, Slice], Value]) -> Value:
        """The slice `part` of a tile of the old kernel, computed through `builder`."""
        if not isinstance(value.type, TileType):
            return self.mapping[value]
        if (value, part) not in done:
            op = value.defining_op
            if value in self.kept and part.of(shape_of(value.type)) == shape_of(value.type):
                return self.mapping[value]
            if op is None or op.regions or value in self.kept:
                why = "is used after what it reads has changed" if value in self.kept else "comes from a loop"
                raise SourceError(
                    "TS501",
                    f"the tile '{value.name}' {why} and is too large for the registers",
                    op.loc if op else None,
                )
            done[value, part] = self._slice(builder, op, part, done)
        return done[value, part]

    def _slice(self, builder: Builder, op: Op, part: Slice, done: dict[tuple[Value, Slice], Value]) -> Value:
        if op.name == "mma":
            return self._product(builder, op, part, done)
        if op.name == "load":
            view = self.window(builder.at(op), op.operands[0], part)
            return builder.value("load", view, hint=op.result.name)
        if op.name == "read":
            return self._read(builder.at(op), op, part)
        shape = shape_of(op.result.type)
        sliced = part.of(shape)
        if op.name == "transpose":
            other = Slice(_exchanged(part.axis, len(shape)), part.start, part.extent)
            source = self.value(builder, op.operands[0], other, done)
            return builder.at(op).value("transpose", source, hint=op.result.name)
        if op.name == "iota" and op.attributes["axis"] % len(shape) == part.axis:
            return self._iota(builder.at(op), op, part)
        if op.name == "extract":
            return self._extract(builder.at(op), op, part, done)
        if op.name == "reshape":
            source, inner = op.operands[0], _axis_before(op, part.axis)
            if inner is None:
                cut = Slice(0, self._zero(builder, done), int_shape(source.type)[0])
            else:
                cut = Slice(inner, part.start, part.extent)
            return builder.at(op).value(
                "reshape",
                self.value(builder, source, cut, done),
                hint=op.result.name,
                **{**op.attributes, "shape": sliced},
            )
        operands = []
        for operand in op.operands:
            spread = isinstance(operand.type, TileType) and operand.type.shape[part.axis] == 1 != shape[part.axis]
            if spread:
                operands.append(
                    self.value(builder, operand, Slice(part.axis, self._zero(builder.at(op), done), 1), done)
                )
            else:
                operands.append(self.value(builder, operand, part, done))
        changed = {"shape": sliced} if "shape" in op.attributes else {}
        return builder.at(op).value(op.name, *operands, hint=op.result.name, **{**op.attributes, **changed})

    def _zero(self, builder: Builder, done: dict[tuple[Value, Slice], Value]) -> Value:
        """One zero for all slices of a store: equal slices are told by their start."""
        for _, part in done:
            op = part.start.defining_op
            if op is not None and op.name == "constant" and op.attributes["value"] == 0:
                return part.start
        return builder.value("constant", value=0, dtype=i64)

    def _extract(self, builder: Builder, op: Op, part: Slice, done: dict[tuple[Value, Slice], Value]) -> Value:
        """The slice of a part is a slice of the tile that it is taken from, and along the other axes a part of that."""
        starts = list(op.attributes["starts"])
        offset = builder.value("constant", value=starts[part.axis], dtype=i64)
        start = builder.value("add", part.start, offset)
        source = self.value(builder, op.operands[0], Slice(part.axis, start, part.extent), done)
        starts[part.axis], extents = 0, part.of(shape_of(op.result.type))
        if extents == shape_of(source.type):
            return source
        return builder.at(op).value("extract", source, starts=tuple(starts), extents=extents, hint=op.result.name)

    def _iota(self, builder: Builder, op: Op, part: Slice) -> Value:
        """Indices counted from the start of the slice, and the start added."""
        shape = part.of(shape_of(op.result.type))
        index = builder.value("iota", shape=shape, axis=op.attributes["axis"], dtype=i64)
        moved = builder.value("add", index, part.start)
        return builder.value("cast", moved, dtype=op.attributes["dtype"], hint=op.result.name)

    def _read(self, builder: Builder, op: Op, part: Slice) -> Value:
        """A slice of a resident buffer, or of the tensor that a streamed buffer copies."""
        buffer = op.operands[0]
        if buffer in self.streamed:
            return builder.value(
                "load", self.window(builder, self.streamed[buffer].operand("view"), part), hint=op.result.name
            )
        zero = builder.value("constant", value=0, dtype=i64)
        old = [self.mapping[value] for value in op.operands[1:]] or [zero] * len(shape_of(buffer.type))
        offsets = [builder.value("add", o, part.start) if axis == part.axis else o for axis, o in enumerate(old)]
        extents = part.of(shape_of(op.result.type))
        return builder.value("read", self.mapping[buffer], *offsets, extents=extents, hint=op.result.name)

    def _product(self, builder: Builder, op: Op, part: Slice, done: dict[tuple[Value, Slice], Value]) -> Value:
        """Rows of a product need the rows of a, columns the columns of b; K is a loop when an operand is streamed."""
        a, b = op.operands[:2]
        flipped = (op.attributes["transpose_a"], op.attributes["transpose_b"])
        side = 0 if part.axis == 0 else 1
        operand_axis = part.axis if not flipped[side] else 1 - part.axis
        start = self._start(builder, op, part, done)
        k_axes = (0 if flipped[0] else 1, 1 if flipped[1] else 0)
        depth = int_shape(a.type)[k_axes[0]]
        step = self.schedule.block_k if self._is_streamed(a) or self._is_streamed(b) else depth

        def block(inner: Builder, k: Value, extent: int, acc: Value) -> Value:
            operands = []
            for index, operand in enumerate((a, b)):
                cuts = [Slice(k_axes[index], k, extent)] if extent != depth else []
                if index == side:
                    cuts.append(Slice(operand_axis, part.start, part.extent))
                operands.append(self._cut(inner, operand, cuts))
            return inner.at(op).value("mma", *operands, acc, hint=op.result.name, **op.attributes)

        if step >= depth:
            return block(builder, start, depth, start)
        full = depth // step * step
        zero, bound, stride = (builder.value("constant", value=v, dtype=i64) for v in (0, full, step))
        body = Block()
        k, carried = body.add_argument(zero.type, "k"), body.add_argument(start.type, op.result.name)
        inner = builder.inner(body)
        inner.at(op).op("yield", [block(inner, k, step, carried)])
        result = builder.at(op).op("for", [zero, bound, stride, start], [body], [op.result.name]).result
        if depth > full:
            result = block(builder, builder.value("constant", value=full, dtype=i64), depth - full, result)
        return result

    def _start(self, builder: Builder, op: Op, part: Slice, done: dict[tuple[Value, Slice], Value]) -> Value:
        if len(op.operands) > 2:
            return self.value(builder, op.operands[2], part, done)
        shape, dtype = part.of(shape_of(op.result.type)), dtype_of(op.result.type)
        zero = builder.at(op).value("constant", value=0.0, dtype=dtype)
        return builder.value("full", zero, shape=shape, dtype=dtype, hint=op.result.name)

    def _is_streamed(self, value: Value) -> bool:
        op = value.defining_op
        return op is not None and op.name == "read" and op.operands[0] in self.streamed

    def _cut(self, builder: Builder, operand: Value, cuts: list[Slice]) -> Value:
        """An operand of a product cut along up to two axes: loads and reads take both cuts, other ops one."""
        op = operand.defining_op
        if op is None or op.name not in ("load", "read") or not cuts:
            if len(cuts) > 1:
                raise SourceError(
                    "TS501", f"the product's operand '{operand.name}' is computed and too large", op.loc if op else None
                )
            if cuts:
                return self.value(builder, operand, cuts[0], {})
            return self.complete(builder, operand)
        streamed = op.name == "read" and op.operands[0] in self.streamed
        if op.name == "load" or streamed:
            view = self.streamed[op.operands[0]].operand("view") if streamed else op.operands[0]
            for cut in cuts:
                view = self.window(builder.at(op), view, cut)
            return builder.value("load", view, hint=operand.name)
        zero = builder.at(op).value("constant", value=0, dtype=i64)
        offsets = [self.mapping[v] for v in op.operands[1:]] or [zero, zero]
        extents = list(shape_of(operand.type))
        for cut in cuts:
            offsets[cut.axis] = builder.value("add", offsets[cut.axis], cut.start)
            extents[cut.axis] = cut.extent
        return builder.value("read", self.mapping[op.operands[0]], *offsets, extents=tuple(extents), hint=operand.name)

    def _needs_whole(self, value: Value, axis: int) -> bool:
        """Whether a slice along `axis` needs more than that slice of something: a reduction or a scan along it, or a
        reshape.
        """
        op = value.defining_op
        if not isinstance(value.type, TileType):
            return False
        if value in self.kept:
            return value.type.shape[axis] != 1
        if op is None or op.regions:
            return True
        if op.name == "reshape":
            source = op.operands[0]
            if value.type.shape[axis] == 1:
                return _reduces(source)  # nothing is cut, but a reduction would be computed again in every slice
            inner = _axis_before(op, axis)
            return inner is None or self._needs_whole(source, inner)
        if op.name == "transpose":
            return self._needs_whole(op.operands[0], _exchanged(axis, len(value.type.shape)))
        if op.name == "mma":
            side = op.operands[0 if axis == 0 else 1]
            flipped = op.attributes["transpose_a" if axis == 0 else "transpose_b"]
            return self._needs_whole(side, 1 - axis if flipped else axis) or any(
                self._needs_whole(v, axis) for v in op.operands[2:]
            )
        along = op.definition.has(REDUCTION) or op.definition.has(SCAN)
        if along and negative_axis(op, len(value.type.shape)) + len(value.type.shape) == axis:
            return True
        if along or op.definition.has(ELEMENTWISE) or op.name in ("broadcast", "extract"):
            return any(self._needs_whole(v, axis) for v in op.operands)
        return False


def _axis_before(op: Op, axis: int) -> int | None:
    """The axis of a reshape's operand that is `axis` of its result, where only axes of size 1 come or go; else None."""
    before, after = int_shape(op.operands[0].type), int_shape(op.result.type)
    if after[axis] == 1 or [s for s in before if s != 1] != [s for s in after if s != 1]:
        return None
    count = sum(size != 1 for size in after[:axis])
    return [place for place, size in enumerate(before) if size != 1][count]


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
