"""Kernels built by hand, as the front end would build them, with NumPy models of what they compute."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tessera.dtypes import bf16, f32, i64
from tessera.ir.core import Block, Builder, Kernel
from tessera.ir.dims import cdiv, symbol
from tessera.ir.layout_shared import shared_layout
from tessera.ir.types import ScalarType, TokenType, ViewType
from tessera.location import Loc
from tessera.target.fragments import accumulator_layout, operand_a_layout, operand_b_layout

BF16 = ml_dtypes.bfloat16
B, S, D, N, M, K = (symbol(name) for name in "BSDNMK")


class Author:
    """A builder with the few shorthands that make a hand-written kernel readable; every op gets a line of its own."""

    def __init__(self, name, **parameters):
        self.body = Block()
        self.kernel = Kernel(name, self.body)
        self.parameters = {p: self.body.add_argument(type_, p) for p, type_ in parameters.items()}
        self.builder = Builder(self.body)
        self.line = 0

    def __getitem__(self, name):
        return self.parameters[name]

    def op(self, name, *operands, regions=(), hint="", **attributes):
        self.line += 1
        self.builder.origin = (Loc("kernel.py", self.line),)
        return self.builder.op(name, operands, regions, (hint,), **attributes)

    def __call__(self, name, *operands, hint="", **attributes):
        return self.op(name, *operands, hint=hint, **attributes).result

    def index(self, value):
        return self("constant", value=value, dtype=i64, weak=True)

    def number(self, value):
        return self("constant", value=value, dtype=f32, weak=True)

    def size(self, size):
        return self("size", size=size)

    def window(self, view, offsets, extents, kept=None):
        return self("window", view, *offsets, extents=tuple(extents), kept=tuple(kept or (True,) * len(extents)))

    def loop(self, lower, upper, step, carried, body):
        """`body(index, *carried)` returns the values for the next iteration."""
        region = Block()
        index = region.add_argument(ScalarType(i64), "k")
        arguments = [region.add_argument(value.type, value.name) for value in carried]
        outer, self.builder = self.builder, Builder(region, self.builder.origin)
        self.op("yield", *body(index, *arguments))
        self.builder = outer
        return self.op("for", lower, upper, step, *carried, regions=(region,)).results

    def branch(self, condition, then, otherwise):
        regions = []
        for body in (then, otherwise):
            region = Block()
            outer, self.builder = self.builder, Builder(region, self.builder.origin)
            self.op("yield", *body())
            self.builder = outer
            regions.append(region)
        return self.op("if", condition, regions=regions).results


def vector_add(block=128):
    k = Author("vector_add", x=ViewType((N,), bf16), y=ViewType((N,), bf16), out=ViewType((N,), bf16))
    start = k("mul", k("program_id", axis=0), k.index(block))
    x, y = (k("load", k.window(k[name], [start], [block])) for name in ("x", "y"))
    k.op("store", k.window(k["out"], [start], [block]), k("add", x, y))
    k.kernel.attributes["grid"] = (cdiv(N, block),)
    return k.kernel


def softmax():
    """One program per row of x [M, N], bf16."""
    k = Author("softmax", x=ViewType((M, N), bf16), out=ViewType((M, N), bf16))
    row = [k("program_id", axis=0), k.index(0)]
    x = k("cast", k("load", k.window(k["x"], row, (1, N))), dtype=f32)
    shifted = k("sub", x, k("broadcast", k("reduce_max", x, axis=1), shape=(1, N)))
    e = k("exp", shifted)
    k.op(
        "store", k.window(k["out"], row, (1, N)), k("div", e, k("broadcast", k("reduce_sum", e, axis=1), shape=(1, N)))
    )
    k.kernel.attributes["grid"] = (M,)
    return k.kernel


def gating(block=128, coarse=True, wait=True):
    """output = delta * sigmoid(exp(-0.1 distance) * (delta @ params)), staged by asynchronous copies."""
    k = Author(
        "gating",
        delta=ViewType((B, S, D), bf16),
        params=ViewType((D, D), bf16),
        distance=ScalarType(i64),
        output=ViewType((B, S, D), bf16),
    )
    batch, seq = k("program_id", axis=0), k("program_id", axis=1, scale=block if coarse else 1)
    origin, extents, kept = [batch, seq, k.index(0)], (1, block, D), (False, True, True)
    left = k("alloc_shared", hint="smem_delta", shape=(block, D), dtype=bf16)
    right = k("alloc_shared", hint="smem_params", shape=(D, D), dtype=bf16)
    tokens = [k("copy_async", left, k.window(k["delta"], origin, extents, kept)), k("copy_async", right, k["params"])]
    if wait:
        k.op("wait", *tokens)
    k.op("barrier")
    product = k("mma", k("read", left), k("read", right))
    scale = k("exp", k("mul", k.number(-0.1), k["distance"]))
    gate = k("sigmoid", k("mul", product, scale))
    k.op("store", k.window(k["output"], origin, extents, kept), k("mul", k("read", left), gate))
    k.kernel.attributes["grid"] = (B, cdiv(S, block) if coarse else S)
    return k.kernel


def matmul(bm=32, bn=32, bk=32, dtype=bf16, static=None):
    """c = a @ b with a loop over K: a [M, K], b [K, N], c f32; an accumulator tile and a token carried by the loop."""
    k = Author("matmul", a=ViewType((M, K), dtype), b=ViewType((K, N), dtype), c=ViewType((M, N), f32))
    row = k("mul", k("program_id", axis=0), k.index(bm))
    column = k("mul", k("program_id", axis=1), k.index(bn))
    stage = k("alloc_shared", hint="stage", shape=(bm, bk), dtype=dtype)
    first = k("copy_async", stage, k.window(k["a"], [row, k.index(0)], (bm, bk)))
    zeros = k("full", k.number(0.0), shape=(bm, bn), dtype=f32)

    def body(index, acc, pending):
        k.op("wait", pending)
        a = k("read", stage)
        b = k("load", k.window(k["b"], [index, column], (bk, bn)))
        following = k("add", index, k.index(bk))
        return k("mma", a, b, acc), k("copy_async", stage, k.window(k["a"], [row, following], (bm, bk)))

    acc, last = k.loop(k.index(0), k.size(K), k.index(bk), [zeros, first], body)
    assert isinstance(last.type, TokenType)
    k.op("wait", last)
    k.op("store", k.window(k["c"], [row, column], (bm, bn)), acc)
    k.kernel.attributes.update(grid=(cdiv(M, bm), cdiv(N, bn)), static=static or {})
    return k.kernel


def target_gating(d, block=128, wait=True):
    """`gating` at Target level for D = d: padded shared buffers, fragments, one mma per k-block."""
    k = Author(
        "target_gating",
        delta=ViewType((B, S, d), bf16),
        params=ViewType((d, d), bf16),
        distance=ScalarType(i64),
        output=ViewType((B, S, d), bf16),
    )
    batch, seq = k("program_id", axis=0), k("program_id", axis=1, scale=block)
    origin, extents, kept = [batch, seq, k.index(0)], (1, block, d), (False, True, True)
    left = k("shared", hint="smem_delta", shape=(block, d), dtype=bf16, layout=shared_layout(block, d, 2, 16, 16))
    right = k("shared", hint="smem_params", shape=(d, d), dtype=bf16, layout=shared_layout(d, d, 2, 16, 8))
    copies = [
        k("cp_async", left, k.window(k["delta"], origin, extents, kept), vector=16),
        k("cp_async", right, k["params"], vector=16),
    ]
    group = k("async_commit", *copies)
    if wait:
        k.op("async_wait", group)
    k.op("barrier")
    warps = (4, 1)
    acc_layout, zero = accumulator_layout((block, d), warps), k.index(0)
    zeros = k("full", k.number(0.0), shape=(block, d), dtype=f32, layout=acc_layout)

    def step(index, acc):
        a = k(
            "ldmatrix",
            left,
            zero,
            index,
            shape=(block, 16),
            layout=operand_a_layout((block, 16), warps),
            role="a",
            transposed=False,
        )
        b = k(
            "ldmatrix",
            right,
            index,
            zero,
            shape=(16, d),
            layout=operand_b_layout((16, d), warps),
            role="b",
            transposed=False,
        )
        return [k("mma_sync", a, b, acc)]

    product = k.loop(zero, k.index(d), k.index(16), [zeros], step)[0]
    gate = k("sigmoid", k("mul", product, k("exp", k("mul", k.number(-0.1), k["distance"]))))
    delta = k("ld_shared", left, zero, zero, shape=(block, d), layout=acc_layout, vector=4)
    k.op("st_global", k.window(k["output"], origin, extents, kept), k("mul", delta, gate), vector=4)
    k.kernel.attributes["grid"] = (B, cdiv(S, block))
    return k.kernel


def normal(*shape, dtype=BF16, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def unwritten(*shape, dtype=BF16):
    return np.full(shape, np.nan, dtype)
