"""The bookkeeping of a search: what was lowered, which of it is worth keeping, and why the rest is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from tessera.compiler import find_arch
from tessera.errors import SourceError, TesseraError
from tessera.frontend.space import Point
from tessera.ir.core import Module
from tessera.ir.printer import print_module
from tessera.program import Program
from tessera.search.lowering import Lowered, Lowering, Request, Setting
from tessera.search.points import Points
from tessera.search.workers import Workers
from tessera.target.arch import Arch
from tessera.target.schedule import FIXED_BY_CONSTANTS

BASES = 2  # points at which fields of the schedule are changed
VARIATIONS = 32  # of them that are lowered, at most
SAME = 1.001  # times a prediction: no difference
BETTER = 0.99  # of a prediction: what makes another step worth it
SPILLING = 1.5  # times the registers that a thread can have
SPILLING_SUMS = 1.1  # the same of wgmma: the assembler does one product after the other where their sums spill


@dataclass
class Entry:
    """A point that was tried. `reason` says why it is not kept; empty while it is."""

    constants: Point
    lowered: Lowered
    reason: str = ""

    @property
    def seconds(self) -> float:
        assert self.lowered.cost is not None
        return self.lowered.cost.seconds

    @property
    def known(self) -> dict[str, Any]:
        """What is known of the schedule, by field."""
        schedule = self.lowered.schedule
        return dict(self.lowered.request.changes) if schedule is None else asdict(schedule)

    @property
    def label(self) -> str:
        """The point in words that fit into a sentence."""
        parts = [f"{name}={value}" for name, value in (*self.constants.items(), *self.lowered.request.changes)]
        return " ".join(parts) or "the default schedule"


def _worth_asking(base: Entry) -> tuple[int, int]:
    """Blocks that a multiprocessor can be asked to hold: those that are predicted to fit, and one more. Of persistent
    programs it runs as many as it is asked to hold.
    """
    assert base.lowered.cost is not None
    return base.lowered.cost.blocks_per_sm, base.lowered.cost.blocks_per_sm + 1


class Engine:
    """A context: leaving it ends the processes of `workers`, which start when the first points are tried."""

    def __init__(
        self,
        points: Points,
        arch: str,
        alignment: Mapping[str, int] | None,
        divisors: Mapping[str, int] | None,
        workers: int = 1,
    ) -> None:
        self.arch: Arch = find_arch(arch)
        self.points, self.workers = points, workers
        copies = [None if known is None else dict(known) for known in (alignment, divisors)]
        self.setting = Setting(arch, points.dims, *copies)
        self.here = Lowering(points.modules, self.setting)
        self.pool: Workers | None = None
        self.entries: list[Entry] = []
        self.pruned: list[Entry] = []
        self.tried = 0
        self._seen: dict[Request, None] = {}
        self._by_key: dict[str, Entry] = {}
        self._error: TesseraError | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    # ---- lowering ----

    def try_points(self, points: Sequence[Point]) -> None:
        """Lowers points of the tuning space with the schedule that the compiler takes there."""
        requests, failed = self.points.requests(points)
        for point, error in failed:
            self._drop(Entry(point, Lowered(Request(-1, tuple(point.items())), error=error)), error.message)
            self._error = self._error or error
        if self.workers > 1 and len(requests) > 1 and self.pool is None:
            texts = [print_module(m) if isinstance(m, Module) else m for m in self.points.modules]
            self.pool = self._stack.enter_context(Workers(self.workers, texts, self.setting))
        self._lower(requests)

    def descend(self) -> None:
        """Changes fields of the schedule at the best points, one after the other, while that helps."""
        bases = sorted(self.entries, key=lambda entry: entry.seconds)[:BASES]
        budget = VARIATIONS
        for number, base in enumerate(bases):
            share = budget // (len(bases) - number)
            budget -= self._descend_from(base, share)

    def _descend_from(self, base: Entry, budget: int) -> int:
        """How many points were lowered on the way down."""
        spent = 0
        while True:
            requests = self._neighbours(base)[: budget - spent]
            found = self._lower(requests)
            spent += len(requests)
            best = min(found, key=lambda entry: entry.seconds, default=base)
            if best.seconds >= BETTER * base.seconds:
                return spent
            base = best

    def _neighbours(self, base: Entry) -> list[Request]:
        """The points that differ from `base` in one field and were not tried."""
        request, schedule = base.lowered.request, base.lowered.schedule
        assert schedule is not None
        found = []
        for name, values in self.here.choices(replace(request, changes=())).items():
            for value in values:
                changes = {**dict(request.changes), name: value}
                if value == values[0]:
                    del changes[name]  # as the point has it by itself
                changed = replace(request, changes=tuple(sorted(changes.items())))
                asks = name != "blocks" or schedule.persistent or value in _worth_asking(base)
                if asks and value != getattr(schedule, name) and changed not in self._seen:
                    found.append(changed)
        return found

    def _lower(self, requests: Sequence[Request]) -> list[Entry]:
        """The entries of those that are kept."""
        self.tried += len(requests)
        self._seen.update(dict.fromkeys(requests))
        results = self.pool.map("lower", requests) if self.pool else [self.here.lower(r) for r in requests]
        entries = [Entry(dict(result.request.constants), result) for result in results]
        return [entry for entry in entries if self._keep(entry)]

    def programs(self, entries: Sequence[Entry]) -> list[Program]:
        """The compiled text of each; they are verified here."""
        requests = [entry.lowered.request for entry in entries]
        return self.pool.map("finish", requests) if self.pool else [self.here.finish(r) for r in requests]

    # ---- keeping ----

    def _keep(self, entry: Entry) -> bool:
        found = entry.lowered
        if found.error is not None or found.cost is None:
            assert found.error is not None
            self._error = self._error or found.error
            return self._drop(entry, found.error.message)
        if not found.cost.blocks_per_sm:
            self._error = self._error or SourceError("TS501", self._too_large(entry))
            return self._drop(entry, self._too_large(entry))
        for key, words in ((found.code, "same code as {}"), (found.accesses, "same accesses as {}, by other indices")):
            known = self._by_key.get(key)
            if known is not None:
                return self._drop(entry, words.format(known.label))
        self._by_key.update({found.code: entry, found.accesses: entry})
        self.entries.append(entry)
        return True

    def _drop(self, entry: Entry, reason: str) -> bool:
        entry.reason = reason
        self.pruned.append(entry)
        return False

    def _too_large(self, entry: Entry) -> str:
        found, arch = entry.lowered.cost, self.arch
        assert found is not None and entry.lowered.schedule is not None
        if found.shared_bytes > arch.shared_bytes_per_block:
            return (
                f"needs {found.shared_bytes} bytes of shared memory and {arch.name} has {arch.shared_bytes_per_block}"
            )
        return f"a block of {entry.lowered.schedule.warps * arch.warp_size} threads does not fit {arch.name}"

    def first(self) -> Entry:
        """The first point that was tried and can be compiled. Raises what keeps all from it."""
        if not self.entries:
            raise self._error or SourceError("TS501", "there is no point to compile")
        return self.entries[0]

    def best(self) -> Entry:
        """The fastest predicted one of those that would not spill, if there are any; of points that differ in the slots
        of rings alone, the one with the most.
        """
        self.first()
        fastest = min(self.entries, key=lambda entry: (self._spills(entry), entry.seconds))
        alike = [entry for entry in self.entries if self._differ_in_slots(entry, fastest)]
        return max(alike, key=lambda entry: entry.known["stages"], default=fastest)

    def _differ_in_slots(self, entry: Entry, fastest: Entry) -> bool:
        """Whether two points are one but for the slots of rings, which the model sees no difference in: what slots hide
        beyond the mean of a latency costs nothing where shared memory has room.
        """
        own, other = entry.lowered.schedule, fastest.lowered.schedule
        if own is None or other is None or other.copies != "tma" or self._spills(entry) != self._spills(fastest):
            return False
        slots = next(name for name, field in FIXED_BY_CONSTANTS.items() if field == "stages")
        constants = [{k: v for k, v in each.constants.items() if k != slots} for each in (entry, fastest)]
        same = constants[0] == constants[1] and replace(own, stages=other.stages) == other
        return same and entry.seconds <= SAME * fastest.seconds

    def ranked(self, slowest: float, limit: int | None) -> list[Entry]:
        """The entries that are kept, best predicted first; the others go to `pruned`.

        Those that would spill registers are kept only where all do; `slowest`: times the best prediction.
        """
        self.first()
        fitting = [entry for entry in self.entries if not self._spills(entry)]
        best = min(entry.seconds for entry in fitting or self.entries)
        kept: list[Entry] = []
        for entry in sorted(self.entries, key=lambda entry: entry.seconds):
            ratio = entry.seconds / best
            if fitting and self._spills(entry):
                self._drop(entry, self._spilling(entry))
            elif ratio > slowest or limit is not None and len(kept) >= limit:
                self._drop(entry, f"predicted {ratio:.{1 if ratio > slowest else 2}f}x slower than the best")
            else:
                kept.append(entry)
        return kept

    def _spills(self, entry: Entry) -> bool:
        found, schedule = entry.lowered.cost, entry.lowered.schedule
        assert found is not None and schedule is not None
        most = SPILLING_SUMS if schedule.family == "wgmma" else SPILLING
        return found.registers > most * found.registers_left

    def _spilling(self, entry: Entry) -> str:
        found, schedule = entry.lowered.cost, entry.lowered.schedule
        assert found is not None and schedule is not None
        blocks = f"{schedule.blocks} blocks of {schedule.warps} warps" if schedule.blocks > 1 else (
            f"a block of {schedule.warps} warps"
        )  # fmt: skip
        return f"needs about {found.registers} registers a thread, and {blocks} leave {found.registers_left}"


__all__ = ["Engine", "Entry"]
