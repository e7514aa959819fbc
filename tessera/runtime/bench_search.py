"""The best schedule of a rival, found as its own expert would: all that are right are timed, slow ones briefly.

A wrong answer never wins: each schedule runs into poisoned memory and is compared before it is timed. Compiling takes
most of the time, so that happens in other processes first, which fill the rival's own disk cache.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tessera.runtime.bench_case import Dims, Prepared, Schedule, Searched
from tessera.runtime.bench_device import Device

FEW, MANY, FINAL = 3, 10, 20  # timed runs: of every schedule, of those that are not cut, and of the finalists in turn
CUT = 1.5  # times the best so far: beyond it a schedule is dropped after the few runs
FINALISTS, REFINED = 3, 2
SPARED = 2  # cores that are left to the process that measures
MODULE = "_tessera_bench_"  # what the file of a rival is imported as: the same name in every process


class NoSchedule(Exception):
    """No schedule of a rival gives the right answer."""


@dataclass(frozen=True)
class Found:
    """The winner of a search. `tried` ran, `wrong` of them with a wrong answer; `impossible` did not run at all."""

    schedule: Schedule
    us: float
    tried: int
    wrong: int
    impossible: int


@dataclass
class _Tally:
    timed: list[tuple[float, Schedule]] = field(default_factory=list)
    tried: int = 0
    wrong: int = 0
    impossible: int = 0
    problem: str = ""

    def best(self, count: int) -> list[Schedule]:
        return [schedule for _, schedule in sorted(self.timed, key=lambda item: item[0])[:count]]


class Compilers:
    """Processes that compile schedules ahead of their first launch. What they cannot compile, the launch finds out."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or max((os.cpu_count() or 1) - SPARED, 1)
        self._pool: ProcessPoolExecutor | None = None
        self._queued: dict[str, list[Future[int]]] = {}

    def queue(self, searched: Searched) -> None:
        """Starts compiling, in the order of calls; `compile` waits for it."""
        if self._pool is None:  # spawned: a fork would inherit a CUDA context that it cannot use
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"))
        shares = [searched.schedules[start :: self._workers] for start in range(self._workers)]
        self._queued[searched.key] = [
            self._pool.submit(_compile_share, searched.file, share, dict(searched.dims)) for share in shares if share
        ]

    def compile(self, searched: Searched) -> int:
        """Compiles what was not queued, waits, and returns how many schedules are compiled now."""
        if searched.key not in self._queued:
            self.queue(searched)
        done = 0
        for future in self._queued.pop(searched.key):
            try:
                done += future.result()
            except Exception:  # a process that died, or a library that is not there: the launch compiles, or says so
                self._pool = None if getattr(self._pool, "_broken", False) else self._pool
        return done

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _compile_share(file: Path, schedules: Sequence[Schedule], dims: Dims) -> int:
    """How many of the schedules compile."""
    compile_schedule, done = load_file(file).compile_schedule, 0
    for schedule in schedules:
        try:
            compile_schedule(schedule, dims)
            done += 1
        except Exception:  # one that the machine cannot have
            continue
    return done


def load_file(file: Path) -> Any:
    """The module of a Python file, once per process. Raises whatever running it raises."""
    name = MODULE + file.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and kernels look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def search(
    searched: Searched,
    prepared: Prepared,
    right: Callable[[Any], bool],
    device: Device,
    compilers: Compilers,
) -> Found:
    """Times every schedule whose answer is `right`, then schedules near the best ones, then the best in turn.

    Raises NoSchedule where there is none.
    """
    tally = _Tally()

    def consider(schedules: Sequence[Schedule]) -> None:
        for schedule in schedules:
            _consider(schedule, prepared, right, device, tally)

    compilers.compile(searched)
    consider(searched.schedules)
    near = [s for good in tally.best(REFINED) for s in searched.refine(good) if s not in searched.schedules]
    near = [schedule for number, schedule in enumerate(near) if schedule not in near[:number]]
    if near:
        refined = replace(searched, key=f"{searched.key} refined", schedules=tuple(near))
        compilers.compile(refined)
        consider(near)
    finalists = tally.best(FINALISTS)
    if not finalists:
        cause = f": {tally.problem}" if tally.problem else ""
        raise NoSchedule(
            f"of {len(searched.schedules)} schedules {tally.tried} ran, and {tally.wrong} of them were wrong{cause}"
        )
    times = device.timed([_under(prepared, schedule) for schedule in finalists], FINAL)
    us, index = min((statistics.median(samples), number) for number, samples in enumerate(times))
    return Found(finalists[index], us, tally.tried, tally.wrong, tally.impossible)


def _consider(
    schedule: Schedule, prepared: Prepared, right: Callable[[Any], bool], device: Device, tally: _Tally
) -> None:
    prepared.poison()
    try:
        answer = prepared.call(schedule)
        device.synchronize()
    except Exception as error:  # too much shared memory, too many registers
        tally.impossible += 1
        tally.problem = tally.problem or f"{type(error).__name__}: {error}"
        return
    tally.tried += 1
    if not right(answer):
        tally.wrong += 1
        return
    call = _under(prepared, schedule)
    us = statistics.median(device.timed([call], FEW, warm=1)[0])
    if not tally.timed or us <= CUT * min(tally.timed, key=lambda item: item[0])[0]:
        tally.timed.append((statistics.median(device.timed([call], MANY, warm=0)[0]), schedule))


def _under(prepared: Prepared, schedule: Schedule) -> Callable[[], Any]:
    return lambda: prepared.call(schedule)


__all__ = ["Compilers", "Found", "NoSchedule", "load_file", "search"]
