"""How the registers of a multiprocessor are split between blocks, producers and consumers."""

from __future__ import annotations

from tessera.target.arch import Arch

# Of a thread that starts copies, the fewest that can be asked for. No producer that `split_roles` makes of the kernels
# of the document spills with them, and a consumer that carries sums of four layers does with the 8 less that 40 leave.
PRODUCER_REGISTERS = 24
CLUSTER_PRODUCER_REGISTERS = 40  # of one that loads its part for the other blocks of its cluster: with 24 it spills
STEP = 8  # registers are allocated, and move, in eights


def register_limit(arch: Arch, threads: int, blocks: int) -> int:
    """Registers that a thread can have where so many blocks have to fit on a multiprocessor: what it starts with where
    roles move them."""
    return min(arch.max_registers_per_thread, arch.registers_per_sm // (threads * blocks) // 8 * 8)


def role_registers(
    arch: Arch, consumer_warps: int, producer_warps: int, blocks: int = 1, clustered: bool = False
) -> tuple[int, int]:
    """Registers of a thread of the producers and of one of the consumers; (0, 0) where all threads start with as many
    as the instructions can name, or nobody gains.

    `blocks`: that a multiprocessor has to hold. All threads start with the same number: consumers can only take more,
    and no more than the block had at its start. A warpgroup that asks for more waits for ever.
    """
    if not arch.name.endswith("a"):
        return 0, 0  # setmaxnreg is for architecture-specific targets alone (PTX ISA)
    producer = CLUSTER_PRODUCER_REGISTERS if clustered else PRODUCER_REGISTERS
    total = arch.registers_per_sm // (blocks * arch.warp_size)  # of a lane of all warps
    start = total // (consumer_warps + producer_warps) // STEP * STEP
    pool = start * (consumer_warps + producer_warps)
    most = (pool - producer_warps * producer) // consumer_warps // STEP * STEP
    most = min(most, arch.max_registers_per_thread // STEP * STEP)
    if start <= producer or most <= start:
        return 0, 0
    return producer, most


__all__ = ["PRODUCER_REGISTERS", "register_limit", "role_registers"]
