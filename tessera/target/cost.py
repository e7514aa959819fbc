"""What a schedule is predicted to cost: a Target kernel's bytes, operations and waits over the rates of its GPU.

The model ranks schedules of one kernel; it is no promise of a time. A launch takes as long as the slowest of three
things: DRAM moving each tensor's bytes, the level-2 cache moving all traffic, and the multiprocessors working off their
waves of blocks. A wave lasts as long as the work of its blocks together or, where they are too few to hide it, one
block's work with all it waits for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.ir.clusters import cluster_of
from tessera.ir.core import Kernel
from tessera.ir.programs import grid_extents, persistent_loop
from tessera.target.arch import Arch
from tessera.target.cost_counts import Counter, Stall, Traffic, Work
from tessera.target.cost_registers import live_registers
from tessera.target.cost_scalars import Scalars


@dataclass(frozen=True)
class Constants:
    """What the model assumes of every GPU, measured on an H100 SXM unless it says otherwise."""

    launch: float = 2.5e-6  # seconds between two events around an empty kernel
    clock: float = 1.7e9  # hertz under load
    dram: float = 0.9  # share of the bandwidth that a copy reaches: 2.97 of 3.35 TB/s
    l2_bytes: float = 40.0  # per clock and multiprocessor, 9 TB/s: a product of 2048^3 in 64 us moves 8.4 TB/s
    l2_capacity: int = 24 << 20  # bytes that stay until the next wave: about half of the cache
    mma_sync: float = 0.62  # share of the wgmma rate that mma.sync reaches, where the chip has wgmma
    mma_base: float = 0.85  # share of the rate that mma.sync reaches elsewhere (A100)
    shared_bytes: float = 128.0  # per clock and multiprocessor: 32 banks of 4 bytes
    lanes: float = 128.0  # thread instructions that a multiprocessor issues per clock
    warps_to_fill: float = 8.0  # warps of a multiprocessor that keep its pipelines busy
    memory_latency: float = 800e-9  # seconds from a copy's start to its wait: DRAM's 600 ns, issue and barrier
    barrier: float = 30e-9  # seconds until the last warp has come
    reduction: float = 80e-9  # seconds of the shuffles of a warp
    overlap: float = 0.25  # of the lesser of two kinds of work, what does not hide behind the greater
    contention: float = 0.05  # the same of memory and work where copies fly ahead


CONSTANTS = Constants()


@dataclass(frozen=True)
class Cost:
    """The prediction for one launch. `seconds` is what schedules are ranked by.

    `bytes_dram` and `bytes_l2` are those of the whole launch, as are `flops` (of matrix products, padding included);
    `shared_bytes` are a block's, `registers` an estimate for a thread. `waves`: blocks over those that run at once.
    `limit`: the name of the largest of `terms`, which are seconds.
    """

    seconds: float
    bytes_dram: int
    bytes_l2: int
    flops: int
    shared_bytes: int
    registers: int
    blocks_per_sm: int
    waves: float
    limit: str
    terms: dict[str, float]


def total(costs: Sequence[Cost]) -> Cost:
    """Launches one after the other: times and traffic add up; what is said of a block is that of the longest one."""
    if len(costs) == 1:
        return costs[0]
    longest = max(costs, key=lambda one: one.seconds)
    terms = {name: sum(one.terms.get(name, 0.0) for one in costs) for name in longest.terms}
    return replace(
        longest,
        seconds=sum(one.seconds for one in costs),
        bytes_dram=sum(one.bytes_dram for one in costs),
        bytes_l2=sum(one.bytes_l2 for one in costs),
        flops=sum(one.flops for one in costs),
        terms=terms,
    )


def cost(kernel: Kernel, arch: Arch, dims: Mapping[str, int], constants: Constants = CONSTANTS) -> Cost:
    """Predicts a launch of a placed Target kernel; `dims` binds every dim that is not static.

    A kernel whose block is too large for a multiprocessor costs infinity.
    """
    values = {**(kernel.attributes.get("static") or {}), **dims}
    grid = grid_extents(kernel.attributes.get("grid", (1,)), values, arch.typical_sm_count)
    programs = math.prod(grid)
    computing = kernel.attributes["warps"] * arch.warp_size
    threads = computing + kernel.attributes.get("producer_warps", 0) * arch.warp_size
    shared = kernel.attributes.get("shared_bytes") or 0
    wanted = live_registers(kernel)
    limit, moved = register_limit(arch, threads, _promised_blocks(kernel)), consumer_registers(kernel)
    registers = limit if moved else min(wanted, limit)  # all that there are, where roles move them
    resident = occupancy(arch, threads, shared, registers)
    if not resident or not programs:
        terms = {"launch": constants.launch}
        seconds = math.inf if programs else constants.launch
        return Cost(seconds, 0, 0, 0, shared, wanted, 0, 0.0, "launch", terms)
    at_once = arch.typical_sm_count * resident
    counter = Counter(Scalars(values, grid, min(programs, at_once)), computing, values)
    turns = _turns(kernel, counter, programs)
    counter.block(kernel.body, 1.0)
    _add_spills(counter.work, wanted - (moved or registers), computing)
    launch = _Launch(arch, constants, programs, resident, computing // arch.warp_size, turns)
    traffic = counter.traffic.values()
    share = programs / counter.scalars.count
    moved, l2 = sum(_dram_bytes(item, share, constants) for item in traffic), sum(t.moved for t in traffic) * share
    together = 1.0 - counter.flown / max(1.0, sum(t.moved for t in traffic))
    terms, seconds = launch.time(counter.work, counter.stall, moved, l2, together)
    return Cost(
        seconds,
        int(moved),
        int(l2),
        int((counter.work.matrix + counter.work.tf32 + counter.work.fma) * programs),
        shared,
        wanted,
        resident,
        programs / at_once,
        max(terms, key=lambda name: terms[name]),
        terms,
    )


def _turns(kernel: Kernel, counter: Counter, programs: int) -> float:
    """How many programs of the author's grid each of so many of a persistent kernel is, in the mean; 1 for others.

    Tells the counter, for which that is no whole number either: the bytes of all programs are to be right.
    """
    loop = persistent_loop(kernel)
    total = None if loop is None else counter.scalars.value(loop.operand("upper"))
    if loop is None or not isinstance(total, int):
        return 1.0
    turns = total * cluster_of(kernel) / programs  # the loop is over clusters
    counter.iterations[loop] = turns
    return turns


def _promised_blocks(kernel: Kernel) -> int:
    return (kernel.attributes.get("schedule") or {}).get("blocks", 1)


def register_limit(arch: Arch, threads: int, blocks: int) -> int:
    """Registers that a thread can have where so many blocks have to fit on a multiprocessor."""
    return min(arch.max_registers_per_thread, arch.registers_per_sm // (threads * blocks) // 8 * 8)


def consumer_registers(kernel: Kernel) -> int:
    """Registers of a thread that computes, where roles say so; 0 where they do not."""
    return next((op.attributes["registers"][-1] for op in kernel.body.ops if op.name == "roles"), 0)


def occupancy(arch: Arch, threads: int, shared: int, registers: int) -> int:
    """Blocks that a multiprocessor holds at once; 0 where one is too large."""
    if threads > arch.max_threads_per_block or shared > arch.shared_bytes_per_block:
        return 0
    per_thread = -(-registers // 8) * 8  # allocated in eights
    limits = (
        arch.max_blocks_per_sm,
        arch.max_threads_per_sm // threads,
        arch.shared_bytes_per_sm // (shared + arch.reserved_shared_bytes),
        arch.registers_per_sm // (per_thread * threads),
    )
    return min(limits)


def _add_spills(work: Work, missing: int, threads: int) -> None:
    """Registers that do not fit go to local memory and come back, once for each time that they are used."""
    if missing > 0:
        share = min(1.0, missing / 64)  # of the instructions that wait for a register from memory
        work.instructions *= 1.0 + 2.0 * share
        work.shared += 2.0 * share * work.shared + missing * 8 * threads


def _dram_bytes(traffic: Traffic, share: float, constants: Constants) -> float:
    """Bytes of a tensor that reach DRAM: those of the distinct windows of each wave.

    Windows of several ops overlap, and later waves find in the cache what fits there.
    """
    most = traffic.tensor
    if traffic.tensor > constants.l2_capacity:
        most = max(most, traffic.largest * share)
    once = min(traffic.distinct * share, most)
    return once * (2 if traffic.read and traffic.written else 1)


@dataclass(frozen=True)
class _Launch:
    """A grid of `programs` on a GPU whose multiprocessors hold `resident` blocks of `warps` each. `turns`: how many
    programs of the author's grid each of them is, one after the other, in the mean.
    """

    arch: Arch
    constants: Constants
    programs: int
    resident: int
    warps: int
    turns: float = 1.0

    def time(self, work: Work, stall: Stall, dram: float, l2: float, together: float) -> tuple[dict[str, float], float]:
        """Seconds by term, and all of them together. `together`: the share of the bytes that fly ahead of no work."""
        c, arch = self.constants, self.arch
        parts = self._parts(work)
        waiting = self._waiting(stall)
        full, rest = divmod(self.programs, arch.typical_sm_count * self.resident)
        last = -(-rest // arch.typical_sm_count)
        busy = full * self._wave(self.resident, parts, 0.0) + (self._wave(last, parts, 0.0) if last else 0.0)
        lasting = full * self._wave(self.resident, parts, waiting) + (self._wave(last, parts, waiting) if last else 0.0)
        slowest = math.ceil(self.turns) / self.turns
        busy, lasting = slowest * busy, slowest * lasting
        per_sm = self.programs / arch.typical_sm_count
        terms = {
            "dram": dram / (arch.typical_dram_bandwidth * c.dram),
            "l2": l2 / (c.l2_bytes * c.clock * arch.typical_sm_count),
            **{name: seconds * per_sm for name, seconds in parts.items()},
            "latency": lasting - busy,
            "launch": c.launch,
        }
        memory = max(terms["dram"], terms["l2"])
        slower, faster = max(memory, lasting), min(memory, lasting)
        return terms, c.launch + slower + max(c.contention, together * self._in_phase(stall)) * faster

    def _in_phase(self, stall: Stall) -> float:
        """The share of their lives in which all blocks load at one time, and then all work: the first wave, and later
        ones as far as no other block of the multiprocessor, or warp where none waits for others, fills the gap.
        """
        waves = self.turns * max(1.0, self.programs / (self.arch.typical_sm_count * self.resident))
        parts = self.resident * (1 if stall.barriers else self.warps)
        return (1.0 + (waves - 1.0) / parts) / waves

    def _parts(self, work: Work) -> dict[str, float]:
        """Seconds that one program keeps a full multiprocessor busy, by kind of work."""
        c, arch = self.constants, self.arch
        reached = c.mma_sync if arch.wgmma else c.mma_base
        matrix = arch.typical_bf16_rate * reached / arch.typical_sm_count
        single = arch.typical_f32_rate / arch.typical_sm_count
        return {
            "mma": (work.matrix + 2 * work.tf32) / matrix + work.fma / single,
            "shared": work.shared / (c.shared_bytes * c.clock),
            "alu": work.instructions / (c.lanes * c.clock),
        }

    def _wave(self, blocks: int, parts: Mapping[str, float], waiting: float) -> float:
        """Seconds until `blocks` blocks of one multiprocessor are done, each waiting `waiting` seconds in all."""
        kinds = sorted(parts.values())
        work = kinds[-1] + self.constants.overlap * sum(kinds[:-1])
        together = blocks * work / self._filled(blocks)
        return max(together, waiting + work / self._filled(1))

    def _filled(self, blocks: int) -> float:
        """The share of its rates that a multiprocessor reaches with the warps of so many blocks."""
        return min(1.0, blocks * self.warps / self.constants.warps_to_fill)

    def _waiting(self, stall: Stall) -> float:
        """Seconds that one program waits where nothing else runs."""
        c = self.constants
        seconds = stall.memory * c.memory_latency + stall.barriers * c.barrier + stall.reductions * c.reduction
        for times, ahead, work in stall.ahead:
            # A copy has `ahead` iterations to arrive; what it needs longer, each iteration waits its part of.
            iteration = self._wave(1, self._parts(work), 0.0)
            seconds += times * max(0.0, c.memory_latency / ahead - iteration)
        return seconds


__all__ = ["CONSTANTS", "Constants", "Cost", "consumer_registers", "cost", "occupancy", "register_limit"]
