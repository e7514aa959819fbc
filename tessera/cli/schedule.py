"""`tessera ir --schedule`: which schedule is chosen for a kernel, why, and what else was possible.

Nothing is measured here: times are predictions, which rank schedules and promise nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from tessera.cli import report
from tessera.cli.sizes import sizes_of
from tessera.cli.target import Target
from tessera.errors import ArgumentError
from tessera.ir.opdef import TILE
from tessera.search import Candidate, Search, choose, search
from tessera.target.schedule import FIXED_BY_CONSTANTS, Schedule

SHOWN = 10  # alternatives in the table; `--json` has all
ALWAYS_SHOWN = 7  # fields of a schedule, from the first on: what every kernel has
HEADERS = ["", "predicted", "limit", "shared", "registers", "blocks/SM", "waves", "differs by"]
# Kinds of reasons, by how their sentences begin.
KINDS = {
    "same code as": "same code as another point",
    "same accesses as": "same accesses as another point, by other indices",
    "predicted": "predicted slower than what is kept",
    "needs about": "too many registers",
    "needs": "too much shared memory",
}


def explain(target: str, item: Target, given: dict[str, int] | None, arch: str, as_json: bool) -> int:
    """Raises ArgumentError TS605 for a function, and for IR whose schedule is chosen already."""
    subject = item.definition or item.module
    if subject is None:
        raise ArgumentError("TS605", f"--schedule explains the schedule of a kernel, and {item.name} is a function")
    if item.module is not None and item.module.level != TILE:
        raise ArgumentError("TS605", f"--schedule of {item.name}: this IR is past the tile level")
    dims, lengths = sizes_of(item, given)
    sizes = {**dims, **lengths}
    chosen, found = choose(subject, sizes, arch), search(subject, sizes, arch)
    if as_json:
        body = {"ok": True, "target": target, "lane": None, "arch": arch, "dims": dims, "measured": False}
        report.print_json(body | _as_json(chosen, found))
    else:
        _show(item.name, dims, arch, chosen, found)
    return report.OK


def _show(name: str, dims: dict[str, int], arch: str, chosen: Candidate, found: Search) -> None:
    print(f"{name}  {report.dims_text(dims)}  {arch}  predicted, not measured")
    if chosen.constants:
        print(f"  constants {_point_text(chosen.constants)}")
    print(f"  schedule {_point_text(_telling(chosen.schedule))}")
    terms = sorted(chosen.cost.terms.items(), key=lambda term: -term[1])
    print(f"  time {', '.join(f'{term} {report.seconds_text(seconds)}' for term, seconds in terms if seconds)}\n")
    others = [candidate for candidate in found.candidates if not _same(candidate, chosen)]
    rows = [_row("chosen", chosen, chosen), *(_row("", other, chosen) for other in others[:SHOWN])]
    report.table(HEADERS, rows)
    if len(others) > SHOWN:
        print(f"and {len(others) - SHOWN} more")
    reasons = Counter(kind_of(item.reason) for item in found.pruned)
    if reasons:
        print()
        report.table(["left out", "because"], [[str(count), reason] for reason, count in reasons.most_common()])


def _row(mark: str, candidate: Candidate, chosen: Candidate) -> list[str]:
    cost = candidate.cost
    return [
        mark,
        report.seconds_text(cost.seconds),
        cost.limit,
        report.bytes_text(cost.shared_bytes),
        str(cost.registers),
        str(cost.blocks_per_sm),
        report.number_text(cost.waves),
        _point_text(_differences(candidate, chosen)),
    ]


def _telling(schedule: Schedule) -> dict[str, Any]:
    """The fields of a schedule, less those that leave out what few kernels have."""
    always = {field.name for field in fields(Schedule)[:ALWAYS_SHOWN]}
    usual = asdict(Schedule())
    return {name: value for name, value in asdict(schedule).items() if name in always or value != usual[name]}


def _differences(candidate: Candidate, chosen: Candidate) -> dict[str, Any]:
    """The constants and fields in which a point differs; a field that a constant decides is not named twice."""
    found = {name: value for name, value in candidate.constants.items() if value != chosen.constants.get(name)}
    decided = {FIXED_BY_CONSTANTS[name] for name in candidate.constants if name in FIXED_BY_CONSTANTS}
    own = asdict(chosen.schedule)
    values = asdict(candidate.schedule).items()
    return found | {name: value for name, value in values if value != own[name] and name not in decided}


def _same(a: Candidate, b: Candidate) -> bool:
    return a.constants == b.constants and a.schedule == b.schedule


def _point_text(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_value_text(value)}" for name, value in values.items())


def _value_text(value: Any) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value) or "none"


def kind_of(reason: str) -> str:
    """What reasons of many points have in common."""
    return next((kind for start, kind in KINDS.items() if reason.startswith(start)), reason)


def _as_json(chosen: Candidate, found: Search) -> dict[str, Any]:
    return {
        "chosen": _candidate_json(chosen),
        "candidates": [_candidate_json(candidate) for candidate in found.candidates],
        "pruned": [asdict(item) for item in found.pruned],
        "seconds": found.seconds,
    }


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "constants": candidate.constants,
        "schedule": asdict(candidate.schedule),
        "cost": asdict(candidate.cost),
    }


__all__ = ["explain", "kind_of"]
