"""What an integer scalar may be at a place of a kernel: an interval, from loop bounds, ids, sizes and conditions.

A place is an op. Inside a region that runs only where a condition holds, the condition says more of its operands, and
so does the condition of a `where` of each of its sides. A value that is a multiple of a power of two has ends that are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.dtypes import DType
from tessera.ir.affine import PROGRAM_IDS, bounds, expression, opaque_symbol, symbol_ranges
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.dims import FUNCTIONS, Size, divisor
from tessera.ir.divisors import divisor_of, loops_of
from tessera.ir.intervals import UNKNOWN, Interval, apply, multiply, plus
from tessera.ir.opdef import BRANCH, CONSTANT, COUNTED, ELEMENTWISE
from tessera.ir.ops.elementwise import is_index
from tessera.ir.types import dtype_of

DEPTH = 4  # of `where`s inside one another, beyond which conditions say nothing: each side looks at all behind it anew

NOTHING: Interval = (0, -1)  # of a value at a place that is never reached

# Of a comparison that holds: how it reads with its operands exchanged, and where it does not hold.
_EXCHANGED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "eq": "eq"}
_OPPOSITE = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "ne": "eq"}


@dataclass
class _Facts:
    """What conditions say of values at a place, and the intervals that follow, as far as they were asked for.

    `less`: pairs of values of which the first is less than the second.
    """

    less: set[tuple[Value, Value]] = field(default_factory=set)
    known: dict[Value, Interval] = field(default_factory=dict)
    found: dict[Value, Interval] = field(default_factory=dict)
    depth: int = 0


class Ranges:
    """The intervals of a kernel's integer scalars; a pass that changes the kernel makes another one."""

    def __init__(self, kernel: Kernel):
        self.symbols = symbol_ranges(kernel)
        self.grid: tuple[Size, ...] = tuple(kernel.attributes.get("grid", ()))
        self.divisors = kernel.attributes.get("divisors", {})
        self.loops = {id(op.regions[0]): op for op in kernel.body.walk() if op.definition.has(COUNTED)}
        self._steps = loops_of(kernel)
        self._divisible: dict[Value, int] = {}
        self._everywhere = _Facts()
        self._places: dict[int, _Facts] = {}
        self._enter(kernel.body, self._everywhere)

    def interval(self, value: Value, at: Op | None = None) -> Interval:
        """The least and greatest value that `value` may have where `at` runs; both ends belong to it.

        Without `at`: wherever the value is. An op that never runs may have a least value above the greatest.
        """
        return self._interval(value, self._everywhere if at is None else self._places[at.id])

    def divisor(self, value: Value) -> int:
        """A power of two that divides `value`."""
        return divisor_of(value, self.divisors, self._steps, self._divisible)

    def distance(self, value: Value, size: Size, at: Op) -> int | None:
        """How far `value` is from `size` at least, where a condition, the end of a loop or the grid shows that it is
        less.
        """
        if self._counts_groups(value, size):
            return min(self.divisor(value), divisor(size, self.divisors))
        facts = self._places[at.id]
        above = [b for a, b in facts.less if a is value]
        loop = self.loops.get(id(value.owner)) if value.index == 0 else None
        if loop is not None and (self._interval(loop.operand("step"), facts)[0] or 0) > 0:
            above.append(loop.operand("upper"))
        if not any(op.name == "size" and op.attributes["size"] == size for b in above if (op := b.defining_op)):
            return None
        return min(self.divisor(value), divisor(size, self.divisors))

    def _counts_groups(self, value: Value, size: Size) -> bool:
        """Whether `value` is a program id divided by what the grid has for each unit of `size`."""
        op = value.defining_op
        source = op.operands[0].defining_op if op is not None and op.name == "floordiv" else op
        if op is None or source is None or source.name != "program_id" or source.attributes["axis"] >= len(self.grid):
            return False
        group = expression(op.operands[1]) if op is not source else 1
        return source.attributes["scale"] == 1 and self.grid[source.attributes["axis"]] == group * size

    # places -----------------------------------------------------------------------------------------------------------

    def _enter(self, block: Block, facts: _Facts) -> None:
        for op in block.ops:
            self._places[op.id] = facts
            for number, region in enumerate(op.regions):
                branch = op.definition.has(BRANCH) and bool(op.operands)  # an interleave has no condition
                self._enter(region, self._where(facts, op.operands[0], number == 0) if branch else facts)

    def _where(self, facts: _Facts, condition: Value, holds: bool, depth: int = 0) -> _Facts:
        """The facts where, besides, a condition holds or does not."""
        inner = _Facts(set(facts.less), dict(facts.known), {}, depth)
        self._learn(inner, condition, holds)
        return inner

    def _learn(self, facts: _Facts, condition: Value, holds: bool) -> None:
        op = condition.defining_op
        if op is None:
            return
        if op.name == "not":
            self._learn(facts, op.operands[0], not holds)
        elif op.name == ("and" if holds else "or"):
            for operand in op.operands:
                self._learn(facts, operand, holds)
        elif all(is_index(operand.type) for operand in op.operands):
            name = op.name if holds else _OPPOSITE.get(op.name, "")
            if name in _EXCHANGED:
                self._compare(facts, name, *op.operands)

    def _compare(self, facts: _Facts, name: str, a: Value, b: Value) -> None:
        if name in ("lt", "gt"):
            facts.less.add((a, b) if name == "lt" else (b, a))
        left, right = self._interval(a, facts), self._interval(b, facts)
        for value, relation, other in ((a, name, right), (b, _EXCHANGED[name], left)):
            low = other[0] if relation in ("ge", "eq") else plus(other[0], 1) if relation == "gt" else None
            high = other[1] if relation in ("le", "eq") else plus(other[1], -1) if relation == "lt" else None
            facts.known[value] = _meet(facts.known.get(value, UNKNOWN), (low, high))
        facts.found.clear()  # what was found without this

    # values -----------------------------------------------------------------------------------------------------------

    def _interval(self, value: Value, facts: _Facts) -> Interval:
        pending = [value]
        while pending:
            current = pending[-1]
            missing = [part for part in self._parts(current) if part not in facts.found]
            if current in facts.found or not missing:
                pending.pop()
                if current not in facts.found:
                    facts.found[current] = self._settled(current, facts)
            else:
                pending += missing
        return facts.found[value]

    def _parts(self, value: Value) -> list[Value]:
        """The values that `value` is computed from, where an interval of it follows from theirs."""
        op = value.defining_op
        if op is None:
            loop = self.loops.get(id(value.owner)) if value.index == 0 else None
            return [] if loop is None else loop.operands[:3]
        if op.name == "where":
            return op.operands[1:]
        return op.operands if op.definition.has(ELEMENTWISE) and all(is_index(v.type) for v in op.operands) else []

    def _settled(self, value: Value, facts: _Facts) -> Interval:
        if not is_index(value.type):
            return UNKNOWN
        if any(_is_empty(facts.found[part]) for part in self._parts(value)):
            return NOTHING
        found = _meet(_wrapped(self._computed(value, facts), dtype_of(value.type)), facts.known.get(value, UNKNOWN))
        low, high, divisor = *found, self.divisor(value)
        low = None if low is None else -(-low // divisor) * divisor
        return low, None if high is None else high // divisor * divisor

    def _computed(self, value: Value, facts: _Facts) -> Interval:
        op = value.defining_op
        parts = [facts.found[part] for part in self._parts(value)]
        if op is None:
            return _index(*parts) if parts else UNKNOWN
        if op.definition.has(CONSTANT):
            number = int(op.attributes["value"])
            return number, number
        if op.name == "size":
            return bounds(op.attributes["size"], self.symbols)
        if op.name == "program_id":
            scale = op.attributes["scale"]
            return multiply(self.symbols[PROGRAM_IDS[op.attributes["axis"]]], (scale, scale))
        if op.name == "num_programs":
            return self.symbols[opaque_symbol(value)]
        if op.name == "where":
            return self._selected(op, facts)
        return _arithmetic(op.name, parts) if parts else UNKNOWN

    def _selected(self, op: Op, facts: _Facts) -> Interval:
        """The hull of the two sides of a `where`, each where the condition says that it is taken."""
        condition, *sides = op.operands
        found = []
        for side, holds in zip(sides, (True, False), strict=True):
            inner = self._where(facts, condition, holds, facts.depth + 1) if facts.depth < DEPTH else facts
            found.append(self._interval(side, inner))
        return _hull([interval for interval in found if not _is_empty(interval)])


def _arithmetic(name: str, parts: list[Interval]) -> Interval:
    if name == "cast":
        return parts[0]
    if name == "neg":
        return multiply(parts[0], (-1, -1))
    if name == "add":
        return plus(parts[0][0], parts[1][0]), plus(parts[0][1], parts[1][1])
    if name == "sub":
        return _arithmetic("add", [parts[0], multiply(parts[1], (-1, -1))])
    if name == "mul":
        return multiply(*parts)
    return apply(name, *parts) if name in FUNCTIONS else UNKNOWN


def _index(lower: Interval, upper: Interval, step: Interval) -> Interval:
    """A loop's index: from `lower` on towards `upper`, which it does not reach."""
    if step[0] is not None and step[0] >= 0:
        start, end = lower[0], upper[1]
        if None not in (start, end) and lower == (start, start) and step == (step[0], step[0]) and step[0]:
            indices = range(start or 0, end or 0, step[0])  # the last one is known
            return (indices[0], indices[-1]) if indices else lower
        return start, plus(end, -1)
    if step[1] is not None and step[1] <= 0:
        return plus(upper[0], 1), lower[1]
    return UNKNOWN


def _wrapped(found: Interval, dtype: DType) -> Interval:
    """What a value of `dtype` may be that was computed in `found`. No 64-bit index is taken to overflow unbidden."""
    low, high = found
    least, largest = -int(dtype.largest) - 1, int(dtype.largest)
    if dtype.bits == 64:
        fits = (low is None or low >= least) and (high is None or high <= largest)
        return found if fits else UNKNOWN
    fits = low is not None and high is not None and least <= low and high <= largest
    return found if fits else (least, largest)


def _meet(a: Interval, b: Interval) -> Interval:
    lows, highs = [x for x in (a[0], b[0]) if x is not None], [x for x in (a[1], b[1]) if x is not None]
    return max(lows, default=None), min(highs, default=None)


def _is_empty(interval: Interval) -> bool:
    low, high = interval
    return low is not None and high is not None and low > high


def _hull(intervals: list[Interval]) -> Interval:
    if not intervals:
        return NOTHING
    lows, highs = [low for low, _ in intervals], [high for _, high in intervals]
    return (
        None if None in lows else min(low for low in lows if low is not None),
        None if None in highs else max(high for high in highs if high is not None),
    )
