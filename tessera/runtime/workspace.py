"""Memory that a call needs between its launches: one block of the caller's library, so its allocator orders reuse by
the stream, also while a graph is captured.

Functions keep small blocks, one for each stream, which all their calls on it share: those run one after the other.
These are of no library: torch lets nothing of its own outlive a call for which its allocator has the pool of a graph.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tessera import dtypes
from tessera.buffers import aligned
from tessera.errors import InternalError
from tessera.program import Program
from tessera.runtime import arrays
from tessera.runtime.arrays import ALIGNED, Adapter, Reader

if TYPE_CHECKING:
    from tessera.runtime.launch import Driver

KEPT_BYTES = 32 << 20  # a larger block is made for each call, whose launches take longer than that does
LEAST_KEPT = 1 << 20
MOST_KEPT = 16  # streams

_readers: dict[type, Reader] = {}  # of arrays that libraries make, by their type


def offsets_of(program: Program, dims: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each workspace of a program lies in one block, and the bytes of that."""
    offsets: dict[str, int] = {}
    total = 0
    for space in program.workspaces:
        offsets[space.name] = total
        total += aligned(space.bytes(dims))
    return offsets, total


def allocate(library: Adapter, size: int, device: int) -> tuple[Any, int]:
    """A block of so many bytes on a GPU, and its address. Launches that are queued may use it after it is let go."""
    block = library.empty((size,), dtypes.i8, device)
    return block, address_of(block)


class KeptBlocks:
    """The blocks that are kept, those of the streams that came last."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[Driver, int, int], tuple[Any, int, int]] = OrderedDict()
        # Block, address and bytes for driver, device and stream; None where there is no block.
        self.known = self._blocks.get
        self._lock = threading.Lock()

    def block(self, driver: Driver, size: int, device: int, stream: int) -> tuple[Any, int]:
        """A block of at least so many bytes, and its address, for what is queued on a stream.

        Launches that are queued may use it after it is let go.
        """
        key = driver, device, stream
        known = self._blocks.get(key)
        if known is not None and known[2] >= size:
            return known[:2]
        with self._lock:
            room = max(LEAST_KEPT, 1 << (size - 1).bit_length())
            memory = driver.block(room, device)
            made = memory, memory.ptr, room
            self._blocks.pop(key, None)
            while len(self._blocks) >= MOST_KEPT:
                self._blocks.popitem(last=False)
            self._blocks[key] = made
        return made[:2]


KEPT = KeptBlocks()


def address_of(array: Any) -> int:
    """The address of an array that `Adapter.empty` made."""
    reader = _readers.get(type(array))
    if reader is None:
        library = arrays.adapter(array)
        reader = None if library is None else library.read
        if reader is not None:
            _readers[type(array)] = reader
    if reader is not None:
        pointer = reader(array)[1]
    else:
        info = arrays.describe(array)
        assert info is not None
        pointer = info.pointer
    if pointer & ALIGNED:
        raise InternalError("TS901", f"a new array begins at {pointer:#x}, which is not aligned to {ALIGNED + 1}")
    return pointer
