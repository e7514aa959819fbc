"""Runs programs on host arrays through a GPU: copies in, launches, copies out, and times the launches.

The time is what a roofline compares with: the launches alone, with a cold L2 cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tessera.dtypes import from_numpy
from tessera.program import Parameter, Program
from tessera.runtime.arrays import cupy_storage
from tessera.runtime.bind import Binding, bind
from tessera.runtime.launch import LAUNCHER, device_of, require_device

# Larger than the L2 cache of any GPU so far (50 MB on an H100, 126 MB on a B200).
FLUSH_BYTES = 256 << 20


def run(
    program: Program, arguments: Mapping[str, Any], dims: Mapping[str, int], repeats: int = 0
) -> tuple[float, list[tuple[str, tuple[int, ...]]]]:
    """Runs `program` once on copies of the arrays, writes the results into them, and returns seconds and launches.

    With `repeats` the seconds are the median of that many further runs. Raises EnvironmentProblem TS505 without a GPU.
    """
    launch, binding = prepare(program, arguments, dims)
    import cupy

    stream = cupy.cuda.get_current_stream()
    seconds = _timed(cupy, stream, launch)
    for parameter in program.parameters:
        if parameter.role in ("out", "inout"):
            carried(arguments[parameter.name])[...] = binding.arrays[parameter.name].get()
    if repeats:
        flush = cupy.empty(FLUSH_BYTES, cupy.uint8)
        samples = []
        for _ in range(repeats):
            flush.fill(0)
            samples.append(_timed(cupy, stream, launch))
        seconds = statistics.median(samples)
    return seconds, LAUNCHER.grids(program, binding.dims, device_of(program, binding))


def prepare(
    program: Program, arguments: Mapping[str, Any], dims: Mapping[str, int]
) -> tuple[Callable[[], Any], Binding]:
    """What launches `program` on copies of the arrays, on CuPy's current stream, and how they are bound.

    Raises EnvironmentProblem TS505 without a GPU.
    """
    require_device()
    import cupy

    binding = bound(program.name, program.parameters, arguments, dims)
    stream = cupy.cuda.get_current_stream()
    return lambda: LAUNCHER.launch(program, binding, stream.ptr), binding


def bound(
    kernel: str, parameters: Sequence[Parameter], arguments: Mapping[str, Any], dims: Mapping[str, int]
) -> Binding:
    """A call on copies of the arrays on the current GPU."""
    made = bind(kernel, parameters, (), {name: on_device(value) for name, value in arguments.items()})
    made.dims = {**dims, **made.dims}  # a dim that is compiled in may appear in no shape
    return made


def on_device(value: Any) -> Any:
    """A NumPy array, or each of a list, as a CuPy array on the current GPU; other values as they are."""
    if isinstance(value, (list, tuple)):
        return [on_device(item) for item in value]
    if not isinstance(value, np.ndarray):
        return value
    import cupy

    return cupy.asarray(carried(value), order="C")


def copy(count: int) -> Callable[[], Any]:
    """A copy of so many bytes from one place of the current GPU to another."""
    import cupy

    source, target = (cupy.zeros(max(count, 1), cupy.uint8) for _ in range(2))
    stream = cupy.cuda.get_current_stream()
    return lambda: target.data.copy_from_device_async(source.data, count, stream)


def carried(array: np.ndarray) -> np.ndarray:
    """The same memory under the dtype in which CuPy holds it."""
    dtype = from_numpy(array.dtype)
    return array if dtype is None else array.view(cupy_storage(dtype))


def _timed(cupy: Any, stream: Any, launch: Any) -> float:
    """Seconds between two events around the work that `launch` queues on the stream."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record(stream)
    launch()
    end.record(stream)
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1e3
