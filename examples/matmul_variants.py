"""Matrix products with more around them: bias and GELU in the epilogue, a batch of products, and fp8 operands.

tessera run examples/matmul_variants.py
"""

import tessera as ts
from tessera import Tensor, tile

BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32


@ts.kernel
def matmul_bias_gelu(
    a: Tensor["M", "K", ts.bf16],
    b: Tensor["K", "N", ts.bf16],
    bias: Tensor["N", ts.bf16],
    output: Tensor["M", "N", ts.bf16],
):
    """output = gelu(a @ b + bias), with the accumulator still in registers"""
    ctx = tile.context()
    m, n = tile.program_id(0) * BLOCK_M, tile.program_id(1) * BLOCK_N
    acc = tile.zeros([BLOCK_M, BLOCK_N], ts.f32)
    for k in tile.range(0, ctx.K, BLOCK_K):
        acc = tile.mma(a[m : m + BLOCK_M, k : k + BLOCK_K], b[k : k + BLOCK_K, n : n + BLOCK_N], acc)
    tile.store(tile.gelu(acc + bias[n : n + BLOCK_N]), output[m : m + BLOCK_M, n : n + BLOCK_N])


@ts.kernel
def batched_matmul(
    a: Tensor["B", "M", "K", ts.bf16], b: Tensor["B", "K", "N", ts.bf16], output: Tensor["B", "M", "N", ts.bf16]
):
    """output[i] = a[i] @ b[i] for every i of the batch"""
    ctx = tile.context()
    m, n, i = tile.program_id(0) * BLOCK_M, tile.program_id(1) * BLOCK_N, tile.program_id(2)
    acc = tile.zeros([BLOCK_M, BLOCK_N], ts.f32)
    for k in tile.range(0, ctx.K, BLOCK_K):
        acc = tile.mma(a[i, m : m + BLOCK_M, k : k + BLOCK_K], b[i, k : k + BLOCK_K, n : n + BLOCK_N], acc)
    tile.store(acc, output[i, m : m + BLOCK_M, n : n + BLOCK_N])


@ts.kernel
def fp8_matmul(
    a: Tensor["M", "K", ts.fp8_e4m3],
    b: Tensor["N", "K", ts.fp8_e4m3],
    scale: float,
    output: Tensor["M", "N", ts.bf16],
):
    """output = scale * (a @ b.T) of 8-bit operands, accumulated in f32"""
    ctx = tile.context()
    m, n = tile.program_id(0) * BLOCK_M, tile.program_id(1) * BLOCK_N
    acc = tile.zeros([BLOCK_M, BLOCK_N], ts.f32)
    for k in tile.range(0, ctx.K, BLOCK_K):
        acc = tile.mma(a[m : m + BLOCK_M, k : k + BLOCK_K], b[n : n + BLOCK_N, k : k + BLOCK_K], acc, transpose_b=True)
    tile.store(acc * scale, output[m : m + BLOCK_M, n : n + BLOCK_N])
