"""Runs the plan of a function on this CPU, launch by launch, and keeps the programs of its kernels.

A plan's kernels see their tensors under shapes of their own (rows of all but the last axis, elements): each launch gets
reshaped views of the plan's buffers, which are contiguous.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tessera import dtypes
from tessera.buffers import ALIGNMENT, Buffer, Footprint, Order, place
from tessera.dtypes import DType
from tessera.ir.core import Kernel, Module
from tessera.ir.dims import evaluate
from tessera.ir.opdef import TILE
from tessera.ir.types import tensor_type
from tessera.plan import GraphPlan, PlanBuffer, PlanLaunch
from tessera.program import Program
from tessera.runtime import execute, programs
from tessera.runtime.arrays import ALIGNED, alignment_class
from tessera.runtime.execute import KernelRun, Outcome
from tessera.runtime.function_launches import check_launch
from tessera.runtime.function_scalars import scalar_value
from tessera.runtime.inputs import poison

FULLY_ALIGNED = ALIGNED + 1  # bytes: what buffers of a plan are aligned to, at least


@dataclass(frozen=True)
class Step:
    """One launch of a plan in a call: its kernel, the values of the kernel's dims, and of those of the function."""

    launch: PlanLaunch
    kernel: Kernel
    dims: dict[str, int]
    call: Mapping[str, int]

    def shape(self, parameter: str) -> tuple[int, ...]:
        """The shape under which the kernel sees a tensor."""
        type_ = next(tensor_type(p.type) for p in self.kernel.parameters if p.name == parameter)
        assert type_ is not None
        return tuple(evaluate(size, self.dims) for size in type_.shape)

    @property
    def computes(self) -> list[str]:
        """The scalar parameters of the kernel that are no parameters of the function."""
        return [name for name, scalar in self.launch.scalars.items() if not isinstance(scalar, str)]

    @property
    def scalar_names(self) -> list[str]:
        """The scalar parameters of the function that the launch needs, itself or to compute others."""
        found: dict[str, None] = {}
        for scalar in self.launch.scalars.values():
            if isinstance(scalar, str):
                found[scalar] = None
            elif isinstance(scalar, Kernel):
                found |= dict.fromkeys(parameter.name for parameter in scalar.parameters)
        return list(found)

    def scalars(self, given: Mapping[str, Any]) -> dict[str, int | float]:
        """The numbers that it passes, by the kernel's parameter; `given` by that of the function."""
        return {name: scalar_value(scalar, given, self.call) for name, scalar in self.launch.scalars.items()}


