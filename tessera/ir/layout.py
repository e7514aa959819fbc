"""Register layouts: which thread holds which element of a tile, and in which of its registers.

A tile is an integer number of repeats of a power-of-two block along each axis, so 192 columns are 3 blocks of 64 and
100 columns are 13 blocks of 8 with the last one masked.  The block is a linear layout, the repeats are plain strides.
Warps that are no power of two are cut into groups first: of 12, three times 4 hold a block each, one after the other.
From that follow, by algebra, how wide a vector access may be, what a conversion costs, which lanes hold copies of one
element, and what remains after a reduction.

Nothing here depends on the rest of the IR.  Misuse raises ValueError: layouts are made by passes, not by authors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from tessera.ir.layout_linear import Basis, LinearLayout, bit_count, compact, parse_groups, power_of_two_above
from tessera.ir.layout_shared import SharedLayout, bank_wavefronts, draw_shared, ldmatrix_wavefronts, shared_layout

__all__ = [
    "LANES",
    "Conversion",
    "LinearLayout",
    "RegisterLayout",
    "SharedLayout",
    "bank_wavefronts",
    "block_layout",
    "blocked",
    "conversion",
    "draw",
    "draw_shared",
    "ldmatrix_wavefronts",
    "reduction_layout",
    "register_map",
    "row_reduction",
    "shared_layout",
    "splits_blocks",
    "transposed_layout",
    "transposed_map",
    "warp_groups",
    "warp_part",
]

LANES = 32
WHOLE_LINE_BITS = 3  # lanes that read 128 bytes, a line of the caches, 16 at a time
LONG_LINE = 512  # elements, 16 a lane, up to which a warp keeps a line to itself: shared memory costs two barriers

Conversion = Literal["none", "registers", "shuffle", "shared"]


def warp_groups(warps: int) -> int:
    """Into how many equal groups warps are cut so that each is a power of two: 3 of 12 warps, 1 of 8."""
    return warps // (warps & -warps)


def _repeat_counts(index: int, repeats: tuple[int, ...]) -> tuple[int, ...]:
    """The row-major multi-index of a repeat."""
    counts = []
    for extent in reversed(repeats):
        index, count = divmod(index, extent)
        counts.append(count)
    return tuple(reversed(counts))


@dataclass(frozen=True)
class RegisterLayout:
    """A tile held in registers: `repeats[axis]` copies of `block` along each axis.

    `block` has the inputs register, lane (5 bits) and warp, and is surjective.  The register index of an element is
    (row-major index over the repeats) * block_registers + register of the block.  Warps come in `groups`, an odd
    number of them: warp = group * warps of the block + warp of the block.  Each group has a block of its own, the next
    group the next one along `group_axis`, and repeats step over those of all groups; without an axis (None) all groups
    hold the same.
    """

    block: LinearLayout
    repeats: tuple[int, ...]
    groups: int = 1
    group_axis: int | None = None

    def __post_init__(self) -> None:
        if self.block.names != ("register", "lane", "warp") or self.block.size("lane") != LANES:
            raise ValueError(f"a register layout maps register, 5 lane bits and warp, not {self.block}")
        if len(self.repeats) != self.block.axes or min(self.repeats, default=1) < 1:
            raise ValueError(f"repeats {self.repeats} do not fit {self.block.axes} axes")
        if not self.block.is_surjective:
            raise ValueError(f"nothing holds some elements of the block: {self.block}")
        if self.groups < 1 or self.groups % 2 == 0:
            raise ValueError(f"{self.groups} groups of warps: powers of two are bits of the block")
        if self.group_axis is not None and not (self.groups > 1 and 0 <= self.group_axis < self.block.axes):
            raise ValueError(f"{self.groups} groups of warps do not lie along axis {self.group_axis}")

    @property
    def block_shape(self) -> tuple[int, ...]:
        return self.block.shape

    @property
    def block_registers(self) -> int:
        return self.block.size("register")

    @property
    def repeat_shape(self) -> tuple[int, ...]:
        """How far it is from a repeat to the next one along each axis: the blocks of all groups."""
        return tuple(e * self.groups if a == self.group_axis else e for a, e in enumerate(self.block_shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """The physical shape, which pads the logical one: repeat_shape * repeats."""
        return tuple(e * r for e, r in zip(self.repeat_shape, self.repeats, strict=True))

    @property
    def warp_steps(self) -> tuple[Basis, ...]:
        """The steps whose sums lead from the first warp to each of the others: those of the bits of a warp's number in
        its group, and those of the bits of the group's.
        """
        steps = self.block.group("warp")
        if self.group_axis is not None:
            extent = self.block_shape[self.group_axis]
            bits = range((self.groups - 1).bit_length())
            steps += tuple(self._unit(self.group_axis, extent << bit) for bit in bits)
        return steps

    @property
    def registers_per_thread(self) -> int:
        return self.block_registers * math.prod(self.repeats)

    @property
    def warps(self) -> int:
        return self.groups * self.block.size("warp")

    @property
    def threads(self) -> int:
        return self.warps * LANES

    def coordinates(self, register: int, lane: int, warp: int) -> tuple[int, ...]:
        """The element in one register of one thread."""
        if not 0 <= register < self.registers_per_thread:
            raise ValueError(f"register={register} is outside 0..{self.registers_per_thread - 1}")
        if not 0 <= warp < self.warps:
            raise ValueError(f"warp={warp} is outside 0..{self.warps - 1}")
        repeat, inner = divmod(register, self.block_registers)
        group, warp = divmod(warp, self.block.size("warp"))
        within = list(self.block.apply(register=inner, lane=lane, warp=warp))
        if self.group_axis is not None:
            within[self.group_axis] += group * self.block_shape[self.group_axis]
        counts = _repeat_counts(repeat, self.repeats)
        return tuple(w + c * e for w, c, e in zip(within, counts, self.repeat_shape, strict=True))

    def all_coordinates(self) -> np.ndarray:
        """Every element held: int64 [warps, 32, registers_per_thread, axes]."""
        register, warp = np.arange(self.registers_per_thread), np.arange(self.warps)
        within = self.block.apply_array(
            register=register[None, None, :] % self.block_registers,
            lane=np.arange(LANES)[None, :, None],
            warp=(warp % self.block.size("warp"))[:, None, None],
        )
        if not self.repeats:
            return within
        if self.group_axis is not None:
            group = warp // self.block.size("warp")
            within[..., self.group_axis] += (group * self.block_shape[self.group_axis])[:, None, None]
        counts = np.stack(np.unravel_index(register // self.block_registers, self.repeats), axis=-1)
        return within + counts * np.array(self.repeat_shape)

    def contiguous(self, axis: int, limit: int | None = None) -> int:
        """The vector width along `axis`, in elements, a power of two of at most `limit`.

        Every group of that many consecutive registers, starting at a multiple of it, holds as many consecutive
        coordinates along `axis`, starting at a multiple of it, with the other coordinates fixed.
        """
        registers = self.block.group("register")
        bits = 0
        while bits < len(registers) and registers[bits] == self._unit(axis, 1 << bits):
            bits += 1
        width = 1 << bits
        # XOR is addition only while no other bit of the place reaches below the vector.
        others = (*registers[bits:], *self.block.group("lane"), *self.warp_steps)
        while any(vector[axis] % width for vector in others):
            width //= 2
        # A block that is one vector goes on into the next repeat, when repeats run along this axis first.
        whole = width == self.block_registers == self.repeat_shape[axis]
        if whole and all(r == 1 for r in self.repeats[axis + 1 :]):
            width *= self.repeats[axis] & -self.repeats[axis]
        return width if limit is None else min(width, 1 << limit.bit_length() - 1)

    def _unit(self, axis: int, step: int) -> Basis:
        return tuple(step if a == axis else 0 for a in range(self.block.axes))

    def axis_bits(self, axis: int) -> tuple[tuple[str, int], ...]:
        """For each coordinate bit of the block along `axis`, lowest first, the (input, bit) that drives it.

        Raises ValueError when a coordinate bit has no driver of its own: two inputs drive it, or one input bit drives
        several coordinate bits.
        """
        drivers: dict[int, tuple[str, int]] = {}
        for name, group in self.block.bases:
            for bit, vector in enumerate(group):
                if not (step := vector[axis]):
                    continue
                if vector != self._unit(axis, step) or step & (step - 1) or step in drivers:
                    raise ValueError(f"axis {axis} is not driven bit by bit, see {name} bit {bit} of {self}")
                drivers[step] = (name, bit)
        return tuple(drivers[1 << bit] for bit in range(bit_count(self.block_shape[axis])))

    def slice(self, axis: int) -> RegisterLayout:
        """The layout of the tile after `axis` is reduced to size 1 (the axis is kept).

        Register bits that only stepped along `axis` disappear, so a thread keeps one register where it had several;
        lanes, warps and groups along `axis` become replicas.  `slice_map` says which register goes where.
        """
        bases = {
            name: [tuple(0 if a == axis else c for a, c in enumerate(v)) for v in group]
            for name, group in self.block.bases
        }
        bases["register"] = [vector for vector in bases["register"] if any(vector)]
        repeats = tuple(1 if a == axis else r for a, r in enumerate(self.repeats))
        groups = None if self.group_axis == axis else self.group_axis
        return RegisterLayout(LinearLayout.of(self.block.axes, **bases), repeats, self.groups, groups)

    def slice_map(self, axis: int) -> tuple[int, ...]:
        """For each register of self, the register of `slice(axis)` that its element is reduced into."""
        sliced = self.slice(axis)
        kept = [bit for bit, v in enumerate(self.block.group("register")) if v != self._unit(axis, v[axis])]
        result = []
        for register in range(self.registers_per_thread):
            repeat, inner = divmod(register, self.block_registers)
            outer = 0
            for a, count in enumerate(_repeat_counts(repeat, self.repeats)):
                outer = outer * sliced.repeats[a] + (0 if a == axis else count)
            inner = sum((inner >> bit & 1) << place for place, bit in enumerate(kept))
            result.append(outer * sliced.block_registers + inner)
        return tuple(result)

    def __str__(self) -> str:
        register, lane, warp = (compact(group) for _, group in self.block.bases)
        groups = [self.groups] if self.group_axis is None else [self.groups, self.group_axis]
        cut = f" groups{compact(groups)}" if self.groups > 1 else ""
        return f"regs{register} lanes{lane} warps{warp} rep{compact(self.repeats)}{cut}"

    @staticmethod
    def parse(text: str) -> RegisterLayout:
        """The inverse of `str`. `groups[3,0]`: three, along axis 0; `groups[3]`: three that hold the same."""
        parts = parse_groups(text)
        names = [name for name, _ in parts]
        if names[:4] != ["regs", "lanes", "warps", "rep"] or names[4:] not in ([], ["groups"]):
            raise ValueError(
                f"a register layout is regs[...] lanes[...] warps[...] rep[...], then perhaps groups[...], not {text!r}"
            )
        (register, lane, warp, repeats), cut = (values for _, values in parts[:4]), parts[4:]
        groups = cut[0][1] if cut else [1]
        if not 1 <= len(groups) <= 2 or not all(isinstance(number, int) for number in groups):
            raise ValueError(f"groups[...] holds how many, and the axis along which they lie, not {text!r}")
        block = LinearLayout.of(len(repeats), register=register, lane=lane, warp=warp)
        return RegisterLayout(block, tuple(repeats), *groups)


# Making layouts ------------------------------------------------------------------------------------------------------


class _BlockBuilder:
    """Grows a block from its lowest coordinate bits upwards, one input bit at a time."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.block = [1] * len(self.shape)
        self.bases: dict[str, list[Basis]] = {"register": [], "lane": [], "warp": []}

    def _padding(self, axis: int, extent: int) -> int:
        return -self.shape[axis] % extent

    def fits(self, axis: int) -> bool:
        """Doubling the block along `axis` costs at most an eighth of the axis in padding, or no more than now."""
        allowed = max(self.shape[axis] // 8, self._padding(axis, self.block[axis]))
        return self.block[axis] < self.shape[axis] and self._padding(axis, 2 * self.block[axis]) <= allowed

    def add(self, name: str, axis: int | None) -> None:
        """Give the next bit of an input to `axis`, or make it a replica."""
        self.bases[name].append(tuple(self.block[a] if a == axis else 0 for a in range(len(self.shape))))
        if axis is not None:
            self.block[axis] *= 2

    def spread(self, name: str, bits: int, axes: Sequence[int]) -> None:
        """Spend `bits` of an input over `axes` in order: first where little is padded, then where anything is left,
        and the rest as replicas."""
        for _ in range(bits):
            candidates = [a for a in axes if self.fits(a)] or [a for a in axes if self.block[a] < self.shape[a]]
            self.add(name, candidates[0] if candidates else None)

    def finish(self) -> RegisterLayout:
        repeats = tuple(-(-extent // block) for extent, block in zip(self.shape, self.block, strict=True))
        return RegisterLayout(LinearLayout.of(len(self.shape), **self.bases), repeats)


def _cut(
    make: Callable[[Sequence[int], int], RegisterLayout], shape: Sequence[int], warps: int, axes: Sequence[int]
) -> RegisterLayout:
    """What `make` gives of a tile and a power of two of warps, for any number of warps.

    Groups of them share out the first of `axes` where that pads the tile by an eighth at most; where there is none, all
    groups hold the same.
    """
    groups = warp_groups(warps)
    if groups == 1:
        return make(shape, warps)
    for axis in axes:
        part = [-(-extent // groups) if a == axis else extent for a, extent in enumerate(shape)]
        layout = replace(make(part, warps // groups), groups=groups, group_axis=axis)
        if 8 * math.prod(layout.shape) <= 9 * math.prod(shape):
            return layout
    return replace(make(shape, warps // groups), groups=groups)


def _blocked(
    shape: Sequence[int], warps: int, vector: int, order: Sequence[int] | None, warp_axes: Sequence[int] | None
) -> RegisterLayout:
    order = tuple(reversed(range(len(shape)))) if order is None else tuple(order)
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"order {order} is not a permutation of the {len(shape)} axes")
    if min(shape, default=1) < 1:
        raise ValueError(f"shape {tuple(shape)} has an empty axis")
    # Warps take the slower axes first: a row then stays inside one warp where there are rows enough.
    warp_order = [a for a in (*order[1:], *order[:1]) if warp_axes is None or a in warp_axes]

    def make(shape: Sequence[int], warps: int) -> RegisterLayout:
        builder = _BlockBuilder(shape)
        if order:
            for _ in range(bit_count(min(vector, power_of_two_above(shape[order[0]])))):
                builder.add("register", order[0])
        builder.spread("lane", bit_count(LANES), order)
        builder.spread("warp", bit_count(warps), warp_order)
        return builder.finish()

    return _cut(make, shape, warps, warp_order)


def blocked(shape: Sequence[int], warps: int, vector: int, order: Sequence[int] | None = None) -> RegisterLayout:
    """A layout for coalesced global access.

    `vector` (a power of two) consecutive elements of the fastest axis sit in one thread; lanes go along the fastest
    axis, then the others; warps along the others, then the fastest; what is left is repeats.  `order` lists the axes
    from fastest to slowest (default: the last axis first).  Extents need not be powers of two: the block stays small
    enough that padding is at most an eighth of an axis, unless threads would otherwise idle.  Threads beyond the tile
    hold replicas.
    """
    return _blocked(shape, warps, vector, order, None)


def row_reduction(shape: Sequence[int], warps: int, axis: int, vector: int) -> RegisterLayout:
    """A blocked layout in which each line along `axis` lies inside one warp: a reduction needs no shared memory."""
    return _blocked(shape, warps, vector, None, [a for a in range(len(shape)) if a != axis % len(shape)])


def reduction_layout(shape: Sequence[int], warps: int, axis: int, vector: int) -> RegisterLayout:
    """A blocked layout for a reduction or a scan along `axis`: each block of 32 of a line lies inside one warp.

    Warps go along the other axes while those have room, even where that leaves fewer lanes for them. Only a line that
    would cost a thread many registers is shared by warps (`LONG_LINE`), each of which has one part of it where it can
    be cut so: then partial results meet in shared memory.
    """
    axis %= len(shape)
    others = [a for a in reversed(range(len(shape))) if a != axis]
    return _cut(lambda part, count: _reduction_layout(part, count, axis, vector), shape, warps, others)


def _reduction_layout(shape: Sequence[int], warps: int, axis: int, vector: int) -> RegisterLayout:
    order = tuple(reversed(range(len(shape))))
    others = [a for a in order if a != axis]
    builder = _BlockBuilder(shape)
    for _ in range(bit_count(min(vector, power_of_two_above(shape[order[0]])))):
        builder.add("register", order[0])
    lane_bits, warp_bits = bit_count(LANES), bit_count(warps)
    room = sum(bit_count(power_of_two_above(shape[a]) // builder.block[a]) for a in others)
    along_others = max(0, min(lane_bits, room - warp_bits))
    if order[0] == axis:
        # Lanes past a block of 32 would have to fold their blocks by shuffles.
        along_axis = max(lane_bits - along_others, bit_count(max(1, LANES // builder.block[axis])), WHOLE_LINE_BITS)
        builder.spread("lane", along_axis, order)
        builder.spread("lane", lane_bits - along_axis, [*others, axis])
    else:
        builder.spread("lane", along_others, others)
        # The sum takes the lowest coordinates first: those a thread has need no shuffle, the lanes' are the last ones.
        for _ in range(bit_count(LANES) - (lane_bits - along_others)):
            if builder.fits(axis):
                builder.add("register", axis)
        builder.spread("lane", lane_bits - along_others, [axis, *others])
    for left in range(warp_bits, 0, -1):
        free = [a for a in others if builder.fits(a)] or [a for a in others if builder.block[a] < shape[a]]
        long = not free and builder.block[axis] >= LANES and shape[axis] > LONG_LINE and builder.fits(axis)
        if long and not any(vector[axis] for vector in builder.bases["warp"]):
            parts, rest = divmod(shape[axis], builder.block[axis] << left)
            for _ in range(0 if rest else bit_count(parts & -parts)):
                builder.add("register", axis)
        builder.add("warp", free[0] if free else axis if long else None)
    return builder.finish()


def splits_blocks(layout: RegisterLayout, axis: int) -> bool:
    """Whether several warps hold elements of one block of 32 along `axis`."""
    return any(0 < vector[axis] < LANES for vector in layout.warp_steps)


def warp_part(layout: RegisterLayout, axis: int) -> int:
    """How many elements of a line along `axis` lie together in one warp: a power of two, all of the block where no
    warps share it.
    """
    return min((step for vector in layout.warp_steps if (step := vector[axis])), default=layout.block_shape[axis])


def block_layout(layout: RegisterLayout, axis: int, size: int = LANES) -> RegisterLayout:
    """The layout of one value for each block of `size`, a power of two, along `axis`, held where the elements of the
    block are.

    Register bits inside a block disappear, lanes inside a block become replicas.
    """
    axis %= layout.block.axes
    extent, repeats = layout.block_shape[axis], layout.repeats[axis]
    if extent < size:
        repeats = -(-extent * repeats // size)

    def coarse(vector: Basis) -> Basis:
        return tuple(c // size if a == axis else c for a, c in enumerate(vector))

    bases = {name: [coarse(vector) for vector in group] for name, group in layout.block.bases}
    bases["register"] = [vector for vector in bases["register"] if any(vector)]
    counts = tuple(repeats if a == axis else r for a, r in enumerate(layout.repeats))
    return replace(layout, block=LinearLayout.of(layout.block.axes, **bases), repeats=counts)


def transposed_layout(layout: RegisterLayout) -> RegisterLayout:
    """Every element stays in its thread when the last two axes are exchanged; `transposed_map` has its register."""

    def swap(values: Sequence[int]) -> tuple[int, ...]:
        return (*values[:-2], values[-1], values[-2])

    bases = {name: [swap(vector) for vector in group] for name, group in layout.block.bases}
    axis = None if layout.group_axis is None else swap(range(layout.block.axes)).index(layout.group_axis)
    block = LinearLayout.of(layout.block.axes, **bases)
    return RegisterLayout(block, swap(layout.repeats), layout.groups, axis)


def transposed_map(layout: RegisterLayout) -> tuple[int, ...]:
    """For each register of `transposed_layout(layout)`, the register of `layout` that holds the element."""
    result = transposed_layout(layout)
    place = {layout.coordinates(register, 0, 0): register for register in range(layout.registers_per_thread)}
    sources = []
    for register in range(result.registers_per_thread):
        *leading, row, column = result.coordinates(register, 0, 0)
        sources.append(place[(*leading, column, row)])
    return tuple(sources)


# Converting layouts --------------------------------------------------------------------------------------------------


def _element_ids(layout: RegisterLayout, common: tuple[int, ...]) -> np.ndarray:
    """[warps, 32, registers]: a number for each element held, -1 outside the `common` shape."""
    coordinates = layout.all_coordinates()
    inside = (coordinates < np.array(common, dtype=np.int64)).all(axis=-1)
    strides = np.array([math.prod(common[axis + 1 :]) for axis in range(len(common))], dtype=np.int64)
    return np.where(inside, coordinates @ strides, -1)


def _common_shape(src: RegisterLayout, dst: RegisterLayout, shape: Sequence[int] | None) -> tuple[int, ...]:
    if src.block.axes != dst.block.axes:
        raise ValueError(f"layouts of {src.block.axes} and {dst.block.axes} axes cannot hold one tile")
    overlap = tuple(min(a, b) for a, b in zip(src.shape, dst.shape, strict=True))
    if shape is not None and any(e > o for e, o in zip(shape, overlap, strict=True)):
        raise ValueError(f"a tile of {tuple(shape)} does not fit layouts of {src.shape} and {dst.shape}")
    return overlap if shape is None else tuple(shape)


@cache
def _register_map(src: RegisterLayout, dst: RegisterLayout, common: tuple[int, ...]) -> tuple[int, ...] | None:
    if src.warps != dst.warps:
        return None
    have = _element_ids(src, common).reshape(src.threads, -1)
    want = _element_ids(dst, common).reshape(dst.threads, -1)
    result = []
    for register in range(dst.registers_per_thread):
        needed = want[:, register]
        threads = np.flatnonzero(needed >= 0)
        if not threads.size:
            result.append(-1)
            continue
        candidates = np.flatnonzero(have[threads[0]] == needed[threads[0]])
        matches = [int(c) for c in candidates if (have[threads, c] == needed[threads]).all()]
        if not matches:
            return None
        result.append(register if register in matches else matches[0])
    return tuple(result)


def register_map(
    src: RegisterLayout, dst: RegisterLayout, shape: Sequence[int] | None = None
) -> tuple[int, ...] | None:
    """For each register of `dst`, the register of `src` in the same thread that holds its element, or None.

    The map is the same for all threads.  -1 marks a register that holds only padding: elements outside `shape`, which
    defaults to what both layouts cover.
    """
    return _register_map(src, dst, _common_shape(src, dst, shape))


def conversion(src: RegisterLayout, dst: RegisterLayout, shape: Sequence[int] | None = None) -> Conversion:
    """What moving a tile from `src` to `dst` takes; elements outside `shape` may become anything.

    "none": nothing; "registers": renaming inside each thread; "shuffle": every element is already in the warp that
    needs it; "shared": a trip through shared memory.
    """
    common = _common_shape(src, dst, shape)
    mapping = _register_map(src, dst, common)
    if mapping is not None:
        in_place = all(source in (-1, register) for register, source in enumerate(mapping))
        return "none" if in_place and src.registers_per_thread == dst.registers_per_thread else "registers"
    if src.warps != dst.warps:
        return "shared"
    have, want = _element_ids(src, common), _element_ids(dst, common)
    for warp in range(src.warps):
        needed = want[warp][want[warp] >= 0]
        if not np.isin(needed, have[warp]).all():
            return "shared"
    return "shuffle"


# Seeing layouts ------------------------------------------------------------------------------------------------------


def draw(layout: RegisterLayout, shape: Sequence[int] | None = None) -> str:
    """A text grid of the tile: each cell is `w<warp>t<lane>:<register>` of the first holder, `+` when there are more.

    Leading axes are drawn as separate grids under a heading; `shape` crops the drawing.
    """
    extents = layout.shape if shape is None else tuple(shape)
    holders: dict[tuple[int, ...], str] = {}
    copies: set[tuple[int, ...]] = set()
    coordinates = layout.all_coordinates()
    for warp, lane, register in np.ndindex(*coordinates.shape[:-1]):
        element = tuple(int(c) for c in coordinates[warp, lane, register])
        if element in holders:
            copies.add(element)
        else:
            holders[element] = f"w{warp}t{lane}:{register}"
    cells = {element: text + "+" * (element in copies) for element, text in holders.items()}
    width = max(len(cells[element]) for element in np.ndindex(*extents))
    lines = []
    for leading in np.ndindex(*extents[:-2]):
        if leading:
            lines.append(f"[{', '.join(map(str, leading))}, :, :]")
        for row in np.ndindex(*extents[-2:-1]):
            columns = np.ndindex(*extents[-1:])
            lines.append(" ".join(cells[(*leading, *row, *column)].ljust(width) for column in columns).rstrip())
    return "\n".join(lines)
