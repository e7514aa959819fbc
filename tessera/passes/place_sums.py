"""Keep a sum that a loop carries round a product in shared memory, so that the product has the registers.

    sum = init                                write buffer, init
    for i carrying sum:                ->     for i:
        acc = product                             acc = product
        yield sum + f(acc)                        write buffer, read buffer + f(acc)
                                              sum = read buffer

The sum is touched once an iteration, the accumulators of the product at every k-block. Exact.
"""

from __future__ import annotations

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.core import uses as uses_of
from tessera.ir.opdef import COUNTED
from tessera.ir.ops.control import carried_values
from tessera.ir.programs import program_body
from tessera.ir.types import TileType, dtype_of, int_shape
from tessera.target.schedule import Schedule, elements

SMALLEST = 32 * 32  # elements of a sum that is worth it: 8 registers of a thread of four warps


def place_sums(kernel: Kernel, schedule: Schedule) -> Kernel:
    if schedule.sums != "shared":
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    rewriter = _Rewriter(kernel, mapping)
    rewriter.block(kernel.body, builder)
    program_body(new).ops[:0] = rewriter.allocations
    return new


class _Rewriter:
    def __init__(self, kernel: Kernel, mapping: Mapping):
        self.mapping = mapping
        self.used = uses_of(kernel.body)
        self.allocations: list[Op] = []

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            builder.at(op)
            sums = self.sums(op)
            if sums:
                self.loop(op, sums, builder)
            elif op.regions:
                clone_with_regions(builder, op, self.mapping, self.block)
            else:
                clone_op(builder, op, self.mapping)

    def sums(self, op: Op) -> list[int]:
        """The numbers of the carried tiles that only ops beside the product use."""
        if not op.definition.has(COUNTED) or not _has_product(op):
            return []
        found = []
        for number, (_, argument, final, _) in enumerate(carried_values(op)):
            tile = isinstance(argument.type, TileType) and elements(argument) >= SMALLEST
            users = self.used.get(argument, [])
            beside = all(not user.regions and user.name not in ("mma", "yield") for user in users)
            if tile and users and beside and final is not argument:
                found.append(number)
        return found

    def loop(self, loop: Op, sums: list[int], builder: Builder) -> None:
        (body,) = loop.regions
        count = len(loop.results)
        kept = [number for number in range(count) if number not in sums]
        initial = [self.mapping[value] for value in loop.operands[3:]]
        buffers = {number: self.allocate(builder, loop.results[number]) for number in sums}
        for number, buffer in buffers.items():
            builder.at(loop).op("write", [buffer, initial[number]])
        copy = Block()
        arguments = body.arguments
        self.mapping[arguments[0]] = copy.add_argument(arguments[0].type, arguments[0].name)
        for number in kept:
            argument = arguments[1 + number]
            self.mapping[argument] = copy.add_argument(argument.type, argument.name)
        inner = builder.inner(copy)
        *ops, last = body.ops
        waiting = {arguments[1 + number]: buffer for number, buffer in buffers.items()}
        for op in ops:
            for value in [value for value in op.operands if value in waiting]:
                self.mapping[value] = inner.at(op).value("read", waiting.pop(value), hint=value.name)
            self.block(_only(op), inner)
        for number, buffer in buffers.items():
            inner.at(last).op("write", [buffer, self.mapping[last.operands[number]]])
        inner.at(last).op("yield", [self.mapping[last.operands[number]] for number in kept])
        bounds = [self.mapping[value] for value in loop.operands[:3]]
        names = [loop.results[number].name for number in kept]
        operands = [*bounds, *(initial[number] for number in kept)]
        new = builder.at(loop).op(loop.name, operands, [copy], names, **loop.attributes)
        for number, result in zip(kept, new.results, strict=True):
            self.mapping[loop.results[number]] = result
        for number, buffer in buffers.items():
            result = loop.results[number]
            self.mapping[result] = builder.at(loop).value("read", buffer, hint=result.name)

    def allocate(self, builder: Builder, value: Value) -> Value:
        top = Builder(Block(), builder.origin)
        shape, dtype = int_shape(value.type), dtype_of(value.type)
        buffer = top.value("alloc_shared", shape=shape, dtype=dtype, swizzle="xor", hint=value.name or "sum")
        self.allocations += top.block.ops
        return buffer


def _only(op: Op) -> Block:
    block = Block()
    block.ops.append(op)
    return block


def _has_product(op: Op) -> bool:
    return any(inner.name == "mma" for region in op.regions for inner in region.walk())
