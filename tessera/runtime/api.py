"""What happens when a kernel is called: arguments are checked, a lane is chosen, and what was compiled is used again.

A program is specialised for the values of the dims that shapes need, for the divisors of the dims that are innermost
axes, and for the alignment of the arrays; a call that differs in one of these compiles another. All stay in memory.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.config import config, in_force
from tessera.errors import ArgumentError, EnvironmentProblem, SourceError, did_you_mean
from tessera.frontend.annotations import Annotation, ListAnnotation, ScalarAnnotation
from tessera.frontend.definition import MISSED, REQUIRED, FunctionDefinition, KernelDefinition
from tessera.frontend.evaluator import trace
from tessera.frontend.grid import apply_grid, check_coverage, launch_grid
from tessera.frontend.inference import Actual, is_bare, resolve, tensor_of
from tessera.ir.core import Kernel, Module
from tessera.ir.dims import symbols
from tessera.ir.opdef import TILE
from tessera.ir.strides import with_strides
from tessera.program import ANY_LENGTH, Parameter, Program
from tessera.runtime import arrays, autotune_calls, execute, launch, plan, programs, warm_code
from tessera.runtime.autotune_calls import Answer, Bench, Chooser, Compiled
from tessera.runtime.autotune_report import Choice
from tessera.runtime.bind import Binding, bind
from tessera.runtime.call_arguments import dims_of, paired, present
from tessera.runtime.execute import KernelRun
from tessera.runtime.programs import with_cubin
from tessera.target.arch import ARCHS, find, nearest_lane
from tessera.target.schedule import Schedule

if TYPE_CHECKING:
    from tessera.runtime.function_state import FunctionRun

BASE_ARCH = "sm_80"
# No access is wider than 16 bytes, and no element is smaller than 1.
LARGEST_DIVISOR = 16


@dataclass(frozen=True)
class Run:
    """What a call did: its lane, its launches (none for empty arrays), and the compiler's notes to the author.

    `choice` is the point that an autotuned kernel ran at, and where that came from.
    """

    lane: str
    kernels: tuple[KernelRun, ...]
    notes: tuple[str, ...] = ()
    choice: Choice | None = None


def call(
    definition: KernelDefinition | FunctionDefinition,
    grid: tuple[Any, ...] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    partial: bool = False,
) -> Any:
    """Runs a kernel on the caller's arrays; `grid` is that of `kernel[grid]`, None to use the kernel's own.

    Outputs that are left out are allocated like the inputs and returned. Raises ArgumentError for arguments that do not
    fit (`runtime.bind`), TS306 for a grid that leaves part of an output unwritten unless `partial`, and
    EnvironmentProblem TS505 when the cuda lane is asked for without a GPU.
    """
    state = vars(definition).get("_runtime_state")
    if state is None:
        if isinstance(definition, FunctionDefinition):
            return _call_function(definition, args, kwargs)
        state = _state(definition)
    absent: frozenset[str] = frozenset()
    if state.optional:
        args, kwargs, absent = present(state.definition.parameters, state.optional, args, kwargs)
    values = (*args, *kwargs.values()) if kwargs else args
    form = None if grid is None and not kwargs and not absent else (tuple(kwargs), grid, partial, absent)
    for written in state.written.of(form):
        result = written(values, in_force())
        if result is not MISSED:
            return result
    seen = plan.read(form, values)
    known = None if seen is None else state.plan_for(seen[0])
    if known is not None and seen is not None:
        done, result = known.run(seen[1])
        if done:
            state.last_run = known.record
            write = functools.partial(warm_code.write_kernel_call, known, state, seen[0], values)
            state.written.served(form, known, known.settings, write)
            return result
    if arrays.any_without_memory(values):
        from tessera.runtime.torch_op import automatic

        return automatic(definition)(*args, **kwargs)
    return _cold_call(
        state, absent, grid, args, kwargs, partial, lambda: plan.read(form, values) if plan.learn(values) else None
    )


def _call_function(definition: FunctionDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    global _call_function
    from tessera.runtime.functions import call

    _call_function = call  # from now on without this detour: an import costs as much as a launch
    return call(definition, args, kwargs)


def _cold_call(
    state: KernelState,
    absent: frozenset[str],
    grid: tuple[Any, ...] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    partial: bool,
    signature: Callable[[], tuple[plan.Signature, Any] | None],
) -> Any:
    """A call with everything checked; where it runs on a GPU it leaves a plan for the calls that are like it."""
    chosen = None if grid is None else _grid(state.definition.name, grid)
    outer, state = state, state.without(absent).for_arguments(args, kwargs)
    binding, kernel = _bind(state, chosen, args, kwargs)
    lane = choose_lane(config().backend, binding.device)
    extents = launch_grid(kernel, binding.dims)
    binding.allocate()
    if 0 in extents or all(0 in binding.infos[name].shape for name in binding.outputs):
        outer.last_run = Run(lane, (), _notes(kernel))
        return binding.results()
    answer = None
    if state.definition.space is not None:
        answer = _choose(state, binding, lane, chosen)
        state = state.at(answer.choice.constants)
        kernel = state.kernel(binding.dims, chosen)
        extents = launch_grid(kernel, binding.dims)
    choice = None if answer is None else answer.choice
    notes = _notes(kernel)
    state.check_coverage(kernel, binding.dims, extents, partial)
    if lane == "interpret":
        ran = execute.interpret(kernel, _host_arguments(binding), binding.dims, extents).kernels
    elif lane == "emulate" or binding.device is None:
        ran = _run_from_host(state, binding, lane, chosen, choice)
    else:
        program = state.program_for(binding, device_arch(binding.device), chosen, choice)
        prepared = launch.LAUNCHER.launch(program, binding, binding.stream())
        grids = launch.LAUNCHER.grids(program, binding.dims, binding.device)
        ran = tuple(KernelRun(*launched) for launched in grids)
        seen = signature() if plan.can_plan(binding) and (answer is None or answer.final) else None
        if seen is not None:
            run = Run(lane, ran, notes, choice)
            outer.keep_plan(seen[0], plan.Plan(launch.LAUNCHER.driver, prepared, binding, config(), run))
    outer.last_run = Run(lane, ran, notes, choice)
    return binding.results()


def _notes(kernel: Kernel) -> tuple[str, ...]:
    return tuple(kernel.attributes.get("notes", ()))


def _choose(state: KernelState, binding: Binding, lane: str, grid: tuple[int, ...] | None) -> Answer:
    """The point of an autotuned kernel that a call takes; the first call with a new key may measure it."""
    found = autotune_calls.fixed_choice(state.definition, lane, grid is not None)
    if found is not None:
        return Answer(found)
    if lane == "cuda":
        ordinal = launch.current_device() if binding.device is None else binding.device
        stream = 0 if binding.device is None else binding.stream()
        bench = Bench(ordinal, stream, lambda: binding if binding.device is not None else _on_gpu(binding))
        arch = device_arch(ordinal)
    else:
        bench, arch = None, choose_arch(None)
    compiled = state.compiled_for(binding, arch, on_gpu=lane == "cuda")
    compiles = partial(state.compiles, compiled, lane == "cuda")
    return state.choose(compiled, binding.scalars, bench, compiles)


def _on_gpu(binding: Binding) -> Binding:
    """The same call with copies of its arrays on the current GPU."""
    from tessera.runtime import gpu

    arguments = {**_host_arguments(binding), **binding.scalars}
    return gpu.bound(binding.kernel, binding.parameters, arguments, binding.dims)


def _bind(
    state: KernelState, grid: tuple[int, ...] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Binding, Kernel]:
    """The checked arguments, and the Tile-level kernel for their dims."""
    name = state.definition.name
    parameters = state.parameters_for(args, kwargs)
    binding = bind(name, parameters, args, kwargs, state.defaults)
    kernel = state.kernel(binding.dims, grid)
    actual = state.parameters_of(kernel)
    if actual != parameters:  # the dims decided which tensors are written
        binding = bind(name, actual, args, kwargs, state.defaults)
    return binding, kernel


def last_run(definition: KernelDefinition | FunctionDefinition) -> Run | FunctionRun | None:
    """What the last call of a kernel or function did, in whatever thread; None before the first."""
    if isinstance(definition, FunctionDefinition):
        from tessera.runtime import functions

        return functions.last_run(definition)
    return _state(definition).last_run


class KernelState:
    """What is known about one kernel, and everything that was compiled for it."""

    def __init__(self, definition: KernelDefinition) -> None:
        self.definition = definition
        self.defaults = {p.name: p.default for p in definition.parameters if p.default is not REQUIRED}
        self.optional = definition.optional
        self.last_run: Run | None = None
        self._kernels: list[tuple[dict[str, int], Kernel]] = []
        self._gridded: dict[tuple[int, tuple[int, ...]], Kernel] = {}
        self._programs: dict[tuple[Any, ...], list[tuple[dict[str, int], Program]]] = {}
        self._parameters: dict[int, tuple[Parameter, ...]] = {}
        self._plans: dict[plan.Signature, plan.Plan] = {}
        self.written = warm_code.WrittenCalls(definition)
        self._covered: set[tuple[Any, ...]] = set()
        self._resolved: dict[tuple[str, ...], KernelState] = {}
        self._points: dict[tuple[Any, ...], KernelState] = {}
        self._without: dict[frozenset[str], KernelState] = {}
        self._chooser = autotune_calls.Chooser(definition, self.kernel) if definition.space else None
        self._compiling = threading.RLock()

    @cached_property
    def symbolic(self) -> Kernel | None:
        """The Tile-level kernel with every dim symbolic; None where the author's code decides by the value of a dim."""
        try:
            return trace(self.definition, {}).kernel()
        except SourceError as error:
            if error.code != "TS205":
                raise
            return None

    @cached_property
    def signature(self) -> tuple[Parameter, ...]:
        """The parameters as they are annotated, every tensor as an input: its role is known only after a trace."""
        definition = resolve(self.definition)
        parameters = [_parameter(p.name, p.annotation) for p in definition.parameters]
        if None in parameters:
            trace(definition, {})  # says what is wrong with it
            raise SourceError("TS206", f"the annotations of '{definition.name}' are not supported")
        return tuple(parameter for parameter in parameters if parameter is not None)

    def for_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> KernelState:
        """The state of the kernel whose bare parameters are as these arguments are; this one where it has none."""
        parameters = self.definition.parameters
        if not any(is_bare(p.annotation) for p in parameters):
            return self
        given = dict(paired([p.name for p in parameters], args, kwargs))
        actual: dict[str, Actual] = {}
        for parameter in parameters:
            value = given.get(parameter.name)
            items = value if isinstance(value, (list, tuple)) else [value]
            info = arrays.describe(items[0]) if items else None
            if is_bare(parameter.annotation) and info is not None and info.dtype is not None:
                actual[parameter.name] = Actual(info.shape, info.dtype)
        annotated = [p for p in (_parameter(p.name, p.annotation) for p in parameters) if p is not None]
        with self._compiling:
            found = resolve(self.definition, dims_of(annotated, given, lenient=True), actual)
            key = tuple(str(p.annotation) for p in found.parameters)
            return self._resolved.setdefault(key, KernelState(found))

    def without(self, names: frozenset[str]) -> KernelState:
        """The state of this kernel for calls that do not have these optional tensors."""
        if not names:
            return self
        with self._compiling:
            if names not in self._without:
                self._without[names] = KernelState(self.definition.without(names))
            return self._without[names]

    def at(self, constants: Mapping[str, Any]) -> KernelState:
        """The state of this kernel at another point of its tuning space."""
        if constants == self.definition.constants:
            return self
        with self._compiling:
            key = tuple(sorted(constants.items()))
            if key not in self._points:
                self._points[key] = KernelState(self.definition.at(dict(constants)))
            return self._points[key]

    def compiled_for(self, binding: Binding, arch: str, on_gpu: bool) -> Compiled:
        """What the programs of a call are compiled for; host arrays travel to a GPU, and are contiguous there."""
        if on_gpu and binding.device is None:
            alignment, strides, divisors = dict.fromkeys(binding.alignment, 16), {}, {}
        else:
            alignment, strides, divisors = binding.alignment, binding.strides, _power_divisors(binding.stride_values)
            if (facts := find(arch)) is not None and facts.tma:
                divisors |= dict.fromkeys(binding.unmapped, 1)
        divisors = {**innermost_divisors(self.signature, binding.dims), **divisors}
        return Compiled(binding.dims, arch, alignment, divisors, strides)

    def choose(
        self,
        compiled: Compiled,
        scalars: Mapping[str, int | float],
        bench: Bench | None = None,
        compiles: Callable[[Choice], object] = lambda choice: None,
    ) -> Answer:
        """`Chooser.choose`; other threads that call this kernel wait while it measures."""
        assert self._chooser is not None
        with self._compiling:
            return self._chooser.choose(compiled, scalars, bench, compiles)

    @property
    def chooser(self) -> Chooser:
        return self._chooser or autotune_calls.Chooser(self.definition, self.kernel)

    def chosen(
        self, dims: dict[str, int], arch: str, scalars: Mapping[str, int | float] | None = None
    ) -> tuple[KernelState, Choice | None]:
        """The state at the point that a call with these sizes would have, and the choice; nothing is measured.

        A kernel without a tuning space has no choice.
        """
        if self.definition.space is None:
            return self, None
        choice = autotune_calls.fixed_choice(self.definition, "compile", on_grid=False)
        if choice is None:
            alignment = {p.name: 16 for p in self.signature if p.kind != "scalar"}
            compiled = Compiled(dims, arch, alignment, innermost_divisors(self.signature, dims), {})
            compiles = partial(self.compiles, compiled, False)
            choice = self.choose(compiled, scalars or {}, compiles=compiles).choice
        return self.at(choice.constants), choice

    def compiles(self, compiled: Compiled, machine_code: bool, choice: Choice) -> None:
        """Compiles this kernel at a choice, for a call that then finds the program. Raises SourceError."""
        self.at(choice.constants)._program(compiled, None, machine_code, choice)

    def parameters_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Parameter, ...]:
        """The parameters with their roles, for a call with these arguments."""
        if self.symbolic is not None:
            return self.parameters_of(self.symbolic)
        given = dict(paired([p.name for p in self.signature], args, kwargs))
        for parameter in self.signature:
            value = given.get(parameter.name)
            if parameter.kind == "list" and not isinstance(value, (list, tuple)):
                needed = f"{self.definition.name} needs a list of tensors for '{parameter.name}'"
                what = f", but a {type(value).__name__} was passed" if parameter.name in given else ""
                raise ArgumentError("TS203" if what else "TS601", needed + what)
        return self.parameters_of(self.kernel(dims_of(self.signature, given)))

    def parameters_of(self, kernel: Kernel) -> tuple[Parameter, ...]:
        """`execute.parameters_of`, which walks the whole body, once per kernel of this state."""
        known = self._parameters.get(id(kernel))  # a kernel lives as long as this state
        if known is None:
            known = self._parameters[id(kernel)] = execute.parameters_of(kernel)
        return known

    def plan_for(self, signature: plan.Signature) -> plan.Plan | None:
        """The plan of an earlier call of this signature, under the settings of now."""
        try:
            known = self._plans.get(signature)
        except TypeError:  # a grid that is no tuple of integers
            return None
        return known if known is not None and known.settings is config() else None

    def keep_plan(self, signature: plan.Signature, made: plan.Plan) -> None:
        if len(self._plans) >= plan.LARGEST:
            self._plans.clear()
        self._plans[signature] = made

    def kernel(self, dims: Mapping[str, int], grid: tuple[int, ...] | None = None) -> Kernel:
        """The Tile-level kernel for these dims, on the given grid or its own."""
        kernel = self.symbolic or self._traced(dims)
        if grid is None:
            return kernel
        key = (id(kernel), grid)  # a kernel lives as long as this state
        if key not in self._gridded:
            self._gridded[key] = apply_grid(kernel, grid)
        return self._gridded[key]

    def _traced(self, dims: Mapping[str, int]) -> Kernel:
        with self._compiling:
            for decided, kernel in self._kernels:
                if all(dims.get(name) == value for name, value in decided.items()):
                    return kernel
            kernel = trace(self.definition, dict(dims)).kernel()
            self._kernels.append((_decided(kernel, dims), kernel))
            return kernel

    def check_coverage(self, kernel: Kernel, dims: Mapping[str, int], grid: tuple[int, ...], partial: bool) -> None:
        key = (tuple(sorted(dims.items())), grid, partial)
        if key not in self._covered:
            check_coverage(kernel, dims, grid, partial)
            self._covered.add(key)

    def program(
        self,
        dims: dict[str, int],
        arch: str,
        grid: tuple[int, ...] | None,
        alignment: dict[str, int],
        machine_code: bool = False,
        choice: Choice | None = None,
    ) -> Program:
        """A program for these dims, compiled now or before; with its cubin where `machine_code` asks for it.

        `choice` gives the schedule; this state is the one of its constants.
        """
        divisors = innermost_divisors(self.signature, dims)
        return self._program(Compiled(dims, arch, alignment, divisors, {}), grid, machine_code, choice)

    def program_for(
        self,
        binding: Binding,
        arch: str,
        grid: tuple[int, ...] | None = None,
        choice: Choice | None = None,
        on_gpu: bool = True,
    ) -> Program:
        """The program of a call; with its cubin where it runs on a GPU."""
        return self._program(self.compiled_for(binding, arch, on_gpu), grid, on_gpu, choice)

    def _program(
        self, compiled: Compiled, grid: tuple[int, ...] | None, machine_code: bool, choice: Choice | None
    ) -> Program:
        dims, arch, alignment, divisors = compiled.dims, compiled.arch, compiled.alignment, compiled.divisors
        schedule = schedule_of(choice)
        key = (
            arch,
            grid,
            machine_code,
            tuple(divisors.items()),
            tuple(alignment.items()),
            tuple(compiled.strides.items()),
            schedule,
        )
        with self._compiling:
            known = self._programs.setdefault(key, [])
            for decided, program in known:
                if all(dims.get(name) == value for name, value in decided.items()):
                    return program
            kernel = self._traced(dims)
            kernel = kernel if grid is None else apply_grid(kernel, grid)
            kernel = with_strides(kernel, compiled.strides) if compiled.strides else kernel
            decided = _decided(kernel, dims)
            options = (arch, None, alignment, divisors, *(((), schedule) if schedule is not None else ()))

            def build() -> Program:
                program = compile_kernel(Module(TILE, [kernel]), dims, *options).program
                assert program is not None
                return program

            program = programs.compiled(kernel, decided, options, build) if machine_code else build()
            known.append((decided, program))
            return program


