"""Put the operands of matrix products into buffers: matrix instructions read shared memory.

A loaded operand becomes an asynchronous copy into a buffer, waited for before its first use; a computed one is written
to a buffer, unless the product can take it from the registers that it is computed in (`register_operands`). An operand
that is read from a buffer stays where it is, unless the buffer changes between the read and the product, or the
product's k-blocks would read what lies beside it. Exact: values only move.
"""

from __future__ import annotations

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, new_kernel_like, uses
from tessera.ir.opdef import ELEMENTWISE, LOOP
from tessera.ir.ops.tiles import k_block
from tessera.ir.programs import persistent_loop, program_body
from tessera.ir.types import BufferType, TileType, int_shape, shape_of
from tessera.passes.register_operands import may_stay_in_registers
from tessera.passes.slice_operands import may_be_sliced, sliced_product
from tessera.passes.warpgroup import by_warpgroups
from tessera.target.schedule import Schedule, elements, schedule_of
from tessera.target.tensor_maps import why_not

MOVES = ("reshape", "transpose", "broadcast")  # ops that leave elements in their threads, or repeat them there
LEAST_COPY = 2048  # bytes of a tile from which a copy by tensor map pays


def stage_operands(kernel: Kernel) -> Kernel:
    new, builder, mapping = new_kernel_like(kernel)
    stager = _Stager(kernel, schedule_of(kernel))
    stager.block(kernel.body, builder, mapping)
    program_body(new).ops[:0] = stager.allocations
    return new


