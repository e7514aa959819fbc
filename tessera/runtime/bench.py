"""Measures a case: everybody is checked, then all who are right are timed in turn, in one process.

Turns make whatever drifts, such as the clock of the GPU, hit all alike. Who gives a wrong answer is not timed; answers
are compared once more after the timing.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.errors import ArgumentError
from tessera.runtime.bench_case import (
    FLOOR,
    NORM_LIMIT,
    OURS,
    RIVAL,
    UNTUNED,
    WORST_LIMIT,
    Case,
    Dims,
    Entrant,
    Prepared,
    Problem,
    WrongAnswer,
)  # fmt: skip
from tessera.runtime.bench_device import Device, Peaks
from tessera.runtime.bench_search import Compilers, Found, search
from tessera.runtime.bench_store import Winners

OK, WRONG, FAILED = "ok", "wrong", "failed"
CHUNK = 1 << 24  # elements that are compared at a time: float64 copies of a whole answer might not fit


@dataclass(frozen=True)
class Error:
    """How far an answer is from the reference: RMS(x - r) / RMS(r), and max |x - r| / max |r|."""

    norm: float
    worst: float

    @property
    def ok(self) -> bool:
        return self.norm <= NORM_LIMIT and self.worst <= WORST_LIMIT  # False where either is NaN


@dataclass
class Result:
    """One entrant of one row. Times are microseconds: the median, the least, and half of the middle 50 % as a share of
    the median. `message` says what is wrong, or what the entrant says of itself; `facts` what a search chose.
    """

    name: str
    kind: str
    of: str = ""
    status: str = OK
    us: float | None = None
    least_us: float | None = None
    spread: float | None = None
    error: Error | None = None
    message: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """One row of a case. `message` is set where not even its inputs could be made."""

    case: str
    dims: dict[str, Any]
    peaks: Peaks
    bytes: int = 0
    flops: int = 0
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether every entrant of ours is right and timed."""
        own = [result for result in self.results if result.kind in (OURS, UNTUNED)]
        return not self.message and bool(own) and all(result.status == OK for result in own)

    @property
    def ours(self) -> list[Result]:
        return [result for result in self.results if result.kind == OURS]

    def named(self, name: str) -> Result | None:
        return next((result for result in self.results if result.name == name), None)

    def untuned(self, name: str) -> Result | None:
        return next((result for result in self.results if result.of == name), None)

    def best_rival(self) -> Result | None:
        rivals = [result for result in self.results if result.kind == RIVAL and result.us is not None]
        return min(rivals, key=lambda result: result.us or 0.0, default=None)

    def roofline(self, result: Result) -> float | None:
        """The share of the least time that this GPU needs for the bytes and operations of the row."""
        return None if not result.us else self.peaks.least_us(self.bytes, self.flops) / result.us


def ratio(slower: Result | None, faster: Result | None) -> float | None:
    """How many times as long the first takes; None where either has no time."""
    return slower.us / faster.us if slower and faster and slower.us and faster.us else None


@dataclass(frozen=True)
class Options:
    """`rivals`: those to time, None for all; `without`: those to leave out; `retune`: search schedules again; `pins`:
    fields of a schedule, with which kernels of ours are timed once more.
    """

    repeats: int = 30
    rivals: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    retune: bool = False
    pins: Mapping[str, Any] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        return name not in self.without and (self.rivals is None or name in self.rivals)


@dataclass(frozen=True)
class Bench:
    """What rows are measured with."""

    device: Device
    peaks: Peaks
    winners: Winners
    compilers: Compilers
    options: Options

    def queue(self, case: Case, dims: Dims) -> None:
        """Starts to compile the schedules of a later row's rivals, where they will be searched."""
        for searched in case.searched(dims):
            if self.options.wants(searched.name) and (self.options.retune or self.winners.get(searched) is None):
                self.compilers.queue(searched)

    def measure(self, case: Case, dims: Dims) -> Row:
        """Never raises for what an entrant does: a row, or an entrant, that fails says so."""
        start = time.perf_counter()
        row = Row(case.name, dict(dims), self.peaks)
        try:
            self._fill(row, case.problem(dims))
        except Exception as error:
            row.message = _sentence(error)
        row.seconds = time.perf_counter() - start
        gc.collect()  # inputs are held by closures that refer to one another, and the next row needs their memory
        return row

    def _fill(self, row: Row, problem: Problem) -> None:
        row.bytes, row.flops = problem.bytes, problem.flops
        row.peaks = row.peaks.times(problem.rate)
        judge = judge_against(problem.reference())
        running = []
        for entrant in self._entrants(problem):
            if entrant.kind in (RIVAL, FLOOR) and not self.options.wants(entrant.name):
                continue
            result = Result(entrant.name, entrant.kind, entrant.of)
            row.results.append(result)
            try:
                running.append(self._start(entrant, result, judge))
            except WrongAnswer as error:
                result.status, result.message = WRONG, str(error)
            except Exception as error:
                result.status, result.message = FAILED, _sentence(error)
        running = [item for item in running if item.check(self.device, judge)]
        if running:
            times = self.device.timed([item.call for item in running], self.options.repeats)
            for item, samples in zip(running, times, strict=True):
                item.keep(samples)
            for item in running:
                if item.check(self.device, judge):
                    item.result.message = item.note()

    def _entrants(self, problem: Problem) -> list[Entrant]:
        """All of a problem; beside those of ours whose kernels can be pinned, these as the options ask."""
        found = []
        for entrant in problem.entrants:
            found.append(entrant)
            if self.options.pins and entrant.pinned is not None:
                found.append(entrant.pinned(self.options.pins))
        if self.options.pins and len(found) == len(problem.entrants):
            raise ArgumentError("TS605", "--pin fixes the schedules of kernels, and this case has none to fix")
        return found

    def _start(self, entrant: Entrant, result: Result, judge: Judge) -> _Running:
        prepared = entrant.prepare()
        if entrant.searched is None:
            return _Running(entrant, result, prepared.call, prepared.poison, prepared.note)
        searched = entrant.searched
        schedule = None if self.options.retune else self.winners.get(searched)
        result.facts = {"schedule": schedule, "stored": True}
        if schedule is not None:
            prepared.poison()
            error = judge(prepared.call(schedule))
            self.device.synchronize()
            schedule = schedule if error is None or error.ok else None  # one that is wrong today is searched anew
        if schedule is None:
            found = self._search(entrant, prepared, judge)
            schedule, result.facts = found.schedule, {**vars(found), "stored": False}
            self.winners.put(searched, found)
        chosen = schedule
        return _Running(entrant, result, lambda: prepared.call(chosen), prepared.poison, prepared.note)

    def _search(self, entrant: Entrant, prepared: Prepared, judge: Judge) -> Found:
        assert entrant.searched is not None

        def right(answer: Any) -> bool:
            error = judge(answer)
            return error is None or error.ok

        return search(entrant.searched, prepared, right, self.device, self.compilers)


