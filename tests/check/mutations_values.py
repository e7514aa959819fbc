"""Mutations that touch only what they may and compute something else, and those of warp collectives."""

from tests.check.mutations import Edit, Mutation, mutation
from tests.check.mutations_kernels import (
    COLUMN_SUM,
    DIFFERENCE,
    F32,
    FP8,
    GATING,
    HISTOGRAM,
    LAYER_NORM,
    MAX,
    MMA,
    NN,
    NT,
    PERCEPTRON,
    SCAN,
    SOFTMAX,
    STORE,
    TRANSPOSE,
    VECTOR,
)


def wrong(
    name: str, kernel: tuple[str, dict[str, int]], edits: Edit | list[Edit], op: str, at: str, full: bool = False
) -> Mutation:
    """A mutation that only shows in values."""
    return mutation(name, *kernel, edits, "wrong-value", op, at, full=full)


FRAGMENTS = [
    wrong(
        "a swizzle bit wrong where a copy writes",
        NT,
        Edit("cp_async", r"S0\(first, col\)", "(S0(first, col) ^ 16)"),
        "cp_async",
        MMA,
    ),
    wrong(
        "a swizzle bit wrong where a fragment is read",
        NT,
        Edit("ldmatrix b", r"\^ S0_x", "^ 16 ^ S0_x"),
        "ldmatrix",
        MMA,
    ),
    mutation(
        "rows and columns swapped where a copy writes",
        *NT,
        Edit("cp_async", r"S0\(first, col\)", "S0(col, first)"),
        "misaligned",
        "cp_async",
        MMA,
    ),
    wrong(
        "rows and columns swapped where a tile is stored",
        TRANSPOSE,
        Edit("st_shared", r"S0\(c0, c1\)", "S0(c1, c0)"),
        "st_shared",
        "tile.store(x[m",
    ),
    wrong(
        "a swizzle bit wrong where matrices are read",
        DIFFERENCE,
        Edit("ld_matrices", r"\^ S0_x", "^ 16 ^ S0_x"),
        "ld_matrices",
        "difference =",
    ),
    wrong(
        "matrices 1 and 2 swapped",
        DIFFERENCE,
        Edit(
            "ld_matrices",
            r"\(ts_lane\(\) >> 3 & 1\)(.*)\(ts_lane\(\) >> 4 & 1\)",
            r"(ts_lane() >> 4 & 1)\1(ts_lane() >> 3 & 1)",
        ),
        "ld_matrices",
        "difference =",
    ),
    wrong(
        "the k-block before, of an operand in registers",
        PERCEPTRON,
        Edit("fragment a", r"\+ 8 \+", "+ 0 +", number=1),
        "fragment",
        "tile.store(tile.mma(hidden",
    ),
    wrong(
        "halves of a fragment's words swapped",
        PERCEPTRON,
        Edit("fragment a", r"\+ 1\]", "]"),
        "fragment",
        "tile.store(tile.mma(hidden",
    ),
    wrong(
        "operands of a difference the other way round",
        DIFFERENCE,
        Edit("sub difference", "ts_sub_pair", "ts_add_pair"),
        "sub",
        "difference =",
    ),
    wrong("a missing .trans", NN, Edit("ldmatrix b", "_trans", ""), "ldmatrix", MMA),
    wrong("a .trans too many", NT, Edit("ldmatrix a", "x4", "x4_trans"), "ldmatrix", MMA),
    wrong(
        "words 1 and 2 of a fragment swapped",
        NT,
        Edit(
            "ldmatrix a", r"\(ts_lane\(\) >> 3 & 1\)(.*)\(ts_lane\(\) >> 4\)", r"(ts_lane() >> 4)\1(ts_lane() >> 3 & 1)"
        ),
        "ldmatrix",
        MMA,
    ),
    wrong(
        "rows of a fragment off by one",
        NT,
        Edit("ldmatrix b", r"\(ts_lane\(\) & 7\)", "(ts_lane() + 1 & 7)"),
        "ldmatrix",
        MMA,
        full=True,
    ),
    wrong(
        "rows of an f32 operand swapped",
        F32,
        Edit("ld_operand a", r"L1_t0 \+ 8,", "L1_t0 + 16,"),
        "ld_operand",
        MMA,
        full=True,
    ),
    wrong(
        "bytes of a packed operand swapped",
        FP8,
        Edit("ld_operand a", r"\[2 \* w\], a_2_elements\[2 \* w \+ 1\]", "[2 * w + 1], a_2_elements[2 * w]"),
        "ld_operand",
        MMA,
    ),
    wrong(
        "rows of a fragment swapped in a store",
        NT,
        Edit("st_shared", r"\[r \+ i\]", "[(r ^ 2) + i]"),
        "st_shared",
        STORE,
    ),
    wrong(
        "a broadcast from the wrong register",
        NT,
        Edit("broadcast", r"broadcast\[5\] = ld_global\[3\]", "broadcast[5] = ld_global[2]"),
        "broadcast",
        STORE,
        full=True,
    ),
]

