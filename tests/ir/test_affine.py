"""Expressions, windows and ranges, each against numbers: substituting values must commute with the symbolic work."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.dtypes import bf16, f32, i32, i64
from tessera.ir import dims
from tessera.ir.affine import (
    Progression,
    bounds,
    cover,
    expression,
    loop_progression,
    opaque_symbol,
    opaque_values,
    symbol_ranges,
    window_of,
)
from tessera.ir.core import Block, Builder, Kernel, Value
from tessera.ir.dims import symbol
from tessera.ir.types import ScalarType, ViewType

S, D, PID0, PID1 = symbol("S"), symbol("D"), symbol("pid0"), symbol("pid1")


@pytest.fixture
def builder() -> Builder:
    return Builder(Block())


def const(builder: Builder, number: int) -> Value:
    return builder.value("constant", value=number, dtype=i64, weak=True)


def pid(builder: Builder, axis: int, scale: int = 1) -> Value:
    return builder.value("program_id", axis=axis, scale=scale)


def test_expression_of_arithmetic(builder):
    a, b = pid(builder, 0), builder.value("size", size=S)
    total = builder.value("add", builder.value("mul", a, const(builder, 64)), builder.value("neg", b))
    assert expression(total) == PID0 * 64 - S
    assert expression(builder.value("sub", total, total)) == 0
    assert expression(builder.value("floordiv", total, const(builder, 64))) == PID0 + dims.floordiv(-S, 64)
    assert expression(builder.value("mod", total, const(builder, 64))) == dims.mod(-S, 64)
    assert expression(builder.value("min", total, builder.value("add", total, const(builder, 1)))) == PID0 * 64 - S
    assert expression(builder.value("max", a, b)) == dims.maximum(PID0, S)
    assert expression(builder.value("cast", total, dtype=i32)) == PID0 * 64 - S
    assert expression(pid(builder, 1, scale=128)) == PID1 * 128


def test_what_is_not_understood_is_a_symbol_of_its_own(builder):
    n, x = builder.block.add_argument(ScalarType(i64), "n"), builder.block.add_argument(ViewType((S,), f32), "x")
    rounded = builder.value(
        "cast", builder.value("load", builder.op("window", [x, n], extents=(1,), kept=(False,)).result), dtype=i64
    )
    assert expression(rounded) == symbol(opaque_symbol(rounded)) != symbol(opaque_symbol(n))
    both = builder.value("add", builder.value("mul", n, const(builder, 2)), rounded)
    assert expression(both) == symbol(opaque_symbol(n)) * 2 + symbol(opaque_symbol(rounded))
    assert set(opaque_values(both)) == {n, rounded}
    assert opaque_values(pid(builder, 0)) == []
    by_zero = builder.value("mod", n, const(builder, 0))
    assert expression(by_zero) == symbol(opaque_symbol(by_zero))


def test_a_long_chain_and_its_cache(builder):
    value, one, cache = pid(builder, 0), const(builder, 1), {}
    for _ in range(3000):
        value = builder.value("add", value, one)
    assert expression(value, cache) == PID0 + 3000
    assert len(cache) == 3002


def test_window_of_a_window(builder):
    x = builder.block.add_argument(ViewType((symbol("B"), S, D), bf16), "x")
    row, start, zero, step = pid(builder, 0), pid(builder, 1), const(builder, 0), const(builder, 32)
    outer = builder.op("window", [x, row, start, zero], extents=(1, 128, D), kept=(False, True, True)).result
    inner = builder.op("window", [outer, step, zero], extents=(64, D), kept=(True, True)).result
    found = window_of(inner)
    assert found.parameter is x
    assert found.offsets == (PID0, PID1 + 32, 0)
    assert found.extents == (1, 64, D)
    assert found.kept == (False, True, True) and found.kept_axes == [1, 2]
    assert found.operands == (row, start, zero, step, zero)
    assert window_of(x).extents == (symbol("B"), S, D)


def loop(builder: Builder, lower: Value, upper: Value, step: Value):
    body = Block()
    body.add_argument(ScalarType(i64), "i")
    Builder(body).op("yield")
    return builder.op("for", [lower, upper, step], [body])


def test_loop_progression(builder):
    size = builder.value("size", size=S)
    op = loop(builder, const(builder, 3), size, const(builder, 64))
    name, values = loop_progression(op)
    assert name == opaque_symbol(op.regions[0].arguments[0])
    assert values == Progression(3, 64, dims.cdiv(S - 3, 64))
    assert values.evaluate({"S": 200}) == range(3, 200, 64) == range(3, 259, 64)
    assert len(values.evaluate({"S": 1})) == 0
    assert values.evaluate({}) is None
    empty = loop(builder, const(builder, 5), const(builder, 2), const(builder, 1))
    assert loop_progression(empty)[1].count == 0


ranges_of_symbols = st.tuples(st.integers(-3, 3), st.integers(1, 4), st.integers(0, 4)).map(
    lambda r: range(r[0], r[0] + r[1] * r[2], r[1])
)


@settings(deadline=None)
@given(
    st.integers(-5, 12),
    st.lists(st.tuples(st.integers(-9, 9), ranges_of_symbols), max_size=3),
    st.integers(1, 6),
    st.integers(0, 25),
)
def test_cover_by_brute_force(start, moves, extent, size):
    names = [f"n{i}" for i in range(len(moves))]
    offset = start + sum(((factor * symbol(name)) for name, (factor, _) in zip(names, moves, strict=True)), 0)
    factors, values = [f for f, _ in moves], [r for _, r in moves]
    # A symbol whose factor is zero drops out of the expression, and its range with it.
    values = [r if f else range(1) for f, r in zip(factors, values, strict=True)]
    starts = {start + sum(f * v for f, v in zip(factors, at, strict=True)) for at in itertools.product(*values)}
    touched = {row for first in starts for row in range(first, first + extent)}
    found = cover(offset, extent, size, {name: values for name, (_, values) in zip(names, moves, strict=True)})
    rows = [row for low, high in found for row in range(low, high)]
    assert rows == sorted(touched & set(range(size)))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


def test_cover_gives_up():
    assert cover(dims.floordiv(PID0, 2), 1, 10, {"pid0": range(4)}) is None
    assert cover(PID0 * PID1, 1, 10, {"pid0": range(4), "pid1": range(4)}) is None
    assert cover(symbol("n"), 1, 10, {}) is None
    assert cover(PID0 * 2, 1, 10**9, {"pid0": range(10**8)}) is None
    assert cover(PID0, 1, 10**9, {"pid0": range(10**8)}) == [(0, 10**8)]


atoms = st.sampled_from(["a", "b", "c"]).map(symbol)
sizes = st.recursive(
    st.integers(-6, 6) | atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: t[0] + t[1]),
        st.tuples(inner, inner).map(lambda t: t[0] * t[1]),
        st.tuples(st.sampled_from(["floordiv", "mod", "cdiv"]), inner, st.integers(1, 5)).map(
            lambda t: dims.FUNCTIONS[t[0]](t[1], t[2])
        ),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: dims.FUNCTIONS[t[0]](t[1], t[2])),
    ),
    max_leaves=5,
)
limits = st.tuples(st.integers(-4, 4), st.integers(0, 3)).map(lambda t: (t[0], t[0] + t[1]))


@settings(max_examples=200, deadline=None)
@given(sizes, limits, limits, limits, st.sets(st.sampled_from(["a0", "a1", "b0", "b1", "c0", "c1"])))
def test_bounds_hold_for_every_value(size, a, b, c, without):
    named = {"a": a, "b": b, "c": c}
    ranges = {
        name: tuple(None if f"{name}{side}" in without else limit[side] for side in (0, 1))
        for name, limit in named.items()
    }
    low, high = bounds(size, ranges)
    for values in itertools.product(*(range(limit[0], limit[1] + 1) for limit in named.values())):
        number = dims.evaluate(size, dict(zip(named, values, strict=True)))
        assert low is None or low <= number
        assert high is None or number <= high


def test_bounds_are_tight_where_it_matters():
    ranges = {"pid0": (0, None), "S": (1, 100)}
    assert bounds(PID0 * 64 + 3, ranges) == (3, None)
    assert bounds(PID0 * -64, ranges) == (None, 0)
    assert bounds(dims.mod(PID0, 8), ranges) == (0, 7)
    assert bounds(dims.floordiv(S, 8), ranges) == (0, 12)
    assert bounds(dims.cdiv(S, 8), ranges) == (1, 13)
    assert bounds(dims.mod(S, 128), ranges) == (1, 100)
    assert bounds(symbol("unknown"), ranges) == (None, None)


def test_symbol_ranges(builder):
    builder.block.add_argument(ViewType((S, D), f32), "x")
    op = loop(builder, const(builder, 2), builder.value("size", size=S), const(builder, 1))
    index = op.regions[0].arguments[0]
    kernel = Kernel("k", builder.block, {"grid": (dims.cdiv(S, 64), 3), "static": {"D": 32}})
    ranges = symbol_ranges(kernel)
    assert ranges["pid0"] == (0, None) and ranges["pid1"] == (0, 2) and ranges["pid2"] == (0, 0)
    assert ranges["S"] == (0, None) and ranges["D"] == (32, 32)
    assert bounds(index, ranges) == (2, None)
    known = symbol_ranges(kernel, values={"S": 200})
    assert known["pid0"] == (0, 3) and bounds(index, known) == (2, 199)
