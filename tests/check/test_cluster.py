"""Clusters in the twin: a shared ring in many orders, each way of breaking it named at its line, and bad launches."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from tessera.runtime.emulator import Fault, Library, build
from tessera.runtime.emulator_maps import twin_map
from tests.check.cluster_mutations import MUTATIONS, VARIANTS
from tests.check.ring_mutations import Mutation, Variant
from tests.check.rings import assert_named, edited, lines_by_kind, text
from tests.check.tma import joined

SEEDS = (0, 1, 2, 3)
ROUNDS, STEPS = 2, 3
SHARED = 1024 + 2 * 4096

Run = tuple[list[Fault], np.ndarray, np.ndarray]


def ring_run(library: Library, name: str, cluster: int, seed: int, blocks: int | None = None, chosen=None) -> Run:
    """What was found, and the output beside the values that it should have; by default two clusters."""
    blocks = blocks or 2 * cluster
    rng = np.random.default_rng(cluster)
    x = rng.standard_normal((STEPS, ROUNDS * blocks, 16, 32), np.float32)
    y = rng.standard_normal((STEPS, 16, 32), np.float32)
    out = np.full(x.shape[1:], np.nan, np.float32)
    expected = np.zeros_like(out)
    for step in range(STEPS):
        expected += x[step] * y[step]
    for array in (x, y):
        array.flags.writeable = False
    maps = [twin_map(x, box=(32, 16, 1, 1)), twin_map(y, box=(32, 16 // cluster, 1))]
    args = [*maps, out, ROUNDS, STEPS]
    found = library.examine(name, (blocks,), 96, SHARED, args, seed, outputs=(2,), blocks=chosen)
    return found.faults, out, expected


@cache
def rings() -> Library:
    return build(text("cluster_ring"), ["ring_of_2", "ring_of_4"])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cluster", [2, 4])
def test_a_right_ring_has_no_findings(cluster: int, seed: int) -> None:
    faults, out, expected = ring_run(rings(), f"ring_of_{cluster}", cluster, seed)
    assert faults == []
    np.testing.assert_array_equal(out, expected)


def test_a_chosen_block_brings_its_cluster() -> None:
    faults, out, expected = ring_run(rings(), "ring_of_2", 2, 0, blocks=6, chosen=[(3,), (2,)])
    assert faults == []
    computed = ~np.isnan(out).any(axis=(1, 2))
    assert computed.tolist() == 2 * [False, False, True, True, False, False]
    np.testing.assert_array_equal(out[computed], expected[computed])


def test_a_grid_is_a_multiple_of_the_cluster() -> None:
    faults, _, _ = ring_run(rings(), "ring_of_4", 4, 0, blocks=6)
    assert [str(fault) for fault in faults] == [
        "bad-launch: thread -1 of block (0, 0, 0) a grid of 6 blocks along axis 0 in clusters of 4"
    ]


@cache
def edited_rings() -> Library:
    """The ring of two blocks by each variant and each mutation."""
    texts = [edited("cluster_ring", edit.edits) for edit in (*VARIANTS, *MUTATIONS)]
    other = re.compile(r"^CLUSTER_RING\(ring_of_4, 4\)$", re.MULTILINE)
    return joined([other.sub("", source) for source in texts], "ring_of_2")


def run_edited(edit: Mutation | Variant, seed: int) -> Run:
    return ring_run(edited_rings(), f"ring_of_2_{(*VARIANTS, *MUTATIONS).index(edit)}", 2, seed)


def identifier(edit: Mutation | Variant) -> str:
    return edit.name.replace(" ", "-")


@pytest.mark.parametrize("variant", VARIANTS, ids=identifier)
def test_a_right_variant_has_no_findings(variant: Variant) -> None:
    for seed in SEEDS:
        faults, out, expected = run_edited(variant, seed)
        assert faults == [], f"seed {seed}"
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=identifier)
def test_a_mutation_is_named_at_its_line(mutation: Mutation) -> None:
    allowed = lines_by_kind("cluster_ring", mutation.expected)
    for seed in SEEDS:
        faults, _, _ = run_edited(mutation, seed)
        assert_named(faults, allowed, seed)
