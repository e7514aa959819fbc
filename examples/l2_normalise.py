"""Every row divided by its Euclidean length, as keys and queries of attention are.

tessera run examples/l2_normalise.py::l2_normalise --dims M=300,N=256
"""

import tessera as ts
from tessera import Tensor, tile

ROWS = 16
SHORTEST = 1e-12  # a row shorter than this is divided by this


@ts.kernel
def l2_normalise(x: Tensor["M", "N", ts.bf16], output: Tensor["M", "N", ts.bf16]):
    """output[m] = x[m] / max(|x[m]|, 1e-12), computed in f32, rounded once"""
    first = tile.program_id(0) * ROWS
    rows = tile.cast(x[first : first + ROWS], ts.f32)
    length = tile.sqrt(tile.sum(rows * rows, axis=-1, keepdims=True))
    tile.store(rows * (1.0 / tile.maximum(length, SHORTEST)), output[first : first + ROWS])
