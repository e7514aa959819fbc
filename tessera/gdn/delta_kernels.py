"""Kernels of the gated delta rule, in chunks and token by token.

One head, row vectors q_t, k_t of K and v_t of V elements, a log decay g_t <= 0 and a step beta_t; state S [K, V]:

    S~ = exp(g_t) S;   u_t = beta_t (v_t - k_t S~);   S = S~ + k_t^T u_t;   o_t = scale q_t S

In a chunk of C tokens, with the running sum G of g, D_ij = exp(G_i - G_j) for i >= j and 0 above,

    L = strict_lower(diag(beta) K K^T . D)     M = (I + L)^-1 diag(beta)     P = scale lower(Q K^T . D)
    U = M (V - diag(e^G) K S)                  O = scale diag(e^G) Q S + P U
    S' = e^(G_C) S + K^T diag(e^(G_C - G)) U

(Yang, Kautz, Hatamizadeh, Gated Delta Networks, ICLR 2025, with W S written out). M and P do not know the state, so one
kernel makes them for all chunks at once, and another goes through the chunks of a sequence with S in registers.

Layouts: q, k [B, T, H, K]; v, o [B, T, HV, V]; g, beta [B, T, HV]; state [N, HV, K, V], or [N, HV, V, K] where
`value_first`. Value head i uses key head i // (HV / H). With `cu_seqlens` [N + 1] the batch is one packed sequence, of
which sequence n is tokens cu_seqlens[n] up to cu_seqlens[n + 1]; without, N = B.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false
# Annotations of kernels are values: what they are is decided when a factory runs.

import functools
import math
from dataclasses import dataclass
from typing import Any

import tessera as ts
from tessera import Tensor, tile
from tessera.gdn.triangular import BLOCK, blocked_inverse

# e^-120 is zero in f32. Smaller decays change nothing, and would cost the running sum of a chunk its digits.
SMALLEST_DECAY = -120.0
EPSILON = 1e-6  # beside a squared norm
MODEL = ("H", "HV", "V")  # dims of a model, not of a call: offsets, heads and masks are computed with their numbers


@dataclass(frozen=True)
class Variant:
    """What a kernel is compiled for. `dtype` is that of q, k, v and o; g and beta have their own. `bounds` is that of
    `cu_seqlens`, None where the batch is not packed.

    `unit`: q and k are divided by their norms. `logits`: beta is sigmoid(beta), times `beta_scale`. `gate_free`: the
    inverse is that of strict_lower(diag(beta) K K^T), which D multiplies afterwards: (I + L)^-1 is the same, but this
    one is bounded for unit keys only. `block` columns of the state and `warps` are a program's of the kernels that have
    the state. In the chunked one `stages` copies fly (None: as many as fit), `family` are its instructions (those of
    mma.sync, or "wgmma"), and registers hold the state `upright` or transposed. `prepare_warps` and `prepare_blocks`
    are those of the other one: warps, and programs that a multiprocessor must have registers for (None: as the compiler
    likes).
    """

    dtype: Any
    gate: Any
    beta: Any
    bounds: Any = None
    unit: bool = False
    logits: bool = False
    beta_scale: float = 1.0
    value_first: bool = False
    gate_free: bool = False
    chunk: int = 64
    block: int = 64
    warps: int = 4
    stages: int | None = None
    family: str = ""
    upright: bool = False
    prepare_warps: int = 4
    prepare_blocks: int | None = None

    @property
    def inverse(self):
        """Dtype and precision of the products that make the inverse; f16 holds its entries, which are those of beta or
        smaller, where keys have the norm 1.
        """
        if self.dtype == ts.f32:
            return ts.f32, None
        return (ts.f16, None) if self.unit else (ts.f32, "tf32")

    @property
    def schedule(self):
        """That of the chunked kernel. Its copies end where a sequence does, which no tensor map can say."""
        stages = {} if self.stages is None else {"stages": self.stages}
        return {"warps": self.warps, "blocks": 1, "family": self.family, "copies": "", **stages}

    @property
    def prepare_schedule(self):
        blocks = {} if self.prepare_blocks is None else {"blocks": self.prepare_blocks}
        return {"warps": self.prepare_warps, **blocks}

    @property
    def sequences(self):
        return "B" if self.bounds is None else "N"

    @property
    def tensors(self):
        """Annotations: keys, values, decays, betas, states, bounds of sequences."""
        n = self.sequences
        return (
            Tensor["B", "T", "H", "K", self.dtype],
            Tensor["B", "T", "HV", "V", self.dtype],
            Tensor["B", "T", "HV", self.gate],
            Tensor["B", "T", "HV", self.beta],
            Tensor[n, "HV", "V", "K", ts.f32] if self.value_first else Tensor[n, "HV", "K", "V", ts.f32],
            Tensor["N + 1", self.bounds or ts.i32],
        )


Heads = Tensor["HV", ts.f32]


def value_grid(d, variant):
    """Programs for the columns of the state, value heads and sequences, on one axis: the others end at 65535."""
    return (tile.cdiv(d.V, variant.block) * d.HV * (d.B if variant.bounds is None else d.N),)


def place_of(program, ctx, columns):
    """The first column of the state, value head, key head and sequence of a program of `value_grid`."""
    blocks = tile.cdiv(ctx.V, columns)
    head = program // blocks % ctx.HV
    return program % blocks * columns, head, head // (ctx.HV // ctx.H), program // (blocks * ctx.HV)


def decay_of(g, A_log, dt_bias, head):
    """The log decay of the loaded `g`: itself, or -exp(A_log) softplus(g + dt_bias) where there is a rate."""
    decay = tile.cast(g, ts.f32)
    if A_log is not None:
        if dt_bias is not None:
            decay = decay + tile.load_scalar(dt_bias[head])
        decay = tile.softplus(decay) * -tile.exp(tile.load_scalar(A_log[head]))
    return tile.maximum(decay, SMALLEST_DECAY)


def step_of(beta, variant):
    step = tile.cast(beta, ts.f32)
    return tile.sigmoid(step) * variant.beta_scale if variant.logits else step


def inverse_norm(x):
    """1 / sqrt(|row|^2 + EPSILON) of each row."""
    wide = tile.cast(x, ts.f32)
    return tile.rsqrt(tile.sum(wide * wide, axis=-1) + EPSILON)


def tokens(x, first, last, count):
    """The window of `count` tokens at `first`, of which those from `last` on are zeros."""
    return tile.window(x, first, count, limit=last)


def state_window(state, j, variant):
    """The columns of a head's state that begin at j, as they lie in memory."""
    return state[j : j + variant.block] if variant.value_first else state[:, j : j + variant.block]


