"""Compares what the emitted CUDA wrote and printed with the interpreter, and finds where a difference comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.codegen_cuda.emit import CudaKernel
from tessera.dtypes import from_numpy
from tessera.ir.bounds import Bar
from tessera.ir.core import Op
from tessera.ir.ops.effects import format_pieces
from tessera.runtime.compare import check
from tessera.runtime.emulator_twin import EmulatorBuildError
from tessera.runtime.findings import Finding, last_store

if TYPE_CHECKING:
    from tessera.runtime.check import Block, Examiner, Run

WRONG_VALUE = "wrong-value"

Place = tuple[Op, CudaKernel] | None


@dataclass(frozen=True)
class Expected:
    """What is right: `exact` arrays bit for bit, others within `bars`; the lines that are printed, in program order.

    `atomic` names the outputs that programs update together.
    """

    exact: Mapping[str, np.ndarray]
    bars: Mapping[str, Bar] = field(default_factory=dict)
    printed: Sequence[str] = ()
    atomic: set[str] = field(default_factory=set)


def wrong(examiner: Examiner, expected: Expected, run: Run) -> list[Finding]:
    """A finding for every output that is not right, and one when the printed lines are not."""
    found = []
    for name, array in expected.exact.items():
        differs = differences(array, run.arrays[name])
        if examiner.sampled:
            differs &= run.written.get(name, np.zeros(array.shape, bool))
        if differs.any():
            found.append(_wrong_element(examiner, name, array, run, differs))
    for name, bar in expected.bars.items():
        comparison = check(run.arrays[name], bar)
        if not comparison.ok:
            element = _element(name, comparison.worst_index)
            message = f"{element} is off by {comparison.max_error:.3g}, more than its bound of {comparison.bound:.3g}"
            found.append(_at(_last_store(examiner, name), message))
    if not examiner.sampled:
        found += _wrong_lines(examiner, expected.printed, run)
    return found


def differences(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Where two arrays of one shape differ in bits; two NaN are the same whatever their bits."""
    unsigned = f"u{expected.dtype.itemsize}"
    differs = np.ascontiguousarray(expected).view(unsigned) != np.ascontiguousarray(actual).view(unsigned)
    dtype = from_numpy(expected.dtype)
    if dtype is not None and dtype.is_float:
        differs &= ~(np.isnan(expected) & np.isnan(actual))
    return differs


def _wrong_element(examiner: Examiner, name: str, expected: np.ndarray, run: Run, differs: np.ndarray) -> Finding:
    index = tuple(int(i) for i in np.argwhere(differs)[0])
    actual = run.arrays[name]
    mine, other = _texts(actual[index], expected[index])
    count, size = int(differs.sum()), int(differs.size)
    rest = f" ({count} of {size} elements differ)" if count > 1 else ""
    message = f"{_element(name, index)} is {mine}, and the interpreter computes {other}{rest}"
    block = _guilty_block(examiner, name, index, expected, run.seed)
    finding = _at(_last_store(examiner, name), message, block or (0, 0, 0))
    return finding if block is None else _traced(examiner, finding, run.seed)


def _traced(examiner: Examiner, finding: Finding, seed: int) -> Finding:
    """The finding at the first op of its block that goes wrong, where that can be told."""
    from tessera.runtime.probes import locate

    try:
        grid = examiner.launches[0].grid
        culprit = locate(examiner.compilation, examiner.fresh(seed), examiner.dims, finding.block, seed, grid)
    except EmulatorBuildError:  # the finding must not be lost for text that cannot take the probes
        return finding
    if culprit is None or culprit.loc is None:
        return finding
    loc = culprit.loc
    message = f"{finding.message}; {culprit.message}"
    return replace(
        finding, message=message, file=loc.file, line=loc.line, column=loc.column, op=culprit.name,
        cuda_line=culprit.cuda_line,
    )  # fmt: skip


def _guilty_block(
    examiner: Examiner, name: str, index: tuple[int, ...], expected: np.ndarray, seed: int
) -> Block | None:
    """A block that writes the wrong value to an element when it runs alone; None when no block does so by itself."""
    if len(examiner.launches) != 1:
        return None
    launch = examiner.launches[0]
    blocks = list(launch.blocks) if launch.blocks is not None else list(_all_blocks(launch.grid))

    def writes(some: Sequence[Block]) -> bool:
        run = examiner.run(seed, blocks=some)
        mask = run.written.get(name)
        return mask is not None and bool(mask[index] and differences(expected, run.arrays[name])[index])

    while len(blocks) > 1:
        half = blocks[: len(blocks) // 2]
        blocks = half if writes(half) else blocks[len(half) :]
    return blocks[0] if writes(blocks) else None


def _all_blocks(grid: Sequence[int]) -> Iterator[Block]:
    x, y, z = (*grid, 1, 1)[:3]
    return ((i, j, k) for k in range(z) for j in range(y) for i in range(x))


def _wrong_lines(examiner: Examiner, expected: Sequence[str], run: Run) -> list[Finding]:
    """Programs print in order under seed 0; under another only which lines are printed is fixed."""
    wanted, got = ("\n".join(lines).splitlines() for lines in (expected, run.printed))
    if run.seed:
        wanted, got = sorted(wanted), sorted(got)
    if wanted == got:
        return []
    place = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
    mine, other = (repr(lines[place]) if place < len(lines) else "nothing" for lines in (got, wanted))
    line = (wanted if place < len(wanted) else got)[place]
    return [_at(_print_of(examiner, line), f"prints {mine}, and the interpreter prints {other}")]


def _print_of(examiner: Examiner, line: str) -> Place:
    """The print whose format fits a line, else the first."""
    prints = [(op, text) for op, text in _target_ops(examiner) if op.name == "print"]
    for op, text in prints:
        pieces = format_pieces(op.attributes["format"])
        if re.search(".*".join("" if piece is None else re.escape(piece) for piece in pieces) + "$", line):
            return op, text
    return prints[0] if prints else None


def _last_store(examiner: Examiner, name: str) -> Place:
    """The last op that writes a parameter, in the last launch that does."""
    stores = [(last_store(launch.kernel, name), launch.text) for launch in examiner.launches]
    return next(((op, text) for op, text in reversed(stores) if op is not None), None)


def _target_ops(examiner: Examiner) -> Iterator[tuple[Op, CudaKernel]]:
    for launch in examiner.launches:
        for op in launch.kernel.body.walk():
            yield op, launch.text


def _element(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]"


def _texts(actual: Any, expected: Any) -> tuple[str, str]:
    """Two numbers that differ, as texts that differ."""
    texts = tuple(f"{float(number):.9g}" if _is_float(number) else str(number) for number in (actual, expected))
    return texts[0], texts[1]


def _is_float(number: Any) -> bool:
    dtype = from_numpy(np.asarray(number).dtype)
    return dtype is not None and dtype.is_float


def _at(place: Place, message: str, block: Block = (0, 0, 0)) -> Finding:
    op, text = place or (None, None)
    loc = op.loc if op is not None else None
    lines = [line for line, identifier in text.lines.items() if op is not None and identifier == op.id] if text else []
    file, line, column = (loc.file, loc.line, loc.column) if loc is not None else ("", 0, 0)
    return Finding(WRONG_VALUE, message, file, line, column, op.name if op else "", min(lines, default=0), block, -1)
