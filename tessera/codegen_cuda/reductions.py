"""Reductions and scans of an axis whose bits are in registers and lanes, in the defined order.

A sum combines coordinate bits lowest first, each by additions of two registers or across lanes. There a butterfly
shuffle has every lane add the same two numbers; where the next bits are lanes', too, and a thread has several sums,
`_pair` has half of the lanes add one of two sums and the others the other one, and combines those later. Maxima and
minima have the same bits in any order: theirs is the one of fewest shuffles. A scan takes the same bits: where bit k is
set, the element takes in the last one below it whose bit k is clear, which lies in a place that is known from the
layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tessera.codegen_cuda.names import literal
from tessera.dtypes import DType
from tessera.ir.layout import RegisterLayout, block_layout

PAIR_BITS = 5  # log2 of the block of 32
BLOCK = 1 << PAIR_BITS


@dataclass(frozen=True)
class Arithmetic:
    """How elements of a dtype are combined: in f32, or in the integer type itself."""

    kind: str
    dtype: DType

    @property
    def ctype(self) -> str:
        return "float" if self.dtype.is_float else self.dtype.cuda

    def load(self, element: str) -> str:
        return f"ts_to_f32({element})" if self.dtype.is_float else element

    def combine(self, a: str, b: str) -> str:
        if self.kind == "sum":
            return f"{a} + {b}"
        if self.dtype.is_float:
            return f"ts_{self.kind}({a}, {b})"
        return f"({self.ctype})ts_i{self.kind}({a}, {b})"

    @property
    def any_order(self) -> bool:
        """Whether the result has the same bits in whatever order elements are combined."""
        return self.kind != "sum"

    @property
    def identity(self) -> str:
        if self.dtype.is_float:
            return {"sum": "0.0f", "max": "(-ts_infinity())", "min": "ts_infinity()"}[self.kind]
        largest = int(self.dtype.largest)
        number = {"sum": 0, "max": -largest - 1, "min": largest}[self.kind]
        return literal(number, self.dtype)


@dataclass(frozen=True)
class Line:
    """An axis of a tile as the text sees it: its layout, logical size, and the names of the array and of the layout."""

    layout: RegisterLayout
    axis: int
    size: int
    source: str
    alias: str

    @property
    def lane_bits(self) -> dict[int, int]:
        """Coordinate bits that lanes hold, with the lane's bit as a mask."""
        bits = self.layout.axis_bits(self.axis)
        return {place: 1 << bit for place, (kind, bit) in enumerate(bits) if kind == "lane"}

    def lanes_below(self, size: int) -> list[int]:
        """The lane bits inside a block of `size`."""
        return [mask for place, mask in self.lane_bits.items() if 1 << place < size]

    @property
    def block_lanes(self) -> int:
        """The lane bits inside a block of 32."""
        return sum(self.lanes_below(BLOCK))

    def place(self, register: int) -> int:
        """The coordinate along the axis of a register of lane and warp 0."""
        return self.layout.coordinates(register, 0, 0)[self.axis]

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, dict[int, int]]]:
        """For each register of `block_layout`: its block in lane and warp 0, and the registers of it by coordinate."""
        partial = block_layout(self.layout, self.axis, size)
        members: dict[tuple[int, ...], dict[int, int]] = {}
        for register in range(self.layout.registers_per_thread):
            at = self.layout.coordinates(register, 0, 0)
            key = tuple(c // size if a == self.axis else c for a, c in enumerate(at))
            members.setdefault(key, {})[at[self.axis]] = register
        for register in range(partial.registers_per_thread):
            at = partial.coordinates(register, 0, 0)
            yield at[self.axis], dict(sorted(members[at].items()))

    def load(self, arithmetic: Arithmetic, places: dict[int, int]) -> tuple[list[str], dict[int, str]]:
        """Statements that load the elements at `places`, and their names; elements past the end are the identity."""
        lines, values = [], {}
        for place, register in places.items():
            text = arithmetic.load(f"{self.source}[{register}]")
            if self.layout.shape[self.axis] > self.size:
                text = f"({self.alias}_t{self.axis} + {place} < {self.size} ? {text} : {arithmetic.identity})"
            values[place] = f"x{place}"
            lines.append(f"{arithmetic.ctype} x{place} = {text};")
        return lines, values


def reduction_lines(arithmetic: Arithmetic, line: Line, out: str, ctype: str) -> list[str]:
    """Statements that fill `out[s]` for every register s of the layout's slice: the whole axis lies in one warp."""
    groups: dict[int, dict[int, int]] = {}
    for register, result in enumerate(line.layout.slice_map(line.axis)):
        groups.setdefault(result, {})[line.place(register)] = register
    lines = []
    for result, members in sorted(groups.items()):
        body, values = line.load(arithmetic, dict(sorted(members.items())))
        if arithmetic.any_order:
            body += _combine(arithmetic, values, list(line.lane_bits.values()))
        else:
            body += _pair(arithmetic, values, line.lane_bits, line.layout.shape[line.axis])
        (total,) = values.values()
        total = finished(arithmetic, total)
        lines += _scope([*body, f"{out}[{result}] = ts_cast<{ctype}>({total});"])
    return lines


def block_lines(arithmetic: Arithmetic, line: Line, out: str, size: int = BLOCK) -> list[str]:
    """Statements that fill `out[s]` for every register s of `block_layout` with the reduction of its block."""
    lines = []
    for result, (_, members) in enumerate(line.blocks(size)):
        body, values = line.load(arithmetic, members)
        if arithmetic.any_order:
            body += _combine(arithmetic, values, line.lanes_below(size))
        else:
            body += _pair(arithmetic, values, line.lane_bits, size)
        (total,) = values.values()
        lines += _scope([*body, f"{out}[{result}] = {total};"])
    return lines


def finished(arithmetic: Arithmetic, total: str) -> str:
    """A whole line's sum from that of its pairs: the 0 that it ends with turns -0 into 0."""
    return f"{total} + 0.0f" if arithmetic.kind == "sum" and arithmetic.dtype.is_float else total


def tree_lines(arithmetic: Arithmetic, names: list[str]) -> list[str]:
    """Combines `names` into the first of them, in the order of a sum."""
    lines, step = [], 1
    while step < len(names):
        pairs = zip(names[:: 2 * step], names[step :: 2 * step], strict=False)
        lines += [f"{low} = {arithmetic.combine(low, high)};" for low, high in pairs]
        step *= 2
    return lines


def scan_lines(arithmetic: Arithmetic, line: Line, out: str) -> list[str]:
    """Statements that fill `out` with the scan inside each block, register by register."""
    lines = []
    for block, members in line.blocks():
        body, values = line.load(arithmetic, members)
        inside = {place - BLOCK * block: name for place, name in values.items()}
        body += _scan_block(arithmetic, inside, line.lane_bits)
        body += [f"{out}[{register}] = {values[place]};" for place, register in members.items()]
        lines += _scope(body)
    return lines


def _scan_block(arithmetic: Arithmetic, values: dict[int, str], lane_bits: dict[int, int]) -> list[str]:
    """`values` by coordinate inside the block, as far as registers hold it."""
    lines = []
    register_bits = sum(1 << bit for bit in range(PAIR_BITS) if any(place >> bit & 1 for place in values))
    for bit in range(PAIR_BITS):
        step = 1 << bit
        below = register_bits & (step - 1)
        lanes_below = sum(mask for place, mask in lane_bits.items() if place < bit)
        takes = list(values) if bit in lane_bits else [place for place in values if place & step]
        sources = {place: place & ~(2 * step - 1) | below for place in takes}
        names = {}
        for source in dict.fromkeys(sources.values()):
            names[source] = values[source]
            if bit in lane_bits or lanes_below:
                kept = f"(ts_lane() & ~{lane_bits[bit]})" if bit in lane_bits else "ts_lane()"
                names[source] = f"below{bit}_{source}"
                lines.append(
                    f"const {arithmetic.ctype} {names[source]} = ts_shfl({values[source]}, {kept} | {lanes_below});"
                )
        for place, source in sources.items():
            text = arithmetic.combine(names[source], values[place])
            condition = f"if ((ts_lane() & {lane_bits[bit]}) != 0) " if bit in lane_bits else ""
            lines.append(f"{condition}{values[place]} = {text};")
    return lines


def total_lines(line: Line, out: str) -> list[str]:
    """Statements that fill `out[s]` with the last element of each block, known in all lanes of the block."""
    lines = []
    for result, (_, members) in enumerate(line.blocks()):
        last = f"{line.source}[{members[max(members)]}]"
        if line.block_lanes:
            last = f"ts_shfl({last}, ts_lane() | {line.block_lanes})"
        lines.append(f"{out}[{result}] = {last};")
    return lines


def _scope(body: list[str]) -> list[str]:
    return ["{", *("    " + text for text in body), "}"]


def _combine(arithmetic: Arithmetic, values: dict[int, str], masks: list[int]) -> list[str]:
    """Combines all `values` and those of the lanes that `masks` lead to: registers first, which leaves one value to
    shuffle. `values` keeps the lowest member.
    """
    lines = []
    while len(values) > 1:
        places = sorted(values)
        for low, high in zip(places[::2], places[1::2], strict=False):
            lines.append(f"{values[low]} = {arithmetic.combine(values[low], values.pop(high))};")
    (x,) = values.values()
    return [*lines, *(f"{x} = {arithmetic.combine(x, f'ts_shfl_xor({x}, {mask})')};" for mask in masks)]


def _pair(arithmetic: Arithmetic, values: dict[int, str], lane_bits: dict[int, int], size: int) -> list[str]:
    """Combines the coordinate bits of a line of `size`, or of a block, in place; `values` keeps the lowest member of
    each pair.
    """
    bits = (size - 1).bit_length()
    lines, lanes = [], dict(lane_bits)
    for place in range(bits):
        step = 1 << place
        if place not in lanes:
            for low in [low for low in sorted(values) if not low & step and low | step in values]:
                lines.append(f"{values[low]} = {arithmetic.combine(values[low], values.pop(low | step))};")
            continue
        places = frozenset(v - min(values) for v in values)
        _, other = _cheapest(places, frozenset(p for p in lanes if p < bits), place, bits)
        mask = lanes[place]
        if other is None:
            lines += [f"{x} = {arithmetic.combine(x, f'ts_shfl_xor({x}, {mask})')};" for x in values.values()]
            continue
        upper = f"upper{place}"
        lines.append(f"const bool {upper} = (ts_lane() & {mask}) != 0;")
        for low in [low for low in sorted(values) if not low & 1 << other]:
            x, y = values[low], values.pop(low | 1 << other)
            kept, given = f"({upper} ? {y} : {x})", f"ts_shfl_xor({upper} ? {x} : {y}, {mask})"
            lines.append(f"{x} = {arithmetic.combine(kept, given)};")
        lanes[other] = lanes.pop(place)
    return lines


SHUFFLE = 2  # what it costs beside an addition or a choice of two registers


@lru_cache(maxsize=4096)
def _cheapest(places: frozenset[int], lanes: frozenset[int], place: int, bits: int) -> tuple[float, int | None]:
    """What it costs to combine the coordinate bits from `place` on, and the bit that the lanes of bit `place` hold from
    then on, each half of them adding up the sums with one value of it; None for a butterfly, which leaves all lanes all
    sums.
    """
    if place == bits:
        return 0, None
    step = 1 << place
    if place not in lanes:
        left = frozenset(p for p in places if not (p & step and p ^ step in places))
        return len(places) - len(left) + _cheapest(left, lanes, place + 1, bits)[0], None
    choices: list[tuple[float, int | None]] = [
        ((SHUFFLE + 1) * len(places) + _cheapest(places, lanes, place + 1, bits)[0], None)
    ]
    highest = max((p.bit_length() - 1 for p in places), default=0)
    if highest > place and all(p ^ 1 << highest in places for p in places):
        left = frozenset(p for p in places if not p & 1 << highest)
        cost = (SHUFFLE + 3) * len(left) + _cheapest(left, lanes - {place} | {highest}, place + 1, bits)[0]
        choices.append((cost, highest))
    return min(choices, key=lambda choice: choice[0])
