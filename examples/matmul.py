"""Matrix product with a bias, for all four ways in which the operands may be stored, in bf16 and in f32.

`matmul_nt_bf16` takes A as [M, K] and B transposed as [N, K]; `nn`, `tn` and `tt` are named the same way. bf16 runs on
tensor cores and accumulates in f32; f32 is true f32. No dim has to be a multiple of its block.

    tessera run examples/matmul.py::matmul_nn_bf16 --dims M=200,N=150,K=64
"""

import tessera as ts
from tessera import Tensor, tile

BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32


def make_matmul(dtype, transpose_a=False, transpose_b=False):
    """The kernel `output = A @ B + bias` for operands of one dtype: a kernel may use what surrounds it."""
    A = Tensor["K", "M", dtype] if transpose_a else Tensor["M", "K", dtype]
    B = Tensor["N", "K", dtype] if transpose_b else Tensor["K", "N", dtype]

    @ts.kernel(name=f"matmul_{'t' if transpose_a else 'n'}{'t' if transpose_b else 'n'}_{dtype}")
    def matmul(a: A, b: B, bias: Tensor["N", dtype], output: Tensor["M", "N", dtype]):
        ctx = tile.context()
        m = tile.program_id(0) * BLOCK_M
        n = tile.program_id(1) * BLOCK_N
        acc = tile.zeros([BLOCK_M, BLOCK_N], ts.f32)
        for k in tile.range(0, ctx.K, BLOCK_K):
            a_block = block(a, k, BLOCK_K, m, BLOCK_M) if transpose_a else block(a, m, BLOCK_M, k, BLOCK_K)
            b_block = block(b, n, BLOCK_N, k, BLOCK_K) if transpose_b else block(b, k, BLOCK_K, n, BLOCK_N)
            acc = tile.mma(a_block, b_block, acc, transpose_a=transpose_a, transpose_b=transpose_b)
        tile.store(acc + bias[n : n + BLOCK_N], block(output, m, BLOCK_M, n, BLOCK_N))

    return matmul


def block(matrix, row, rows, column, columns):
    """The window of `matrix` whose first element is [row, column]."""
    return matrix[row : row + rows, column : column + columns]


matmul_nn_bf16 = make_matmul(ts.bf16)
matmul_nt_bf16 = make_matmul(ts.bf16, transpose_b=True)
matmul_tn_bf16 = make_matmul(ts.bf16, transpose_a=True)
matmul_tt_bf16 = make_matmul(ts.bf16, transpose_a=True, transpose_b=True)

matmul_nn_f32 = make_matmul(ts.f32)
matmul_nt_f32 = make_matmul(ts.f32, transpose_b=True)
matmul_tn_f32 = make_matmul(ts.f32, transpose_a=True)
matmul_tt_f32 = make_matmul(ts.f32, transpose_a=True, transpose_b=True)