def schedule_of(choice: Choice | None) -> Schedule | None:
    """The schedule of a choice; None where the compiler derives it."""
    return None if choice is None or choice.schedule is None else Schedule(**choice.schedule)


def _parameter(name: str, annotation: Annotation) -> Parameter | None:
    """A parameter as it is annotated, as an input; None where the annotation does not say what it is."""
    if isinstance(annotation, ScalarAnnotation):
        return Parameter(name, "scalar", annotation.dtype.name)
    tensor = tensor_of(annotation)
    if tensor is None or tensor.shape is None or tensor.dtype is None:
        return None
    if isinstance(annotation, ListAnnotation):
        return Parameter(name, "list", tensor.dtype.name, tensor.shape, length=ANY_LENGTH)
    return Parameter(name, "tensor", tensor.dtype.name, tensor.shape)


def compile_kernel(*arguments: Any) -> Any:
    """`compiler.compile_kernel`, imported by the first kernel that the disk does not know: that takes a while."""
    from tessera import compiler

    return compiler.compile_kernel(*arguments)


def _decided(kernel: Kernel, dims: Mapping[str, int]) -> dict[str, int]:
    """The dims whose values went into a kernel: those of shapes, and those that the author's code decided by."""
    return {name: dims[name] for name in kernel.attributes["shape_dims"] if name in dims}


