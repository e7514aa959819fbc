"""Runs a kernel on one lane, on NumPy arrays, and says whether what came out is right.

The lanes: `interpret` walks the IR of either level, `emulate` runs the emitted CUDA on this CPU, `cuda` on a GPU.
Arguments are NumPy arrays and Python numbers by parameter name; arrays that the kernel writes are changed in place, on
every lane.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.dtypes import parse as parse_dtype
from tessera.errors import InternalError, SourceError
from tessera.ir.bounds import Bar
from tessera.ir.core import Kernel, Module
from tessera.ir.dims import evaluate
from tessera.ir.types import ListType, ScalarType, tensor_type
from tessera.program import MAP_KINDS, Argument, Launch, Parameter, Program
from tessera.runtime.arrays import NUMPY, ArrayInfo
from tessera.runtime.bind import expand, stride_values
from tessera.runtime.compare import Comparison, check
from tessera.runtime.emulator_maps import twin_map
from tessera.runtime.inputs import poison
from tessera.runtime.tensor_maps import TensorShape, mapped_names, tensor_shapes

LANES = ("interpret", "emulate", "cuda")


@dataclass(frozen=True)
class KernelRun:
    """One launch: the kernel's name and its grid."""

    name: str
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What a lane did: its launches, wall time in seconds without compilation, and the arrays that were written.

    On the `cuda` lane the time is that of the launches alone, between two events on the stream.
    """

    lane: str
    kernels: tuple[KernelRun, ...]
    seconds: float
    outputs: dict[str, np.ndarray] = field(default_factory=dict)


def parameters_of(kernel: Kernel) -> tuple[Parameter, ...]:
    """The kernel's parameters as data; one that is written is an output, one that is also read is in-out."""
    from tessera.runtime.interpreter_setup import accessed

    reads, writes = accessed(kernel)
    alignment = kernel.attributes.get("alignment") or {}
    result = []
    for value in kernel.parameters:
        type_ = value.type
        tensor = tensor_type(type_)
        if isinstance(type_, ScalarType):
            result.append(Parameter(value.name, "scalar", type_.dtype.name))
        elif tensor is not None:
            role = "in" if value not in writes else "inout" if value in reads else "out"
            aligned = alignment.get(value.name, 16)
            strides = kernel.attributes.get("strides", {}).get(value.name, ())
            kind, length = ("list", type_.length) if isinstance(type_, ListType) else ("tensor", 0)
            dtype, shape = tensor.dtype.name, tensor.shape
            result.append(Parameter(value.name, kind, dtype, shape, role, aligned, strides, length))
        else:
            raise InternalError("TS901", f"the parameter '{value.name}' is neither a tensor nor a scalar", kernel.loc)
    return tuple(result)


def interpret(
    kernel: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    grid: tuple[int, ...] | None = None,
    level: str = "tile",
) -> Outcome:
    """Runs the IR of a kernel, at the level that it is at."""
    from tessera.runtime.interpreter import interpret as run

    start = time.perf_counter()
    result = run(kernel, arguments, dims, grid, level)
    seconds = time.perf_counter() - start
    return Outcome("interpret", (KernelRun(kernel.name, result.grid),), seconds, dict(result.outputs))


def interpret_all(module: Module, arguments: Mapping[str, Any], dims: Mapping[str, int]) -> Outcome:
    """Runs kernels that hand workspaces to one another, in order. The outcome has the workspaces among its outputs."""
    start = time.perf_counter()
    known = dict(arguments)
    ran: list[KernelRun] = []
    written: dict[str, np.ndarray] = {}
    for kernel in module.kernels:
        for parameter in parameters_of(kernel):
            if parameter.name not in known:
                shape = tuple(evaluate(size, dims) for size in parameter.shape)
                known[parameter.name] = poison(shape, parse_dtype(parameter.dtype))
        names = {parameter.name for parameter in kernel.parameters}
        given = {name: value for name, value in known.items() if name in names}
        outcome = interpret(kernel, given, dims, level=module.level)
        ran += outcome.kernels
        written |= outcome.outputs
    return Outcome("interpret", tuple(ran), time.perf_counter() - start, written)


def emulate(program: Program, arguments: Mapping[str, Any], dims: Mapping[str, int], seed: int = 0) -> Outcome:
    """Runs the CUDA text of a program on this CPU; a `seed` other than 0 runs blocks and warps in random order.

    Raises EnvironmentProblem TS507 without a C++ compiler, and InternalError TS901 for what the emulator finds illegal
    in the emitted text: a race, a missing wait, an access outside of an array.
    """
    from tessera.runtime import emulator

    library = emulator.build(program.cuda, [step.kernel for step in program.launches])
    arguments = {**arguments, **workspaces_of(program, dims)}
    start = time.perf_counter()
    done = []
    for step in program.launches:
        grid = tuple(evaluate(size, dims) for size in step.grid)
        if 0 in grid:
            continue
        packed = emulated_arguments(program, step, arguments, dims)
        try:
            library.launch(step.kernel, grid, step.threads, step.shared_bytes, packed, seed)
        except emulator.EmulatorFault as fault:
            if fault.faults[0].kind == "assertion":
                raise SourceError("TS509", fault.faults[0].message) from None
            notes = [f"{found.kind}: {found.message}" for found in fault.faults[1:]]
            raise InternalError("TS901", f"the emitted CUDA is wrong: {fault}", notes=notes) from fault
        done.append(KernelRun(step.kernel, grid))
    return Outcome("emulate", tuple(done), time.perf_counter() - start, _written(program, arguments))


