"""Ways to break the ring of tma_ring.cu, and what must be found then: as in ring_mutations.py."""

from __future__ import annotations

from tests.check.ring_mutations import Mutation, Variant, dropped, exchanged, replaced

EXPECT = "ts_mbarrier_expect(full + stage * 8, SLOT);"
LOAD = "ts_tma_load(slots + stage * SLOT, x, full + stage * 8, column, row, step);"
SLOT_FREE = "ts_mbarrier_wait(empty + stage * 8, (round & 1) ^ 1);"
DATA = "ts_mbarrier_wait(full + stage * 8, round & 1);"
SLOT_READ = "if (lane == 0) ts_mbarrier_arrive(empty + stage * 8);"
ALL_READ = "ts_warp_barrier();  // order: every lane has read"
FENCE = "ts_fence_async();"
WRITTEN = "ts_warp_barrier();  // order: every lane has written"
STAGING_FREE = "if (lane == 0) ts_tma_wait_read<0>();  // wait: staging free"
KNOWN = "ts_warp_barrier();  // order: every lane knows"
COMMIT = "ts_tma_commit();"
AT_END = "if (lane == 0) ts_tma_wait_read<0>();  // wait: at the end"
STORE = "ts_tma_store(out, staging, tile % tiles.columns * 32, tile / tiles.columns * ROWS + warp * 8);"

EARLY = {"in-flight": ("read: slot", "load"), "race": ("read: slot", "load")}
STUCK = {"deadlock": ("wait: slot free", "wait: data of the step", "barrier: mbarriers initialised")}

# fmt: off
MUTATIONS = (
    Mutation("an arrival in place of the announcement", "tma_2",
        replaced(EXPECT, "ts_mbarrier_arrive(full + stage * 8);"),
        {"in-flight": ("read: slot",), "mbarrier": ("load", "expect")}),
    Mutation("nothing announced", "tma_2", dropped(EXPECT), STUCK),
    Mutation("no load", "tma_2", dropped(LOAD), STUCK),
    Mutation("half of the bytes announced", "tma_2", replaced(EXPECT, EXPECT.replace("SLOT", "SLOT / 2")), STUCK),
    Mutation("a byte too many announced", "tma_2", replaced(EXPECT, EXPECT.replace("SLOT", "SLOT + 1")), STUCK),
    Mutation("more announced than a phase takes", "tma_2",
        replaced(EXPECT, EXPECT.replace("SLOT", "1 << 20")), {"mbarrier": ("expect",)}),
    Mutation("a slot read without a wait", "tma_2", dropped(DATA), {**EARLY, **STUCK}),
    Mutation("a wait for the other parity", "tma_2",
        replaced(DATA, DATA.replace("round & 1", "(round & 1) ^ 1")), {**EARLY, **STUCK}),
    Mutation("a slot handed back before it is read", "tma_2", ((DATA, f"{DATA} {SLOT_READ}"), (SLOT_READ, ";")), EARLY),
    Mutation("a slot handed back by one lane for all", "tma_2", dropped(ALL_READ), EARLY),
    Mutation("a load into a slot that is not free", "tma_2", dropped(SLOT_FREE),
        {"in-flight": ("load",), "race": ("load",), "mbarrier": ("expect",)}),
    Mutation("a load that nobody waits for", "tma_2",
        replaced(";  // end of the producer",
                 "ts_tma_load(slots, x, full, 0, 0, 0);  // end of the producer"),
        {"in-flight": ("end of the producer",), "race": ("end of the producer",)}),
    Mutation("mbarriers that TMA does not know", "tma_2",
        dropped("ts_mbarrier_fence();"), {"mbarrier": ("load",)}),
    Mutation("a slot between rows", "tma_2", replaced("SLOTS_START 1024", "SLOTS_START 896"),
        {"misaligned": ("load",)}),
    Mutation("a ring larger than the block", "tma_2",
        replaced("RING(tma_2, 2)", "RING(tma_2, 5)"), {"shared-out-of-bounds": ("load",)}),
    Mutation("a coordinate too few", "tma_2",
        replaced(LOAD, LOAD.replace("column, row, step", "column, row")), {"bad-launch": ("load",)}),
    Mutation("a store of what ordinary stores wrote", "tma_2", dropped(FENCE), {"unfenced": ("store",)}),
    Mutation("a fence of one lane", "tma_2", replaced(FENCE, f"if (lane == 0) {FENCE}"), {"unfenced": ("store",)}),
    Mutation("a store before the other lanes have written", "tma_2", dropped(WRITTEN),
        {"race": ("store", "write: staging"), "in-flight": ("write: staging",), "uninitialised": ("store",)}),
    Mutation("the source overwritten", "tma_2", dropped(STAGING_FREE), {"in-flight": ("write: staging",)}),
    Mutation("a wait that leaves the group in flight", "tma_2",
        replaced(STAGING_FREE, STAGING_FREE.replace("<0>", "<1>")), {"in-flight": ("write: staging",)}),
    Mutation("the source overwritten by lanes that know nothing", "tma_2",
        dropped(KNOWN), {"in-flight": ("write: staging",)}),
    Mutation("a thread that returns before its store has read", "tma_2", dropped(AT_END), {"in-flight": ("store",)}),
    Mutation("a store in no group", "tma_2", dropped(COMMIT), {"in-flight": ("store", "write: staging")}),
    Mutation("a store into the rows of the other warp", "tma_2",
        replaced(STORE, STORE.replace("+ warp * 8", "")), {"conflicting-writes": ("store",)}),
    Mutation("a store into the input", "tma_2",
        replaced("STAGING, out, tiles", "STAGING, x, tiles"), {"bad-launch": ("store",)}),
)

VARIANTS = (
    Variant("the load before the announcement", "tma_2", exchanged(EXPECT, LOAD)),
    Variant("every lane waits for the store it did not issue", "tma_2",
        replaced(STAGING_FREE, "ts_tma_wait_read<0>();  // wait: staging free")),
    Variant("a wait for the whole store", "tma_2", replaced(STAGING_FREE, STAGING_FREE.replace("_read", ""))),
)
# fmt: on
