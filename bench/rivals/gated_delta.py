"""The gated delta, fused by hand in Triton: what one who knows Triton well would write and tune.

    out[m, n] = sum_l a_l * d_l[m, n] * sigmoid(c_l * (d_l @ W_l)[m, n]),   d_l = t - s_l

Differences are computed in bf16, as the document has it; products accumulate in f32. `gate` is the same for one delta
that is given. Every D is a multiple of BN and BK, and M of BM.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _tile_of(M, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Which tile this program computes: GROUP blocks of rows at a time, column by column inside of them."""
    pid = tl.program_id(0)
    columns: tl.constexpr = D // BN
    first = pid // (GROUP * columns) * GROUP
    rows = tl.minimum(tl.cdiv(M, BM) - first, GROUP)
    inside = pid % (GROUP * columns)
    return first + inside % rows, inside // rows


@triton.jit
def aggregate(
    t_ptr, s_ptr, w_ptr, a_ptr, c_ptr, o_ptr, M, D: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    m, n = _tile_of(M, D, BM, BN, GROUP)
    rm = m * BM + tl.arange(0, BM)
    rn = n * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    out = tl.zeros((BM, BN), tl.float32)
    for layer in range(L):
        acc = tl.zeros((BM, BN), tl.float32)
        source = s_ptr + layer * M * D
        weights = w_ptr + layer * D * D
        for k in range(0, D, BK):
            at = rm[:, None] * D + (k + rk)[None, :]
            delta = tl.load(t_ptr + at) - tl.load(source + at)
            acc = tl.dot(delta, tl.load(weights + (k + rk)[:, None] * D + rn[None, :]), acc)
        at = rm[:, None] * D + rn[None, :]
        delta = (tl.load(t_ptr + at) - tl.load(source + at)).to(tl.float32)
        out += tl.load(a_ptr + layer) * delta * tl.sigmoid(tl.load(c_ptr + layer) * acc)
    tl.store(o_ptr + rm[:, None] * D + rn[None, :], out.to(tl.bfloat16))


@triton.jit
def gate(
    d_ptr, w_ptr, o_ptr, scale, M, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    m, n = _tile_of(M, D, BM, BN, GROUP)
    rm = m * BM + tl.arange(0, BM)
    rn = n * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        delta = tl.load(d_ptr + rm[:, None] * D + (k + rk)[None, :])
        acc = tl.dot(delta, tl.load(w_ptr + (k + rk)[:, None] * D + rn[None, :]), acc)
    at = rm[:, None] * D + rn[None, :]
    out = tl.load(d_ptr + at).to(tl.float32) * tl.sigmoid(scale * acc)
    tl.store(o_ptr + at, out.to(tl.bfloat16))


def _grid(m, d, schedule):
    return (triton.cdiv(m, schedule["BM"]) * (d // schedule["BN"]),)


def run_aggregate(t, sources, gates, a, c, out, schedule):
    """`t` [M, D], `sources` [L, M, D], `gates` [L, D, D] and `out` [M, D] in bf16, `a` and `c` [L] in f32."""
    (m, d), layers = t.shape, sources.shape[0]
    aggregate[_grid(m, d, schedule)](t, sources, gates, a, c, out, m, d, layers, **schedule)
    return out


def run_gate(delta, weights, scale, out, schedule):
    m, d = delta.shape
    gate[_grid(m, d, schedule)](delta, weights, out, scale, m, d, **schedule)
    return out


def compile_schedule(schedule, dims):
    """Fills Triton's disk cache for a schedule. `dims` as of the case: M, D, and L for the sum over layers."""
    x = torch.empty(64, device="cuda", dtype=torch.bfloat16)  # only its dtype and alignment are looked at
    m, d = dims["M"], dims["D"]
    if "L" in dims:
        a = torch.empty(64, device="cuda")
        aggregate.warmup(x, x, x, a, a, x, m, d, dims["L"], grid=(1,), **schedule)
    else:
        gate.warmup(x, x, x, 0.5, m, d, grid=(1,), **schedule)
