"""What probes of a run left, and where it differs, bit for bit, from what the interpreter holds at the same places."""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np

from tessera.dtypes import DType, from_storage, i64, to_storage
from tessera.ir.layout import RegisterLayout
from tessera.ir.types import TileType, Type, buffer_layout, dtype_of, int_shape, tile_layout
from tessera.runtime.probes_recorder import BufferState

Array = np.ndarray
_HEADER = struct.Struct("<iiq")  # as ts_twin_probe_record
_CUT_SHORT = -1

Place = tuple[int, int]  # a probe, and how many times a thread had met it before


@dataclass(frozen=True)
class Records:
    """`order`: the places that thread 0 met. `held`: by place, the threads that met it and the bytes of each.

    `whole` is False when the run was so long that its end was not recorded.
    """

    order: list[Place]
    held: dict[Place, tuple[list[int], list[bytes]]]
    whole: bool

    @staticmethod
    def read(data: bytes) -> Records:
        order: list[Place] = []
        held: dict[Place, tuple[list[int], list[bytes]]] = {}
        met: dict[Place, int] = defaultdict(int)  # by (probe, thread)
        at, whole = 0, True
        while at < len(data):
            probe, thread, size = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            if probe == _CUT_SHORT:
                whole = False
                break
            place = (probe, met[probe, thread])
            met[probe, thread] += 1
            if thread == 0:
                order.append(place)
            threads, chunks = held.setdefault(place, ([], []))
            threads.append(thread)
            chunks.append(data[at : at + size])
            at += -(-size // 8) * 8
        return Records(order, held, whole)


@dataclass(frozen=True)
class Wrong:
    """A register or an element of a buffer that holds another number than it should. -1: not of a thread."""

    element: tuple[int, ...]
    thread: int
    register: int
    got: float | int | None
    expected: float | int | None


def wrong_register(type_: Type, expected: Array, threads: list[int], chunks: list[bytes]) -> Wrong | None:
    """The first wrong register of a tile or a scalar, by element, then thread.

    Each replica of an element is compared; registers that hold padding are not. `expected` has the shape of the tile.
    """
    dtype = dtype_of(type_)
    index, shape = _register_elements(type_)
    stored = _stored_as(dtype, len(chunks[0]), index.shape[1])
    if stored is None or any(len(chunk) != len(chunks[0]) for chunk in chunks):
        return Wrong((0,) * len(shape), threads[0], 0, None, None)
    want = np.broadcast_to(_in_storage(stored, expected), shape).reshape(-1)
    got = np.frombuffer(b"".join(chunks), stored.numpy).reshape(len(chunks), -1)
    places = index[np.array(threads) % index.shape[0]]
    differs = (places >= 0) & _differ(stored, got, want[places])
    if not differs.any():
        return None
    rows, registers = np.nonzero(differs)
    first = np.lexsort((registers, np.array(threads)[rows], places[rows, registers]))[0]
    row, register = rows[first], registers[first]
    element = tuple(int(i) for i in np.unravel_index(places[row, register], shape))
    return Wrong(
        element, threads[row], int(register), _number(stored, got[row, register]),
        _number(stored, want[places[row, register]]),
    )  # fmt: skip


def wrong_elements(type_: Type, state: BufferState, data: bytes) -> tuple[Array, Array, Array]:
    """Of a buffer's physical elements: which that are read are wrong; all as they are and as they should be."""
    layout, dtype = buffer_layout(type_), dtype_of(type_)
    shape = state.data.shape
    flat = np.arange(state.data.size)
    offsets = layout.offset_array(flat // shape[-1], flat % shape[-1])
    reached = offsets + dtype.bytes <= len(data)
    raw = np.frombuffer(data, np.uint8)
    lanes = np.where(reached, offsets, 0)[:, None] + np.arange(dtype.bytes)
    got = np.ascontiguousarray(raw[lanes]).view(dtype.numpy).reshape(shape)
    want = _in_storage(dtype, state.data)
    differs = state.is_read() & reached.reshape(shape) & _differ(dtype, got, want)
    return differs, got, want


def wrong_element(type_: Type, differs: Array, got: Array, want: Array) -> Wrong:
    """The first of the elements that `wrong_elements` found."""
    element = tuple(int(i) for i in np.argwhere(differs)[0])
    dtype = dtype_of(type_)
    return Wrong(element, -1, -1, _number(dtype, got[element]), _number(dtype, want[element]))


@cache
def _layout_elements(layout: RegisterLayout, shape: tuple[int, ...]) -> Array:
    """[threads, registers]: the row-major number of the element that a register holds, -1 where that is padding."""
    coordinates = layout.all_coordinates().reshape(layout.threads, layout.registers_per_thread, len(shape))
    inside = (coordinates < np.array(shape)).all(axis=-1)
    clipped = np.minimum(coordinates, np.array(shape) - 1)
    numbers = np.ravel_multi_index(tuple(np.moveaxis(clipped, -1, 0)), shape)
    return np.where(inside, numbers, -1)


def _register_elements(type_: Type) -> tuple[Array, tuple[int, ...]]:
    """Threads beyond those of the layout repeat them; a scalar is a register of each thread."""
    if not isinstance(type_, TileType):
        return np.zeros((1, 1), np.int64), ()
    shape = int_shape(type_)
    return _layout_elements(tile_layout(type_), shape), shape


def _stored_as(dtype: DType, size: int, count: int) -> DType | None:
    """The dtype of `count` registers in `size` bytes: indices are 64 bits wide in the text. None for another size.

    Fragments are packed in words: two 16-bit registers each, the lower one first, as little-endian bytes lie anyway.
    """
    if size == count * dtype.bytes:
        return dtype
    return i64 if dtype.is_int and size == count * i64.bytes else None


def _in_storage(dtype: DType, carrier: Array) -> Array:
    return carrier.astype(np.int64) if dtype == i64 else to_storage(dtype, carrier)


def _differ(dtype: DType, a: Array, b: Array) -> Array:
    """Where bits differ; two NaN are the same whatever their bits."""
    unsigned = f"u{dtype.bytes}"
    differs = np.ascontiguousarray(a).view(unsigned) != np.ascontiguousarray(b).view(unsigned)
    if dtype.is_float and differs.any():
        differs &= ~(np.isnan(from_storage(dtype, a)) & np.isnan(from_storage(dtype, b)))
    return differs


def _number(dtype: DType, stored: Array) -> float | int:
    value = from_storage(dtype, np.asarray(stored))
    return float(value) if dtype.is_float else bool(value) if dtype.is_bool else int(value)
