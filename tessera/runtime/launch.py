"""Launches compiled programs on a GPU: loads cubins, packs arguments, and queues kernels on the caller's own stream.

`Driver` is all that is asked of CUDA, so the rest is tested without a device. Arguments are NumPy
scalars, which CuPy passes by value.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tessera import dtypes
from tessera.errors import ArgumentError, EnvironmentProblem
from tessera.ir.dims import evaluate
from tessera.program import Launch, Program
from tessera.runtime.bind import Binding

# A block gets more shared memory than this only through the opt-in attribute (CUfunction_attribute 8).
SHARED_BYTES_WITHOUT_OPT_IN = 48 * 1024
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
GRID_LIMITS = (2**31 - 1, 65535, 65535)


class Driver(Protocol):
    """What a launch needs of CUDA. Streams and devices are plain integers."""

    def load(self, cubin: bytes, device: int) -> Any: ...

    def function(self, module: Any, kernel: str, shared_bytes: int) -> Any: ...

    def launch(
        self,
        function: Any,
        grid: tuple[int, ...],
        threads: int,
        arguments: tuple[Any, ...],
        shared_bytes: int,
        stream: int,
        device: int,
    ) -> None: ...


class CupyDriver:
    """CUDA through CuPy's thin bindings, which the first use imports."""

    def load(self, cubin: bytes, device: int) -> Any:
        from cupy.cuda.function import Module

        with _on_device(device):
            module = Module()
            module.load(cubin)
        return module

    def function(self, module: Any, kernel: str, shared_bytes: int) -> Any:
        function = module.get_function(kernel)
        if shared_bytes > SHARED_BYTES_WITHOUT_OPT_IN:
            _cuda().driver.funcSetAttribute(function.ptr, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        return function

    def launch(
        self,
        function: Any,
        grid: tuple[int, ...],
        threads: int,
        arguments: tuple[Any, ...],
        shared_bytes: int,
        stream: int,
        device: int,
    ) -> None:
        with _on_device(device):
            function(grid, (threads, 1, 1), arguments, shared_bytes, _Stream(stream))


@dataclass(frozen=True, slots=True)
class _Stream:
    """CuPy reads nothing of a launch's stream but its handle; building its own Stream objects costs more than that."""

    ptr: int


def _on_device(device: int) -> Any:
    # Entering the device that is current already would still make two calls into the driver.
    return nullcontext() if _cuda().runtime.getDevice() == device else _cuda().Device(device)


def _cuda() -> Any:
    import cupy

    return cupy.cuda


class Launcher:
    """Launches programs through one driver and keeps what it loaded, per device, for the life of the process."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        # Keys hold the cubin itself: bytes keep their hash, and compare by identity first.
        self._modules: dict[tuple[int, bytes], Any] = {}
        self._functions: dict[tuple[int, bytes, str], Any] = {}
        self._loading = threading.Lock()

    def launch(self, program: Program, binding: Binding, stream: int) -> int:
        """Queues the launches of `program`, whose outputs are allocated, on a stream; returns how many there were.

        A grid without blocks, as for a dim of size 0, is not launched. Raises ArgumentError TS604 for arrays on the
        host and TS305 for a grid that CUDA cannot hold.
        """
        device = binding.device
        if device is None:
            raise ArgumentError("TS604", f"the arrays given to {program.name} live on the host, not on a GPU")
        count = 0
        for step in program.launches:
            grid = grid_of(step, binding.dims)
            if 0 in grid:
                continue
            _check_grid(step.kernel, grid)
            function = self._function(program, step, device)
            arguments = pack(program, step, binding)
            self.driver.launch(function, grid, step.threads, arguments, step.shared_bytes, stream, device)
            count += 1
        return count

    def _function(self, program: Program, step: Launch, device: int) -> Any:
        key = (device, program.cubin, step.kernel)
        function = self._functions.get(key)
        if function is None:
            with self._loading:
                module = self._modules.get(key[:2])
                if module is None:
                    module = self._modules[key[:2]] = self.driver.load(program.cubin, device)
                function = self._functions[key] = self.driver.function(module, step.kernel, step.shared_bytes)
        return function


LAUNCHER = Launcher(CupyDriver())


def grid_of(step: Launch, dims: dict[str, int]) -> tuple[int, int, int]:
    """The three sizes of a launch's grid."""
    x, y, z = (*(evaluate(size, dims) for size in step.grid), 1, 1, 1)[:3]
    return x, y, z


def pack(program: Program, step: Launch, binding: Binding) -> tuple[np.generic, ...]:
    """The arguments of one launch in the kernel's order: pointers as uint64, sizes and ints as int64, floats as f32."""
    scalar_dtype = {p.name: dtypes.parse(p.dtype) for p in program.parameters if p.kind == "scalar"}
    packed: list[np.generic] = []
    for argument in step.arguments:
        if argument.kind == "pointer":
            packed.append(np.uint64(binding.infos[argument.name].pointer))
        elif argument.kind == "size":
            packed.append(np.int64(evaluate(argument.size, binding.dims)))
        else:
            packed.append(scalar_dtype[argument.name].numpy.type(binding.scalars[argument.name]))
    return tuple(packed)


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


def compute_capability(device: int) -> tuple[int, int]:
    text = _cuda().Device(device).compute_capability  # "90" for 9.0, "120" for 12.0
    return int(text[:-1]), int(text[-1])