_making = threading.Lock()


def _state(definition: KernelDefinition) -> KernelState:
    """The state of a definition, kept in it, so that what was compiled for a kernel goes when the kernel goes."""
    found = vars(definition).get("_runtime_state")
    if found is None:
        with _making:
            found = vars(definition).setdefault("_runtime_state", KernelState(definition))
    return found


def _run_from_host(
    state: KernelState, binding: Binding, lane: str, grid: tuple[int, ...] | None, choice: Choice | None
) -> tuple[KernelRun, ...]:
    if lane == "emulate":
        program = state.program_for(binding, choose_arch(None), grid, choice, on_gpu=False)
        return execute.emulate(program, _host_arguments(binding), binding.dims).kernels
    program = state.program_for(binding, device_arch(launch.current_device()), grid, choice)
    return execute.cuda(program, _host_arguments(binding), binding.dims).kernels


def _host_arguments(binding: Binding) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for parameter in binding.parameters:
        value = binding.argument(parameter)
        if parameter.kind == "list":
            value = [arrays.host_view(array) for array in value]
        found[parameter.name] = arrays.host_view(value) if parameter.kind == "tensor" else value
    return found


def _grid(kernel: str, grid: tuple[Any, ...]) -> tuple[int, ...]:
    if not all(isinstance(size, (int, np.integer)) and not isinstance(size, bool) for size in grid):
        raise ArgumentError("TS203", f"{kernel}[grid] takes integers, not {grid!r}")
    return tuple(int(size) for size in grid)


