"""Load tiles into registers an iteration ahead, so that they arrive while a product is computed.

    for i:                                    tile = load(window(lower))
        tile = load(window(i))                for i:
        ... tile ...                    ->        ... tile ...
        a loop over the k-blocks                  next = load(window(min(i + step, last)))
                                                  a loop over the k-blocks

A load follows the last use of the tile that it takes the registers of. Exact: the same windows are read.
"""

from __future__ import annotations

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.core import uses as uses_of
from tessera.ir.opdef import COUNTED, LOOP
from tessera.ir.ops.control import constant_value, loop_range
from tessera.ir.types import TileType
from tessera.passes.ahead import Ahead
from tessera.target.reuse import written_tensors
from tessera.target.schedule import Schedule, root


def prefetch_loads(kernel: Kernel, schedule: Schedule) -> Kernel:
    if not schedule.prefetch:
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _Rewriter(kernel, mapping).block(kernel.body, builder)
    return new


class _Rewriter:
    def __init__(self, kernel: Kernel, mapping: Mapping):
        self.mapping = mapping
        self.used, self.written = uses_of(kernel.body), written_tensors(kernel)

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            self.op(op, builder.at(op))

    def op(self, op: Op, builder: Builder) -> None:
        loads = self.loads(op)
        if loads:
            self.loop(op, loads, builder)
        elif op.regions:
            clone_with_regions(builder, op, self.mapping, self.block)
        else:
            clone_op(builder, op, self.mapping)

    def loads(self, op: Op) -> dict[Op, int]:
        """The loads of a loop's body that can run ahead and have a loop behind their last use, by the place of that."""
        if not op.definition.has(COUNTED):
            return {}
        indices = loop_range(op.operands[:3])
        if indices is None or len(indices) < 2:
            return {}
        (body,) = op.regions
        ahead, found = Ahead(op, self.used, self.written), {}
        products = [place for place, inner in enumerate(body.ops) if inner.definition.has(LOOP) or inner.name == "mma"]
        for load in body.ops:
            if load.name != "load" or not isinstance(load.result.type, TileType):
                continue
            if root(load.operands[0]) in self.written or ahead.behind(load.operands[0]) is None:
                continue
            last = max((ahead.place.get(user.id, len(body.ops)) for user in self.used.get(load.result, ())), default=-1)
            if 0 <= last < max(products, default=0) and not body.ops[last].regions:
                found[load] = last
        return found

    def loop(self, loop: Op, loads: dict[Op, int], builder: Builder) -> None:
        (body,) = loop.regions
        ahead = Ahead(loop, self.used, self.written)
        bounds = [self.mapping[value] for value in loop.operands[:3]]
        first = [self.load(load, loop, ahead, builder, bounds[0]) for load in loads]
        copy = Block()
        for argument in body.arguments:
            self.mapping[argument] = copy.add_argument(argument.type, argument.name)
        for load, value in zip(loads, first, strict=True):
            self.mapping[load.result] = copy.add_argument(value.type, load.result.name)
        inner, after = builder.inner(copy), {}
        *ops, last = body.ops
        for place, op in enumerate(ops):
            if op not in loads:
                self.op(op, inner.at(op))
            for load, end in loads.items():
                if end == place:
                    after[load] = self.next(load, loop, ahead, inner, bounds)
        yielded = [*(self.mapping[value] for value in last.operands), *(after[load] for load in loads)]
        inner.at(last).op("yield", yielded)
        operands = [*bounds, *(self.mapping[value] for value in loop.operands[3:]), *first]
        names = [result.name for result in loop.results]
        new = builder.at(loop).op(loop.name, operands, [copy], names, **loop.attributes)
        self.mapping.update(zip(loop.results, new.results[: len(loop.results)], strict=True))

    def next(self, load: Op, loop: Op, ahead: Ahead, builder: Builder, bounds: list[Value]) -> Value:
        """The tile of the next iteration; where there is none, that of this one once more: a branch round the load
        would have to wait for it where the paths meet.
        """
        _, upper, step = bounds
        index = self.mapping[loop.regions[0].arguments[0]]
        following = builder.at(load).value("add", index, step)
        rising = (constant_value(loop.operand("step")) or 0) > 0
        runs = builder.value("lt" if rising else "gt", following, upper)
        return self.load(load, loop, ahead, builder, builder.value("where", runs, following, index))

    def load(self, load: Op, loop: Op, ahead: Ahead, builder: Builder, index: Value) -> Value:
        """The load of the iteration at `index`, and what its window is computed by."""
        local = {**self.mapping, loop.regions[0].arguments[0]: index}
        needed = {op.id for op in ahead.behind(load.operands[0]) or ()}
        for op in loop.regions[0].ops:
            if op.id in needed:
                clone_op(builder, op, local)
        return clone_op(builder, load, local).result
