"""What passes between Python and the CPU twin: its structures, and the memory that a kernel under examination sees."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

# ---- the twin's structures, as in tessera_twin_fiber.h ---------------------------------------------------------


class Error(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("block", ctypes.c_int64 * 3),
        ("line", ctypes.c_int),
        ("message", ctypes.c_char * 1024),
    ]


class Report(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int),
        ("capacity", ctypes.c_int),
        ("errors", ctypes.POINTER(Error)),
        ("output", ctypes.c_void_p),
        ("output_bytes", ctypes.c_int64),
    ]


class Allocation(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("writable", ctypes.c_int),
        ("argument", ctypes.c_int),
        ("output", ctypes.c_int),
        ("region", ctypes.c_int),
    ]


class Region(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("granule", ctypes.c_int),
        ("written", ctypes.c_void_p),
    ]


class TrafficFields(ctypes.Structure):
    _fields_ = [
        ("requests", ctypes.c_int64),
        ("transfers", ctypes.c_int64),
        ("ideal", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
    ]


class CounterFields(ctypes.Structure):
    _fields_ = [
        ("shared_read", TrafficFields),
        ("shared_write", TrafficFields),
        ("global_read", TrafficFields),
        ("global_write", TrafficFields),
        ("mma", ctypes.c_int64),
        ("barriers", ctypes.c_int64),
        ("warp_collectives", ctypes.c_int64),
    ]


class Probes(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_int64), ("capacity", ctypes.c_int64)]


class Options(ctypes.Structure):
    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("check_races", ctypes.c_int),
        ("allocation_count", ctypes.c_int),
        ("allocations", ctypes.POINTER(Allocation)),
        ("region_count", ctypes.c_int),
        ("lines", ctypes.c_int),
        ("regions", ctypes.POINTER(Region)),
        ("blocks", ctypes.POINTER(ctypes.c_int64)),
        ("block_count", ctypes.c_int64),
        ("counters", ctypes.POINTER(CounterFields)),
        ("probes", ctypes.POINTER(Probes)),
    ]


# ---- counters --------------------------------------------------------------------------------------------------


@dataclass
class SharedTraffic:
    """Warp instructions, the wavefronts (passes over the 32 banks) they took, the fewest possible, and bytes."""

    requests: int = 0
    wavefronts: int = 0
    ideal: int = 0
    bytes: int = 0

    def add(self, other: SharedTraffic) -> None:
        self.requests += other.requests
        self.wavefronts += other.wavefronts
        self.ideal += other.ideal
        self.bytes += other.bytes


@dataclass
class GlobalTraffic:
    """Warp instructions, the 32-byte sectors they touched, the fewest that hold their bytes, and bytes."""

    requests: int = 0
    sectors: int = 0
    ideal: int = 0
    bytes: int = 0

    def add(self, other: GlobalTraffic) -> None:
        self.requests += other.requests
        self.sectors += other.sectors
        self.ideal += other.ideal
        self.bytes += other.bytes


@dataclass
class Counters:
    """What one line of the emitted text did in the blocks that ran. `bytes` counts the distinct ones of a request."""

    shared_read: SharedTraffic
    shared_write: SharedTraffic
    global_read: GlobalTraffic
    global_write: GlobalTraffic
    mma: int = 0
    barriers: int = 0
    warp_collectives: int = 0

    @staticmethod
    def none() -> Counters:
        return Counters(SharedTraffic(), SharedTraffic(), GlobalTraffic(), GlobalTraffic())

    @staticmethod
    def of(fields: CounterFields) -> Counters:
        def values(traffic: Any) -> tuple[int, int, int, int]:
            return traffic.requests, traffic.transfers, traffic.ideal, traffic.bytes

        return Counters(
            SharedTraffic(*values(fields.shared_read)),
            SharedTraffic(*values(fields.shared_write)),
            GlobalTraffic(*values(fields.global_read)),
            GlobalTraffic(*values(fields.global_write)),
            fields.mma,
            fields.barriers,
            fields.warp_collectives,
        )

    def add(self, other: Counters) -> None:
        self.shared_read.add(other.shared_read)
        self.shared_write.add(other.shared_write)
        self.global_read.add(other.global_read)
        self.global_write.add(other.global_write)
        self.mma += other.mma
        self.barriers += other.barriers
        self.warp_collectives += other.warp_collectives


# ---- global memory ---------------------------------------------------------------------------------------------


class GlobalMemory:
    """Copies of the arguments' memory with a gap around each, so that running off one array never lands in another.

    Arrays that share memory share a copy, and each address keeps its value modulo 256: alignment is part of what is
    checked.
    """

    GAP = 4096
    MODULUS = 256

    def __init__(self, arrays: list[tuple[int, np.ndarray]]) -> None:
        self._arrays = arrays
        self._extents = [_extent(array) for _, array in arrays]
        self._shift: list[tuple[int, int, int]] = []  # (low, high, distance to the copy), merged and ascending
        self._buffers = []
        for low, high in _merged(self._extents):
            buffer = ctypes.create_string_buffer(high - low + 2 * self.GAP + self.MODULUS)
            address = ctypes.addressof(buffer) + self.GAP
            address += (low - address) % self.MODULUS
            ctypes.memmove(address, low, high - low)
            self._buffers.append(buffer)
            self._shift.append((low, high, address - low))
        self._regions = self._written_regions()

    def address(self, array: np.ndarray) -> int:
        """Address in the copy of the array's first element."""
        return array.ctypes.data + self._distance(_extent(array)[0])

    def allocations(self, outputs: Collection[int] = ()) -> Any:
        """The table of arrays; those at the argument positions `outputs` hold nothing before the launch."""
        table = (Allocation * max(1, len(self._arrays)))()
        for entry, (argument, array), (low, high) in zip(table, self._arrays, self._extents, strict=False):
            entry.base = low + self._distance(low)
            entry.bytes = high - low
            entry.writable = array.flags.writeable
            entry.argument = argument
            entry.output = argument in outputs
            entry.region = next((i for i, (a, b, *_) in enumerate(self._regions) if a <= low < b), -1)
        return table

    def regions(self) -> Any:
        """The table of memory that may be written."""
        table = (Region * max(1, len(self._regions)))()
        for entry, (low, high, granule, written) in zip(table, self._regions, strict=False):
            entry.base = low + self._distance(low)
            entry.bytes = high - low
            entry.granule = granule
            entry.written = written.ctypes.data
        return table

    def region_count(self) -> int:
        return len(self._regions)

    def written(self) -> dict[int, np.ndarray]:
        """By argument position, which elements of a writable array the launch wrote."""
        found = {}
        for (argument, array), (low, _) in zip(self._arrays, self._extents, strict=True):
            if not array.flags.writeable:
                continue
            if array.size == 0:
                found[argument] = np.zeros(array.shape, bool)
                continue
            start, _, granule, mask = next(region for region in self._regions if region[0] <= low < region[1])
            offsets = np.zeros(array.shape, np.int64) + (array.ctypes.data - start)
            for axis, (size, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
                shape = [1] * array.ndim
                shape[axis] = size
                offsets += (np.arange(size, dtype=np.int64) * stride).reshape(shape)
            found[argument] = mask[offsets // granule].astype(bool)
        return found

    def element(self, argument: int, byte: int) -> str:
        """An element's index for a message, given the argument's position and the byte from its lowest address."""
        for (position, array), (low, _) in zip(self._arrays, self._extents, strict=True):
            if position != argument or array.ndim == 0 or any(stride <= 0 for stride in array.strides):
                continue
            offset, index = low + byte - array.ctypes.data, []
            order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
            found = dict.fromkeys(range(array.ndim), 0)
            for axis in order:
                found[axis], offset = divmod(offset, array.strides[axis])
            index = [found[axis] for axis in range(array.ndim)]
            if all(i < size for i, size in zip(index, array.shape, strict=True)):
                return f"[{', '.join(map(str, index))}]"
        return f" byte {byte}"

    def copy_back(self) -> None:
        for (_, array), (low, high) in zip(self._arrays, self._extents, strict=True):
            if array.flags.writeable:
                ctypes.memmove(low, low + self._distance(low), high - low)

    def _written_regions(self) -> list[tuple[int, int, int, np.ndarray]]:
        """Each stretch of memory with a writable array: its extent, its smallest element, a mark per such element."""
        found = []
        for low, high, _ in self._shift:
            inside = [array for (_, array), (start, _) in zip(self._arrays, self._extents, strict=True)
                      if low <= start < high]  # fmt: skip
            if not any(array.flags.writeable for array in inside):
                continue
            granule = min(array.itemsize for array in inside)
            starts = {(array.ctypes.data - low) % granule for array in inside}
            granule = granule if starts == {0} else 1
            found.append((low, high, granule, np.zeros(-(-(high - low) // granule), np.uint8)))
        return found

    def _distance(self, address: int) -> int:
        # Neighbours may touch (one ends where the next starts); an empty array matches its own empty extent.
        return next(shift for low, high, shift in self._shift if low <= address < high or low == address == high)


def _extent(array: np.ndarray) -> tuple[int, int]:
    if array.size == 0:
        return array.ctypes.data, array.ctypes.data
    low, high = np.lib.array_utils.byte_bounds(array)
    return int(low), int(high)


def _merged(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(set(extents)):
        if merged and low < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged
