"""A kernel or function of any file as a benchmark: timed against a copy of as many bytes.

Its answer is checked first, as `tessera run` checks it. Large dims are made smaller for that: the reference computes in
float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tessera.cli import report
from tessera.cli.constants import pin
from tessera.cli.functions import FunctionSubject, set_up_function
from tessera.cli.run import Options, run_subject
from tessera.cli.subject import Given, Setup, Subject, load, set_up
from tessera.cli.target import Target, Targets, resolve_one
from tessera.frontend.grid import launch_grid
from tessera.ir.core import Module
from tessera.ir.dims import evaluate
from tessera.ir.opdef import TILE
from tessera.ir.types import TileType
from tessera.runtime import api, gpu, inputs, roofline
from tessera.runtime.autotune_report import settings_text
from tessera.runtime.bench_case import FLOOR, OURS, Case, Dims, Entrant, Prepared, Problem, WrongAnswer
from tessera.search.points import pinned as search_pinned

COPY = "copy"
LARGEST_CHECKED = 512  # of a dim; a larger one keeps its remainder by 256, and with it divisors and the last tile
PERIOD = 256


@dataclass(frozen=True)
class Work:
    """What `call` does on the GPU. `static`: the dims whose values are compiled in."""

    call: Callable[[], Any]
    bytes: int
    flops: int
    static: frozenset[str]


def case_of(text: str, given: Given) -> Case:
    """The case of one row for a target. Raises ArgumentError TS605, and what keeps the target from loading."""
    target = pin(Targets([resolve_one(text)]), given.args, given.shapes).items[0]
    subject = load(target)
    chosen = replace(given, dims=inputs.choose_dims(subject.name, subject.dims, given.dims))
    row: Dims = {**(chosen.dims or {}), **given.args}
    title = f"{text} against a copy of as many bytes"
    return Case(subject.name, title, (row,), lambda _: _problem(target, subject, chosen), (COPY,))


def _problem(target: Target, subject: Subject | FunctionSubject, given: Given) -> Problem:
    work = _work(target, subject, given)

    def pinned(pins: Mapping[str, Any]) -> Entrant:
        other = _scheduled(target, pins)
        made = load(other)
        name = f"{subject.name} {settings_text(pins)}"
        return Entrant(name, OURS, lambda: _checked(made, given, _work(other, made, given)))

    can_pin = isinstance(subject, Subject) and subject.level == TILE
    own = Entrant(subject.name, OURS, lambda: _checked(subject, given, work), pinned=pinned if can_pin else None)
    copy = Entrant(COPY, FLOOR, lambda: Prepared(gpu.copy(work.bytes // 2)))
    return Problem((own, copy), lambda: None, work.bytes, work.flops)


def _scheduled(target: Target, pins: Mapping[str, Any]) -> Target:
    """A kernel with fields of its schedule fixed."""
    if target.definition is not None:
        return replace(target, definition=target.definition.scheduled(pins))
    assert target.module is not None
    made = search_pinned(target.module, pins)
    assert isinstance(made, Module)
    return replace(target, module=made)


def _work(target: Target, subject: Subject | FunctionSubject, given: Given) -> Work:
    if isinstance(subject, FunctionSubject):
        return _function_work(subject, given)
    return _kernel_work(target, subject, given)


def _checked(subject: Subject | FunctionSubject, given: Given, work: Work) -> Prepared:
    found = check(subject, given, work.static)
    return Prepared(work.call, note=lambda: found)


def check(subject: Subject | FunctionSubject, given: Given, static: frozenset[str]) -> str:
    """Runs it on the GPU at dims that the reference can follow; says how close it came. Raises WrongAnswer."""
    sizes = given.dims or {}
    dims = {name: size if name in static else checked_size(size) for name, size in sizes.items()}
    result = run_subject(subject, replace(given, dims=dims), Options("cuda", None))
    worst = max(result.comparisons.values(), key=lambda found: found.max_error, default=None)
    error = f"error {worst.max_error:.3g}, bound {worst.bound:.3g}" if worst else "nothing to compare"
    where = f"at {report.dims_text(dims)}" if dims else "as it is"
    if not result.ok:
        raise WrongAnswer(f"wrong {where}: {error}")
    return f"checked {where}: {error}"


def checked_size(size: int) -> int:
    """A smaller dim with the same remainder by 256, where that is much smaller."""
    return size if size <= LARGEST_CHECKED else PERIOD + size % PERIOD


def _kernel_work(target: Target, subject: Subject, given: Given) -> Work:
    setup = set_up(subject, given)
    flops = 0
    if subject.level == TILE:
        flops = sum(roofline.product_operations(setup.kernel.body, setup.bound)) * prod(setup.extents)
    static = frozenset(setup.kernel.attributes.get("shape_dims", ()))
    moved = roofline.moved_bytes(setup.parameters, setup.bound)
    return Work(_kernel_call(target, subject, setup), moved, flops, static)


def _kernel_call(target: Target, subject: Subject, setup: Setup) -> Callable[[], Any]:
    """As one who has arrays on the GPU calls it; textual IR, which nobody calls, is compiled and launched."""
    arguments: dict[str, Any] = {**setup.arrays, **setup.scalars}
    definition = target.definition
    if definition is not None:
        moved = {name: gpu.on_device(value) for name, value in arguments.items()}
        return lambda: definition(**moved)
    program = subject.program(setup.bound, api.device_arch(0), dict.fromkeys(setup.arrays, 16))
    return gpu.prepare(api.with_cubin(program), arguments, setup.bound)[0]


def _function_work(subject: FunctionSubject, given: Given) -> Work:
    setup = set_up_function(subject, given)
    state, arrays = setup.call.state, setup.call.binding.arrays
    arguments: dict[str, Any] = {}
    for parameter in subject.signature:
        items = [array for key, array in arrays.items() if key.startswith(f"{parameter.name}[")]
        own = arrays.get(parameter.name, setup.scalars.get(parameter.name))
        arguments[parameter.name] = gpu.on_device(items if parameter.kind == "list" else own)
    flops = 0
    for step in state.plan(setup.bound).steps(setup.bound):
        each = sum(roofline.product_operations(step.kernel.body, step.dims))
        flops += each * prod(launch_grid(step.kernel, step.dims))
    written = sum(_bytes(type_, setup.bound) for type_ in state.result_types())
    moved = sum(array.nbytes for array in arrays.values()) + written
    static = frozenset(state.trace.function.attributes["shape_dims"])
    return Work(lambda: subject.definition(**arguments), moved, flops, static)


def _bytes(type_: TileType, dims: dict[str, int]) -> int:
    return prod(evaluate(size, dims) for size in type_.shape) * type_.dtype.bytes


__all__ = ["case_of", "check", "checked_size"]
