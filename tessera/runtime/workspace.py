"""Memory that a call needs between its launches: one block of the caller's library, so its allocator orders reuse by
the stream, also while a graph is captured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera import dtypes
from tessera.errors import InternalError
from tessera.plan import ALIGNMENT
from tessera.program import Program
from tessera.runtime import arrays
from tessera.runtime.arrays import ALIGNED, Adapter, Reader

_readers: dict[type, Reader] = {}  # of arrays that libraries make, by their type


def offsets_of(program: Program, dims: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each workspace of a program lies in one block, and the bytes of that."""
    offsets: dict[str, int] = {}
    total = 0
    for space in program.workspaces:
        offsets[space.name] = total
        total += -(-space.bytes(dims) // ALIGNMENT) * ALIGNMENT
    return offsets, total


def allocate(library: Adapter, size: int, device: int) -> tuple[Any, int]:
    """A block of so many bytes on a GPU, and its address. Launches that are queued may use it after it is let go."""
    block = library.empty((size,), dtypes.i8, device)
    return block, address_of(block)


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
