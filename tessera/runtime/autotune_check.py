"""Whether the answer of a candidate is right. No candidate is timed before it was checked, so none that is wrong wins.

Two problems are run, and in both everything that the kernel writes starts as what no ordinary result is:

- The *small* one is cut out of the caller's own arrays: dims that are not compiled into the code shrink until a float64
  reference takes about a second. Every element must lie within its error bar, by the one rule of `runtime.compare`.
- The *full* one is the caller's call. Every bit must be that of the first candidate that was right, for sizes, staging
  and order of the work decide no bit; without a small problem, that of the answer that most of the first few give.
  Where bits differ all the same (another instruction, a sum in two parts), two runs must agree and no element may be
  further away than the bars of the small problem allow.

The caller's arrays are only read: what the kernel writes goes to memory that is made for the check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from tessera import dtypes
from tessera.dtypes import DType, from_storage
from tessera.errors import TesseraError
from tessera.frontend.grid import launch_grid
from tessera.ir.bounds import Bar
from tessera.ir.core import Kernel
from tessera.ir.dims import evaluate, symbols
from tessera.ir.opdef import UNORDERED
from tessera.program import Parameter, Program
from tessera.runtime import execute
from tessera.runtime.arrays import ALIGNED, NUMPY, ArrayInfo, as_numpy, contiguous_strides
from tessera.runtime.autotune_measure import Device, Memory
from tessera.runtime.bind import Binding, expand
from tessera.runtime.compare import check, distance
from tessera.runtime.inputs import poison
from tessera.runtime.launch import Launcher, argument_values
from tessera.runtime.roofline import product_operations

# What the reference of a small problem may cost: operations of its products, and elements of its tensors.
MOST_OPERATIONS, MOST_ELEMENTS = 4e10, 1 << 25
SIZES = (288, 144, 80, 48, 16, 1)  # to which a dim shrinks, step by step; made odd multiples of what must divide it
FLOAT_POISON, OTHER_POISON = 0xFF, 0xA5  # bytes: 0xFF is NaN in every float type
# |a - b| of two right answers is at most twice a bar; bars of other rows than those of the small problem may be twice
# as wide again.
BARS_APART = 4.0
CHUNK = 1 << 22  # elements that are compared on the host at a time

Queue = Callable[[], None]


@dataclass(frozen=True)
class Verdict:
    """`exact`: every bit is that of the reference; `reason` says as a sentence what is wrong, or what differs."""

    ok: bool
    reason: str = ""
    exact: bool = True


@dataclass
class Scratch:
    """What a run writes in the place of one tensor. `origin` is the address that an in-out tensor is restored from."""

    name: str
    dtype: DType
    memory: Memory
    start: int
    size: int
    origin: int | None

    def reset(self, device: Device) -> None:
        if self.origin is not None:
            device.copy(self.start, self.origin, self.size)
        else:
            device.fill(self.start, FLOAT_POISON if self.dtype.is_float else OTHER_POISON, self.size)


class Problem:
    """A call of a kernel on a GPU that writes to memory of its own. `caller` is the call with the caller's memory."""

    def __init__(self, device: Device, binding: Binding) -> None:
        self.device, self.caller = device, binding
        roles = {p.name: p.role for p in expand(binding.parameters, binding.lengths)}
        written = [name for name in binding.infos if roles[name] != "in"]
        self.scratch = [_scratch(device, name, binding.infos[name], roles[name]) for name in written]
        moved = {s.name: s.start - binding.infos[s.name].extent[0] for s in self.scratch}
        infos = {n: replace(i, pointer=moved[n]) if n in moved else i for n, i in binding.infos.items()}
        self.binding = replace(binding, infos=infos)

    @property
    def restores(self) -> bool:
        """Whether a run reads what the one before it wrote."""
        return any(scratch.origin is not None for scratch in self.scratch)

    def prepare(self, launcher: Launcher, program: Program) -> Queue:
        """What queues the launches of a program of this call, on the outputs as they are then."""
        device, values, library = self.device, argument_values(program, self.binding), self.binding.library
        prepared = launcher.prepare(program, self.binding, device.stream)
        return lambda: prepared.queue(launcher.driver, list(values), device.stream, device.ordinal, library)

    def reset(self) -> None:
        for scratch in self.scratch:
            scratch.reset(self.device)

    def run(self, queue: Queue) -> None:
        self.reset()
        queue()

    def time(self, queue: Queue) -> float:
        """Seconds of one run from a cold L2 cache."""
        if self.restores:
            self.reset()
        return self.device.seconds(queue)

    def outputs(self) -> dict[str, np.ndarray]:
        """Everything that is written, on the host; contiguous tensors only."""
        found = {}
        for scratch in self.scratch:
            shape = self.binding.infos[scratch.name].shape
            found[scratch.name] = self.device.read(scratch.start, scratch.size).view(scratch.dtype.numpy).reshape(shape)
        return found


