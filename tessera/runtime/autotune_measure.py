"""Times launches on a GPU: between two events, with a cold L2 cache, the median of several runs.

The GPU is behind a small protocol, `Device`, so that the policy of tuning can be tried without one.
"""

from __future__ import annotations

import statistics
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from tessera.runtime import launch, nvrtc
from tessera.runtime.cache import open_cache
from tessera.runtime.gpu import FLUSH_BYTES
from tessera.runtime.launch import Arguments, Driver

FIRST_RUNS, ALL_RUNS, FINAL_RUNS = 3, 10, 15  # of a candidate; of the last ones in turn
CUT = 1.5  # times the best median: what is slower after the first runs is not timed further

# Counts the bytes of two memories that differ. It is compiled like any kernel, but by nothing that is under test.
SAME_KERNEL = "tessera_count_different"
SAME_TEXT = f"""
extern "C" __global__ void {SAME_KERNEL}(
    const unsigned char* a, const unsigned char* b, unsigned long long bytes, unsigned long long* different) {{
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    const unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned long long words = bytes / 16;
    unsigned long long found = 0;
    for (unsigned long long i = first; i < words; i += step) {{
        const uint4 x = ((const uint4*)a)[i], y = ((const uint4*)b)[i];
        found += x.x != y.x || x.y != y.y || x.z != y.z || x.w != y.w;
    }}
    for (unsigned long long i = words * 16 + first; i < bytes; i += step) found += a[i] != b[i];
    if (found) atomicAdd(different, found);
}}
"""
SAME_THREADS, SAME_BLOCKS = 256, 1024
SAME_ARGUMENTS = struct.Struct("<4Q")
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class Memory(Protocol):
    """Memory of a GPU, which is freed when nothing refers to it."""

    pointer: int


class Device(Protocol):
    """What tuning asks of a GPU. Work is queued on one stream, that of the caller whose kernel is tuned."""

    name: str
    ordinal: int
    stream: int
    driver: Driver

    def allocate(self, size: int) -> Memory:
        """Memory of so many bytes, aligned to 256. Raises MemoryError."""
        ...

    def fill(self, pointer: int, byte: int, size: int) -> None: ...

    def copy(self, target: int, source: int, size: int) -> None: ...

    def read(self, pointer: int, size: int) -> np.ndarray:
        """The bytes behind an address, on the host."""
        ...

    def write(self, pointer: int, data: np.ndarray) -> None:
        """Copies a contiguous array to an address."""
        ...

    def same(self, a: int, b: int, size: int) -> bool:
        """Whether two memories, aligned to 16 bytes, hold the same."""
        ...

    def seconds(self, queue: Callable[[], None]) -> float:
        """How long the work that `queue` queues takes, with a cold L2 cache."""
        ...


class CupyMemory:
    """Outside of CuPy's pool, which keeps what it has for the life of the process."""

    def __init__(self, size: int) -> None:
        import cupy

        runtime = cupy.cuda.runtime
        try:
            self._memory = cupy.cuda.Memory(max(size, 1))
        except runtime.CUDARuntimeError as error:
            if error.status == OUT_OF_MEMORY:
                raise MemoryError(f"the GPU has no {size} bytes left") from None
            raise
        self.pointer: int = self._memory.ptr


