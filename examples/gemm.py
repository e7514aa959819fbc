"""Matrix product whose tile sizes are left open: the tuner chooses them for each size, and the author writes no number.

All four ways in which bf16 operands may be stored, named as in matmul.py: `gemm_nt` takes A as [M, K] and B transposed
as [N, K]. Without tuning each constant is the first of its list.

    tessera run examples/gemm.py::gemm_nn --dims M=200,N=150,K=64
"""

import tessera as ts
from tessera import Tensor, tile

SPACE = dict(
    BLOCK_M=[128, 64],
    BLOCK_N=[128, 64, 256],
    BLOCK_K=[64, 32],
    num_warps=[8, 4],
    num_stages=[3, 2, 4],
)


def make_gemm(transpose_a=False, transpose_b=False):
    """The kernel `output = A @ B` for one way of storing the operands."""
    A = Tensor["K", "M", ts.bf16] if transpose_a else Tensor["M", "K", ts.bf16]
    B = Tensor["N", "K", ts.bf16] if transpose_b else Tensor["K", "N", ts.bf16]

    @ts.kernel.autotune(space=SPACE, key=["M", "N", "K"])
    def gemm(a: A, b: B, output: Tensor["M", "N", ts.bf16]):
        ctx = tile.context()
        m = tile.program_id(0) * ctx.BLOCK_M
        n = tile.program_id(1) * ctx.BLOCK_N
        acc = tile.zeros([ctx.BLOCK_M, ctx.BLOCK_N], ts.f32)
        for k in tile.range(0, ctx.K, ctx.BLOCK_K):
            a_block = block(a, m, ctx.BLOCK_M, k, ctx.BLOCK_K, transpose_a)
            b_block = block(b, k, ctx.BLOCK_K, n, ctx.BLOCK_N, transpose_b)
            acc = tile.mma(a_block, b_block, acc, transpose_a=transpose_a, transpose_b=transpose_b)
        tile.store(acc, block(output, m, ctx.BLOCK_M, n, ctx.BLOCK_N))

    return gemm


def block(matrix, row, rows, column, columns, transposed=False):
    """The window of `matrix` whose first element is [row, column], as it is stored."""
    if transposed:
        return matrix[column : column + columns, row : row + rows]
    return matrix[row : row + rows, column : column + columns]


gemm_nn = make_gemm()
gemm_nt = make_gemm(transpose_b=True)
gemm_tn = make_gemm(transpose_a=True)
gemm_tt = make_gemm(transpose_a=True, transpose_b=True)
