"""Lists of tensors on a GPU: tables of their addresses in device memory, written once per list of addresses.

A kernel gets the address of such a table. Tables are kept: a warm call finds its own, and a captured graph may read one
at any later time. So their memory, 8 bytes a tensor, stays allocated for the life of the process.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tessera.errors import EnvironmentProblem

if TYPE_CHECKING:
    from tessera.runtime.launch import Driver

SLAB = 1 << 16  # bytes that are allocated at a time
POINTER = 8
MOST = 1 << 16  # tables that are looked up; a caller with more lists than that starts over


@dataclass(slots=True)
class _Table:
    """`stream` is the one on which the table is written; None once every stream sees it."""

    address: int
    stream: int | None


class PointerTables:
    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[int, ...]], _Table] = {}
        self._room: dict[int, tuple[int, int]] = {}  # by device: the next free address, and the bytes from there on
        self._lock = threading.Lock()

    def address(self, driver: Driver, pointers: tuple[int, ...], stream: int, device: int) -> int:
        """The device address of a table of these addresses, readable by what is queued on `stream` from now on.

        0 for an empty list. Raises EnvironmentProblem TS510 for a list that is new while `stream` is captured.
        """
        if not pointers:
            return 0
        table = self._known.get((device, pointers))
        if table is None or table.stream not in (None, stream):
            with self._lock:
                table = self._known.get((device, pointers)) or self._write(driver, pointers, stream, device)
                if table.stream not in (None, stream):
                    _refuse_capture(driver, stream, device)
                    driver.synchronize(device)
                    table.stream = None
        return table.address

    def _write(self, driver: Driver, pointers: tuple[int, ...], stream: int, device: int) -> _Table:
        _refuse_capture(driver, stream, device)
        size = POINTER * len(pointers)
        start, left = self._room.get(device, (0, 0))
        if left < size:
            left = max(SLAB, size)
            start = driver.allocate(left, device)
        self._room[device] = start + size, left - size
        driver.write(start, struct.pack(f"<{len(pointers)}Q", *pointers), stream, device)
        if len(self._known) >= MOST:
            self._known.clear()
        table = self._known[device, pointers] = _Table(start, stream)
        return table


def _refuse_capture(driver: Driver, stream: int, device: int) -> None:
    if driver.capturing(stream, device):
        raise EnvironmentProblem(
            "TS510",
            "a list of tensors is passed for the first time while its stream is captured into a CUDA graph, where its "
            "addresses cannot be written to the GPU; call the kernel with the same tensors before, on that stream",
        )
