"""What happens when a function is called: its arguments are checked, a lane is chosen, new arrays are returned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.config import config
from tessera.errors import ArgumentError
from tessera.frontend.annotations import ScalarAnnotation
from tessera.frontend.definition import FunctionDefinition
from tessera.ir.dims import evaluate
from tessera.runtime import arrays, function_launch
from tessera.runtime.bind import as_result
from tessera.runtime.compare import Comparison, check
from tessera.runtime.function_arguments import read_arguments
from tessera.runtime.function_interpreter import function_reference, interpret_function
from tessera.runtime.function_plans import PlanPrograms, emulate_plan
from tessera.runtime.function_state import Call, FunctionRun, FunctionState, state_of
from tessera.runtime.parameters import current_store


def call(definition: FunctionDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a function on the caller's arrays and returns new ones, of the same library.

    A function of numbers alone that returns a number is a Python function. Raises ArgumentError for arguments that do
    not fit (`runtime.bind`), SourceError for a body that they make wrong, and EnvironmentProblem TS505 when the cuda
    lane is asked for without a GPU.
    """
    state = vars(definition).get("_function_state") or state_of(definition)
    done, result = function_launch.warm_call(state, args, kwargs)
    if done:
        return result
    from tessera.runtime.api import choose_lane

    if arrays.any_without_memory((*args, *kwargs.values())):
        from tessera.runtime.torch_op import automatic

        return automatic(definition)(*args, **kwargs)
    if is_native(definition):
        return _native(definition, args, kwargs)
    made = state.prepare(args, kwargs)
    lane = choose_lane(config().backend, made.binding.device)
    if lane == "cuda" and made.binding.device is not None:
        return function_launch.cold_call(state, made, args, kwargs)
    found, state.last_run = run_on_host(made, lane)
    return as_result(_returned(made, found))


def last_run(definition: FunctionDefinition) -> FunctionRun | None:
    """What the last call of a function did, in whatever thread; None before the first, and where Python ran it."""
    return state_of(definition).last_run


def is_native(definition: FunctionDefinition) -> bool:
    """Whether a function computes a number of numbers: Python runs it."""
    numbers = all(isinstance(p.annotation, ScalarAnnotation) for p in definition.parameters)
    return numbers and isinstance(definition.returns, ScalarAnnotation)


def _native(definition: FunctionDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = read_arguments(definition, args, kwargs)
    try:
        result = definition.function(**given.scalars)
    except ZeroDivisionError as error:
        values = ", ".join(f"{name}={value}" for name, value in given.scalars.items())
        raise ArgumentError("TS403", f"{definition.name}({values}) divides by zero") from error
    assert isinstance(definition.returns, ScalarAnnotation)
    return float(result) if definition.returns.dtype.is_float else int(result)


# ---- arrays of the host ----------------------------------------------------------------------------------------------


def run_on_host(
    made: Call, lane: str, arch: str | None = None, repeats: int = 0
) -> tuple[list[np.ndarray], FunctionRun]:
    """The results of a call whose arrays live on the host, and what ran.

    `arch` is that of the emulate lane, `repeats` as of `run_through_gpu` on the cuda lane.
    """
    if lane == "cuda":
        return function_launch.run_through_gpu(made, repeats)
    trace, values = made.state.trace, host_arguments(made)
    if lane == "interpret":
        start = time.perf_counter()
        found = interpret_function(trace.function, values, made.dims, trace.collected.kernels)
        seconds = time.perf_counter() - start
        shapes = [tuple(evaluate(size, made.dims) for size in type_.shape) for type_ in made.state.result_types()]
        found = [array.reshape(shape) for array, shape in zip(found, shapes, strict=True)]
        return found, FunctionRun(lane, notes=made.state.notes, seconds=seconds)
    from tessera.runtime.api import choose_arch

    programs = made.state.plan(made.dims)
    results = programs.empty_results(made.dims)
    values |= dict(zip(programs.result_roots(), results, strict=True))
    ran = emulate_plan(programs, values, made.dims, choose_arch(arch))
    return results, FunctionRun(lane, ran.kernels, ran.footprint, made.state.notes, ran.seconds)


def host_arguments(made: Call) -> dict[str, Any]:
    """Contiguous arrays and numbers for every parameter of the traced function, hidden ones too."""
    values: dict[str, Any] = {
        name: np.asarray(arrays.host_view(array), order="C") for name, array in made.binding.arrays.items()
    }
    store = current_store()
    return values | {name: store.get(spec) for name, spec in made.specs.items()} | made.all_scalars()


def verify_results(made: Call, results: Sequence[np.ndarray]) -> dict[str, Comparison]:
    """Compares the results of a call on the host with the reference bars of its function, by the names of results.

    The call must have a seed of its own where its function draws random numbers.
    """
    trace = made.state.trace
    bars = function_reference(trace.function, host_arguments(made), made.dims, trace.collected.kernels)
    names = trace.function.attributes["results"]
    return {name: check(array, bar) for name, array, bar in zip(names, results, bars, strict=True)}


def _returned(made: Call, found: Sequence[np.ndarray]) -> list[Any]:
    """Arrays of the host in the library of the call's arguments."""
    library = made.binding.library
    if library is arrays.NUMPY:
        return list(found)
    results = []
    for array, type_ in zip(found, made.state.result_types(), strict=True):
        copy = library.empty(array.shape, type_.dtype, None)
        arrays.host_view(copy)[...] = array
        results.append(library.returned(copy, None))
    return results


__all__ = [
    "FunctionState",
    "PlanPrograms",
    "call",
    "host_arguments",
    "is_native",
    "last_run",
    "run_on_host",
    "verify_results",
]
