"""What random functions have that single draws rarely meet: sums over lists of products, unrolled, and attention.

Each takes the generator of `graph_programs` and gives a value that later ops may use, or None.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tessera.dtypes import bf16, f16, f32, i64
from tessera.ir.core import Value
from tessera.ir.dims import Size, symbol
from tessera.ir.types import TileType, shape_of

if TYPE_CHECKING:
    from tests.fuzz.graph_programs import Generator

PARAMETERS = 12
PRODUCT = 64.0  # largest magnitude of a product of two differences of inputs


def unrolled_sum(g: Generator) -> tuple[Value, float] | None:
    """total + act(f(x_i, y) @ W_i * scale(n - i)) * A[i, last], i = 0 .. n - 1, written one after the other."""
    rows: tuple[Size, ...] = g.random.choice([(symbol("A"),), (symbol("B"), symbol("A")), (3,)])
    depth, columns = g.random.choice((8, 16, 24, 33)), g.random.choice((8, 16, 24, 33))
    terms = g.random.choice((2, 2, 3, 4))
    if g.count((*rows, depth)) > g.elements or _tensors(g) + 2 * terms > PARAMETERS:
        return None
    dtype, build = g.random.choice((bf16, bf16, f16, f32)), g.builder
    narrow = dtype != f32
    shared = _parameter(g, (*rows, depth), dtype) if g.chance(0.7) else None
    weights = _parameter(g, (terms + 1, 5), bf16) if g.chance(0.5) else None
    scaled, activated, kept = g.chance(0.6), g.chance(0.7), g.chance(0.5)
    total: Value | None = None
    if g.chance(0.5):
        zero = build.value("constant", value=0.0, dtype=f32, weak=True)
        total = build.value("full", zero, shape=(*rows, columns), dtype=dtype)
    for i in range(terms):
        x: Value = _parameter(g, (*rows, depth), dtype)
        if shared is not None:
            x = _rounded(g, build.value("sub", _wide(g, shared), _wide(g, x)), dtype, narrow)
        term = build.value("matmul", x, _parameter(g, (depth, columns), dtype))
        if scaled:
            number = build.value("constant", value=terms - i, dtype=i64, weak=True)
            rate = build.value("constant", value=-0.1, dtype=f32, weak=True)
            term = build.value("mul", term, build.value("exp", build.value("mul", number, rate)))
        if activated:
            term = build.value("sigmoid", term)
        if activated and shared is not None and depth == columns:
            term = build.value("mul", _rounded(g, term, dtype, narrow), _wide(g, x))
        if weights is not None:
            one = build.value("extract", weights, starts=(i, 4), extents=(1, 1))
            one = build.value("reshape", one, shape=(1,) * (len(rows) + 1))
            term = build.value("mul", term, _wide(g, build.value("broadcast", one, shape=(*rows, columns))))
        total = term if total is None else build.value("add", _wide(g, total), _wide(g, term))
        total = _rounded(g, total, dtype, kept and narrow)
    assert total is not None
    return total, terms * PRODUCT * depth


def attention(g: Generator) -> tuple[Value, float] | None:
    """softmax(q @ k^T * scale) @ v of [B, H] heads, masked or not, with k^T read in place or not."""
    length = symbol(g.random.choice("ABCD"))
    width = g.random.choice((8, 16, 20))
    heads: tuple[Size, ...] = g.random.choice([(2,), (symbol("D"), 2)])
    shape = (*heads, length, width)
    if g.count(shape) > g.elements or g.count((*heads, length, length)) > 2 * g.elements:
        return None
    if _tensors(g) + 3 > PARAMETERS:
        return None
    dtype, build, rank = g.random.choice((bf16, bf16, f16, f32)), g.builder, len(shape)
    order = (*range(rank - 3), rank - 2, rank - 3, rank - 1)  # heads behind rows in memory
    if g.chance(0.5):
        moved = tuple(shape[axis] for axis in order)
        q, k, v = (build.value("permute", _parameter(g, moved, dtype), permutation=order) for _ in range(3))
    else:
        q, k, v = (_parameter(g, shape, dtype) for _ in range(3))
    turned = build.value("permute", k, permutation=(*range(rank - 2), rank - 1, rank - 2))
    scale = build.value("constant", value=1 / math.sqrt(width), dtype=f32, weak=True)
    scores = build.value("mul", build.value("matmul", q, turned), scale)
    if g.chance(0.4):
        row, column = (build.value("iota", shape=(length, length), axis=axis, dtype=i64) for axis in (0, 1))
        seen = build.value("ge", row, column)
        seen = build.value("reshape", seen, shape=(*(1,) * (rank - 2), length, length))
        low = build.value("constant", value=-math.inf, dtype=f32, weak=True)
        scores = build.value("where", build.value("broadcast", seen, shape=shape_of(scores.type)), scores, low)
    top = build.value("broadcast", build.value("reduce_max", scores, axis=-1), shape=shape_of(scores.type))
    shares = build.value("exp", build.value("sub", scores, top))
    total = build.value("broadcast", build.value("reduce_sum", shares, axis=-1), shape=shape_of(scores.type))
    shares = _rounded(g, build.value("div", shares, total), dtype, dtype != f32)
    mixed = _rounded(g, build.value("matmul", shares, v), dtype, dtype != f32)
    return (build.value("permute", mixed, permutation=order) if g.chance(0.5) else mixed), 8.0


def _tensors(g: Generator) -> int:
    return sum(isinstance(value.type, TileType) for value in g.body.arguments)


def _parameter(g: Generator, shape: tuple[Size, ...], dtype: Any) -> Value:
    return g.parameter(shape, dtype).value


def _wide(g: Generator, value: Value) -> Value:
    assert isinstance(value.type, TileType)
    return value if value.type.dtype == f32 else g.builder.value("cast", value, dtype=f32, implicit=True)


def _rounded(g: Generator, value: Value, dtype: Any, narrow: bool) -> Value:
    return g.builder.value("cast", value, dtype=dtype, implicit=True) if narrow else value


__all__ = ["attention", "unrolled_sum"]
