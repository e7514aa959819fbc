"""The driver: kernel definition -> Tile IR -> passes -> Target IR -> CUDA text -> Program.

A function takes a way of its own first, Graph IR -> passes -> plan, and then that of a kernel for each of its kernels.
Every stage is kept for inspection.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tessera import dtypes
from tessera.buffers import Buffer, Footprint, Order, place
from tessera.codegen_cuda.emit import CudaKernel, emit
from tessera.config import config
from tessera.errors import SourceError, TesseraError, did_you_mean
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.function import FunctionTrace
from tessera.ir.core import Kernel, Module, Value
from tessera.ir.dims import Size, evaluate, symbol, symbols
from tessera.ir.opdef import GRAPH, TARGET, TILE
from tessera.ir.printer import print_module
from tessera.ir.signature import check_signature
from tessera.ir.types import ListType, dtype_of, tensor_type
from tessera.ir.verify import verify
from tessera.passes import GRAPH_PIPELINE, PIPELINE, Context, Pass
from tessera.passes.lower_graph import lower_graph
from tessera.passes.plan_fusion import Fusion, plan_fusion
from tessera.passes.specialise import unbound_dims
from tessera.plan import GraphPlan, PlanLaunch
from tessera.program import MAP_ALIGNMENT, MAP_KINDS, Argument, Launch, Parameter, Program, Workspace
from tessera.target.arch import ARCHS, PARAMETER_BYTES, Arch, find
from tessera.target.schedule import Schedule, as_lowered, schedule_of
from tessera.target.schedules import may_change_lane, on_base_lane

CHOICE = next(number for number, step in enumerate(PIPELINE) if step.name == "choose_schedule")
VECTOR_DIVISOR = 16  # a dim's divisibility is worth knowing up to 16 elements: the widest vector of any dtype


@dataclass(frozen=True)
class Stage:
    """The module after a pass (`name`), how long that took, and whether the pass keeps every bit."""

    name: str
    module: Module
    seconds: float
    exact: bool = True


@dataclass
class Compilation:
    """Everything that compiling one kernel for one architecture made."""

    stages: list[Stage] = field(default_factory=list)
    cuda: list[CudaKernel] = field(default_factory=list)
    program: Program | None = None
    times: dict[str, float] = field(default_factory=dict)
    schedule: Schedule | None = None

    @property
    def tile(self) -> Module:
        """The last Tile-level module."""
        return [stage.module for stage in self.stages if stage.module.level == TILE][-1]

    @property
    def target(self) -> Module:
        return self.stages[-1].module


Hook = Callable[[Stage], None]


def find_arch(name: str) -> Arch:
    """Raises SourceError TS508 for an architecture that the table does not have."""
    facts = find(name)
    if facts is None:
        known = ", ".join(ARCHS)
        raise SourceError("TS508", f"there is no architecture '{name}' (known: {known}){did_you_mean(name, ARCHS)}")
    return facts


def trace_kernel(
    definition: KernelDefinition,
    dims: Mapping[str, int],
    grid: Sequence[Size] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Module:
    """Tile IR of a kernel, on its own grid or on `grid`; `constants` pins tuning constants."""
    from tessera.frontend.evaluator import trace
    from tessera.frontend.grid import apply_grid

    module = trace(definition, dict(dims), constants=constants)
    if grid is not None:
        module = Module(TILE, [apply_grid(kernel, tuple(grid)) for kernel in module.kernels])
    return module


def compile_kernel(
    source: KernelDefinition | Module,
    dims: Mapping[str, int],
    arch: str = "sm_80",
    grid: Sequence[Size] | None = None,
    alignment: Mapping[str, int] | None = None,
    divisors: Mapping[str, int] | None = None,
    hooks: Sequence[Hook] = (),
    schedule: Schedule | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Compilation:
    """Compiles one kernel down to CUDA text, verifying after every pass.

    `dims` gives every dim a value; only those that shapes need are compiled in, of the others only divisibility (unless
    `divisors` says otherwise). `alignment`: bytes to which each tensor's address is aligned (default 16). `constants`
    pins tuning constants of a definition; the others have their default. A Target-level module is emitted as it is.
    Raises SourceError with the author's location.
    """
    facts = find_arch(arch)
    result = Compilation()

    def keep(name: str, module: Module, seconds: float, exact: bool = True) -> None:
        stage = Stage(name, module, seconds, exact)
        result.stages.append(stage)
        result.times[name] = seconds
        for hook in hooks:
            hook(stage)

    start = time.perf_counter()
    module = source if isinstance(source, Module) else trace_kernel(source, dims, grid, constants)
    verify(module)
    keep("frontend", module, time.perf_counter() - start)
    name = module.kernel().name
    if module.level == TILE:
        context = make_context(module.kernel(), facts, dims, alignment, divisors, schedule)

        def run(steps: Sequence[Pass], module: Module) -> Module:
            for step in steps:
                start = time.perf_counter()
                before, module = module, run_pass(step, module, context)
                exact = step.exact or module.kernels == before.kernels
                keep(step.name, module, time.perf_counter() - start, exact)
            return module

        def lower(kernel: Kernel) -> list[Kernel]:
            del result.stages[CHOICE + 1 :]  # of another lane; the frontend is a stage too
            return run(PIPELINE[CHOICE:], Module(TILE, [kernel])).kernels

        kernel = run(PIPELINE[:CHOICE], module).kernel()
        module = Module(TARGET, lower_on_a_lane(kernel, facts, lower) if schedule is None else lower(kernel))
        # Later passes may make several kernels, each with a schedule of its own.
        chosen = next(stage for stage in reversed(result.stages) if stage.name == "choose_schedule")
        result.schedule = as_lowered(schedule_of(chosen.module.kernel()), module.kernels)
    for kernel in module.kernels:
        check_signature(kernel, placed=True)
    start = time.perf_counter()
    result.cuda = emit(module.kernels)
    result.times["emit"] = time.perf_counter() - start
    result.program = make_program(name, module.kernels, result.cuda, arch)
    dump([stage.module for stage in result.stages], result.cuda)
    return result


def dump(modules: Sequence[Module], texts: Sequence[CudaKernel] = ()) -> None:
    """Prints to stderr what the setting `dump` names: of each level the last module, and the CUDA text."""
    wanted = config().dump
    if not wanted:
        return
    last = {module.level: module for module in modules}
    shown = [print_module(last[level]) for level in (GRAPH, TILE, TARGET) if level in wanted and level in last]
    shown += [text.text for text in texts if "cuda" in wanted]
    for text in shown:
        print(text, file=sys.stderr)


def lower_on_a_lane(kernel: Kernel, arch: Arch, lower: Callable[[Kernel], list[Kernel]]) -> list[Kernel]:
    """What `lower` makes of a kernel whose schedule is not chosen yet, on the base lane where nobody has asked for
    warpgroups and shared memory does not hold what they need, no producer can have the copies, or products are not for
    them as the author has fixed the rest.
    """
    try:
        changes = may_change_lane(kernel, arch)
    except TesseraError as error:  # what the schedule cannot be chosen for
        raise error.at(kernel.loc) from None
    if not changes:
        return lower(kernel)
    try:
        found = lower(kernel)
    except SourceError as error:
        if error.code != "TS501":
            raise
        return lower(on_base_lane(kernel, arch, error.message))
    if {"roles", "wgmma"} <= {op.name for each in found for op in each.body.walk()}:
        return found
    notes = [note for each in found for note in each.attributes.get("notes", ())]
    return lower(on_base_lane(kernel, arch, "; ".join(dict.fromkeys(notes))))


def make_context(
    kernel: Kernel,
    arch: Arch,
    dims: Mapping[str, int],
    alignment: Mapping[str, int] | None = None,
    divisors: Mapping[str, int] | None = None,
    schedule: Schedule | None = None,
) -> Context:
    """Which dims a kernel's shapes bind, and what may be assumed of the others.

    Raises SourceError TS205 for a missing one.
    """
    needed = unbound_dims(kernel)
    missing = [dim for dim in needed if dim not in dims]
    if missing:
        raise SourceError(
            "TS205", f"kernel '{kernel.name}' needs a value for {', '.join(missing)}, which its shapes use", kernel.loc
        )
    # IR that was specialised before keeps what it was bound to.
    static = {**kernel.attributes.get("static", {}), **{dim: dims[dim] for dim in needed}}
    if divisors is None:
        divisors = {dim: divisibility(value) for dim, value in dims.items() if dim not in static}
    return Context(arch, static, dict(divisors), dict(alignment or {}), schedule, {**dims, **static})


def divisibility(value: int) -> int:
    """The largest power of two up to 16 that divides a dim; 16 for zero."""
    return min(value & -value, VECTOR_DIVISOR) if value else VECTOR_DIVISOR


def run_pass(step: Pass, module: Module, context: Context) -> Module:
    """One pass over every kernel, verified: what it gives back as it was is as good as before. An error without a place
    gets the kernel's.
    """
    kernels: list[Kernel] = []
    for kernel in module.kernels:
        try:
            made = step.run(kernel, context)
        except TesseraError as error:
            raise error.at(kernel.loc) from None
        kernels += made if isinstance(made, list) else [made]
    new = Module(step.level, kernels)
    if kernels == module.kernels and step.level == module.level:  # the very same: kernels are compared by identity
        return new
    placed = any(kernel.attributes.get("shared_bytes") is not None for kernel in kernels)
    verify(new, barriers=step.name in ("insert_barriers", "rematerialise", "interleave"), placed=placed)
    return new


def make_program(name: str, kernels: Sequence[Kernel], texts: Sequence[CudaKernel], arch: str) -> Program:
    """The plain data of compiled kernels, launched in this order; `cubin` is filled in by the runtime.

    All have the signature of a call, of which the last one says the roles, and workspaces behind it. Raises SourceError
    TS511 for more tensors than the arguments of a launch have room for.
    """
    kernel = kernels[-1]
    spaces = kernel.attributes.get("workspaces", ()) if len(kernels) > 1 else ()
    signature = [value for value in kernel.parameters if value.name not in spaces]
    parameters = tuple(_parameter(value, kernel.attributes) for value in signature)
    lists = {parameter.name for parameter in parameters if parameter.kind == "list"}
    launches = [_launch(each, text, lists) for each, text in zip(kernels, texts, strict=True)]
    for launch in launches:
        check_room(kernel, parameters, launch.arguments)
    return Program(
        name,
        arch,
        parameters,
        tuple(kernel.attributes.get("dims", ())),
        dict(kernel.attributes.get("static", {})),
        dict(kernel.attributes.get("divisors", {})),
        tuple(launches),
        "\n".join(text.text for text in texts),
        notes=tuple(dict.fromkeys(note for each in kernels for note in each.attributes.get("notes", ()))),
        workspaces=tuple(_workspace(value) for value in kernel.parameters if value.name in spaces),
    )


def _parameter(value: Value, attributes: Mapping[str, Any]) -> Parameter:
    tensor = tensor_type(value.type)
    if tensor is None:
        return Parameter(value.name, "scalar", dtype_of(value.type).name)
    return Parameter(
        value.name,
        "list" if isinstance(value.type, ListType) else "tensor",
        tensor.dtype.name,
        tensor.shape,
        dict(attributes.get("parameters", ())).get(value.name, "in"),
        attributes.get("alignment", {}).get(value.name, 16),
        attributes.get("strides", {}).get(value.name, ()),
        value.type.length if isinstance(value.type, ListType) else 0,
    )


def _workspace(value: Value) -> Workspace:
    tensor = tensor_type(value.type)
    assert tensor is not None
    return Workspace(value.name, tensor.dtype.name, tensor.shape)


def _launch(kernel: Kernel, text: CudaKernel, lists: set[str]) -> Launch:
    arguments = [
        *(Argument("pointers" if name in lists else "pointer", name) for name in text.pointers),
        *(
            Argument("maps" if each.parameter in lists else "map", each.parameter, box=each.box, swizzle=each.swizzle)
            for each in text.maps
        ),
        *(Argument("size", size=symbol(dim)) for dim in text.sizes),
        *(Argument("scalar", name) for name in text.scalars),
    ]
    return Launch(
        text.name,
        tuple(kernel.attributes.get("grid", (1,))),
        text.threads,
        text.shared_bytes,
        tuple(arguments),
        tuple(name for name, role in kernel.attributes.get("parameters", ()) if role != "in"),
    )


def check_room(kernel: Kernel, parameters: Sequence[Parameter], arguments: Sequence[Argument]) -> None:
    """Raises SourceError TS511 for arguments that take more bytes than CUDA passes to a kernel."""
    named = {parameter.name: parameter for parameter in parameters}
    tensors = size = 0
    for argument in arguments:
        item, count = 8, 1
        if argument.kind == "scalar":
            item = dtypes.parse(named[argument.name].dtype).bytes
        elif argument.kind in MAP_KINDS:
            item, count = MAP_ALIGNMENT, (named[argument.name].length if argument.kind == "maps" else 1) * 2
        elif argument.kind != "size":
            length = named[argument.name].length if argument.kind == "pointers" else 1
            tensors, count = tensors + length, max(1, length)
        size = -(-size // item) * item + item * count  # each at a multiple of its own size, a map of half of it
    if size > PARAMETER_BYTES:
        raise SourceError(
            "TS511",
            f"kernel '{kernel.name}' is passed {tensors} tensors, whose addresses and sizes take {size} bytes of "
            f"arguments, and a launch has room for {PARAMETER_BYTES}",
            kernel.loc,
        )


# ---- functions -----------------------------------------------------------------------------------------------------


@dataclass
class FunctionCompilation:
    """Everything that compiling one function for one architecture made.

    `graph` holds the traced function and what each pass over it made. `kernels` are those of the plan, each once for
    all launches that run the same code; `chosen` says which one a launch runs. `dims` are those of the call.
    """

    graph: list[Stage]
    plan: GraphPlan
    kernels: list[Compilation] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def footprint(self) -> Footprint:
        """What a call needs whose launches run one after the other."""
        buffers: dict[Any, Buffer] = {**self.plan.temporaries(self.dims)}
        for number, (launch, chosen) in enumerate(zip(self.plan.launches, self.chosen, strict=True)):
            program, sizes = self.kernels[chosen].program, launch_dims(launch, self.dims)
            for space in () if program is None else program.workspaces:
                buffers[number, space.name] = Buffer(space.bytes(sizes), 1 << number)
        _, size = place(buffers, Order.sequential(len(self.plan.launches)))
        return self.plan.footprint(self.dims, buffers, size)

    @cached_property
    def fusion(self) -> Fusion:
        """Which ops share a kernel, and why others do not."""
        names = [stage.name for stage in self.graph]
        return plan_fusion(self.graph[names.index("fuse") - 1].module.kernel(), self.dims)

    @cached_property
    def stages(self) -> list[Stage]:
        """The graph stages, then each stage of the kernels, all of them in one module."""
        result = list(self.graph)
        for number, first in enumerate(self.kernels[0].stages if self.kernels else ()):
            made = [compilation.stages[number] for compilation in self.kernels]
            name = "lower_graph" if number == 0 else first.name
            kernels = [kernel for stage in made for kernel in stage.module.kernels]
            result.append(Stage(name, Module(first.module.level, kernels), sum(stage.seconds for stage in made)))
        return result


def compile_function(
    source: FunctionTrace | Kernel, dims: Mapping[str, int], arch: str = "sm_80", hooks: Sequence[Hook] = ()
) -> FunctionCompilation:
    """Compiles a traced function for a call with these dims, down to the CUDA text of every kernel of its plan.

    Of the dims only those go into the code that `GraphPlan.static`, and the kernels' shapes, need. Raises SourceError
    with the author's location.
    """
    find_arch(arch)
    function = source if isinstance(source, Kernel) else source.function
    called = {} if isinstance(source, Kernel) else source.collected.kernels
    graph: list[Stage] = []

    def keep(stage: Stage) -> None:
        graph.append(stage)
        for hook in hooks:
            hook(stage)

    start = time.perf_counter()
    plan = lower_function(function, dims, arch, keep, called)
    result = FunctionCompilation(graph, plan, dims=dict(dims))
    result.times["graph"] = time.perf_counter() - start
    known: dict[tuple[Any, ...], int] = {}
    for launch in plan.launches:
        kernel, sizes = plan.kernels[launch.kernel], launch_dims(launch, dims)
        static, divisors = launch_statics(kernel, sizes), launch_divisors(kernel, sizes)
        key = (launch.kernel, *sorted(static.items()), *sorted(divisors.items()))
        if key not in known:
            known[key] = len(result.kernels)
            named = _apart(kernel, [known.name for made in result.kernels for known in made.stages[0].module.kernels])
            result.kernels.append(compile_kernel(Module(TILE, [named]), sizes, arch, None, None, divisors, hooks))
        result.chosen.append(known[key])
    for compilation in result.kernels:
        for name, seconds in compilation.times.items():
            result.times[name] = result.times.get(name, 0.0) + seconds
    return result


def lower_function(
    function: Kernel,
    dims: Mapping[str, int],
    arch: str = "sm_80",
    keep: Hook | None = None,
    called: Mapping[str, Kernel] | None = None,
) -> GraphPlan:
    """The plan of a traced function for a call with these dims; `keep` gets its Graph IR, before and after each pass.

    `called`: the kernels that it launches, by the name that it has for them (`Collected.kernels` of its trace). Raises
    SourceError with the author's location.
    """
    module = Module(GRAPH, [function])
    verify(module)
    if keep is not None:
        keep(Stage("frontend", module, 0.0))
    context = Context(find_arch(arch), dict(dims))
    for step in GRAPH_PIPELINE:
        start = time.perf_counter()
        module = run_pass(step, module, context)
        if keep is not None:
            keep(Stage(step.name, module, time.perf_counter() - start, step.exact))
    dump([module])
    try:
        return lower_graph(module.kernel(), dims, called)
    except TesseraError as error:
        raise error.at(function.loc) from None


def launch_dims(launch: PlanLaunch, dims: Mapping[str, int]) -> dict[str, int]:
    """The values of a kernel's dims in a call whose dims are `dims`."""
    return {name: evaluate(size, dims) for name, size in launch.dims.items()}


