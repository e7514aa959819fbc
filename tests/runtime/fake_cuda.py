"""A CUDA library for machines without a GPU: arrays on make-believe devices, and a driver that only writes down."""

from __future__ import annotations

import ctypes
import random
import struct
from types import SimpleNamespace

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


class Captured:
    """Launches that become a graph: `nodes` are (arguments of `launch`, numbers of the nodes that it runs after).

    `tails` has, for each stream that is part of the capture, the nodes behind which its next launch runs.
    """

    def __init__(self, origin):
        self.origin, self.nodes, self.tails, self.alive = origin, [], {origin: frozenset()}, True

    def add(self, function, grid, threads, arguments, shared_bytes, stream):
        self.nodes.append(((function, grid, threads, copied(arguments), shared_bytes), self.tails[stream]))
        self.tails[stream] = frozenset({len(self.nodes) - 1})

    def before(self, numbers):
        """These nodes, and all that run before them."""
        found = set(numbers)
        for number in reversed(range(len(self.nodes))):
            if number in found:
                found |= self.nodes[number][1]
        return found

    def edges(self):
        """(kernel, kernel before it) of all nodes, by number."""
        return [(number, earlier) for number, (_, after) in enumerate(self.nodes) for earlier in sorted(after)]

    def shuffled(self, seed):
        """The numbers of the nodes in some order that their edges allow."""
        draw, done, left = random.Random(seed), set(), set(range(len(self.nodes)))
        while left:
            number = draw.choice(sorted(n for n in left if self.nodes[n][1] <= done))
            left.remove(number)
            done.add(number)
            yield number


def copied(arguments):
    """Argument memory as a capture keeps it."""
    slots = bytes(arguments.slots)
    base = ctypes.addressof(arguments.slots)
    starts = [(address - base) // launch.SLOT for address in arguments.addresses]
    made = launch.Arguments(struct.Struct(f"{len(slots)}x"), starts)
    ctypes.memmove(made.slots, slots, len(slots))
    return made


class Driver:
    """Launches are (kernel, grid, argument slots as integers, stream, device). A tensor map is the number of its
    encoding in `encoded`, sixteen times.

    `graphs` are what was captured, and `replays` their numbers with the stream, in order; a replay runs its launches in
    any order that the edges allow. `refuses` is what a capture raises.

    `written` are copies to the GPU, (address, integers, stream, device); `waits` the devices that were waited for,
    `counted` those whose multiprocessors were asked for: device n has n + 2.
    """

    def __init__(self):
        self.loaded, self.launches, self.captured = [], [], set()
        self.written, self.waits, self.allocated, self.counted, self.blocks = [], [], [], [], []
        self.encoded = []
        self.graphs, self.replays, self.capture, self.refuses = [], [], None, None

    def own_streams(self, count, device):
        return [1000 + 10 * device + number for number in range(count)]

    def begin_capture(self, stream, device):
        assert self.capture is None and not self.captured & {stream}
        if self.refuses is not None:
            raise self.refuses
        self.capture = Captured(stream)

    def end_capture(self, stream, device):
        found, self.capture = self.capture, None
        assert stream == found.origin
        assert found.before(found.tails[stream]) == set(range(len(found.nodes))), "a stream is not joined"
        self.graphs.append(found)
        return found

    def abandon_capture(self, stream, device):
        self.capture = None

    def record(self, stream, device):
        return self.capture.tails[stream]

    def wait(self, stream, event, device):
        self.capture.tails[stream] = self.capture.tails.get(stream, frozenset()) | event

    def forget(self, event, device):
        pass

    def replay(self, graph, stream, device):
        assert graph.alive and stream not in self.captured and self.capture is None
        self.replays.append((self.graphs.index(graph), stream))
        for number in graph.shuffled(len(self.replays)):
            self.launch(*graph.nodes[number][0], stream, device)

    def destroy(self, graph, device):
        graph.alive = False

    def into_graph(self, function, grid, threads, arguments, shared_bytes, stream):
        """Whether a launch became part of a graph."""
        if self.capture is None or stream not in self.capture.tails:
            return False
        self.capture.add(function, grid, threads, arguments, shared_bytes, stream)
        return True

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

    def block(self, size, device):
        self.blocks.append((size, device))
        return SimpleNamespace(ptr=len(self.blocks) << 40)

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
        if self.into_graph(function, grid, threads, arguments, shared_bytes, stream):
            return
        count = len(arguments.slots) // launch.SLOT
        self.launches.append((function, grid, struct.unpack(f"<{count}q", arguments.slots.raw), stream, device))


def aligned(shape, dtype=np.float32, device=0, shift=0):
    """An array whose address is `shift` bytes past a multiple of 16."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 32, np.uint8)
    start = -memory.ctypes.data % 16 + shift
    return Array(memory[start : start + size].view(dtype).reshape(shape), device)
