"""Launches the kernels of a function on a GPU, on the caller's stream: one by one, or all of them as a CUDA graph.

A call that is like an earlier one (equal dtypes, shapes, strides, devices, alignments and mode) finds what that one
prepared: it makes the results, packs arguments and queues the launches. If all addresses and numbers are those of an
earlier call too, it replays the graph of that (`function_graphs`). While the caller captures a graph, launches are
queued one by one, and become a part of it.
"""

from __future__ import annotations

import math
import statistics
import struct
import threading
import warnings
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, TypeGuard

import numpy as np

from tessera import dtypes, modes
from tessera.buffers import Buffer, place
from tessera.config import config, in_force
from tessera.errors import EnvironmentProblem
from tessera.frontend.definition import MISSED
from tessera.frontend.function import element_name
from tessera.ir.core import Kernel
from tessera.ir.dims import evaluate
from tessera.plan import Scalar
from tessera.program import Parameter, Program
from tessera.runtime import arrays, launch, plan, workspace
from tessera.runtime.arrays import Adapter, ArrayInfo, contiguous_strides
from tessera.runtime.bind import Binding, as_result, bind, expand
from tessera.runtime.execute import KernelRun
from tessera.runtime.function_code import write_function_call
from tessera.runtime.function_graphs import GRAPHS, LEAST_LAUNCHES, Graph, capture
from tessera.runtime.function_plans import PlanPrograms, Step
from tessera.runtime.function_scalars import scalar_value
from tessera.runtime.function_state import Call, FunctionRun, FunctionState
from tessera.runtime.function_streams import Streams, assign, leaves_room
from tessera.runtime.launch import Driver, Launcher, PreparedLaunch, _picker
from tessera.runtime.parameters import ParameterSpec, ParameterStore, current_store


