"""What the cost model assumes of every GPU: one table, with where each number comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Measured on an H100 SXM unless it says otherwise. What `cost_launch` makes of them is their meaning."""

    launch: float = 2.5e-6  # seconds between two events around an empty kernel
    clock: float = 1.7e9  # hertz under load
    dram: float = 0.9  # share of the bandwidth that a copy reaches: 2.97 of 3.35 TB/s
    # Per clock and multiprocessor, 11 TB/s. A fused kernel of 2 x 4 x 32768 x 2048^2 operations (H200) moves 10.8 TB/s.
    l2_bytes: float = 50.0
    l2_capacity: int = 24 << 20  # bytes that stay until the next wave: about half of the cache
    mma_sync: float = 0.62  # share of the wgmma rate that mma.sync reaches, where the chip has wgmma
    mma_base: float = 0.85  # share of the rate that mma.sync reaches elsewhere (A100)
    wgmma: float = 0.78  # share of the rate that wgmma reaches under the power limit: 4096^3 at 771 Tflop/s, as cuBLAS
    shared_bytes: float = 128.0  # per clock and multiprocessor: 32 banks of 4 bytes
    lanes: float = 128.0  # thread instructions that a multiprocessor issues per clock
    warps_to_fill: float = 8.0  # warps of a multiprocessor that keep its pipelines busy
    memory_latency: float = 800e-9  # seconds from a copy's start to its wait: DRAM's 600 ns, issue and barrier
    # Seconds from the release of a slot until it is full again. A ring of 5 slots of 16 KiB brought 43-45 KiB/us to
    # each multiprocessor: a slot came round every 1.8 us, for a part of which it was held.
    round_trip: float = 1.1e-6
    barrier: float = 30e-9  # seconds until the last warp has come
    reduction: float = 80e-9  # seconds of the shuffles of a warp
    overlap: float = 0.25  # of the lesser of two kinds of work, what does not hide behind the greater
    contention: float = 0.05  # the same of memory and work where copies fly ahead


CONSTANTS = Constants()

__all__ = ["CONSTANTS", "Constants"]
