"""Lower one kernel under many schedules: what does not depend on the schedule is done once, and nothing is verified
before it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from tessera.codegen_cuda.emit import emit
from tessera.compiler import CHOICE, find_arch, lower_on_a_lane, make_context, make_program
from tessera.errors import SourceError, TesseraError
from tessera.ir.core import Kernel, Module
from tessera.ir.opdef import TARGET
from tessera.ir.parser import parse_module
from tessera.ir.signature import check_signature
from tessera.ir.verify import verify
from tessera.passes import PIPELINE, Context, Pass
from tessera.program import Program
from tessera.search.keys import access_key, code_key
from tessera.target.cost import Cost, cost, total
from tessera.target.schedule import Schedule, as_lowered
from tessera.target.schedules import candidates, may_change_lane, own_point

_LAST = next(number for number, step in enumerate(PIPELINE) if step.name == "insert_barriers")
# Barriers and what lies between them follow from the rest: kernels that are equal before are equal behind.
BEFORE, AFTER, LAST = PIPELINE[:CHOICE], PIPELINE[CHOICE:_LAST], PIPELINE[_LAST:]


@dataclass(frozen=True)
class Request:
    """A point to lower: which of the traced modules, its tuning constants, and fields that differ from its own
    schedule.
    """

    source: int
    constants: tuple[tuple[str, Any], ...]
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Lowered:
    """What lowering a request told: its schedule in full with cost and keys, or the error that it ended with."""

    request: Request
    schedule: Schedule | None = None
    cost: Cost | None = None
    code: str = ""
    accesses: str = ""
    error: TesseraError | None = None


@dataclass(frozen=True)
class Setting:
    """What all points of a search have in common; plain data, which another process can be given."""

    arch: str
    dims: dict[str, int]
    alignment: dict[str, int] | None
    divisors: dict[str, int] | None


@dataclass
class _Settled:
    """A kernel whose schedule can be chosen, and what its own point is lowered to where that was tried."""

    kernel: Kernel
    own: tuple[list[Kernel], list[Kernel]] | None = None


_Source = tuple[int, tuple[tuple[str, Any], ...]]  # a module, and its constants


class Lowering:
    """`modules` are Tile-level, or their text."""

    def __init__(self, modules: list[Module | str], setting: Setting) -> None:
        self.modules, self.setting = modules, setting
        self.arch = find_arch(setting.arch)
        self._prepared: dict[_Source, tuple[Kernel, Context]] = {}
        self._settled: dict[_Source, _Settled] = {}
        self._kernels: dict[Request, list[Kernel]] = {}  # whole

    def lower(self, request: Request) -> Lowered:
        """Down to Target IR, with its cost."""
        try:
            settled = self._settle(request)
            own = None if request.changes else settled.own
            kernels, whole = own or self._lower(request, settled.kernel)
            found = total([cost(each, self.arch, self.setting.dims) for each in whole])
            schedule = as_lowered(self._schedule(request, settled.kernel), whole)
        except TesseraError as error:
            return Lowered(request, error=error.at(self._module(request.source).kernel().loc))
        self._kernels[request] = whole
        code = "\n".join(map(code_key, kernels))
        return Lowered(request, schedule, found, code, access_key(kernels, found))

    def finish(self, request: Request) -> Program:
        """The program of a request that was lowered, verified."""
        if request not in self._kernels and (error := self.lower(request).error) is not None:
            raise error
        kernels = self._kernels[request]
        verify(Module(TARGET, kernels), barriers=True, placed=True)
        for kernel in kernels:
            check_signature(kernel, placed=True)
        return make_program(self._module(request.source).kernel().name, kernels, emit(kernels), self.setting.arch)

    def choices(self, request: Request) -> dict[str, tuple[Any, ...]]:
        """The values of each field that are worth trying at a point, its own first."""
        return candidates(self._settle(request).kernel, self.arch)

    def _lower(self, request: Request, kernel: Kernel) -> tuple[list[Kernel], list[Kernel]]:
        """What the kernels of a request are before and behind the last passes."""
        context = replace(self._prepare(request)[1], schedule=self._schedule(request, kernel))
        kernels = _run(AFTER, [kernel], context)
        return kernels, _run(LAST, kernels, context)

    def _schedule(self, request: Request, kernel: Kernel) -> Schedule:
        return replace(own_point(kernel, self.arch), **dict(request.changes))

    def _settle(self, request: Request) -> _Settled:
        """The prepared kernel on the lane that holds its own point."""
        key = request.source, request.constants
        if key not in self._settled:
            kernel, _ = self._prepare(request)
            found = self._settled[key] = _Settled(kernel)

            def lower(kernel: Kernel) -> list[Kernel]:
                found.kernel, found.own = kernel, None
                found.own = self._lower(replace(request, changes=()), kernel)
                return found.own[1]

            if may_change_lane(kernel, self.arch):
                with suppress(SourceError):  # no lane holds it: whoever lowers that point is told
                    lower_on_a_lane(kernel, self.arch, lower)
        return self._settled[key]

    def _prepare(self, request: Request) -> tuple[Kernel, Context]:
        """The kernel as the schedule is chosen for it."""
        key = request.source, request.constants
        if key not in self._prepared:
            traced = self._module(request.source).kernel()
            attributes = dict(traced.attributes)
            if request.constants:
                attributes["constants"] = dict(request.constants)
            kernel = Kernel(traced.name, traced.body, attributes, traced.origin)
            setting = self.setting
            context = make_context(kernel, self.arch, setting.dims, setting.alignment, setting.divisors)
            (kernel,) = _run(BEFORE, [kernel], context)
            self._prepared[key] = kernel, context
        return self._prepared[key]

    def _module(self, source: int) -> Module:
        module = self.modules[source]
        if isinstance(module, str):
            module = self.modules[source] = parse_module(module)
        if module.level == TARGET:
            raise SourceError("TS702", "this IR is past the tile level: its schedule is chosen")
        return module


def _run(steps: Sequence[Pass], kernels: list[Kernel], context: Context) -> list[Kernel]:
    """Passes in order over every kernel; one may make several of one."""
    for step in steps:
        made = [step.run(kernel, context) for kernel in kernels]
        kernels = [kernel for one in made for kernel in (one if isinstance(one, list) else [one])]
    return kernels


def as_changes(schedule: Schedule, own: Schedule) -> tuple[tuple[str, Any], ...]:
    """The fields in which a schedule differs from another one."""
    theirs = asdict(own)
    return tuple((name, value) for name, value in asdict(schedule).items() if value != theirs[name])


__all__ = ["Lowered", "Lowering", "Request", "Setting", "as_changes"]
