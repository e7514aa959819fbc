"""Layer norm of every row: subtract the mean, divide by the standard deviation, scale and shift per column.

tessera run examples/layer_norm.py::layer_norm --dims M=300,N=256
"""

import tessera as ts
from tessera import Tensor, tile

ROWS = 16
EPSILON = 1e-5


@ts.kernel
def layer_norm(
    x: Tensor["M", "N", ts.bf16],
    weight: Tensor["N", ts.bf16],
    bias: Tensor["N", ts.bf16],
    output: Tensor["M", "N", ts.bf16],
):
    """output[m] = (x[m] - mean) * rsqrt(variance + epsilon) * weight + bias, computed in f32, rounded once"""
    first = tile.program_id(0) * ROWS
    rows = tile.cast(x[first : first + ROWS], ts.f32)
    centred = rows - tile.mean(rows, axis=-1, keepdims=True)
    variance = tile.mean(centred * centred, axis=-1, keepdims=True)
    scaled = centred * tile.rsqrt(variance + EPSILON)
    tile.store(scaled * weight[:] + bias[:], output[first : first + ROWS])
