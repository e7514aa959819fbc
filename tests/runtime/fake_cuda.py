"""A CUDA library for machines without a GPU: arrays on make-believe devices, and a driver that only writes down."""

from __future__ import annotations

import struct

import numpy as np

from tessera import dtypes
from tessera.runtime import arrays, launch


class Array:
    """NumPy memory that says it lives on a GPU. It holds plain attributes, as the arrays of real libraries do."""

    def __init__(self, memory, device=0):
        self.memory, self.device = memory, device
        self.dtype, self.shape, self.strides = memory.dtype, memory.shape, memory.strides
        self.pointer = memory.ctypes.data


def _read(array):
    pointer = array.pointer
    return (array.dtype, array.shape, array.strides, array.device, pointer & arrays.ALIGNED), pointer


class Library(arrays.Adapter):
    library = "fake"
    read = staticmethod(_read)
    current_stream = 7

    def matches(self, value):
        return isinstance(value, Array)

    def describe(self, array):
        return arrays.ArrayInfo(
            self,
            dtypes.from_numpy(array.dtype),
            str(array.dtype),
            array.shape,
            arrays.element_strides(array.strides, array.dtype.itemsize),
            True,
            array.pointer,
            array.device,
        )

    def host(self, array):
        raise arrays.on_gpu(array.device)

    def empty(self, shape, dtype, device):
        return aligned(shape, dtype.numpy, device)

    def stream(self, device):
        return self.current_stream


class Driver:
    """Launches are (kernel, grid, argument slots as integers, stream, device). A tensor map is the number of its
    encoding in `encoded`, sixteen times.

    `written` are copies to the GPU, (address, integers, stream, device); `waits` the devices that were waited for,
    `counted` those whose multiprocessors were asked for: device n has n + 2.
    """

    def __init__(self):
        self.loaded, self.launches, self.captured = [], [], set()
        self.written, self.waits, self.allocated, self.counted = [], [], [], []
        self.encoded = []

    def load(self, cubin, device):
        self.loaded.append(device)
        return cubin

    def function(self, module, kernel, shared_bytes, device):
        return kernel

    def capturing(self, stream, device):
        return stream in self.captured

    def allocate(self, size, device):
        self.allocated.append((size, device))
        return len(self.allocated) << 32

    def write(self, address, data, stream, device):
        self.written.append((address, struct.unpack(f"<{len(data) // 8}Q", data), stream, device))

    def synchronize(self, device):
        self.waits.append(device)

    def multiprocessors(self, device):
        self.counted.append(device)
        return device + 2

    def encode(self, encoding, address):
        self.encoded.append((encoding, address))
        return struct.pack("<16Q", *[len(self.encoded) - 1] * 16)

    def launch(self, function, grid, threads, arguments, shared_bytes, stream, device):
        count = len(arguments.slots) // launch.SLOT
        self.launches.append((function, grid, struct.unpack(f"<{count}q", arguments.slots.raw), stream, device))


def aligned(shape, dtype=np.float32, device=0, shift=0):
    """An array whose address is `shift` bytes past a multiple of 16."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 32, np.uint8)
    start = -memory.ctypes.data % 16 + shift
    return Array(memory[start : start + size].view(dtype).reshape(shape), device)
