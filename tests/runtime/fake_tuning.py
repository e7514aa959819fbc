"""A make-believe GPU for tuning: candidates compute in NumPy what the test says, and take the time that it says."""

import struct
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.runtime import api, arrays, autotune
from tessera.runtime.autotune_compile import Built
from tessera.runtime.bind import bind
from tessera.runtime.nvrtc import Resources
from tessera.target.schedule import Schedule
from tests.runtime import fake_cuda

BLOCKS = (32, 64, 128)
LIMITED = b" limited"


def make_double(blocks=BLOCKS, **options):
    """`out = 2 x`, with three blocks to choose from."""

    @ts.kernel.autotune(space=dict(BLOCK=list(blocks)), key=["N"], **options)
    def double(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
        start = tile.program_id(0) * tile.context().BLOCK
        tile.store(x[start : start + tile.context().BLOCK] * 2.0, out[start : start + tile.context().BLOCK])

    return double


def make_add(blocks=BLOCKS):
    """`total += x`."""

    @ts.kernel.autotune(space=dict(BLOCK=list(blocks)), key=["N"])
    def add(x: Tensor["N", ts.f32], total: Tensor["N", ts.f32]):
        start = tile.program_id(0) * tile.context().BLOCK
        window = total[start : start + tile.context().BLOCK]
        tile.store(window + x[start : start + tile.context().BLOCK], window)

    return add


@dataclass
class Behaviour:
    """What a candidate does: `compute(arrays)` writes its outputs, `seconds` is how long it says that this takes."""

    compute: object
    seconds: float = 1e-3
    runs: int = 0


class Driver(fake_cuda.Driver):
    """Launches run the behaviour of their cubin at once, on the memory that their pointers lead to."""

    def __init__(self):
        super().__init__()
        self.programs, self.behaviours, self.last = {}, {}, None

    def function(self, module, kernel, shared_bytes, device):
        return module

    def launch(self, function, grid, threads, arguments, shared_bytes, stream, device):
        program = self.programs[function]
        (step,) = program.launches
        slots = struct.unpack(f"<{len(step.arguments)}q", arguments.slots.raw[: 8 * len(step.arguments)])
        found = {a.name or "size": slot for a, slot in zip(step.arguments, slots, strict=True)}
        memory = {
            name: arrays.as_numpy(p, (found["size"],), None, ts.f32) for name, p in found.items() if name != "size"
        }
        self.last = self.behaviours[function]
        self.last.runs += 1
        self.last.compute(memory)
        self.launches.append((function, grid, slots, stream, device))


class Device:
    """Memory is the host's. `room`: bytes that can be allocated."""

    name, ordinal, stream = "Fake GPU", 0, 7

    def __init__(self, room=1 << 30):
        self.driver, self.room = Driver(), room
        self.compared = 0

    def allocate(self, size):
        if size > self.room:
            raise MemoryError(size)
        memory = np.full(size + 256, 0x55, np.uint8)
        return Memory(memory, memory.ctypes.data + -memory.ctypes.data % 256)

    def fill(self, pointer, byte, size):
        arrays.as_numpy(pointer, (size,), None, None)[...] = byte

    def copy(self, target, source, size):
        arrays.as_numpy(target, (size,), None, None)[...] = arrays.as_numpy(source, (size,), None, None)

    def read(self, pointer, size):
        return arrays.as_numpy(pointer, (size,), None, None).copy()

    def write(self, pointer, data):
        self.copy(pointer, data.ctypes.data, data.nbytes)

    def same(self, a, b, size):
        assert a % 16 == b % 16 == 0
        self.compared += 1
        return bool((self.read(a, size) == self.read(b, size)).all())

    def seconds(self, queue):
        queue()
        return self.driver.last.seconds


@dataclass
class Memory:
    owner: np.ndarray
    pointer: int


class Compiler:
    """Gives each program a cubin, or the error that `failing` has for it; `submitted` are those that were asked for.

    Those in `limited` have another one besides, whose waits have a limit: the cubin with LIMITED behind it.
    """

    def __init__(self, driver, failing=(), limited=()):
        self.driver, self.failing, self.limited = driver, dict(failing), set(limited)
        self.submitted, self.closed = [], False

    def submit(self, program):
        cubin = cubin_of(program)
        self.submitted.append(cubin)
        future = Future()
        if cubin in self.failing:
            future.set_exception(RuntimeError(self.failing[cubin]))
            return future
        made = replace(program, cubin=cubin)
        self.driver.programs[cubin] = made
        limited = None
        if cubin in self.limited:
            limited = replace(program, cubin=cubin + LIMITED)
            self.driver.programs[limited.cubin] = limited
        future.set_result(Built(made, {program.name: Resources(40, 0, 8, 4, 0)}, limited))
        return future

    def close(self):
        self.closed = True


def cubin_of(program):
    """Its block, which the comment of the first line has."""
    return str(program.launches[0].threads).encode() + b"/" + str(hash(program.cuda)).encode()


@dataclass(frozen=True)
class Cost:
    seconds: float
    shared_bytes: int = 0


@dataclass(frozen=True)
class Candidate:
    constants: dict
    schedule: Schedule
    program: object
    cost: Cost


@dataclass(frozen=True)
class Pruned:
    constants: dict
    schedule: dict
    reason: str


@dataclass(frozen=True)
class Search:
    candidates: tuple
    pruned: tuple = ()
    seconds: float = 0.0


class Clock:
    """Seconds that pass only when `now` is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@dataclass
class Setup:
    """A kernel with a candidate for each block, in the order of the list, and a call of it on the make-believe GPU."""

    definition: object
    size: int = 1000
    device: Device = field(default_factory=Device)
    budget: autotune.Budget = autotune.Budget()
    pruned: tuple = ()
    clock: Clock = field(default_factory=Clock)
    failing: dict = field(default_factory=dict)
    fields: tuple = ()  # of the arrays that were passed

    def __post_init__(self):
        library = fake_cuda.Library()
        self.library = library
        state = api.KernelState(self.definition)
        self.kernel = state.kernel({"N": self.size})
        parameters = state.parameters_of(self.kernel)
        random = np.random.default_rng(0)
        self.arrays = {p.name: fake_cuda.aligned((self.size,)) for p in parameters}
        for array in self.arrays.values():
            array.memory[...] = random.standard_normal(self.size, np.float32)
        before = list(arrays.ADAPTERS)
        arrays.ADAPTERS[:] = [library, *before]
        try:
            self.binding = bind(self.definition.name, parameters, (), self.arrays)
        finally:
            arrays.ADAPTERS[:] = before
        self.subject = autotune.Subject(
            self.definition, self.kernel, dict(self.binding.dims), "sm_80", {"N": self.size}, budget=self.budget
        )
        self.candidates = [self.candidate(block) for block in self.definition.space.candidates["BLOCK"]]
        self.compiler = Compiler(self.device.driver)

    def candidate(self, block):
        program = compile_kernel(self.definition, self.binding.dims, constants={"BLOCK": block}).program
        return Candidate({"BLOCK": block}, Schedule(), program, Cost(block * 1e-6))

    def behave(self, *behaviours):
        """What each candidate does, in their order."""
        for candidate, behaviour in zip(self.candidates, behaviours, strict=True):
            self.device.driver.behaviours[cubin_of(candidate.program)] = behaviour

    def tune(self, **options):
        found = Search(tuple(self.candidates), self.pruned)
        return autotune.tune(
            self.subject,
            self.device,
            self.binding,
            search=lambda subject, workers: found,
            compiler=lambda: self.compiler,
            clock=self.clock,
            **options,
        )


def right(memory):
    memory["out"][...] = memory["x"] * 2


def added(memory):
    memory["total"][...] += memory["x"]
