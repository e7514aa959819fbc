"""Architecture facts: the limits that decide legality, and what a device that is not in the table gets."""

from __future__ import annotations

import dataclasses

import pytest

from tessera.target.arch import ARCHS, arch, find, nearest_lane


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("sm_80", 166912),
        ("sm_86", 101376),
        ("sm_89", 101376),
        ("sm_90a", 232448),
        ("sm_100a", 232448),
        ("sm_120", 101376),
    ],
)
def test_shared_memory_limits(name: str, shared: int) -> None:
    facts = arch(name)
    assert facts.shared_bytes_per_block == shared
    assert facts.shared_bytes_per_sm - facts.reserved_shared_bytes == shared


def test_lanes_and_features() -> None:
    assert list(ARCHS) == ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120"]
    for name, facts in ARCHS.items():
        assert facts.name == name == str(facts)
        lane = arch(facts.lane)
        assert lane.lane == lane.name and lane.compute_capability <= facts.compute_capability
        assert facts.cp_async and facts.ldmatrix and facts.mma_bf16
        assert facts.tma == facts.stmatrix == (facts.compute_capability >= (9, 0))
    assert [name for name, facts in ARCHS.items() if facts.wgmma] == ["sm_90a"]


def test_facts_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        arch("sm_80").name = "sm_81"  # type: ignore[misc]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'sm_75'.*sm_80, sm_86, sm_89, sm_90a, sm_100a, sm_120"):
        arch("sm_75")


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((8, 0), "sm_80"),
        ((8, 7), "sm_87"),
        ((9, 0), "sm_90a"),
        ((10, 3), "sm_103"),
        ((12, 1), "sm_121"),
        ((13, 0), "sm_130"),
    ],
)
def test_nearest_lane(capability: tuple[int, int], name: str) -> None:
    facts = nearest_lane(capability)
    assert facts.name == name and facts.compute_capability == capability
    known = max(row.compute_capability for row in ARCHS.values() if row.compute_capability <= capability)
    assert facts.shared_bytes_per_block == next(
        row.shared_bytes_per_block for row in ARCHS.values() if row.compute_capability == known
    )


def test_a_plain_name_that_the_table_lacks_takes_the_facts_below_it() -> None:
    assert find("sm_103").shared_bytes_per_block == arch("sm_100a").shared_bytes_per_block
    assert find("sm_90").name == "sm_90" and find("sm_90a") is arch("sm_90a")
    assert find("sm_90").tma and not find("sm_90").wgmma and find("sm_90").lane == "sm_80"  # wgmma is of sm_90a alone
    assert find("sm_75") is None and find("gfx90a") is None and find("sm_103a") is None


def test_old_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7\.5 is too old"):
        nearest_lane((7, 5))