def _scratch(device: Device, name: str, info: ArrayInfo, role: str) -> Scratch:
    low, high = info.extent
    shift = (info.pointer + low) & ALIGNED  # the code may count on the alignment that the caller's array has
    memory = device.allocate(high - low + shift)
    assert info.dtype is not None
    origin = info.pointer + low if role == "inout" else None
    return Scratch(name, info.dtype, memory, memory.pointer + shift, high - low, origin)


class Judge:
    """Says of programs of one call whether they are right. The first that is becomes the reference for the others.

    `checked` says as a sentence what answers are compared with.
    """

    def __init__(self, full: Problem, kernel: Kernel, programs: Sequence[Program], launcher: Launcher) -> None:
        """`kernel`: its Tile IR at the default point; `programs`: all that may come."""
        self.full, self.launcher, self.device = full, launcher, full.device
        self.unordered = any(op.definition.has(UNORDERED) for op in kernel.body.walk())
        self.reference: list[Memory] | None = None
        self.small: Problem | None = None
        self.bars: dict[str, Bar] = {}
        try:
            dims = small_dims(kernel, full.caller, programs)
            if dims is not None:
                self.small, self.bars = _small_problem(self.device, full.caller, kernel, dims)
        except TesseraError as error:  # as where an element is read that a smaller tensor does not have
            self.checked = f"bits alone: a smaller problem goes wrong ({error.message})"
            return
        if dims is None:
            self.checked = "bits alone: no smaller problem is small enough"
        else:
            shown = ",".join(f"{name}={size}" for name, size in dims.items())
            self.checked = f"error bars at {shown}, and bits"

    def judge(self, program: Program, limited: Program | None = None) -> tuple[Verdict, Queue]:
        """Runs a program; also returns what queues it on the full problem, for timing.

        `limited`: one that does the same and ends even if it waits for something that never comes. It runs first, and
        unless it is right the other one, which would hang, never does.
        """
        queue = self.full.prepare(self.launcher, program)
        if limited is not None:
            verdict = self._check(limited, self.full.prepare(self.launcher, limited))
            if not verdict.ok:
                return replace(verdict, reason=f"where waits have a limit, {verdict.reason}"), queue
        return self._check(program, queue), queue

    def _check(self, program: Program, queue: Queue) -> Verdict:
        verdict = self._small(program)
        return self._full(queue) if verdict.ok else verdict

    def elect(self, programs: Sequence[Program]) -> None:
        """Makes the answer that most of these programs give the reference: for problems that have no bars, where the
        first one alone might be wrong. Where no two agree it is that of the first.
        """
        answers = []
        for program in programs:
            self.full.run(self.full.prepare(self.launcher, program))
            answers.append([self._copy(scratch) for scratch in self.full.scratch])
        votes = [sum(self._equal(answer, other) for other in answers) for answer in answers]
        self.reference = answers[votes.index(max(votes))]

    def _equal(self, answer: Sequence[Memory], other: Sequence[Memory]) -> bool:
        sizes = [scratch.size for scratch in self.full.scratch]
        pairs = zip(answer, other, sizes, strict=True)
        return all(self.device.same(a.pointer, b.pointer, size) for a, b, size in pairs)

    def still_right(self, queue: Queue) -> bool:
        """Whether a program that was right gives the same answer again, after it was timed among others."""
        self.full.run(queue)
        if self._differing() is None:
            return True
        return self._apart(0) is None

    def _small(self, program: Program) -> Verdict:
        if self.small is None:
            return Verdict(True)
        self.small.run(self.small.prepare(self.launcher, program))
        for name, array in self.small.outputs().items():
            found = check(array, self.bars[name])
            if not found.ok:
                where = f"'{name}' at {list(found.worst_index)}"
                return Verdict(False, f"{where} is {found.max_error:.3g} off, and {found.bound:.3g} is allowed")
        return Verdict(True)

    def _full(self, queue: Queue) -> Verdict:
        self.full.run(queue)
        if self.reference is None:
            self.reference = [self._copy(scratch) for scratch in self.full.scratch]
            return Verdict(True)
        number = self._differing()
        if number is None:
            return Verdict(True)
        name = self.full.scratch[number].name
        if not self.unordered and not self._repeats(queue):
            return Verdict(False, f"two runs differ in '{name}'", exact=False)
        apart = self._apart(number)
        if apart is not None:
            return Verdict(False, apart, exact=False)
        return Verdict(True, "bits differ within the error bars", exact=False)

    def _copy(self, scratch: Scratch) -> Memory:
        memory = self.device.allocate(scratch.size)
        self.device.copy(memory.pointer, scratch.start, scratch.size)
        return memory

    def _differing(self) -> int | None:
        """The first written tensor that is not that of the reference."""
        assert self.reference is not None
        return next((n for n, m in enumerate(self.reference) if not self._same(self.full.scratch[n], m)), None)

    def _same(self, scratch: Scratch, other: Memory) -> bool:
        if scratch.start == scratch.memory.pointer:
            return self.device.same(scratch.start, other.pointer, scratch.size)
        aligned = self._copy(scratch)  # which `same` wants
        return self.device.same(aligned.pointer, other.pointer, scratch.size)

    def _repeats(self, queue: Queue) -> bool:
        """Whether another run gives the bits that are there now."""
        before = [self._copy(scratch) for scratch in self.full.scratch]
        self.full.run(queue)
        return all(self._same(scratch, memory) for scratch, memory in zip(self.full.scratch, before, strict=True))

    def _apart(self, first: int) -> str | None:
        """What is further from the reference than error bars allow, of the tensors from `first` on."""
        assert self.reference is not None
        pairs = list(zip(self.full.scratch, self.reference, strict=True))[first:]
        for scratch, memory in pairs:
            if self._same(scratch, memory):
                continue
            bar = self.bars.get(scratch.name)
            allowed = BARS_APART * _widest(bar) if bar is not None and scratch.dtype.is_float else 0.0
            a, b = (self.device.read(pointer, scratch.size) for pointer in (scratch.start, memory.pointer))
            found = largest_distance(a, b, scratch.dtype)
            if found > allowed:
                return f"'{scratch.name}' differs from the right answer by up to {found:.3g}"
        return None


