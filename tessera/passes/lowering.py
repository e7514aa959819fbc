"""What lowering a kernel to Target IR needs: the mapping of values, layout changes, and a rule per op that is special.

An op without a rule keeps its name: a tile op gets the layout of its group, any other is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tessera.dtypes import DType, i64
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, uses
from tessera.ir.dims import Size
from tessera.ir.layout import RegisterLayout, shared_layout
from tessera.ir.opdef import TERMINATOR
from tessera.ir.ops.control import constant_value
from tessera.ir.ops.target import physical_shape
from tessera.ir.products import FP8
from tessera.ir.stages import allocation
from tessera.ir.types import BufferType, TileType, dtype_of, int_shape, tile_layout
from tessera.passes.access import access_bytes, divisor_of, loops_of
from tessera.passes.assign_layouts import Layouts
from tessera.passes.stored_parts import StoredParts
from tessera.passes.warpgroup import by_warpgroups
from tessera.target.fragments import LDMATRIX_ROW_BYTES, matrices_at_once
from tessera.target.schedule import Schedule

Rule = Callable[["Lowering", Op, Builder], None]
_RULES: dict[str, Rule] = {}
_OF_COPIES = ("copy_async", "async_commit", "wait")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the function lowers the Tile ops of these names."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def ring_buffers(kernel: Kernel) -> dict[Value, frozenset[Value]]:
    """By ring, the buffers that are copied to."""
    found: dict[Value, frozenset[Value]] = {}
    for op in kernel.body.walk():
        if op.name == "tma_load":
            ring = op.operand("ring")
            found[ring] = found.get(ring, frozenset()) | {allocation(op.operands[0])}
    return found


class Lowering:
    """`stmatrix`: whether the architecture has that instruction."""

    def __init__(self, kernel: Kernel, layouts: Layouts, schedule: Schedule, mapping: Mapping, stmatrix: bool):
        self.kernel, self.layouts, self.schedule, self.mapping = kernel, layouts, schedule, mapping
        self.stmatrix = stmatrix
        self.loops = loops_of(kernel)
        self.used = uses(kernel.body)
        self.open: list[Value] = []  # tokens of copies in no group yet
        self.allocations: list[Op] = []  # buffers that stand in front of everything
        self.turns: dict[tuple[BufferType, int, int], Value] = {}  # those in which stores of a role take turns
        self.flying: list[Value] = []  # sums of products by warpgroups that nobody has waited for
        self.batches: list[Op] = []  # those products
        self.slots = ring_buffers(kernel)
        self.parts: dict[Value, StoredParts] = {}  # of buffers that are several in the place of one

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            builder.at(op)
            if self.flying:
                self.land(builder, self._awaited(op))
            special = _RULES.get(op.name)
            if special is not None:
                special(self, op, builder)
            elif op.regions:
                self.region_op(op, builder)
            elif any(isinstance(r.type, TileType) for r in op.results):
                self.tile_op(op, builder)
            else:
                clone_op(builder, op, self.mapping)

    def start(self, product: Op) -> None:
        """Notes that the sums of a product are in flight."""
        self.flying.append(product.result)
        self.batches.append(product)

    def land(self, builder: Builder, count: int) -> None:
        """Waits for the `count` oldest sums in flight; from here on their values are complete."""
        landed, self.flying = self.flying[:count], self.flying[count:]
        for sums in landed:
            pending = len(self.flying)
            done = builder.value("wgmma_wait", self.mapping[sums], hint=sums.name, pending=pending)
            self.define(sums, done, builder)
            del self.batches[: self._place(sums) + 1]

    def _awaited(self, op: Op) -> int:
        """How many of the oldest products in flight an op waits for: those whose sums it uses, unless it adds to them,
        those that read what it changes, or a slot that it releases, and all before these; everything where it copies,
        begins a region or ends one.
        """
        if op.regions or op.definition.has(TERMINATOR) or op.name in _OF_COPIES:
            return len(self.flying)
        # Sums of parts are added to others by ordinary additions.
        adds_in_place = op.name == "mma" and op.attributes["precision"] != FP8 and by_warpgroups(op, self.schedule)
        adds = op.operands[2:] if adds_in_place else []
        changed = {
            allocation(value)
            for effect, value in op.definition.effects_of(op)
            if effect != "reads" and isinstance(value.type, BufferType)
        }
        if op.name == "ring_release":
            changed |= self.slots.get(op.operands[0], frozenset())
        used = [place + 1 for place, sums in enumerate(self.flying) if sums in op.operands and sums not in adds]
        count = max([*used, self._readers(changed)])
        if adds and adds[0] in self.flying[count:]:
            self.flying.remove(adds[0])  # the new sums stand for these
        return count

    def _readers(self, buffers: set[Value]) -> int:
        """How many of the oldest products include all that read one of `buffers`; what a product was given in registers
        it has.
        """
        last = -1
        for place, product in enumerate(self.batches):
            reads = [value.defining_op for value in product.operands[:2]]
            if any(read and read.name == "read" and allocation(read.operands[0]) in buffers for read in reads):
                last = place
        started = [self._place(sums) for sums in self.flying]
        return next((count for count, place in enumerate(started, 1) if place >= last), 0) if last >= 0 else 0

    def _place(self, sums: Value) -> int:
        return next(place for place, product in enumerate(self.batches) if product.result is sums)

    def region_op(self, op: Op, builder: Builder) -> None:
        if self.open and any(inner.name in _OF_COPIES for region in op.regions for inner in region.walk()):
            self.close_group(builder)  # a commit inside would take the open copies in where it runs
        regions = []
        for region in op.regions:
            copy = Block()
            for argument in region.arguments:
                type_ = argument.type
                if isinstance(type_, TileType):
                    type_ = TileType(type_.shape, type_.dtype, self.layouts.tile[argument])
                self.mapping[argument] = copy.add_argument(type_, argument.name)
            self.block(region, builder.inner(copy))
            regions.append(copy)
        new = builder.at(op).op(op.name, self.operands(op), regions, [r.name for r in op.results], **op.attributes)
        self.mapping.update(zip(op.results, new.results, strict=True))

    def close_group(self, builder: Builder) -> None:
        """Commits the copies that are in no group yet; from here on their tokens mean the group."""
        group = builder.value("async_commit", *(self.mapping[token] for token in self.open))
        self.mapping.update(dict.fromkeys(self.open, group))
        self.open.clear()

    def operands(self, op: Op) -> list[Value]:
        return [self.mapping[value] for value in op.operands]

    def define(self, old: Value, new: Value, builder: Builder) -> None:
        """Records the Target value of a Tile value, moved into the layout that its group has."""
        wanted = self.layouts.tile.get(old)
        self.mapping[old] = new if wanted is None else self.convert(builder, new, wanted)

    def tile_op(self, op: Op, builder: Builder) -> None:
        attributes = dict(op.attributes)
        if "layout" in attributes:
            attributes["layout"] = self.layouts.tile[op.result]
        value = builder.value(op.name, *self.operands(op), hint=op.result.name, **attributes)
        self.define(op.result, value, builder)

    def convert(self, builder: Builder, value: Value, layout: RegisterLayout) -> Value:
        """The same tile in another register layout, through shared memory."""
        if tile_layout(value.type) == layout:
            return value
        shape = int_shape(value.type)
        return self.through_shared(builder, value, layout, self.zeros(builder, len(shape)), shape)

    def through_shared(
        self, builder: Builder, value: Value, layout: RegisterLayout, starts: list[Value], extents: tuple[int, ...]
    ) -> Value:
        """The part of a tile of `extents` at `starts`, in `layout`."""
        shape, dtype = int_shape(value.type), dtype_of(value.type)
        buffer = self.scratch(builder, shape, dtype, value.name)
        zeros = self.zeros(builder, len(shape))
        if not self.store_matrices(builder, buffer, value, zeros, zeros):
            vector = self.shared_vector(tile_layout(value.type), dtype, zeros)
            builder.op("st_shared", [buffer, value, *zeros], vector=vector)
        return builder.value(
            "ld_shared",
            buffer,
            *starts,
            shape=extents,
            layout=layout,
            hint=value.name,
            vector=self.shared_vector(layout, dtype, starts),
        )

    def scratch(self, builder: Builder, shape: tuple[int, ...], dtype: DType, hint: str) -> Value:
        *rows, columns = shape
        layout = shared_layout(math.prod(rows), columns, dtype.bytes)
        return builder.value("shared", shape=shape, dtype=dtype, layout=layout, hint=f"{hint or 'tile'}_scratch")

    def zeros(self, builder: Builder, count: int) -> list[Value]:
        return [builder.value("constant", value=0, dtype=i64)] * count

    def shared_vector(self, layout: RegisterLayout, dtype: DType, offsets: list[Value]) -> int:
        """Bytes of one shared-memory access: consecutive registers, at most 16 bytes, aligned by the column offset."""
        column = divisor_of(offsets[-1], self.kernel.attributes.get("divisors", {}), self.loops)
        axis = len(layout.shape) - 1
        return min(layout.contiguous(axis, 16 // dtype.bytes), column) * dtype.bytes

    def holds_matrices(
        self, buffer: Value, layout: RegisterLayout, offsets: list[Value], shape: tuple[Size, ...]
    ) -> bool:
        """Whether matrices of 16-bit elements, 8 x 8, move between a window and registers of `layout`: it is one of
        such matrices, their rows are aligned, and none lies beyond the buffer, where nothing masks it.
        """
        assert isinstance(buffer.type, BufferType)
        dtype = buffer.type.dtype
        if dtype.bits != 16 or not (matrices_at_once(layout) or matrices_at_once(layout, across=True)):
            return False
        column = divisor_of(offsets[-1], self.kernel.attributes.get("divisors", {}), self.loops)
        if column * dtype.bytes < LDMATRIX_ROW_BYTES:
            return False
        for offset, size, covered, limit in zip(offsets, shape, layout.shape, physical_shape(buffer.type), strict=True):
            start = constant_value(offset)
            if covered != size and (start is None or start + covered > limit):
                return False
        return True

    def store_matrices(
        self, builder: Builder, buffer: Value, value: Value, offsets: list[Value], old: list[Value]
    ) -> bool:
        """Stores a tile by stmatrix, and tells whether it could: nothing is rounded, nothing is padded, no two warps
        have the same. `old` are the offsets as the kernel has them.
        """
        assert isinstance(buffer.type, BufferType)
        layout, shape = tile_layout(value.type), int_shape(value.type)
        alike = any(not any(vector) for vector in layout.block.group("warp"))
        whole = shape == int_shape(buffer.type)
        padded = layout.shape != shape or (whole and physical_shape(buffer.type) != shape)
        if not self.stmatrix or alike or padded or dtype_of(value.type) != dtype_of(buffer.type):
            return False
        if not self.holds_matrices(buffer, layout, old, shape):
            return False
        builder.op("st_matrices", [buffer, value, *offsets])
        return True

    def global_vector(self, view: Value, layout: RegisterLayout, dtype: DType) -> int:
        wide = access_bytes(view, self.kernel, self.loops)
        return layout.contiguous(len(layout.shape) - 1, wide // dtype.bytes) * dtype.bytes
