"""CUDA graphs, events and streams of our own, through CuPy's thin bindings, which the first use imports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from typing import Any


def cuda() -> Any:
    import cupy

    return cupy.cuda


def on_device(device: int) -> Any:
    # Entering the device that is current already would still make two calls into the driver.
    return nullcontext() if cuda().runtime.getDevice() == device else cuda().Device(device)


class CupyGraphs:
    """What `launch.Driver` asks for graphs."""

    def __init__(self) -> None:
        self._own: dict[int, list[int]] = {}  # streams, by device
        self._making = threading.Lock()
        self._replaying: tuple[Callable[[], int], Callable[[Any, int], None]] | None = None

    def own_streams(self, count: int, device: int) -> Sequence[int]:
        with self._making, on_device(device):
            runtime, made = cuda().runtime, self._own.setdefault(device, [])
            while len(made) < count:
                made.append(runtime.streamCreateWithFlags(runtime.streamNonBlocking))
        return made[:count]

    def begin_capture(self, stream: int, device: int) -> None:
        # Relaxed: no call of this thread or of another is forbidden meanwhile.
        runtime = cuda().runtime
        with on_device(device):
            runtime.streamBeginCapture(stream, runtime.streamCaptureModeRelaxed)

    def end_capture(self, stream: int, device: int) -> Any:
        runtime = cuda().runtime
        with on_device(device):
            graph = runtime.streamEndCapture(stream)
            try:
                with _unrestricted():
                    return runtime.graphInstantiate(graph)
            finally:
                runtime.graphDestroy(graph)

    def abandon_capture(self, stream: int, device: int) -> None:
        runtime = cuda().runtime
        with on_device(device), suppress(runtime.CUDARuntimeError):
            graph = runtime.streamEndCapture(stream)
            if graph:
                runtime.graphDestroy(graph)

    def record(self, stream: int, device: int) -> Any:
        runtime = cuda().runtime
        with on_device(device):
            event = runtime.eventCreateWithFlags(runtime.eventDisableTiming)
            runtime.eventRecord(event, stream)
        return event

    def wait(self, stream: int, event: Any, device: int) -> None:
        with on_device(device):
            cuda().runtime.streamWaitEvent(stream, event)

    def forget(self, event: Any, device: int) -> None:
        with on_device(device):
            cuda().runtime.eventDestroy(event)

    def replay(self, graph: Any, stream: int, device: int) -> None:
        if self._replaying is None:  # looking them up costs a tenth of the replay
            self._replaying = cuda().runtime.getDevice, cuda().runtime.graphLaunch
        current_device, launch = self._replaying
        if current_device() == device:
            launch(graph, stream)
            return
        with cuda().Device(device):
            launch(graph, stream)

    def destroy(self, graph: Any, device: int) -> None:
        with on_device(device):
            cuda().runtime.graphExecDestroy(graph)


@contextmanager
def _unrestricted() -> Iterator[None]:
    """Lets this thread make calls that a capture of the caller's, in CUDA's global mode, forbids everywhere.

    Such a call would end that capture with an error. CuPy does not have the switch; without cuda-bindings nothing is
    switched.
    """
    try:
        driver: Any = import_module("cuda.bindings.driver")
    except ImportError:
        yield
        return
    _, mode = driver.cuThreadExchangeStreamCaptureMode(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(mode)


__all__ = ["CupyGraphs", "cuda", "on_device"]
