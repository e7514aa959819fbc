"""Lower one kernel under many schedules: what does not depend on the schedule is done once, and nothing is verified
before it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tessera.codegen_cuda.emit import emit
from tessera.compiler import find_arch, make_context, make_program
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
from tessera.target.schedule import Schedule
from tessera.target.schedules import candidates, own_point

_CHOICE, _LAST = (
    next(number for number, step in enumerate(PIPELINE) if step.name == name)
    for name in ("choose_schedule", "insert_barriers")
)
# Barriers and what lies between them follow from the rest: kernels that are equal before are equal behind.
BEFORE, AFTER, LAST = PIPELINE[:_CHOICE], PIPELINE[_CHOICE:_LAST], PIPELINE[_LAST:]


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


class Lowering:
    """`modules` are Tile-level, or their text."""

    def __init__(self, modules: list[Module | str], setting: Setting) -> None:
        self.modules, self.setting = modules, setting
        self.arch = find_arch(setting.arch)
        self._prepared: dict[tuple[int, tuple[tuple[str, Any], ...]], tuple[Kernel, Context]] = {}
        self._kernels: dict[Request, list[Kernel]] = {}  # whole

    def lower(self, request: Request) -> Lowered:
        """Down to Target IR, with its cost."""
        try:
            kernel, context = self._prepare(request)
            schedule = replace(own_point(kernel, self.arch), **dict(request.changes))
            context = replace(context, schedule=schedule)
            kernels = _run(AFTER, [kernel], context)
            whole = _run(LAST, kernels, context)
            found = total([cost(each, self.arch, self.setting.dims) for each in whole])
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
        return candidates(self._prepare(request)[0], self.arch)

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
