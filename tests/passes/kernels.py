"""Small kernels that reach every rule of the passes: computed operands, reduced products, loops, reused buffers."""
# ruff: noqa: F821  (the names of dims)

import tessera as ts
from tessera import tile


@ts.kernel
def scaled_copy(x: tile.Tensor["N", ts.bf16], scale: float, out: tile.Tensor["N", ts.f32]):
    start = tile.program_id(0) * 256
    tile.store(x[start : start + 256] * scale, out[start : start + 256])


@ts.kernel
def attention_row(
    q: tile.Tensor["M", "D", ts.bf16],
    k: tile.Tensor["N", "D", ts.bf16],
    v: tile.Tensor["N", "D", ts.bf16],
    out: tile.Tensor["M", "D", ts.bf16],
):
    """softmax(q k^T) v: a product whose rows are reduced, and whose result is an operand of the next product."""
    ctx = tile.context()
    row = tile.program_id(0) * 32
    scores = tile.mma(q[row : row + 32], k[0 : ctx.N], transpose_b=True)
    weights = tile.exp(scores - tile.max(scores, axis=-1, keepdims=True))
    weights = weights / tile.sum(weights, axis=-1, keepdims=True)
    tile.store(tile.mma(tile.cast(weights, ts.bf16), v[0 : ctx.N]), out[row : row + 32])


@ts.kernel
def two_layers(
    x: tile.Tensor["M", "D", ts.bf16], w: tile.Tensor["D", "D", ts.bf16], out: tile.Tensor["M", "D", ts.f32]
):
    """One buffer written, multiplied, written again with the result and multiplied again."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    state = tile.alloc_shared([16, ctx.D], ts.bf16)
    weights = tile.alloc_shared([ctx.D, ctx.D], ts.bf16)
    tile.copy_async(state, x[row : row + 16])
    tile.copy_async(weights, w)
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    hidden = tile.mma(state, weights)
    tile.subtract(hidden, state, state)
    tile.store(tile.mma(state, weights), out[row : row + 16])


@ts.kernel
def running_sum(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["M", ts.f32]):
    """A loop that carries a reduced tile, with a run-time bound."""
    ctx = tile.context()
    row = tile.program_id(0) * 8
    total = tile.zeros([8, 1], ts.f32)
    for column in tile.range(0, ctx.N, 32):
        total = total + tile.sum(x[row : row + 8, column : column + 32], axis=1, keepdims=True)
    tile.store(tile.reshape(total, [8]), out[row : row + 8])


@ts.kernel
def two_groups(
    a: tile.Tensor["M", "D", ts.bf16], b: tile.Tensor["M", "D", ts.bf16], out: tile.Tensor["M", "D", ts.bf16]
):
    """Two copy groups of which the first is used while the second may be in flight."""
    ctx = tile.context()
    row = tile.program_id(0) * 32
    first = tile.alloc_shared([32, ctx.D], ts.bf16)
    second = tile.alloc_shared([32, ctx.D], ts.bf16)
    tile.copy_async(first, a[row : row + 32])
    tile.cp_commit_group()
    tile.copy_async(second, b[row : row + 32])
    tile.cp_commit_group()
    tile.cp_wait_group(1)
    doubled = first * 2.0
    tile.cp_wait_group(0)
    tile.store(doubled + second, out[row : row + 32])


@ts.kernel
def wide_elementwise(x: tile.Tensor["M", "D", ts.f32], out: tile.Tensor["M", "D", ts.f32]):
    """A tile far larger than the registers of a block."""
    row = tile.program_id(0) * 64
    value = x[row : row + 64]
    tile.store(tile.sigmoid(value) * value, out[row : row + 64])
