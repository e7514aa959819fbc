"""Kernels whose tiles exceed the registers of a thread together: behind a product, in a loop, and without a product."""
# ruff: noqa: F821  (the names of dims)

import tessera as ts
from tessera import Tensor, tile


@ts.kernel
def gated(
    x: Tensor["M", "K", ts.bf16],
    w: Tensor["K", "N", ts.bf16],
    t: Tensor["M", "N", ts.bf16],
    s: Tensor["M", "N", ts.bf16],
    out: Tensor["M", "N", ts.bf16],
):
    """A difference of two tensors, gated by a product: two loads of bf16 beside the accumulators."""
    row = tile.program_id(0) * 128
    gate = tile.sigmoid(tile.mma(x[row : row + 128], w))
    delta = t[row : row + 128] - s[row : row + 128]
    tile.store(gate * delta, out[row : row + 128])


@ts.kernel
def gated_by_itself(x: Tensor["M", "K", ts.bf16], w: Tensor["K", "K", ts.bf16], out: Tensor["M", "K", ts.f32]):
    """The left operand is read again behind the product: it lies in shared memory, and comes as 8x8 matrices."""
    row = tile.program_id(0) * 128
    rows = tile.alloc_shared([128, tile.context().K], ts.bf16)
    tile.copy_async(rows, x[row : row + 128])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    tile.store(tile.sigmoid(tile.mma(rows, w)) * rows + 1.0, out[row : row + 128])


@ts.kernel
def two_products(
    x: Tensor["M", "K", ts.bf16],
    w: Tensor["K", "K", ts.bf16],
    t: Tensor["M", "K", ts.bf16],
    out: Tensor["M", "K", ts.bf16],
):
    """The gated rows are an operand in shared memory, beside another one that is needed to the end."""
    row = tile.program_id(0) * 128
    rows = tile.alloc_shared([128, tile.context().K], ts.bf16)
    hidden = tile.alloc_shared([128, tile.context().K], ts.bf16)
    tile.copy_async(rows, x[row : row + 128])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    tile.multiply(tile.sigmoid(tile.mma(rows, w)), t[row : row + 128], hidden)
    tile.store(tile.mma(hidden, w) + rows, out[row : row + 128])


@ts.kernel
def biased(
    x: Tensor["M", "K", ts.bf16],
    w: Tensor["K", "N", ts.bf16],
    bias: Tensor["N", ts.f32],
    residual: Tensor["M", "N", ts.f32],
    out: Tensor["M", "N", ts.f32],
):
    """A row that is spread over all rows, and a residual as large as the accumulators."""
    row = tile.program_id(0) * 128
    tile.store(tile.mma(x[row : row + 128], w) + bias + residual[row : row + 128], out[row : row + 128])


@ts.kernel
def sum_of_four(
    a: Tensor["N", ts.f32], b: Tensor["N", ts.f32], c: Tensor["N", ts.f32], d: Tensor["N", ts.f32],
    out: Tensor["N", ts.f32],
):  # fmt: skip
    """No product: four tiles of 64 registers."""
    at = tile.program_id(0) * 2048
    first, second = a[at : at + 2048], b[at : at + 2048]
    tile.store(first + second * c[at : at + 2048] + d[at : at + 2048], out[at : at + 2048])


@ts.kernel
def used_twice(
    a: Tensor["N", ts.f32], b: Tensor["N", ts.f32], c: Tensor["N", ts.f32], d: Tensor["N", ts.f32],
    total: Tensor["N", ts.f32], largest: Tensor["N", ts.f32],
):  # fmt: skip
    """Every tile is needed again behind the first store, so that parts would save nothing."""
    at = tile.program_id(0) * 2048
    first, second, third, fourth = a[at : at + 2048], b[at : at + 2048], c[at : at + 2048], d[at : at + 2048]
    tile.store(first + second + third + fourth, total[at : at + 2048])
    tile.store(tile.maximum(tile.maximum(first, second), tile.maximum(third, fourth)), largest[at : at + 2048])
