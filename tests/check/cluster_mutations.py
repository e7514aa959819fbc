"""Ways to break the ring of cluster_ring.cu, and what must be found then: as in ring_mutations.py."""

from __future__ import annotations

from tests.check.ring_mutations import Mutation, Variant, dropped, replaced

SLOT_FREE = "ts_mbarrier_wait(empty + stage * 8, phase ^ 1);"
EXPECT = "ts_mbarrier_expect(full + stage * 8, SLOT);"
LOAD = "ts_tma_load_multicast(part, y, full + stage * 8, (1 << BLOCKS) - 1, 0, rank * PART(BLOCKS), step);"
MASK = "(1 << BLOCKS) - 1"
PART = "*part = slot + HALF + rank * PART(BLOCKS) * 128;"
DATA = "ts_mbarrier_wait(full + stage * 8, phase);"
ARRIVE = "ts_mbarrier_arrive_cluster_after(empty + stage * 8, ts_register_word(a[7]) ^ ts_register_word(b[7]), BLOCKS);"
EMPTY = "ts_mbarrier_init(full + 64 + i * 8, 2 * BLOCKS);"
FENCE = "ts_mbarrier_fence();"
STARTED = "ts_cluster_barrier();  // order: every block has its barriers"
AT_END = "ts_cluster_barrier();  // order: no block is needed any more"

STUCK = {
    "deadlock": ("wait: slot free", "wait: data"),
    "divergent": ("order: every block has its barriers", "order: no block is needed any more"),
}
EARLY = {"race": ("load: own", "load: shared"), "in-flight": ("load: own", "load: shared", "read: own", "read: shared")}

# fmt: off
MUTATIONS = (
    Mutation("barriers of other blocks used at once", "ring_of_2", dropped(STARTED), {"mbarrier": ("load: shared",)}),
    Mutation("barriers that TMA does not know", "ring_of_2", dropped(FENCE),
        {"mbarrier": ("load: own", "load: shared", "arrive")}),
    Mutation("a block that returns before the others need it no more", "ring_of_2", dropped(AT_END),
        {"in-flight": ("arrive",)}),
    Mutation("consumers of the own block only are counted", "ring_of_2",
        replaced(EMPTY, EMPTY.replace("2 * BLOCKS", "2")),
        {**EARLY, "mbarrier": ("expect", "load: own", "load: shared")}),
    Mutation("consumers tell their own block only", "ring_of_2",
        replaced(ARRIVE, ARRIVE.replace("_cluster", "").replace(", BLOCKS", "")), STUCK),
    Mutation("consumers tell a block that there is not", "ring_of_2",
        replaced(ARRIVE, ARRIVE.replace(", BLOCKS", ", BLOCKS + 1")), {"shared-out-of-bounds": ("arrive",)}),
    Mutation("arrivals at a place without a barrier", "ring_of_2",
        replaced("ts_mbarrier_arrive_cluster_after(empty + stage * 8",
                 "ts_mbarrier_arrive_cluster_after(empty + (stage + STAGES) * 8"),
        {"mbarrier": ("arrive",)}),
    Mutation("each block expects what it loads itself", "ring_of_2",
        replaced(EXPECT, EXPECT.replace("SLOT", "HALF + PART(BLOCKS) * 128")),
        {**STUCK, "mbarrier": ("load: own", "load: shared", "expect"), **EARLY}),
    Mutation("a mask of the own block", "ring_of_2", replaced(MASK, "1 << rank"), STUCK),
    Mutation("a mask of the other block", "ring_of_2", replaced(MASK, "2 >> rank"), STUCK),
    Mutation("a mask of a block too many", "ring_of_2", replaced(MASK, "(2 << BLOCKS) - 1"),
        {"shared-out-of-bounds": ("load: shared",)}),
    Mutation("an empty mask", "ring_of_2", replaced(MASK, "0"), {"shared-out-of-bounds": ("load: shared",)}),
    Mutation("each block fills the same part", "ring_of_2", replaced(PART, "*part = slot + HALF;"),
        {"in-flight": ("load: shared",), "race": ("load: shared",), "uninitialised": ("read: shared",)}),
    Mutation("a slot that the own consumers may still read", "ring_of_2", dropped(SLOT_FREE),
        {**EARLY, "mbarrier": ("expect",)}),
    Mutation("a slot handed back before it is read", "ring_of_2",
        ((DATA, f"{DATA} {ARRIVE.split('ts_register_word')[0]}0, BLOCKS);"), (ARRIVE, ";")), EARLY),
)

VARIANTS = (
    Variant("one lane arrives for its warp", "ring_of_2",
        replaced(ARRIVE, "ts_warp_barrier(); if (ts_lane() < BLOCKS) "
                         "ts_mbarrier_arrive_cluster(empty + stage * 8, ts_lane());")),
)
# fmt: on
