"""The point of its tuning space that a call of a kernel takes: kept, measured now, borrowed, or predicted.

On a GPU the first call with a new key measures, and the result is kept on disk, where the next process finds it. What
cannot or must not measure (no GPU, a captured stream, TESSERA_TUNE) takes what is kept for this key, or the nearest
one, and else the choice of the cost model, which is kept too, because making it takes a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tessera.config import config
from tessera.errors import SourceError
from tessera.frontend.definition import KernelDefinition
from tessera.ir.dims import Size
from tessera.runtime import autotune_store
from tessera.runtime.autotune_report import DEFAULT, PINNED, Choice, Report, settings_text
from tessera.runtime.autotune_store import Number, Question, Store
from tessera.runtime.bind import Binding

FULLY_ALIGNED = 16  # bytes
AUTO, OFF = "auto", "off"  # of TESSERA_TUNE


@dataclass(frozen=True)
class Compiled:
    """What programs of a kernel are compiled for, as `KernelState.program` takes it."""

    dims: dict[str, int]
    arch: str
    alignment: dict[str, int]
    divisors: dict[str, int]
    strides: Mapping[str, tuple[Size, ...]]

    @property
    def variant(self) -> str:
        """Which arguments are no plain arrays, as a text; empty where all are."""
        aligned = {name: size for name, size in sorted(self.alignment.items()) if size != FULLY_ALIGNED}
        return json.dumps([aligned, sorted(self.strides)]) if aligned or self.strides else ""


@dataclass(frozen=True)
class Bench:
    """Where a choice can be measured: `bind` gives the call with its arrays on the GPU."""

    ordinal: int
    stream: int
    bind: Callable[[], Binding]


@dataclass(frozen=True)
class Answer:
    """`final`: whether it holds for later calls too, which is not so of what a captured stream had to take."""

    choice: Choice
    final: bool = True


def fixed_choice(definition: KernelDefinition, lane: str, on_grid: bool) -> Choice | None:
    """The choice of a kernel that leaves none; None where there is one to be made.

    A grid that the caller gives was computed for the block sizes of the point that the definition shows.
    """
    space = definition.space
    assert space is not None
    if set(space.candidates) <= definition.fixed:
        return Choice(definition.constants, None, PINNED, "every constant is fixed")
    if lane == "interpret":
        return Choice(definition.constants, None, DEFAULT, "the interpreter takes the first candidate of each constant")
    if on_grid:
        return Choice(definition.constants, None, DEFAULT, "the call has a grid of its own")
    return None


class Chooser:
    """The choices of one kernel in this process. `kernel` gives its Tile IR at its default point, for dims."""

    def __init__(self, definition: KernelDefinition, kernel: Callable[[Mapping[str, int]], Any]) -> None:
        self.definition, self._kernel = definition, kernel
        self._known: dict[tuple[Any, ...], Choice] = {}

    def choose(
        self,
        compiled: Compiled,
        scalars: Mapping[str, Number],
        bench: Bench | None = None,
        compiles: Callable[[Choice], object] = lambda choice: None,
    ) -> Answer:
        """The choice of a call with these sizes and numbers; with a `bench` it may be measured.

        `compiles` raises SourceError for a choice that was kept and is not legal. Raises what
        `autotune.tune` and `autotune.predict` raise.
        """
        values = {**scalars, **compiled.dims}
        key = autotune_store.key_values(self.definition, values)
        memo = (tuple(key.items()), self._decided(compiled), compiled.variant, compiled.arch, bench is None, config())
        known = self._known.get(memo)
        if known is not None:
            return Answer(known)
        answer = self._asked(compiled, values, bench, compiles)
        if answer.final:
            self._known[memo] = answer.choice
        return answer

    def _decided(self, compiled: Compiled) -> tuple[Any, ...]:
        """The sizes that are compiled into the kernel, beside those of the key."""
        dims = compiled.dims
        names = self._kernel(dims).attributes["shape_dims"]
        return tuple((name, dims[name]) for name in names if name in dims)

    def _asked(
        self,
        compiled: Compiled,
        values: Mapping[str, Number],
        bench: Bench | None,
        compiles: Callable[[Choice], object],
    ) -> Answer:
        store, mode = Store(), config().tune
        question = self.question(compiled, values)
        gpu = None if bench is None else gpu_name(bench.ordinal)
        kept = None if mode == OFF or gpu is None or question is None else store.read(question, gpu)
        choice = None if kept is None else _legal(kept.choice, compiles)
        if choice is not None:
            return Answer(choice)
        captured = bench is not None and is_captured(bench)
        if bench is not None and mode == AUTO and not captured:
            choice = self._measured(compiled, values, bench)
            if choice is not None:
                return Answer(choice)
        found = None
        if mode != OFF and question is not None:
            found = _legal(store.elsewhere(question), compiles) or _legal(store.nearest(question, gpu), compiles)
        return Answer(found or self._predicted(compiled, values, question, store), final=not captured or mode != AUTO)

    def question(self, compiled: Compiled, values: Mapping[str, Number]) -> Question | None:
        kernel = self._kernel(compiled.dims)
        return autotune_store.ask(self.definition, kernel, values, compiled.arch, compiled.variant)

    def subject(self, compiled: Compiled, values: Mapping[str, Number]) -> Any:
        """What `autotune` works on."""
        from tessera.runtime.autotune import Budget, Subject

        space = self.definition.space
        budget = Budget() if space is None else Budget(space.budget_s, space.most)
        return Subject(
            self.definition,
            self._kernel(compiled.dims),
            compiled.dims,
            compiled.arch,
            autotune_store.key_values(self.definition, values),
            compiled.alignment,
            compiled.divisors,
            compiled.strides,
            budget=budget,
        )

    def _measured(self, compiled: Compiled, values: Mapping[str, Number], bench: Bench) -> Choice | None:
        """What tuning finds now, and keeps; None where the GPU has no room for it."""
        from tessera.runtime.autotune_progress import shown

        subject = self.subject(compiled, values)
        with shown(self.definition.name, subject.key) as progress:
            try:
                return self.measure(subject, self.question(compiled, values), bench, progress).choice
            except MemoryError:
                return None

    def measure(self, subject: Any, question: Question | None, bench: Bench, progress: Any) -> Report:
        """Tunes, and keeps what it found. Raises what `autotune.tune` raises."""
        from tessera.runtime import autotune

        report = autotune.tune(
            subject,
            make_device(bench, subject.arch),
            bench.bind(),
            search=autotune.search_all,
            compiler=autotune.ParallelCompiler,
            progress=progress,
        )
        if question is not None:
            Store().write(question, report)
        return report

    def _predicted(
        self, compiled: Compiled, values: Mapping[str, Number], question: Question | None, store: Store
    ) -> Choice:
        kept = None if question is None else store.read(question, None)
        if kept is not None:
            return kept.choice
        from tessera.runtime.autotune import predict

        subject = self.subject(compiled, values)
        choice = predict(subject)
        if question is not None:
            report = Report(self.definition.name, subject.key, dict(compiled.dims), compiled.arch, None, choice)
            store.write(question, report)
        return choice


def _legal(choice: Choice | None, compiles: Callable[[Choice], object]) -> Choice | None:
    if choice is None:
        return None
    try:
        compiles(choice)
    except SourceError:
        return None
    return choice


def note_of(choice: Choice) -> str:
    """A sentence for the author about a choice that his kernel ran with."""
    return f"{settings_text(choice.constants)}, {choice.origin}: {choice.note}"


# ---- the GPU; tests put another one in its place ---------------------------------------------------------------------


@cache
def gpu_name(ordinal: int) -> str:
    from tessera.runtime.autotune_measure import device_name

    return device_name(ordinal)


def make_device(bench: Bench, arch: str) -> Any:
    from tessera.runtime.autotune_measure import CupyDevice

    return CupyDevice(bench.ordinal, bench.stream, arch)


def is_captured(bench: Bench) -> bool:
    """Whether work of the call becomes part of a CUDA graph, so that nothing may be measured now."""
    from tessera.runtime.launch import LAUNCHER

    return LAUNCHER.driver.capturing(bench.stream, bench.ordinal)


__all__ = ["Answer", "Bench", "Chooser", "Compiled", "fixed_choice", "note_of"]
