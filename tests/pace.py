"""Limits of time that hold on a machine of any speed, however full the process is."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Process CPU time of one turn of `_turn` on the machine on which the limits of the tests were measured.
NOMINAL = 0.017


def _turn() -> float:
    start = time.process_time()
    table: dict[int, tuple[int, str]] = {}
    for number in range(100_000):
        table[number & 1023] = (number, str(number))
        assert len(table[number & 1023]) == 2
    return time.process_time() - start


def slower() -> float:
    """How many times slower than the machine of the measurements this one is now, and 1 where it is faster."""
    return max(1.0, min(_turn() for _ in range(3)) / NOMINAL)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The CPU time of this process in the block is at most `seconds` on the machine where they were measured.

    On a slower one it is as many times longer as a loop of plain Python before or after the block. The garbage of
    earlier tests is not collected in the block: what they have left may be a hundred times what the block makes.
    """
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        before = slower()
        start = time.process_time()
        yield
        took = time.process_time() - start
        pace = max(before, slower())
    finally:
        if collects:
            gc.enable()
    assert took <= seconds * pace, f"{took:.3f} s, where {seconds} s x {pace:.2f} are allowed"
