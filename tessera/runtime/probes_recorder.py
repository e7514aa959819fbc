"""The Target interpreter for one program, keeping what each probed place of the kernel holds, in program order."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera.ir import values
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.stages import allocation
from tessera.ir.types import BufferType, buffer_layout, int_shape
from tessera.runtime.interpreter import Machine, check_level
from tessera.runtime.interpreter_output import capture
from tessera.runtime.interpreter_setup import bind_dims, check_arguments, concrete, grid_of
from tessera.runtime.probes_text import read_buffers, written_buffers, written_views

Key = tuple[str, int, int, int]  # as Probe.key
Array = np.ndarray
NOBODY = -1


@dataclass
class BufferState:
    """A shared buffer as an op reads it: carrier values of its physical shape, what of it is read, and who wrote it.

    `writer` holds positions in `Recording.writers`, or `NOBODY`.
    """

    data: Array
    window: tuple[Any, ...]
    writer: Array

    def is_read(self) -> Array:
        mask = np.zeros(self.data.shape, bool)
        mask[self.window] = True
        return mask


@dataclass(frozen=True)
class Stored:
    """A store to global memory: the op, its window, and the mask tile where it has one."""

    op: int
    view: values.View
    mask: Array | None


@dataclass
class Recording:
    """What one program did. A payload is an array [*tile] of carrier values, a BufferState or a distance."""

    events: list[tuple[Key, Any]]
    writers: list[int]  # ids of the ops that wrote shared buffers, an entry for each time
    stores: list[Stored]


def record(
    kernel: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    block: tuple[int, ...],
    wanted: Set[Key],
    grid: tuple[int, ...] | None = None,
) -> Recording:
    """Runs the program with the ids `block` of a Target kernel, in its own grid or in `grid`. Arrays are written in
    place.

    Raises what the interpreter raises.
    """
    bound = bind_dims(kernel, dims)
    extents = grid_of(kernel, bound, grid)
    small = concrete(kernel, bound)
    check_level(small, "target")
    check_arguments(small, arguments)
    recorder = Recorder(small, extents, arguments, wanted)
    with capture():
        recorder.run(np.array([linear(block, extents)]))
    return recorder.recording


def linear(block: tuple[int, ...], grid: tuple[int, ...]) -> int:
    """The number of the program with the ids `block`; axis 0 runs fastest."""
    number = 0
    for index, extent in zip(reversed(block[: len(grid)]), reversed(grid), strict=False):
        number = number * extent + index
    return number


@dataclass(eq=False)
class _Buffer(values.Buffer):
    """Remembers which part of it was asked for last."""

    asked: tuple[Any, ...] | None = None

    def window(self, offsets: list[Array], extents: tuple[int, ...]) -> tuple[Array, ...]:
        index = super().window(offsets, extents)
        self.asked = index[1:]
        return index


class Recorder(Machine):
    def __init__(self, kernel: Kernel, grid: tuple[int, ...], arguments: Mapping[str, Any], wanted: Set[Key]):
        super().__init__(kernel, grid, arguments)
        self.wanted = wanted
        self.recording = Recording([], [], [])
        self.writer: dict[values.Buffer, Array] = {}
        self.owners = {
            id(region): (op, number) for op in kernel.body.walk() for number, region in enumerate(op.regions)
        }

    def block(self, block: Block) -> list[Any]:
        owner = self.owners.get(id(block))
        if owner is None:
            return super().block(block)
        op, region = owner
        for number, value in enumerate(block.arguments):
            self.keep(("argument", op.id, region, number), self.values[value])
        handed_on = super().block(block)
        if block.ops and block.ops[-1].name == "yield":
            for number, value in enumerate(handed_on):
                self.keep(("yield", block.ops[-1].id, 0, number), value)
        return handed_on

    def step(self, op: Op) -> None:
        if op.regions:
            super().step(op)
        else:
            self.flat_step(op)
        for number, value in enumerate(op.results):
            self.keep(("result", op.id, 0, number), self.values[value])

    def flat_step(self, op: Op) -> None:
        """An op without regions, with what it does to buffers and to global memory."""
        read = [(value, self.values[value]) for value in read_buffers(op)]
        states = []
        for number, (value, buffer) in enumerate(read):
            buffer.asked = None
            states.append(BufferState(buffer.data[0].copy(), self.logical(value), self.writer_of(buffer).copy()))
            self.add(("buffer", op.id, 0, number), states[-1])
        written = [self.values[value] for value in written_buffers(op)]
        before = [buffer.defined.copy() for buffer in written]
        for buffer in written:
            buffer.defined[...] = False  # what is defined after the step is what the step wrote
        super().step(op)
        for (_, buffer), state in zip(read, states, strict=True):
            if buffer.asked is not None:
                state.window = tuple(np.broadcast_to(i, _full(buffer.asked))[0] for i in buffer.asked)
        for buffer, defined in zip(written, before, strict=True):
            # A copy that lands at its wait has written nothing yet; it will write the whole buffer.
            here = buffer.defined[0] if buffer.defined.any() else np.ones(buffer.defined.shape[1:], bool)
            self.writer_of(buffer)[here] = len(self.recording.writers)
            self.recording.writers.append(op.id)
            buffer.defined |= defined
        for value in written_views(op):
            view = self.values[value]
            mask = self.values[op.operands[2]] if op.name == "st_global" and len(op.operands) > 2 else None
            self.recording.stores.append(Stored(op.id, view, mask))
        if op.name == "shared":
            self.add(("place", op.id, 0, 0), op.attributes["offset"])
        elif op.name == "stage":
            allocated = allocation(op.result).defining_op
            assert allocated is not None, op
            before = int(self.integers(self.values[op.operands[1]])[0]) * buffer_layout(op.result.type).bytes
            self.add(("place", op.id, 0, 0), allocated.attributes["offset"] + before)
        elif op.name == "window":
            self.add(("place", op.id, 0, 0), _distance(self.values[op.result]))

    def keep(self, key: Key, value: Any) -> None:
        if key in self.wanted:
            self.recording.events.append((key, np.asarray(value)[0]))

    def add(self, key: Key, payload: Any) -> None:
        if key in self.wanted:
            self.recording.events.append((key, payload))

    def buffer(self, shape: tuple[int, ...], type_: BufferType) -> values.Buffer:
        plain = super().buffer(shape, type_)
        return _Buffer(plain.dtype, plain.data, plain.defined)

    def writer_of(self, buffer: values.Buffer) -> Array:
        return self.writer.setdefault(buffer, np.full(buffer.defined.shape[1:], NOBODY))

    def logical(self, value: Value) -> tuple[Any, ...]:
        """All logical elements of a buffer: what an op reads that asks for no window."""
        return tuple(slice(size) for size in int_shape(value.type))


def _full(index: tuple[Array, ...]) -> tuple[int, ...]:
    return np.broadcast_shapes(*(i.shape for i in index))


def _distance(view: values.View) -> int:
    """Elements from the tensor's first to the window's."""
    data = view.tensor.data
    return sum(int(at[0]) * (step // data.itemsize) for at, step in zip(view.offsets, data.strides, strict=True))
