"""Launches compiled programs on a GPU: loads cubins, packs arguments, and queues kernels on the caller's own stream.

`Driver` is all that is asked of CUDA, so the rest is tested without a device. A launch is prepared once per signature
of a call: its grid and its functions are known then, and each call packs its arguments with one call of `struct`.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import Any, Protocol

from tessera import dtypes
from tessera.errors import ArgumentError, EnvironmentProblem
from tessera.ir.dims import evaluate
from tessera.program import MAP_ALIGNMENT, MAP_BYTES, MAP_KINDS, Launch, Program
from tessera.runtime import tensor_maps
from tessera.runtime.arrays import Adapter
from tessera.runtime.bind import Binding, element_name, stride_values
from tessera.runtime.cupy_graphs import CupyGraphs
from tessera.runtime.cupy_graphs import cuda as _cuda
from tessera.runtime.cupy_graphs import on_device as _on_device
from tessera.runtime.tensor_maps import Encoding, Maps, mapped_names, maps_of
from tessera.runtime.workspace import allocate, offsets_of

# A block gets more shared memory than this only through the opt-in attribute (CUfunction_attribute 8).
SHARED_BYTES_WITHOUT_OPT_IN = 48 * 1024
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
MULTIPROCESSOR_COUNT = 16  # cudaDeviceAttr
HOST_TO_DEVICE = 1  # cudaMemcpyKind
GRID_LIMITS = (2**31 - 1, 65535, 65535)
SLOT = 8  # bytes: an argument takes one, a list one per tensor, and each begins aligned
# How `struct` writes a scalar parameter; the rest of its slot is padding.
SCALAR_CODES = {"i64": "q", "i32": "i4x", "bool": "?7x", "f32": "f4x", "f64": "d"}


class Arguments:
    """The memory that a launch reads its arguments from: their slots, and the address of the first slot of each.

    `starts` has the number of that slot for each argument. The first slot is aligned as a tensor map must be.
    """

    def __init__(self, layout: struct.Struct, starts: Sequence[int]) -> None:
        size = max(layout.size, SLOT)
        room = ctypes.create_string_buffer(size + MAP_ALIGNMENT)
        first = -ctypes.addressof(room) % MAP_ALIGNMENT
        self.slots = (ctypes.c_char * size).from_buffer(room, first)  # which keeps `room`
        base = ctypes.addressof(self.slots)
        self.addresses = (ctypes.c_void_p * max(len(starts), 1))(*(base + SLOT * number for number in starts))
        self.address = ctypes.addressof(self.addresses)


class Driver(Protocol):
    """What a launch needs of CUDA. Streams and devices are plain integers."""

    def load(self, cubin: bytes, device: int) -> Any: ...

    def function(self, module: Any, kernel: str, shared_bytes: int, device: int) -> Any: ...

    def capturing(self, stream: int, device: int) -> bool:
        """Whether work queued on the stream becomes part of a CUDA graph and does not run now."""
        ...

    def allocate(self, size: int, device: int) -> int:
        """The address of so many bytes on a GPU, which stay allocated."""
        ...

    def block(self, size: int, device: int) -> Any:
        """So many bytes on a GPU at the address `ptr`, freed with the object, which waits for the GPU."""
        ...

    def write(self, address: int, data: bytes, stream: int, device: int) -> None:
        """Queues a copy to the GPU; `data` is read before this returns."""
        ...

    def synchronize(self, device: int) -> None:
        """Waits for everything that is queued on the GPU."""
        ...

    def own_streams(self, count: int, device: int) -> Sequence[int]:
        """So many streams that nobody else queues anything on, always the same ones."""
        ...

    def begin_capture(self, stream: int, device: int) -> None:
        """What is queued on the stream from now on, and on streams that wait for it, becomes part of a graph."""
        ...

    def end_capture(self, stream: int, device: int) -> Any:
        """The graph, ready to be replayed."""
        ...

    def abandon_capture(self, stream: int, device: int) -> None:
        """Ends a capture that went wrong; raises nothing."""
        ...

    def record(self, stream: int, device: int) -> Any:
        """An event behind everything that is queued on the stream."""
        ...

    def wait(self, stream: int, event: Any, device: int) -> None:
        """What is queued on the stream from now on runs after the event."""
        ...

    def forget(self, event: Any, device: int) -> None:
        """Frees an event; waits for it that are queued still hold."""
        ...

    def replay(self, graph: Any, stream: int, device: int) -> None:
        """Queues a graph."""
        ...

    def destroy(self, graph: Any, device: int) -> None:
        """Frees a graph; replays that are queued still run."""
        ...

    def multiprocessors(self, device: int) -> int:
        """How many multiprocessors a GPU has."""
        ...

    def encode(self, encoding: Encoding, address: int) -> bytes:
        """The tensor map of a tensor at an address, 128 bytes."""
        ...

    def launch(
        self,
        function: Any,
        grid: tuple[int, int, int],
        threads: int,
        arguments: Arguments,
        shared_bytes: int,
        stream: int,
        device: int,
    ) -> None:
        """Queues a kernel; `arguments` is read before this returns."""
        ...


@dataclass(frozen=True, slots=True)
class Calls:
    """The bindings that warm calls need: looking them up each time costs a tenth of a launch."""

    current_device: Callable[[], int]
    launch: Callable[..., None]
    replay: Callable[[Any, int], None]
    capturing: Callable[[int], bool]


class CupyDriver(CupyGraphs):
    """CUDA through CuPy's thin bindings, which the first use imports.

    `threads.ready` is there in threads that launched something: one that has made no CUDA call yet has a current
    device, but not its context.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: Calls | None = None
        self.threads = threading.local()

    def load(self, cubin: bytes, device: int) -> Any:
        from cupy.cuda.function import Module

        with _on_device(device):
            module = Module()
            module.load(cubin)
        return module

    def function(self, module: Any, kernel: str, shared_bytes: int, device: int) -> Any:
        with _on_device(device):
            function = module.get_function(kernel)
            if shared_bytes > SHARED_BYTES_WITHOUT_OPT_IN:
                _cuda().driver.funcSetAttribute(function.ptr, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        return function

    def capturing(self, stream: int, device: int) -> bool:
        runtime = _cuda().runtime
        with _on_device(device):
            try:
                return bool(runtime.streamIsCapturing(stream))
            except runtime.CUDARuntimeError:  # the legacy stream while another one captures
                return True

    def allocate(self, size: int, device: int) -> int:
        with _on_device(device):
            return _cuda().runtime.malloc(size)

    def block(self, size: int, device: int) -> Any:
        from cupy.cuda import Memory  # of no pool: a pool would give it to another stream while launches still use it

        with _on_device(device):
            return Memory(size)

    def write(self, address: int, data: bytes, stream: int, device: int) -> None:
        # From memory that is not page-locked, the driver takes a copy of its own before it returns.
        with _on_device(device):
            _cuda().runtime.memcpyAsync(address, _bytes_address(data), len(data), HOST_TO_DEVICE, stream)

    def synchronize(self, device: int) -> None:
        with _on_device(device):
            _cuda().runtime.deviceSynchronize()

    def multiprocessors(self, device: int) -> int:
        return _cuda().runtime.deviceGetAttribute(MULTIPROCESSOR_COUNT, device)

    def encode(self, encoding: Encoding, address: int) -> bytes:
        return tensor_maps.encode(encoding, address)

    def launch(
        self,
        function: Any,
        grid: tuple[int, int, int],
        threads: int,
        arguments: Arguments,
        shared_bytes: int,
        stream: int,
        device: int,
    ) -> None:
        calls = self._calls or self.calls()
        x, y, z = grid
        if calls.current_device() != device:
            with _cuda().Device(device):
                calls.launch(function.ptr, x, y, z, threads, 1, 1, shared_bytes, stream, arguments.address, 0)
            return
        if not hasattr(self.threads, "ready"):
            _cuda().runtime.setDevice(device)
            self.threads.ready = True
        calls.launch(function.ptr, x, y, z, threads, 1, 1, shared_bytes, stream, arguments.address, 0)

    def calls(self) -> Calls:
        """The bindings, looked up once."""
        if self._calls is None:
            runtime = _cuda().runtime
            launch, capturing = _cuda().driver.launchKernel, runtime.streamIsCapturing
            self._calls = Calls(runtime.getDevice, launch, runtime.graphLaunch, capturing)
        return self._calls


def _bytes_address(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


@dataclass(frozen=True, slots=True)
class PreparedLaunch:
    """One launch of a program for one signature. `pick` chooses its arguments, in order, from the values of a call,
    all but its tensor maps, which come first in memory.

    `free` holds argument memory that no launch reads just now: a thread takes one out and puts it back, so threads
    never share one and none waits.
    """

    function: Any
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    layout: struct.Struct
    starts: tuple[int, ...]
    pick: Callable[[Sequence[Any]], tuple[Any, ...]]
    free: list[Arguments]
    maps: Maps | None = None

    def queue(self, driver: Driver, values: Sequence[Any], stream: int, device: int) -> None:
        """Raises struct.error or OverflowError for a number that its slot cannot hold."""
        try:
            arguments = self.free.pop()
        except IndexError:
            arguments = Arguments(self.layout, self.starts)
        try:
            if self.maps is None:
                self.layout.pack_into(arguments.slots, 0, *self.pick(values))
            else:
                self.layout.pack_into(arguments.slots, 0, *self.maps.of(values), *self.pick(values))
            driver.launch(self.function, self.grid, self.threads, arguments, self.shared_bytes, stream, device)
        finally:
            self.free.append(arguments)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The launches of a program for one signature.

    What they pick their arguments from, in this order: a value per parameter of the program, the addresses of its
    workspaces, which lie at `offsets` in a block of `workspace` bytes, those of its lists (which are at the places
    `lists` among the parameters) one by one, and the numbers `constants`.
    """

    launches: tuple[PreparedLaunch, ...]
    constants: tuple[int, ...]
    lists: tuple[int, ...]
    offsets: tuple[int, ...] = ()
    workspace: int = 0

    def queue(self, driver: Driver, values: list[Any], stream: int, device: int, library: Adapter) -> None:
        """`values`: an address, the addresses of a list, or a number for every parameter of the program, in order.

        `library` makes the block of workspaces.
        """
        block = None
        if self.offsets:
            block, base = allocate(library, self.workspace, device)
            values = [*values, *(base + offset for offset in self.offsets)]
        if self.lists:
            values = values.copy()
            for place in self.lists:
                values += values[place]
            values += self.constants
        elif self.constants:
            values = [*values, *self.constants]
        for launch in self.launches:
            launch.queue(driver, values, stream, device)
        del block  # not before its users are queued: the library may then give it to work that is queued behind them


class Launcher:
    """Launches programs through one driver and keeps what it loaded, per device, for the life of the process."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        # Keys hold the cubin itself: bytes keep their hash, and compare by identity first.
        self._modules: dict[tuple[int, bytes], Any] = {}
        self._functions: dict[tuple[int, bytes, str], Any] = {}
        self._multiprocessors: dict[int, int] = {}  # by device
        ...

        self._nothing: dict[int, int] = {}
        self._loading = threading.Lock()

    def launch(self, program: Program, binding: Binding, stream: int) -> Prepared:
        """Queues the launches of `program`, whose outputs are allocated, on a stream; returns them for calls like this.

        A grid without blocks, as for a dim of size 0, is not launched. Raises what `prepare` raises.
        """
        prepared = self.prepare(program, binding, stream)
        values, device = argument_values(program, binding), device_of(program, binding)
        prepared.queue(self.driver, values, stream, device, binding.library)
        return prepared

    def prepare(self, program: Program, binding: Binding, stream: int) -> Prepared:
        """The launches of a call and of every one like it.

        Raises ArgumentError TS604 for arrays on the host, TS603 for views that the program was not compiled for, and
        TS305 for a grid that CUDA cannot hold; EnvironmentProblem TS510 for code that would have to be loaded while
        `stream` is captured.
        """
        device = device_of(program, binding)
        sizes = {**binding.dims, **stride_values(program.parameters, binding.infos)}
        prepared: list[PreparedLaunch] = []
        constants: list[int] = []
        named = (*program.parameters, *program.workspaces)
        places = {each.name: number for number, each in enumerate(named)}
        lists, end = _list_places(program)
        offsets, workspace = offsets_of(program, binding.dims)
        scalars = {p.name: p.dtype for p in program.parameters if p.kind == "scalar"}
        elements = {element_name(name, number): place for name, at in lists.items() for number, place in enumerate(at)}
        for step in program.launches:
            grid = self.grid_of(step, binding.dims, device)
            if 0 in grid:
                continue
            _check_grid(step.kernel, grid)
            codes, picked = [], []
            for argument in step.arguments:
                if argument.kind in MAP_KINDS:
                    continue
                if argument.kind == "size":
                    codes.append("q")
                    picked.append(end + len(constants))
                    constants.append(evaluate(argument.size, sizes))
                elif argument.kind == "pointers":
                    codes.append(f"{len(lists[argument.name])}Q" if lists[argument.name] else f"{SLOT}x")
                    picked += lists[argument.name]
                else:
                    codes.append("Q" if argument.kind == "pointer" else SCALAR_CODES[scalars[argument.name]])
                    picked.append(places[argument.name])
            function = self._function(program, step, device, stream)
            maps = None
            if any(argument.kind in MAP_KINDS for argument in step.arguments):
                tensors = {**places, **elements}
                nothing = partial(self._nothing_at, step.kernel, device, stream)
                maps = maps_of(program, step, binding, tensors, self.driver.encode, nothing)
            layout, starts = _layout(program, step, codes)
            shape = (function, grid, step.threads, step.shared_bytes, layout, starts)
            prepared.append(PreparedLaunch(*shape, _picker(picked), [], maps))
        listed = tuple(places[name] for name in lists)
        return Prepared(tuple(prepared), tuple(constants), listed, tuple(offsets.values()), workspace)

    def grid_of(self, step: Launch, dims: dict[str, int], device: int) -> tuple[int, int, int]:
        """The three sizes of a launch's grid on a GPU."""
        count = self.multiprocessors(device) if step.persistent else 1
        x, y, z = (*step.extents(dims, count), 1, 1, 1)[:3]
        return x, y, z

    def multiprocessors(self, device: int) -> int:
        """How many multiprocessors a GPU has."""
        if device not in self._multiprocessors:
            self._multiprocessors[device] = self.driver.multiprocessors(device)
        return self._multiprocessors[device]

    def grids(self, program: Program, dims: dict[str, int], device: int) -> list[tuple[str, tuple[int, ...]]]:
        """The kernels that a call with these dims launches on a GPU, with their grids."""
        grids = [(step, self.grid_of(step, dims, device)) for step in program.launches]
        return [(step.kernel, grid[: len(step.grid)]) for step, grid in grids if 0 not in grid]

    def _function(self, program: Program, step: Launch, device: int, stream: int) -> Any:
        key = (device, program.cubin, step.kernel)
        function = self._functions.get(key)
        if function is None:
            with self._loading:
                module = self._modules.get(key[:2])
                if module is None:
                    self._refuse_capture(step.kernel, device, stream)
                    module = self._modules[key[:2]] = self.driver.load(program.cubin, device)
                function = self._functions[key] = self.driver.function(module, step.kernel, step.shared_bytes, device)
        return function

    def _nothing_at(self, kernel: str, device: int, stream: int) -> int:
        """The address of 64 bytes of zeros on a GPU, and of 64 that may be written."""
        with self._loading:
            if device not in self._nothing:
                self._refuse_capture(kernel, device, stream)
                address = self.driver.allocate(2 * MAP_ALIGNMENT, device)
                self.driver.write(address, bytes(2 * MAP_ALIGNMENT), stream, device)
                self.driver.synchronize(device)  # other streams will read it, too
                self._nothing[device] = address
            return self._nothing[device]

    def _refuse_capture(self, kernel: str, device: int, stream: int) -> None:
        if self.driver.capturing(stream, device):
            raise EnvironmentProblem(
                "TS510",
                f"{kernel} is called for the first time with such arguments while its stream is captured into a CUDA "
                "graph, where CUDA loads no code",
            )


LAUNCHER = Launcher(CupyDriver())


def device_of(program: Program, binding: Binding) -> int:
    """The GPU that a binding's arrays live on. Raises ArgumentError TS604 for arrays on the host."""
    if binding.device is None:
        raise ArgumentError("TS604", f"the arrays given to {program.name} live on the host, not on a GPU")
    return binding.device


def argument_values(program: Program, binding: Binding) -> list[Any]:
    """One value per parameter, in order: the address of a tensor, those of a list, a number as its dtype holds it."""
    values: list[Any] = []
    for parameter in program.parameters:
        if parameter.kind == "list":
            values.append(tuple(binding.infos[name].pointer for name in binding.names(parameter)))
        elif parameter.kind == "tensor":
            values.append(binding.infos[parameter.name].pointer)
        else:
            values.append(dtypes.parse(parameter.dtype).numpy.type(binding.scalars[parameter.name]).item())
    return values


def _list_places(program: Program) -> tuple[dict[str, range], int]:
    """Where the addresses of each list are among what launches pick from, as `Prepared` has it, and the next place."""
    lists, end = {}, len(program.parameters) + len(program.workspaces)
    for parameter in program.parameters:
        if parameter.kind == "list":
            lists[parameter.name] = range(end, end + parameter.length)
            end += parameter.length
    return lists, end


def _layout(program: Program, step: Launch, codes: Sequence[str]) -> tuple[struct.Struct, tuple[int, ...]]:
    """How the arguments of a launch lie in memory, tensor maps first and then the others by `codes`, and the slot at
    which each argument begins.
    """
    is_map = [argument.kind in MAP_KINDS for argument in step.arguments]
    counts = [len(mapped_names(program, argument)) for argument in step.arguments if argument.kind in MAP_KINDS]
    every = [*(f"{MAP_BYTES}s" * count or f"{MAP_BYTES}x" for count in counts), *codes]
    starts = list(accumulate((struct.calcsize(f"<{code}") // SLOT for code in every), initial=0))
    maps, others = iter(starts[: len(counts)]), iter(starts[len(counts) :])
    return struct.Struct("<" + "".join(every)), tuple(next(maps if found else others) for found in is_map)


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple(values[place] for place in places)  # itemgetter of one place gives no tuple


def _check_grid(kernel: str, grid: Sequence[int]) -> None:
    for axis, (size, limit) in enumerate(zip(grid, GRID_LIMITS, strict=True)):
        if size > limit:
            raise ArgumentError(
                "TS305",
                f"{kernel} needs {size} programs along grid axis {axis}, where CUDA allows "
                f"{limit}; put the largest count on axis 0",
            )


def device_count() -> int:
    """How many GPUs this process can use; 0 without CuPy or without a driver."""
    try:
        runtime = _cuda().runtime
    except ImportError:
        return 0
    try:
        return runtime.getDeviceCount()
    except runtime.CUDARuntimeError:  # no driver, or one without a device
        return 0


def require_device() -> None:
    """Raises EnvironmentProblem TS505 when there is no GPU to run on."""
    if device_count() == 0:
        raise EnvironmentProblem(
            "TS505", "the cuda lane was asked for, but there is no NVIDIA GPU, or no CuPy to reach it"
        )


def current_device() -> int:
    return _cuda().runtime.getDevice()


def nvrtc_architectures() -> tuple[int, ...]:
    """The numbers of the architectures that NVRTC compiles for, such as 80 and 121; empty without NVRTC."""
    try:
        from cupy.cuda import nvrtc as bindings

        nvrtc: Any = bindings
        return tuple(nvrtc.getSupportedArchs())
    except (ImportError, OSError, RuntimeError, AttributeError):  # not there, or a CuPy built without it
        return ()


def compute_capability(device: int) -> tuple[int, int]:
    text = _cuda().Device(device).compute_capability  # "90" for 9.0, "120" for 12.0
    return int(text[:-1]), int(text[-1])
