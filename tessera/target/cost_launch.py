"""How long a launch takes, from what one of its programs does (`cost_counts`).

A wave lasts as long as the work of its blocks together or, where they are too few to hide it, one block's work with all
it waits for. Where a block has roles, its producer and its consumers run at once, and the slower of them decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tessera.target.arch import Arch
from tessera.target.cost_constants import Constants
from tessera.target.cost_counts import RingUse, Stall, Work
from tessera.target.wgmma import WGMMA_WARPS


@dataclass(frozen=True)
class Launch:
    """A grid of `programs` on a GPU whose multiprocessors hold `resident` blocks of `warps` that compute each.

    `work` and `stall` are those of one program; `turns`: how many programs of the author's grid each of them is, one
    after the other, in the mean; `uneven`: how many times the mean work of a program the busiest one has.
    """

    arch: Arch
    constants: Constants
    programs: int
    resident: int
    warps: int
    turns: float
    uneven: float
    work: Work
    stall: Stall

    def time(self, dram: float, l2: float, together: float) -> tuple[dict[str, float], float]:
        """Seconds by term, and all of them together. `dram` and `l2`: bytes that the launch moves; `together`: the
        share of the bytes that fly ahead of no work.
        """
        c, arch = self.constants, self.arch
        busy, lasting = self._waves(0.0), self._waves(self._waiting())
        per_sm = self.programs / arch.typical_sm_count
        terms = {
            "dram": dram / (arch.typical_dram_bandwidth * c.dram),
            "l2": l2 / (c.l2_bytes * c.clock * arch.typical_sm_count),
            **{name: seconds * per_sm for name, seconds in self._parts(self.work).items()},
            "latency": lasting - busy,
            "launch": c.launch,
        }
        memory = max(terms["dram"], terms["l2"])
        slower, faster = max(memory, lasting), min(memory, lasting)
        return terms, c.launch + slower + max(c.contention, together * self._in_phase()) * faster

    def _waves(self, waiting: float) -> float:
        """Seconds until the slowest multiprocessor has done its blocks, each of which waits `waiting` seconds."""
        full, rest = divmod(self.programs, self.arch.typical_sm_count * self.resident)
        last = -(-rest // self.arch.typical_sm_count)
        seconds = full * self._wave(self.resident, waiting) + (self._wave(last, waiting) if last else 0.0)
        return seconds * max(self.uneven, math.ceil(self.turns) / self.turns)

    def _in_phase(self) -> float:
        """The share of their lives in which all blocks load at one time, and then all work: the first wave, and later
        ones as far as no other block of the multiprocessor, or warp where none waits for others, fills the gap.
        """
        waves = self.turns * max(1.0, self.programs / (self.arch.typical_sm_count * self.resident))
        parts = self.resident * (1 if self.stall.barriers else self.warps)
        return (1.0 + (waves - 1.0) / parts) / waves

    def _parts(self, work: Work) -> dict[str, float]:
        """Seconds that one program keeps a full multiprocessor busy, by kind of work."""
        c, arch = self.constants, self.arch
        rate, shared = arch.typical_bf16_rate / arch.typical_sm_count, c.shared_bytes * c.clock
        reached = c.mma_sync if arch.wgmma else c.mma_base
        single = arch.typical_f32_rate / arch.typical_sm_count
        # Operands are read while earlier ones are multiplied.
        warpgroups = max((work.wgmma + work.narrow / 2) / (rate * c.wgmma), work.operands / shared)
        return {
            "mma": (work.matrix + 2 * work.tf32) / (rate * reached) + work.fma / single + warpgroups,
            "shared": (work.shared + work.operands + work.bulk) / shared,
            "alu": work.instructions / (c.lanes * c.clock),
        }

    def _wave(self, blocks: int, waiting: float) -> float:
        """Seconds until `blocks` blocks of one multiprocessor are done, each waiting `waiting` seconds in all."""
        parts = self._parts(self.work)
        together = blocks * self._alone(parts, blocks) / self._filled(blocks)
        return max(together, waiting + self._alone(parts, 1) / self._filled(1))

    def _alone(self, parts: dict[str, float], blocks: int) -> float:
        """Seconds of all kinds of work of one of so many blocks, where there are warps enough for each."""
        kinds = sorted(parts.values())
        return kinds[-1] + self._not_hidden(blocks) * sum(kinds[:-1])

    def _not_hidden(self, blocks: int) -> float:
        """The share of a lesser kind of work that does not hide behind a greater one. A warpgroup waits for its
        products before it works on their sums: what hides one kind of work is another warpgroup at another kind.
        """
        share = WGMMA_WARPS / (blocks * self.warps) if self.work.wgmma or self.work.narrow else 0.0
        return min(1.0, max(self.constants.overlap, share))

    def _filled(self, blocks: int) -> float:
        """The share of its rates that a multiprocessor reaches with the warps of so many blocks."""
        return min(1.0, blocks * self.warps / self.constants.warps_to_fill)

    def _waiting(self) -> float:
        """Seconds that one program waits where nothing else runs."""
        c, stall = self.constants, self.stall
        seconds = stall.memory * c.memory_latency + stall.barriers * c.barrier + stall.reductions * c.reduction
        for times, ahead, work in stall.ahead:
            # A copy has `ahead` iterations to arrive; what it needs longer, each iteration waits its part of.
            iteration = self._alone(self._parts(work), 1) / self._filled(1)
            seconds += times * max(0.0, c.memory_latency / ahead - iteration)
        return seconds


@dataclass(frozen=True)
class RolesLaunch(Launch):
    """A launch whose blocks have a producer. `rings`: what it fills in one program, for `teams` of consumers."""

    rings: tuple[RingUse, ...] = ()
    teams: int = 1

    def time(self, dram: float, l2: float, together: float) -> tuple[dict[str, float], float]:
        """Nothing is computed before the first copies have landed, and what stays for the whole program."""
        terms, seconds = super().time(dram, l2, together)
        waves = math.ceil(self.programs / (self.arch.typical_sm_count * self.resident))
        start = waves * (self.constants.memory_latency + self._copied(ring.bytes for ring in self.rings if ring.kept))
        terms["latency"] += start
        terms["fill"] = self.programs / self.arch.typical_sm_count * max(self._filling(1), self._rings(0.0))
        return terms, seconds + start

    def _wave(self, blocks: int, waiting: float) -> float:
        parts = self._parts(self.work)
        one, all_ = self._consumers(1, parts), self._consumers(blocks, parts)
        return max(all_, waiting + one, blocks * parts["shared"], self._filling(blocks), self._rings(one))

    def _consumers(self, blocks: int, parts: dict[str, float]) -> float:
        """Seconds of the work of so many blocks. Products keep the tensor cores busy whatever the number of warps, and
        what TMA moves no thread waits for.
        """
        own = self.work.shared / (self.constants.shared_bytes * self.constants.clock)
        kinds = {"mma": parts["mma"], "alu": parts["alu"] / self._filled(blocks), "shared": own}
        return blocks * self._alone(kinds, blocks)

    def _filling(self, blocks: int) -> float:
        """Seconds of the copies of so many blocks where nothing holds them back."""
        return blocks * self._copied(ring.bytes for ring in self.rings)

    def _copied(self, counts: Iterable[float]) -> float:
        return sum(counts) / (self.constants.l2_bytes * self.constants.clock)

    def _rings(self, consumers: float) -> float:
        """Seconds in which the slots of the slowest ring come round as often as one program needs. Each round a slot is
        empty for a round trip, and held while its consumers work on it: `consumers` seconds in all, of every team.
        """
        held = consumers / self.teams
        rounds = (
            (ring.rounds * self.constants.round_trip + held) / ring.stages for ring in self.rings if not ring.kept
        )
        return max(rounds, default=0.0)


__all__ = ["Launch", "RolesLaunch"]