def _widest(bar: Bar) -> float:
    finite = bar.e[np.isfinite(bar.e)]
    return float(finite.max()) if finite.size else 0.0


def largest_distance(a: np.ndarray, b: np.ndarray, dtype: DType) -> float:
    """The largest |a - b| of two arrays of bytes; infinite where NaN or infinity do not match."""
    largest = 0.0
    x, y = a.view(dtype.numpy), b.view(dtype.numpy)
    for start in range(0, x.size, CHUNK):
        pair = [np.asarray(from_storage(dtype, v[start : start + CHUNK]), np.float64) for v in (x, y)]
        largest = max(largest, float(distance(*pair).max()))
    return largest


# ---- the small problem ---------------------------------------------------------------------------------------------


def small_dims(kernel: Kernel, binding: Binding, programs: Sequence[Program]) -> dict[str, int] | None:
    """Sizes of a smaller call that the same programs serve; None where none is small enough for the reference.

    Dims that are compiled in stay, and what divides a dim goes on dividing it. Where integers are read, no dim shrinks:
    they may well be indices, or sizes. Nor where the author asserts something, which other sizes could violate.
    """
    named = {name for p in binding.parameters for size in p.shape for name in symbols(size)}
    dims = {name: size for name, size in binding.dims.items() if name in named}
    fixed = set(kernel.attributes["shape_dims"]).union(*(program.static for program in programs))
    divisors: dict[str, int] = {}
    for program in programs:
        for name, divisor in program.divisors.items():
            divisors[name] = max(divisor, divisors.get(name, 1))
    reads_integers = any(p.kind != "scalar" and p.role != "out" and not _is_float(p) for p in binding.parameters)
    asserts = any(op.name == "assert" for op in kernel.body.walk())
    free = [] if reads_integers or asserts else [name for name in dims if name not in fixed]
    written = {n for p in binding.parameters if p.role != "in" for size in p.shape for n in symbols(size)}
    # Dims that results have first: the bars of an element depend on the others.
    order = [[name for name in free if name in written], [name for name in free if name not in written]]
    steps = {name: _steps(dims[name], divisors.get(name, 1)) for name in free}
    while True:
        if _is_small(kernel, binding, dims):
            return dims
        group = [[name for name in names if steps[name]] for names in order]
        names = group[0] or group[1]
        if not names:
            return None
        largest = max(names, key=lambda name: dims[name])
        dims[largest] = steps[largest].pop(0)


