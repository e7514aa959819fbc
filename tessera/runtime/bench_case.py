"""A benchmark as data: who is timed, on which inputs, against which answer. Nothing here knows a kernel or a library.

A file of cases (`bench/cases.py`) holds a list `CASES` of these; `runtime.bench` measures them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Dims = Mapping[str, "int | str"]  # what tells the rows of a case apart: sizes, and names of variants
Schedule = dict[str, Any]

# Kinds of entrants. A floor does part of the work, or moves as many bytes, and gives no answer to compare.
OURS, UNTUNED, RIVAL, FLOOR = "ours", "untuned", "rival", "floor"

# Largest errors of a right answer: of the whole, RMS(x - r) / RMS(r), which one wrong tile among thousands hardly
# moves, and of its worst element, max |x - r| / max |r|, which one wrong tile cannot keep. Chains of bf16 operations
# reach a third of either.
NORM_LIMIT, WORST_LIMIT = 1e-2, 5e-2


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Prepared:
    """An entrant that is ready. `call` does the work once and gives the answer, under a schedule where one is searched;
    `poison` overwrites the memory of the answer, where calls write to the same. `note` is for the report, and asked
    for when the calls are done.
    """

    call: Callable[..., Any]
    poison: Callable[[], None] = _nothing
    note: Callable[[], str] = lambda: ""


class WrongAnswer(Exception):
    """What `prepare` raises for an entrant that it has checked itself."""


@dataclass(frozen=True)
class Searched:
    """A rival `name` that leaves its schedule open. `key` names the problem in the file of winners.

    `file` is Python with a function `compile_schedule(schedule, dims)`, which fills the rival's own disk cache; it is
    called in other processes. `refine` gives schedules near a good one, `packages` those whose versions a winner holds
    for.
    """

    name: str
    key: str
    file: Path
    dims: Dims
    schedules: tuple[Schedule, ...]
    refine: Callable[[Schedule], Sequence[Schedule]] = lambda schedule: ()
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entrant:
    """Somebody who is timed. `prepare` may take long: it compiles, and allocates.

    Times are multiplied by `scale`, for floors that do a part of the work. `of` names the entrant of ours whose untuned
    variant this is. `pinned` gives the entrant of ours whose kernel has fields of its schedule fixed.
    """

    name: str
    kind: str
    prepare: Callable[[], Prepared]
    scale: float = 1.0
    searched: Searched | None = None
    of: str = ""
    pinned: Callable[[Mapping[str, Any]], Entrant] | None = None


@dataclass(frozen=True)
class Problem:
    """One row of a case with its inputs. `reference` computes the answer in float64, or gives None where entrants are
    checked elsewhere; `bytes` and `flops` are the least that any entrant moves and does, the operations at `rate` times
    the rate of bf16 products.
    """

    entrants: tuple[Entrant, ...]
    reference: Callable[[], Any]
    bytes: int
    flops: int
    rate: float = 1.0


@dataclass(frozen=True)
class Case:
    """`rivals` are the names of rivals and floors, known before anything is prepared; `searched` those of them whose
    schedules are searched.
    """

    name: str
    title: str
    rows: tuple[Dims, ...]
    problem: Callable[[Dims], Problem]
    rivals: tuple[str, ...] = ()
    searched: Callable[[Dims], Sequence[Searched]] = lambda dims: ()


def dims_text(dims: Dims) -> str:
    return ",".join(f"{name}={value}" for name, value in dims.items())


__all__ = [
    "FLOOR", "NORM_LIMIT", "OURS", "RIVAL", "UNTUNED", "WORST_LIMIT", "Case", "Dims", "Entrant", "Prepared", "Problem",
    "Schedule", "Searched", "WrongAnswer", "dims_text",
]  # fmt: skip
