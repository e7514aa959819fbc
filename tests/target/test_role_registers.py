"""How registers are split: the numbers that a GPU was seen to take, and never more than there are."""

from __future__ import annotations

import pytest

from tessera.target.arch import arch
from tessera.target.role_registers import role_registers


@pytest.mark.parametrize(("consumers", "split"), [(4, (0, 0)), (8, (24, 240)), (12, (24, 160)), (16, (24, 112))])
def test_one_block(consumers: int, split: tuple[int, int]) -> None:
    assert role_registers(arch("sm_90a"), consumers, 4) == split


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("consumers", [4, 8, 12, 16, 28])
def test_registers_suffice(consumers: int, blocks: int) -> None:
    machine = arch("sm_90a")
    producer, consumer = role_registers(machine, consumers, 4, blocks)
    start = machine.registers_per_sm // (blocks * 32 * (consumers + 4)) // 8 * 8
    assert (producer, consumer) == (0, 0) or producer < start < consumer
    # What moves is what the block was launched with, which may be less than there is.
    assert 4 * producer + consumers * consumer <= start * (consumers + 4)


@pytest.mark.parametrize("name", ["sm_80", "sm_120"])
def test_only_architecture_specific_targets_move_registers(name: str) -> None:
    assert role_registers(arch(name), 8, 4) == (0, 0)
