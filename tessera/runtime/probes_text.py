"""Where a kernel is probed, and a copy of its CUDA text with the calls that probe it.

A probe is a place of the text at which threads record a value; the interpreter knows what that value is. Probes are
listed in the order in which a thread meets them, and no call adds a line: every line keeps its number and its op.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tessera.codegen_cuda.emit import CudaKernel
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.types import BufferType, ScalarType, TileType, ViewType, buffer_layout

# "result" and "argument": registers of a tile or a scalar, that an op made or that a region starts with; "yield": what
# an iteration or a branch hands on; "buffer": the bytes of a shared buffer that an op is about to read; "place": how
# far the pointer of a window lies from its tensor's, in elements, or of a buffer from the start of shared memory.
Kind = Literal["result", "argument", "yield", "buffer", "place"]

HEADER = '#include "../tessera_twin_probe.h"'


@dataclass(frozen=True)
class Probe:
    """One place: the op, the IR value that is recorded there, and its number among the values of its kind and op.

    `region` is the one whose arguments are recorded. `line` (1-based) takes the call, at its start where `before`.
    """

    kind: Kind
    op: Op
    value: Value
    number: int
    region: int
    line: int
    before: bool
    call: str

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What the interpreter, which walks a copy of the kernel, calls the same place."""
        return (self.kind, self.op.id, self.region, self.number)


def probes_of(cuda: CudaKernel, kernel: Kernel) -> list[Probe]:
    """Every probe of a kernel; `kernel` is the one that `cuda` was emitted from. A call names a probe by its index."""
    return _Places(cuda, kernel).list()


def instrument(cuda: CudaKernel, kernel: Kernel) -> str:
    """The text of `cuda` with a call at each probe; lines keep their numbers.

    The text may have been changed since it was emitted, as long as it kept the number of its lines.
    """
    rows = cuda.text.split("\n")
    before: dict[int, str] = {}
    after: dict[int, str] = {}
    for index, probe in enumerate(probes_of(cuda, kernel)):
        side = before if probe.before else after
        call = probe.call.replace("(", f"({index}, ", 1)
        side[probe.line - 1] = f"{side.get(probe.line - 1, '')} {call};"
    for place, calls in before.items():
        rows[place] = f"{calls} {rows[place]}"
    for place, calls in after.items():
        # The semicolon ends a loop whose body is gone.
        rows[place] = f"{rows[place]}{'' if rows[place].endswith('{') else ' ;'}{calls}"
    return "\n".join([rows[0], HEADER, "#line 2", *rows[1:]])


class _Places:
    """Lists the probes of a kernel; lines of the text come from the table of `CudaKernel`."""

    def __init__(self, cuda: CudaKernel, kernel: Kernel):
        self.kernel = kernel
        self.names = cuda.variables
        self.lines: dict[int, list[int]] = {}
        for line, op in sorted(cuda.lines.items()):
            self.lines.setdefault(op, []).append(line)
        interleaves = (op for op in kernel.body.walk() if op.name == "interleave")
        self.in_parts = {inner.id for op in interleaves for inner in op.regions[0].ops}

    def list(self) -> list[Probe]:
        return list(self.block(self.kernel.body, None))

    def block(self, block: Block, owner: Op | None) -> Iterator[Probe]:
        for place, op in enumerate(block.ops):
            lines = self.said(op)
            if op.name == "yield":
                if lines and owner is not None:
                    for number, value in enumerate(owner.results):
                        yield from self.value("yield", op, value, number, 0, lines[-1])
                continue
            if lines is None:
                yield from self.silent(block, place)
                continue
            yield from self.read_buffers(op, lines[0])
            for region, body in enumerate(op.regions):
                opening = lines[region - len(op.regions) - 1]
                for number, value in enumerate(body.arguments):
                    yield from self.value("argument", op, value, number, region, opening)
                yield from self.block(body, op)
            if op.name != "interleave":  # whose results are recorded where its region makes them
                for number, value in enumerate(op.results):
                    yield from self.value("result", op, value, number, 0, lines[-1])

    def said(self, op: Op) -> list[int] | None:
        """The lines of an op; of one that is said part by part those of the last part, when its tiles are complete."""
        lines = self.lines.get(op.id)
        if lines is None or op.id not in self.in_parts:
            return lines
        first = next(i for i in reversed(range(len(lines))) if lines[i - 1] != lines[i] - 1 or i == 0)
        return lines[first:]

    def end(self, op: Op) -> int:
        """The last line of an op, regions included."""
        ops = (op, *(inner for region in op.regions for inner in region.walk()))
        return max(lines[-1] for o in ops if (lines := self.lines.get(o.id)))

    def silent(self, block: Block, place: int) -> Iterator[Probe]:
        """Results of an op that says nothing are recorded where the op before it ends or the next one begins."""
        op = block.ops[place]
        before = [self.end(o) for o in block.ops[:place] if o.id in self.lines and o.name != "shared"]
        after = [lines[0] for o in block.ops[place:] if (lines := self.said(o))]
        line = after[0] if after else before[-1] if before else 0
        if line:
            for number, value in enumerate(op.results):
                yield from self.value("result", op, value, number, 0, line, before=bool(after))

    def value(
        self, kind: Kind, op: Op, value: Value, number: int, region: int, line: int, before: bool = False
    ) -> Iterator[Probe]:
        name = self.names.get(value)
        if name is None:
            return
        type_ = value.type
        if isinstance(type_, ScalarType) or isinstance(type_, TileType) and type_.layout is not None:
            yield Probe(kind, op, value, number, region, line, before, f"ts_probe({name})")
        elif kind == "result" and isinstance(type_, ViewType) and op.name == "window":
            base = self.names[root_of(value)]
            yield Probe("place", op, value, number, region, line, before, f"ts_probe_distance({name}, {base})")
        elif kind == "result" and isinstance(type_, BufferType) and op.name == "shared":
            # This line ends in a comment; the next one begins another statement.
            yield Probe("place", op, value, number, region, line + 1, True, f"ts_probe_distance({name}, shared_base)")
        elif kind == "result" and op.name == "stage":
            yield Probe("place", op, value, number, region, line, before, f"ts_probe_distance({name}, shared_base)")

    def read_buffers(self, op: Op, line: int) -> Iterator[Probe]:
        for number, value in enumerate(read_buffers(op)):
            size = buffer_layout(value.type).bytes
            call = f"ts_probe_buffer({self.names[value]}, {size})"
            yield Probe("buffer", op, value, number, 0, line, True, call)


def root_of(view: Value) -> Value:
    """The parameter, or the element of a list, that a window is a part of."""
    while view.defining_op is not None and view.defining_op.name != "element":
        view = view.defining_op.operands[0]
    return view


def read_buffers(op: Op) -> list[Value]:
    """The shared buffers that an op reads."""
    return _touched(op, BufferType, "reads")


def written_buffers(op: Op) -> list[Value]:
    """The shared buffers that an op writes."""
    return _touched(op, BufferType, "writes")


def written_views(op: Op) -> list[Value]:
    """The windows that an op writes or accumulates into."""
    return _touched(op, ViewType, "writes", "accumulates")


def _touched(op: Op, kind: type, *effects: str) -> list[Value]:
    found = [value for effect, value in op.definition.effects_of(op) if effect in effects]
    return [value for value in dict.fromkeys(found) if isinstance(value.type, kind)]
