"""Kernels that reach every rule of the passes behind producers, warpgroups and tensor maps, with small tiles."""
# ruff: noqa: F821  (the names of dims)

import tessera as ts
from tessera import Tensor, tile

LANE = {"family": "wgmma", "copies": "tma", "panels": 64, "persistent": True}


def block(matrix, row, rows, column, columns, flipped=False):
    """The window of `matrix` whose first element is [row, column], as it is stored."""
    if flipped:
        return matrix[column : column + columns, row : row + rows]
    return matrix[row : row + rows, column : column + columns]


def make_gemm(stored="nn", dtype=ts.bf16, out=None, tiles=(64, 64, 64), epilogue="none", name="gemm"):
    """C = A B, and what the epilogue makes of it: "none", "bias" (and a sigmoid), "rows" (divided by their maxima)."""
    rows, columns, depth = tiles
    flip_a, flip_b = stored[0] == "t", stored[1] == "t"
    A = Tensor["K", "M", dtype] if flip_a else Tensor["M", "K", dtype]
    B = Tensor["N", "K", dtype] if flip_b else Tensor["K", "N", dtype]

    @ts.kernel(name=name)
    def gemm(a: A, b: B, bias: Tensor["N", ts.f32], output: Tensor["M", "N", out or dtype]):
        ctx = tile.context()
        m, n = tile.program_id(0) * rows, tile.program_id(1) * columns
        acc = tile.zeros([rows, columns], ts.f32)
        for k in tile.range(0, ctx.K, depth):
            left, right = block(a, m, rows, k, depth, flip_a), block(b, k, depth, n, columns, flip_b)
            acc = tile.mma(left, right, acc, transpose_a=flip_a, transpose_b=flip_b)
        if epilogue == "bias":
            acc = tile.sigmoid(acc + bias[n : n + columns])
        if epilogue == "rows":
            acc = acc / (tile.max(tile.abs(acc), axis=-1, keepdims=True) + 1.0)
        tile.store(acc, block(output, m, rows, n, columns))

    return gemm


gemm_nn = make_gemm("nn", name="gemm_nn")
gemm_tt = make_gemm("tt", name="gemm_tt")
gemm_f16 = make_gemm("nt", ts.f16, name="gemm_f16")
gemm_f32 = make_gemm("nn", ts.f32, name="gemm_f32")
gemm_f32_out = make_gemm("nn", out=ts.f32, name="gemm_f32_out")
gemm_bias = make_gemm(epilogue="bias", tiles=(64, 128, 64), name="gemm_bias")
gemm_rows = make_gemm(epilogue="rows", tiles=(64, 128, 32), name="gemm_rows")
gemm_tall = make_gemm(tiles=(128, 32, 64), name="gemm_tall")
gemm_short = make_gemm(tiles=(32, 64, 64), name="gemm_short")
gemm_narrow = make_gemm(tiles=(64, 24, 16), name="gemm_narrow")


@ts.kernel
def two_products(a: Tensor["M", "K", ts.bf16], b: Tensor["K", 64, ts.bf16], c: Tensor[64, "N", ts.bf16],
                 output: Tensor["M", "N", ts.bf16]):  # fmt: skip
    """(A B) C: the sums of a product, through a maximum of their rows, are the operand of another one."""
    ctx = tile.context()
    m = tile.program_id(0) * 64
    acc = tile.zeros([64, 64], ts.f32)
    for k in tile.range(0, ctx.K, 64):
        acc = tile.mma(a[m : m + 64, k : k + 64], b[k : k + 64], acc)
    scale = tile.max(tile.abs(acc), axis=-1, keepdims=True) + 1.0
    hidden = tile.cast(acc / scale, ts.bf16)
    for n in tile.range(0, ctx.N, 64):
        tile.store(tile.mma(hidden, c[0:64, n : n + 64]), output[m : m + 64, n : n + 64])


