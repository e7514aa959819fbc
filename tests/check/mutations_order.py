"""Mutations of what orders memory accesses: barriers, asynchronous copies, the placement of shared memory."""

from tests.check.mutations import Edit, mutation
from tests.check.mutations_kernels import (
    BATCHED,
    BLOCKS_OF_LINES,
    DIFFERENCE,
    F32,
    FP8,
    GATING,
    LINES,
    MMA,
    NT,
    PRODUCT,
    SCAN,
    TRANSPOSE,
)

NO_BARRIER = (r"ts_barrier\(\);", ";")
WAIT = r"ts_cp_async_wait<\d>\(\);"
COMMIT = r"ts_cp_async_commit\(\);"

BARRIERS = [
    mutation(
        # The one behind the copies makes what the wait has brought visible, but comes too late for the readers of the
        # iteration before.
        "no barrier before a stage is filled again",
        *NT,
        [Edit("barrier", *NO_BARRIER), Edit("async_commit", COMMIT, "ts_cp_async_commit(); ts_barrier();", number=2)],
        "race in-flight",
        "cp_async ldmatrix",
        MMA,
    ),  # fmt: skip
    mutation(
        # Who strikes first is a matter of order: the reader sees a copy that has not landed, or that is not ordered;
        # or the copy comes after the reader.
        "no barrier between the wait and the reader",
        *NT,
        [Edit("barrier", *NO_BARRIER), Edit("async_wait", "^", "ts_barrier(); ")],
        "race in-flight",
        "ldmatrix cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "no barrier between the wait and the reader of matrices",
        *DIFFERENCE,
        [Edit("barrier", *NO_BARRIER), Edit("async_wait", "^", "ts_barrier(); ")],
        "race in-flight",
        "ld_matrices cp_async",
        "difference =",
    ),  # fmt: skip
    mutation(
        "no barrier before a stage is filled again",
        *DIFFERENCE,
        [Edit("barrier", *NO_BARRIER), Edit("async_commit", COMMIT, "ts_cp_async_commit(); ts_barrier();", number=2)],
        "race in-flight",
        "ld_matrices cp_async",
        "difference =",
    ),  # fmt: skip
    mutation(
        "no barrier before a stage is filled again by plain stores",
        *FP8,
        [Edit("barrier", *NO_BARRIER), Edit("async_commit", COMMIT, "ts_cp_async_commit(); ts_barrier();", number=2)],
        "race",
        "cp_async ld_operand",
        MMA,
        full=True,
    ),  # fmt: skip
    mutation(
        "no barrier between plain stores and their reader",
        *FP8,
        Edit("barrier", *NO_BARRIER),
        "race",
        "ld_operand cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "no barrier between the last operands and the scratch over them",
        *BATCHED,
        Edit("barrier", *NO_BARRIER, number=1),
        "race",
        "st_shared ldmatrix",
        "tile.store(acc",
    ),  # fmt: skip
    mutation(
        "no barrier between the scratch's writers and readers",
        *TRANSPOSE,
        Edit("barrier", *NO_BARRIER),
        "race",
        "ld_shared st_shared",
        "tile.store(x[m",
    ),  # fmt: skip
    mutation(
        "no barrier between the blocks of a scan",
        *SCAN,
        Edit("barrier", *NO_BARRIER),
        "race",
        "carry_blocks st_shared",
        "tile.cummax",
    ),  # fmt: skip
    mutation(
        "no barrier between the parts of a line and the threads that add them",
        *LINES,
        Edit("barrier", *NO_BARRIER),
        "race uninitialised",
        "fold_blocks st_shared",
        "length = tile.sqrt(tile.sum",
    ),  # fmt: skip
    mutation(
        "no barrier between the blocks of a line and the threads that add them for all",
        *BLOCKS_OF_LINES,
        Edit("barrier", *NO_BARRIER),
        "race uninitialised",
        "fold_lines st_shared",
        "length = tile.sqrt(tile.sum",
    ),  # fmt: skip
    mutation(
        "no barrier between the sum of a line and its readers",
        *BLOCKS_OF_LINES,
        Edit("barrier", *NO_BARRIER, number=1),
        "race uninitialised",
        "ld_shared fold_lines",
        "length = tile.sqrt(tile.sum",
    ),  # fmt: skip
    mutation(
        "a barrier for half of the warps",
        *NT,
        Edit("barrier", r"ts_barrier\(\);", "if (ts_warp() < 2) ts_barrier();"),
        "divergent race",
        "barrier ldmatrix cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "a barrier for half of the lanes",
        *F32,
        Edit("barrier", r"ts_barrier\(\);", "if (ts_lane() < 16) ts_barrier();"),
        "divergent race",
        "barrier ld_operand cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "a warp that returns before a barrier",
        *NT,
        Edit("full acc", "^", "if (ts_warp() == 1) return; "),
        "divergent",
        "barrier",
        MMA,
    ),  # fmt: skip
    mutation(
        "a barrier in a loop that some warps leave early",
        *F32,
        Edit("for acc", r"k < (\w+)", r"k < \1 - (ts_warp() == 3 ? 16 : 0)"),
        "divergent",
        "barrier",
        MMA,
        full=True,
    ),  # fmt: skip
]

