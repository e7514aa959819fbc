"""What must hold for a random function on every lane, and how several of them share one build of the emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.codegen_cuda.emit import CudaKernel
from tessera.compiler import compile_kernel, find_arch, launch_dims, launch_divisors, run_pass
from tessera.frontend.grid import launch_grid
from tessera.ir.bounds import Bar
from tessera.ir.core import Kernel, Module
from tessera.ir.dims import Size, evaluate
from tessera.ir.opdef import GRAPH, TILE
from tessera.ir.printer import print_kernel
from tessera.ir.types import ListType, dtype_of, shape_of
from tessera.ir.verify import verify
from tessera.passes import GRAPH_PIPELINE, Context, Pass
from tessera.passes.lower_graph import lower_graph
from tessera.passes.specialise import unbound_dims
from tessera.plan import ALIGNMENT, GraphPlan, PlanBuffer, PlanLaunch
from tessera.runtime import emulator, execute
from tessera.runtime.compare import check
from tessera.runtime.function_interpreter import function_reference, interpret_function
from tessera.runtime.inputs import poison
from tests.fuzz.graph_program import GraphProgram, smaller
from tests.fuzz.running import joined
from tests.text_law import held_to_its_text

ARCH = "sm_80"

Arrays = list[np.ndarray]


Runner = Callable[[Kernel, dict[str, Any], dict[str, int]], object]  # a kernel, its arguments, its dims


@dataclass
class PlanRun:
    """A plan with what it gives on the interpreter."""

    program: GraphProgram
    plan: GraphPlan
    results: Arrays = field(default_factory=list)

    def launches(self) -> Iterator[tuple[PlanLaunch, Kernel, dict[str, int]]]:
        """Each launch with its kernel and the kernel's dims."""
        for launch in self.plan.launches:
            yield launch, self.plan.kernels[launch.kernel], launch_dims(launch, self.program.dims)

    def run(self, runner: Runner) -> Arrays:
        """The results when `runner` runs each launch. Parameters must come out as they went in."""
        given, dims, buffers = self.program.arguments(), self.program.dims, self.plan.buffers
        before = {name: value.tobytes() for name, value in given.items() if isinstance(value, np.ndarray)}
        memory = dict(given)
        for buffer in buffers.values():
            if not buffer.alias and buffer.role != "parameter":
                memory[buffer.name] = poison(_sizes(buffer.shape, dims), buffer.dtype)
        for launch, kernel, sizes in self.launches():
            arguments: dict[str, Any] = {}
            for name, scalar in launch.scalars.items():
                assert isinstance(scalar, str), "what the host computes is no parameter of a random function"
                arguments[name] = given[scalar]
            for parameter in kernel.parameters:
                given_ = launch.tensors.get(parameter.name)
                if isinstance(given_, str):
                    array = memory[_root(self.plan, given_).name]
                    arguments[parameter.name] = array.reshape(_sizes(shape_of(parameter.type), sizes))
                elif given_ is not None:
                    assert isinstance(parameter.type, ListType)
                    shape = _sizes(parameter.type.element.shape, sizes)
                    arrays = [memory[_root(self.plan, name).name] for name in given_]
                    arguments[parameter.name] = [array.reshape(shape) for array in arrays]
            runner(kernel, arguments, sizes)
        for name, data in before.items():
            assert memory[name].tobytes() == data, f"the plan writes to its parameter {name}"
        shapes = [_sizes(buffers[name].shape, dims) for name in self.plan.results]
        roots = [memory[_root(self.plan, name).name] for name in self.plan.results]
        return [root.reshape(shape) for root, shape in zip(roots, shapes, strict=True)]


