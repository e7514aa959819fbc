"""What tuning found, as data: a row per candidate, and the choice. It goes to disk and to the command line as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# How a choice came about.
MEASURED, BORROWED, UNMEASURED, PINNED, DEFAULT = "measured", "borrowed", "unmeasured", "pinned", "default"
ORIGINS = (MEASURED, BORROWED, UNMEASURED, PINNED, DEFAULT)

# What became of a candidate: `ok` was right and timed to the end, `cut` was right and much slower than the best by
# then, `wrong` gave another answer, `failed` did not compile, `untried` came after the end of the budget, and `pruned`
# never was one. Without a GPU there is no more than `predicted`.
OK, CUT, WRONG, FAILED, UNTRIED, PRUNED = "ok", "cut", "wrong", "failed", "untried", "pruned"
PREDICTED = "predicted"
VERDICTS = (OK, CUT, WRONG, FAILED, UNTRIED, PREDICTED, PRUNED)


@dataclass(frozen=True)
class Choice:
    """A point of a kernel's tuning space, and every field of the schedule that goes with it.

    `schedule` None is the one that the compiler derives from the constants. `origin` is one of ORIGINS; `note` says in
    a sentence where the choice comes from.
    """

    constants: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] | None = None
    origin: str = DEFAULT
    note: str = ""

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Choice:
        """Raises TypeError or ValueError for what is none."""
        found = Choice(**data)
        if found.origin not in ORIGINS or not isinstance(found.constants, dict):
            raise ValueError(f"{data!r} is no choice")
        return Choice(found.constants, _with_tuples(found.schedule), found.origin, found.note)


@dataclass(frozen=True)
class Row:
    """One candidate. `predicted` and `seconds` (the median) are seconds of one launch; `registers` are of a thread,
    `spill_bytes` what it moves to memory and back for want of them. None is what nobody asked. `reason` is a sentence.
    """

    constants: dict[str, Any]
    schedule: dict[str, Any]
    verdict: str
    reason: str = ""
    predicted: float | None = None
    seconds: float | None = None
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None


@dataclass(frozen=True)
class Report:
    """One tuning of one kernel for one key.

    `key` holds the values that the choice is made for, `gpu` the name of the GPU that measured (None where none did),
    `winner` the place of the choice in `rows`, which are in the order in which they were predicted. `checked` says what
    the answers were compared with, `seconds` how long all of it took.
    """

    kernel: str
    key: dict[str, Any]
    dims: dict[str, int]
    arch: str
    gpu: str | None
    choice: Choice
    rows: tuple[Row, ...] = ()
    winner: int | None = None
    checked: str = ""
    seconds: float = 0.0

    @property
    def measured(self) -> bool:
        return self.choice.origin == MEASURED

    def counts(self) -> dict[str, int]:
        """How many rows have each verdict, of those that occur."""
        found = Counter(row.verdict for row in self.rows)
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Report:
        """Raises KeyError, TypeError or ValueError for what is none."""
        known = {item.name for item in fields(Report)}
        if not isinstance(data, dict) or set(data) != known:
            raise ValueError("this is no report")
        rows = tuple(Row(**{**row, "schedule": _with_tuples(row["schedule"])}) for row in data["rows"])
        return Report(**{**data, "choice": Choice.from_json(data["choice"]), "rows": rows})


def _with_tuples(schedule: dict[str, Any] | None) -> dict[str, Any] | None:
    """A schedule from JSON, which has lists in the place of tuples."""
    if schedule is None:
        return None
    return {name: tuple(value) if isinstance(value, list) else value for name, value in schedule.items()}


def settings_text(settings: Mapping[str, Any]) -> str:
    """`BLOCK_S=64 num_warps=4`, as messages name a candidate."""
    return " ".join(f"{name}={_value_text(value)}" for name, value in settings.items()) or "the only point"


def _value_text(value: Any) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


__all__ = [
    "BORROWED", "CUT", "DEFAULT", "FAILED", "MEASURED", "OK", "PINNED", "PREDICTED", "PRUNED", "UNMEASURED", "UNTRIED",
    "WRONG", "Choice", "Report", "Row", "settings_text",
]  # fmt: skip
