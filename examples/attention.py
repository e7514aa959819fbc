"""Attention, forward: softmax(scale * q @ k^T) @ v of every head, causal or not, in bf16 and f16.

A program keeps BLOCK_M queries and walks over the keys BLOCK_N at a time. Scores exist a block at a time: the largest
score and the sum of a row are kept up to date, and what has been added up is scaled to the largest so far. A causal
program ends at the diagonal.

    tessera run examples/attention.py::causal_attention --dims B=1,H=2,T=100,D=64 --arg scale=0.125
"""

import math

import tessera as ts
from tessera import Tensor, tile

SPACE = dict(BLOCK_M=[64, 128], BLOCK_N=[64, 32, 128], num_warps=[4, 8], num_stages=[2, 4])


def make_attention(dtype, causal=False):
    """The kernel for tensors of one dtype; `lse` is the logarithm of the sum of exp(scores) of each row."""
    Heads = Tensor["B", "H", "T", "D", dtype]

    def grid(d):
        return tile.cdiv(d.T, d.BLOCK_M), d.H, d.B

    @ts.kernel.autotune(space=SPACE, key=["B", "H", "T", "D"], grid=grid)
    def attention(q: Heads, k: Heads, v: Heads, scale: float, output: Heads, lse: Tensor["B", "H", "T", ts.f32]):
        ctx = tile.context()
        M, N = ctx.BLOCK_M, ctx.BLOCK_N
        m = (tile.num_programs(0) - 1 - tile.program_id(0)) * M  # the longest rows first
        h, b = tile.program_id(1), tile.program_id(2)
        queries = tile.load(q[b, h, m : m + M])
        total = tile.zeros([M, ctx.D])
        weight = tile.zeros([M, 1])
        largest = tile.full([M, 1], -math.inf)
        bits = scale * math.log2(math.e)  # exp(scale * x) is exp2(bits * x)
        whole = m // N * N if causal else ctx.T // N * N  # below this key every row sees every key
        for n in tile.range(0, min(m + M, ctx.T) if causal else ctx.T, N):
            scores = tile.mma(queries, k[b, h, n : n + N], transpose_b=True)
            if n >= whole:
                key, row = tile.iota([M, N], axis=1), tile.iota([M, N], axis=0)
                last = row + tile.cast(m - n, ts.i32) if causal else tile.cast(ctx.T - n - 1, ts.i32)
                scores = tile.where(key <= last, scores, -math.inf)
            before = largest
            largest = tile.maximum(before, tile.max(scores, axis=1, keepdims=True) * bits)
            chances = tile.exp2(scores * bits - largest)
            shrink = tile.exp2(before - largest)
            weight = weight * shrink + tile.sum(chances, axis=1, keepdims=True)
            total = tile.mma(tile.cast(chances, dtype), v[b, h, n : n + N], total * shrink)
        tile.store(total * (1.0 / weight), output[b, h, m : m + M])
        tile.store(tile.reshape(largest + tile.log2(weight), [M]) * math.log(2), lse[b, h, m : m + M])

    return attention


attention = make_attention(ts.bf16)
attention_f16 = make_attention(ts.f16)
causal_attention = make_attention(ts.bf16, causal=True)
causal_attention_f16 = make_attention(ts.f16, causal=True)
