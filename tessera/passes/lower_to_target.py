"""Tile IR to Target IR for the sm_80 lane: every tile gets registers, every buffer a place, every access a width.

Products become a loop over k-blocks of fragment loads and matrix instructions; copies become cp.async groups; a store
whose register layout would make narrow accesses goes through shared memory. Exact. Barriers and placement follow in
later passes.
"""

from __future__ import annotations

from tessera.dtypes import DType, i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, new_kernel_like, uses
from tessera.ir.layout import RegisterLayout, row_reduction, shared_layout
from tessera.ir.types import BufferType, TileType, dtype_of, int_shape, shape_text, tile_layout
from tessera.passes.access import access_bytes, divisor_of, loops_of
from tessera.passes.assign_layouts import Layouts, assign_layouts, coalesced, reshaped, sliced
from tessera.target.schedule import Schedule, elements

MMA_LIMIT = 128  # mma.sync in one straight-line region: ptxas time explodes beyond
STAGED_STORE = 32 * 32  # elements from which a narrow store is worth a trip through shared memory


def lower_to_target(kernel: Kernel, schedule: Schedule) -> Kernel:
    """Raises SourceError TS102 for a tile op that this lane does not have yet."""
    layouts = assign_layouts(kernel, schedule)
    new, builder, mapping = new_kernel_like(kernel)
    new.attributes["warps"] = schedule.warps
    lowering = _Lowering(kernel, layouts, schedule, mapping)
    lowering.block(kernel.body, builder)
    return new


