"""Facts about each GPU architecture, as data.

Limits are from the "Technical Specifications per Compute Capability" table of the CUDA C++ Programming Guide.  The
`typical_` fields are those of one common board per architecture, named in the table; they feed the cost model, which
only ranks schedules, and never decide what is legal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

__all__ = ["ARCHS", "BASE_LANE", "PARAMETER_BYTES", "Arch", "arch", "find", "nearest_lane"]

# What the arguments of one launch may take in all since CUDA 12.1, on every architecture of the table; 4,096 before.
PARAMETER_BYTES = 32_764


@dataclass(frozen=True)
class Arch:
    """One architecture.

    `name` is what the compiler is asked for.  `lane` names the set of instructions that code is generated with, itself
    an architecture of the table: one without a lane of its own takes an older one's.
    """

    name: str
    compute_capability: tuple[int, int]
    lane: str
    # Bytes. One block gets more than 48 KB only through the opt-in attribute; the driver keeps 1 KB of each block.
    shared_bytes_per_block: int
    shared_bytes_per_sm: int
    max_threads_per_sm: int
    max_blocks_per_sm: int
    # What the chip has; what is generated for it is the lane's business.
    cp_async: bool
    ldmatrix: bool
    mma_bf16: bool
    stmatrix: bool
    tma: bool
    wgmma: bool
    typical_board: str
    typical_sm_count: int
    # Bytes per second.
    typical_dram_bandwidth: float
    # Dense bf16 operations per second with f32 accumulation, a multiply-add counting as two.
    typical_bf16_rate: float
    # f32 operations per second without tensor cores.
    typical_f32_rate: float
    # The same everywhere since compute capability 8.0.
    registers_per_sm: int = 65536
    max_registers_per_thread: int = 255
    max_threads_per_block: int = 1024
    warp_size: int = 32
    reserved_shared_bytes: int = 1024

    def __str__(self) -> str:
        return self.name

    def shared_bytes_beside(self, blocks: int) -> int:
        """Shared memory of a block of which a multiprocessor holds so many."""
        return min(self.shared_bytes_per_block, self.shared_bytes_per_sm // blocks - self.reserved_shared_bytes)


BASE_LANE = "sm_80"  # of cp.async and mma.sync

ARCHS: dict[str, Arch] = {
    facts.name: facts
    for facts in (
        Arch(
            name="sm_80",
            compute_capability=(8, 0),
            lane="sm_80",
            shared_bytes_per_block=166912,
            shared_bytes_per_sm=167936,
            max_threads_per_sm=2048,
            max_blocks_per_sm=32,
            cp_async=True,
            ldmatrix=True,
            mma_bf16=True,
            stmatrix=False,
            tma=False,
            wgmma=False,
            typical_board="A100 SXM 80GB",
            typical_sm_count=108,
            typical_dram_bandwidth=2.04e12,
            typical_bf16_rate=312e12,
            typical_f32_rate=19.5e12,
        ),
        Arch(
            name="sm_86",
            compute_capability=(8, 6),
            lane="sm_80",
            shared_bytes_per_block=101376,
            shared_bytes_per_sm=102400,
            max_threads_per_sm=1536,
            max_blocks_per_sm=16,
            cp_async=True,
            ldmatrix=True,
            mma_bf16=True,
            stmatrix=False,
            tma=False,
            wgmma=False,
            typical_board="A40",
            typical_sm_count=84,
            typical_dram_bandwidth=0.696e12,
            typical_bf16_rate=150e12,
            typical_f32_rate=37.4e12,
        ),
        Arch(
            name="sm_89",
            compute_capability=(8, 9),
            lane="sm_80",
            shared_bytes_per_block=101376,
            shared_bytes_per_sm=102400,
            max_threads_per_sm=1536,
            max_blocks_per_sm=24,
            cp_async=True,
            ldmatrix=True,
            mma_bf16=True,
            stmatrix=False,
            tma=False,
            wgmma=False,
            typical_board="L40S",
            typical_sm_count=142,
            typical_dram_bandwidth=0.864e12,
            typical_bf16_rate=362e12,
            typical_f32_rate=91.6e12,
        ),
        Arch(
            name="sm_90a",
            compute_capability=(9, 0),
            lane="sm_90a",
            shared_bytes_per_block=232448,
            shared_bytes_per_sm=233472,
            max_threads_per_sm=2048,
            max_blocks_per_sm=32,
            cp_async=True,
            ldmatrix=True,
            mma_bf16=True,
            stmatrix=True,
            tma=True,
            wgmma=True,
            typical_board="H100 SXM 80GB",
            typical_sm_count=132,
            typical_dram_bandwidth=3.35e12,
            typical_bf16_rate=989e12,
            typical_f32_rate=66.9e12,
        ),
        Arch(
            name="sm_100a",
            compute_capability=(10, 0),
            lane="sm_80",
            shared_bytes_per_block=232448,
            shared_bytes_per_sm=233472,
            max_threads_per_sm=2048,
            max_blocks_per_sm=32,
            cp_async=True,
            ldmatrix=True,
            mma_bf16=True,
            stmatrix=True,
            tma=True,
            wgmma=False,
            typical_board="B200",
            typical_sm_count=148,
            typical_dram_bandwidth=8.0e12,
            typical_bf16_rate=2250e12,
            typical_f32_rate=75e12,
        ),
        Arch(
            name="sm_120",
            compute_capability=(12, 0),
            lane="sm_80",
            shared_bytes_per_block=101376,
            shared_bytes_per_sm=102400,
            max_threads_per_sm=1536,
            max_blocks_per_sm=24,
            cp_async=True,
            ldmatrix=True,
            mma_bf16=True,
            stmatrix=True,
            tma=True,
            wgmma=False,
            typical_board="RTX 5090",
            typical_sm_count=170,
            typical_dram_bandwidth=1.79e12,
            typical_bf16_rate=210e12,
            typical_f32_rate=105e12,
        ),
    )
}


def arch(name: str) -> Arch:
    """The facts of an architecture by name, e.g. "sm_90a"; ValueError lists the known ones."""
    if name not in ARCHS:
        raise ValueError(f"unknown architecture {name!r}; the known ones are {', '.join(ARCHS)}")
    return ARCHS[name]


def nearest_lane(compute_capability: tuple[int, int]) -> Arch:
    """Facts for a device: its own row, or those of the newest known one that is not newer, under the device's name.

    (10, 3) gives the row of sm_100a as `sm_103`: machine code runs on no other generation, and that of an
    architecture-specific target such as sm_100a on no other chip, so the code is compiled for the device itself,
    without the instructions that only such targets have.
    ValueError for a device older than 8.0.
    """
    major, minor = compute_capability
    older = [facts for facts in ARCHS.values() if facts.compute_capability <= compute_capability]
    if not older:
        raise ValueError(f"compute capability {major}.{minor} is too old; 8.0 or newer is needed")
    facts = max(older, key=lambda row: row.compute_capability)
    if facts.compute_capability == compute_capability:
        return facts
    return replace(_plain(facts, f"sm_{major}{minor}"), compute_capability=compute_capability)


def _plain(facts: Arch, name: str) -> Arch:
    """Facts under a name that is no architecture-specific target: ptxas refuses it wgmma, and so its lane (PTX ISA)."""
    return replace(facts, name=name, wgmma=False, lane=BASE_LANE if facts.wgmma else facts.lane)


_NAME = re.compile(r"sm_(\d+)(\d)")


def find(name: str) -> Arch | None:
    """Facts by name: a row of the table, or those of `nearest_lane` for the plain name of another chip."""
    match = _NAME.fullmatch(name)
    if name in ARCHS or match is None or int(match[1]) < 8:
        return ARCHS.get(name)
    return _plain(nearest_lane((int(match[1]), int(match[2]))), name)
