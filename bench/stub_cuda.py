"""CUDA that does nothing, for measuring the host alone: real arrays of CuPy and torch over memory of the host, and a
driver whose calls return at once. What a call costs here is what Tessera and the array library cost it.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from tessera.runtime import api, arrays, launch, plan, workspace

CUPY_DEVICE, TORCH_DEVICE = 0, -1  # -1: what a tensor on the host says that its device is


def _nothing(*arguments: object) -> None:
    return None


class Driver(launch.CupyDriver):
    """`queued` are the arguments of launches, and `replayed` the graphs, where `records` asks for them."""

    def __init__(self, device: int, records: bool = False) -> None:
        super().__init__()
        self.queued: list[tuple[Any, ...]] = []
        self.replayed: list[Any] = []
        queue = (lambda *given: self.queued.append(given)) if records else _nothing
        replay = (lambda graph, stream: self.replayed.append(graph)) if records else _nothing
        self.captured: set[int] = set()  # streams
        self._replaying = partial(int, device), replay
        self._calls = launch.Calls(partial(int, device), queue, replay, self.captured.__contains__)
        self.threads.ready = True

    def load(self, cubin: bytes, device: int) -> Any:
        return cubin

    def function(self, module: Any, kernel: str, shared_bytes: int, device: int) -> Any:
        return SimpleNamespace(ptr=1 << 40, name=kernel)

    def block(self, size: int, device: int) -> Any:
        return _memory(size)

    def multiprocessors(self, device: int) -> int:
        return 132

    def capturing(self, stream: int, device: int) -> bool:
        return stream in self.captured

    def own_streams(self, count: int, device: int) -> list[int]:
        return list(range(1, count + 1))

    def begin_capture(self, stream: int, device: int) -> None: ...

    def end_capture(self, stream: int, device: int) -> Any:
        return SimpleNamespace()

    def abandon_capture(self, stream: int, device: int) -> None: ...

    def record(self, stream: int, device: int) -> Any: ...

    def wait(self, stream: int, event: Any, device: int) -> None: ...

    def forget(self, event: Any, device: int) -> None: ...

    def destroy(self, graph: Any, device: int) -> None: ...


class TorchOnHost(arrays.TorchAdapter):
    """torch, whose tensors on the host count as those of GPU -1."""

    def __init__(self) -> None:
        self._current_stream = lambda device: 0

    def describe(self, array: Any) -> arrays.ArrayInfo:
        return replace(arrays.TORCH.describe(array), adapter=self, device=TORCH_DEVICE)

    def empty(self, shape: tuple[int, ...], dtype: Any, device: int | None) -> Any:
        return super().empty(shape, dtype, None)


def cupy_array(shape: tuple[int, ...], dtype: Any = np.float32, shift: int = 0) -> Any:
    """An array of CuPy over new memory of the host, which begins `shift` bytes past a multiple of 256."""
    import cupy

    return cupy.ndarray(shape, dtype, _memory(int(np.prod(shape)) * np.dtype(dtype).itemsize) + shift)


def _memory(size: int) -> Any:
    import cupy

    room = np.zeros(size + 512, np.uint8)
    memory = cupy.cuda.UnownedMemory(room.ctypes.data, room.nbytes, room, CUPY_DEVICE)
    return cupy.cuda.MemoryPointer(memory, -room.ctypes.data % 256)


class _Kept:
    """An allocator that gives the memory of an array to the next of its size at once, as CuPy's pool does."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}

    def __call__(self, size: int) -> Any:
        found = self.blocks.get(size)
        if found is None:
            found = self.blocks[size] = _memory(size)
        return found


@contextmanager
def stubbed(device: int, records: bool = False) -> Iterator[Driver]:
    """Calls go to a GPU that is not there: `device` is that of the arrays, CUPY_DEVICE or TORCH_DEVICE."""
    import cupy

    driver, stream = Driver(device, records), SimpleNamespace(ptr=0)
    known = list(arrays.ADAPTERS)
    patched = [
        (launch, "LAUNCHER", launch.Launcher(driver)),
        (api, "device_arch", lambda device: "sm_90a"),
        (plan, "READERS", dict(plan.READERS)),
        (workspace, "KEPT", workspace.KeptBlocks()),
        (cupy.cuda, "get_current_stream", lambda device: stream),
        (cupy.cuda, "Device", lambda device: nullcontext()),
    ]
    if "torch" in sys.modules:
        guards = sys.modules["torch"]._C._dynamo.guards
        patched.append((guards, "_empty_strided_cuda", guards._empty_strided_cpu))
        known = [TorchOnHost() if one is arrays.TORCH else one for one in known]
    patched.append((arrays, "ADAPTERS", known))
    before = cupy.cuda.get_allocator()
    with ExitStack() as stack:
        for owner, name, value in patched:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.callback(cupy.cuda.set_allocator, before)
        cupy.cuda.set_allocator(_Kept())
        yield driver
