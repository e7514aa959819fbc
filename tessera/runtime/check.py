"""Examines a compiled kernel on this CPU: its emitted CUDA runs several times in adversarial orders, and is watched.

Each run has a seed. Seed 0 runs blocks and warps in order and lets asynchronous copies arrive at the last legal moment;
any other runs blocks, warps and lanes in a random order of its own and lets copies arrive at random legal moments. What
the emulator sees (races, reads too early, accesses outside) becomes a finding at the author's line. A run without any
is compared with the interpreter, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from tessera.codegen_cuda.emit import CudaKernel
from tessera.compiler import Compilation
from tessera.ir.core import Kernel
from tessera.ir.opdef import UNORDERED
from tessera.ir.ops.effects import order_dependent
from tessera.program import MAP_KINDS, Launch
from tessera.runtime import check_values, emulator, execute
from tessera.runtime.check_counters import Counted, by_place, total
from tessera.runtime.emulator import Examination, Library
from tessera.runtime.emulator_memory import Counters
from tessera.runtime.findings import Finding, findings_of
from tessera.runtime.interpreter_output import capture

SEEDS = (0, 1, 2)
FULL_GRID = 64  # a grid of at most so many blocks runs whole unless the caller says otherwise
SAMPLE = 8  # blocks that stand for a larger one
MOST = 1 << 31  # multiprocessors: enough for a block for every program
MODULUS = 256  # as emulator's: an address keeps its value modulo this

Block = tuple[int, int, int]
Blocks = int | Literal["all"] | None


@dataclass(frozen=True)
class Seen:
    """A finding, and the seeds of the runs that showed it."""

    finding: Finding
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class ExaminedLaunch:
    """A launch that was examined; `blocks` are those that ran, None for all of them."""

    name: str
    grid: tuple[int, ...]
    threads: int
    shared_bytes: int
    blocks: tuple[Block, ...] | None

    @property
    def blocks_total(self) -> int:
        return int(np.prod(self.grid, dtype=np.int64))

    @property
    def blocks_run(self) -> int:
        return self.blocks_total if self.blocks is None else len(self.blocks)


@dataclass(frozen=True)
class Report:
    """What an examination found.

    `counters` and `totals` are those of the run of `seeds[0]`; `compared` names the outputs that were compared bit for
    bit, `bounded` those whose bits no order fixes, compared within error bars; `notes` say what was left out, and why.
    """

    kernels: tuple[ExaminedLaunch, ...]
    seeds: tuple[int, ...]
    findings: tuple[Seen, ...]
    counters: tuple[Counted, ...]
    totals: Counters
    compared: tuple[str, ...]
    bounded: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def sampled(self) -> bool:
        return any(launch.blocks is not None for launch in self.kernels)


def examine_kernel(
    compilation: Compilation,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    seeds: Sequence[int] = SEEDS,
    blocks: Blocks = None,
    sample_seed: int = 0,
) -> Report:
    """Runs the emitted CUDA once per seed and compares what it writes with the first stage of the compilation.

    `arguments`: arrays and numbers by parameter name, which stay as they are; outputs should be poisoned. `dims` binds
    every dim. `blocks`: how many blocks of a grid to run at most (see `sample_blocks`), "all", or None for all of a
    small grid and a sample of a large one.

    Raises EnvironmentProblem TS507 without a C++ compiler, and what the interpreter raises for a program that is wrong
    in itself, whatever it compiles to.
    """
    start = time.perf_counter()
    examiner = Examiner(compilation, arguments, dims, blocks, sample_seed)
    expected = examiner.expect()
    seen: dict[tuple[Any, ...], Seen] = {}
    counted: list[Counted] = []
    notes: list[str] = []
    for number, seed in enumerate(seeds):
        run = examiner.run(seed, count=number == 0)
        found = run.findings or check_values.wrong(examiner, expected, run)
        for finding in found:
            key = (finding.kind, finding.file, finding.line, finding.op)
            before = seen.get(key)
            seen[key] = Seen(finding, (seed,)) if before is None else replace(before, seeds=(*before.seeds, seed))
        counted += run.counted
        if number == 0 and run.findings:
            notes.append("the counts are incomplete: a block stops at its first finding")
    return Report(
        tuple(examiner.describe(launch) for launch in examiner.launches),
        tuple(seeds),
        tuple(seen.values()),
        tuple(counted),
        total([row.counters for row in counted]),
        tuple(expected.exact),
        tuple(expected.bars),
        (*examiner.notes(expected), *notes),
        time.perf_counter() - start,
    )


def sample_blocks(grid: Sequence[int], limit: int, seed: int = 0) -> tuple[Block, ...] | None:
    """At most `limit` blocks that stand for a grid, in launch order; None when that is all of them.

    In this order of importance: the first, the last, the last along each axis (where windows are ragged), then others
    at random by the seed.
    """
    x, y, z = (*grid, 1, 1)[:3]
    count = x * y * z
    if count <= limit:
        return None
    corners = [(0, 0, 0), (x - 1, y - 1, z - 1), (x - 1, 0, 0), (0, y - 1, 0), (0, 0, z - 1)]
    chosen = list(dict.fromkeys(corners))[:limit]
    random = np.random.default_rng(seed)
    while len(chosen) < limit:
        flat = int(random.integers(count))
        block = (flat % x, flat // x % y, flat // (x * y))
        if block not in chosen:
            chosen.append(block)
    return tuple(sorted(chosen, key=lambda block: block[::-1]))


@dataclass(frozen=True)
class _Launch:
    """A launch with everything that running it needs. `outputs` are positions of arguments that it must write."""

    step: Launch
    text: CudaKernel
    kernel: Kernel
    library: Library
    grid: tuple[int, ...]
    blocks: tuple[Block, ...] | None
    outputs: tuple[int, ...]


@dataclass
class Run:
    """One run of all launches: the arrays after it, the elements that it wrote, printed lines, findings, counters."""

    seed: int
    arrays: dict[str, np.ndarray]
    written: dict[str, np.ndarray] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)


class Examiner:
    """A compilation with arguments, ready to run under any seed."""

    def __init__(
        self,
        compilation: Compilation,
        arguments: Mapping[str, Any],
        dims: Mapping[str, int],
        blocks: Blocks,
        sample_seed: int,
    ) -> None:
        assert compilation.program is not None
        self.compilation, self.program = compilation, compilation.program
        self.kernel = compilation.stages[0].module.kernel()
        self.level = compilation.stages[0].module.level
        inexact = [number for number, stage in enumerate(compilation.stages) if not stage.exact]
        self.source = compilation.stages[max(inexact, default=0)].module  # what is compared bit for bit
        self.dims = dict(dims)
        self.spaces = execute.workspaces_of(self.program, self.dims)
        self.handed: dict[str, np.ndarray] = {}  # what launches find in workspaces that earlier ones filled
        self.arguments = {**arguments, **self.spaces}
        self.alignment = {p.name: p.alignment for p in self.program.parameters if p.kind != "scalar"}
        self.alignment |= dict.fromkeys(self.spaces, MODULUS)
        roles = {p.name: p.role for p in self.program.parameters}
        self.launches: list[_Launch] = []
        texts, kernels = compilation.cuda, compilation.target.kernels
        for step, text, kernel in zip(self.program.launches, texts, kernels, strict=True):
            grid, programs = _grid(step, self.dims, blocks)
            chosen = _chosen(grid, programs, blocks, sample_seed)
            outs = [(i, x) for i, x in enumerate(step.arguments) if roles.get(x.name) == "out"]
            pure = [number for number, given in outs if given.kind not in MAP_KINDS]
            outputs = tuple(pure) if chosen is None else ()  # a sample leaves elements unwritten
            library = emulator.build(text.text, [text.name], counted=True)
            self.launches.append(_Launch(step, text, kernel, library, grid, chosen, outputs))

    @property
    def sampled(self) -> bool:
        return any(launch.blocks is not None for launch in self.launches)

    @property
    def inexact(self) -> bool:
        """Whether a pass has changed bits of the author's kernel."""
        return any(not stage.exact for stage in self.compilation.stages)

    def expect(self) -> check_values.Expected:
        """What the interpreter makes of the same arguments, and error bars where no order fixes the bits."""
        fresh = self.fresh(0)
        with capture() as printed:
            outputs = execute.interpret_all(self.source, fresh, self.dims).outputs
        self.handed = {name: array.copy() for name, array in outputs.items() if name in self.spaces}
        atomic, loose = updated(self.kernel), order_dependent(self.kernel)
        exact = {name: array for name, array in outputs.items() if name not in (atomic if self.sampled else loose)}
        bars = {}
        if (loose or self.inexact) and not self.sampled:
            given = {name: value for name, value in self.arguments.items() if name not in self.spaces}
            bars = execute.reference_bars(self.kernel, given, self.dims, level=self.level)
            bars = bars if self.inexact else {name: bar for name, bar in bars.items() if name in loose}
        return check_values.Expected(exact, bars, printed, atomic)

    def fresh(self, seed: int) -> dict[str, Any]:
        """Copies of the arguments: at addresses as a GPU's allocator gives under seed 0, else at the least aligned."""
        return {name: self._copy(name, value, seed) for name, value in self.arguments.items()}

    def _copy(self, name: str, value: Any, seed: int) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._copy(name, item, seed) for item in value]
        if isinstance(value, np.ndarray):
            return aligned_copy(value, 0 if seed == 0 else self.alignment[name] % MODULUS)
        return value

    def run(self, seed: int, count: bool = False, blocks: Sequence[Block] | None = None) -> Run:
        """Runs every launch; of its blocks only `blocks`, when they are given."""
        arguments = self.fresh(seed)
        result = Run(seed, {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)})
        for launch in self.launches:
            # A finding of one launch is not one of the next: what it finds in a workspace is right.
            found = {name: aligned_copy(array, 0) for name, array in self.handed.items()}
            found = {name: array for name, array in found.items() if name not in launch.step.writes}
            values = execute.emulated_arguments(self.program, launch.step, arguments | found, self.dims)
            examination = launch.library.examine(
                launch.text.name,
                launch.grid,
                launch.text.threads,
                launch.text.shared_bytes,
                values,
                seed,
                blocks=launch.blocks if blocks is None else blocks,
                count=count,
                outputs=launch.outputs if blocks is None else (),
            )
            self._collect(result, launch, examination)
        return result

    def _collect(self, result: Run, launch: _Launch, examination: Examination) -> None:
        result.findings += findings_of(examination.faults, launch.text, launch.kernel)
        result.printed += examination.printed
        result.counted += by_place(examination.lines, launch.text, launch.kernel)
        for position, mask in examination.written.items():
            name = launch.step.arguments[position].name
            known = result.written.get(name)
            result.written[name] = mask if known is None else known | mask

    def describe(self, launch: _Launch) -> ExaminedLaunch:
        return ExaminedLaunch(
            launch.text.name, launch.grid, launch.text.threads, launch.text.shared_bytes, launch.blocks
        )

    def notes(self, expected: check_values.Expected) -> list[str]:
        """What was left out of the examination, and why."""
        if not self.sampled:
            return []
        found = []
        for launch in map(self.describe, self.launches):
            if launch.blocks is not None:
                found.append(
                    f"{launch.blocks_run} of {launch.blocks_total} blocks of {launch.name} ran; only the elements that "
                    "they write were compared, and none counts as unwritten (--blocks all runs every block)"
                )
        if expected.atomic:
            names = ", ".join(sorted(expected.atomic))
            found.append(f"{names} was not compared: every block updates it, and only some ran")
        return found


