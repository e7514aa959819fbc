"""Matrix product of fp8 operands, each with one scale for the whole matrix: output = scale_a * scale_b * (A @ B.T).

Both operands are stored along K, A as [M, K] and B as [N, K]: warpgroups then multiply fp8 as it is, and add in f32
after every 128 of K. `gemm_fp8_fast` leaves the sums in the matrix unit, which keeps about 14 bits of them, to the end.

    tessera run examples/gemm_fp8.py::gemm_fp8 --dims M=200,N=150,K=256
"""

import tessera as ts
from tessera import Tensor, tile

SPACE = dict(
    BLOCK_M=[128, 64],
    BLOCK_N=[128, 256, 64],
    BLOCK_K=[128, 64],
    num_warps=[8, 4],
    num_stages=[4, 3, 2],
)


def make_gemm(precision=None):
    @ts.kernel.autotune(space=SPACE, key=["M", "N", "K"])
    def gemm(
        a: Tensor["M", "K", ts.fp8_e4m3],
        b: Tensor["N", "K", ts.fp8_e4m3],
        scale_a: float,
        scale_b: float,
        output: Tensor["M", "N", ts.bf16],
    ):
        ctx = tile.context()
        m = tile.program_id(0) * ctx.BLOCK_M
        n = tile.program_id(1) * ctx.BLOCK_N
        acc = tile.zeros([ctx.BLOCK_M, ctx.BLOCK_N], ts.f32)
        for k in tile.range(0, ctx.K, ctx.BLOCK_K):
            a_block = a[m : m + ctx.BLOCK_M, k : k + ctx.BLOCK_K]
            b_block = b[n : n + ctx.BLOCK_N, k : k + ctx.BLOCK_K]
            acc = tile.mma(a_block, b_block, acc, transpose_b=True, precision=precision)
        tile.store(acc * (scale_a * scale_b), output[m : m + ctx.BLOCK_M, n : n + ctx.BLOCK_N])

    return gemm


gemm_fp8 = make_gemm()
gemm_fp8_fast = make_gemm("fast_accum")
