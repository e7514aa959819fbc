"""Elementwise ops against float64 models rounded once, their types, and their integers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from op_harness import bar, bound, evaluate, make

from tessera.dtypes import bf16, boolean, f32, i32, i64
from tessera.errors import SourceError
from tessera.ir.types import BufferType, ScalarType, TileType

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(3)
SHAPE = (4, 33)
STORED = {"f32": np.float32, "bf16": ml_dtypes.bfloat16}


def values(dtype, programs=2, shape=SHAPE, scale=4.0):
    x = RNG.standard_normal((programs, *shape)) * scale
    return x.astype(STORED[dtype.name]).astype(np.float32)


def rounded(dtype, x64):
    """The f32 result of the maths and then the rounding to the result dtype, by conversions of NumPy and ml_dtypes."""
    with np.errstate(all="ignore"):
        return x64.astype(np.float32).astype(STORED[dtype.name]).astype(np.float32)


BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}
UNARY = {
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "exp2": np.exp2,
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("left", [bf16, f32])
@pytest.mark.parametrize("right", [bf16, f32])
def test_two_tiles(name, left, right):
    op = make(name, TileType(SHAPE, left), TileType(SHAPE, right))
    wide = f32 if f32 in (left, right) else bf16
    assert op.result.type == TileType(SHAPE, wide)
    a, b = values(left), values(right, programs=1)
    result = evaluate(op, a, b)
    assert result.dtype == np.float32 and result.shape == (2, *SHAPE)
    np.testing.assert_array_equal(result, rounded(wide, BINARY[name](a.astype(np.float64), b.astype(np.float64))))


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", [bf16, f32])
def test_one_tile(name, dtype):
    x = values(dtype)
    x = np.abs(x) if name == "sqrt" else x
    result = evaluate(make(name, TileType(SHAPE, dtype)), x)
    np.testing.assert_array_equal(result, rounded(dtype, UNARY[name](x.astype(np.float64))))


def test_a_scalar_is_spread_over_the_tile_and_a_literal_is_weak():
    tile, scalar = values(bf16, programs=1), np.array([0.5, -2.0, 3.0], np.float32)
    strong = make("mul", TileType(SHAPE, bf16), ScalarType(f32))
    weak = make("mul", ScalarType(f32, weak=True), TileType(SHAPE, bf16))
    assert strong.result.type.dtype == f32 and weak.result.type.dtype == bf16
    assert evaluate(strong, tile, scalar).shape == (3, *SHAPE)
    np.testing.assert_array_equal(evaluate(strong, tile, scalar)[1], -2 * tile[0])
    tenth = np.array([0.1], np.float32)
    np.testing.assert_array_equal(evaluate(weak, tenth, tile), rounded(bf16, np.float64(tenth[0]) * tile))


def test_an_integer_with_a_float_computes_in_f32():
    op = make("mul", ScalarType(f32, weak=True), ScalarType(i64))
    assert op.result.type == ScalarType(f32)
    np.testing.assert_array_equal(
        evaluate(op, np.array([-0.1], np.float32), np.array([3])), np.float32(-0.1) * np.float32(3)
    )
    wide = make("add", ScalarType(i64), ScalarType(i64, weak=True))
    assert wide.result.type == ScalarType(i64)
    assert evaluate(wide, np.array([2**40]), np.array([1])).tolist() == [2**40 + 1]


def test_comparisons_where_and_logic():
    a, b = values(f32), values(f32)
    b[0] = a[0]
    for name, model in (
        ("eq", np.equal),
        ("ne", np.not_equal),
        ("lt", np.less),
        ("le", np.less_equal),
        ("gt", np.greater),
        ("ge", np.greater_equal),
    ):
        op = make(name, TileType(SHAPE, f32), TileType(SHAPE, f32))
        assert op.result.type == TileType(SHAPE, boolean)
        np.testing.assert_array_equal(evaluate(op, a, b), model(a, b))
    p, q = a > 0, b > 0
    both = [TileType(SHAPE, boolean)] * 2
    np.testing.assert_array_equal(evaluate(make("and", *both), p, q), p & q)
    np.testing.assert_array_equal(evaluate(make("or", *both), p, q), p | q)
    np.testing.assert_array_equal(evaluate(make("not", both[0]), p), ~p)
    where = make("where", both[0], TileType(SHAPE, f32), ScalarType(f32, weak=True))
    np.testing.assert_array_equal(evaluate(where, p, a, np.array([-np.inf], np.float32)), np.where(p, a, -np.inf))


def test_cast_rounds_once():
    x = np.array([[1.00390625, 1.01171875, 3.4e38, np.nan, np.inf, 5e-41]], np.float32)  # the first two are ties
    result = evaluate(make("cast", TileType((6,), f32), dtype=bf16), x)
    np.testing.assert_array_equal(result, np.array([[1.0, 1.015625, np.inf, np.nan, np.inf, 9.183549615799121e-41]]))
    np.testing.assert_array_equal(evaluate(make("cast", ScalarType(f32), dtype=i64), np.float32([-2.7])), [-2])
    with pytest.raises(SourceError, match="TS401"):
        evaluate(make("cast", ScalarType(f32), dtype=i32), np.float32([3e9]))


@pytest.mark.parametrize(
    ("name", "a", "b", "wanted"),
    [
        ("floordiv", -7, 2, -4),
        ("mod", -7, 2, 1),
        ("mod", 7, -2, -1),
        ("max", -7, 2, 2),
        ("min", -7, 2, -7),
        ("sub", 3, 5, -2),
    ],
)
def test_integers(name, a, b, wanted):
    op = make(name, ScalarType(i64), ScalarType(i64))
    assert evaluate(op, np.array([a]), np.array([b])).tolist() == [wanted]
    assert bound(op, bar([a]), bar([b])).r.tolist() == [wanted]


def test_integer_overflow_is_an_error():
    for name, a in (("mul", [2**40, 2**40]), ("add", [2**62, 2**62]), ("neg", [-(2**63)]), ("abs", [-(2**63)])):
        op = make(name, *[ScalarType(i64)] * len(a))
        with pytest.raises(OverflowError):
            evaluate(op, *(np.array([x]) for x in a))
    with pytest.raises(ZeroDivisionError):
        evaluate(make("mod", ScalarType(i64), ScalarType(i64)), np.array([1, 1]), np.array([2, 0]))


def test_an_open_comparison_keeps_its_bar_through_logic():
    tiles = [TileType((2,), f32)] * 2
    open_and_sure = bound(make("lt", *tiles), bar([[1.0, 1.0]], 0.1), bar([[1.05, 2.0]]))
    np.testing.assert_array_equal(open_and_sure.e, [[1, 0]])
    both = [TileType((2,), boolean)] * 2
    anded = bound(make("and", *both), open_and_sure, bar([[1.0, 0.0]]))
    np.testing.assert_array_equal((anded.r, anded.e), ([[1, 0]], [[1, 0]]))
    certain = bound(make("and", *both), open_and_sure, bar([[0.0, 0.0]]))
    np.testing.assert_array_equal((certain.r, certain.e), ([[0, 0]], [[0, 0]]))
    negated = bound(make("not", both[0]), open_and_sure)
    np.testing.assert_array_equal((negated.r, negated.e), ([[0, 0]], [[1, 0]]))
    chosen = bound(make("where", both[0], *tiles), open_and_sure, bar([[1.0, 1.0]]), bar([[5.0, 5.0]]))
    np.testing.assert_array_equal((chosen.r, chosen.e), ([[1, 1]], [[4, 0]]))


def test_a_large_integer_is_rounded_before_float_maths():
    op = make("mul", ScalarType(i64), ScalarType(f32))
    np.testing.assert_array_equal(bound(op, bar([2**24 + 1]), bar([1.0])).r, [2.0**24])


def test_operands_are_checked():
    with pytest.raises(SourceError, match="TS203"):
        make("add", BufferType((4,), f32), TileType((4,), f32))
    with pytest.raises(SourceError, match="TS301"):
        make("add", TileType((4,), f32), TileType((5,), f32))
    with pytest.raises(SourceError, match="TS204"):
        make("where", TileType((4,), f32), TileType((4,), f32), TileType((4,), f32))
