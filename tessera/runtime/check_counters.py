"""What a run of emitted CUDA cost, by the author's lines: requests, bank conflicts, sectors, products, barriers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tessera.codegen_cuda.emit import CudaKernel
from tessera.ir.core import Kernel
from tessera.location import Loc
from tessera.runtime.emulator_memory import Counters

SECTOR_BYTES = 32  # the unit in which global memory moves


@dataclass(frozen=True)
class Counted:
    """The counters of all ops of one name at one place; `op` is empty and `loc` None for text that no op says."""

    op: str
    loc: Loc | None
    counters: Counters


def by_place(lines: Mapping[int, Counters], text: CudaKernel, kernel: Kernel) -> list[Counted]:
    """The counters of the lines of a CUDA text, summed by op name and the author's line, in order of the text."""
    ops = {op.id: op for op in kernel.body.walk()}
    groups: dict[tuple[str, str, int], tuple[Loc | None, list[Counters]]] = {}
    for number, counters in sorted(lines.items()):
        op = ops.get(text.lines.get(number, 0))
        loc = op.loc if op is not None else None
        key = (op.name if op is not None else "", loc.file if loc else "", loc.line if loc else 0)
        groups.setdefault(key, (loc, []))[1].append(counters)
    return [Counted(op, loc, total(parts)) for (op, _, _), (loc, parts) in groups.items()]


def total(parts: Iterable[Counters]) -> Counters:
    result = Counters.none()
    for part in parts:
        result.add(part)
    return result


def global_traffic(counters: Counters) -> int:
    """Bytes that the sectors of global memory hold which the requests touched, read and written."""
    return SECTOR_BYTES * (counters.global_read.sectors + counters.global_write.sectors)


def conflicts(rows: Sequence[Counted]) -> float:
    """The worst ratio of wavefronts to the ideal among the rows; 1.0 without shared memory."""
    parts = [part for row in rows for part in (row.counters.shared_read, row.counters.shared_write)]
    return max((part.wavefronts / part.ideal for part in parts if part.ideal), default=1.0)


def scatter(rows: Sequence[Counted]) -> float:
    """The worst ratio of sectors to the ideal among the rows; 1.0 without global memory."""
    parts = [part for row in rows for part in (row.counters.global_read, row.counters.global_write)]
    return max((part.sectors / part.ideal for part in parts if part.ideal), default=1.0)