def innermost_divisors(parameters: tuple[Parameter, ...], dims: Mapping[str, int]) -> dict[str, int]:
    """The power of two up to 16 that divides each dim of an innermost axis: what decides how wide an access may be."""
    names = sorted({name for p in parameters if p.shape for name in symbols(p.shape[-1])})
    return _power_divisors({name: dims[name] for name in names if name in dims})


def _power_divisors(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: min(size & -size, LARGEST_DIVISOR) or LARGEST_DIVISOR for name, size in sizes.items()}


def choose_lane(backend: str | None, device: int | None = None, count: Callable[[], int] = launch.device_count) -> str:
    """The lane for a backend (`auto`, `interpret`, `emulate`, `cuda`) and arrays on a GPU, or on the host (None).

    `auto` takes CUDA when a device is there, else the interpreter. Raises EnvironmentProblem TS505 for cuda without a
    GPU and ArgumentError TS604 for arrays on a GPU and a lane that runs on the CPU.
    """
    backend = backend or "auto"
    if device is not None:
        if backend in ("interpret", "emulate"):
            message = f"the arrays live on GPU {device}, and the {backend} lane runs on the CPU"
            raise ArgumentError("TS604", message)
        return "cuda"
    if backend == "cuda":
        launch.require_device()
    if backend == "auto":
        return "cuda" if count() > 0 else "interpret"
    return backend


