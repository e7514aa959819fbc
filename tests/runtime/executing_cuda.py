"""A make-believe GPU whose launches run, on the emulator: arrays and memory are those of `fake_cuda`."""

import ctypes
import struct
import weakref
from types import SimpleNamespace

import numpy as np

from tessera import dtypes
from tessera.runtime import arrays, emulator, launch
from tessera.runtime.emulator_maps import twin_map
from tests.runtime import fake_cuda


class Library(fake_cuda.Library):
    """Remembers how far the memory behind each address goes; `made` counts the arrays of `empty`."""

    def __init__(self):
        self.extents, self.made = [], 0
        self.kept = []

    def array(self, values, device=0):
        """A copy of a NumPy array on the device."""
        found = fake_cuda.aligned(values.shape, values.dtype, device)
        found.memory[...] = values
        return self.known(found)

    def known(self, array):
        self.extents.append((array.pointer, array.memory.nbytes))
        self.kept.append(array)
        return array

    def empty(self, shape, dtype, device):
        self.made += 1
        found = self.known(super().empty(shape, dtype, device))
        found.memory.view(np.uint8)[...] = 0xFF  # NaN in every float
        return found

    def bytes_from(self, pointer):
        """How many bytes lie behind an address."""
        return next(start + size - pointer for start, size in reversed(self.extents) if start <= pointer < start + size)


class Pool(Library):
    """One whose memory goes back when an array goes, and to the next of its size, as that of real libraries does.

    `fails` is raised instead of new memory; arrays that were given back still serve.
    """

    def __init__(self):
        super().__init__()
        self.free, self.fails = {}, None

    def empty(self, shape, dtype, device):
        self.made += 1
        size = int(np.prod(shape)) * dtype.bytes
        free = self.free.setdefault((size, device), [])
        if not free and self.fails is not None:
            raise self.fails
        memory = free.pop() if free else fake_cuda.aligned((size,), np.uint8, device).memory
        memory[...] = 0xFF
        array = fake_cuda.Array(memory.view(dtype.numpy).reshape(shape), device)
        self.extents.append((array.pointer, size))
        weakref.finalize(array, free.append, memory)
        return array


class Driver(fake_cuda.Driver):
    """Loads what `compiled` of the fixture made: `programs` by their make-believe cubin."""

    def __init__(self, library):
        super().__init__()
        self.library, self.programs = library, {}
        self.held = {}

    def load(self, cubin, device):
        self.loaded.append(device)
        return self.programs[cubin]

    def function(self, module, kernel, shared_bytes, device):
        return module, kernel

    def allocate(self, size, device):
        self.allocated.append((size, device))
        return self.memory(size, 0)

    def block(self, size, device):
        self.blocks.append((size, device))
        return SimpleNamespace(ptr=self.memory(size, 0xFF))

    def memory(self, size, fill):
        memory = np.full(size + 32, fill, np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % 16
        self.library.extents.append((start, size))
        self.library.kept.append(memory)
        return start

    def write(self, address, data, stream, device):
        arrays.as_numpy(address, (len(data),), None, dtypes.i8)[...] = np.frombuffer(data, np.int8)
        self.written.append((address, data, stream, device))

    def launch(self, function, grid, threads, arguments, shared_bytes, stream, device):
        if self.into_graph(function, grid, threads, arguments, shared_bytes, stream):
            return
        program, kernel = function
        step = next(step for step in program.launches if step.kernel == kernel)
        parameters = {parameter.name: parameter for parameter in (*program.parameters, *program.workspaces)}
        packed = []
        for number, argument in enumerate(step.arguments):
            slot = ctypes.string_at(arguments.addresses[number], launch.SLOT)
            if argument.kind == "size":
                packed.append(struct.unpack("<q", slot)[0])
                continue
            dtype = dtypes.parse(parameters[argument.name].dtype)
            if argument.kind in ("map", "maps"):
                count = parameters[argument.name].length if argument.kind == "maps" else 1
                data = ctypes.string_at(arguments.addresses[number], 128 * count)
                maps = [self.map(struct.unpack_from("<Q", data, 128 * n)[0], dtype) for n in range(count)]
                packed.append(maps if argument.kind == "maps" else maps[0])
                continue
            if argument.kind == "scalar":
                packed.append(struct.unpack("<f4x" if dtype.is_float else "<q", slot)[0])
            elif argument.kind == "pointer":
                packed.append(self.behind(struct.unpack("<Q", slot)[0], dtype))
            else:
                length = parameters[argument.name].length
                slots = ctypes.string_at(arguments.addresses[number], length * launch.SLOT)
                packed.append([self.behind(pointer, dtype) for pointer in struct.unpack(f"<{length}Q", slots)])
        self.launches.append((kernel, grid, stream, device))
        library = emulator.build(program.cuda, [step.kernel for step in program.launches])
        library.launch(kernel, grid, threads, shared_bytes, packed)

    def map(self, number, dtype):
        encoding, address = self.encoded[number]
        shape = encoding.shape
        return twin_map(self.behind(address, dtype), shape.sizes, shape.strides, encoding.box, encoding.swizzle)

    def behind(self, pointer, dtype):
        return arrays.as_numpy(pointer, (self.library.bytes_from(pointer) // dtype.bytes,), None, dtype)