@ts.kernel
def two_stores(a: Tensor["M", "K", ts.bf16], b: Tensor["K", 64, ts.bf16], c: Tensor["K", 64, ts.bf16],
               first: Tensor["M", 64, ts.bf16], second: Tensor["M", 64, ts.f32]):  # fmt: skip
    """Two products of the same left operand, stored in two dtypes."""
    ctx = tile.context()
    m = tile.program_id(0) * 64
    one, two = tile.zeros([64, 64], ts.f32), tile.zeros([64, 64], ts.f32)
    for k in tile.range(0, ctx.K, 64):
        left = a[m : m + 64, k : k + 64]
        one = tile.mma(left, b[k : k + 64], one)
        two = tile.mma(left, c[k : k + 64], two)
    tile.store(one - two, first[m : m + 64])
    tile.store(one + two, second[m : m + 64])


@ts.kernel
def in_branches(a: Tensor["M", "K", ts.bf16], b: Tensor["K", 64, ts.bf16], skip: int, output: Tensor["M", 64, ts.bf16]):
    """A product in a branch of a loop, which takes some of the tiles along K alone."""
    ctx = tile.context()
    m = tile.program_id(0) * 64
    acc = tile.zeros([64, 64], ts.f32)
    for k in tile.range(0, ctx.K, 64):
        if k != skip * 64:
            acc = tile.mma(a[m : m + 64, k : k + 64], b[k : k + 64], acc)
    tile.store(acc, output[m : m + 64])


@ts.kernel
def own_buffers(a: Tensor["M", "K", ts.bf16], b: Tensor["K", 64, ts.bf16], output: Tensor["M", 64, ts.bf16]):
    """The author's own buffers, copies and waits."""
    ctx = tile.context()
    m = tile.program_id(0) * 64
    left, right = tile.alloc_shared([64, 64], ts.bf16), tile.alloc_shared([64, 64], ts.bf16)
    acc = tile.zeros([64, 64], ts.f32)
    for k in tile.range(0, ctx.K, 64):
        tile.copy_async(left, a[m : m + 64, k : k + 64])
        tile.copy_async(right, b[k : k + 64])
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        tile.barrier()
        acc = tile.mma(left, right, acc)
        tile.barrier()
    tile.store(acc, output[m : m + 64])


@ts.kernel
def own_scratch(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], output: Tensor["M", 64, ts.bf16]):
    """A buffer that is copied into, changed by threads, and multiplied twice."""
    m = tile.program_id(0) * 64
    state, weights = tile.alloc_shared([64, 64], ts.bf16), tile.alloc_shared([64, 64], ts.bf16)
    tile.copy_async(state, a[m : m + 64])
    tile.copy_async(weights, b)
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    hidden = tile.mma(state, weights)
    tile.subtract(hidden, state, state)
    tile.store(tile.mma(state, weights), output[m : m + 64])


def make_differences(rows, name="differences"):
    """The kernel for programs of so many rows."""

    @ts.kernel(name=name)
    def differences(t: Tensor["M", 128, ts.bf16], s: Tensor["M", 128, ts.bf16], w: Tensor[128, 128, ts.bf16],
                    output: Tensor["M", 128, ts.bf16]):  # fmt: skip
        """A left operand that is computed, and met again by the sums of its product."""
        m = tile.program_id(0) * rows
        delta = t[m : m + rows] - s[m : m + rows]
        tile.store(delta * tile.sigmoid(tile.mma(delta, w)), output[m : m + rows])

    return differences


differences = make_differences(64)
halves = make_differences(128, name="halves")  # each of two warpgroups reads one


@ts.kernel
def layers(xs: list[Tensor["M", 64, ts.bf16]], ws: list[Tensor[64, 64, ts.bf16]],
           output: Tensor["M", 64, ts.bf16]):  # fmt: skip
    """A sum over layers, whose weights all programs share."""
    m = tile.program_id(0) * 64
    acc = tile.zeros([64, 64], ts.f32)
    for layer in tile.range(len(xs)):
        x = xs[layer][m : m + 64]
        acc += x * tile.sigmoid(tile.mma(x, ws[layer]))
    tile.store(acc, output[m : m + 64])


