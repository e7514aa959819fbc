"""Host time of calls: what the benchmarks of overhead share."""

import time
from collections.abc import Callable
from typing import TypeVar

Name = TypeVar("Name")


def best_of_each(
    calls: dict[Name, Callable[[], object]], synchronize: Callable[[], object], count: int, rounds: int
) -> dict[Name, float]:
    """Microseconds per call on the host, the fastest round of each; rounds take turns and see the same machine."""
    rows = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(count):
                call()
            rows[name] = min(rows[name], (time.perf_counter() - start) / count * 1e6)
    synchronize()
    return rows