def slot_of(n, cu_seqlens, ctx, chunk):
    """Where matrices of the first chunk of sequence n lie (`prepare_kernel`)."""
    return n * tile.cdiv(ctx.T, chunk) if cu_seqlens is None else tile.load_scalar(cu_seqlens[n]) // chunk + n


def sequence_of(slot, cu_seqlens, ctx, chunk):
    """The sequence whose slot this may be: the last one that does not begin behind it, by bisection."""
    if cu_seqlens is None:
        return slot // tile.cdiv(ctx.T, chunk)
    n, end = slot * 0, slot * 0 + ctx.N
    while end - n > 1:
        middle = (n + end) // 2
        if slot_of(middle, cu_seqlens, ctx, chunk) <= slot:
            n = middle
        else:
            end = middle
    return n


def bounds_of(cu_seqlens, n, length):
    """The batch, first token and end of sequence n."""
    if cu_seqlens is None:
        return n, 0, length
    return 0, tile.load_scalar(cu_seqlens[n]), tile.load_scalar(cu_seqlens[n + 1])


@functools.cache
def recurrent_kernel(variant: Variant, in_place: bool = False):
    """Token by token, for few tokens: a program per `block` columns of a head's state, which is read and written once.

    `in_place`: the final state replaces the initial one.
    """
    Keys, Values, Decays, Betas, States, Bounds = variant.tensors
    axis, value_first, columns = (1 if variant.value_first else 0), variant.value_first, variant.block

    @ts.kernel(grid=lambda d: value_grid(d, variant), schedule=dict(warps=variant.warps), static=MODEL)
    def delta_recurrent(
        q: Keys, k: Keys, v: Values, scale: float, o: Values,
        g: Decays = None, beta: Betas = None, A_log: Heads = None, dt_bias: Heads = None,
        cu_seqlens: Bounds = None, initial_state: States = None, final_state: States = None,
    ):  # fmt: skip
        ctx = tile.context()
        j, head, key_head, n = place_of(tile.program_id(0), ctx, columns)
        b, first, last = bounds_of(cu_seqlens, n, ctx.T)
        state = tile.zeros([columns, ctx.K] if value_first else [ctx.K, columns])
        if initial_state is not None:
            state = tile.load(
                initial_state[n, head, j : j + columns] if value_first else initial_state[n, head, :, j : j + columns]
            )
        for t in tile.range(first, last):
            query, key = tile.cast(q[b, t, key_head], ts.f32), tile.cast(k[b, t, key_head], ts.f32)
            value = tile.cast(v[b, t, head, j : j + columns], ts.f32)
            if variant.unit:
                query, key = query * inverse_norm(query), key * inverse_norm(key)
            match = tile.sum(query * key)
            if value_first:
                value = tile.reshape(value, [columns, 1])
            else:
                query, key = tile.reshape(query, [ctx.K, 1]), tile.reshape(key, [ctx.K, 1])
            fade = 1.0 if g is None else tile.exp(decay_of(tile.load_scalar(g[b, t, head]), A_log, dt_bias, head))
            step = 1.0 if beta is None else step_of(tile.load_scalar(beta[b, t, head]), variant)
            # Both sums are over the old state, so that one pass over it is enough.
            recalled = tile.sum(state * key, axis=axis, keepdims=True) * fade
            asked = tile.sum(state * query, axis=axis, keepdims=True) * fade
            update = (value - recalled) * step
            state = state * fade + key * update
            tile.store(tile.reshape((asked + match * update) * scale, [columns]), o[b, t, head, j : j + columns])
        target = initial_state if in_place else final_state
        if target is not None:
            tile.store(state, target[n, head, j : j + columns] if value_first else target[n, head, :, j : j + columns])

    return delta_recurrent


