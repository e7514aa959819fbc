"""Mutations of which memory a kernel touches: masks, windows, vector widths, pointers, grids, owners."""

from tests.check.mutations import Edit, mutation
from tests.check.mutations_kernels import (
    BATCHED,
    BLOCKS,
    DIFFERENCE,
    GATHER,
    GATING,
    HISTOGRAM,
    MMA,
    NT,
    SOFTMAX,
    STORE,
    TRANSPOSE,
    VECTOR,
)

MASKS = [
    mutation(
        "a store without its row mask",
        *NT,
        Edit("st_global", r"c0 < window_2_valid0", "true"),
        "global-out-of-bounds",
        "st_global",
        STORE,
    ),  # fmt: skip
    mutation(
        # Beyond a row lies the next one, and beyond the last row nothing.
        "a store without its column mask",
        *NT,
        Edit("st_global", r"window_2_valid1 - c1", "64"),
        "conflicting-writes global-out-of-bounds",
        "st_global",
        STORE,
    ),  # fmt: skip
    mutation(
        "a store one column too wide",
        *NT,
        Edit("st_global", r"window_2_valid1 - c1", "window_2_valid1 + 1 - c1"),
        "conflicting-writes global-out-of-bounds",
        "st_global",
        STORE,
    ),  # fmt: skip
    mutation(
        "a store one row too high",
        *NT,
        Edit("st_global", r"c0 < window_2_valid0", "c0 <= window_2_valid0"),
        "global-out-of-bounds",
        "st_global",
        STORE,
    ),  # fmt: skip
    mutation(
        "a store one row too low",
        *NT,
        Edit("st_global", r"c0 < window_2_valid0", "c0 < window_2_valid0 - 1"),
        "unwritten",
        "st_global",
        STORE,
    ),  # fmt: skip
    mutation(
        "a store one element short",
        *VECTOR,
        Edit("st_global", r"window_3_valid0 - c0", "window_3_valid0 - 1 - c0"),
        "unwritten",
        "st_global",
        "tile.store(total",
        full=True,
    ),  # fmt: skip
    mutation(
        "a copy without its mask",
        *NT,
        Edit("cp_async", r"count \* 2", "16"),
        "global-out-of-bounds",
        "cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "a copy one row too high",
        *NT,
        Edit("cp_async", r"first < a_block_valid0", "first <= a_block_valid0"),
        "global-out-of-bounds",
        "cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "a copy that asks for more bytes than it moves",
        *NT,
        Edit("cp_async", r"left > 0 \? 8 : 0", "left"),
        "global-out-of-bounds",
        "cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "a load one column too wide",
        *SOFTMAX,
        Edit("ld_global", r"20 - c1", "21 - c1"),
        "global-out-of-bounds",
        "ld_global",
        "rows = tile.cast(",
    ),  # fmt: skip
    mutation(
        "a load without its mask",
        *VECTOR,
        Edit("ld_global", r"window_valid0 >= 1024", "true"),
        "global-out-of-bounds",
        "ld_global",
        "total = x[",
    ),  # fmt: skip
    mutation(
        "an atomic update without its upper limit",
        *HISTOGRAM,
        Edit("atomic_scatter", r" && at < dim_K", ""),
        "global-out-of-bounds",
        "atomic_scatter",
        "tile.atomic_add(counts",
    ),  # fmt: skip
]