def choose_arch(name: str | None) -> str:
    """The architecture to compile for: the given one, the configured one, that of GPU 0, else sm_80.

    Raises ArgumentError TS508 for one that is not known.
    """
    name = name or config().arch
    if name is None:
        return device_arch(0) if launch.device_count() else BASE_ARCH
    if find(name) is None:
        hint = did_you_mean(name, ARCHS)
        raise ArgumentError("TS508", f"there is no architecture '{name}' (known: {', '.join(ARCHS)}){hint}")
    return name


@cache
def device_arch(device: int) -> str:
    """The architecture to compile for on a GPU; one that the table does not have takes the facts of the one below it.

    Raises EnvironmentProblem TS508 for a GPU that is too old, or newer than the installed NVRTC.
    """
    try:
        facts = nearest_lane(launch.compute_capability(device))
    except ValueError as error:
        raise EnvironmentProblem("TS508", f"GPU {device} cannot be used: {error}") from None
    if facts.name not in ARCHS:
        supported = launch.nvrtc_architectures()
        if supported and int(facts.name.removeprefix("sm_")) not in supported:
            message = f"GPU {device} is {facts.name}, newer than any that the installed NVRTC compiles for"
            raise EnvironmentProblem("TS508", f"{message} (sm_{max(supported)}); install a newer NVRTC")
    return facts.name


__all__ = [
    "KernelState", "Run", "call", "choose_arch", "choose_lane", "device_arch", "innermost_divisors", "last_run",
    "schedule_of", "with_cubin",
]  # fmt: skip
