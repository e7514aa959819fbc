"""Give the iterations of parallel loops to programs of their own: more, smaller programs fill the machine evenly.

A kernel of this form runs its nest of parallel loops (`subtile` makes them, and says so) over the launch grid:

    block = program_id(0)                   p = program_id(0)
    for i in 0, step, ... parallel    ->    block, i = p // n, p % n * step
        ...                                 if the part of iteration i is inside the tensor: ...

All loops fold into grid axis 0, the only one that CUDA lets grow beyond 65535; the innermost counts fastest, so that
programs that run at one time share what they read. Where an iteration goes on in the tensor where the one before ends,
and the next program where the last iteration of this one does, the grid ends with the tensor. Other iterations outside
do nothing. Where the id is only taken apart, as block, turn = id // m, id % m, turns count fastest of all, and blocks
in the place of ids (`_turns`). Exact: each element is computed and stored by the same ops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tessera.dtypes import i64
from tessera.ir import dims
from tessera.ir.affine import PROGRAM_IDS, Cache, opaque_symbol, window_of
from tessera.ir.core import Block, Builder, Kernel, Op, Value, clone_op, clone_with_regions, new_kernel_like, uses
from tessera.ir.dims import Size
from tessera.ir.opdef import COUNTED, ORDERED, PURE, TERMINATOR, UNORDERED
from tessera.ir.ops.control import constant_value, loop_range
from tessera.ir.types import BufferType, TileType, ViewType
from tessera.target.schedule import root

LARGEST_GRID = 2**31 - 1  # of axis 0
MOST_TURNS = 256  # of a block of programs
Bound = tuple[Size, Size]  # an offset along a tensor axis and the size of that axis


@dataclass(frozen=True)
class Loop:
    """A loop to distribute: its index is lower + step * 0, 1, ..., trips - 1."""

    op: Op
    lower: int
    step: int
    trips: int

    @property
    def index(self) -> Value:
        return self.op.regions[0].arguments[0]


@dataclass(frozen=True)
class Turns:
    """Programs of grid axis 0 that are `count` turns of one block each. `blocks`, `rests`: the values that are the
    quotient and the rest of the id by it.
    """

    count: int
    blocks: tuple[Value, ...] = ()
    rests: tuple[Value, ...] = ()


def distribute(kernel: Kernel) -> Kernel:
    """The kernel with its outermost parallel loops in the grid; itself where they have to stay.

    They stay where the loops are not all that the kernel does, where something before them is worth sharing (a buffer,
    a tile) or has an effect, and where programs are named (prints, assertions) or counted.
    """
    written = {
        root(value) for op in kernel.body.walk() for effect, value in op.definition.effects_of(op) if effect != "reads"
    }
    loops = _nest(kernel.body, written)
    grid = kernel.attributes.get("grid")
    if not loops or not grid or not all(_may_move(op) for op in kernel.body.walk()):
        return kernel
    turns = _turns(kernel)
    bounds = _in_blocks(_bounds(loops), turns.count)
    joined = _joined(grid[0], turns.count, loops, bounds)
    total = math.prod(loop.trips for loop in loops)
    first: Size = grid[0] * total
    if joined is not None:
        loop, (offset, size) = joined
        first = dims.cdiv(size, _advance(offset, loop)) * (total // loop.trips) * turns.count
        loops = [loop, *(other for other in loops if other is not loop)]
        bounds = {bound for bound in bounds if bound != joined[1]}
    if isinstance(first, int) and first > LARGEST_GRID:
        return kernel
    new = _Distribution(kernel, loops, _to_check(bounds, loops), turns).kernel()
    new.attributes["grid"] = (first, *grid[1:])
    return new


# What may be distributed ----------------------------------------------------------------------------------------------


def _nest(block: Block, written: set[Value]) -> list[Loop]:
    """The parallel loops, outermost first, each with nothing beside it that would be lost or repeated at a cost."""
    regions = [op for op in block.ops if op.regions]
    if len(regions) != 1:
        return []
    loop = _loop(regions[0])
    if loop is None or not all(op is loop.op or _is_repeatable(op, written) for op in block.ops):
        return []
    return [loop, *_nest(loop.op.regions[0], written)]


def _loop(op: Op) -> Loop | None:
    if not (op.definition.has(COUNTED) and op.get("parallel")) or op.results:
        return None
    indices = loop_range(op.operands[:3])
    if not indices or indices.step < 0:
        return None
    return Loop(op, indices.start, indices.step, len(indices))


def _is_repeatable(op: Op, written: set[Value]) -> bool:
    """Whether every program may run the op: index arithmetic, windows, numbers that it loads, tiles of one number,
    allocations.
    """
    if op.definition.has(TERMINATOR) or any(isinstance(value.type, BufferType) for value in op.results):
        return True  # what is in a buffer that iterations share does not outlive one: they may run in any order
    pure = op.definition.has(PURE)
    if any(isinstance(value.type, TileType) for value in (op.operands if pure else op.results)):
        return False
    effects = op.definition.effects_of(op)
    only_reads = bool(effects) and all(
        effect == "reads" and isinstance(value.type, ViewType) and root(value) not in written
        for effect, value in effects
    )
    return pure or only_reads


def _may_move(op: Op) -> bool:
    """Whether an op means the same in another program: it names no program, and no order of programs shows."""
    if op.name == "num_programs" or op.definition.has(ORDERED) or op.definition.has(UNORDERED):
        return False
    known = bool(op.regions) or op.definition.has(PURE) or op.definition.has(TERMINATOR) or bool(op.definition.effects)
    return known or op.name in ("wait", "barrier", "alloc_shared")


def _turns(kernel: Kernel) -> Turns:
    """The turns of each block, where the id of axis 0 is used as quotient and rest by one number alone."""
    used = uses(kernel.body)
    ids = [op for op in kernel.body.walk() if op.name == "program_id" and op.attributes["axis"] == 0]
    users = [user for op in ids for user in used.get(op.result, ())]
    counts = {
        constant_value(op.operands[1]) if op.name in ("floordiv", "mod") and op.operands[0].defining_op in ids else None
        for op in users
    }
    (count,) = counts if len(counts) == 1 else (None,)
    alone = isinstance(count, int) and 1 < count <= MOST_TURNS and dims.mod(kernel.attributes["grid"][0], count) == 0
    if not alone or any(op.attributes["scale"] != 1 for op in ids):
        return Turns(1)
    blocks, rests = (tuple(op.result for op in users if op.name == name) for name in ("floordiv", "mod"))
    assert isinstance(count, int)
    return Turns(count, blocks, rests)


def _in_blocks(bounds: set[Bound], count: int) -> set[Bound]:
    """Bounds with the index of the block in the place of the program id, without those that differ between turns."""
    name, found = PROGRAM_IDS[0], set()
    for offset, size in bounds:
        others = {dims.substitute(offset, {name: dims.symbol(name) * count + turn}) for turn in range(count)}
        found |= {(other, size) for other in others if len(others) == 1}
    return found


# Bounds ---------------------------------------------------------------------------------------------------------------


def _bounds(loops: list[Loop]) -> set[Bound]:
    """Where the stores of the nest begin along tensor axes, with the sizes of those: beyond one, none stores anything.

    Of offsets that differ by a number, the smallest.
    """
    cache: Cache = {}
    common: dict[Bound, int] | None = None  # the number in an offset, by the rest of it and the size
    for op in loops[-1].op.regions[0].walk():
        for effect, value in op.definition.effects_of(op):
            if effect == "reads" or not isinstance(value.type, ViewType):
                continue
            window = window_of(value, cache)
            found: dict[Bound, int] = {}
            for offset, size in zip(window.offsets, window.shape, strict=True):
                number = dims.substitute(offset, dict.fromkeys(dims.symbols(offset), 0))
                if isinstance(number, int):
                    found[offset - number, size] = number
            common = found if common is None else {b: min(n, found[b]) for b, n in common.items() if b in found}
    return {(offset + number, size) for (offset, size), number in (common or {}).items()}


def _advance(offset: Size, loop: Loop) -> int:
    """By how much an iteration moves an offset; 0 where that is not one number."""
    split = dims.coefficient(offset, opaque_symbol(loop.index))
    return split[0] * loop.step if split is not None and isinstance(split[0], int) else 0


def _joined(extent: Size, count: int, loops: list[Loop], bounds: set[Bound]) -> tuple[Loop, Bound] | None:
    """A loop that walks a tensor axis from 0, one program of grid axis 0 going on where the one before ends, up to the
    end of the axis: id and iteration then count as one number. Of `extent` programs, `count` are turns of one block.
    """
    identifier = dims.symbol(PROGRAM_IDS[0])
    for loop in loops:
        index = dims.symbol(opaque_symbol(loop.index))
        for offset, size in sorted(bounds, key=str):
            advance = _advance(offset, loop)
            if advance <= 0 or loop.lower:
                continue
            contiguous = offset == identifier * (advance * loop.trips) + index * (advance // loop.step)
            if contiguous and extent == dims.cdiv(size, advance * loop.trips) * count:
                return loop, (offset, size)
    return None


def _to_check(bounds: set[Bound], loops: list[Loop]) -> list[Bound]:
    """The bounds that an iteration may pass: those that move with a loop, in terms of ids, indices and dims."""
    moving = {opaque_symbol(loop.index) for loop in loops}
    known = moving | set(PROGRAM_IDS)

    def is_linear(offset: Size) -> bool:
        for name in sorted(dims.symbols(offset) & known):
            split = dims.coefficient(offset, name)
            if split is None or not isinstance(split[0], int):
                return False
            offset = split[1]
        return isinstance(offset, int)

    return sorted((b for b in bounds if dims.symbols(b[0]) & moving and is_linear(b[0])), key=str)


# Rewriting ------------------------------------------------------------------------------------------------------------


class _Distribution:
    """`loops`: the one that joins with the program id first, if any, then outermost first."""

    def __init__(self, kernel: Kernel, loops: list[Loop], checked: list[Bound], turns: Turns):
        self.old, self.loops, self.checked, self.turns = kernel, loops, checked, turns
        self.new, self.builder, self.mapping = new_kernel_like(kernel)
        self.known: dict[str, Value] = {}  # new values by symbol
        ids = [op for op in kernel.body.walk() if op.name == "program_id"]
        self.scales = {op.attributes["axis"]: op.attributes["scale"] for op in ids}

    def kernel(self) -> Kernel:
        self._split_ids()
        moved = {id(loop.op) for loop in self.loops}
        self._prelude(self.old.body, moved)
        return self.new

    def _constant(self, number: int) -> Value:
        return self.builder.value("constant", value=number, dtype=i64)

    def _split_ids(self) -> None:
        """The program id of axis 0 and the indices of the loops, from the id in the new grid."""
        self.builder.at(*(loop.op for loop in self.loops))
        rest = self.builder.value("program_id", axis=0)
        if self.turns.count > 1:
            count = self._constant(self.turns.count)
            turn = self.builder.value("mod", rest, count)
            self.mapping.update(dict.fromkeys(self.turns.rests, turn))
            rest = self.builder.value("floordiv", rest, count)
        for loop in reversed(self.loops):
            if loop.trips == 1:
                self.mapping[loop.index] = self.known[opaque_symbol(loop.index)] = self._constant(loop.lower)
                continue
            trips = self._constant(loop.trips)
            number = self.builder.value("mod", rest, trips)
            rest = self.builder.value("floordiv", rest, trips)
            if loop.step != 1:
                number = self.builder.value("mul", number, self._constant(loop.step))
            if loop.lower:
                number = self.builder.value("add", number, self._constant(loop.lower))
            number.name = loop.index.name
            self.mapping[loop.index] = self.known[opaque_symbol(loop.index)] = number
        self.known[PROGRAM_IDS[0]] = rest
        self.mapping.update(dict.fromkeys(self.turns.blocks, rest))
        used = {name for offset, _ in self.checked for name in dims.symbols(offset)}
        for axis, name in enumerate(PROGRAM_IDS):
            if axis and name in used:  # expressions count in grid indices, ids in multiples of them
                self.known[name] = self.builder.value("program_id", axis=axis, scale=self.scales[axis])
        scale = self.scales.get(0, 1)
        self.first_id = rest if scale == 1 else self.builder.value("mul", rest, self._constant(scale))

    def _prelude(self, block: Block, moved: set[int]) -> None:
        """The ops of a block of the nest in one line; the innermost loop's body under its guard."""
        for op in block.ops:
            self.builder.at(op)
            if id(op) in moved:
                body = op.regions[0]
                if any(id(inner) in moved for inner in body.ops):
                    self._prelude(body, moved)
                else:
                    self._guarded(op, body)
            elif not op.definition.has(TERMINATOR):
                self._copy_op(op, self.builder)

    def _guarded(self, loop: Op, body: Block) -> None:
        if not self.checked:
            self._copy(body, self.builder, terminator=False)
            return
        inside: Value | None = None
        for offset, size in self.checked:
            bound = self._size(size)
            holds = self.builder.value("lt", self._offset(offset), bound)
            inside = holds if inside is None else self.builder.value("and", inside, holds)
        assert inside is not None
        then, otherwise = Block(), Block()
        self._copy(body, self.builder.inner(then), terminator=True)
        self.builder.at(loop).inner(otherwise).op("yield")
        self.builder.op("if", [inside], [then, otherwise])

    def _size(self, size: Size) -> Value:
        return self._constant(size) if isinstance(size, int) else self.builder.value("size", size=size)

    def _offset(self, offset: Size) -> Value:
        """Index arithmetic for an offset that `_to_check` found to be linear."""
        total: Value | None = None
        for name in sorted(dims.symbols(offset)):
            split = dims.coefficient(offset, name)
            assert split is not None and isinstance(split[0], int)
            factor, offset = int(split[0]), split[1]
            scale = self.scales[PROGRAM_IDS.index(name)] if name in PROGRAM_IDS[1:] else 1
            term = self.known[name]
            if factor != scale:
                term = self.builder.value("mul", term, self._constant(factor // scale))
            total = term if total is None else self.builder.value("add", total, term)
        assert total is not None and isinstance(offset, int)
        return total if offset == 0 else self.builder.value("add", total, self._constant(offset))

    def _copy(self, block: Block, builder: Builder, terminator: bool) -> None:
        for op in block.ops:
            if terminator or not op.definition.has(TERMINATOR):
                self._copy_op(op, builder.at(op))

    def _copy_op(self, op: Op, builder: Builder) -> None:
        if op.results and op.results[0] in self.mapping:
            return  # it is known from the id in the new grid
        if op.name == "program_id" and op.attributes["axis"] == 0:
            self.mapping[op.result] = self.first_id
        elif op.regions:
            clone_with_regions(builder, op, self.mapping, lambda old, inner: self._copy(old, inner, terminator=True))
        else:
            clone_op(builder, op, self.mapping)
