"""Cut wide tiles into panels of columns that are loaded, computed and stored one after the other.

A panel is as wide as a row of a swizzled buffer. A product takes its left operand panel by panel, each with the rows of
the right operand that meet it, so that it starts when the first ones have arrived; its sums stay whole, and what is
computed from them is panels of columns again. A panel is made where it is first needed, once: what a product and what
comes after it want of an operand is the same registers.

Exact: a product adds its k-blocks in the same order. A kernel stays as it is where a wide tile is used in a way that
has no panels, such as a reduction along its columns.
"""

from __future__ import annotations

from tessera.dtypes import i64
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, new_kernel_like, uses
from tessera.ir.opdef import ELEMENTWISE, LOOP, PURE, TERMINATOR
from tessera.ir.ops.control import carried_values
from tessera.ir.types import TileType, int_shape
from tessera.target.schedule import Schedule, root

_SPREADS = ("full", "broadcast")


class _NoPanels(Exception):
    """A wide tile is used in a way that has no panels."""


def split_panels(kernel: Kernel, schedule: Schedule) -> Kernel:
    if not schedule.panels:
        return kernel
    try:
        new = _Panels(kernel, schedule.panels).run()
    except _NoPanels:
        return kernel
    return new


class _Panels:
    """`whole`: tiles that stay whole: sums of products, and right operands. `parts`: the panels of a tile so far."""

    def __init__(self, kernel: Kernel, width: int):
        self.kernel, self.width = kernel, width
        self.used = uses(kernel.body)
        self.whole = _whole(kernel)
        self.parts: dict[Value, dict[int, Value]] = {}
        self.written = {
            root(value)
            for op in kernel.body.walk()
            for effect, value in op.definition.effects_of(op)
            if effect != "reads"
        }
        self.builders: dict[int, Builder] = {}  # of the block in which an op is
        self.home: dict[int, Block] = {}

    def run(self) -> Kernel:
        new, builder, mapping = new_kernel_like(self.kernel)
        for block in _blocks(self.kernel.body):
            for op in block.ops:
                self.home[op.id] = block
        self.block(self.kernel.body, builder, mapping)
        return new

    def count(self, value: Value) -> int:
        """How many panels a tile has; 0 for one that stays whole."""
        if not isinstance(value.type, TileType) or value in self.whole:
            return 0
        shape = int_shape(value.type)
        last = shape[-1] if shape else 1
        return last // self.width if last > self.width and last % self.width == 0 else 0

    # ---- blocks ----

    def block(self, block: Block, builder: Builder, mapping: Mapping) -> None:
        """What has an effect, in order; a wide tile is made when something needs it."""
        self.builders[id(block)] = builder
        for op in block.ops:
            builder.at(op)
            if op.definition.has(TERMINATOR):
                continue
            if op.regions:
                self._region(op, builder, mapping)
            elif op.name == "store" and self._stored_panels(op):
                self._store(op, builder, mapping)
            elif op.name == "mma":
                self._product(op, builder, mapping)
            elif any(self.count(value) for value in op.results):
                self._check(op)
            elif op.name in ("load", "read") and self._is_met_by_panels(op):
                continue  # each panel of the left operand has a part of its own
            else:
                if any(self.count(value) for value in op.operands):
                    raise _NoPanels
                clone_op(builder, op, mapping)

    def _check(self, op: Op) -> None:
        """A wide tile must be one that panels can be made of, when they are needed."""
        loads = op.name == "load" and root(op.operands[0]) not in self.written and len(op.operands) == 1
        reads = op.name == "read"
        reshapes = op.name == "reshape" and int_shape(op.operands[0].type)[-1] == int_shape(op.result.type)[-1]
        passes = op.definition.has(ELEMENTWISE) and op.definition.has(PURE) or op.name in _SPREADS
        if not (loads or reads or reshapes or passes) or reads and not self._is_stable(op):
            raise _NoPanels

    def _is_stable(self, read: Op) -> bool:
        """Whether a buffer is written before it is read, in front of this block, and never again."""
        buffer = read.operands[0]
        writers = [
            op for op in self.used[buffer] if any(e != "reads" and v is buffer for e, v in op.definition.effects_of(op))
        ]
        block = self.home[read.id]
        return all(op in block.ops and block.ops.index(op) < block.ops.index(read) for op in writers)

    # ---- panels ----

    def panel(self, value: Value, index: int, mapping: Mapping) -> Value:
        """Panel `index` of a wide tile, made in the block of its op."""
        made = self.parts.setdefault(value, {})
        if index not in made:
            op = value.defining_op
            assert op is not None, "panels of arguments are there from the first"
            builder = self.builders[id(self.home[op.id])]
            saved = builder.origin
            made[index] = self._make(op, index, builder.at(op), mapping)
            builder.origin = saved
        return made[index]

    def _make(self, op: Op, index: int, builder: Builder, mapping: Mapping) -> Value:
        name, start = op.result.name, index * self.width
        if op.name == "mma" or op.definition.has(LOOP):
            raise _NoPanels
        if op.name == "load":
            view = self._narrow(op.operands[0], start, builder, mapping)
            return builder.value("load", view, hint=name, **op.attributes)
        shape = int_shape(op.result.type)
        if op.name == "read":
            buffer, *offsets = op.operands
            given = [mapping[v] for v in offsets] or [builder.value("constant", value=0, dtype=i64) for _ in shape]
            column = builder.value("constant", value=start, dtype=i64)
            given[-1] = builder.value("add", given[-1], column) if offsets else column
            extents = (*shape[:-1], self.width)
            return builder.value("read", mapping[buffer], *given, hint=name, **{**op.attributes, "extents": extents})
        operands = [self._operand(v, index, builder, mapping) for v in op.operands]
        changed = {"shape": (*shape[:-1], self.width)} if "shape" in op.attributes else {}
        return builder.value(op.name, *operands, hint=name, **{**op.attributes, **changed})

    def _operand(self, value: Value, index: int, builder: Builder, mapping: Mapping) -> Value:
        """Panel `index` of an operand; of sums, which are whole, those columns; a narrow tile or a scalar is itself."""
        if self.count(value):
            return self.panel(value, index, mapping)
        if value in self.whole and int_shape(value.type)[-1] > self.width:
            made = self.parts.setdefault(value, {})
            if index not in made:
                made[index] = self._columns(mapping[value], index, builder)
            return made[index]
        return mapping[value]

    def _columns(self, value: Value, index: int, builder: Builder) -> Value:
        *leading, _ = int_shape(value.type)
        starts = (*(0 for _ in leading), index * self.width)
        return builder.value("extract", value, starts=starts, extents=(*leading, self.width), hint=value.name)

    def _narrow(self, view: Value, start: int, builder: Builder, mapping: Mapping) -> Value:
        """The window of a view that is one panel wide."""
        shape = int_shape(view.type)
        zero, column = (builder.value("constant", value=number, dtype=i64) for number in (0, start))
        offsets = [*([zero] * (len(shape) - 1)), column]
        extents = (*shape[:-1], self.width)
        return builder.value("window", mapping[view], *offsets, extents=extents, kept=(True,) * len(shape))

    # ---- ops that are there once ----

    def _store(self, op: Op, builder: Builder, mapping: Mapping) -> None:
        view, value, *masks = op.operands
        if masks:
            raise _NoPanels
        for index in range(self._stored_panels(op)):
            part = self._operand(value, index, builder, mapping)
            builder.at(op).op(
                "store", [self._narrow(view, index * self.width, builder, mapping), part], **op.attributes
            )

    def _stored_panels(self, store: Op) -> int:
        """How many panels a store has; sums of products are stored in panels, too."""
        value = store.operand("value")
        if value in self.whole:
            last = int_shape(value.type)[-1]
            return last // self.width if last > self.width and last % self.width == 0 else 0
        return self.count(value)

    def _product(self, op: Op, builder: Builder, mapping: Mapping) -> None:
        """A product of panels is a chain of products, one for each."""
        left, right, *sums = op.operands
        panels = self.count(left)
        if not panels:
            if any(self.count(value) for value in (right, *sums)):
                raise _NoPanels
            clone_op(builder, op, mapping)
            return
        if op.attributes["transpose_a"]:
            raise _NoPanels
        acc = mapping[sums[0]] if sums else None
        for index in range(panels):
            a, b = self.panel(left, index, mapping), self._rows(op, right, index, builder, mapping)
            given = [a, b] if acc is None else [a, b, acc]
            acc = builder.at(op).value("mma", *given, hint=op.result.name, **op.attributes)
        assert acc is not None
        mapping[op.result] = acc

    def _rows(self, product: Op, right: Value, index: int, builder: Builder, mapping: Mapping) -> Value:
        """The part of a right operand that meets one panel of the left one, made where the whole one is."""
        made = self.parts.setdefault(right, {})
        if index in made:
            return made[index]
        op, axis = right.defining_op, 1 if product.attributes["transpose_b"] else 0
        if op is None or op.name not in ("load", "read") or len(op.operands) > 1 and op.name == "load":
            raise _NoPanels
        own = self.builders[id(self.home[op.id])].at(op)
        extents = list(int_shape(right.type))
        extents[axis] = self.width
        zero, start = (own.value("constant", value=number, dtype=i64) for number in (0, index * self.width))
        offsets = [start if number == axis else zero for number in range(2)]
        if op.name == "load":
            view = own.value("window", mapping[op.operands[0]], *offsets, extents=tuple(extents), kept=(True, True))
            made[index] = own.value("load", view, hint=right.name, **op.attributes)
        else:
            if op.operands[1:]:
                offsets = [own.value("add", mapping[v], o) for v, o in zip(op.operands[1:], offsets, strict=True)]
            made[index] = own.value("read", mapping[op.operands[0]], *offsets, extents=tuple(extents), hint=right.name)
        builder.at(product)
        return made[index]

    def _is_met_by_panels(self, op: Op) -> bool:
        """Whether products alone use a tile, all of them as their right operand, panel by panel."""
        users = self.used.get(op.result, ()) if len(op.results) == 1 else ()
        return bool(users) and all(
            user.name == "mma" and user.operands[1] is op.result and self.count(user.operands[0]) for user in users
        )

    # ---- regions ----

    def _region(self, op: Op, builder: Builder, mapping: Mapping) -> None:
        """A wide tile that a loop carries is its panels; what a region uses from outside is made in front of it."""
        if op.name == "if" and any(self.count(result) for result in op.results) or op.name == "while":
            raise _NoPanels
        for value in _free(op):
            for index in range(self.count(value)):
                self.panel(value, index, mapping)
        carried = list(carried_values(op)) if op.definition.has(LOOP) else []
        leading = op.operands[: len(op.operands) - len(carried)]
        operands = [mapping[value] for value in leading]
        for initial, _, _, _ in carried:
            parts = range(self.count(initial))
            operands += [self.panel(initial, i, mapping) for i in parts] if parts else [mapping[initial]]
        regions = []
        for region in op.regions:
            body = Block()
            fixed = len(region.arguments) - len(carried)
            for argument in region.arguments[:fixed]:
                mapping[argument] = body.add_argument(argument.type, argument.name)
            for argument in region.arguments[fixed:]:
                self._arguments(argument, body, mapping)
            inner = builder.inner(body)
            self.block(region, inner, mapping)
            final = region.ops[-1]
            values = []
            for value in final.operands:
                parts = range(self.count(value))
                values += [self.panel(value, i, mapping) for i in parts] if parts else [mapping[value]]
            inner.at(final).op("yield", values)
            regions.append(body)
        names = [r.name for r in op.results for _ in range(max(1, self.count(r)))]
        new = builder.at(op).op(op.name, operands, regions, names, **op.attributes)
        results = iter(new.results)
        for result in op.results:
            parts = range(self.count(result))
            if parts:
                self.parts[result] = {index: next(results) for index in parts}
            else:
                mapping[result] = next(results)

    def _arguments(self, argument: Value, body: Block, mapping: Mapping) -> None:
        panels = range(self.count(argument))
        type_ = argument.type
        if not panels:
            mapping[argument] = body.add_argument(type_, argument.name)
            return
        assert isinstance(type_, TileType)
        part = TileType((*type_.shape[:-1], self.width), type_.dtype, type_.layout)
        self.parts[argument] = {index: body.add_argument(part, argument.name) for index in panels}