Judge = Callable[[Any], "Error | None"]


@dataclass
class _Running:
    """An entrant between its preparation and its result."""

    entrant: Entrant
    result: Result
    call: Callable[[], Any]
    poison: Callable[[], None]
    note: Callable[[], str]

    def check(self, device: Device, judge: Judge) -> bool:
        """Whether the answer is right; where it is not, the result says so and has no time."""
        result = self.result
        try:
            self.poison()
            answer = self.call()
            device.synchronize()
            result.error = None if self.entrant.kind == FLOOR else judge(answer)
        except Exception as problem:
            return self._refuse(FAILED, _sentence(problem))
        if result.error is not None and not result.error.ok:
            return self._refuse(WRONG, "the answer differs from the reference")
        return True

    def _refuse(self, status: str, message: str) -> bool:
        self.result.status, self.result.message = status, message
        self.result.us = self.result.least_us = self.result.spread = None
        return False

    def keep(self, samples: list[float]) -> None:
        scaled = [sample * self.entrant.scale for sample in samples]
        middle = statistics.median(scaled)
        self.result.us, self.result.least_us = middle, min(scaled)
        quarters = statistics.quantiles(scaled, n=4) if len(scaled) > 1 else [middle] * 3
        self.result.spread = (quarters[2] - quarters[0]) / 2 / middle


def judge_against(reference: Any) -> Judge:
    """What compares an answer with the reference, both arrays of NumPy or torch; nothing is compared with None."""
    return lambda answer: None if reference is None else difference(answer, reference)


def difference(answer: Any, reference: Any) -> Error:
    """The errors of an answer; infinite for one of another shape."""
    if tuple(answer.shape) != tuple(reference.shape):
        return Error(float("inf"), float("inf"))
    wide = _wide_torch if type(answer).__module__.split(".")[0] == "torch" else _wide_numpy
    x, r = answer.reshape(-1), reference.reshape(-1)
    squares, scale, worst, largest = 0.0, 0.0, 0.0, 0.0
    for start in range(0, x.shape[0], CHUNK):
        part, wanted = wide(x[start : start + CHUNK]), wide(r[start : start + CHUNK])
        off = abs(part - wanted)
        squares, scale = squares + float((off * off).sum()), scale + float((wanted * wanted).sum())
        # max() of Python would drop a NaN: the sums above keep it.
        worst, largest = max(worst, float(off.max())), max(largest, float(abs(wanted).max()))
    if scale == 0.0:
        return Error(0.0, 0.0) if squares == 0.0 else Error(float("inf"), float("inf"))
    return Error((squares / scale) ** 0.5, worst / largest)


def _wide_torch(array: Any) -> Any:
    return array.double()


def _wide_numpy(array: Any) -> Any:
    return np.asarray(array).astype(np.float64)


def _sentence(error: Exception) -> str:
    """The start of a message, which may go on for pages; a line that ends in a colon says nothing yet."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    count = next((number for number, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return ": ".join([type(error).__name__, *(line.rstrip(":") for line in lines[:count])])


def as_json(row: Row) -> dict[str, Any]:
    """A row for a file or `--json`; errors of a wrong answer may not be finite."""
    lead = next(iter(row.ours), None)
    return {
        "case": row.case,
        "dims": row.dims,
        "ok": row.ok,
        "bytes": row.bytes,
        "flops": row.flops,
        "copy_bytes_per_s": row.peaks.copy,
        "product_flops_per_s": row.peaks.product,
        "product_rate_of": row.peaks.product_by,
        "roofline_us": row.peaks.least_us(row.bytes, row.flops),
        "seconds": row.seconds,
        **({"message": row.message} if row.message else {}),
        "entrants": [_result_json(row, result, lead) for result in row.results],
    }


def _result_json(row: Row, result: Result, lead: Result | None) -> Mapping[str, Any]:
    known: dict[str, Any] = {"name": result.name, "kind": result.kind, "status": result.status}
    known |= {"us": result.us, "least_us": result.least_us, "spread": result.spread}
    known |= {"ratio": ratio(result, lead), "share_of_roofline": row.roofline(result)}
    if result.error is not None:
        known |= {"norm_error": result.error.norm, "worst_error": result.error.worst}
    if result.of:
        known |= {"of": result.of}
    if result.message:
        known |= {"message": result.message}
    return {**known, **({"facts": result.facts} if result.facts else {})}


__all__ = [
    "FAILED", "OK", "WRONG", "Bench", "Error", "Options", "Result", "Row", "as_json", "difference", "judge_against",
    "ratio",
]  # fmt: skip
