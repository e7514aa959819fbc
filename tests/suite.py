"""The kernels that every lane is tested on, with the shapes at which the issue that introduced them names them."""

import functools
import glob
import itertools

from tessera.frontend.document import load_document

DOCUMENT = "examples/gdn/gdn_part1.md"
MATMULS = [f"matmul_{case}_{dtype}" for dtype in ("bf16", "f32") for case in ("nn", "nt", "tn", "tt")]


@functools.cache
def _loaded(path):
    return load_document(path)


def load(name):
    """A kernel of the examples or of the document by name."""
    for path in (DOCUMENT, *sorted(glob.glob("examples/*.py"))):
        if name in _loaded(path).namespace:
            return _loaded(path)[name]
    raise KeyError(name)


def pairs(*axes):
    """Few tuples that hold every pair of values of every two axes (greedy all-pairs)."""
    missing = {
        ((i, a), (j, b)) for i, j in itertools.combinations(range(len(axes)), 2) for a in axes[i] for b in axes[j]
    }
    chosen = []
    while missing:
        best = max(itertools.product(*axes), key=lambda t: len(missing & _pairs_of(t)))
        chosen.append(best)
        missing -= _pairs_of(best)
    return chosen


def _pairs_of(values):
    return {((i, values[i]), (j, values[j])) for i, j in itertools.combinations(range(len(values)), 2)}


GATING = [
    ("gating_function_kernel", {"B": b, "S": s, "D": d})
    for b, s, d in pairs((1, 3), (1, 127, 129, 150), (16, 60, 64, 100, 128, 192))
]
OTHERS = [
    *(("vector_add", {"N": n}) for n in (1, 1000, 1024, 4097)),
    *(("vector_add_bf16", {"N": n}) for n in (7, 1024, 3001)),
    *(("softmax", {"M": m, "N": n}) for m, n in ((1, 1), (33, 100), (16, 256), (5, 1000))),
    *(("softmax_bf16", {"M": m, "N": n}) for m, n in ((17, 25), (40, 64), (3, 2048))),
    *((name, {"M": m, "N": n, "K": k}) for name in MATMULS for m, n, k in ((64, 64, 64), (33, 100, 129), (70, 9, 40))),
]
EXAMPLES = [
    *(("layer_norm", {"M": m, "N": n}) for m, n in ((1, 1), (33, 100), (16, 1024), (3, 2048))),
    *(("l2_normalise", {"M": m, "N": n}) for m, n in ((1, 1), (33, 100), (3, 4096), (2, 9216))),
    *(("column_sum", {"M": m, "N": n}) for m, n in ((1, 1), (70, 100), (200, 64))),
    *(("sum_of_first", {"M": m, "N": n}) for m, n in ((1, 1), (40, 130))),
    *(("cumulative_max", {"M": m, "N": n}) for m, n in ((1, 1), (33, 100), (5, 300))),
    *(("top_1", {"M": m, "N": n}) for m, n in ((1, 1), (33, 100), (64, 257))),
    *(("matmul_bias_gelu", {"M": m, "N": n, "K": k}) for m, n, k in ((64, 64, 64), (70, 9, 40))),
    *(("batched_matmul", {"B": b, "M": 33, "N": 40, "K": k}) for b, k in ((1, 16), (3, 50))),
    *(("difference_matmul", {"M": m, "N": n, "K": k}) for m, n, k in ((64, 64, 64), (33, 100, 129))),
    *(("perceptron", {"M": m, "D": d, "H": h, "N": n}) for m, d, h, n in ((64, 32, 64, 48), (33, 20, 24, 9))),
    *(("fp8_matmul", {"M": m, "N": n, "K": k}) for m, n, k in ((64, 64, 64), (33, 100, 129))),
    *(
        (f"gemm_{case}", {"M": m, "N": n, "K": k})
        for case, m, n, k in (
            ("nn", 70, 150, 40),
            ("nt", 33, 100, 129),
            ("tn", 128, 128, 64),
            ("tt", 9, 200, 72),
        )
    ),
    *(("transpose", {"M": m, "N": n}) for m, n in ((1, 1), (33, 100), (64, 32))),
    *(("gather_rows", {"M": 20, "N": n, "K": k}) for n, k in ((1, 1), (100, 30))),
    *(("histogram", {"N": n, "K": k}) for n, k in ((1, 16), (1000, 12))),
]
SUITE = GATING + OTHERS + EXAMPLES


def identify(case):
    name, dims = case
    return f"{name}-{'x'.join(map(str, dims.values()))}"