def emulated_arguments(
    program: Program, step: Launch, arguments: Mapping[str, Any], dims: Mapping[str, int]
) -> list[Any]:
    """What a launch of the program passes its kernel on the emulator; tensors that it only reads are read-only.

    `arguments` has the workspaces of the program, too.
    """
    tensors = expand(program.parameters)
    given = {p.name: array for p, array in zip(tensors, _arrays(program, arguments), strict=True)}
    infos = {name: NUMPY.describe(array) for name, array in given.items()}
    sizes = {**dims, **stride_values(tensors, infos)}
    packed = []
    for argument in step.arguments:
        if argument.kind in MAP_KINDS:
            packed.append(_emulated_maps(program, step, argument, {**arguments, **given}, dims, infos))
            continue
        value: Any = evaluate(argument.size, sizes) if argument.kind == "size" else arguments[argument.name]
        if argument.kind == "pointers":
            value = [_read_only(array) for array in value]
        elif argument.kind == "pointer" and argument.name not in step.writes:
            value = _read_only(value)
        packed.append(value)
    return packed


def _emulated_maps(
    program: Program,
    step: Launch,
    argument: Argument,
    arrays: Mapping[str, Any],
    dims: Mapping[str, int],
    infos: Mapping[str, ArrayInfo],
) -> Any:
    """The tensor map of a tensor, or a list of those of a list, as the emulator takes it."""
    shapes = tensor_shapes(program, infos, dims)
    found = []
    for name in mapped_names(program, argument):
        array = arrays[name] if argument.name in step.writes else _read_only(arrays[name])
        shape, item = shapes[name]
        if shape.empty:  # a map has elements: one zero, which lies elsewhere
            array, ones = np.zeros(1, array.dtype), [1] * len(argument.box)
            shape = TensorShape.of(ones, ones, item)
        shape.check(name)
        found.append(twin_map(array, shape.sizes, shape.strides, argument.box, argument.swizzle))
    return found if argument.kind == "maps" else found[0]


def workspaces_of(program: Program, dims: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Arrays for the workspaces of a program, which hold NaN until a launch writes them."""
    return {
        space.name: poison(tuple(evaluate(size, dims) for size in space.shape), parse_dtype(space.dtype))
        for space in program.workspaces
    }


def _read_only(array: np.ndarray) -> np.ndarray:
    """A store to it is a fault."""
    view = array.view()
    view.flags.writeable = False
    return view


def _arrays(program: Program, arguments: Mapping[str, Any]) -> list[np.ndarray]:
    """The array of every tensor, those of a list one by one."""
    found: list[np.ndarray] = []
    for parameter in program.parameters:
        if parameter.kind != "scalar":
            value = arguments[parameter.name]
            found += value if parameter.kind == "list" else [value]
    return found


def cuda(program: Program, arguments: Mapping[str, Any], dims: Mapping[str, int], repeats: int = 0) -> Outcome:
    """Copies the arrays to the current GPU, runs the program, and copies what it wrote back.

    With `repeats` the time is the median of that many more runs, each with a cold L2 cache, as a caller with a large
    model finds it; without, that of the one run. Raises EnvironmentProblem TS505 without a GPU.
    """
    from tessera.runtime import gpu

    seconds, done = gpu.run(program, arguments, dims, repeats)
    return Outcome("cuda", tuple(KernelRun(*item) for item in done), seconds, _written(program, arguments))


def _written(program: Program, arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {p.name: arguments[p.name] for p in program.parameters if p.role in ("out", "inout")}


def launches_of(program: Program, dims: Mapping[str, int]) -> list[tuple[Launch, tuple[int, ...]]]:
    """Each launch with its grid in numbers."""
    return [(step, tuple(evaluate(size, dims) for size in step.grid)) for step in program.launches]


def verify_outputs(
    kernel: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    outputs: Mapping[str, np.ndarray],
    grid: tuple[int, ...] | None = None,
    level: str = "tile",
) -> dict[str, Comparison]:
    """Compares `outputs` with the reference bars of the kernel on the same `arguments`, as they were before the run."""
    bars = reference_bars(kernel, arguments, dims, grid, level)
    return {name: check(outputs[name], bar) for name, bar in bars.items()}


def reference_bars(
    kernel: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    grid: tuple[int, ...] | None = None,
    level: str = "tile",
) -> dict[str, Bar]:
    """The bars of every tensor that the kernel writes.

    The reference starts from zeros where a run starts from NaN: an element that no program writes is then wrong, not a
    NaN that agrees with another.
    """
    from tessera.runtime.reference import reference

    clean = dict(arguments)
    for parameter in parameters_of(kernel):
        if parameter.role == "out":
            clean[parameter.name] = np.zeros_like(arguments[parameter.name])
    return reference(kernel, clean, dims, grid, level)
