"""Vector addition, the smallest kernel, in f32 and in bf16.

Each program adds one block of the vectors. The last one may reach past their end: a load gives zeros there and a store
leaves them out, so N need not be a multiple of BLOCK.

    tessera run examples/vector_add.py::vector_add --dims N=1000
"""

import tessera as ts
from tessera import Tensor, tile

BLOCK = 1024


@ts.kernel
def vector_add(x: Tensor["N", ts.f32], y: Tensor["N", ts.f32], output: Tensor["N", ts.f32]):
    """output = x + y"""
    start = tile.program_id(0) * BLOCK
    total = x[start : start + BLOCK] + y[start : start + BLOCK]
    tile.store(total, output[start : start + BLOCK])


@ts.kernel
def vector_add_bf16(x: Tensor["N", ts.bf16], y: Tensor["N", ts.bf16], output: Tensor["N", ts.bf16]):
    """output = x + y, computed in f32 and rounded once to bf16"""
    start = tile.program_id(0) * BLOCK
    total = x[start : start + BLOCK] + y[start : start + BLOCK]
    tile.store(total, output[start : start + BLOCK])