def _whole(kernel: Kernel) -> set[Value]:
    """Right operands of products, and their sums through loops, branches and reshapes of these alone."""
    found: set[Value] = set()
    for op in kernel.body.walk():
        if op.name == "mma":
            found |= {op.operands[1], op.result, *op.operands[2:]}
    before = -1
    while before != len(found):
        before = len(found)
        for op in kernel.body.walk():
            if op.definition.has(LOOP):
                for group in carried_values(op):
                    if any(value in found for value in group):
                        found |= set(group)
            elif op.regions:
                for group in zip(op.results, *(region.ops[-1].operands for region in op.regions), strict=True):
                    if any(value in found for value in group):
                        found |= set(group)
            elif op.name == "reshape" and op.operands[0] in found:
                found.add(op.result)
    return found


def _free(op: Op) -> list[Value]:
    """What the regions of an op use from outside, in the order of first use."""
    inside = {value for region in op.regions for inner in region.walk() for value in inner.results}
    inside |= {
        argument for inner in (op, *(o for region in op.regions for o in region.walk()))
        for region in inner.regions for argument in region.arguments
    }  # fmt: skip
    operands = [value for region in op.regions for inner in region.walk() for value in inner.operands]
    return [value for value in dict.fromkeys(operands) if value not in inside]


def _blocks(block: Block) -> list[Block]:
    return [block, *(inner for op in block.ops for region in op.regions for inner in _blocks(region))]