def warm_call(state: FunctionState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    """Whether a call could be queued as an earlier one was, and what it returns."""
    if not state.warm:
        return False, None
    values = (*args, *kwargs.values())
    form = tuple(kwargs) or None
    for written in state.written.of(form):
        result = written(values, in_force())
        if result is not MISSED:
            return True, result
    seen = plan.read((tuple(kwargs), modes.mode_key()), values)
    known: Warm | None = None if seen is None else state.warm.get(seen[0])
    if known is None or seen is None or known.call.settings is not config():
        return False, None
    found = known.run(seen[1])
    if found is None:
        return False, None
    state.last_run = known.call.record
    if not known.call.strided:  # copies of views cost more than writing saves
        write = partial(write_function_call, known, state, seen[0], values)
        state.written.served(form, known, known.call.settings, write)
    return True, found[0]


def cold_call(state: FunctionState, made: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Queues a checked call whose arrays live on a GPU, and keeps what calls like it can use."""
    binding = made.binding
    assert binding.device is not None
    prepared = DeviceCall(launch.LAUNCHER, made, binding.library, binding.device, binding.stream())
    result = prepared.results(prepared.run(_values(made)))
    state.last_run = prepared.record
    values = (*args, *kwargs.values())
    seen = plan.read((tuple(kwargs), modes.mode_key()), values) if plan.learn(values) else None
    if seen is not None:
        if len(state.warm) >= plan.LARGEST:
            state.warm.clear()
        state.warm[seen[0]] = Warm(prepared, state, made, args, kwargs)
    return result


def _values(made: Call) -> list[Any]:
    """An address or a number for each parameter of the trace, numbers as their dtype holds them."""
    values: list[Any] = []
    for parameter in made.state.parameters:
        if parameter.kind == "scalar":
            with np.errstate(over="ignore"):
                values.append(dtypes.parse(parameter.dtype).numpy.type(made.scalars[parameter.name]).item())
        else:
            values.append(made.binding.infos[parameter.name].pointer)
    return values


_serial = count()


class DeviceCall:
    """The launches of a function for calls of one signature. `record` is what `last_run` says of the last one.

    What launches pick their arguments from, in this order: a value per parameter of the trace, addresses of the store's
    parameters, the seed, addresses of results and of what lies in the workspace, numbers that the host computes of the
    function's, and those that never change.
    """

    def __init__(self, launcher: Launcher, made: Call, library: Adapter, device: int, stream: int) -> None:
        state, dims = made.state, made.dims
        self.name, self.serial = made.name, next(_serial)
        self.launcher, self.driver, self.settings = launcher, launcher.driver, config()
        self.library, self.device = library, device
        self.programs = state.plan(dims)
        places: dict[Hashable, int] = {parameter.name: number for number, parameter in enumerate(state.parameters)}
        self.guards = [(places[guard.parameter], guard) for guard in state.trace.collected.guards]
        # Copied before the launches: kernels of a plan take contiguous tensors.
        self.strided = {places[name]: info for name, info in made.binding.infos.items() if not info.contiguous}
        self.specs = list(made.specs.values())
        seed = state.seed
        self.seeded, self.seed = seed is not None, made.seed
        results = self.programs.plan.results
        types = [(self.programs.shape(name, dims), self.programs.plan.buffers[name].dtype) for name in results]
        self.made = types
        self.makers = [partial(library.empty, shape, dtype, device) for shape, dtype in types]
        hidden = [*made.specs, *([] if seed is None else [seed])]
        for name in (*hidden, *self.programs.result_roots()):
            places[name] = len(places)
        steps = self.programs.steps(dims)
        compiled = [self._program(step, made.binding, places) for step in steps]
        buffers: dict[Hashable, Buffer] = {**self.programs.temporaries(steps, dims)}
        buffers |= self.programs.workspaces(steps, compiled)
        for name in buffers:
            places[name] = len(places)
        self.numbers = [numbers for step in steps if (numbers := Numbers(step, places)).keys]
        fixed = {(id(step), name): number for step in steps for name, number in _fixed_numbers(step)}
        for key in (*(key for numbers in self.numbers for key in numbers.keys), *fixed):
            places[key] = len(places)
        self.constants: list[Any] = []
        self.floats = [places[p.name] for p in state.parameters if p.kind == "scalar" and p.dtype[0] == "f"]
        prepared = [
            self._prepare(number, step, program, places, stream)
            for number, (step, program) in enumerate(zip(steps, compiled, strict=True))
        ]
        self.tail = [*fixed.values(), *self.constants]
        self.steps = [launches for launches, _ in prepared]
        self.launches = [one for launches in self.steps for one in launches]
        # A seed is another one in each call, and no call repeats another.
        self.graphs = self.settings.graphs == "auto" and not self.seeded and len(self.launches) >= LEAST_LAUNCHES
        self.streams = self._streams(steps)
        offsets, self.workspace = place(buffers, self.streams.order)
        self.offsets = tuple(offsets[name] for name in buffers)
        self.asks = bool(self.workspace or self.graphs or self.strided)
        self.last: tuple[Any, Graph] | None = None
        self.captured: list[Any] = []
        ran = tuple(run for _, runs in prepared for run in runs)
        footprint = self.programs.plan.footprint(dims, buffers, self.workspace)
        self.queued = self.record = FunctionRun("cuda", ran, footprint, state.notes)
        self.replayed = replace(self.queued, replayed=True)

    def _program(self, step: Step, binding: Binding, places: Mapping[Hashable, int]) -> Program:
        from tessera.runtime.api import device_arch

        alignment = {name: info.alignment for name, info in binding.infos.items() if places[name] not in self.strided}
        return self.programs.program(step, device_arch(self.device), alignment, machine_code=True)

    def _prepare(
        self, number: int, step: Step, program: Program, places: Mapping[Hashable, int], stream: int
    ) -> tuple[list[PreparedLaunch], list[KernelRun]]:
        tensors = expand([p for p in program.parameters if p.kind != "scalar"])
        infos = {p.name: _info(self.library, step, p, self.device) for p in tensors}
        bound = Binding(program.name, program.parameters, infos=infos, dims=step.dims)
        prepared = self.launcher.prepare(program, bound, stream)
        first = len(places) + len(self.constants)
        chosen: list[Any] = [self._place(step, parameter.name, places) for parameter in program.parameters]
        chosen += [places[number, space.name] for space in program.workspaces]
        for where in prepared.lists:
            chosen += chosen[where]
        chosen += range(first, first + len(prepared.constants))
        self.constants += prepared.constants
        launches = [
            replace(one, pick=_picker(one.pick(chosen)), maps=one.maps and one.maps.moved(chosen))
            for one in prepared.launches
        ]
        return launches, [KernelRun(*one) for one in self.launcher.grids(program, step.dims, self.device)]

    def _place(self, step: Step, parameter: str, places: Mapping[Hashable, int]) -> int | list[int]:
        """The place of the value that a launch passes for a parameter of its kernel, of each tensor for a list."""
        given = step.launch.tensors.get(parameter)
        if given is not None:
            found = [places[self.programs.root(name).name] for name in ([given] if isinstance(given, str) else given)]
            return found[0] if isinstance(given, str) else found
        scalar = step.launch.scalars[parameter]
        return places[scalar if isinstance(scalar, str) else (id(step), parameter)]

    def _streams(self, steps: Sequence[Step]) -> Streams:
        accesses = [self.programs.plan.accesses(step.launch) for step in steps]
        small = [False] * len(steps)
        if self.graphs:
            most = self.launcher.multiprocessors(self.device)
            small = [
                leaves_room(max((math.prod(one.grid) for one in launches), default=0), most) for launches in self.steps
            ]
        return assign(accesses, small)

    def run(self, values: list[Any]) -> list[Any]:
        """Queues the launches; returns new arrays. `values` as of the class, up to the parameters of the trace.

        Raises SourceError TS403 for a number that the function cannot take, struct.error or OverflowError for one that
        its dtype cannot hold, EnvironmentProblem TS516 where memory cannot be had while the stream is captured.
        """
        if self.guards:
            for where, guard in self.guards:
                guard.check(values[where])
        stream, device = self.library.stream(self.device), self.device
        capturing = self.asks and self.driver.capturing(stream, device)
        alive: list[Any] = []
        base = 0
        try:
            if self.strided:
                alive = [self._gather(values, where, stream) for where in self.strided]
            if self.specs:
                store = current_store()
                values += [address_of(store, spec, self.driver, stream, device) for spec in self.specs]
            if self.seeded:
                values.append(modes.next_seed() if self.seed is None else self.seed)
            made = [make() for make in self.makers]
            values += [workspace.address_of(array) for array in made]
            if self.workspace:
                block, base = self._block(stream, capturing)
                alive.append(block)
        except (RuntimeError, MemoryError) as error:  # what allocators raise, each its own
            if not self.driver.capturing(stream, device):
                raise
            message = f"{self.name} needs memory that cannot be had while its stream is captured into a CUDA graph"
            raise EnvironmentProblem("TS516", f"{message}: {error}") from error
        if capturing:
            self._keep(alive)
        elif self._replay(values, base, stream):
            self.record = self.replayed
            return made
        values = self._completed(values, base)
        for one in self.launches:
            one.queue(self.driver, values, stream, device)
        self.record = self.queued
        return made

    def _completed(self, values: list[Any], base: int) -> list[Any]:
        """What launches pick from, of the values up to the addresses of results and the place of the workspace."""
        values = [*values, *[base + offset for offset in self.offsets]]
        for numbers in self.numbers:
            values += numbers.of(values)
        values += self.tail
        return values

    def _gather(self, values: list[Any], where: int, stream: int) -> Any:
        copy = gathered(values[where], self.strided[where], stream, self.device)
        values[where] = copy.data.ptr
        return copy

    def _block(self, stream: int, capturing: bool) -> tuple[Any, int]:
        if capturing or self.workspace > workspace.KEPT_BYTES:
            return workspace.allocate(self.library, self.workspace, self.device)
        return workspace.KEPT.block(self.driver, self.workspace, self.device, stream)

    def _keep(self, alive: list[Any]) -> None:
        """Keeps what the launches of a captured call use beside arguments and results: the caller's graph may run
        whenever it likes, and a library that knows nothing of graphs would give that memory to others.
        """
        self.captured += alive[: len(self.strided)]
        if not self.library.keeps_captured:
            self.captured += alive[len(self.strided) :]

    def _replay(self, values: list[Any], base: int, stream: int) -> bool:
        """Queues the graph of an equal call; False where there is none."""
        graph = self.graph_of(values, base, stream)
        if graph is None:
            return False
        graph.replay(stream)
        return True

    def graph_of(self, values: list[Any], base: int, stream: int) -> Graph | None:
        """The graph of an equal call, which this one captures if it is the second; None where there is none.

        `values` up to the addresses of results, `base` that of the workspace.
        """
        if not self.graphs:
            return None
        key: tuple[Any, ...] = (self.serial, stream, base, *values)
        if self.floats:  # 0.0 and -0.0 are equal, but no equal arguments
            key += tuple([math.copysign(1.0, values[where]) for where in self.floats])
        last = self.last
        if last is None or last[0] != key:
            seen, graph = GRAPHS.find(key)
            if seen and graph is None:
                graph = self._capture(self._completed(values, base))
                if graph is not None:
                    GRAPHS.put(key, graph)
            if graph is None:
                return None
            last = self.last = key, graph
        return last[1]

    def _capture(self, values: Sequence[Any]) -> Graph | None:
        try:
            return capture(self.driver, self.steps, self.streams, values, self.device)
        except RuntimeError as error:  # of CUDA: everything else about these launches went well in the first call
            self.graphs = False
            message = (
                f"the launches of {self.name} cannot be captured as a CUDA graph and are queued one by one: {error}"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            return None

    def results(self, made: list[Any]) -> Any:
        return as_result([self.library.returned(array, self.device) for array in made])


class Numbers:
    """The numbers that one launch passes and the host computes of those of a call, kept for what they were computed of.

    `keys` has none where there are none.
    """

    def __init__(self, step: Step, places: Mapping[Hashable, int]) -> None:
        self.dims = step.call
        self.scalars = {name: one for name, one in step.launch.scalars.items() if _depends(one)}
        self.keys = [(id(step), name) for name in self.scalars]
        needed = dict.fromkeys(p.name for one in self.scalars.values() for p in one.parameters)
        self.given = {name: places[name] for name in needed}
        self._known: dict[tuple[Any, ...], list[int | float]] = {}

    def of(self, values: Sequence[Any]) -> list[int | float]:
        return self.at(tuple([values[place] for place in self.given.values()]))

    def at(self, given: tuple[Any, ...]) -> list[int | float]:
        """Those of the numbers of a call that `given` names, in order."""
        key = given
        if 0 in key:  # 0.0 and -0.0 are equal
            key += tuple([math.copysign(1.0, number) for number in key])
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= plan.LARGEST:
                self._known.clear()
            named = dict(zip(self.given, given, strict=True))
            found = self._known[key] = [scalar_value(one, named, self.dims) for one in self.scalars.values()]
        return found


def _depends(scalar: Scalar) -> TypeGuard[Kernel]:
    """Whether the host computes a number of others that calls pass."""
    return isinstance(scalar, Kernel) and bool(scalar.parameters)


def _fixed_numbers(step: Step) -> list[tuple[str, int | float]]:
    """The numbers of a launch that are the same in every call with such sizes."""
    return [
        (name, scalar_value(one, {}, step.call))
        for name, one in step.launch.scalars.items()
        if not isinstance(one, str) and not _depends(one)
    ]


class Warm:
    """How the arguments of a call become the values of a `DeviceCall`. `written`: how many functions were written for
    such calls (`function_code`).
    """

    def __init__(
        self, call: DeviceCall, state: FunctionState, made: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.call, self.written = call, 0
        names = [p.name for p in state.definition.parameters]
        passed = [*names[: len(args)], *kwargs]
        flat = [one for name in passed for one in _flat(name, made.lengths)]
        places = {name: number for number, name in enumerate(flat)}
        self.nested = any(name in made.lengths for name in passed)
        self.defaults: list[Any] = []
        for parameter in made.state.parameters:
            if parameter.name not in places:
                places[parameter.name] = len(flat) + len(self.defaults)
                self.defaults.append(made.scalars[parameter.name])
        order = [places[parameter.name] for parameter in made.state.parameters]
        self.order = None if order == sorted(order) else order

    def run(self, found: list[Any]) -> tuple[Any] | None:
        """What the call returns; None where a number does not fit its dtype, which a cold call explains."""
        if self.nested:
            found = [one for item in found for one in (item if type(item) is tuple else (item,))]
        if self.defaults:
            found += self.defaults
        if self.order is not None:
            found = [found[place] for place in self.order]
        try:
            return (self.call.results(self.call.run(found)),)
        except (struct.error, OverflowError):
            return None


def _flat(name: str, lengths: Mapping[str, int]) -> list[str]:
    """What the tensors of a parameter are called in a trace."""
    return [element_name(name, number) for number in range(lengths[name])] if name in lengths else [name]


def _info(library: Adapter, step: Step, tensor: Parameter, device: int) -> ArrayInfo:
    """A tensor of a program, or of a list, that is contiguous wherever it is."""
    shape, dtype = tuple(evaluate(size, step.dims) for size in tensor.shape), dtypes.parse(tensor.dtype)
    return ArrayInfo(library, dtype, tensor.dtype, shape, contiguous_strides(shape), True, 0, device)


def gathered(pointer: int, info: ArrayInfo, stream: int, device: int) -> Any:
    """A contiguous copy of a view at an address, made on the stream; `info` says how the view lies."""
    import cupy

    assert info.dtype is not None and info.strides is not None
    item = info.dtype.bytes
    low, high = info.extent
    with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device):
        memory = cupy.cuda.UnownedMemory(pointer + low, high - low, None, device)
        steps = tuple(step * item for step in info.strides)
        view = cupy.ndarray(info.shape, f"u{item}", cupy.cuda.MemoryPointer(memory, -low), steps)
        return cupy.ascontiguousarray(view)


# ---- parameters of the store -----------------------------------------------------------------------------------------

# Memory on GPUs by store, then by name and device: a parameter that changes keeps its address.
_addresses: weakref.WeakKeyDictionary[ParameterStore, dict[tuple[str, int], int]] = weakref.WeakKeyDictionary()
_uploading = threading.Lock()


def address_of(store: ParameterStore, spec: ParameterSpec, driver: Driver, stream: int, device: int) -> int:
    """Where a parameter of the store is on a GPU. Raises EnvironmentProblem TS510 where it would have to be copied
    there while the stream is captured.
    """

    def upload(array: np.ndarray) -> int:
        if driver.capturing(stream, device):
            raise EnvironmentProblem(
                "TS510", f"the parameter '{spec.key}' is used for the first time while its stream is captured"
            )
        with _uploading:
            known = _addresses.setdefault(store, {})
            address = known.get((spec.name, device))
            if address is None:
                address = known[spec.name, device] = driver.allocate(max(array.nbytes, 1), device)
            driver.synchronize(device)  # what other streams still read
            driver.write(address, array.tobytes(), stream, device)
            driver.synchronize(device)  # any stream may read it from now on
        return address

    return store.on_device(spec, device, upload)


# ---- arrays of the host ----------------------------------------------------------------------------------------------


def run_through_gpu(made: Call, repeats: int = 0) -> tuple[list[np.ndarray], FunctionRun]:
    """Copies host arrays to the current GPU and results back: those, and what ran, with the seconds of the launches.

    With `repeats` the seconds are the median of that many further runs with a cold L2 cache.
    """
    from tessera.runtime import gpu

    launch.require_device()
    import cupy

    moved: dict[str, Any] = {}
    for name, array in made.binding.arrays.items():
        moved[name] = cupy.asarray(gpu.carried(np.asarray(arrays.host_view(array), order="C")))
    bound = bind(made.name, made.state.parameters, (), {**moved, **made.binding.scalars})
    bound.dims = made.dims
    there, stream = replace(made, binding=bound), cupy.cuda.get_current_stream()
    prepared = DeviceCall(launch.LAUNCHER, there, arrays.CUPY, launch.current_device(), stream.ptr)
    kept: list[list[Any]] = []
    seconds = gpu._timed(cupy, stream, lambda: kept.append(prepared.run(_values(there))))
    types = made.state.result_types()
    results = [array.get().view(t.dtype.numpy) for array, t in zip(kept[0], types, strict=True)]
    if repeats:
        flush = cupy.empty(gpu.FLUSH_BYTES, cupy.uint8)
        samples = []
        for _ in range(repeats):
            flush.fill(0)
            samples.append(gpu._timed(cupy, stream, partial(prepared.run, _values(there))))
        seconds = statistics.median(samples)
    return results, replace(prepared.record, seconds=seconds)


__all__ = ["DeviceCall", "PlanPrograms", "Warm", "cold_call", "run_through_gpu", "warm_call"]
