"""Products whose left operand is computed: of a difference, and of the product before."""
# ruff: noqa: F821  (the names of dims)

import tessera as ts
from tessera import Tensor, tile


@ts.kernel
def difference_matmul(
    a: Tensor["M", "K", ts.bf16],
    b: Tensor["M", "K", ts.bf16],
    w: Tensor["K", "N", ts.bf16],
    out: Tensor["M", "N", ts.bf16],
):
    """out = (a - b) @ w, the difference rounded to bf16."""
    ctx = tile.context()
    m = tile.program_id(0) * 64
    n = tile.program_id(1) * 64
    acc = tile.zeros([64, 64], ts.f32)
    for k in tile.range(0, ctx.K, 32):
        difference = a[m : m + 64, k : k + 32] - b[m : m + 64, k : k + 32]
        acc = tile.mma(difference, w[k : k + 32, n : n + 64], acc)
    tile.store(acc, out[m : m + 64, n : n + 64])


@ts.kernel
def perceptron(
    x: Tensor["M", "D", ts.bf16],
    w1: Tensor["D", "H", ts.bf16],
    w2: Tensor["H", "N", ts.bf16],
    out: Tensor["M", "N", ts.f32],
):
    """out = relu(x @ w1) @ w2, what lies between rounded to bf16: it never leaves the registers."""
    ctx = tile.context()
    m = tile.program_id(0) * 64
    hidden = tile.cast(tile.maximum(tile.mma(x[m : m + 64], w1[0 : ctx.D]), 0.0), ts.bf16)
    tile.store(tile.mma(hidden, w2[0 : ctx.H]), out[m : m + 64])
