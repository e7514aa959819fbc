"""Ways to break the hand-written kernels: edits of their text that keep every line, and what must be found then.

A mutation is one mistake that an author, or a compiler, makes with asynchronous copies, barriers and roles of warps.
Which of two unordered accesses comes second, and whether the data of a copy is there by then, is a matter of order, so
some expectations hold several places and kinds. A variant looks much like a mutation and is right.

To wait for the slot before, or after, the one that is filled is no mutation: who waits in the order of the steps has
waited for all that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Edits = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Mutation:
    """`edits` are pairs (old, new): the old part occurs once in the text and has as many line ends as the new one.

    `expected` says of each kind of fault at which tagged lines it may be found; the tag "" stands for no line. A
    deadlock names at least two waits, and no others than these.
    """

    name: str
    kernel: str
    edits: Edits
    expected: Mapping[str, tuple[str, ...]] = field(hash=False)


@dataclass(frozen=True)
class Variant:
    """An edit, as that of a mutation, after which the kernel is still right."""

    name: str
    kernel: str
    edits: Edits


def replaced(old: str, new: str) -> Edits:
    return ((old, new),)


def dropped(statement: str) -> Edits:
    return ((statement, ";"),)


def exchanged(first: str, second: str) -> Edits:
    return ((first, second), (second, first))


# fmt: off
# ---- the ring ordered by groups ----------------------------------------------------------------------------------

REFILL = "if (step + AHEAD < steps) issue_copies(refill, a, b, n, k, (step + AHEAD) * STEP);"
GROUP_WAIT = "ts_cp_async_wait<AHEAD - 1>();"
LOOP_COMMIT = "ts_cp_async_commit();  // commit: empty"
CONSUMED = "shared + step % STAGES * SLOT"
COPY_A = "ts_cp_async<16>(slot + a_row * A_ROW + a_chunk * 16, a + a_row * k + start + a_chunk * 8, 16);"
COPY_B = "ts_cp_async<16>(slot + B_START + b_row * B_ROW + b_chunk * 16, from_b, 16);"

IN_FLIGHT = {"in-flight": ("read: a",)}
NO_ORDER = {"race": ("read: a",)}

GROUP_MUTATIONS = (
    Mutation("no barrier per step", "ring_groups", dropped("ts_barrier();"), NO_ORDER),
    Mutation("a barrier before the wait", "ring_groups", exchanged(GROUP_WAIT, "ts_barrier();"), NO_ORDER),
    Mutation("a refill before the barrier", "ring_groups",
        exchanged("ts_barrier();", REFILL), {"race": ("copy: a", "copy: b"), "in-flight": ("read: b",)}),
    Mutation("a wait that leaves one group too many", "ring_groups", replaced("<AHEAD - 1>", "<AHEAD>"), IN_FLIGHT),
    Mutation("no wait for the groups", "ring_groups", dropped(GROUP_WAIT), IN_FLIGHT),
    Mutation("no commit in the prologue", "ring_groups",
        dropped("ts_cp_async_commit();  // commit: prologue"), IN_FLIGHT),
    Mutation("no commit in the loop", "ring_groups", replaced(LOOP_COMMIT, ";  // commit: empty"), IN_FLIGHT),
    Mutation("no commit of an empty group", "ring_groups",
        replaced(LOOP_COMMIT, f"if (step + AHEAD < steps) {LOOP_COMMIT}"), IN_FLIGHT),
    Mutation("a stage too few", "ring_groups",
        (("STAGES 3", "STAGES 2"), ("AHEAD (STAGES - 1)", "AHEAD 2")), IN_FLIGHT),
    Mutation("a stage more than the block holds", "ring_groups",
        replaced("STAGES 3", "STAGES 4"), {"shared-out-of-bounds": ("copy: a",)}),
    Mutation("slots that overlap by a row", "ring_groups",
        replaced("STEP * B_ROW)", "(STEP - 1) * B_ROW)"), {"in-flight": ("copy: b",), "race": ("copy: a",)}),
    Mutation("a refill of the slot being read", "ring_groups",
        replaced("(step + AHEAD) % STAGES", "step % STAGES"), IN_FLIGHT),
    Mutation("a refill of the slot of the next step", "ring_groups",
        replaced("(step + AHEAD) % STAGES", "(step + 1) % STAGES"), {"in-flight": ("copy: a",)}),
    Mutation("a read of the slot of the next step", "ring_groups",
        replaced(CONSUMED, "shared + (step + 1) % STAGES * SLOT"), IN_FLIGHT),
    Mutation("a prologue that is one step short", "ring_groups",
        replaced("step < AHEAD;", "step < AHEAD - 1;"), IN_FLIGHT),
    Mutation("a prologue that copies one step less", "ring_groups",
        replaced("if (step < steps)", "if (step < AHEAD - 1)"), {"uninitialised": ("read: a",)}),
    Mutation("a refill beyond the last step", "ring_groups",
        replaced("step + AHEAD < steps", "step + AHEAD <= steps"), {"global-out-of-bounds": ("copy: a", "copy: b")}),
    Mutation("rows of a whose pitch is no multiple of 16", "ring_groups",
        replaced("A_ROW 48", "A_ROW 40"), {"misaligned": ("copy: a",)}),
    Mutation("a copy to half of a chunk", "ring_groups",
        replaced("a_chunk * 16", "a_chunk * 8"), {"misaligned": ("copy: a",)}),
    Mutation("a copy from half of a chunk", "ring_groups",
        replaced("start + a_chunk * 8", "start + a_chunk * 4"), {"misaligned": ("copy: a",)}),
    Mutation("two threads that copy to one place", "ring_groups",
        replaced("a_row = ts_thread() / 2", "a_row = ts_thread() / 4"), {"race": ("copy: a",)}),
    Mutation("ldmatrix rows that begin before the block", "ring_groups",
        replaced("(warp_row + lane % 16) * A_ROW", "(warp_row + lane % 16 - 1) * A_ROW"),
        {"shared-out-of-bounds": ("read: a",)}),
    Mutation("ldmatrix rows that end in the next slot", "ring_groups",
        replaced("lane % 16 * B_ROW", "(lane % 16 + 1) * B_ROW"), {"in-flight": ("read: b",)}),
    Mutation("ldmatrix rows in the padding", "ring_groups",
        replaced("lane / 16 * 16);  // read: a", "lane / 16 * 32);"), {"uninitialised": ("read: a",)}),
    Mutation("ldmatrix rows between chunks", "ring_groups",
        replaced("lane / 16 * 16);  // read: a", "lane / 16 * 8);"), {"misaligned": ("read: a",)}),
    Mutation("a warp that leaves before the loop", "ring_groups",
        replaced("float acc[4][4];", "float acc[4][4]; if (ts_warp() == 1) return;"),
        {"divergent": ("barrier: data visible",)}),
    Mutation("a warp that leaves the loop a step early", "ring_groups",
        replaced("step = 0; step < steps;", "step = 0; step < steps - ts_warp();"),
        {"divergent": ("barrier: data visible",)}),
    Mutation("two lanes that store one row", "ring_groups",
        replaced("+ lane / 4) * n", "+ lane / 8) * n"), {"conflicting-writes": ("store: c",)}),
    Mutation("a store that leaves out the last columns", "ring_groups",
        replaced("j < 8;", "j < 7;"), {"unwritten": ("",)}),
    Mutation("a store between pairs", "ring_groups",
        replaced("lane % 4 * 2;", "lane % 4 * 2 + 1;"), {"misaligned": ("store: c",)}),
)

GROUP_VARIANTS = (
    Variant("two stages", "ring_groups", replaced("STAGES 3", "STAGES 2")),
    Variant("one step ahead in three stages", "ring_groups", replaced("AHEAD (STAGES - 1)", "AHEAD 1")),
    Variant("a wait for every group", "ring_groups", replaced("<AHEAD - 1>", "<0>")),
    Variant("no empty groups, and a wait for every group", "ring_groups",
        (("<AHEAD - 1>", "<0>"), (LOOP_COMMIT, f"if (step + AHEAD < steps) {LOOP_COMMIT}"))),
    Variant("two barriers per step", "ring_groups", replaced("ts_barrier();", "ts_barrier(); ts_barrier();")),
    Variant("a refill before the barrier, and a barrier after the reads", "ring_groups",
        (*exchanged("ts_barrier();", REFILL), ("+ j % 2 * 2);\n    }\n", "+ j % 2 * 2);\n    ts_barrier(); }\n"))),
    Variant("copies the other way round", "ring_groups",
        ((COPY_A, COPY_B.replace("from_b", "b + (start + b_row) * n + b_chunk * 8")), (COPY_B, COPY_A))),
)

# ---- the ring ordered by mbarriers -------------------------------------------------------------------------------

SLOT_FREE = "ts_mbarrier_wait(empty + stage * 8, (use & 1) ^ 1);"
DATA = "ts_mbarrier_wait(full + stage * 8, use & 1);"
COPIES_DONE = "ts_cp_async_commit(); ts_cp_async_wait<0>();"
LANDED = "ts_cp_async_mbarrier_arrive(full + stage * 8);"
READ = "if (lane == 0) ts_mbarrier_arrive(empty + stage * 8);"
FRAGMENTS = "ts_u32 fragment_a[4], fragment_b[2][4];"
INIT_FULL = "ts_mbarrier_init(full + stage * 8, 32);"
INIT_EMPTY = "ts_mbarrier_init(empty + stage * 8, 2);"
PRODUCED_SLOT = "char* slot = slots + stage * SLOT;  // slot: producer"
CONSUMED_SLOT = "const char* slot = slots + stage * SLOT;"
STUCK = ("wait: slot free", "wait: data of the step")
NO_PROGRESS = {"deadlock": STUCK}
# Consumers read while the copies are under way, or landed unknown to them; or a copy comes after the read.
LATE_DATA = {"in-flight": ("read: a",), "race": ("read: a",)}
EARLY_READ = {"in-flight": ("read: a",), "race": ("read: a", "copy: a")}

RING_MUTATIONS = (
    Mutation("the first wait for a slot is for a phase to come", "ring_3",
        replaced("(use & 1) ^ 1", "use & 1"), NO_PROGRESS),
    Mutation("the producer's parity stays", "ring_2", replaced("(use & 1) ^ 1", "1"), {"in-flight": ("copy: a",)}),
    Mutation("the consumer's parity stays", "ring_3",
        replaced(DATA, DATA.replace("use & 1", "0")), EARLY_READ | {"deadlock": (*STUCK, "read: a")}),
    Mutation("the consumer's parity inverted", "ring_4",
        replaced(DATA, DATA.replace("use & 1", "(use & 1) ^ 1")), EARLY_READ),
    Mutation("no wait for a free slot", "ring_3", dropped(SLOT_FREE), {"in-flight": ("copy: a",)}),
    Mutation("no wait for the data", "ring_2", dropped(DATA), EARLY_READ),
    Mutation("no arrival after the copies", "ring_2", dropped(LANDED), NO_PROGRESS),
    Mutation("no arrival after the reads", "ring_4", dropped(READ), NO_PROGRESS),
    Mutation("full counts an arrival too few", "ring_3",
        replaced(INIT_FULL, INIT_FULL.replace("32", "31")), EARLY_READ),
    Mutation("full counts an arrival too many", "ring_3",
        replaced(INIT_FULL, INIT_FULL.replace("32", "33")), NO_PROGRESS),
    Mutation("empty counts an arrival too few", "ring_2",
        replaced(INIT_EMPTY, INIT_EMPTY.replace("2)", "1)")), EARLY_READ | NO_PROGRESS),
    Mutation("empty counts an arrival too many", "ring_2",
        replaced(INIT_EMPTY, INIT_EMPTY.replace("2)", "3)")), NO_PROGRESS),
    Mutation("full counts no arrival", "ring_2",
        replaced(INIT_FULL, INIT_FULL.replace("32", "0")), {"mbarrier": ("init: full",)}),
    Mutation("every lane of a consumer arrives", "ring_3",
        replaced(READ, "ts_mbarrier_arrive(empty + stage * 8);"), EARLY_READ | NO_PROGRESS),
    Mutation("the producer waits for the first slot each time", "ring_3",
        replaced(SLOT_FREE, SLOT_FREE.replace("empty + stage * 8", "empty")),
        {"race": ("copy: a",), "in-flight": ("copy: a",)}),
    Mutation("the consumer waits for the first slot each time", "ring_3",
        replaced(DATA, DATA.replace("full + stage * 8", "full")), LATE_DATA),
    Mutation("the producer arrives for the first slot each time", "ring_2",
        replaced(LANDED, LANDED.replace("full + stage * 8", "full")), EARLY_READ | NO_PROGRESS),
    Mutation("the consumer arrives for the first slot each time", "ring_4",
        replaced(READ, READ.replace("empty + stage * 8", "empty")), EARLY_READ | NO_PROGRESS),
    Mutation("the producer waits for its own data", "ring_2",
        replaced(SLOT_FREE, SLOT_FREE.replace("empty", "full")), EARLY_READ),
    Mutation("the consumer waits for its own arrival", "ring_2",
        replaced(DATA, DATA.replace("full", "empty")), NO_PROGRESS),
    Mutation("an arrival before the copies", "ring_2",
        ((SLOT_FREE, f"{SLOT_FREE} {LANDED}"), (LANDED, ";")), LATE_DATA),
    Mutation("an arrival that does not wait for the copies", "ring_3",
        replaced(LANDED, "ts_mbarrier_arrive(full + stage * 8);"), IN_FLIGHT),
    Mutation("a wait that leaves a group before the arrival", "ring_4",
        replaced(LANDED, f"{COPIES_DONE.replace('0', '1')} ts_mbarrier_arrive(full + stage * 8);"),
        NO_ORDER),
    Mutation("an arrival before the reads", "ring_2", ((FRAGMENTS, f"{FRAGMENTS} {READ}"), (READ, ";")), EARLY_READ),
    Mutation("no warp barrier before the arrival of lane 0", "ring_2",
        dropped("ts_warp_barrier();"), {"race": ("copy: a", "copy: b")}),
    Mutation("an arrival before the warp barrier", "ring_3",
        exchanged("ts_warp_barrier();", READ), {"race": ("copy: a", "copy: b")}),
    Mutation("full not initialised", "ring_2",
        dropped(INIT_FULL), {"mbarrier": ("wait: data of the step", "arrive: when the copies")}),
    Mutation("empty not initialised", "ring_4", dropped(INIT_EMPTY), {"mbarrier": ("wait: slot free",)}),
    Mutation("the last stage not initialised", "ring_4",
        replaced("stage < STAGES;", "stage < STAGES - 1;"), {"mbarrier": ("wait: slot free",)}),
    Mutation("no barrier after the initialisation", "ring_2",
        dropped("ts_barrier();"), {"mbarrier": ("wait: slot free", "wait: data of the step")}),
    Mutation("a warp barrier after the initialisation", "ring_3",
        replaced("ts_barrier();", "ts_warp_barrier();"), {"mbarrier": ("wait: data of the step",)}),
    Mutation("each warp initialises", "ring_3",
        replaced("if (ts_thread() == 0)", "if (ts_lane() == 0)"), {"mbarrier": ("init: full",)}),
    Mutation("the stages share a barrier", "ring_2",
        replaced(INIT_FULL, INIT_FULL.replace("full + stage * 8", "full")), {"mbarrier": ("init: full",)}),
    Mutation("full and empty share their barriers", "ring_2",
        replaced("empty = shared + STAGES * 8", "empty = shared"), {"mbarrier": ("init: empty",)}),
    Mutation("barriers four bytes apart", "ring_2",
        replaced(INIT_FULL, INIT_FULL.replace("stage * 8", "stage * 4")), {"misaligned": ("init: full",)}),
    Mutation("a plain store to a barrier", "ring_2",
        replaced(PRODUCED_SLOT, f"float zero[1] = {{0.0f}}; ts_st_shared<float, 1>(full, zero); {PRODUCED_SLOT}"),
        {"mbarrier": ("slot: producer",)}),
    Mutation("a plain load of a barrier", "ring_3",
        replaced(CONSUMED_SLOT, f"float word[1]; ts_ld_shared<float, 1>(word, empty); {CONSUMED_SLOT}"),
        {"mbarrier": ("slot: consumer",)}),
    Mutation("slots that begin in the barriers", "ring_4",
        replaced("SLOTS_START 64", "SLOTS_START 48"), {"mbarrier": ("copy: a",)}),
    Mutation("ldmatrix rows that begin in the barriers", "ring_2",
        replaced("(warp_row + lane % 16) * A_ROW", "(warp_row + lane % 16 - 1) * A_ROW"), {"mbarrier": ("read: a",)}),
    Mutation("slots of the ring that overlap by a row", "ring_3",
        replaced("STEP * B_ROW)", "(STEP - 1) * B_ROW)"),
        {"in-flight": ("copy: a", "copy: b"), "race": ("copy: a", "copy: b")}),
    Mutation("the producer's slot is one on", "ring_2",
        replaced(PRODUCED_SLOT, "char* slot = slots + (stage + 1) % STAGES * SLOT;"), LATE_DATA),
    Mutation("the consumer's slot is one on", "ring_3",
        replaced(CONSUMED_SLOT, "const char* slot = slots + (stage + 1) % STAGES * SLOT;"), LATE_DATA),
    Mutation("a consumer that returns", "ring_3",
        replaced("float acc[4][4];", "float acc[4][4]; if (ts_warp() == 2) return;"), NO_PROGRESS),
    Mutation("a block barrier in the producer alone", "ring_2",
        replaced(PRODUCED_SLOT, f"ts_barrier(); {PRODUCED_SLOT}"),
        {"deadlock": ("slot: producer", "wait: data of the step")}),
    Mutation("a block barrier in the consumers alone", "ring_4",
        replaced("ts_warp_barrier();", "ts_barrier();"), {"deadlock": ("order: every lane", "wait: slot free")}),
    Mutation("a block barrier at a place of its own in each role", "ring_2",
        ((PRODUCED_SLOT, f"ts_barrier(); {PRODUCED_SLOT}"), (CONSUMED_SLOT, f"ts_barrier(); {CONSUMED_SLOT}")),
        {"divergent": ("slot: producer", "slot: consumer")}),
    Mutation("a warp barrier for half of the lanes", "ring_2",
        replaced("ts_warp_barrier();", "if (lane < 16) ts_warp_barrier();"),
        {"divergent": ("order: every lane", "read: a")}),
)

RING_VARIANTS = (
    Variant("polls in place of waits", "ring_2",
        ((SLOT_FREE, "while (!ts_mbarrier_test(empty + stage * 8, (use & 1) ^ 1)) {}"),
         (DATA, "while (!ts_mbarrier_test(full + stage * 8, use & 1)) {}"))),
    Variant("the producer waits for its copies itself", "ring_3",
        replaced(LANDED, f"{COPIES_DONE} ts_mbarrier_arrive(full + stage * 8);")),
    Variant("lane 0 arrives for the producer", "ring_4",
        ((LANDED, f"{COPIES_DONE} ts_warp_barrier(); if (ts_lane() == 0) ts_mbarrier_arrive(full + stage * 8);"),
         (INIT_FULL, INIT_FULL.replace("32", "1")))),
    Variant("every lane of a consumer arrives for itself", "ring_2",
        (("ts_warp_barrier();", ";"), (READ, "ts_mbarrier_arrive(empty + stage * 8);"),
         (INIT_EMPTY, INIT_EMPTY.replace("2)", "64)")))),
    Variant("the producer waits for the slot after", "ring_3",
        replaced(SLOT_FREE, SLOT_FREE.replace("stage", "(stage + 1) % STAGES"))),
    Variant("the producer waits for the slot before", "ring_4",
        replaced(SLOT_FREE, SLOT_FREE.replace("stage", "(stage + STAGES - 1) % STAGES"))),
    Variant("both roles use the slot after", "ring_3",
        ((PRODUCED_SLOT, "char* slot = slots + (stage + 1) % STAGES * SLOT;"),
         (CONSUMED_SLOT, "const char* slot = slots + (stage + 1) % STAGES * SLOT;"))),
    Variant("the consumer frees the slot before", "ring_4",
        replaced(READ, READ.replace("stage", "(stage + STAGES - 1) % STAGES"))),
    Variant("another thread initialises", "ring_2", replaced("ts_thread() == 0", "ts_thread() == 95")),
    Variant("a block barrier after both roles", "ring_4",
        replaced("c, n, k);\n    }\n}\n\n#define", "c, n, k);\n    } ts_barrier();\n}\n\n#define")),
)

# ---- the exchange ------------------------------------------------------------------------------------------------

SERVE = "ts_st_shared<float, 1>(served + lane * 4, mine);"
SERVED = "ts_mbarrier_arrive(ping);"
POLL_SERVED = "while (!ts_mbarrier_test(ping, round & 1)) {"
RETURN = "ts_st_shared<float, 1>(returned + lane * 4, mine);"
RETURNED = "ts_mbarrier_arrive(pong);"
WAIT_RETURNED = "ts_mbarrier_wait(pong, round & 1);"
UNORDERED = {"race": ("write: serve", "read: serve", "write: return", "read: return")}
NO_ANSWER = {"deadlock": ("wait: returned", "wait: served")}

EXCHANGE_MUTATIONS = (
    Mutation("a write without a wait for the answer", "exchange", dropped(WAIT_RETURNED), UNORDERED),
    Mutation("a read without a wait", "exchange", replaced(POLL_SERVED, "while (false) {"), UNORDERED),
    Mutation("one poll and no loop", "exchange",
        replaced(POLL_SERVED, "if (!ts_mbarrier_test(ping, round & 1)) {"), UNORDERED),
    Mutation("a wait for the parity of the round before", "exchange",
        replaced("pong, round & 1", "pong, (round & 1) ^ 1"), UNORDERED | NO_ANSWER),
    Mutation("a poll for one parity", "exchange",
        replaced("ping, round & 1", "ping, 0"), UNORDERED | {"deadlock": ("wait: returned", "barrier: game over")}),
    Mutation("a wait for the round in place of its parity", "exchange",
        replaced("pong, round & 1", "pong, round"), {"mbarrier": ("wait: returned",)}),
    Mutation("a wait for the own arrivals", "exchange",
        replaced("ts_mbarrier_wait(pong,", "ts_mbarrier_wait(ping,"), UNORDERED),
    Mutation("a poll for the own arrivals", "exchange",
        replaced("ts_mbarrier_test(ping,", "ts_mbarrier_test(pong,"), NO_ANSWER),
    Mutation("ping counts an arrival too few", "exchange",
        replaced("init(ping, 32)", "init(ping, 31)"), {"race": ("read: serve", "write: serve")}),
    Mutation("ping counts an arrival too many", "exchange", replaced("init(ping, 32)", "init(ping, 33)"), NO_ANSWER),
    Mutation("pong counts an arrival too few", "exchange", replaced("init(pong, 32)", "init(pong, 31)"), UNORDERED),
    Mutation("nobody says that it has written", "exchange", dropped(SERVED), NO_ANSWER),
    Mutation("nobody says that it has answered", "exchange", dropped(RETURNED), NO_ANSWER),
    Mutation("an arrival before the write", "exchange", exchanged(SERVE, SERVED), {"race": ("read: serve",)}),
    Mutation("an arrival of one lane for all", "exchange",
        (("init(ping, 32)", "init(ping, 1)"), (SERVED, f"if (lane == 0) {SERVED}")),
        {"race": ("read: serve", "write: serve")}),
    Mutation("ping not initialised", "exchange",
        dropped("ts_mbarrier_init(ping, 32);"), {"mbarrier": ("arrive: served", "wait: served")}),
    Mutation("a barrier initialised twice", "exchange",
        replaced("init(pong, 32)", "init(ping, 32)"), {"mbarrier": ("init: pong",)}),
    Mutation("floats in the barriers", "exchange",
        replaced("served = shared + 128", "served = shared"), {"mbarrier": ("write: serve",)}),
    Mutation("both answers at one place", "exchange",
        replaced("shared + 256", "shared + 128"), {"race": ("read: serve", "write: return")}),
    Mutation("an answer beyond the block", "exchange",
        replaced("shared + 256", "shared + 260"), {"shared-out-of-bounds": ("write: return",)}),
    Mutation("an answer between floats", "exchange",
        replaced("shared + 256", "shared + 254"), {"misaligned": ("write: return",)}),
    Mutation("invalid before everyone is done", "exchange",
        dropped("ts_barrier();  // barrier: game over"), {"mbarrier": ("invalidate: pong",)}),
    Mutation("invalid twice", "exchange",
        replaced("invalidate(pong)", "invalidate(ping)"), {"mbarrier": ("invalidate: pong",)}),
    Mutation("the bytes of a valid barrier used again", "exchange",
        dropped("ts_mbarrier_invalidate(ping);"), {"mbarrier": ("write: the bytes",)}),
    Mutation("a warp that plays a round less", "exchange",
        replaced("round < rounds", "round < rounds - ts_warp()"),
        {"deadlock": ("wait: returned", "barrier: game over")}),
    Mutation("a block barrier in one branch", "exchange",
        replaced(RETURN, f"ts_barrier(); {RETURN}"), {"deadlock": ("write: return", "wait: returned")}),
)

EXCHANGE_VARIANTS = (
    Variant("a poll in place of the wait", "exchange",
        replaced(WAIT_RETURNED, "while (!ts_mbarrier_test(pong, round & 1)) {}")),
    Variant("a wait in place of the poll", "exchange", replaced(POLL_SERVED, "ts_mbarrier_wait(ping, round & 1); {")),
    Variant("one lane arrives for its warp", "exchange",
        (("init(ping, 32)", "init(ping, 1)"), (SERVED, f"ts_warp_barrier(); if (lane == 0) {SERVED}"))),
    Variant("the barriers stay valid", "exchange",
        (*dropped("ts_mbarrier_invalidate(ping);"), *dropped("ts_mbarrier_invalidate(pong);"),
         ("(shared, mine)", "(shared + 16, mine)"))),
)

# ---- the reduction -----------------------------------------------------------------------------------------------

OWN = "ts_st_shared<float, 1>(scratch + lane * 4, value);"
SHUFFLE = "value[0] += ts_shfl_xor(value[0], mask);  // shuffle: "
PARTIAL = "if (lane == 0) ts_st_shared<float, 1>(shared + PARTIALS + warp * 4, value);"
PARTIAL_READ = "shared + PARTIALS + lane * 4"
VISIBLE = "ts_barrier();  // barrier: partial sums visible"
ALL_READ = "ts_barrier();  // barrier: partial sums read"
STORE = "if (lane == 0) ts_st_global<float, 1>(out + row, value);"
PARTIAL_RACE = {"race": ("write: partial sum", "read: partial sums")}

REDUCE_MUTATIONS = (
    Mutation("no warp barrier", "reduce", dropped("ts_warp_barrier();"), {"race": ("write: own value",)}),
    Mutation("no barrier before the partial sums are read", "reduce", dropped(VISIBLE), PARTIAL_RACE),
    Mutation("no barrier after the partial sums are read", "reduce", dropped(ALL_READ), PARTIAL_RACE),
    Mutation("a warp barrier before the partial sums are read", "reduce",
        replaced(VISIBLE, "ts_warp_barrier();"), PARTIAL_RACE),
    Mutation("a barrier more in one warp", "reduce",
        replaced(ALL_READ, "ts_barrier(); if (warp == 0) ts_barrier();"),
        {"divergent": ("barrier: partial sums visible", "barrier: partial sums read")}),
    Mutation("a barrier for all but one lane", "reduce",
        replaced(ALL_READ, "if (ts_thread() != 77 || row < rows - 1) ts_barrier();"),
        {"divergent": ("barrier: partial sums read",)}),
    Mutation("a warp that returns", "reduce",
        replaced("float value[1], other[1];", "float value[1], other[1]; if (warp == 3) return;"),
        {"divergent": ("barrier: partial sums visible",)}),
    Mutation("a lane that returns", "reduce",
        replaced("float value[1], other[1];", "float value[1], other[1]; if (lane == 9) return;"),
        {"divergent": ("order: values written",)}),
    Mutation("a shuffle of half of the lanes", "reduce",
        replaced(f"{SHUFFLE}within", f"if (lane < 16) {SHUFFLE}within"), {"divergent": ("shuffle: within the warp",)}),
    Mutation("a shuffle of the lanes with a partial sum", "reduce",
        replaced(f"{SHUFFLE}over", f"if (lane < 4) {SHUFFLE}over"), {"divergent": ("shuffle: over the warps",)}),
    Mutation("partial sums over the scratch of the last warp", "reduce",
        replaced("PARTIALS 512", "PARTIALS 496"), {"race": ("write: own value", "write: partial sum")}),
    Mutation("a partial sum over the own scratch", "reduce",
        ((PARTIAL, PARTIAL.replace("PARTIALS + warp * 4", "warp * 128")), (PARTIAL_READ, "shared + lane * 128")),
        {"race": ("write: partial sum",)}),
    Mutation("one scratch for two warps", "reduce",
        replaced("warp * 128", "warp / 2 * 128"), {"race": ("write: own value",)}),
    Mutation("a partial sum beyond the block", "reduce",
        replaced("PARTIALS 512", "PARTIALS 516"), {"shared-out-of-bounds": ("write: partial sum",)}),
    Mutation("a partial sum of a fifth warp", "reduce",
        replaced("lane < 4", "lane < 5"), {"shared-out-of-bounds": ("read: partial sums",)}),
    Mutation("no partial sum of the first warp", "reduce",
        replaced(PARTIAL, PARTIAL.replace("lane == 0", "lane == 0 && warp > 0")),
        {"uninitialised": ("read: partial sums",)}),
    Mutation("half of the values written", "reduce",
        replaced(OWN, f"if (lane < 16) {OWN}"), {"uninitialised": ("read: partner's value",)}),
    Mutation("no row stored", "reduce",
        replaced(STORE, STORE.replace("lane == 0", "lane == 32")), {"unwritten": ("",)}),
    Mutation("every row stored at one place", "reduce", replaced("out + row,", "out,"), {"unwritten": ("",)}),
    Mutation("two lanes that store different sums", "reduce",
        replaced(STORE, STORE.replace("lane == 0", "lane % 16 == 0")), {"conflicting-writes": ("store: out",)}),
    Mutation("a row stored one on", "reduce",
        replaced("out + row,", "out + row + 1,"), {"global-out-of-bounds": ("store: out",)}),
    Mutation("a row stored in the input", "reduce",
        replaced("out + row,", "(float*)x + row,"), {"read-only": ("store: out",)}),
    Mutation("a row loaded one on", "reduce",
        replaced("x + row * 128", "x + (row + 1) * 128"), {"global-out-of-bounds": ("load: x",)}),
    Mutation("a plain pointer past the block", "reduce",
        replaced(OWN, f"{OWN} if (warp == 3) shared[512 + lane] = 0;"), {"guard-overwritten": ("",)}),
)

REDUCE_VARIANTS = (
    Variant("a block barrier in place of the warp's", "reduce", replaced("ts_warp_barrier();", "ts_barrier();")),
    Variant("every lane with the sum stores it", "reduce", replaced(STORE, STORE.replace("lane == 0", "lane < 4"))),
    Variant("partial sums over the own scratch after a warp barrier", "reduce",
        ((PARTIAL, f"ts_warp_barrier(); {PARTIAL.replace('PARTIALS + warp * 4', 'warp * 128')}"),
         (PARTIAL_READ, "shared + lane * 128"))),
)

# fmt: on
MUTATIONS = (*GROUP_MUTATIONS, *RING_MUTATIONS, *EXCHANGE_MUTATIONS, *REDUCE_MUTATIONS)
VARIANTS = (*GROUP_VARIANTS, *RING_VARIANTS, *EXCHANGE_VARIANTS, *REDUCE_VARIANTS)