@functools.cache
def prepare_kernel(variant: Variant):
    """Everything that the state has no part in, a program per chunk and value head.

    Chunk i of sequence n has slot n * cdiv(T, C) + i, or cu_seqlens[n] // C + n + i where sequences are packed: no two
    chunks meet there, since a // C + cdiv(b, C) <= (a + b) // C + 1. Writes the matrices `mix` (M) and `attend` (P),
    rows of `factors` (what multiplies K S, Q S and U of each token), and `fade` (e^(G_C)).
    """
    C = variant.chunk
    Keys, _, Decays, Betas, _, Bounds = variant.tensors
    Matrices = Tensor["S", "HV", C, C, variant.dtype]

    @ts.kernel(grid=lambda d: (d.S * d.HV,), schedule=variant.prepare_schedule, static=MODEL[:2])
    def delta_prepare(
        q: Keys, k: Keys, scale: float,
        mix: Matrices, attend: Matrices, factors: Tensor["S", "HV", 3, C, ts.f32], fade: Tensor["S", "HV", ts.f32],
        g: Decays = None, beta: Betas = None, A_log: Heads = None, dt_bias: Heads = None, cu_seqlens: Bounds = None,
    ):  # fmt: skip
        ctx = tile.context()
        slot, head = tile.program_id(0) // ctx.HV, tile.program_id(0) % ctx.HV
        n = sequence_of(slot, cu_seqlens, ctx, C)
        b, first, last = bounds_of(cu_seqlens, n, ctx.T)
        t = first + (slot - slot_of(n, cu_seqlens, ctx, C)) * C
        if t < last:
            key_head = head // (ctx.HV // ctx.H)
            query, key = tokens(q[b, :, key_head], t, last, C), tokens(k[b, :, key_head], t, last, C)
            row, column = tile.iota([C, C], axis=0), tile.iota([C, C], axis=1)
            down, across, inside = [C, 1], [1, C], tile.arange(C, ts.i64) < last - t
            total, step = tile.zeros([C]), tile.where(inside, 1.0, 0.0)
            if g is not None:  # times log2(e): exp2 is one instruction
                decay = decay_of(tokens(g[b, :, head], t, last, C), A_log, dt_bias, head)
                total = tile.cumsum(tile.where(inside, decay * math.log2(math.e), 0.0))
            if beta is not None:
                step = tile.where(inside, step_of(tokens(beta[b, :, head], t, last, C), variant), 0.0)
            query_norm, key_norm = tile.full([C], 1.0), tile.full([C], 1.0)
            if variant.unit:
                query_norm, key_norm = inverse_norm(query), inverse_norm(key)
            whole = total[C - 1 : C]
            tile.store(tile.exp2(total) * key_norm, factors[slot, head, 0])
            tile.store(tile.exp2(total) * query_norm * scale, factors[slot, head, 1])
            tile.store(tile.exp2(whole - total) * key_norm, factors[slot, head, 2])
            tile.store(tile.exp2(whole), fade[slot, head : head + 1])
            # Masked before the exponential: above the diagonal it may be infinite.
            since = tile.where(row >= column, tile.reshape(total, down) - tile.reshape(total, across), -math.inf)
            match = tile.mma(query, key, transpose_b=True) * tile.reshape(query_norm * scale, down)
            tile.store(match * tile.reshape(key_norm, across) * tile.exp2(since), attend[slot, head])
            alike = tile.mma(key, key, transpose_b=True) * tile.reshape(key_norm * step, down)
            alike = alike * tile.reshape(key_norm, across)
            if not variant.gate_free:
                alike = alike * tile.exp2(since)
            dtype, precision = variant.inverse
            lower, inverse = tile.alloc_shared([C, C], dtype), tile.alloc_shared([C, C], ts.f32)
            lower[:] = tile.where(row > column, alike, 0.0)
            tile.fill(inverse, 0.0)
            for (i, j), block in blocked_inverse(lower, precision).items():
                inverse[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK] = block
            mixed = inverse * tile.reshape(step, across)
            tile.store(mixed * tile.exp2(since) if variant.gate_free else mixed, mix[slot, head])

    return delta_prepare