class _Lowering:
    def __init__(self, kernel: Kernel, layouts: Layouts, schedule: Schedule, mapping: Mapping):
        self.kernel, self.layouts, self.schedule, self.mapping = kernel, layouts, schedule, mapping
        self.loops = loops_of(kernel)
        self.used = uses(kernel.body)
        self.open: list[Value] = []  # tokens of copies in no group yet
        self.groups: list[tuple[set[Value], Value]] = []  # committed groups in order: Tile tokens, Target token

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            builder.at(op)
            rule = getattr(self, "_" + op.name, None)
            if rule is not None:
                rule(op, builder)
            elif op.regions:
                self._region_op(op, builder)
            elif any(isinstance(r.type, TileType) for r in op.results):
                self._tile_op(op, builder)
            else:
                clone_op(builder, op, self.mapping)

    def _region_op(self, op: Op, builder: Builder) -> None:
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

    def operands(self, op: Op) -> list[Value]:
        return [self.mapping[value] for value in op.operands]

    def define(self, old: Value, new: Value, builder: Builder) -> None:
        """Records the Target value of a Tile value, moved into the layout that its group has."""
        wanted = self.layouts.tile.get(old)
        self.mapping[old] = new if wanted is None else self.convert(builder, new, wanted)

    def _tile_op(self, op: Op, builder: Builder) -> None:
        attributes = dict(op.attributes)
        if "layout" in attributes:
            attributes["layout"] = self.layouts.tile[op.result]
        value = builder.value(op.name, *self.operands(op), hint=op.result.name, **attributes)
        self.define(op.result, value, builder)

    def convert(self, builder: Builder, value: Value, layout: RegisterLayout) -> Value:
        """The same tile in another register layout, through shared memory."""
        old = tile_layout(value.type)
        if old == layout:
            return value
        shape, dtype = int_shape(value.type), dtype_of(value.type)
        buffer = self.scratch(builder, shape, dtype, value.name)
        zeros = self.zeros(builder, len(shape))
        builder.op("st_shared", [buffer, value, *zeros], vector=self.shared_vector(old, dtype, zeros))
        return builder.value(
            "ld_shared",
            buffer,
            *zeros,
            shape=shape,
            layout=layout,
            hint=value.name,
            vector=self.shared_vector(layout, dtype, zeros),
        )

    def scratch(self, builder: Builder, shape: tuple[int, ...], dtype: DType, hint: str) -> Value:
        *rows, columns = shape
        if len(rows) > 1:
            raise SourceError("TS102", f"a tile of {len(shape)} axes cannot change its layout yet", builder.origin[0])
        layout = shared_layout(rows[0] if rows else 1, columns, dtype.bytes)
        return builder.value("shared", shape=shape, dtype=dtype, layout=layout, hint=f"{hint or 'tile'}_scratch")

    def zeros(self, builder: Builder, count: int) -> list[Value]:
        return [builder.value("constant", value=0, dtype=i64)] * count

    def shared_vector(self, layout: RegisterLayout, dtype: DType, offsets: list[Value]) -> int:
        """Bytes of one shared-memory access: consecutive registers, at most 16 bytes, aligned by the column offset."""
        column = divisor_of(offsets[-1], self.kernel.attributes.get("divisors", {}), self.loops)
        axis = len(layout.shape) - 1
        return min(layout.contiguous(axis, 16 // dtype.bytes), column) * dtype.bytes

    # memory -----------------------------------------------------------------------------------------------------------

    def _load(self, op: Op, builder: Builder) -> None:
        view = self.mapping[op.operands[0]]
        if not isinstance(op.result.type, TileType):
            self.mapping[op.result] = builder.value("ld_global", view, hint=op.result.name)
            return
        layout = self.layouts.tile[op.result]
        self.mapping[op.result] = builder.value(
            "ld_global",
            view,
            layout=layout,
            hint=op.result.name,
            vector=self.global_vector(op.operands[0], layout, op.result.type.dtype),
        )

    def global_vector(self, view: Value, layout: RegisterLayout, dtype: DType) -> int:
        wide = access_bytes(view, self.kernel, self.loops)
        return layout.contiguous(len(layout.shape) - 1, wide // dtype.bytes) * dtype.bytes

    def _store(self, op: Op, builder: Builder) -> None:
        view, value = op.operands
        new = self.mapping[value]
        dtype = dtype_of(view.type)
        vector = self.global_vector(view, tile_layout(new.type), dtype)
        wide = coalesced(value, self.schedule, dtype.bytes)
        best = self.global_vector(view, wide, dtype)
        if vector < best and len(int_shape(new.type)) == 2 and elements(new) >= STAGED_STORE:
            if dtype_of(new.type) != dtype:
                new = builder.value("cast", new, dtype=dtype, hint=new.name)  # the store's own rounding, done earlier
            new, vector = self.convert(builder, new, wide), best
        builder.op("st_global", [self.mapping[view], new], vector=vector)

    def _alloc_shared(self, op: Op, builder: Builder) -> None:
        type_ = op.result.type
        assert isinstance(type_, BufferType)
        self.mapping[op.result] = builder.value(
            "shared", shape=type_.shape, dtype=type_.dtype, hint=op.result.name, layout=self.layouts.buffer[op.result]
        )

    def _copy_async(self, op: Op, builder: Builder) -> None:
        buffer, view = op.operands
        if self.open and self._waits(self.open[-1]) != self._waits(op.result):
            self._commit(builder)
        self.mapping[op.result] = builder.value(
            "cp_async",
            self.mapping[buffer],
            self.mapping[view],
            vector=access_bytes(view, self.kernel, self.loops),
            bypass_l1=op.attributes["bypass_l1"],
        )
        self.open.append(op.result)

    def _waits(self, token: Value) -> tuple[int, ...]:
        return tuple(op.id for op in self.used.get(token, ()))

    def _commit(self, builder: Builder) -> None:
        group = builder.value("async_commit", *(self.mapping[token] for token in self.open))
        self.groups.append((set(self.open), group))
        self.open.clear()

    def _wait(self, op: Op, builder: Builder) -> None:
        """Waits until the youngest group that holds one of the tokens has landed; younger groups may stay in flight."""
        tokens = set(op.operands)
        if tokens & set(self.open):
            self._commit(builder)
        youngest = max(index for index, (members, _) in enumerate(self.groups) if members & tokens)
        done = [group for _, group in self.groups[: youngest + 1]]
        pending = len(self.groups) - youngest - 1
        self.groups = self.groups[youngest + 1 :]
        builder.op("async_wait", done, pending=pending)

    def _read(self, op: Op, builder: Builder) -> None:
        if all(user.name == "mma" and op.result in user.operands[:2] for user in self.used.get(op.result, ())):
            return  # the product loads its fragments itself
        type_ = op.result.type
        assert isinstance(type_, TileType)
        offsets = [self.mapping[v] for v in op.operands[1:]] or self.zeros(builder, len(type_.shape))
        layout = self.layouts.tile[op.result]
        old = op.operands[1:] or offsets
        self.mapping[op.result] = builder.value(
            "ld_shared",
            self.mapping[op.operands[0]],
            *offsets,
            shape=type_.shape,
            layout=layout,
            vector=self.shared_vector(layout, type_.dtype, list(old)),
            hint=op.result.name,
        )

    def _write(self, op: Op, builder: Builder) -> None:
        buffer, value = op.operands[:2]
        new = self.mapping[value]
        offsets = [self.mapping[v] for v in op.operands[2:]] or self.zeros(builder, len(int_shape(new.type)))
        old = op.operands[2:] or offsets
        builder.op(
            "st_shared",
            [self.mapping[buffer], new, *offsets],
            vector=self.shared_vector(tile_layout(new.type), dtype_of(buffer.type), list(old)),
        )

    # tiles ------------------------------------------------------------------------------------------------------------

    def _broadcast(self, op: Op, builder: Builder) -> None:
        layout = self.layouts.tile[op.result]
        source = op.operands[0]
        wanted = sliced(layout, int_shape(op.result.type), int_shape(source.type))
        small = self.convert(builder, self.mapping[source], wanted)
        self.mapping[op.result] = builder.value(
            "broadcast", small, shape=op.attributes["shape"], layout=layout, hint=op.result.name
        )

    def _reduce_sum(self, op: Op, builder: Builder) -> None:
        source, axis = self.mapping[op.operands[0]], op.attributes["axis"]
        layout = tile_layout(source.type)
        rank = len(layout.shape)
        if any(name == "warp" for name, _ in layout.axis_bits(axis % rank)):
            inside = row_reduction(int_shape(source.type), self.schedule.warps, axis % rank, 1)
            source = self.convert(builder, source, inside)
        value = builder.value(op.name, source, axis=axis, hint=op.result.name)
        self.define(op.result, value, builder)

    _reduce_max = _reduce_min = _reduce_sum

    def _reshape(self, op: Op, builder: Builder) -> None:
        source = self.mapping[op.operands[0]]
        shapes = int_shape(op.operands[0].type), int_shape(op.result.type)
        layout = reshaped(tile_layout(source.type), *shapes)
        if layout is None:
            raise SourceError(
                "TS102",
                f"a reshape of {shape_text(shapes[0])} to {shape_text(shapes[1])} moves elements between "
                "threads, which has no lowering yet; only axes of size 1 can be added or dropped",
                op.loc,
            )
        value = builder.value("reshape", source, shape=shapes[1], layout=layout, hint=op.result.name)
        self.define(op.result, value, builder)

    def _transpose(self, op: Op, builder: Builder) -> None:
        raise SourceError(
            "TS102", "a transpose outside a product has no lowering yet; use transpose_a or transpose_b of mma", op.loc
        )

    def _mma(self, op: Op, builder: Builder) -> None:
        """A rolled loop over k-blocks: load the fragments of a and b, multiply, accumulate."""
        a_layout, b_layout, acc_layout = self.layouts.product[op.id]
        m, n = int_shape(op.result.type)
        flip_a, flip_b = op.attributes["transpose_a"], op.attributes["transpose_b"]
        depth = int_shape(op.operands[0].type)[0 if flip_a else 1]
        on_tensor_cores = dtype_of(op.operands[0].type).bits == 16
        k_block = 16 if on_tensor_cores else 8
        load, multiply = ("ldmatrix", "mma_sync") if on_tensor_cores else ("ld_operand", "fma_block")
        if len(op.operands) > 2:
            start = self.convert(builder, self.mapping[op.operands[2]], acc_layout)
        else:
            dtype = dtype_of(op.result.type)
            zero = builder.value("constant", value=0.0, dtype=dtype)
            start = builder.value("full", zero, shape=(m, n), dtype=dtype, layout=acc_layout)
        sources = [self._operand_source(builder, value) for value in op.operands[:2]]

        def step(inner: Builder, k: Value, acc: Value) -> Value:
            loaded = []
            for role, (buffer, offsets), layout, flip, shape in (
                ("a", sources[0], a_layout, flip_a, (m, k_block)),
                ("b", sources[1], b_layout, flip_b, (k_block, n)),
            ):
                k_axis = (1 if role == "a" else 0) ^ flip
                at = [inner.value("add", o, k) if axis == k_axis else o for axis, o in enumerate(offsets)]
                loaded.append(
                    inner.value(load, buffer, *at, shape=shape, layout=layout, role=role, transposed=flip, hint=role)
                )
            return inner.value(multiply, *loaded, acc, hint=op.result.name or "acc")

        blocks = -(-depth // k_block)
        zero, bound, stride = (builder.value("constant", value=v, dtype=i64) for v in (0, blocks * k_block, k_block))
        body = Block()
        k, acc = body.add_argument(zero.type, "k"), body.add_argument(start.type, op.result.name or "acc")
        inner = builder.inner(body)
        inner.op("yield", [step(inner, k, acc)])
        # One k-block's instructions: fragments of 8 (a) and 4 (b) registers; a true-f32 block is 8 FMA per accumulator.
        cost = (
            (a_layout.registers_per_thread // 8) * (b_layout.registers_per_thread // 4)
            if on_tensor_cores
            else (acc_layout.registers_per_thread // 4)
        )
        unroll = max(d for d in range(1, blocks + 1) if blocks % d == 0 and (d == 1 or d * cost <= MMA_LIMIT))
        loop = builder.op("for", [zero, bound, stride, start], [body], [op.result.name], unroll=unroll)
        self.define(op.result, loop.result, builder)

    def _operand_source(self, builder: Builder, value: Value) -> tuple[Value, list[Value]]:
        read = value.defining_op
        assert read is not None and read.name == "read", "stage_operands ran before"
        return self.mapping[read.operands[0]], [self.mapping[v] for v in read.operands[1:]] or self.zeros(builder, 2)
