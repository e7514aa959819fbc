"""Let a tile that waits at a barrier wait as the narrow one that it was computed from, and compute it again behind.

    rows = cast(x)                  rows = cast(x)
    ... rows ...                    ... rows ...
    barrier                  ->     barrier
    ... rows ...                    x' = hold(x); rows' = cast(x')
                                    ... rows' ...

What a few cheap ops make of a narrow tile, and of numbers that all elements of a line share, takes half the registers
while the threads wait. `hold` keeps the compiler from taking the second cast for the first. Only where the tiles that
are live at once become fewer by it, and not beside products, whose registers are planned for. Exact: the same ops are
applied to the same elements.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.opdef import ELEMENTWISE
from tessera.ir.types import TileType, dtype_of, tile_layout
from tessera.target.cost_registers import FOLD, registers_of

PRODUCTS = ("mma_sync", "fma_block", "wgmma")
DIVISIONS = ("div", "floordiv", "mod", "divisor", "div_by")
SMALLEST = 16  # registers of a tile that is worth it
LEAST_GAIN = 8  # registers of all that is live at once
MOST_OPS = 3  # that compute each element again
FEW = 1  # registers of a tile of which a line has one element


def rematerialise(kernel: Kernel) -> Kernel:
    if any(op.name in PRODUCTS for op in kernel.body.walk()):
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    return new if _copy(kernel.body, builder, mapping) else kernel


def _copy(block: Block, builder: Builder, mapping: Mapping) -> bool:
    """Copies a block; tells whether anything in it is computed again."""
    writer, changed = _Writer(_Plan(block), mapping), False

    def inside(old: Block, inner: Builder) -> None:
        nonlocal changed
        changed |= _copy(old, inner, mapping)

    for place, op in enumerate(block.ops):
        writer.prepare(place, op, builder.at(op))
        if op.regions:
            clone_with_regions(builder, op, mapping, inside)
        else:
            clone_op(builder, op, mapping)
    return changed or bool(writer.plan.again)


@dataclass(frozen=True)
class Recipe:
    """How to compute a tile again: `ops` in order, of the narrow tile `source` and of what is small."""

    source: Value
    ops: tuple[Op, ...]


class _Plan:
    """What of a block to compute `again`: recipes by value."""

    def __init__(self, block: Block):
        self.ops = block.ops
        self.made = {value: place for place, op in enumerate(block.ops) for value in op.results}
        self.waits = [place for place, op in enumerate(block.ops) if op.name == "barrier"]
        self.used: dict[Value, list[int]] = {}
        for place, op in enumerate(block.ops):
            for inner in (op, *(i for region in op.regions for i in region.walk())):
                for value in inner.operands:
                    self.used.setdefault(value, []).append(place)
        self.again: dict[Value, Recipe] = {}
        if self.waits:
            self._choose()

    def part(self, place: int) -> int:
        """How many barriers are in front of a place."""
        return sum(wait < place for wait in self.waits)

    def _choose(self) -> None:
        found = {value: recipe for value in self.made if (recipe := self._recipe_of(value)) is not None}
        least = self._pressure(found)
        if least > self._pressure({}) - LEAST_GAIN:
            return
        for value in list(found):  # the others do for it
            fewer = {v: recipe for v, recipe in found.items() if v is not value}
            if self._pressure(fewer) <= least:
                found = fewer
        self.again = found

    def _recipe_of(self, value: Value) -> Recipe | None:
        """How to compute a tile that waits somewhere; None for one that does not, or cannot be."""
        places = self.used.get(value, [])
        waits = bool(places) and self.part(places[-1]) > self.part(self.made[value])
        if not waits or not isinstance(value.type, TileType) or registers_of(value) < SMALLEST:
            return None
        if any(self.ops[place].regions for place in places):
            return None
        ops: list[Op] = []
        source = self._source(value, ops)
        wide = [op for op in ops if op.name != "broadcast"]
        return Recipe(source, tuple(ops)) if source is not None and len(wide) <= MOST_OPS else None

    def _source(self, value: Value, ops: list[Op]) -> Value | None:
        """The one narrow tile behind a value; adds the ops between to `ops`, each once, in order."""
        op = value.defining_op
        if value not in self.made or op is None or len(ops) > 2 * MOST_OPS:
            return None
        if op.name == "cast" and widens(op):
            source = op.operands[0]
        elif op.definition.has(ELEMENTWISE) and op.definition.ulp <= 0.5 and op.name not in DIVISIONS:
            sources = set[Value | None]()
            for operand in op.operands:
                if not isinstance(operand.type, TileType):
                    continue
                spread = operand.defining_op
                if spread is not None and spread.name == "broadcast" and _is_small(spread.operands[0]):
                    if spread not in ops:
                        ops.append(spread)
                    continue
                sources.add(self._source(operand, ops))
            source = sources.pop() if len(sources) == 1 else None
        else:
            return None
        if op not in ops:
            ops.append(op)
        return source

    def _pressure(self, again: dict[Value, Recipe]) -> int:
        """The most 32-bit registers that tiles of the block take at a barrier, or at a fold beside its own."""
        last = {value: max(places) for value, places in self.used.items() if value in self.made}
        for value, recipe in again.items():
            needed = [recipe.source, *(v for op in recipe.ops for v in op.operands if _is_small(v))]
            for source in needed:
                last[source] = max(last.get(source, -1), last[value])
        most = 0
        for place, op in enumerate(self.ops):
            if op.name != "barrier" and op.name != "fold_lines":
                continue
            live = [value for value, end in last.items() if self.made.get(value, place) < place < end]
            waiting = [value for value in live if value not in again]
            most = max(most, sum(map(registers_of, waiting)) + (FOLD if op.name == "fold_lines" else 0))
        return most


def widens(cast: Op) -> bool:
    """Whether a cast makes a tile of one of half the bits or fewer."""
    source = cast.operands[0]
    return isinstance(source.type, TileType) and 2 * dtype_of(source.type).bits <= dtype_of(cast.result.type).bits


def _is_small(value: Value) -> bool:
    if not isinstance(value.type, TileType) or value.type.layout is None:
        return False
    return tile_layout(value.type).registers_per_thread <= FEW


@dataclass
class _Writer:
    """Writes what is computed again in front of its first use behind each barrier. `held`: the narrow tiles by the
    part in which they were last held.
    """

    plan: _Plan
    mapping: Mapping
    held: dict[Value, int] = field(default_factory=dict)
    there: dict[Value, int] = field(default_factory=dict)  # the part that a value was computed in

    def prepare(self, place: int, op: Op, builder: Builder) -> None:
        part = self.plan.part(place)
        for value in dict.fromkeys(op.operands):
            recipe = self.plan.again.get(value)
            if recipe is None or self._part(value) == part:
                continue
            self._hold(recipe.source, part, builder)
            for step in recipe.ops:
                (result,) = step.results
                if self._part(result) == part:
                    continue
                clone_op(builder.at(step), step, self.mapping)
                self.there[result] = part
            builder.at(op)

    def _part(self, value: Value) -> int:
        """The part that a value was computed in last."""
        return self.there.get(value, self.plan.part(self.plan.made[value]))

    def _hold(self, source: Value, part: int, builder: Builder) -> None:
        if self.held.get(source, -1) != part:
            self.held[source] = part
            self.mapping[source] = builder.value("hold", self.mapping[source], hint=source.name)


__all__ = ["rematerialise", "widens"]