class PlanPrograms:
    """A plan, and what its kernels were compiled to. `steps` are the launches of a call."""

    def __init__(self, plan: GraphPlan) -> None:
        self.plan = plan
        self._programs: dict[tuple[Any, ...], Program] = {}
        self._compiling = threading.RLock()

    def steps(self, dims: Mapping[str, int]) -> list[Step]:
        """The launches in order; one with an empty grid does nothing and is left out."""
        return self.steps_of(self.plan.launches, dims)

    def steps_of(self, launches: Iterable[PlanLaunch], dims: Mapping[str, int]) -> list[Step]:
        """Those of some launches."""
        from tessera.compiler import launch_dims

        found = []
        for launch in launches:
            kernel, sizes = self.plan.kernels[launch.kernel], launch_dims(launch, dims)
            if launch.authored:
                check_launch(kernel, sizes)
            if 0 not in (evaluate(size, sizes) for size in kernel.attributes["grid"]):
                found.append(Step(launch, kernel, sizes, dims))
        return found

    def program(self, step: Step, arch: str, alignment: Mapping[str, int], machine_code: bool) -> Program:
        """The program of a launch, compiled now or before; `alignment` by buffer, 16 for one that it does not name."""
        from tessera.compiler import compile_kernel, launch_divisors, launch_statics

        static, divisors = launch_statics(step.kernel, step.dims), launch_divisors(step.kernel, step.dims)
        aligned = {
            name: min((alignment.get(self.root(buffer).name, FULLY_ALIGNED) for buffer in as_tuple(given)), default=1)
            for name, given in step.launch.tensors.items()
        }
        key = (step.launch.kernel, arch, machine_code, *static.items(), *divisors.items(), *aligned.items())
        with self._compiling:
            known = self._programs.get(key)
            if known is None:
                options = (arch, None, aligned, divisors)

                def build() -> Program:
                    made = compile_kernel(Module(TILE, [step.kernel]), step.dims, *options).program
                    assert made is not None
                    return made

                known = programs.compiled(step.kernel, static, options, build) if machine_code else build()
                self._programs[key] = known
            return known

    def root(self, name: str) -> PlanBuffer:
        """The buffer that has the memory."""
        return self.plan.root(name)

    def result_roots(self) -> list[str]:
        return [self.root(name).name for name in self.plan.results]

    def shape(self, name: str, dims: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(evaluate(size, dims) for size in self.plan.buffers[name].shape)

    def empty_results(self, dims: Mapping[str, int]) -> list[np.ndarray]:
        """Arrays for the results on the host."""
        return [poisoned(self.shape(name, dims), self.plan.buffers[name].dtype) for name in self.plan.results]

    def temporaries(self, steps: Sequence[Step], dims: Mapping[str, int]) -> dict[str, Buffer]:
        """What the steps of a call hand on to one another, by buffer; the users are the steps by number."""
        users: dict[str, int] = {}
        for number, step in enumerate(steps):
            for name in step.launch.buffers:
                root = self.root(name)
                if root.role == "temporary":
                    users[root.name] = users.get(root.name, 0) | 1 << number
        return {name: Buffer(self.plan.bytes_of(name, dims), bits) for name, bits in users.items()}

    def workspaces(self, steps: Sequence[Step], compiled: Sequence[Program]) -> dict[tuple[int, str], Buffer]:
        """What each step's program needs between its own launches, by the step's number and the workspace's name."""
        return {
            (number, space.name): Buffer(space.bytes(step.dims), 1 << number)
            for number, (step, program) in enumerate(zip(steps, compiled, strict=True))
            for space in program.workspaces
        }


# ---- on the CPU ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanRun:
    """The launches, their time in seconds without compilation, and what they needed."""

    kernels: tuple[KernelRun, ...]
    seconds: float
    footprint: Footprint


Runner = Callable[[Step, dict[str, Any]], Outcome]


def interpret_plan(programs_: PlanPrograms, arguments: Mapping[str, Any], dims: Mapping[str, int]) -> PlanRun:
    """Runs the Tile IR of each kernel. Arguments as of `run_plan`."""

    def run(step: Step, arguments: dict[str, Any]) -> Outcome:
        return execute.interpret(step.kernel, arguments, step.dims)

    return run_plan(programs_, arguments, dims, run)


def emulate_plan(
    programs_: PlanPrograms,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    arch: str,
    seed: int = 0,
) -> PlanRun:
    """Runs the emitted CUDA of each kernel. Arguments as of `run_plan`; errors as of `execute.emulate`."""

    tensors = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    alignment = {name: alignment_class(array.ctypes.data) for name, array in tensors.items()}

    def program(step: Step) -> Program:
        return programs_.program(step, arch, alignment, machine_code=False)

    def run(step: Step, arguments: dict[str, Any]) -> Outcome:
        return execute.emulate(program(step), arguments, step.dims, seed)

    ran = run_plan(programs_, arguments, dims, run)
    steps = programs_.steps(dims)
    buffers: dict[Hashable, Buffer] = {**programs_.temporaries(steps, dims)}
    buffers |= programs_.workspaces(steps, [program(step) for step in steps])
    _, size = place(buffers, Order.sequential(len(steps)))
    return replace(ran, footprint=programs_.plan.footprint(dims, buffers, size))


def run_plan(
    programs_: PlanPrograms,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    run: Runner,
) -> PlanRun:
    """Runs each launch by `run`, which gets arrays and numbers by the kernel's parameter.

    `arguments`: a contiguous array or a number for each parameter of the traced function, and an array for each buffer
    that has the memory of a result, under the name of that buffer. Temporaries share one block as they do on a GPU, and
    each is NaN when its first launch begins.
    """
    memory, steps = dict(arguments), programs_.steps(dims)
    temporaries = programs_.temporaries(steps, dims)
    offsets, size = place(temporaries, Order.sequential(len(steps)))
    block = poisoned((size,), dtypes.i8)
    kernels: list[KernelRun] = []
    seconds = 0.0
    for number, step in enumerate(steps):
        for name, buffer in temporaries.items():
            if buffer.users & -buffer.users == 1 << number:
                shape, dtype = programs_.shape(name, dims), programs_.plan.buffers[name].dtype
                room = block[offsets[name] : offsets[name] + buffer.bytes]
                memory[name] = room.view(dtype.numpy).reshape(shape)
                memory[name][...] = poison(shape, dtype)
        outcome = run(step, launch_arguments(programs_, step, memory))
        kernels += outcome.kernels
        seconds += outcome.seconds
    return PlanRun(tuple(kernels), seconds, programs_.plan.footprint(dims, temporaries, size))


def launch_arguments(programs_: PlanPrograms, step: Step, memory: Mapping[str, Any]) -> dict[str, Any]:
    """What a launch passes its kernel, by the kernel's parameter: views of the buffers in `memory`, and its numbers."""
    arguments: dict[str, Any] = {}
    for name, given in step.launch.tensors.items():
        shape = step.shape(name)
        views = [memory[programs_.root(buffer).name].reshape(shape) for buffer in as_tuple(given)]
        arguments[name] = views[0] if isinstance(given, str) else views
    return arguments | step.scalars(memory)


def as_tuple(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """The buffers of a tensor parameter, or of a list."""
    return (given,) if isinstance(given, str) else given


def poisoned(shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Memory as a GPU's allocator aligns it, filled with what no ordinary result is."""
    values = poison(shape, dtype)
    room = np.empty(values.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    array = room[start : start + values.nbytes].view(dtype.numpy).reshape(shape)
    array[...] = values
    return array


__all__ = [
    "PlanPrograms", "PlanRun", "Step", "as_tuple", "emulate_plan", "interpret_plan", "launch_arguments", "poisoned",
    "run_plan",
]  # fmt: skip