PRODUCTS = [
    wrong("columns of a product swapped", NT, Edit("mma_sync", r"b_2 \+ 2 \* j", "b_2 + 2 * (j ^ 1)"), "mma_sync", MMA),
    wrong(
        "the accumulator of another block",
        NT,
        Edit("mma_sync", r"i \* 4 \+ j\)", "i * 4 + (j + 1) % 4)"),
        "mma_sync",
        MMA,
        full=True,
    ),
    wrong("one column of products left out", NT, Edit("mma_sync", "j = 0", "j = 1"), "mma_sync", MMA, full=True),
    wrong("the product of another type", FP8, Edit("mma_sync", "k16_f16", "k16_bf16"), "mma_sync", MMA, full=True),
    wrong(
        "a product of another row",
        F32,
        Edit("fma_block", r"acc_3\[5\], a_2 \+ 1", "acc_3[5], a_2 + 2"),
        "fma_block",
        MMA,
    ),
    wrong(
        "an accumulator that does not start at zero",
        (NT[0], {"M": 33, "N": 72, "K": 80}),
        Edit("full acc", r"\bacc\[r\] = [^;]*;", "acc[r] = 0.5f;"),
        "full",
        "acc = tile.zeros",
    ),
    wrong(
        "an accumulator that a product does not start from",
        NT,
        Edit("mma_sync", r"acc_4\[r\] = acc_3\[r\];", ";"),
        "mma_sync",
        MMA,
        full=True,
    ),
    wrong(
        "an accumulator that is not carried on",
        COLUMN_SUM,
        Edit("yield", r"v_total_2\[r\] = v_total_3\[r\]", ";"),
        "yield",
        "for row in tile.range",
    ),
]

LOOPS = [
    wrong(
        "a loop that starts one block late",
        NT,
        Edit("for acc", r"k = (constant_\d+)", r"k = \1 + 32"),
        "for",
        "for k in tile.range",
    ),
    wrong(
        "a loop that ends one block early",
        NT,
        Edit("for acc", r"k < (\w+)", r"k < \1 - 16"),
        "for",
        "for k in tile.range",
    ),
    wrong(
        "an inner loop that ends one step late",
        NT,
        Edit("for acc", "k_2 < ", "k_2 <= ", number=1),
        "for",
        MMA,
    ),
    wrong(
        "a loop with another step",
        COLUMN_SUM,
        Edit("for total", r"row \+= constant_4", "row += 2 * constant_4"),
        "for",
        "for row in tile.range",
        full=True,
    ),
]