COPIES = [
    mutation("a wait that leaves one group", *NT, Edit("async_wait", "<1>", "<2>"), "in-flight", "ldmatrix", MMA),
    mutation("no wait", *NT, Edit("async_wait", WAIT, ";"), "in-flight", "ldmatrix", MMA),
    mutation("no commit", *NT, Edit("async_commit", COMMIT, ";"), "in-flight", "ldmatrix", MMA),
    mutation(
        "a copy after the wait",
        *NT,
        [
            Edit("cp_async", "^", "ts_cp_async_commit(); ts_cp_async_wait<0>(); ", number=5),
            Edit("async_commit", COMMIT, ";", number=2),
        ],
        "in-flight",
        "ldmatrix",
        MMA,
    ),  # fmt: skip
    mutation(
        "a copy after the commit",
        *NT,
        [Edit("cp_async", "^", "ts_cp_async_commit(); ", number=1), Edit("async_commit", COMMIT, ";")],
        "in-flight",
        "ldmatrix",
        MMA,
    ),  # fmt: skip
    mutation(
        "half of the lanes do not wait",
        *GATING,
        Edit("async_wait", WAIT, "if (ts_lane() < 16) ts_cp_async_wait<0>();"),
        "in-flight",
        "ldmatrix",
        PRODUCT,
        full=True,
    ),  # fmt: skip
    mutation(
        "a barrier before the wait instead of behind it",
        *GATING,
        [Edit("async_wait", WAIT, "ts_barrier();"), Edit("barrier", r"ts_barrier\(\);", "ts_cp_async_wait<0>();")],
        "race in-flight",
        "ldmatrix",
        PRODUCT,
    ),  # fmt: skip
    mutation(
        "a copy that half of the threads make",
        *NT,
        Edit("cp_async", "turn < 2", "turn < 1"),
        "uninitialised",
        "ldmatrix",
        MMA,
    ),  # fmt: skip
    mutation(
        # The first may have waited for its own already.
        "a copy that two threads make",
        *NT,
        [
            Edit("cp_async", "turn < 2", "turn < 3"),
            Edit("cp_async", r"turn \* (\(\(ts_i64\))?32", r"turn * \g<1>16"),
        ],
        "race in-flight",
        "cp_async",
        MMA,
    ),
    mutation(
        "a store to shared memory that ends one register early",
        *TRANSPOSE,
        Edit("st_shared", r"r < 8", "r < 7"),
        "uninitialised",
        "ld_shared",
        "tile.store(x[m",
    ),  # fmt: skip
]

PLACEMENT = [
    mutation(
        "one operand over the other",
        *NT,
        Edit("shared operand_1", r"\+ \d+;", "+ 0;"),
        "in-flight",
        "cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "buffers that overlap by sixteen bytes",
        *NT,
        Edit("shared operand_1", r"\+ (\d+);", r"+ \1 - 16;"),
        "race in-flight",
        "cp_async ldmatrix",
        MMA,
    ),
    mutation(
        "scratch over a buffer that is still read",
        *BATCHED,
        [
            Edit("barrier", *NO_BARRIER, number=1),
            Edit("shared acc_scratch", r"\+ 0;", "+ 4096;"),
        ],
        "race",
        "st_shared",
        "tile.store(acc",
    ),  # fmt: skip
    mutation(
        "a block with too little shared memory",
        *NT,
        [],
        "shared-out-of-bounds",
        "cp_async",
        MMA,
        shared_bytes=3 * 8192 - 16,
    ),  # fmt: skip
    mutation(
        "scratch that does not start at a whole row",
        *TRANSPOSE,
        Edit("shared", r"\+ 0;", "+ 2;"),
        "misaligned",
        "ld_shared",
        "tile.store(x[m",
        shared_bytes=2050,
    ),  # fmt: skip
]

MUTATIONS = [*BARRIERS, *COPIES, *PLACEMENT]