def launch_statics(kernel: Kernel, dims: Mapping[str, int]) -> dict[str, int]:
    """The dims, of those of a launch, whose values go into the code of its kernel."""
    return {name: dims[name] for name in unbound_dims(kernel)}


def launch_divisors(kernel: Kernel, dims: Mapping[str, int]) -> dict[str, int]:
    """What divides the dims of innermost axes, which decides how wide an access may be."""
    shapes = [type_.shape for type_ in (tensor_type(p.type) for p in kernel.parameters) if type_ is not None]
    names = sorted({name for shape in shapes if shape for name in symbols(shape[-1])})
    return {name: divisibility(dims[name]) for name in names if name in dims}


def _apart(kernel: Kernel, names: Sequence[str]) -> Kernel:
    """The kernel under a name that no other one has: one kernel may be compiled for several sizes."""
    name, number = kernel.name, 1
    while name in names:
        number += 1
        name = f"{kernel.name}_{number}"
    return kernel if name == kernel.name else Kernel(name, kernel.body, kernel.attributes, kernel.origin)


__all__ = [
    "TARGET", "Compilation", "FunctionCompilation", "Stage", "compile_function", "compile_kernel", "find_arch",
    "launch_dims", "launch_divisors", "launch_statics", "lower_function", "make_program", "run_pass", "trace_kernel",
]  # fmt: skip
