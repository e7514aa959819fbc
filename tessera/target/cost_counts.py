"""What a program of a Target kernel does, counted: bytes, matrix operations, instructions, waits.

Every number is that of one program, the mean over the programs of the first wave. An op counts as often as the loops
around it run; of an `if` the branches count as often as its condition holds, where that can be known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from functools import lru_cache

import numpy as np

from tessera.ir.core import Block, Op, Value
from tessera.ir.dims import evaluate
from tessera.ir.layout import LANES, RegisterLayout
from tessera.ir.opdef import COUNTED, ELEMENTWISE, LOOP, REDUCTION, SCAN
from tessera.ir.ops.roles import shares_of
from tessera.ir.types import (
    BufferType,
    ListType,
    RingType,
    TileType,
    TokenType,
    ViewType,
    dtype_of,
    int_shape,
    shape_of,
    tensor_type,
)
from tessera.ir.types import tile_layout as layout_of
from tessera.target.cost_scalars import Scalars, trips
from tessera.target.wgmma import WGMMA_ROWS

SECTOR = 32  # bytes that a global access moves at least
WHILE_TRIPS = 8  # iterations of a loop that only the run ends
# Instructions of one element. Two roundings to a narrow type are one instruction.
CHEAP, NARROW, SHARED_DIVISION, DIVISION, SMOOTH = 1.0, 0.5, 6.0, 8.0, 16.0
PER_ACCESS = 4.0  # address, predicate and the access itself
PER_MATRIX_LOAD = 2.0
PER_BLOCK = 1.25  # a step of two blocks, and a part of the load of four
SHUFFLES = 5  # steps of a reduction over the lanes of a warp


@dataclass
class Traffic:
    """What reaches a tensor: bytes that the programs of the wave move, and those of the distinct windows among them."""

    moved: float = 0.0
    distinct: float = 0.0
    largest: float = 0.0  # distinct bytes of one op
    tensor: int = 0  # bytes of the tensor, or of all tensors of the list
    read: bool = False
    written: bool = False


@dataclass
class Stall:
    """What one program waits for by itself, in numbers of waits.

    `ahead`: of each loop whose copies fly ahead, its iterations, how many of them ahead, and the work of one.
    """

    memory: float = 0.0
    barriers: float = 0.0
    reductions: float = 0.0
    ahead: list[tuple[float, int, Work]] = field(default_factory=list)

    def scaled(self, factor: float) -> Stall:
        ahead = [(times * factor, flying, work) for times, flying, work in self.ahead]
        return Stall(self.memory * factor, self.barriers * factor, self.reductions * factor, ahead)


@dataclass
class RingUse:
    """What one program brings into a ring of `stages` slots: so many rounds of slots, of `bytes` together. `kept`:
    nobody releases a slot, each of which is filled once.
    """

    stages: int
    rounds: float = 0.0
    bytes: float = 0.0
    kept: bool = True


@dataclass
class Work:
    """What keeps a multiprocessor busy: operations of mma.sync and of f32 units, bytes that threads move through shared
    memory, thread instructions; then operations of wgmma, `narrow` ones of 8-bit operands, bytes of operands that it
    reads from shared memory, and bytes that TMA writes and reads there.
    """

    matrix: float = 0.0
    tf32: float = 0.0
    fma: float = 0.0
    shared: float = 0.0
    instructions: float = 0.0
    wgmma: float = 0.0
    narrow: float = 0.0
    operands: float = 0.0
    bulk: float = 0.0

    def __sub__(self, other: Work) -> Work:
        return Work(*(mine - theirs for mine, theirs in zip(self.fields, other.fields, strict=True)))

    def scaled(self, factor: float) -> Work:
        return Work(*(value * factor for value in self.fields))

    @property
    def operations(self) -> float:
        """Of all products."""
        return self.matrix + self.tf32 + self.fma + self.wgmma + self.narrow

    @property
    def fields(self) -> tuple[float, ...]:
        return astuple(self)


class Counter:
    """Walks a kernel once. `threads` of a block."""

    def __init__(self, scalars: Scalars, threads: int, dims: Mapping[str, int]) -> None:
        self.scalars, self.threads, self.dims = scalars, threads, dims
        self.work, self.stall = Work(), Stall()
        self.traffic: dict[Value, Traffic] = {}
        self.loops: list[tuple[frozenset[Value], float]] = []  # arguments and iterations of those around
        self.iterations: dict[Op, float] = {}  # of loops for which the caller knows them
        self.turns: dict[Op, tuple[int, int]] = {}  # of persistent loops: all programs, and how many run at one time
        self.uneven = 1.0  # how many times the mean work the busiest program of a persistent launch has
        self.rings: dict[Value, RingUse] = {}
        self.firsts: dict[tuple[Value, Value], float] = {}  # by index and lower bound of a loop, the share of the first
        self.in_roles = False
        self.flown = 0.0  # bytes of copies that arrive while earlier ones are worked on, of all programs of the wave

    # ---- structure ----

    def block(self, block: Block, times: float) -> None:
        fetched = False  # loads of one block fly together, up to the next wait
        committed: set[Value] = set()
        for op in block.ops:
            if op.regions:
                fetched = False
                self._regions(op, times)
                continue
            if op.name in ("barrier", "async_wait"):
                fetched = False
            if op.name == "barrier":
                self.stall.barriers += times
            elif op.name == "async_commit":
                committed.update(op.results)
            elif op.name == "async_wait":
                if any(group in committed for group in op.operands):
                    self.stall.memory += times
            elif op.name == "ld_global" or op.name == "cp_async" and op.attributes["vector"] < 4:
                self.stall.memory += 0.0 if fetched or self._is_near(op) else times
                fetched = True
            self._op(op, times)

    def _regions(self, op: Op, times: float) -> None:
        if op.name == "interleave":
            (body,) = op.regions
            self.block(body, times)
            if any(inner.name == "ld_global" for inner in body.ops):  # those of a part wait for the part before
                self.stall.memory += times * (op.attributes["parts"] - 1)
            return
        if op.name == "roles":
            self.in_roles = True
            for region in op.regions:
                self.block(region, times)
            self.in_roles = False
            return
        if not op.definition.has(LOOP):
            share = self._share(op.operands[0])
            for region, part in zip(op.regions, (share, 1.0 - share), strict=False):
                if part:
                    self.block(region, times * part)
            return
        count: float = trips(self.scalars, op, WHILE_TRIPS)
        count = self.iterations.get(op, count)
        by_program = self._trips_by_program(op)
        if by_program is not None:
            count, busiest = by_program
            self.uneven = max(self.uneven, busiest / count)
        (body,) = op.regions
        before = self.work.scaled(1.0)
        self.loops.append((frozenset(body.arguments), count))
        if op.definition.has(COUNTED):
            self.firsts[body.arguments[0], op.operands[0]] = 1.0 / max(1.0, count)
        self.block(body, times * count)
        self.loops.pop()
        flying = sum(isinstance(argument.type, TokenType) for argument in body.arguments)
        if flying and count and times:
            done = (self.work - before).scaled(1.0 / (times * count))
            self.stall.ahead.append((times * count, flying, done))
            self.stall.memory += times  # the first iteration waits for its copies

    def _share(self, condition: Value) -> float:
        """How often a condition holds; of one that asks for the first iteration of a loop, once."""
        made = condition.defining_op
        first = (
            self.firsts.get((made.operands[0], made.operands[1])) if made is not None and made.name == "eq" else None
        )
        return self.scalars.share(condition) if first is None else first

    def _trips_by_program(self, loop: Op) -> tuple[float, float] | None:
        """The iterations of a loop that a persistent one is around, where they differ from turn to turn: the mean, and
        that of the program with the most work. None for other loops.
        """
        for outer, (total, at_once) in self.turns.items():
            found = None
            if loop is not outer and loop.definition.has(COUNTED):
                found = self.scalars.trips_by_program(loop, outer.regions[0].arguments[0], total)
            if found is not None and found.any():
                done = np.bincount(np.arange(total) % at_once, weights=found)  # programs take turns in order
                return float(found.mean()), float(found.mean() * done.max() / done.mean())
        return None

    def _is_near(self, op: Op) -> bool:
        """Whether a load is one of a number that all programs load: the level-1 cache has it from the first turn on."""
        if not self.in_roles or op.name != "ld_global" or isinstance(op.result.type, TileType):
            return False
        return self._distinct(behind_view(op.operand("view"))[1]) == 1

    # ---- ops ----

    def _op(self, op: Op, times: float) -> None:
        counted = _COUNTED.get(op.name)
        if counted is not None:
            counted(self, op, times)
        elif op.definition.has(REDUCTION) or op.definition.has(SCAN) or op.name in _ALONG:
            self._along(op, times)
        elif op.definition.has(ELEMENTWISE) and op.results:
            self._elementwise(op, times)

    def _run(self, instructions: float, times: float) -> None:
        self.work.instructions += instructions * self.threads * times

    def _elementwise(self, op: Op, times: float) -> None:
        value = op.result
        if not isinstance(value.type, TileType):
            return  # a number of the program: hidden behind everything else
        each = _EACH.get(op.name, SMOOTH if op.definition.ulp > 0.5 else CHEAP)
        if op.name == "cast":
            each = 0.0
        narrow = [v for v in (value, *op.operands) if isinstance(v.type, TileType) and dtype_of(v.type).bits <= 16]
        self._run((each + NARROW * len(narrow)) * layout_of(value.type).registers_per_thread, times)

    def _along(self, op: Op, times: float) -> None:
        self.stall.reductions += times
        tiles = [v for v in (*op.operands, *op.results) if isinstance(v.type, TileType)]
        registers = [layout_of(tile.type).registers_per_thread for tile in tiles]
        self._run(CHEAP * max(registers, default=1) + 2 * SHUFFLES * min(registers, default=1), times)

    def _fold(self, op: Op, times: float) -> None:
        """Blocks that lie in shared memory are combined, by each thread those of its elements or for all by some."""
        self.stall.reductions += times
        shape = int_shape(op.operand("buffer").type)
        if op.results:
            blocks = shape[op.attributes["axis"]]
            self._run(PER_BLOCK * blocks * layout_of(op.result.type).registers_per_thread, times)
        else:
            self.work.instructions += (PER_BLOCK * math.prod(shape) + 2 * SHUFFLES * LANES) * times

    def _global(self, op: Op, times: float) -> None:
        """A load or a store of a window in registers."""
        tile = op.results[0] if op.results else op.operand("value")
        item = dtype_of(tile.type).bytes if op.results else dtype_of(op.operand("view").type).bytes
        if not isinstance(tile.type, TileType):
            self._move(op, times, item, 1.0, written=False)
            self._run(PER_ACCESS, times)
            return
        layout, vector = layout_of(tile.type), op.attributes.get("vector") or item
        efficiency = sector_share(layout, item, vector)
        # What a load leaves of a sector stays in the level-1 cache for the next one; a store's does not.
        efficiency = min(1.0, 2.0 * efficiency) if op.results else efficiency
        self._move(op, times, item, efficiency, written=not op.results)
        accesses = layout.registers_per_thread * item / vector
        self.work.shared += accesses * max(vector, 4) * self.threads * times  # the same data path
        self._run(PER_ACCESS * accesses, times)

    def _copy(self, op: Op, times: float) -> None:
        view, vector = op.operand("view"), op.attributes["vector"]
        item = dtype_of(view.type).bytes
        sizes = [evaluate(size, self.dims) for size in shape_of(view.type)]
        run = (sizes[-1] if sizes else 1) * item
        self._move(op, times, item, run / (-(-run // SECTOR) * SECTOR), written=False)
        size = math.prod(sizes) * item
        self.work.shared += size * max(1.0, 4.0 / vector) * times
        self._run(PER_ACCESS * size / max(vector, 1) / self.threads, times)

    def _shared(self, op: Op, times: float) -> None:
        tile = op.results[0] if op.results else op.operand("value")
        layout = layout_of(tile.type)
        buffer = next(v for v in op.operands if isinstance(v.type, BufferType))
        item = dtype_of(buffer.type).bytes
        vector = op.attributes.get("vector") or 16
        accesses = layout.registers_per_thread * item / vector
        self.work.shared += accesses * max(vector, 4) * self.threads * lanes_apart(layout) * times
        matrices = op.name in ("ldmatrix", "ld_matrices", "st_matrices")
        self._run((PER_MATRIX_LOAD if matrices else CHEAP + 1) * accesses, times)

    def _atomic(self, op: Op, times: float) -> None:
        """Every element is an operation of the level-2 cache by itself."""
        value = op.operand("value")
        item = dtype_of(value.type).bytes
        count = layout_of(value.type).registers_per_thread if isinstance(value.type, TileType) else 1
        self._move(op, times, item, item / SECTOR, written=True)
        self._run(PER_ACCESS * count, times)

    def _product(self, op: Op, times: float) -> None:
        depth = int_shape(op.operands[0].type)[1]
        registers = layout_of(op.result.type).registers_per_thread
        operations = 2.0 * registers * self.threads * depth * times
        if op.name == "fma_block":
            self.work.fma += operations
            self._run(registers * depth, times)
            return
        wide = dtype_of(op.operands[0].type).bytes > 2
        self.work.tf32 += operations if wide else 0.0
        self.work.matrix += 0.0 if wide else operations
        self._run(CHEAP * registers / 4 * depth / (8 if wide else 16), times)

    def _wgmma(self, op: Op, times: float) -> None:
        """A product of all warpgroups. Each reads the right operand for itself, and the left one for each instruction
        along the columns, unless that is in its registers.
        """
        (rows, columns), depth = op.attributes["shape"], op.attributes["depth"]
        dtype = dtype_of(op.operands[1].type)
        operations = 2.0 * rows * columns * depth * times
        self.work.wgmma += operations if dtype.bytes > 1 else 0.0
        self.work.narrow += 0.0 if dtype.bytes > 1 else operations
        right = rows // WGMMA_ROWS * columns * depth
        in_shared = isinstance(op.operands[0].type, BufferType)
        left = rows * depth * (columns // op.attributes["columns"]) if in_shared else 0
        self.work.operands += (left + right) * dtype.bytes * times

    def _bulk(self, op: Op, times: float) -> None:
        """A copy by TMA, which no thread waits for where it starts it."""
        view, buffer = op.operand("view"), op.operand("buffer")
        item, sizes = dtype_of(view.type).bytes, int_shape(buffer.type)
        run, size = sizes[-1] * item, math.prod(sizes) * item
        if op.name == "tma_load":
            times /= shares_of(op.operand("ring"))
        self._move(op, times, item, run / (-(-run // SECTOR) * SECTOR), written=op.name == "tma_store")
        self.flown += size * times * self.scalars.count
        self.work.bulk += size * times
        self._meet(op, times)

    def _meet(self, op: Op, times: float) -> None:
        """The threads that a store of all of them waits for."""
        self.stall.barriers += times if op.get("scope") == "role" else 0.0

    def _ring(self, op: Op, times: float) -> None:
        value = op.operand("ring")
        assert isinstance(value.type, RingType)
        ring = self.rings.setdefault(value, RingUse(value.type.stages))
        if op.name == "ring_release":
            ring.kept = False
        else:
            ring.rounds += times / shares_of(value)
            ring.bytes += op.attributes["bytes"] * times

    def _move(self, op: Op, times: float, item: int, efficiency: float, written: bool) -> None:
        view = next(value for value in op.operands if isinstance(value.type, ViewType))
        root, offsets = behind_view(view)
        count = self.scalars.count
        size = math.prod(evaluate(extent, self.dims) for extent in shape_of(view.type)) * item
        indices = frozenset[Value]().union(*(self.scalars.behind(offset) for offset in offsets))
        repeated = math.prod(n for arguments, n in self.loops if not arguments & indices)
        distinct = self._distinct(offsets) * size * times / max(repeated, 1)
        entry = self.traffic.setdefault(root, Traffic(tensor=self._bytes_of(root)))
        entry.moved += size * times * count / efficiency
        if any(isinstance(argument.type, TokenType) for arguments, _ in self.loops for argument in arguments):
            self.flown += size * times * count / efficiency
        entry.distinct += distinct
        entry.largest = max(entry.largest, distinct)
        entry.read |= not written
        entry.written |= written

    def _distinct(self, offsets: list[Value]) -> int:
        """How many different windows the programs of the wave touch, by one op in one iteration."""
        numbers = [self.scalars.value(value) for value in offsets]
        if any(number is None for number in numbers):
            return self.scalars.count  # an offset that is loaded: nothing is known to be shared
        arrays = [number for number in numbers if isinstance(number, np.ndarray)]
        if not arrays:
            return 1
        key = np.zeros(self.scalars.count, dtype=np.int64)
        for array in arrays:
            key = key * 1000003 + array  # a hash: collisions only make an estimate a little smaller
        return len(np.unique(key))

    def _bytes_of(self, root: Value) -> int:
        type_ = tensor_type(root.type)
        assert type_ is not None
        length = root.type.length if isinstance(root.type, ListType) else 1
        return max(1, length) * math.prod(evaluate(size, self.dims) for size in type_.shape) * type_.dtype.bytes


def behind_view(view: Value) -> tuple[Value, list[Value]]:
    """The parameter behind a view, and the offsets and indices of the windows and elements between."""
    offsets: list[Value] = []
    while (op := view.defining_op) is not None:
        if op.name in ("window", "element"):
            offsets += op.operands[1:]
        view = op.operands[0]
    return view, offsets


# Instructions of an element besides those of `SMOOTH` functions and of one instruction.
_EACH = {**dict.fromkeys(("div", "floordiv", "mod", "divisor"), DIVISION), "div_by": SHARED_DIVISION}
_ALONG = ("reduce_blocks", "scan_blocks", "block_totals", "carry_blocks")
_COUNTED = {
    **dict.fromkeys(("ld_global", "st_global"), Counter._global),
    **dict.fromkeys(
        ("ld_shared", "st_shared", "ldmatrix", "ld_matrices", "st_matrices", "ld_operand"), Counter._shared
    ),
    **dict.fromkeys(("ld_flat", "st_flat"), Counter._shared),
    **dict.fromkeys(("atomic", "atomic_scatter"), Counter._atomic),
    **dict.fromkeys(("mma_sync", "fma_block"), Counter._product),
    "cp_async": Counter._copy,
    "fold_blocks": Counter._fold,
    "fold_lines": Counter._fold,
    "wgmma": Counter._wgmma,
    **dict.fromkeys(("tma_load", "tma_store"), Counter._bulk),
    "tma_store_wait": Counter._meet,
    **dict.fromkeys(("ring_expect", "ring_release"), Counter._ring),
}


@lru_cache(maxsize=1024)
def lanes_apart(layout: RegisterLayout) -> float:
    """The share of a warp's lanes that hold elements of their own: lanes that read one word share it."""
    return len(np.unique(_lanes(layout), axis=0)) / LANES


def _lanes(layout: RegisterLayout) -> np.ndarray:
    """What the first register of each lane of the first warp holds, [lane, axis]."""
    zeros = np.zeros(LANES, dtype=np.int64)
    return layout.block.apply_array(register=zeros, lane=np.arange(LANES), warp=zeros)


@lru_cache(maxsize=1024)
def sector_share(layout: RegisterLayout, item: int, vector: int) -> float:
    """The share of the bytes in the touched sectors that one access of a warp uses; the last axis is contiguous."""
    lanes = _lanes(layout)
    if not lanes.shape[-1]:
        return 1.0
    sectors, used = set(), set()
    for *others, column in lanes.tolist():
        used.add((*others, column))
        first = column * item // SECTOR
        last = (column * item + vector - 1) // SECTOR
        sectors |= {(*others, sector) for sector in range(first, last + 1)}
    return min(1.0, len(used) * vector / (len(sectors) * SECTOR))


__all__ = ["Counter", "RingUse", "Stall", "Traffic", "Work", "sector_share"]