class _Stager:
    def __init__(self, kernel: Kernel, schedule: Schedule):
        self.kernel, self.schedule = kernel, schedule
        self.used, self.persistent = uses(kernel.body), persistent_loop(kernel)
        self.loops = {region: op for op in kernel.body.walk() for region in op.regions}
        self.copied: set[int] = set()  # loads that became copies
        self.allocations: list[Op] = []
        self.staged: dict[tuple[Value, Block], Value] = {}  # buffers of what was computed, by the block that wrote them

    def block(self, block: Block, builder: Builder, mapping: Mapping, in_loop: bool = False) -> None:
        pending: list[tuple[Value, Value, Value]] = []  # loaded value, its buffer, token
        for op in block.ops:
            if self.schedule.copies == "tma":
                used = [p for p in pending if p[0] in op.operands]
                ends = op.regions or op is block.ops[-1]
                alone = [[p] for p in pending if ends and p not in used]
                for group in ([used] if used else []) + alone:  # what one op takes arrives together
                    self._land(builder.at(op), group, mapping)
                pending = [p for p in pending if p[0] not in mapping]
            elif pending and (
                op.regions or any(value is p[0] for p in pending for value in op.operands) or op is block.ops[-1]
            ):
                self._land(builder.at(op), pending, mapping)
            builder.at(op)
            if op.name == "load" and (
                self._feeds_product(op.results[0])
                or in_loop
                and self._leads_to_product(op.results[0], block)
                or self.schedule.copies == "tma"
                and self._is_worth_a_map(op)
            ):
                self.copied.add(op.id)
                buffer = self._allocate(builder, op, op.result)
                view, stages = mapping.get(op.operands[0], op.operands[0]), op.attributes["stages"]
                token = builder.value("copy_async", buffer, view, bypass_l1=True, stages=stages)
                pending.append((op.result, buffer, token))
            elif op.regions:
                self._regions(op, builder, mapping)
            elif op.name == "mma":
                self._product(block, op, builder, mapping)
            else:
                clone_op(builder, op, mapping)

    def _regions(self, op: Op, builder: Builder, mapping: Mapping) -> None:
        regions = []
        for region in op.regions:
            copy = Block()
            for argument in region.arguments:
                mapping[argument] = copy.add_argument(argument.type, argument.name)
            # Copies of a persistent loop do not fly ahead of it.
            self.block(region, builder.inner(copy), mapping, op.definition.has(LOOP) and op is not self.persistent)
            regions.append(copy)
        new = builder.op(
            op.name, [mapping.get(v, v) for v in op.operands], regions, [r.name for r in op.results], **op.attributes
        )
        mapping.update(zip(op.results, new.results, strict=True))

    def _land(self, builder: Builder, pending: list[tuple[Value, Value, Value]], mapping: Mapping) -> None:
        builder.op("wait", [token for _, _, token in pending])
        for value, buffer, _ in pending:
            mapping[value] = builder.value("read", buffer, hint=value.name)
        pending.clear()

    def _feeds_product(self, value: Value) -> bool:
        return any(op.name == "mma" and value in op.operands[:2] for op in self.used.get(value, ()))

    def _is_worth_a_map(self, load: Op) -> bool:
        """Whether a large tile is loaded that a tensor map can bring."""
        type_ = load.results[0].type
        if not isinstance(type_, TileType) or elements(load.result) * type_.dtype.bytes < LEAST_COPY:
            return False
        return why_not(load.operands[0], BufferType(type_.shape, type_.dtype), self.kernel, load=True) is None

    def _leads_to_product(self, value: Value, block: Block) -> bool:
        """Whether an operand of a product, or what it is added to, is computed from a loaded tile, in this block and
        element by element.

        In a loop such a load is worth a copy, too: copies of later iterations fly while a product is computed.
        """
        if not isinstance(value.type, TileType):
            return False
        for op in self.used.get(value, ()):
            if op not in block.ops:
                continue
            if op.name == "mma":
                return True
            passes = op.definition.has(ELEMENTWISE) or op.name in MOVES
            if passes and self._leads_to_product(op.result, block):
                return True
        return False

    def _allocate(self, builder: Builder, op: Op, value: Value) -> Value:
        """A buffer at the top of the program for a tile of `value`'s type."""
        type_ = value.type
        assert isinstance(type_, TileType)
        top = Builder(Block(), builder.origin)
        buffer = top.value(
            "alloc_shared",
            shape=type_.shape,
            dtype=type_.dtype,
            swizzle="xor",
            hint=value.name or f"operand_{len(self.allocations)}",
        )
        self.allocations += top.block.ops
        return buffer

    def _product(self, block: Block, op: Op, builder: Builder, mapping: Mapping) -> None:
        source = op.operands[0].defining_op
        computed = source is not None and source.name not in ("load", "read")
        if computed and may_be_sliced(op, mapping) and not by_warpgroups(op, self.schedule):
            right = self._operand(block, op, 1, builder, mapping)
            mapping[op.result] = sliced_product(op, right, builder, mapping, self.schedule.warps)
            return
        operands = [self._operand(block, op, index, builder, mapping) for index in range(2)]
        operands += [mapping.get(value, value) for value in op.operands[2:]]
        mapping[op.result] = builder.value("mma", *operands, hint=op.result.name, **op.attributes)

    def _operand(self, block: Block, op: Op, index: int, builder: Builder, mapping: Mapping) -> Value:
        """An operand of the new product: read from a buffer, or computed in registers."""
        value = op.operands[index]
        source = value.defining_op
        loaded = source is not None and source.name == "load"
        if loaded or _reads_stable_buffer(block, value, op) and self._reads_zeros_beyond(value, op, index):
            return mapping.get(value, value)
        computed = source is not None and source.name != "read"
        if index == 0 and computed and may_stay_in_registers(op, self.schedule, self._is_copied, self.used, self.loops):
            return mapping.get(value, value)
        if (value, block) not in self.staged:
            self.staged[value, block] = self._allocate(builder, op, value)
            _write_early(builder, self.staged[value, block], mapping.get(value, value))
        return builder.value("read", self.staged[value, block], hint=value.name)

    def _is_copied(self, load: Op) -> bool:
        return load.id in self.copied

    def _reads_zeros_beyond(self, value: Value, op: Op, index: int) -> bool:
        """Whether the k-blocks of a product that read past the end of `value` find zeros in its buffer: there are none,
        or the end is that of the buffer, and whole writes have filled what follows.
        """
        read = value.defining_op
        assert read is not None
        buffer, extents = read.operands[0], int_shape(value.type)
        if any(_writes_part(user, buffer) for user in self.used.get(buffer, ())):
            return False
        k_axis = (1 if index == 0 else 0) ^ op.attributes["transpose_a" if index == 0 else "transpose_b"]
        if extents[k_axis] % k_block(op) == 0 or len(read.operands) == 1:
            return True
        start = read.operands[1 + k_axis].defining_op
        if start is None or start.name != "constant":
            return False
        return start.attributes["value"] + extents[k_axis] == int_shape(buffer.type)[k_axis]


def _write_early(builder: Builder, buffer: Value, value: Value) -> None:
    """Writes a fresh buffer as soon as the value is there: what several products take is then written before the first
    of them, and one barrier serves all.
    """
    ops, source = builder.block.ops, value.defining_op
    place = ops.index(source) + 1 if source is not None and source in ops else len(ops)
    behind = ops[place:]
    del ops[place:]
    builder.op("write", [buffer, value])
    ops.extend(behind)


def _writes_part(op: Op, buffer: Value) -> bool:
    return op.name == "write" and op.operands[0] is buffer and shape_of(op.operands[1].type) != shape_of(buffer.type)


def _reads_stable_buffer(block: Block, value: Value, user: Op) -> bool:
    """Whether `value` is read from a buffer, in this block, and nothing writes the buffer before `user`."""
    read = value.defining_op
    if read is None or read.name != "read" or read not in block.ops:
        return False
    buffer = read.operands[0]
    between = block.ops[block.ops.index(read) + 1 : block.ops.index(user)]
    return not any(
        effect != "reads" and reference is buffer
        for op in between
        for inner in (op, *(o for region in op.regions for o in region.walk()))
        for effect, reference in inner.definition.effects_of(inner)
    )