WINDOWS = [
    mutation(
        "a window one row too low",
        *NT,
        Edit("window a_block", r"a \+ m \* dim_K", "a + (m + 1) * dim_K"),
        "global-out-of-bounds",
        "cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "a window one row too high",
        *SOFTMAX,
        Edit("window", r"first \* 20", "(first - 1) * 20"),
        "global-out-of-bounds",
        "ld_global",
        "rows = tile.cast(",
        full=True,
    ),  # fmt: skip
    mutation(
        "the window of another program",
        *BATCHED,
        Edit("window", r"i_2 \* dim_K \* dim_M", "(1 - i_2) * dim_K * dim_M"),
        "wrong-value",
        "window",
        MMA,
    ),  # fmt: skip
    mutation(
        "programs that write the same rows",
        *BLOCKS,
        Edit("window", r"output \+ m \* dim_N", "output + 0 * dim_N", number=7),
        "conflicting-writes",
        "st_global",
        STORE,
    ),  # fmt: skip
    mutation(
        "a copy with the stride of another tensor",
        *NT,
        Edit("cp_async", r"\* dim_K", "* dim_N"),
        "wrong-value",
        "cp_async",
        MMA,
        full=True,
    ),  # fmt: skip
    mutation(
        "a store with the stride of another tensor",
        *TRANSPOSE,
        Edit("st_global", r"\* dim_M", "* dim_N"),
        "conflicting-writes global-out-of-bounds",
        "st_global",
        "tile.store(x[m",
        full=True,
    ),  # fmt: skip
    mutation(
        "a program's other id",
        *BLOCKS,
        Edit("program_id", r"ts_block_id\(0\)", "ts_block_id(1)"),
        "unwritten",
        "st_global",
        STORE,
    ),  # fmt: skip
    mutation(
        "rows divided by a dim that may be zero",
        *GATHER,
        Edit("program_id k", r"ts_block_id\(0\)", "ts_floordiv(ts_block_id(0) * dim_K, dim_K - 7)"),
        "division-by-zero",
        "program_id",
        "k = tile.program_id(0)",
    ),  # fmt: skip
]

ACCESSES = [
    mutation(
        "a load from global memory with vectors twice as wide",
        *BLOCKS,
        Edit("ld_global", r"r \+= 2\) \{(\s+.*\s+)ts_ld_global<ts_bf16, 2>", r"r += 4) {\1ts_ld_global<ts_bf16, 4>"),
        "misaligned",
        "ld_global",
        STORE,
    ),  # fmt: skip
    mutation(
        "a store to shared memory with vectors twice as wide",
        *GATING,
        [Edit("st_shared", r"r \+= 2", "r += 4"), Edit("st_shared", "<ts_bf16, 2>", "<ts_bf16, 4>")],
        "misaligned",
        "st_shared",
        "tile.store_global(",
    ),  # fmt: skip
    mutation(
        "rows of matrices that begin between two multiples of 16 bytes",
        *DIFFERENCE,
        Edit("ld_matrices", r"S0\((.*)\)\);", r"S0(\1) + 8);"),
        "misaligned",
        "ld_matrices",
        "difference =",
    ),  # fmt: skip
    mutation(
        "a copy twice as wide",
        *BATCHED,
        Edit("cp_async", "<4, false>", "<8, false>"),
        "misaligned",
        "cp_async",
        MMA,
    ),  # fmt: skip
    mutation(
        "a store through a pointer to an input",
        *VECTOR,
        Edit("st_global", r"\(window_3 \+", "((float*)window +"),
        "read-only",
        "st_global",
        "tile.store(total",
    ),  # fmt: skip
    mutation(
        "an output that is read before it is written",
        *VECTOR,
        Edit("ld_global", r"window \+ c0", "output + start + c0"),
        "uninitialised",
        "ld_global",
        "total = x[",
    ),  # fmt: skip
    mutation(
        "an atomic update by every replica",
        *HISTOGRAM,
        Edit("atomic_scatter", "L0_owner && ", ""),
        "wrong-value",
        "atomic_scatter",
        "tile.atomic_add(counts",
    ),  # fmt: skip
    mutation(
        "an update that is not atomic",
        *HISTOGRAM,
        Edit(
            "atomic_scatter",
            r"ts_atomic_add\(counts \+ at, cast\[r\]\);",
            "{ ts_i32 sum; ts_ld_global<ts_i32, 1>(&sum, counts + at); sum += cast[r]; "
            "ts_st_global<ts_i32, 1>(counts + at, &sum); }",
        ),
        "race",
        "atomic_scatter",
        "tile.atomic_add(counts",
    ),  # fmt: skip
    mutation(
        "lanes that return before the store",
        *SOFTMAX,
        Edit("st_global", "^", "if (ts_lane() < 4) return; "),
        "unwritten",
        "st_global",
        "tile.store(weights",
    ),  # fmt: skip
    mutation("a block of twice the threads", *NT, [], "bad-launch", "", "def matmul(", threads=256),
    mutation("a block of half the threads", *NT, [], "uninitialised", "ldmatrix", MMA, threads=64),
]

MUTATIONS = [*MASKS, *WINDOWS, *ACCESSES]
