"""What a schedule is predicted to cost: a Target kernel's bytes, operations and waits over the rates of its GPU.

The model ranks schedules of one kernel; it is no promise of a time. A launch takes as long as the slowest of three
things: DRAM moving each tensor's bytes, the level-2 cache moving all traffic, and the multiprocessors working off their
waves of blocks (`cost_launch`). What a program does is counted in `cost_counts`; what is assumed of a GPU is the table
`cost_constants`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.ir.core import Kernel
from tessera.ir.ops.roles import computing_warps
from tessera.ir.programs import grid_extents, persistent_loops, programs_in_turn
from tessera.target.arch import Arch
from tessera.target.cost_constants import CONSTANTS, Constants
from tessera.target.cost_counts import Counter, Traffic, Work
from tessera.target.cost_launch import Launch, RolesLaunch
from tessera.target.cost_registers import live_registers
from tessera.target.cost_scalars import Scalars
from tessera.target.role_registers import register_limit


@dataclass(frozen=True)
class Cost:
    """The prediction for one launch. `seconds` is what schedules are ranked by.

    `bytes_dram` and `bytes_l2` are those of the whole launch, as are `flops` (of matrix products, padding included);
    `shared_bytes` are a block's, `registers` an estimate for a thread, which can have `registers_left`. `waves`:
    blocks over those that run at once. `limit`: the name of the largest of `terms`, which are seconds.
    """

    seconds: float
    bytes_dram: int
    bytes_l2: int
    flops: int
    shared_bytes: int
    registers: int
    registers_left: int
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
    teams = computing_warps(kernel) // kernel.attributes["warps"]
    threads = teams * computing + kernel.attributes.get("producer_warps", 0) * arch.warp_size
    shared = kernel.attributes.get("shared_bytes") or 0
    wanted = live_registers(kernel)
    limit, moved = register_limit(arch, threads, _promised_blocks(kernel)), consumer_registers(kernel)
    registers = limit if moved else min(wanted, limit)  # all that there are, where roles move them
    left = moved or limit
    resident = occupancy(arch, threads, shared, registers)
    if not resident or not programs:
        terms = {"launch": constants.launch}
        seconds = math.inf if programs else constants.launch
        return Cost(seconds, 0, 0, 0, shared, wanted, left, 0, 0.0, "launch", terms)
    at_once = arch.typical_sm_count * resident
    counter = Counter(Scalars(values, grid, min(programs, at_once)), computing, values)
    turns = _turns(kernel, counter, programs, teams)
    counter.block(kernel.body, 1.0)
    _add_spills(counter.work, wanted - left, teams * computing)
    launch = _launch(counter, arch, constants, programs, resident, turns, teams)
    traffic = counter.traffic.values()
    share = programs / counter.scalars.count
    moved, l2 = sum(_dram_bytes(item, share, constants) for item in traffic), sum(t.moved for t in traffic) * share
    together = 1.0 - counter.flown / max(1.0, sum(t.moved for t in traffic))
    terms, seconds = launch.time(moved, l2, together)
    return Cost(
        seconds,
        int(moved),
        int(l2),
        int(counter.work.operations * programs),
        shared,
        wanted,
        left,
        resident,
        programs / at_once,
        max(terms, key=lambda name: terms[name]),
        terms,
    )


def _turns(kernel: Kernel, counter: Counter, programs: int, teams: int = 1) -> float:
    """How many programs of the author's grid each of so many of a persistent kernel is, in the mean; 1 for others. Of
    `teams` of consumers each takes its share, and an iteration of the producer is for all.

    Tells the counter, for which that is no whole number either: the bytes of all programs are to be right.
    """
    loops = persistent_loops(kernel)
    total = counter.scalars.value(loops[0].operand("upper")) if loops else None
    if not isinstance(total, int):
        return 1.0
    together = programs_in_turn(loops[0])
    turns = total * together / programs
    counter.iterations.update(dict.fromkeys(loops, turns / teams))
    counter.turns.update(dict.fromkeys(loops, (total, programs // together)))
    return turns


def _launch(
    counter: Counter, arch: Arch, constants: Constants, programs: int, resident: int, turns: float, teams: int
) -> Launch:
    working = max(1, min(teams, round(turns)))  # of the teams: the others find no program
    warps = working * counter.threads // arch.warp_size
    counted = counter.work, counter.stall.scaled(1.0 / working)  # teams wait side by side
    common = arch, constants, programs, resident, warps, turns, counter.uneven, *counted
    rings = tuple(replace(ring, rounds=ring.rounds * teams / working) for ring in counter.rings.values())
    return RolesLaunch(*common, rings, working) if rings else Launch(*common)


def _promised_blocks(kernel: Kernel) -> int:
    return (kernel.attributes.get("schedule") or {}).get("blocks", 1)


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


__all__ = ["CONSTANTS", "Constants", "Cost", "consumer_registers", "cost", "occupancy"]
