"""`tessera run`: kernels and functions on made-up inputs, with every output checked against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera.cli import report
from tessera.cli.constants import pin, read_pins
from tessera.cli.functions import FunctionSetup, FunctionSubject, set_up_function
from tessera.cli.run_report import Result, show_all, show_one
from tessera.cli.subject import Given, Loaded, Setup, Subject, at_choice, load, load_all, own, read_given, set_up
from tessera.cli.target import resolve, split
from tessera.config import config
from tessera.errors import TesseraError
from tessera.frontend.grid import launch_grid
from tessera.ir.opdef import TILE
from tessera.runtime import api, execute, functions
from tessera.runtime.arrays import alignment_class
from tessera.runtime.execute import Outcome

TIMED_REPEATS = 20


@dataclass(frozen=True)
class Options:
    """What the command line said about where to run."""

    backend: str
    arch: str | None


def run(
    target: str,
    dims: str | None,
    args: tuple[str, ...],
    backend: str | None,
    arch: str | None,
    seed: int,
    shapes: tuple[str, ...],
    pins: tuple[str, ...],
    as_json: bool,
) -> int:
    given = read_given(dims, args, seed, shapes)
    options = Options(backend or config().backend, None if arch is None else api.choose_arch(arch))
    targets = pin(resolve(target), given.args, given.shapes, read_pins(pins))
    api.choose_lane(options.backend)  # a GPU that is asked for and absent is one error, not one per kernel
    if split(target)[1] is not None:
        result = run_subject(load(targets.items[0]), given, options)
        show_one(result, target, as_json)
        return report.OK if result.ok else report.FAILED
    results = [_run_row(name, found, given, options) for name, found in load_all(target, targets.items, given)]
    ok = all(result.ok for result in results) and not targets.failures
    show_all(results, targets.failures, ok, target, given.dims, as_json)
    return report.OK if ok else report.FAILED


def run_subject(subject: Subject | FunctionSubject, given: Given, options: Options) -> Result:
    """Runs one kernel or function and checks its outputs; raises what keeps it from running."""
    if isinstance(subject, FunctionSubject):
        return run_function(subject, given, options)
    setup = set_up(subject, given)
    result = Result(subject.name, setup.dims, setup.scalars, notes=setup.notes)
    lane = _lane(subject, options)
    arguments = {**{name: _copied(value) for name, value in setup.arrays.items()}, **setup.scalars}
    if lane == "interpret":
        result.outcome = execute.interpret(setup.kernel, arguments, setup.bound, setup.extents, subject.level)
    else:
        result.arch = api.device_arch(0) if lane == "cuda" else api.choose_arch(options.arch)
        chosen, notes = at_choice(subject, setup.bound, setup.scalars, result.arch)
        result.notes += notes
        result.outcome = _run_program(chosen, lane, result.arch, setup.bound, arguments)
    original = {**setup.arrays, **setup.scalars}
    result.comparisons = execute.verify_outputs(
        setup.kernel, original, setup.bound, result.outcome.outputs, setup.extents, subject.level
    )
    if lane == "cuda" and subject.level == TILE:
        result.roofline = _roofline(setup, result)
    return result


def run_function(subject: FunctionSubject, given: Given, options: Options) -> Result:
    """Runs one function and checks its results."""
    setup = set_up_function(subject, given)
    lane = api.choose_lane(options.backend)
    result = Result(subject.name, setup.dims, setup.scalars, notes=setup.notes)
    if lane != "interpret":
        result.arch = api.device_arch(0) if lane == "cuda" else api.choose_arch(options.arch)
    found, ran = functions.run_on_host(setup.call, lane, result.arch, TIMED_REPEATS)
    names = setup.call.state.trace.function.attributes["results"]
    result.outcome = Outcome(lane, ran.kernels, ran.seconds or 0.0, dict(zip(names, found, strict=True)))
    result.footprint = None if lane == "interpret" else ran.footprint
    result.comparisons = functions.verify_results(setup.call, found)
    if lane == "cuda" and ran.seconds:
        result.roofline = _function_roofline(setup, result) / ran.seconds
    return result


def _function_roofline(setup: FunctionSetup, result: Result) -> float:
    """The least seconds of the launches, one after the other."""
    from tessera.compiler import find_arch
    from tessera.runtime.roofline import roofline_seconds

    assert result.arch is not None
    total = 0.0
    for step in setup.call.state.plan(setup.bound).steps(setup.bound):
        parameters, extents = execute.parameters_of(step.kernel), launch_grid(step.kernel, step.dims)
        total += roofline_seconds(step.kernel, parameters, step.dims, extents, find_arch(result.arch))
    return total


def _lane(subject: Subject, options: Options) -> str:
    # Target-level text says how a GPU runs the kernel; where there is none, running its CUDA shows the most.
    lane = api.choose_lane(options.backend)
    return "emulate" if subject.level != TILE and options.backend == "auto" and lane == "interpret" else lane


def _run_program(subject: Subject, lane: str, arch: str, dims: dict[str, int], arguments: dict[str, Any]) -> Outcome:
    on_host = {
        name: min((alignment_class(array.ctypes.data) for array in _arrays(value)), default=16)
        for name, value in arguments.items()
        if isinstance(value, (np.ndarray, list))
    }
    alignment = on_host if lane == "emulate" else dict.fromkeys(on_host, 16)
    program = subject.program(dims, arch, alignment)
    if lane == "emulate":
        return execute.emulate(program, arguments, dims)
    return execute.cuda(api.with_cubin(program), arguments, dims, TIMED_REPEATS)


def _copied(value: Any) -> Any:
    return [array.copy() for array in value] if isinstance(value, list) else value.copy()


def _arrays(value: Any) -> list[np.ndarray]:
    return value if isinstance(value, list) else [value]


def _roofline(setup: Setup, result: Result) -> float | None:
    from tessera.compiler import find_arch
    from tessera.runtime.roofline import roofline_seconds

    assert result.outcome is not None and result.arch is not None
    least = roofline_seconds(setup.kernel, setup.parameters, setup.bound, setup.extents, find_arch(result.arch))
    return least / result.outcome.seconds if result.outcome.seconds > 0 else None


def _run_row(name: str, found: Loaded, given: Given, options: Options) -> Result:
    if isinstance(found, TesseraError):
        return Result(name, error=found)
    try:
        return run_subject(found, own(found, given), options)
    except TesseraError as error:
        if error.code == "TS605":
            raise  # a dim without a size is a mistake in the command, not in one of the kernels
        return Result(name, error=error)