def _sizes(shape: Sequence[Size], dims: dict[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(size, dims) for size in shape)


def _root(plan: GraphPlan, name: str) -> PlanBuffer:
    """The buffer that has the memory."""
    return plan.buffers[plan.buffers[name].alias or name]


def checked(program: GraphProgram) -> list[PlanRun]:
    """Holds a function to every law that needs no build; its plans before and after the passes, and a strict one."""
    function, dims = program.function, program.dims
    module = Module(GRAPH, [function])
    verify(module)
    text = held_to_its_text(module, "the frontend")
    expected = interpret_function(function, program.arguments(), dims)
    bars = function_reference(function, program.arguments(), dims)
    assert_in_bars(expected, bars, "the interpreter")

    kernel, values = function, expected
    for step in GRAPH_PIPELINE:
        before, kernel = kernel, run_graph_pass(step, kernel, dims)
        text_before, text = text, held_to_its_text(Module(GRAPH, [kernel]), step.name)
        if text == text_before:
            continue
        again = interpret_function(kernel, program.arguments(), dims)
        if step.exact or products(kernel) == products(before):
            assert_same(values, again, step.name)
        else:
            assert_in_bars(again, bars, step.name)
        values = again

    runs = []
    for last in (function, kernel):
        made = PlanRun(program, lower_graph(last, dims))
        check_plan(made.plan, dims)
        made.results = made.run(execute.interpret)
        runs.append(made)
    for run, before, what in ((runs[0], expected, "the plan"), (runs[1], values, "the plan after all passes")):
        if run.plan.reordered or any(rounding.skipped for rounding in run.plan.roundings):
            assert_in_bars(run.results, bars, what)
        else:
            assert_same(before, run.results, what)
    strict = Kernel(kernel.name, kernel.body, {**kernel.attributes, "precision": "strict"}, kernel.origin)
    made = PlanRun(program, lower_graph(strict, dims))
    check_plan(made.plan, dims)
    assert not made.plan.reordered and not any(rounding.skipped for rounding in made.plan.roundings)
    made.results = made.run(execute.interpret)
    assert_same(values, made.results, "the plan of a strict function")
    return [*runs, made]


def run_graph_pass(step: Pass, function: Kernel, dims: dict[str, int]) -> Kernel:
    """The function after a pass, legal."""
    return run_pass(step, Module(GRAPH, [function]), Context(find_arch(ARCH), dims)).kernel()


def products(function: Kernel) -> list[list[str]]:
    """The dtypes that each matrix product multiplies: `precision` may change them, and so the order of the sum."""
    matrices = [op for op in function.body.ops if op.name == "matmul"]
    return [[dtype_of(value.type).name for value in op.operands] for op in matrices]


def check_plan(plan: GraphPlan, dims: dict[str, int]) -> None:
    """A plan is well formed, each of its kernels is legal, and no two living temporaries share memory."""
    for kernel in plan.kernels:
        verify(Module(TILE, [kernel]))
    written: set[str] = set()
    for launch in plan.launches:
        kernel = plan.kernels[launch.kernel]
        roles = dict(kernel.attributes["parameters"])
        given = {p.name for p in kernel.parameters}
        assert given == set(launch.tensors) | set(launch.scalars)
        for name, buffer in _tensors(launch):
            root = plan.buffers[plan.buffers[buffer].alias or buffer]
            if roles[name] == "in":
                assert root.role == "parameter" or root.name in written, f"{buffer} is read before it is written"
            else:
                assert root.role != "parameter", f"the parameter {buffer} is written"
                written.add(root.name)
    roots = [plan.buffers[plan.buffers[name].alias or name] for name in plan.results]
    assert len({root.name for root in roots}) == len(roots), "two results share memory"
    assert all(root.role == "result" for root in roots)
    assert {root.name for root in roots} <= written, "a result is never written"
    check_workspace(plan, dims)


def _tensors(launch: PlanLaunch) -> Iterator[tuple[str, str]]:
    """The parameters and buffers of a launch, one by one for lists."""
    for name, given in launch.tensors.items():
        yield from ((name, buffer) for buffer in ((given,) if isinstance(given, str) else given))


def check_workspace(plan: GraphPlan, dims: dict[str, int]) -> None:
    offsets, total = plan.workspace(dims)
    lives = plan.lifetimes()
    ends = {}
    for name, offset in offsets.items():
        buffer = plan.buffers[name]
        ends[name] = offset + buffer.dtype.bytes * int(np.prod([evaluate(size, dims) for size in buffer.shape]))
        assert 0 <= offset and ends[name] <= total
        for other in offsets:
            if other == name or other not in ends:
                continue
            together = lives[name][0] <= lives[other][1] and lives[other][0] <= lives[name][1]
            overlap = offset < ends[other] and offsets[other] < ends[name]
            assert not (together and overlap), f"{name} and {other} live at one time in the same memory"


# On the emulator ------------------------------------------------------------------------------------------------------


def emulate(runs: Sequence[PlanRun], seed: int = 0) -> None:
    """Examines the emitted CUDA of plans, built as one unit, against what they give on the interpreter."""
    texts: dict[tuple[Any, ...], tuple[CudaKernel, Kernel, Kernel | None]] = {}

    def compiled(kernel: Kernel, dims: dict[str, int]) -> tuple[CudaKernel, Kernel, Kernel | None]:
        """The text of a kernel, the kernel as it was emitted, since passes may give rows programs of their own, and
        what the last pass made that changes bits, if one does.
        """
        divisors = launch_divisors(kernel, dims)
        static = {name: dims[name] for name in unbound_dims(kernel)}
        code = print_kernel(Kernel("kernel", kernel.body, kernel.attributes, kernel.origin), locations=False)
        key = (code, *static.items(), *divisors.items())
        if key not in texts:
            named = Kernel(f"kernel_{len(texts)}", kernel.body, kernel.attributes, kernel.origin)
            made = compile_kernel(Module(TILE, [named]), dims, ARCH, divisors=divisors)
            inexact = [stage.module.kernel() for stage in made.stages if not stage.exact]
            texts[key] = (made.cuda[0], made.target.kernel(), inexact[-1] if inexact else None)
        return texts[key]

    for run in runs:
        for _, kernel, dims in run.launches():
            compiled(kernel, dims)
    if not texts:
        return
    emitted = [text for text, _, _ in texts.values()]
    library = emulator.build(joined(emitted), [text.name for text in emitted])

    def launched(kernel: Kernel, arguments: dict[str, Any], dims: dict[str, int]) -> None:
        text, target, _ = compiled(kernel, dims)
        roles = dict(kernel.attributes["parameters"])
        values = []
        for name in text.pointers:
            if isinstance(arguments[name], list):
                values.append([aligned(array) for array in arguments[name]])
                continue
            array = aligned(arguments[name])
            array.flags.writeable = roles[name] != "in"
            values.append(array)
        pointers = values[:]
        values += [dims[name] for name in text.sizes] + [arguments[name] for name in text.scalars]
        grid = launch_grid(target, dims)
        found = library.examine(text.name, grid, text.threads, text.shared_bytes, values, seed)
        assert not found.count, f"{kernel.name}: {found.faults[0]}\n{text.text}"
        for name, array in zip(text.pointers, pointers, strict=True):
            if roles[name] != "in":
                arguments[name][...] = array

    def interpreted(kernel: Kernel, arguments: dict[str, Any], dims: dict[str, int]) -> None:
        execute.interpret(compiled(kernel, dims)[2] or kernel, arguments, dims)

    for run in runs:
        try:
            results, expected = run.run(launched), run.results
            if any(compiled(kernel, dims)[2] for _, kernel, dims in run.launches()):
                expected = run.run(interpreted)
                program = run.program
                bars = function_reference(program.function, program.arguments(), program.dims)
                assert_in_bars(results, bars, "the emitted CUDA")
            assert_same(expected, results, "the emitted CUDA")
        except Exception as error:
            error.program = run.program  # type: ignore[attr-defined]
            raise


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy whose address is aligned as an allocator of a GPU aligns it."""
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


# Failures -------------------------------------------------------------------------------------------------------------


def assert_same(expected: Arrays, actual: Arrays, what: str) -> None:
    """Equal in dtype, shape and every bit, but for the bits of a NaN."""
    for number, (a, b) in enumerate(zip(expected, actual, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{what}: result {number} is {b.dtype} {b.shape}"
        left, right = (np.ascontiguousarray(x).reshape(-1) for x in (a, b))
        same = left.view(f"u{a.itemsize}") == right.view(f"u{a.itemsize}")
        if a.dtype.kind not in "iub":
            same |= np.isnan(left.astype(np.float64)) & np.isnan(right.astype(np.float64))
        if not same.all():
            place = int(np.argmin(same))
            raise AssertionError(
                f"{what} changed result {number} at {np.unravel_index(place, a.shape)}: {left[place]!r} became "
                f"{right[place]!r} ({int((~same).sum())} of {same.size} elements differ)"
            )


def assert_in_bars(actual: Arrays, bars: Sequence[Bar], what: str) -> None:
    # The rule about the RMS of an array is for results of one scale; a random program may well cancel itself out.
    for number, (array, bar) in enumerate(zip(actual, bars, strict=True)):
        found = check(array, bar)
        assert found.fraction_bad == 0, f"{what}: result {number} is outside of its bars: {found}"


def failure(program: GraphProgram, lanes: bool = False) -> Exception | None:
    """Why a program fails, or None. `lanes`: on the emulator, too."""
    try:
        runs = checked(program)
        if lanes:
            emulate(runs)
    except Exception as error:
        return error
    return None


def shrunk(program: GraphProgram, fails: Callable[[GraphProgram], Exception | None], tries: int) -> GraphProgram:
    """The smallest program, one step at a time, whose failure is of the same kind."""
    wanted, left, simpler = _kind(fails(program)), tries, True
    while simpler and left > 0:
        simpler = False
        for candidate in smaller(program):
            left -= 1
            if _kind(fails(candidate)) == wanted:
                program, simpler = candidate, True
            if simpler or left <= 0:
                break
    return program


def _kind(error: Exception | None) -> str:
    """What two failures have in common when they are of the same mistake: type, and the start of the message."""
    return "" if error is None else f"{type(error).__name__} {str(error)[:16]}"


def report(program: GraphProgram, lanes: bool, tries: int) -> str:
    """The smallest program that fails as this one does, and how."""
    small = shrunk(program, lambda candidate: failure(candidate, lanes), tries)
    return f"{failure(small, lanes)}\n{small}"