class CupyDevice:
    """A GPU through CuPy's bindings."""

    def __init__(self, ordinal: int, stream: int, arch: str) -> None:
        import cupy

        self._cuda: Any = cupy.cuda
        self.ordinal, self.stream, self.driver = ordinal, stream, launch.LAUNCHER.driver
        self.name = device_name(ordinal)
        self._arch = arch
        with self._cuda.Device(ordinal):
            self._events = self._cuda.Event(), self._cuda.Event()
            self._stream = self._cuda.ExternalStream(stream)
            self._flush = CupyMemory(FLUSH_BYTES)
            self._counter = CupyMemory(8)
        self._same: Any = None

    def allocate(self, size: int) -> CupyMemory:
        with self._cuda.Device(self.ordinal):
            return CupyMemory(size)

    def fill(self, pointer: int, byte: int, size: int) -> None:
        with self._cuda.Device(self.ordinal):
            self._cuda.runtime.memsetAsync(pointer, byte, size, self.stream)

    def copy(self, target: int, source: int, size: int) -> None:
        with self._cuda.Device(self.ordinal):
            self._cuda.runtime.memcpyAsync(target, source, size, self._cuda.runtime.memcpyDeviceToDevice, self.stream)

    def read(self, pointer: int, size: int) -> np.ndarray:
        found = np.empty(size, np.uint8)
        runtime = self._cuda.runtime
        with self._cuda.Device(self.ordinal):
            runtime.memcpyAsync(found.ctypes.data, pointer, size, runtime.memcpyDeviceToHost, self.stream)
            runtime.streamSynchronize(self.stream)
        return found

    def write(self, pointer: int, data: np.ndarray) -> None:
        runtime = self._cuda.runtime
        with self._cuda.Device(self.ordinal):
            runtime.memcpyAsync(pointer, data.ctypes.data, data.nbytes, runtime.memcpyHostToDevice, self.stream)
            runtime.streamSynchronize(self.stream)  # `data` may go

    def same(self, a: int, b: int, size: int) -> bool:
        self.fill(self._counter.pointer, 0, 8)
        arguments = Arguments(SAME_ARGUMENTS, range(4))
        SAME_ARGUMENTS.pack_into(arguments.slots, 0, a, b, size, self._counter.pointer)
        function = self._same or self._load_same()
        self.driver.launch(function, (SAME_BLOCKS, 1, 1), SAME_THREADS, arguments, 0, self.stream, self.ordinal)
        return not self.read(self._counter.pointer, 8).any()

    def seconds(self, queue: Callable[[], None]) -> float:
        start, end = self._events
        # The events wait behind the flush, so that the host is ahead of the GPU when the first one is reached.
        self.fill(self._flush.pointer, 0, FLUSH_BYTES)
        with self._cuda.Device(self.ordinal):
            start.record(self._stream)
            queue()
            end.record(self._stream)
            end.synchronize()
            return self._cuda.get_elapsed_time(start, end) / 1e3

    def _load_same(self) -> Any:
        module = self.driver.load(_same_cubin(self._arch), self.ordinal)
        self._same = self.driver.function(module, SAME_KERNEL, 0, self.ordinal)
        return self._same


def _same_cubin(arch: str) -> bytes:
    import hashlib

    from tessera.runtime.programs import nvrtc_identity

    facts = "\0".join((SAME_TEXT, arch, nvrtc_identity()))
    key = f"compare/{hashlib.sha256(facts.encode()).hexdigest()}"
    found = open_cache().get(key)
    if found is None:
        found = nvrtc.compile_cubin(SAME_TEXT, arch, SAME_KERNEL).cubin
        open_cache().put(key, found)
    return found


def device_name(ordinal: int) -> str:
    """The name of a GPU, such as "NVIDIA H100 80GB HBM3"."""
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(ordinal)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


# ---- timing --------------------------------------------------------------------------------------------------------

Run = Callable[[], float]


def time_one(run: Run, best: float | None) -> tuple[float, bool]:
    """Median seconds of a candidate, each `run` being one, and whether it was cut for being slower than `best`."""
    samples = [run() for _ in range(FIRST_RUNS)]
    if best is not None and statistics.median(samples) > CUT * best:
        return statistics.median(samples), True
    samples += [run() for _ in range(ALL_RUNS - FIRST_RUNS)]
    return statistics.median(samples), False


def time_in_turn(runs: Sequence[Run]) -> list[float]:
    """Median seconds of several, which take turns, so that a drift of the clock hits all alike."""
    rounds = [[run() for run in runs] for _ in range(FINAL_RUNS)]
    return [statistics.median(samples) for samples in zip(*rounds, strict=True)]


__all__ = ["CupyDevice", "Device", "Memory", "device_name", "time_in_turn", "time_one"]