def make_deltas(rows):
    """The kernel for programs of so many rows."""

    @ts.kernel
    def deltas(target: Tensor["M", 64, ts.bf16], xs: list[Tensor["M", 64, ts.bf16]], ws: list[Tensor[64, 64, ts.bf16]],
               output: Tensor["M", 64, ts.bf16]):  # fmt: skip
        """As `layers`, of differences from a tile that every iteration loads again."""
        m = tile.program_id(0) * rows
        acc = tile.zeros([rows, 64], ts.f32)
        for layer in tile.range(1, len(xs), 2):
            delta = target[m : m + rows] - xs[layer][m : m + rows]
            acc += delta * tile.sigmoid(tile.mma(delta, ws[layer]))
        tile.store(acc, output[m : m + rows])

    return deltas


deltas = make_deltas(64)


@ts.kernel
def scaled_sum(x: Tensor["M", 64, ts.bf16], y: Tensor["M", 64, ts.bf16], output: Tensor["M", 64, ts.bf16]):
    """No product, and tiles that are worth a copy."""
    m = tile.program_id(0) * 64
    tile.store(x[m : m + 64] * 0.5 + y[m : m + 64], output[m : m + 64])


@ts.kernel
def triangle(a: Tensor["M", "M", ts.bf16], b: Tensor["M", 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
    """Each block of rows takes what is left of the diagonal, its own block too."""
    m = tile.program_id(0) * 64
    acc = tile.zeros([64, 64], ts.f32)
    for k in tile.range(0, m + 64, 64):
        acc = tile.mma(a[m : m + 64, k : k + 64], b[k : k + 64], acc)
    tile.store(acc, out[m : m + 64])


@ts.kernel
def in_place(x: Tensor["M", 64, ts.bf16], w: Tensor[64, 64, ts.bf16]):
    """A tensor that is read and written: no tensor map may read it."""
    m = tile.program_id(0) * 64
    tile.store(tile.mma(x[m : m + 64], w), x[m : m + 64])


@ts.kernel
def counted(x: Tensor["M", 64, ts.bf16], w: Tensor[64, 64, ts.bf16], counts: Tensor["M", ts.i32],
            output: Tensor["M", 64, ts.bf16]):  # fmt: skip
    """A number that the kernel itself has written says how often tiles are copied."""
    m = tile.program_id(0) * 64
    tile.store(tile.full([64], 2, ts.i32), counts[m : m + 64])
    acc = tile.zeros([64, 64], ts.f32)
    for _ in tile.range(0, tile.load_scalar(counts[m]), 1):
        acc = tile.mma(x[m : m + 64], w, acc) * 0.5
    tile.store(acc, output[m : m + 64])


@ts.kernel(grid=lambda d: (6 * tile.cdiv(d.M, 64),))
def parted(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 384, ts.bf16], output: Tensor["M", 384, ts.bf16]):
    """Programs side by side take the six parts of a row in turn."""
    part, m = tile.program_id(0) % 6 * 64, tile.program_id(0) // 6 * 64
    tile.store(tile.mma(a[m : m + 64], b[0:64, part : part + 64]), output[m : m + 64, part : part + 64])


LISTS = {"len(xs)": 4, "len(ws)": 4}
CASES = {  # sizes at which rows, columns and the sum end within a tile
    "gemm_nn": {"M": 136, "N": 72, "K": 136},
    "gemm_tt": {"M": 72, "N": 72, "K": 72},
    "gemm_f16": {"M": 70, "N": 64, "K": 136},
    "gemm_f32": {"M": 64, "N": 64, "K": 72},
    "gemm_f32_out": {"M": 136, "N": 64, "K": 64},
    "gemm_bias": {"M": 72, "N": 256, "K": 72},
    "gemm_rows": {"M": 136, "N": 128, "K": 72},
    "gemm_tall": {"M": 200, "N": 40, "K": 136},
    "gemm_short": {"M": 72, "N": 64, "K": 72},
    "gemm_narrow": {"M": 136, "N": 40, "K": 72},
    "two_products": {"M": 136, "N": 136, "K": 136},
    "two_stores": {"M": 136, "K": 136},
    "in_branches": {"M": 136, "K": 200},
    "own_buffers": {"M": 200, "K": 136},
    "own_scratch": {"M": 136},
    "differences": {"M": 330},
    "layers": {"M": 330, **LISTS},
    "deltas": {"M": 330, **LISTS},
    "scaled_sum": {"M": 330},
    "in_place": {"M": 136},
    "counted": {"M": 128},
}
