"""Ways to break an emitted kernel: edits of its CUDA text that keep every line, and what must be found then.

A place of the text is given by the op that it says and a pattern, never by a number, so that a change of the compiler
moves a mutation along or makes it fail loudly: an edit that matches nothing is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tessera.codegen_cuda.emit import CudaKernel
from tessera.compiler import Compilation, compile_kernel
from tessera.ir.core import Kernel
from tests import suite
from tests.passes.test_pipeline import arguments_of

Dims = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Edit:
    """Replaces a pattern in one statement of the text: that of the `number`-th op called `op`.

    `op` is the name of a Target op, followed by that of a result where this tells ops apart ("ldmatrix b"); "" stands
    for the lines of no op (layouts, the signature). `find` is a regular expression over the statement's lines without
    its comment and without the statements inside it; every match is replaced, or the first `count`.
    """

    op: str
    find: str
    replace: str
    number: int = 0
    count: int = 0


@dataclass(frozen=True)
class Mutation:
    """`kinds` and `ops` are what a finding may be and where, `at` is a piece of the author's line that it must name.

    `launch` replaces fields of the launch, as the shared bytes. `full`: only runs with `-m full`, being of a kind that
    another one stands for.
    """

    name: str
    kernel: str
    dims: Dims
    edits: tuple[Edit, ...]
    kinds: tuple[str, ...]
    ops: tuple[str, ...]
    at: str
    launch: Mapping[str, int] = field(default_factory=dict, hash=False)
    full: bool = False


def mutation(
    name: str,
    kernel: str,
    dims: Mapping[str, int],
    edits: Edit | list[Edit],
    kinds: str,
    ops: str,
    at: str,
    full: bool = False,
    **launch: int,
) -> Mutation:
    """A mutation; several kinds, or several ops, are separated by spaces."""
    several = (edits,) if isinstance(edits, Edit) else tuple(edits)
    return Mutation(
        name, kernel, tuple(dims.items()), several, tuple(kinds.split()), tuple(ops.split()), at, launch, full
    )


@cache
def compiled(kernel: str, dims: Dims) -> Compilation:
    return compile_kernel(suite.load(kernel), dict(dims))


def source_kernel(compilation: Compilation) -> Kernel:
    return compilation.stages[0].module.kernel()


def arguments(kernel: str, dims: Dims) -> dict[str, Any]:
    return arguments_of(source_kernel(compiled(kernel, dims)), dict(dims))


def mutated(compilation: Compilation, edits: tuple[Edit, ...], launch: Mapping[str, int] | None = None) -> Compilation:
    """The compilation with an edited text, whose table of lines stays as it was."""
    (cuda,) = compilation.cuda
    rows = cuda.text.split("\n")
    for edit in edits:
        apply(edit, rows, statement(cuda, compilation.target.kernel(), edit.op, edit.number))
    changed = dataclasses.replace(cuda, text="\n".join(rows), **(launch or {}))
    assert changed != cuda, "nothing was changed"
    return dataclasses.replace(compilation, cuda=[changed])


def apply(edit: Edit, rows: list[str], places: list[int]) -> None:
    """Edits the rows at `places`, as one text, in place."""
    before = "\n".join(rows[place] for place in places)
    after, matches = re.subn(edit.find, edit.replace, before, count=edit.count)
    assert matches and after != before, f"{edit} matches nothing in:\n{before}"
    changed = after.split("\n")
    assert len(changed) == len(places), f"{edit} changes the number of lines"
    for place, row in zip(places, changed, strict=True):
        rows[place] = row


def statement(cuda: CudaKernel, kernel: Kernel, op: str, number: int = 0) -> list[int]:
    """Positions of the rows that one op says, in the order of the text."""
    rows = cuda.text.split("\n")
    if not op:
        return [i for i in range(len(rows)) if i + 1 not in cuda.lines]
    name, _, result = op.partition(" ")
    found = [
        each
        for each in kernel.body.walk()
        if each.name == name and (not result or result in [value.name for value in each.results])
    ]
    assert number < len(found), f"there are {len(found)} ops '{op}'"
    chosen = found[number].id
    return [i for i, row in enumerate(rows) if cuda.lines.get(i + 1) == chosen and not row.lstrip().startswith("//")]


def author_line(compilation: Compilation, at: str) -> tuple[str, int]:
    """File and 1-based number of the line, from the kernel's on, where a piece of text ends for the first time."""
    loc = source_kernel(compilation).loc
    assert loc is not None
    text = Path(loc.file).read_text(encoding="utf-8")
    start = sum(len(line) for line in text.splitlines(keepends=True)[: loc.line - 1])
    found = text.find(at, start)
    found = text.find(at) if found < 0 else found
    assert found >= 0, f"{loc.file} does not hold {at!r}"
    return loc.file, text.count("\n", 0, found + len(at)) + 1
