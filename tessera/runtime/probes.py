"""Names the op whose emitted CUDA goes wrong: the first, in program order, that holds other bits than the interpreter.

One block runs on the CPU twin with a call behind every op, which records what each thread holds; the Target
interpreter runs the same program and keeps the same values. Where an op reads wrong values from a shared buffer whose
bytes are wrong already, the op that wrote them is named. Where all registers agree and an output does not, it is the
store. The control flow of thread 0 is compared as well: an iteration too many is its loop's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from tessera.codegen_cuda.emit import CudaKernel
from tessera.compiler import Compilation
from tessera.dtypes import from_numpy, from_storage
from tessera.ir.compare import hint_of
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.ops.effects import order_dependent
from tessera.ir.types import BufferType
from tessera.location import Loc
from tessera.runtime import emulator, execute
from tessera.runtime.interpreter_setup import bind_dims, grid_of
from tessera.runtime.probes_recorder import NOBODY, BufferState, Recording, Stored, record
from tessera.runtime.probes_records import Records, Wrong, wrong_element, wrong_elements, wrong_register
from tessera.runtime.probes_text import Probe, instrument, probes_of, root_of

__all__ = ["Comparison", "Culprit", "compare_block", "instrument", "locate"]

Array = np.ndarray


@dataclass(frozen=True)
class Culprit:
    """The op that went wrong, and the first wrong number.

    `op` is the id of the Target op and `name` its name; `value` names the result, buffer or tensor that is wrong; `loc`
    is the author's place and `cuda_line` the first line of the op's statement (1-based, 0: it has none). `element` are
    coordinates in the tile, buffer or tensor; `thread` and `register` are -1 for a number that is not in a register.
    """

    op: int
    name: str
    value: str
    loc: Loc | None
    cuda_line: int
    element: tuple[int, ...]
    thread: int
    register: int
    got: float | int | None
    expected: float | int | None
    message: str


def locate(
    compilation: Compilation,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    block: tuple[int, int, int],
    seed: int = 0,
    grid: tuple[int, ...] | None = None,
) -> Culprit | None:
    """The first op of a block that differs from the Target interpreter; None when the block alone makes no difference.

    `arguments` (arrays and numbers by parameter name) stay as they are. The text in `compilation.cuda` may have been
    changed since it was emitted, as long as it kept the number of its lines. `seed` is the emulator's, `grid` that of
    the launch where it is not the kernel's own.

    Raises EnvironmentProblem TS507 without a C++ compiler, and what the interpreter raises for a wrong program.
    """
    return next(compare_block(compilation, arguments, dims, block, seed, grid).culprits(), None)


def compare_block(
    compilation: Compilation,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    block: tuple[int, int, int],
    seed: int = 0,
    grid: tuple[int, ...] | None = None,
) -> Comparison:
    """Runs one block on the twin and one program on the interpreter; see `locate`."""
    assert compilation.program is not None
    cuda, kernel = compilation.cuda[0], compilation.target.kernel()
    probes = probes_of(cuda, kernel)
    before = {name: value.copy() for name, value in arguments.items() if isinstance(value, np.ndarray)}

    def outputs() -> dict[str, Array]:
        """The arrays as they are now, which then get their contents back."""
        found = {name: arguments[name].copy() for name in before}
        for name, array in before.items():
            if arguments[name].flags.writeable:
                arguments[name][...] = array
        return found

    extents = grid_of(kernel, bind_dims(kernel, dims), grid)
    recording = record(kernel, arguments, dims, block, {probe.key for probe in probes}, extents)
    expected = outputs()
    step = compilation.program.launches[0]
    examination = emulator.build(instrument(cuda, kernel), [cuda.name]).examine(
        cuda.name,
        extents,
        cuda.threads,
        cuda.shared_bytes,
        execute.emulated_arguments(compilation.program, step, arguments, dims),
        seed,
        blocks=[block],
        probe=True,
    )
    records = Records.read(examination.probes)
    return Comparison(
        cuda,
        kernel,
        probes,
        records,
        recording,
        expected,
        outputs(),
        arguments,
        not examination.count and records.whole,
    )


@dataclass(frozen=True)
class Comparison:
    """A block on the twin beside its program on the interpreter.

    `expected` and `written` are the arrays after them. `whole`: the twin came to the end of the block.
    """

    cuda: CudaKernel
    kernel: Kernel
    probes: list[Probe]
    records: Records
    recording: Recording
    expected: dict[str, Array]
    written: dict[str, Array]
    arguments: Mapping[str, Any]
    whole: bool

    def culprits(self, strict: bool = False) -> Iterator[Culprit]:
        """Every difference in program order; `strict` counts buffers too whose wrong bytes lead to right registers."""
        found = False
        spoiled: dict[int, Culprit] = {}  # by the op that reads the buffer
        for event, place in zip_longest(self.recording.events, self.records.order):
            key, payload = event or (None, None)
            met = self.probes[place[0]] if place else None
            if met is None and not self.whole:
                return
            if met is None or met.key != key:
                expected = next((probe for probe in self.probes if probe.key == key), None)
                yield self.astray(met, expected)
                return
            culprit = None
            threads, chunks = self.records.held[place]
            if met.kind == "buffer":
                spoiled.pop(met.op.id, None)
                wrote = self.spoiled_buffer(met, payload, chunks[0])
                if wrote is not None and (strict or not met.op.results):
                    culprit = wrote
                elif wrote is not None:
                    spoiled[met.op.id] = wrote
            elif met.kind == "place":
                culprit = self.misplaced(met, payload, threads, chunks)
            else:
                wrong = wrong_register(met.value.type, payload, threads, chunks)
                if wrong is not None:
                    culprit = spoiled.get(met.op.id) or self.register(met, wrong)
            if culprit is not None:
                found = True
                yield culprit
        if not found:
            yield from self.wrong_outputs()

    # each kind of difference -----------------------------------------------------------------------------------------

    def register(self, probe: Probe, wrong: Wrong) -> Culprit:
        name = self.called(probe.value)
        title, right = _title(probe.op, name), f"{name or 'it'} is {_text(wrong.expected)}"
        if wrong.got is None:
            message = f"{title} has another size than its type says"
        elif wrong.element:
            right = f"{name or 'element '}{list(wrong.element)} is {_text(wrong.expected)}"
            where = f"register {wrong.register} of thread {wrong.thread}"
            message = f"{title}: {where} holds {_text(wrong.got)} where {right}"
        else:
            message = f"{title}: thread {wrong.thread} holds {_text(wrong.got)} where {right}"
        return self.culprit(probe.op, name, wrong, message)

    def misplaced(self, probe: Probe, expected: int, threads: list[int], chunks: list[bytes]) -> Culprit | None:
        for thread, chunk in zip(threads, chunks, strict=True):
            got = int.from_bytes(chunk, "little", signed=True)
            if got != expected:
                name = self.called(probe.value)
                if isinstance(probe.value.type, BufferType):
                    message = f"begins at byte {got} of shared memory, where {expected} is right"
                else:
                    tensor = root_of(probe.value).name
                    message = f"begins {got} elements behind the first of '{tensor}', where {expected} is right"
                wrong = Wrong((), thread, -1, got, expected)
                return self.culprit(probe.op, name, wrong, f"{_title(probe.op, name)} {message}")
        return None

    def spoiled_buffer(self, probe: Probe, state: BufferState, data: bytes) -> Culprit | None:
        """The op that wrote the first wrong element of a buffer, or the reader where none did."""
        differs, got, want = wrong_elements(probe.value.type, state, data)
        if not differs.any():
            return None
        wrong = wrong_element(probe.value.type, differs, got, want)
        writer = int(state.writer[wrong.element])
        op = probe.op if writer == NOBODY else self.op(self.recording.writers[writer])
        name = self.called(probe.value)
        element = f"{name or 'element '}{list(wrong.element)}"
        message = f"{element} is {_text(wrong.got)} in shared memory where it is {_text(wrong.expected)}"
        return self.culprit(op, name, wrong, f"{_title(op, name)}: {message}, when {probe.op.name} reads it")

    def astray(self, met: Probe | None, expected: Probe | None) -> Culprit:
        """Thread 0 and the interpreter go different ways: the op that decides is round one of the places alone."""
        mine, others = self.path(met), self.path(expected)
        shared = sum(1 for _ in _common(mine, others))
        further = (mine if len(mine) > shared else others)[shared:]
        op = further[0][0] if further else (met or expected).op  # type: ignore[union-attr]
        if len(mine) > shared and len(others) > shared and mine[shared][0] is others[shared][0]:
            message = "takes the other branch"
        elif op.name in ("for", "while"):
            message = "goes on with an iteration too many" if len(mine) > shared else "ends an iteration too early"
        else:
            message = "takes the other branch" if op.name == "if" else "is not where thread 0 is"
        name = self.called(op.results[0]) if op.results else ""
        return self.culprit(op, name, Wrong((), 0, -1, None, None), f"{_title(op, name)} {message}")

    def wrong_outputs(self) -> Iterator[Culprit]:
        """All registers are right and what was written is not."""
        loose = order_dependent(self.kernel)
        for name, expected in self.expected.items():
            dtype = from_numpy(expected.dtype)
            if name in loose or dtype is None:
                continue
            got = self.written[name]
            differs = got.view(f"u{dtype.bytes}") != expected.view(f"u{dtype.bytes}")
            if dtype.is_float:
                differs &= ~(np.isnan(from_storage(dtype, got)) & np.isnan(from_storage(dtype, expected)))
            if differs.any():
                element = tuple(int(i) for i in np.argwhere(differs)[0])
                numbers = [from_storage(dtype, np.asarray(array[element])).item() for array in (got, expected)]
                yield self.wrong_store(name, Wrong(element, -1, -1, *numbers))

    def wrong_store(self, name: str, wrong: Wrong) -> Culprit:
        stores = [s for s in reversed(self.recording.stores) if s.view.tensor.data is self.arguments[name]]
        covering = [store for store in stores if _covers(store, wrong.element)]
        meant = [store for store in covering if _stores(store, wrong.element)]
        chosen = (meant or covering or stores or self.recording.stores[-1:] or [None])[0]
        message = f"{name}{list(wrong.element)} is {_text(wrong.got)} where it is {_text(wrong.expected)}"
        if chosen is None:
            return self.culprit(self.kernel.body.ops[-1], name, wrong, f"no op stores to '{name}', yet {message}")
        op = self.op(chosen.op)
        return self.culprit(op, name, wrong, f"{_title(op, name)}: {message}")

    # names and places ------------------------------------------------------------------------------------------------

    def culprit(self, op: Op, value: str, wrong: Wrong, message: str) -> Culprit:
        rows = self.cuda.text.split("\n")
        lines = sorted(line for line, identifier in self.cuda.lines.items() if identifier == op.id)
        statement = [line for line in lines if not rows[line - 1].lstrip().startswith("//")]
        return Culprit(
            op.id, op.name, value, op.loc, (statement or lines or [0])[0], wrong.element, wrong.thread, wrong.register,
            wrong.got, wrong.expected, message,
        )  # fmt: skip

    def op(self, identifier: int) -> Op:
        return next(op for op in self.kernel.body.walk() if op.id == identifier)

    def called(self, value: Value) -> str:
        return hint_of(value.name)

    def path(self, probe: Probe | None) -> list[tuple[Op, int]]:
        """The ops, with the region of each, that lie round a place, the outermost first."""
        if probe is None:
            return []
        path = _path(self.kernel.body, probe.op) or []
        return [*path, (probe.op, probe.region)] if probe.kind == "argument" else path


def _path(block: Block, wanted: Op) -> list[tuple[Op, int]] | None:
    for op in block.ops:
        if op is wanted:
            return []
        for number, region in enumerate(op.regions):
            inside = _path(region, wanted)
            if inside is not None:
                return [(op, number), *inside]
    return None


def _common(a: list[tuple[Op, int]], b: list[tuple[Op, int]]) -> Iterator[None]:
    for one, other in zip(a, b, strict=False):
        if one[0] is not other[0] or one[1] != other[1]:
            return
        yield None


def _covers(store: Stored, element: tuple[int, ...]) -> bool:
    """Whether an element lies in the window of a store."""
    axes = zip(store.view.offsets, store.view.extents, element, strict=True)
    return all(int(offset[0]) <= place < int(offset[0]) + extent for offset, extent, place in axes)


def _stores(store: Stored, element: tuple[int, ...]) -> bool:
    """Whether the mask of a store holds for an element of its window."""
    if store.mask is None:
        return True
    axes = zip(store.view.offsets, element, store.view.kept, strict=True)
    return bool(store.mask[(0, *(place - int(offset[0]) for offset, place, kept in axes if kept))])


def _title(op: Op, name: str) -> str:
    return f"{op.name} '{name}'" if name else op.name


def _text(number: float | int | None) -> str:
    return f"{number:.9g}" if isinstance(number, float) else str(number)
