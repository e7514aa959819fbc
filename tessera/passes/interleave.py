"""Compute tiles part by part where whole ones do not fit: loads, arithmetic and stores of some registers, then of more.

Op by op, a tile that is loaded lies beside the accumulators of a product until all of it is used, and together they can
be more than a thread has. A *run* is a stretch of ops that work register by register on tiles of one register count,
with no barrier, wait or region inside; index arithmetic, windows and small loads between them, which need nothing of
it, move in front. A run is cut where what it loads and what is live around it exceed the registers of a thread less
`RESERVE`, into as few parts as make it fit: loads of a part fly together, so more parts mean more waits. A store to
global memory ends a run: where an output shares memory with an input, what is loaded must be loaded before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.opdef import ASYNC, COLLECTIVE, LOOP, PURE
from tessera.ir.ops.interleave import fits, register_count
from tessera.ir.ops.roles import computing_warps
from tessera.ir.types import TileType, ViewType
from tessera.target.arch import Arch
from tessera.target.cost import consumer_registers
from tessera.target.cost_registers import registers_of
from tessera.target.role_registers import register_limit
from tessera.target.schedule import schedule_of

SMALLEST = 32  # registers of a tile that is worth cutting
SMALLEST_PART = 8
# 32-bit registers for addresses, indices and what is between the loads of a part and its results: 62 to 68 where
# NVRTC says how many are missing.
RESERVE = 80
LEAST_LOADED = 16  # 32-bit registers that a part may load however little room there is
SMALL = 32  # 32-bit registers of a tile that may move in front of a run


def interleave(kernel: Kernel, arch: Arch) -> Kernel:
    """The kernel with its runs cut; itself where none has to be."""
    schedule = schedule_of(kernel)
    threads = (computing_warps(kernel) + kernel.attributes.get("producer_warps", 0)) * arch.warp_size
    room = (consumer_registers(kernel) or register_limit(arch, threads, schedule.blocks)) - RESERVE
    new, builder, mapping = new_kernel_like(kernel)
    cut: list[_Run] = []
    _copy(kernel.body, builder, mapping, set(), room, cut)
    return new if cut else kernel


@dataclass
class _Run:
    """`ops` of a run, and those `in_front` of it that stood between them; `all` in their order."""

    all: list[Op] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    in_front: list[Op] = field(default_factory=list)
    results: set[Value] = field(default_factory=set)

    def takes(self, op: Op) -> bool:
        """Adds an op if it can be part of the run, or in front of it."""
        if self._continues(op):
            self.ops.append(op)
            self.results.update(op.results)
        elif self.ops and _moves(op) and self.results.isdisjoint(op.operands):
            self.in_front.append(op)
        else:
            return False
        self.all.append(op)
        return True

    def _continues(self, op: Op) -> bool:
        count = register_count(op)
        if not count or self.ops and count != register_count(self.ops[0]):
            return False
        return op.name != "broadcast" or self.results.isdisjoint(op.operands)

    @property
    def loads(self) -> list[Op]:
        return [op for op in self.ops if _is_load(op)]


def _is_load(op: Op) -> bool:
    effects = op.definition.effects_of(op)
    return bool(effects and op.results) and all(effect == "reads" for effect, _ in effects)


def _moves(op: Op) -> bool:
    """Whether an op that needs nothing of a run may come before it: no barrier lies between, so no store of the run is
    one that a load must see.
    """
    definition = op.definition
    if op.regions or definition.has(COLLECTIVE) or definition.has(ASYNC):
        return False
    tiles = [value for value in op.results if isinstance(value.type, TileType)]
    harmless = definition.has(PURE) or _is_load(op) or op.name == "shared"
    return harmless and all(registers_of(tile) <= SMALL for tile in tiles)


def _runs(ops: list[Op]) -> Iterator[_Run]:
    """The ops of a block in runs; an op that is in none makes one of its own, without `ops`."""
    run = _Run()
    for op in ops:
        if run.takes(op):
            continue
        if run.all:
            yield run
        run = _Run()
        if not run.takes(op):
            yield _Run([op])
    if run.all:
        yield run


def _copy(block: Block, builder: Builder, mapping: Mapping, around: set[Value], room: int, cut: list[_Run]) -> None:
    """Copies a block with its runs cut, which are added to `cut`. `around`: values that are needed after it."""
    needed = _needed_after(block, around)
    place = 0
    for run in _runs(block.ops):
        first, place = place, place + len(run.all)
        after = needed[place]
        parts = _parts(run, needed[first], after, room)
        if parts > 1:
            _cut(run, parts, builder, mapping, after)
            cut.append(run)
            continue
        for op in run.all:
            builder.at(op)
            if op.regions:
                again = _used(op) if op.definition.has(LOOP) else set[Value]()
                clone_with_regions(
                    builder, op, mapping, lambda old, inner, a=after | again: _copy(old, inner, mapping, a, room, cut)
                )
            else:
                clone_op(builder, op, mapping)


def _needed_after(block: Block, around: set[Value]) -> list[set[Value]]:
    """By position, the values from before that something at or after it needs."""
    needed = [set(around)]
    for op in reversed(block.ops):
        needed.append((needed[-1] | _used(op)).difference(op.results))
    return needed[::-1]


def _used(op: Op) -> set[Value]:
    """The values that an op and its regions need from outside."""
    used = set(op.operands)
    for region in op.regions:
        for inner in reversed(region.ops):
            used = used.difference(inner.results) | _used(inner)
        used.difference_update(region.arguments)
    return used


def _parts(run: _Run, live: set[Value], after: set[Value], room: int) -> int:
    """Into how many parts to cut a run; 1: none is needed, or possible. `live` and `after`: what exists before the run,
    and what is needed behind it, where a load takes its registers whole.
    """
    used_up = [op.result for op in run.loads if op.result not in after]
    if not used_up or register_count(run.ops[0]) < SMALLEST:
        return 1
    loaded = sum(map(registers_of, used_up))
    left = room - sum(registers_of(value) for value in live if not isinstance(value.type, ViewType))
    parts = 1
    while loaded > max(left, LEAST_LOADED) * parts:
        finer = 2 * parts
        if register_count(run.ops[0]) // finer < SMALLEST_PART or not fits(run.ops, finer):
            break
        parts = finer
    return parts


def _cut(run: _Run, parts: int, builder: Builder, mapping: Mapping, after: set[Value]) -> None:
    for op in run.in_front:
        clone_op(builder.at(op), op, mapping)
    builder.at(*run.ops)
    body = Block()
    inner = builder.inner(body)
    loads = run.loads
    # Loads need nothing of the run. In front of its arithmetic they fly together.
    for op in [*loads, *(op for op in run.ops if op not in loads)]:
        clone_op(inner, op, mapping)
    given = [value for op in run.ops for value in op.results if value in after]
    inner.op("yield", [mapping[value] for value in given])
    new = builder.op("interleave", regions=[body], hints=[value.name for value in given], parts=parts)
    mapping.update(zip(given, new.results, strict=True))
