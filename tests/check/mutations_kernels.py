"""The kernels that are broken, at shapes that are small and ragged, and pieces of lines at which findings must come."""

NT = ("matmul_nt_bf16", {"M": 33, "N": 72, "K": 112})  # two blocks along n, four steps along k, the last ones ragged
BLOCKS = ("matmul_nt_bf16", {"M": 72, "N": 72, "K": 32})  # two blocks along each axis
NN = ("matmul_nn_bf16", {"M": 33, "N": 40, "K": 48})
F32 = ("matmul_nn_f32", {"M": 33, "N": 40, "K": 40})
FP8 = ("fp8_matmul", {"M": 33, "N": 24, "K": 104})
BATCHED = ("batched_matmul", {"B": 2, "M": 33, "N": 40, "K": 50})
GATING = ("gating_function_kernel", {"B": 1, "S": 150, "D": 64})
DIFFERENCE = ("difference_matmul", {"M": 33, "N": 72, "K": 112})  # an operand that is computed in registers
PERCEPTRON = ("perceptron", {"M": 33, "D": 48, "H": 32, "N": 24})  # and one that another product leaves there
SOFTMAX = ("softmax", {"M": 33, "N": 20})
LAYER_NORM = ("layer_norm", {"M": 33, "N": 20})
LINES = ("l2_normalise", {"M": 2, "N": 4096})  # warps share a line, and every thread adds what each of them has
BLOCKS_OF_LINES = ("l2_normalise", {"M": 2, "N": 9216})  # that have more parts, which a few threads add for all
COLUMN_SUM = ("column_sum", {"M": 70, "N": 100})
SCAN = ("cumulative_max", {"M": 20, "N": 100})
TRANSPOSE = ("transpose", {"M": 40, "N": 48})  # with scratch, since rows of both sides are whole vectors
VECTOR = ("vector_add", {"N": 1500})
GATHER = ("gather_rows", {"M": 20, "N": 100, "K": 7})
HISTOGRAM = ("histogram", {"N": 100, "K": 12})

ALL = (
    NT, NN, F32, FP8, BATCHED, GATING, DIFFERENCE, PERCEPTRON, SOFTMAX, LAYER_NORM, LINES, BLOCKS_OF_LINES, COLUMN_SUM,
    SCAN, TRANSPOSE, VECTOR, GATHER, HISTOGRAM,
)  # fmt: skip

MMA = "acc = tile.mma("
STORE = "tile.store(acc + bias"
PRODUCT = "gate_weights = tile.mma("
MAX = "shifted = rows - tile.max("
