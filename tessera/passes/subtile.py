"""Compute a large store in slices: a loop over sub-tiles of the stored tile, each computed from slices of its inputs.

Two reasons ask for it (both decided by the schedule): a tile that does not fit the registers, and a buffer that does
not fit shared memory and is *streamed*, that is, read from the tensor it copies, in K and N tiles, where a product
needs it. Exact: every element is computed by the same ops in the same order; a product's K loop keeps the order of its
k-blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.dtypes import i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, new_kernel_like
from tessera.ir.opdef import ELEMENTWISE
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import Shape, TileType, dtype_of, int_shape, shape_of, shape_text
from tessera.target.schedule import Schedule, plain_copies


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
    for op in kernel.body.ops:
        if op.name == "store":
            slicer.store(builder, op)
        elif op.id in {copy.id for copy in copies.values()} or op.results and op.results[0] in copies:
            continue  # a streamed buffer and its copy are gone; a wait loses the token
        elif op.name == "wait":
            tokens = [mapping[token] for token in op.operands if token in mapping]
            if tokens:
                builder.at(op).op("wait", tokens)
        elif not (op.results and isinstance(op.results[0].type, TileType)) or op.regions:
            clone_op(builder, op, mapping)  # tiles are made again where a slice needs them
    return new


class _Slicer:
    def __init__(self, schedule: Schedule, streamed: dict[Value, Op], mapping: Mapping):
        self.schedule = schedule
        self.streamed = streamed
        self.mapping = mapping

    def store(self, builder: Builder, op: Op) -> None:
        """The store as a loop over sub-tiles and, where the extent does not divide, one store of the rest."""
        value = op.operand("value")
        shape = int_shape(value.type)
        axis = self._axis(value, len(shape))
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

    def _axis(self, value: Value, rank: int) -> int:
        """The last axis along which no op needs the whole tile: columns where possible, else rows."""
        for axis in reversed(range(rank)):
            if not _needs_whole(value, axis):
                return axis
        op = value.defining_op
        raise SourceError(
            "TS501",
            f"the tile {shape_text(shape_of(value.type))} is too large for the registers and cannot be "
            "computed in parts: an op needs all of it",
            op.loc if op else None,
        )

    def _store_slice(self, builder: Builder, op: Op, part: Slice) -> None:
        value = self.value(builder, op.operand("value"), part, {})
        view = self.window(builder.at(op), op.operand("view"), part)
        builder.at(op).op("store", [view, value])

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
            if op is None or op.regions:
                raise SourceError(
                    "TS501",
                    f"the tile '{value.name}' comes from a loop and is too large for the registers",
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
        operands = []
        for operand in op.operands:
            spread = isinstance(operand.type, TileType) and operand.type.shape[part.axis] == 1 != shape[part.axis]
            if spread:
                zero = builder.at(op).value("constant", value=0, dtype=i64)
                operands.append(self.value(builder, operand, Slice(part.axis, zero, 1), done))
            else:
                operands.append(self.value(builder, operand, part, done))
        changed = {"shape": sliced} if "shape" in op.attributes else {}
        return builder.at(op).value(op.name, *operands, hint=op.result.name, **{**op.attributes, **changed})

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
            return self._whole(builder, operand)
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

    def _whole(self, builder: Builder, operand: Value) -> Value:
        zero = builder.value("constant", value=0, dtype=i64)
        return self.value(builder, operand, Slice(0, zero, int_shape(operand.type)[0]), {})


def _needs_whole(value: Value, axis: int) -> bool:
    """Whether a slice along `axis` needs more than that slice of something (a reduction along it, a reshape)."""
    op = value.defining_op
    if not isinstance(value.type, TileType):
        return False
    if op is None or op.regions or op.name in ("reshape", "transpose"):
        return True
    if op.name == "mma":
        side = op.operands[0 if axis == 0 else 1]
        flipped = op.attributes["transpose_a" if axis == 0 else "transpose_b"]
        return _needs_whole(side, 1 - axis if flipped else axis) or any(_needs_whole(v, axis) for v in op.operands[2:])
    if op.name.startswith("reduce_") and negative_axis(op, len(value.type.shape)) + len(value.type.shape) == axis:
        return True
    if op.definition.has(ELEMENTWISE) or op.name.startswith("reduce_"):
        return any(_needs_whole(v, axis) for v in op.operands)
    if op.name == "broadcast":
        source = op.operands[0]
        return shape_of(source.type)[axis] != 1 and _needs_whole(source, axis)
    return False