COLLECTIVES = [
    mutation(
        "a shuffle for half of the lanes",
        *SOFTMAX,
        Edit("reduce_sum", r"x0 = (x0 \+ ts_shfl_xor)", r"if (ts_lane() < 16) x0 = \1", count=1),
        "divergent",
        "reduce_sum",
        "scale = 1.0 / tile.sum(",
    ),
    mutation(
        "a shuffle that a lane left before",
        *SOFTMAX,
        Edit("reduce_max", "^", "if (ts_lane() == 31) return; "),
        "divergent",
        "reduce_max",
        MAX,
    ),
    mutation(
        "a matrix load for half of the lanes",
        *NT,
        Edit("ldmatrix b", "ts_ldmatrix", "if (ts_lane() & 1) ts_ldmatrix", count=1),
        "divergent",
        "ldmatrix",
        MMA,
    ),
    wrong(
        "a shuffle from another row",
        SOFTMAX,
        Edit("reduce_max", r"ts_shfl_xor\(x0, 16\)", "ts_shfl_xor(x0, 1)"),
        "reduce_max",
        MAX,
    ),
    wrong(
        "a shuffle too few",
        LAYER_NORM,
        Edit("reduce_sum", r"x0 \+ ts_shfl_xor\(x0, 16\)", "x0"),
        "reduce_sum",
        "centred = rows - tile.mean",
        full=True,
    ),
    wrong(
        "sums that are added in another order",
        COLUMN_SUM,
        [
            Edit("reduce_sum", r"ts_shfl_xor\((x\d+), 4\)", r"ts_shfl_xor(\1, 32)"),
            Edit("reduce_sum", r"ts_shfl_xor\((x\d+), 16\)", r"ts_shfl_xor(\1, 4)"),
            Edit("reduce_sum", r"ts_shfl_xor\((x\d+), 32\)", r"ts_shfl_xor(\1, 16)"),
        ],
        "reduce_sum",
        "total = total +",
    ),
    wrong(
        "a scan that leaves out a lane",
        SCAN,
        Edit("scan_blocks", r"\(ts_lane\(\) & 2\) != 0", "(ts_lane() & 3) == 3"),
        "scan_blocks",
        "tile.cummax",
    ),
    wrong(
        "a maximum that starts at the wrong end",
        SOFTMAX,
        Edit("reduce_max", r"-ts_infinity\(\)", "ts_infinity()"),
        "reduce_max",
        MAX,
    ),
    wrong(
        "a sum that starts at one",
        LAYER_NORM,
        Edit("reduce_sum", r": 0\.0f", ": 1.0f"),
        "reduce_sum",
        "centred = rows - tile.mean",
        full=True,
    ),
]

ARITHMETIC = [
    wrong(
        "a cast that cuts off instead of rounding",
        GATING,
        Edit(
            "cast gated_result",
            r"ts_cast_pair\((\w+) \+ r, x0\);",
            r"for (int i = 0; i < 2; ++i) \1[r + i] = ts_bf16{(unsigned short)(*(unsigned*)&x0[i] >> 16)};",
        ),
        "cast",
        "tile.store_global(",
    ),
    wrong(
        "a rounding too many",
        GATING,
        Edit("mul gate_weights", r"ts_cast<float>\((.*)\);", r"ts_to_f32(ts_cast<ts_bf16>(\1));"),
        "mul",
        "gate_weights = tile.multiply",
        full=True,
    ),
    wrong(
        "the other branch of a select",
        HISTOGRAM,
        Edit("where", r"\? constant_2 : constant_3", "? constant_3 : constant_2"),
        "where",
        "tile.atomic_add",
        full=True,
    ),
    wrong(
        "the other operand",
        LAYER_NORM,
        Edit(
            "sub centred", r"ts_to_f32\((\w+)\[r\]\) - ts_to_f32\((\w+)\[r\]\)", r"ts_to_f32(\2[r]) - ts_to_f32(\1[r])"
        ),
        "sub",
        "centred = rows - tile.mean",
    ),
    wrong("one register left out", VECTOR, Edit("add total", "r < 8", "r < 7"), "add", "total = x[", full=True),
]

MUTATIONS = [*FRAGMENTS, *PRODUCTS, *LOOPS, *COLLECTIVES, *ARITHMETIC]
