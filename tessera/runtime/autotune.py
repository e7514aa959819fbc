"""Tuning: which candidate of a kernel is the fastest right one on the GPU that is there.

The cost model ranks the candidates. They are compiled in parallel, the best predicted first; each is checked before it
is timed (`autotune_check`), timed a few runs and cut when it is much slower than the best so far; the best three are
timed again in turn. All of that ends with the budget: so many seconds, or so many candidates that were timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # another class until Python 3.11
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tessera.errors import InternalError
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.space import BUDGET_S, MOST_MEASURED
from tessera.ir.core import Kernel
from tessera.ir.dims import Size
from tessera.runtime.autotune_check import Judge, Problem, Queue
from tessera.runtime.autotune_compile import Built, Compiler, ParallelCompiler
from tessera.runtime.autotune_measure import Device, time_in_turn, time_one
from tessera.runtime.autotune_report import (
    CUT,
    FAILED,
    MEASURED,
    OK,
    PREDICTED,
    PRUNED,
    UNMEASURED,
    UNTRIED,
    WRONG,
    Choice,
    Report,
    Row,
    settings_text,
)
from tessera.runtime.bind import Binding
from tessera.runtime.launch import Launcher

if TYPE_CHECKING:
    from tessera.search import Candidate, Search

FINALISTS = 3
VOTERS = 3  # candidates that say what is right where no reference can
SHOWN = 5  # candidates that an error names
AHEAD = 2  # candidates that are compiled ahead, per process
LEAST = 2  # candidates that are tried whatever the budget


@dataclass(frozen=True)
class Budget:
    """Seconds of the wall clock for one key, and how many candidates are timed."""

    seconds: float = BUDGET_S
    candidates: int = MOST_MEASURED


@dataclass(frozen=True)
class Subject:
    """A kernel and what its programs are compiled for, as `KernelState.program` takes it.

    `kernel` is its Tile IR at the default point; `key` what the choice is made for; `pins` are constants of the space,
    and fields of the schedule, that are fixed.
    """

    definition: KernelDefinition
    kernel: Kernel
    dims: dict[str, int]
    arch: str
    key: dict[str, Any] = field(default_factory=dict)
    alignment: dict[str, int] | None = None
    divisors: dict[str, int] | None = None
    strides: Mapping[str, tuple[Size, ...]] | None = None
    pins: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget = Budget()

    def options(self) -> dict[str, Any]:
        """What a search is told beside the kernel, the dims and the architecture."""
        return {
            "alignment": self.alignment,
            "divisors": self.divisors,
            "strides": self.strides,
            "pins": self.pins,
        }


class Progress(Protocol):
    """Hears how far tuning is: `done` of `total` candidates, and the seconds of the best so far."""

    def __call__(self, done: int, total: int, best: float | None) -> None: ...


def silent(done: int, total: int, best: float | None) -> None:
    """Nobody listens."""


def search_all(subject: Subject, workers: int) -> Search:
    """Every candidate of a kernel, the best predicted first. Raises SourceError."""
    from tessera.search import search

    return search(subject.definition, subject.dims, subject.arch, workers=workers, **subject.options())


def predict(subject: Subject) -> Choice:
    """The choice of the cost model, from a short list. Raises SourceError where no candidate is legal."""
    from tessera.search import choose

    found = choose(subject.definition, subject.dims, subject.arch, **subject.options())
    return Choice(found.constants, asdict(found.schedule), UNMEASURED, "predicted by the cost model")


def tune_unmeasured(subject: Subject, search: Callable[[Subject, int], Search] = search_all) -> Report:
    """The report of a machine without a GPU: every candidate with its prediction, and the best predicted one."""
    start = time.monotonic()
    found = search(subject, os.cpu_count() or 1)
    rows = [_row(candidate, PREDICTED) for candidate in found.candidates]
    best = found.candidates[0]
    choice = Choice(best.constants, asdict(best.schedule), UNMEASURED, "predicted by the cost model")
    seconds = time.monotonic() - start
    return _report(subject, None, choice, [*rows, *_pruned(found)], 0, "nothing: no GPU ran them", seconds)


def tune(
    subject: Subject,
    device: Device,
    binding: Binding,
    *,
    search: Callable[[Subject, int], Search] = search_all,
    compiler: Callable[[], Compiler] = ParallelCompiler,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress = silent,
) -> Report:
    """Measures the candidates of a kernel on a call of it, whose arrays lie on the GPU and stay as they are.

    Raises SourceError where no candidate is legal, InternalError TS901 where no legal one is right, and MemoryError
    where the GPU has no room for a second copy of what the kernel writes.
    """
    start = clock()
    found = search(subject, os.cpu_count() or 1)
    order = _default_first(subject, found.candidates)
    made = compiler()
    try:
        session = _Session(subject, device, binding, order, made, clock, start, progress)
        session.run()
    finally:
        made.close()
    return session.report(found, clock() - start)


@dataclass(eq=False)
class _Trial:
    """One candidate on its way: `queue` launches it on the full problem, once it was found right."""

    candidate: Candidate
    verdict: str = UNTRIED
    reason: str = ""
    built: Built | None = None
    seconds: float | None = None
    queue: Queue | None = None
    future: Future[Built] | None = None

    @property
    def timed(self) -> bool:
        return self.verdict in (OK, CUT)

    def row(self) -> Row:
        found = _row(self.candidate, self.verdict, self.reason)
        if self.built is None:
            return replace(found, seconds=self.seconds)
        return replace(found, seconds=self.seconds, registers=self.built.registers, spill_bytes=self.built.spill_bytes)


class _Session:
    """One tuning. `trials` are in the order in which they are tried."""

    def __init__(
        self,
        subject: Subject,
        device: Device,
        binding: Binding,
        candidates: Sequence[Candidate],
        compiler: Compiler,
        clock: Callable[[], float],
        start: float,
        progress: Progress,
    ) -> None:
        self.subject, self.device, self.compiler, self.clock, self.progress = subject, device, compiler, clock, progress
        self.end = start + subject.budget.seconds
        self.trials = [_Trial(candidate) for candidate in candidates]
        self.winner: _Trial | None = None
        self.ahead = AHEAD * (os.cpu_count() or 1)
        self._compile_ahead(0)  # while the reference of the small problem is computed
        self.full = Problem(device, binding)
        launcher = Launcher(device.driver)  # of its own, so that what it loads goes when tuning ends
        programs = [candidate.program for candidate in candidates]
        self.judge = Judge(self.full, subject.kernel, programs, launcher)

    def run(self) -> None:
        if self.judge.small is None:
            self._elect()
        total = min(len(self.trials), self.subject.budget.candidates)
        for number, trial in enumerate(self.trials):
            timed = sum(trial.timed for trial in self.trials)
            self.progress(timed, total, self._best())
            if timed >= self.subject.budget.candidates:
                self._skip(number, f"{timed} candidates that are predicted to be faster were measured")
                break
            # The first is tried whatever it takes: it says what the right answer is. So is the one that is predicted to
            # be the fastest, or a budget that the search uses up would choose what no prediction does.
            if number >= LEAST and self.clock() >= self.end:
                self._skip(number, f"the budget of {self.subject.budget.seconds:g} s was used up")
                break
            self._try(number, trial)
        self._finals()
        self.progress(total, total, self._best())

    def _elect(self) -> None:
        """Lets the first few candidates that compile say what the right answer is."""
        found = []
        for trial in self.trials[: self.ahead]:
            if len(found) < VOTERS and trial.future is not None:
                try:
                    built = trial.future.result()
                    found.append(built.limited or built.program)
                except RuntimeError:  # told when it is its turn
                    continue
        if found:
            self.judge.elect(found)

    def _skip(self, start: int, reason: str) -> None:
        for trial in self.trials[start:]:
            trial.reason = reason

    def _best(self) -> float | None:
        return min((trial.seconds for trial in self.trials if trial.verdict == OK and trial.seconds), default=None)

    def _compile_ahead(self, number: int) -> None:
        for trial in self.trials[number : number + self.ahead]:
            if trial.future is None:
                trial.future = self.compiler.submit(trial.candidate.program)

    def _try(self, number: int, trial: _Trial) -> None:
        self._compile_ahead(number)
        assert trial.future is not None
        left = self.end - self.clock()
        try:
            trial.built = trial.future.result(timeout=None if number < LEAST else max(left, 0.0))
        except FutureTimeout:
            trial.reason = f"the budget of {self.subject.budget.seconds:g} s was used up while it was compiled"
            return
        except RuntimeError as error:
            trial.verdict, trial.reason = FAILED, f"it does not compile: {error}"
            return
        verdict, trial.queue = self.judge.judge(trial.built.program, trial.built.limited)
        trial.reason = verdict.reason
        if not verdict.ok:
            trial.verdict = WRONG
            return
        trial.seconds, cut = time_one(partial(self.full.time, trial.queue), self._best())
        trial.verdict = CUT if cut else OK

    def _finals(self) -> None:
        """Times the best few in turn, and takes the fastest that still gives the answer that it gave before."""
        right = sorted((trial for trial in self.trials if trial.verdict == OK), key=_seconds)
        last, rest = right[:FINALISTS], right[FINALISTS:]
        if len(last) > 1:
            runs = [partial(self.full.time, trial.queue) for trial in last if trial.queue is not None]
            for trial, seconds in zip(last, time_in_turn(runs), strict=True):
                trial.seconds = seconds
        for trial in (*sorted(last, key=_seconds), *rest):
            assert trial.queue is not None
            if self.judge.still_right(trial.queue):
                self.winner = trial
                return
            trial.verdict, trial.reason = WRONG, "after it was timed it gave another answer"

    def report(self, found: Search, seconds: float) -> Report:
        """Rows in the order of the predictions, then what never was a candidate."""
        places = {id(candidate): place for place, candidate in enumerate(found.candidates)}
        trials = sorted(self.trials, key=lambda trial: places[id(trial.candidate)])
        if self.winner is None:
            raise self._refusal(trials)
        best, measured = self.winner.candidate, sum(trial.timed for trial in trials)
        note = f"the fastest of {measured} that were measured on {self.device.name}"
        choice = Choice(best.constants, asdict(best.schedule), MEASURED, note)
        rows = [*(trial.row() for trial in trials), *_pruned(found)]
        winner = trials.index(self.winner)
        return _report(self.subject, self.device.name, choice, rows, winner, self.judge.checked, seconds)

    def _refusal(self, trials: Sequence[_Trial]) -> InternalError:
        """The error of a tuning without any right candidate."""
        what = "gives a right answer" if any(trial.verdict == WRONG for trial in trials) else "compiles"
        notes = [f"{_point_text(trial.candidate)}: {trial.reason}" for trial in trials if trial.reason][:SHOWN]
        message = f"no candidate of {self.subject.definition.name} {what} on {self.device.name}"
        return InternalError("TS901", message, self.subject.definition.loc, notes)


def _default_first(subject: Subject, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates as predicted, behind the best predicted one at the default point: the others are compared with it.

    The interpreter, which everything is checked with elsewhere, runs that point.
    """
    space = subject.definition.space
    default = subject.definition.constants if space is not None else {}
    first = next((c for c in candidates if all(c.constants.get(n) == v for n, v in default.items())), candidates[0])
    return [first, *(candidate for candidate in candidates if candidate is not first)]


def _row(candidate: Candidate, verdict: str, reason: str = "") -> Row:
    cost = candidate.cost
    return Row(
        candidate.constants,
        asdict(candidate.schedule),
        verdict,
        reason,
        predicted=cost.seconds,
        shared_bytes=cost.shared_bytes,
    )


def _pruned(found: Search) -> list[Row]:
    return [Row(p.constants, p.schedule, PRUNED, p.reason) for p in found.pruned]


def _point_text(candidate: Candidate) -> str:
    return settings_text(candidate.constants or asdict(candidate.schedule))


def _seconds(trial: _Trial) -> float:
    return trial.seconds or 0.0


def _report(
    subject: Subject,
    gpu: str | None,
    choice: Choice,
    rows: Sequence[Row],
    winner: int | None,
    checked: str,
    seconds: float,
) -> Report:
    key, dims = dict(subject.key), dict(subject.dims)
    return Report(subject.definition.name, key, dims, subject.arch, gpu, choice, tuple(rows), winner, checked, seconds)


__all__ = ["Budget", "Progress", "Subject", "predict", "search_all", "silent", "tune", "tune_unmeasured"]
