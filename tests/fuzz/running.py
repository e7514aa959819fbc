"""What must hold for a program on every lane, and how twenty of them share one build of the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tessera as ts
from tessera import Tensor, tile
from tessera.codegen_cuda.emit import CudaKernel
from tessera.compiler import Compilation, compile_kernel
from tessera.errors import TesseraError
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.document import execute, parse_document
from tessera.frontend.grid import launch_grid
from tessera.ir.printer import print_module
from tessera.passes import PIPELINE
from tessera.runtime import emulator
from tessera.runtime.compare import check
from tessera.runtime.reference import reference
from tessera.target.schedule import Schedule
from tests.fuzz.vocabulary import Program
from tests.passes.test_pipeline import arguments_of, outputs_of
from tests.text_law import held_to_its_text

PRELUDE = {"ts": ts, "tile": tile, "Tensor": Tensor}
SEEDS = (0, 7)  # 0: blocks and warps in order; any other: in a random order


@dataclass(frozen=True)
class Ready:
    """A compiled program and what the interpreter says that it writes."""

    program: Program
    compilation: Compilation
    expected: dict[str, np.ndarray]


def defined(program: Program, name: str) -> KernelDefinition:
    return execute(parse_document(f"{name}.py", program.source(name)), PRELUDE)[name]


def compiled(program: Program, name: str) -> Compilation:
    """The program through the pipeline; where its tiles cannot be cut, only its schedule's warps count."""
    definition = defined(program, name)
    try:
        return compile_kernel(definition, program.dims, schedule=program.schedule)
    except TesseraError as error:
        if program.schedule is None or error.code != "TS501":
            raise
        return compile_kernel(definition, program.dims, schedule=Schedule(program.schedule.warps))


def prepared(program: Program, name: str = "program") -> Ready:
    """Compiles and interprets a program, and holds it to every law that needs no build."""
    compilation = compiled(program, name)
    assert [stage.name for stage in compilation.stages] == ["frontend", *(p.name for p in PIPELINE)]
    kernel = compilation.stages[0].module.kernel()
    expected = outputs_of(kernel, program.dims, "tile")
    before = ""
    for number, stage in enumerate(compilation.stages):
        # Parsing takes most of the time: a third of the stages of each program; which third depends on its text.
        due = stage.name == "frontend" or number % 3 == len(program.text) % 3
        text = held_to_its_text(stage.module, stage.name) if due else print_module(stage.module)
        if text != before and stage.name != "frontend":
            assert_same(expected, outputs_of(stage.module.kernel(), program.dims, stage.module.level), stage.name)
        before = text
    for output, bar in reference(kernel, arguments_of(kernel, program.dims), program.dims).items():
        # The rule about the RMS of an array is for outputs of one scale; a random program may well cancel itself out.
        result = check(expected[output], bar)
        assert result.fraction_bad == 0, f"{output} is outside of its bars: {result}"
    return Ready(program, compilation, expected)


def emulate(batch: Sequence[Ready]) -> None:
    """Examines the emitted CUDA of all programs, built as one unit, in several orders of warps and blocks."""
    texts = [ready.compilation.cuda[0] for ready in batch]
    library = emulator.build(joined(texts), [text.name for text in texts])
    for ready, text in zip(batch, texts, strict=True):
        try:
            for seed in SEEDS:
                assert_same(ready.expected, run(library, ready, text, seed), f"the emitted CUDA, seed {seed},")
        except Exception as error:
            error.add_note(f"{ready.program}\n{text.text}") if hasattr(error, "add_note") else None
            raise


def joined(texts: Sequence[CudaKernel]) -> str:
    """One text of several: each in a namespace, since all name their layouts alike."""
    spaces = [f"namespace of_{t.name} {{\n{t.text}\n}}\nusing of_{t.name}::{t.name};" for t in texts]
    # The header comes first, outside of every namespace; including it again does nothing.
    bounds = ("max_threads", "min_blocks", "cluster")
    limits = [f"using of_{t.name}::ts_twin_{bound}_{t.name};" for t in texts for bound in bounds]
    return "\n".join(['#include "tessera_device.h"', *spaces, *limits])


def run(library: emulator.Library, ready: Ready, text: CudaKernel, seed: int) -> dict[str, Any]:
    kernel, dims = ready.compilation.target.kernel(), ready.program.dims
    arguments = arguments_of(ready.compilation.stages[0].module.kernel(), dims)
    values = [
        *(arguments[name] for name in text.pointers),
        *(dims[name] for name in text.sizes),
        *(arguments[name] for name in text.scalars),
    ]
    # An output whose every element the interpreter writes must be written; random masks may leave others as they were.
    roles = dict(kernel.attributes["parameters"])
    whole = {n for n, array in ready.expected.items() if roles[n] == "out" and not _is_nan(array).any()}
    outputs = [position for position, name in enumerate(text.pointers) if name in whole]
    grid = launch_grid(kernel, dims)
    found = library.examine(text.name, grid, text.threads, text.shared_bytes, values, seed, outputs=outputs)
    assert not found.count, f"{text.name}, seed {seed}: {found.faults[0]}"
    return {name: arguments[name] for name in ready.expected}


def assert_same(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray], what: str) -> None:
    """Equal in every bit, but for the bits of a NaN."""
    for name, array in expected.items():
        unsigned = np.dtype(f"u{array.dtype.itemsize}")
        other = actual[name]
        same = (array.view(unsigned) == other.view(unsigned)) | (_is_nan(array) & _is_nan(other))
        if not same.all():
            place = tuple(int(i) for i in np.argwhere(~same)[0])
            raise AssertionError(
                f"{what} changed {name} at {place}: {array[place]!r} became {other[place]!r} "
                f"({int((~same).sum())} of {same.size} elements differ)"
            )


def _is_nan(array: np.ndarray) -> np.ndarray:
    return np.isnan(array.astype(np.float32)) if array.dtype.kind not in "iub" else np.zeros(array.shape, bool)
