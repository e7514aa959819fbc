"""Candidate schedules of a kernel, best predicted first, and the choice that is made without measuring.

The points of an author's tuning space are lowered with the compiler's own choice of what they leave open; then fields
of the schedule are changed, one at a time, at the best few points, for as long as that is predicted to help. What is
the same code as another point is not kept twice, and for every point that is not kept there is a reason.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.frontend.definition import KernelDefinition
from tessera.ir.core import Module
from tessera.ir.dims import Size
from tessera.program import Program
from tessera.search.engine import Engine, Entry
from tessera.search.points import Points, pinned
from tessera.target.cost import Cost
from tessera.target.schedule import FIXED_BY_CONSTANTS, Schedule

LIMIT_OF_SLOWER = 3.0  # times the best prediction, beyond which a point is not worth measuring
CLEARLY = (
    0.9  # of what is predicted behind the launch of the author's first point: what the untuned choice leaves that for
)
NOTICED = 0.95  # of all of that prediction, the same
SHORT = 6  # lowerings of the untuned choice, at most


@dataclass(frozen=True)
class Candidate:
    """A point that is worth measuring.

    `constants` of the author's tuning space ({} for a plain kernel), the schedule in full, the program as CUDA text,
    and what it is predicted to cost.
    """

    constants: dict[str, Any]
    schedule: Schedule
    program: Program
    cost: Cost


@dataclass(frozen=True)
class Pruned:
    """A point that is not, and why, in one sentence. `schedule`: what is known of it, by field."""

    constants: dict[str, Any]
    schedule: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Search:
    """Every point of the author's space is in one of the two; the candidates are ordered, best predicted first."""

    candidates: tuple[Candidate, ...]
    pruned: tuple[Pruned, ...]
    seconds: float


def search(
    definition: KernelDefinition | Module,
    dims: Mapping[str, int],
    arch: str,
    *,
    grid: Sequence[Size] | None = None,
    alignment: Mapping[str, int] | None = None,
    divisors: Mapping[str, int] | None = None,
    strides: Mapping[str, tuple[Size, ...]] | None = None,
    pins: Mapping[str, Any] | None = None,
    limit: int | None = None,
    workers: int = 1,
    wide: bool = True,
) -> Search:
    """The points of a kernel's tuning space and schedules that are worth measuring on `arch`, for these dims.

    `grid`, `alignment`, `divisors` and `strides` as for compiling. `pins`: tuning constants and fields of the schedule
    that are fixed. `limit`: the most candidates. `workers`: processes that lower. `wide=False` looks at nothing but the
    short list of the untuned choice. Raises SourceError for pins that do not exist, and what keeps every point from
    being compiled.
    """
    start = time.perf_counter()
    points = Points(pinned(definition, pins or {}), dims, grid, strides)
    with Engine(points, arch, alignment, divisors, workers if wide else 1) as engine:
        if wide:
            engine.try_points(points.all())
            engine.descend()
        else:
            _look(engine, points)
        kept = engine.ranked(LIMIT_OF_SLOWER, limit)
        programs = engine.programs(kept)
        found = [_candidate(entry, program) for entry, program in zip(kept, programs, strict=True)]
        pruned = [Pruned(entry.constants, entry.known, entry.reason) for entry in engine.pruned]
    return Search(tuple(found), tuple(pruned), time.perf_counter() - start)


def choose(
    definition: KernelDefinition | Module,
    dims: Mapping[str, int],
    arch: str,
    *,
    grid: Sequence[Size] | None = None,
    alignment: Mapping[str, int] | None = None,
    divisors: Mapping[str, int] | None = None,
    strides: Mapping[str, tuple[Size, ...]] | None = None,
    pins: Mapping[str, Any] | None = None,
) -> Candidate:
    """The point that is taken where nothing was measured: always the same one, in a second or so.

    A kernel without a tuning space takes its default schedule. Of a space, the author's first point, unless one of a
    short list is predicted to be clearly better (`CLEARLY`). Raises as `search` does.
    """
    points = Points(pinned(definition, pins or {}), dims, grid, strides)
    with Engine(points, arch, alignment, divisors) as engine:
        entry = _look(engine, points)
        return _candidate(entry, engine.programs([entry])[0])


def _look(engine: Engine, points: Points) -> Entry:
    """The untuned choice among a short list, which is what the engine has tried then."""
    launch = [name for name in points.candidates if name in FIXED_BY_CONSTANTS]
    levels = points.short_list(launch)
    engine.try_points(levels)
    first, best = engine.first(), engine.best()
    slots = next(name for name, field in FIXED_BY_CONSTANTS.items() if field == "stages")
    for name in launch:
        schedule = best.lowered.schedule
        base, values = best.constants, list(points.candidates[name][1:])
        rings = schedule is not None and schedule.copies == "tma"
        if name == "num_warps" and schedule is not None and schedule.family == "wgmma":
            # Warpgroups share out whole tiles of 64 rows each: more of them need the largest tiles, and all the slots
            # that there can be, so that what they are compared by is not how they wait.
            base = {**levels[-1], **({slots: points.candidates[slots][-1]} if slots in launch and rings else {})}
        if name == slots and rings:
            values.reverse()  # most slots first: rings have no more than shared memory holds
        for value in values:
            if engine.tried < SHORT:
                engine.try_points([{**base, name: value}])
        best = engine.best()
    noticed = best.seconds < NOTICED * first.seconds
    return best if noticed and _decided(best) < CLEARLY * _decided(first) else first


def _decided(entry: Entry) -> float:
    """The predicted seconds that a schedule decides: all but those of any launch."""
    assert entry.lowered.cost is not None
    return entry.seconds - entry.lowered.cost.terms["launch"]


def _candidate(entry: Entry, program: Program) -> Candidate:
    assert entry.lowered.schedule is not None and entry.lowered.cost is not None
    return Candidate(entry.constants, entry.lowered.schedule, program, entry.lowered.cost)


__all__ = ["Candidate", "Pruned", "Search", "choose", "search"]
