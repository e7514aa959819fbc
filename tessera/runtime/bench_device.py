"""The clock of a benchmark: GPU time of calls, taken in turn, and how fast this very GPU copies and multiplies.

`Device` is all that a benchmark asks of a machine, so the rest is tested without a GPU.
"""

from __future__ import annotations

import importlib
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tessera.runtime import gpu
from tessera.runtime.launch import require_device

Calls = Sequence[Callable[[], Any]]

WARM_ROUNDS = 3
# Writes of 256 MB before each timed call: one clears L2, the others keep the GPU busy while the host queues the call,
# so that its own time does not show.
FLUSHES = 6
LONGEST_SECONDS, LEAST_ROUNDS = 5.0, 5  # rounds end early when they take this long together
COPY_BYTES = 256 << 20
PRODUCT_SIZE = 8192  # of the square bf16 product whose rate is that of the GPU


@dataclass(frozen=True)
class Peaks:
    """Measured rates: bytes per second of a copy (read and written), operations per second of a bf16 product.

    `product_by` says where the second is from: what ran, or the board whose data sheet it is.
    """

    copy: float
    product: float
    product_by: str

    def times(self, rate: float) -> Peaks:
        """Those of products at `rate` times the rate of bf16."""
        if rate == 1.0:
            return self
        return Peaks(self.copy, rate * self.product, f"{rate:g} x {self.product_by}")

    def least_us(self, moved: int, flops: int) -> float:
        """The roofline: no run takes less than moving its bytes, or doing its operations, at these rates."""
        return max(moved / self.copy, flops / self.product) * 1e6


class Device(Protocol):
    """What a benchmark needs of a machine."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """The machine and the versions of what runs on it."""
        ...

    def timed(self, calls: Calls, repeats: int, warm: int = WARM_ROUNDS) -> list[list[float]]:
        """Microseconds of each call, `repeats` times or fewer. In each round every call has its turn, L2 cold, in an
        order of the round's own.
        """
        ...

    def synchronize(self) -> None:
        """Waits for the GPU; raises what a call left behind."""
        ...

    def peaks(self) -> Peaks: ...


class CudaDevice:
    """The current GPU, on its default stream, where torch and Triton also queue their work unless told otherwise."""

    def __init__(self) -> None:
        """Raises EnvironmentProblem TS505 without a GPU."""
        require_device()
        import cupy

        from tessera.runtime.bench_machine import facts

        self._cupy, self._facts = cupy, facts()
        self._stream = cupy.cuda.get_current_stream()
        self._flush = cupy.empty(gpu.FLUSH_BYTES, cupy.uint8)

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._facts

    def timed(self, calls: Calls, repeats: int, warm: int = WARM_ROUNDS) -> list[list[float]]:
        samples: list[list[float]] = [[] for _ in calls]
        order, turns = random.Random(0), list(range(len(calls)))
        start = time.perf_counter()
        for index in range(-warm, repeats):
            if index >= LEAST_ROUNDS and time.perf_counter() - start > LONGEST_SECONDS:
                break
            # In each round the order is another one: behind some rivals the same code was slower by a sixth than behind
            # others, in spite of the flush between them (H200).
            order.shuffle(turns)
            events = {turn: self._between_events(calls[turn]) for turn in turns}
            self.synchronize()
            if index >= 0:
                for turn, kept in enumerate(samples):
                    kept.append(self._cupy.cuda.get_elapsed_time(*events[turn]) * 1e3)
        return samples

    def _between_events(self, call: Callable[[], Any]) -> tuple[Any, Any]:
        start, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        for _ in range(FLUSHES):
            self._flush.fill(0)
        start.record(self._stream)
        call()
        end.record(self._stream)
        return start, end

    def synchronize(self) -> None:
        self._cupy.cuda.runtime.deviceSynchronize()

    def peaks(self) -> Peaks:
        return Peaks(2 * COPY_BYTES / self._median(gpu.copy(COPY_BYTES)) * 1e6, *self._product_rate())

    def _product_rate(self) -> tuple[float, str]:
        try:
            torch = importlib.import_module("torch")
        except ImportError:
            return self._typical_rate()
        a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device="cuda").bfloat16() for _ in range(2))
        out = torch.empty_like(a)
        us = self._median(lambda: torch.matmul(a, b, out=out))
        return 2 * PRODUCT_SIZE**3 / us * 1e6, f"torch.matmul of {PRODUCT_SIZE}^3 in bf16"

    def _typical_rate(self) -> tuple[float, str]:
        from tessera.compiler import find_arch
        from tessera.runtime.api import device_arch

        arch = find_arch(device_arch(self._cupy.cuda.runtime.getDevice()))
        return arch.typical_bf16_rate, f"the data sheet of {arch.typical_board}, since torch is not installed"

    def _median(self, call: Callable[[], Any]) -> float:
        return statistics.median(self.timed([call], 20)[0])


def open_device() -> Device:
    """The GPU of this process. Raises EnvironmentProblem TS505 without one."""
    return CudaDevice()


__all__ = ["CudaDevice", "Device", "Peaks", "open_device"]
