"""Moving data: a transpose, rows picked by an index tensor, and a histogram by atomic additions.

tessera run examples/data_movement.py::transpose --dims M=300,N=200
"""

import tessera as ts
from tessera import Tensor, tile

BLOCK = 32


@ts.kernel
def transpose(x: Tensor["M", "N", ts.bf16], output: Tensor["N", "M", ts.bf16]):
    """output = x.T: both sides are read and written along their rows"""
    m, n = tile.program_id(0) * BLOCK, tile.program_id(1) * BLOCK
    tile.store(x[m : m + BLOCK, n : n + BLOCK].T, output[n : n + BLOCK, m : m + BLOCK])


@ts.kernel(grid=lambda d: (d.K,))
def gather_rows(x: Tensor["M", "N", ts.f32], index: Tensor["K", ts.i32], output: Tensor["K", "N", ts.f32]):
    """output[k] = x[index[k]]: the row to read is itself loaded"""
    k = tile.program_id(0)
    row = tile.load_scalar(index[k])
    tile.store(x[row : row + 1], output[k : k + 1])


@ts.kernel
def histogram(values: Tensor["N", ts.i32], counts: Tensor["K", ts.i32]):
    """counts[v] += 1 for every v of `values`; values outside 0..K-1 are not counted"""
    ctx = tile.context()
    start = tile.program_id(0) * BLOCK
    inside = tile.arange(BLOCK) + start < ctx.N  # beyond the end a load gives 0, which is a value to count
    tile.atomic_add(counts, tile.where(inside, 1, 0), index=values[start : start + BLOCK])