def _is_float(parameter: Parameter) -> bool:
    return dtypes.parse(parameter.dtype).is_float


def _steps(size: int, divisor: int) -> list[int]:
    """Ever smaller sizes: odd multiples of `divisor`, so that the last block of any size is a part of one."""
    found = []
    for step in SIZES:
        quotient = max(step // divisor, 1)
        small = divisor * (quotient - (1 - quotient % 2))
        if small < (found[-1] if found else size):
            found.append(small)
    return found


def _is_small(kernel: Kernel, binding: Binding, dims: Mapping[str, int]) -> bool:
    everything = {**binding.dims, **dims}
    elements = 0
    for parameter in expand(binding.parameters, binding.lengths):
        if parameter.kind != "scalar":
            elements += prod(evaluate(size, everything) for size in parameter.shape)
    if elements > MOST_ELEMENTS:
        return False
    operations = sum(product_operations(kernel.body, everything)) * prod(launch_grid(kernel, everything))
    return operations <= MOST_OPERATIONS


def _small_problem(
    device: Device, binding: Binding, kernel: Kernel, dims: Mapping[str, int]
) -> tuple[Problem, dict[str, Bar]]:
    """The call with other sizes, on the first elements of each array along every axis, and its reference bars."""
    everything = {**binding.dims, **dims}
    infos: dict[str, ArrayInfo] = {}
    arguments: dict[str, Any] = dict(binding.scalars)
    for parameter in expand(binding.parameters, binding.lengths):
        if parameter.kind == "scalar":
            continue
        name, info = parameter.name, binding.infos[parameter.name]
        assert info.dtype is not None
        shape = tuple(evaluate(size, everything) for size in parameter.shape)
        array = _corner(device, info, shape) if parameter.role != "out" else poison(shape, info.dtype)
        memory = device.allocate(array.nbytes)
        device.write(memory.pointer, array)
        infos[name] = ArrayInfo(
            NUMPY,
            info.dtype,
            info.dtype_text,
            shape,
            contiguous_strides(shape),
            True,
            memory.pointer,
            device.ordinal,
            memory,
        )
        arguments[name] = array
    for parameter in binding.parameters:
        if parameter.kind == "list":
            arguments[parameter.name] = [arguments.pop(name) for name in binding.names(parameter)]
    bars = execute.reference_bars(kernel, arguments, everything, launch_grid(kernel, everything))
    return Problem(device, replace(binding, infos=infos, dims=everything, arrays={})), bars


def _corner(device: Device, info: ArrayInfo, shape: tuple[int, ...]) -> np.ndarray:
    """The first elements of a tensor along every axis, on the host."""
    low, high = replace(info, shape=shape).extent
    data = device.read(info.pointer + low, high - low)
    view: Any = as_numpy(data.ctypes.data - low, shape, info.strides, info.dtype, owner=data)
    return np.ascontiguousarray(view)


__all__ = ["Judge", "Problem", "Verdict", "largest_distance", "small_dims"]
