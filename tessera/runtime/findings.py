"""Findings: what the emulator saw, in the author's terms.

A fault knows a line of the emitted text, bytes of the shared block and positions of arguments. The emitter's table
leads from a line to the op that it says and so to the author's line; a shared byte belongs to a buffer that lies there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tessera.codegen_cuda.emit import CudaKernel
from tessera.ir.core import Kernel, Op
from tessera.ir.layout_shared import SharedLayout
from tessera.ir.stages import allocated_bytes, allocation, stage_count
from tessera.ir.types import BARRIER_BYTES, ViewType
from tessera.runtime.emulator import Fault
from tessera.target.schedule import root

_TOKEN = re.compile(r"\{(line|shared|argument) (\d+)\}")
_ARGUMENT = re.compile(r"\{argument (\d+)\}")


@dataclass(frozen=True)
class Finding:
    """Something wrong with an emitted kernel, once per kind and line.

    `kind` is one of the emulator's, or "wrong-value". `file`, `line`, `column` are the author's ("" and 0 where the
    fault has no place); `op` is the Target op that the CUDA line `cuda_line` says. `block` and `thread` are those of
    the first occurrence of `count`.
    """

    kind: str
    message: str
    file: str
    line: int
    column: int
    op: str
    cuda_line: int
    block: tuple[int, int, int]
    thread: int
    count: int = 1

    def __str__(self) -> str:
        return f"{self.kind}: {self.message} ({self.file}:{self.line})"


def findings_of(faults: Iterable[Fault], cuda: CudaKernel, kernel: Kernel) -> list[Finding]:
    """The faults of a launch of `cuda`, emitted from the Target `kernel`, merged by kind and line."""
    places = Places(cuda, kernel)
    found: dict[tuple[str, int], Finding] = {}
    for fault in faults:
        key = fault.kind, fault.line
        known = found.get(key)
        found[key] = replace(known, count=known.count + 1) if known else places.finding(fault)
    return list(found.values())


class Places:
    """Where the lines of an emitted text, the bytes of its shared block and its arguments come from."""

    def __init__(self, cuda: CudaKernel, kernel: Kernel):
        self.cuda, self.kernel = cuda, kernel
        self.ops = {op.id: op for op in kernel.body.walk()}
        self.rings = [op for op in kernel.body.walk() if op.name == "ring"]
        self.buffers = [
            op for op in kernel.body.walk() if op.name == "shared" and op.attributes.get("offset") is not None
        ]
        self.arguments = (*cuda.pointers, *(each.parameter for each in cuda.maps), *cuda.sizes, *cuda.scalars)

    def finding(self, fault: Fault) -> Finding:
        op, cuda_line = self.op_at(fault.line), fault.line
        if fault.kind == "unwritten" and (output := _ARGUMENT.search(fault.message)):
            # Nobody was there: the place is where the others were written.
            op = last_store(self.kernel, self.arguments[int(output[1])])
            cuda_line = min((n for n, i in self.cuda.lines.items() if op is not None and i == op.id), default=0)
        where = op.loc if op is not None and op.loc is not None else self.kernel.loc
        message = _TOKEN.sub(lambda m: self.name(m[1], int(m[2]), op), fault.message)
        subject = f"thread {fault.thread} of block {fault.block} " if fault.thread >= 0 else ""
        if fault.kind == "assertion":  # names its program and place itself
            subject = ""
        file, line, column = (where.file, where.line, where.column) if where is not None else ("", 0, 0)
        name = op.name if op is not None else ""
        return Finding(
            fault.kind, subject + message, file, line, column, name, cuda_line, fault.block, fault.thread
        )  # fmt: skip

    def op_at(self, line: int) -> Op | None:
        """The op that a line of the text says."""
        return self.ops.get(self.cuda.lines.get(line, -1))

    def name(self, what: str, number: int, op: Op | None) -> str:
        if what == "argument":
            return f"'{self.arguments[number]}'" if number < len(self.arguments) else f"argument {number}"
        if what == "shared":
            return self.shared_name(number, op)
        other = self.op_at(number)
        if other is None or other.loc is None:
            return f"line {number} of the CUDA text"
        place = other.loc.file.replace("\\", "/").rsplit("/", 1)[-1]
        return f"{place}:{other.loc.line} ({other.name})"

    def shared_name(self, byte: int, op: Op | None) -> str:
        """The element of a buffer at a byte of the shared block; where several share it, the one that `op` uses."""
        holding = [buffer for buffer in self.buffers if 0 <= byte - buffer.attributes["offset"] < _bytes(buffer)]
        touched = {allocation(value) for value in op.operands} if op is not None else set()
        used = [buffer for buffer in holding if buffer.result in touched]
        if not holding:
            return self._barrier_name(byte) or f"shared byte {byte}"
        buffer = (used or holding)[0]
        layout, offset = buffer.attributes["layout"], byte - buffer.attributes["offset"]
        name = f"'{buffer.result.name}'" if buffer.result.name else "a shared buffer"
        if stage_count(buffer.result) > 1:
            name, offset = f"stage {offset // layout.bytes} of {name}", offset % layout.bytes
        element = _element(layout, offset)
        return f"{name}[{element[0]}, {element[1]}]" if element else f"byte {offset} of {name}"

    def _barrier_name(self, byte: int) -> str | None:
        """The barrier of a ring that begins at a byte of the shared block."""
        for ring in self.rings:
            number, rest = divmod(byte - ring.attributes["offset"], BARRIER_BYTES)
            stages = ring.attributes["stages"]
            if not rest and 0 <= number < 2 * stages:
                return f"'{ring.result.name}' ({'full' if number < stages else 'empty'}, slot {number % stages})"
        return None


def last_store(kernel: Kernel, name: str) -> Op | None:
    """The last op of a kernel that writes a parameter."""
    found = None
    for op in kernel.body.walk():
        for effect, value in op.definition.effects_of(op):
            if effect != "reads" and isinstance(value.type, ViewType) and root(value).name == name:
                found = op
    return found


def _bytes(buffer: Op) -> int:
    return allocated_bytes(buffer) if isinstance(buffer.attributes["layout"], SharedLayout) else 0


def _element(layout: SharedLayout, offset: int) -> tuple[int, int] | None:
    """Row and column of the element that holds a byte of a buffer."""
    for row in range(layout.rows):
        for column in range(layout.cols):
            if 0 <= offset - layout.offset(row, column) < layout.itemsize:
                return row, column
    return None