def _grid(step: Launch, dims: Mapping[str, int], blocks: Blocks) -> tuple[tuple[int, ...], int]:
    """The grid to examine a launch on, and how many programs of the author's grid that is.

    Where not all of those run, blocks of a persistent kernel do the work of two each: a sample of its few blocks would
    take as long as all of them.
    """
    grid = step.extents(dims)
    if not step.persistent:
        return grid, math.prod(grid)
    (programs,) = step.extents(dims, MOST)
    if blocks == "all" or programs <= (FULL_GRID if blocks is None else blocks):
        return grid, programs
    (per_multiprocessor,) = step.extents(dims, 1)
    return step.extents(dims, -(-programs // (2 * per_multiprocessor))), programs


def _chosen(grid: tuple[int, ...], programs: int, blocks: Blocks, seed: int) -> tuple[Block, ...] | None:
    if blocks == "all":
        return None
    if blocks is None:
        blocks = FULL_GRID if programs <= FULL_GRID else SAMPLE
    return sample_blocks(grid, blocks, seed)


def updated(kernel: Kernel) -> set[str]:
    """Names of the parameters that programs update together, by atomics."""
    found = set()
    for op in kernel.body.walk():
        if op.definition.has(UNORDERED):
            view = op.operand("view")
            while view.defining_op is not None:
                view = view.defining_op.operands[0]
            found.add(view.name)
    return found


def aligned_copy(array: np.ndarray, offset: int) -> np.ndarray:
    """A contiguous copy at an address that is `offset` modulo 256."""
    room = np.empty(array.nbytes + MODULUS, np.uint8)
    start = (offset - room.ctypes.data) % MODULUS
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