@functools.cache
def chunk_kernel(variant: Variant, in_place: bool = False):
    """Through the chunks of a sequence, a program per sequence, value head and `block` columns of the state.

    The state stays in registers. Where it is `upright`, [K, block], products have what comes from memory on the left:
    64 rows for a warpgroup, however few the columns. Else it is transposed, [block, K]: with it, U^T and their products
    on the left, what is computed is an operand where it is, and what comes from memory all warps share.
    """
    C, columns, upright = variant.chunk, variant.block, variant.upright
    along = [C, 1] if upright else [1, C]
    Keys, Values, _, _, States, Bounds = variant.tensors
    Matrices = Tensor["S", "HV", C, C, variant.dtype]

    def product(matrix, x, sums=None, flip=False):
        """matrix @ x, or matrix^T @ x, of tiles that are transposed unless they are upright."""
        if upright:
            return tile.mma(matrix, x, sums, transpose_a=flip)
        return tile.mma(x, matrix, sums, transpose_b=not flip)

    def turned(x, turn=not upright):
        return tile.transpose(x) if turn else x

    @ts.kernel(grid=lambda d: value_grid(d, variant), schedule=variant.schedule, static=MODEL)
    def delta_chunks(
        q: Keys, k: Keys, v: Values,
        mix: Matrices, attend: Matrices, factors: Tensor["S", "HV", 3, C, ts.f32], fade: Tensor["S", "HV", ts.f32],
        o: Values, cu_seqlens: Bounds = None, initial_state: States = None, final_state: States = None,
    ):  # fmt: skip
        ctx = tile.context()
        j, head, key_head, n = place_of(tile.program_id(0), ctx, columns)
        b, first, last = bounds_of(cu_seqlens, n, ctx.T)
        slot, dtype = slot_of(n, cu_seqlens, ctx, C), variant.dtype
        state = tile.zeros([ctx.K, columns] if upright else [columns, ctx.K])
        if initial_state is not None:
            state = turned(tile.load(state_window(initial_state[n, head], j, variant)), variant.value_first == upright)
        for i in tile.range(tile.cdiv(last - first, C)):
            t = first + i * C
            query, key = tokens(q[b, :, key_head], t, last, C), tokens(k[b, :, key_head], t, last, C)
            value = tile.window(v[b, :, head], (t, j), (C, columns), limit=(last, None))
            recall, ask, keep = (tile.reshape(tile.load(factors[slot + i, head, row]), along) for row in range(3))
            kept = tile.load_scalar(fade[slot + i, head])
            low = tile.cast(state, dtype)
            rest = turned(tile.cast(value, ts.f32)) - product(key, low) * recall
            update = product(mix[slot + i, head], tile.cast(rest, dtype))
            asked = product(query, low)
            # The next chunk waits for the state alone: what is stored meanwhile costs it no time.
            output = product(attend[slot + i, head], tile.cast(update, dtype), asked * ask)
            state = product(key, tile.cast(update * keep, dtype), state * kept, flip=True)
            tile.store(turned(output), tile.window(o[b, :, head], (t, j), (C, columns), limit=(last, None)))
        target = initial_state if in_place else final_state
        if target is not None:
            tile.store(turned(state, variant.value_first == upright), state_window(target[n, head], j, variant))

    return delta_chunks
