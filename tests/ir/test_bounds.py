"""Error bars: no correct answer may fall outside one, and none may be wider than its rule."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tessera.dtypes import bf16, boolean, f32, i64
from tessera.ir import bounds, numeric
from tessera.ir.bounds import Bar
from tessera.ir.core import Block, Builder
from tessera.ir.opdef import lookup
from tessera.ir.types import ScalarType, TileType

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(11)
INF, NAN = np.inf, np.nan


def make(name, count, shape=(64,), **attributes):
    block = Block()
    return Builder(block).op(name, [block.add_argument(TileType(shape, f32)) for _ in range(count)], **attributes)


def bar(r, e=0.0):
    r = np.atleast_1d(np.asarray(r, np.float64))
    return Bar(r, np.broadcast_to(np.asarray(e, np.float64), r.shape).copy())


def apply(name, *operands):
    return lookup(name).bound(make(name, len(operands), operands[0].shape[1:]), *operands)


def sample(value: Bar):
    """f32 values inside the bars: the ends and points between."""
    x = value.r + value.e * RNG.uniform(-1, 1, value.r.shape) * RNG.choice([0.5, 0.999999], value.r.shape)
    return x.astype(np.float32).astype(np.float64)


BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}
UNARY = {
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "exp2": np.exp2,
    "tanh": np.tanh,
    "sigmoid": numeric.sigmoid,
    "softplus": numeric.softplus,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "log": np.log,
    "log2": np.log2,
}


def operand(positive=False):
    r = RNG.standard_normal((50, 64)) * 3
    r = (np.abs(r) + 0.5 if positive else r).astype(np.float32).astype(np.float64)
    # f32 operands near a bar's end leave it by their own rounding: keep the bars wider than that, or exact.
    return bar(r, RNG.choice([0.0, 1e-3, 0.1], r.shape))


@pytest.mark.parametrize("name", BINARY)
def test_answers_from_operands_inside_their_bars_are_inside(name):
    a, b = operand(), operand(positive=name == "div")
    result = apply(name, a, b)
    for _ in range(20):
        x, y = (np.where(v.e == 0, v.r, sample(v)) for v in (a, b))
        answer = BINARY[name](x, y).astype(np.float32).astype(np.float64)
        assert (np.abs(answer - result.r) <= result.e).all()


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_operands_inside_their_bars_are_inside(name):
    a = operand(positive=name in ("sqrt", "rsqrt", "log", "log2"))
    result = apply(name, a)
    for _ in range(20):
        x = np.where(a.e == 0, a.r, sample(a))
        answer = UNARY[name](x).astype(np.float32).astype(np.float64)
        assert (np.abs(answer - result.r) <= result.e).all()


def test_exact_operands_leave_one_rounding():
    a, b = bar([[3.0, 1e-3]]), bar([[7.0, 0.1]])
    for name, function in BINARY.items():
        result = apply(name, a, b)
        np.testing.assert_array_equal(result.r, function(a.r, b.r))
        rounding = 0.0 if name in ("max", "min") else 2.0**-24 * np.abs(result.r)
        np.testing.assert_array_equal(result.e, np.broadcast_to(rounding, (1, 2)))
    assert apply("exp", bar([[1.0]])).e.item() == pytest.approx(2 * 2.0**-23 * np.e, rel=1e-12)
    np.testing.assert_array_equal(apply("neg", bar([[2.0]], 0.5)).e, [[0.5]])


def test_first_order_terms():
    a, b = bar([[3.0]], 0.1), bar([[-4.0]], 0.2)
    assert apply("add", a, b).e.item() == pytest.approx(0.3 + 2.0**-24)
    assert apply("mul", a, b).e.item() == pytest.approx(3 * 0.2 + 4 * 0.1 + 0.02 + 2.0**-24 * 12)
    assert apply("div", a, b).e.item() == pytest.approx((0.1 + 0.75 * 0.2) / 3.8 + 2.0**-24 * 0.75)


def test_subnormal_products_have_room_for_their_rounding():
    a, b = bar([[1e-40]]), bar([[0.3]])
    a = bar(np.float64(np.float32(1e-40)).reshape(1, 1))
    result = apply("mul", a, b)
    answer = np.float32(1e-40) * np.float32(0.3)
    assert abs(float(answer) - result.r.item()) <= result.e.item() < 2.0**-149


def test_infinite_values_have_no_error_and_unbounded_ones_say_so():
    a = bar([[-INF, INF, 1.0, 5.0, 0.0]])
    np.testing.assert_array_equal(apply("exp", apply("sub", a, bar([[1.0] * 5], 0.1))).r[0, :2], [0, INF])
    shifted = apply("sub", a, bar([[1.0] * 5], 0.1))
    assert np.isfinite(apply("exp", shifted).e[0]).all() and (shifted.e[0, :2] == 0).all()
    divided = apply("div", bar([[1.0, 1.0, 0.0]]), bar([[0.0, 0.05, 0.0]], [[0.0, 0.1, 0.0]]))
    np.testing.assert_array_equal(divided.e[0, :2], [0, INF])
    assert divided.r[0, 0] == INF and np.isnan(divided.r[0, 2]) and divided.e[0, 2] == 0
    assert apply("mul", bar([[0.0]]), bar([[1.0]], INF)).e.item() == INF
    assert apply("sqrt", bar([[0.01]], 0.02)).e.item() == INF
    np.testing.assert_array_equal(apply("max", bar([[-INF, -INF]]), bar([[-INF, 2.0]], [[0, 0.5]])).e, [[0, 0.5]])
    nothing = apply("add", bar([[NAN, INF]]), bar([[1.0, -INF]]))
    assert np.isnan(nothing.r).all() and (nothing.e == 0).all()


def test_hull_of_extrema_and_reductions():
    assert apply("max", bar([[1.0]], 0.5), bar([[1.2]], 0.1)).e.item() == pytest.approx(0.3)
    x = bar([[1.0, 1.2, -9.0]], [[0.5, 0.1, 0.25]])
    peak = bounds.reduce_extremum(np.max)(None, x, -1)
    assert (peak.r.item(), peak.e.item()) == (1.2, pytest.approx(0.3))
    low = bounds.reduce_extremum(np.min)(None, x, -1)
    assert (low.r.item(), low.e.item()) == (-9, 0.25)
    masked = bounds.reduce_extremum(np.max)(None, bar([[-INF, -INF]]), -1)
    assert (masked.r.item(), masked.e.item()) == (-INF, 0)


def test_sums_with_masked_elements():
    op = make("reduce_sum", 1, (3,), axis=0)
    result = lookup("reduce_sum").bound(op, bar([[1.0, 2.0, 4.0]], [[0.5, 0, 0.25]]))
    assert result.r.item() == 7 and result.e.item() == pytest.approx(0.75 + 2 * 2.0**-24 * 7)
    infinite = lookup("reduce_sum").bound(op, bar([[1.0, INF, 4.0]]))
    assert (infinite.r.item(), infinite.e.item()) == (INF, 0)


def test_matmul_of_infinities_leaves_other_rows_alone():
    a, b = bar(np.array([[[1.0, INF], [1.0, 2.0]]])), bar(np.array([[[1.0, 0.0], [1.0, 1.0]]]), 0.1)
    result = bounds.matmul(a, b, None, 16)
    np.testing.assert_array_equal(result.r, [[[INF, INF], [3, 2]]])
    assert (result.e[0, 0] == 0).all() and np.isfinite(result.e[0, 1]).all() and (result.e[0, 1] > 0.3).all()


def neighbours(x):
    """The bf16 numbers below and above, by way of their bits."""
    bits = np.asarray(x, ml_dtypes.bfloat16).view(np.int16)
    return [(bits + step).view(ml_dtypes.bfloat16).astype(np.float64) for step in (-1, 1)]


def test_explicit_rounding_keeps_exactness_and_admits_exactly_the_legal_neighbours():
    exact = bounds.round_explicit(bf16, bar(RNG.standard_normal(1000)))
    assert (exact.e == 0).all()
    r = RNG.uniform(1, 2, 2000)
    e = RNG.uniform(0, 2.0**-8, 2000)
    result = bounds.round_explicit(bf16, bar(r, e))
    low, high = ((r + s * e).astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64) for s in (-1, 1))
    np.testing.assert_array_equal(result.r, r.astype(ml_dtypes.bfloat16).astype(np.float64))
    np.testing.assert_array_equal(result.e, np.maximum(high - result.r, result.r - low))


def test_implicit_rounding_allows_its_absence():
    r = RNG.uniform(1, 2, 1000)
    result = bounds.round_implicit(bf16, bar(r))
    assert (np.abs(r - result.r) <= result.e).all()
    np.testing.assert_array_equal(result.e, np.full(1000, 2.0**-8))
    held = bounds.round_implicit(bf16, bar(result.r))  # nothing to round
    assert (held.e == 0).all()
    widened = bounds.round_implicit(bf16, bar(result.r, 1e-9))
    assert (widened.e >= 2.0**-8).all()
    below, above = neighbours(1.5)
    assert bounds.round_implicit(bf16, bar(1.5, 2.0**-7)).e.item() == max(above - 1.5, 1.5 - below) + 2.0**-8


def test_f32_results_are_not_rounded_again_but_overflow():
    small = bounds.round_implicit(f32, bar([0.1], 1e-9))
    assert small.r.item() == 0.1 and small.e.item() == 1e-9
    large = bounds.round_implicit(f32, bar([1e39, -1e39, 3.4e38], [1.0, 0.0, 1e37]))
    np.testing.assert_array_equal(large.r, [INF, -INF, 3.4e38])
    np.testing.assert_array_equal(large.e, [0, 0, INF])


def test_rounding_at_the_largest_value_and_of_specials():
    result = bounds.round_explicit(bf16, bar([3.38e38, 3.4e38, INF, NAN], [1e37, 0, 0, 0]))
    np.testing.assert_array_equal(result.r[1:], [INF, INF, NAN])
    np.testing.assert_array_equal(result.e, [INF, 0, 0, 0])


def test_rounding_to_integers_and_bools():
    whole = bounds.round_explicit(i64, bar([2.7, -2.7, 2.95], [0.0, 0.0, 0.1]))
    np.testing.assert_array_equal(whole.r, [2, -2, 2])
    np.testing.assert_array_equal(whole.e, [0, 0, 1])
    truth = bounds.round_explicit(boolean, bar([0.0, 3.0, 0.05, 3.0], [0.0, 0.0, 0.1, 0.1]))
    np.testing.assert_array_equal(truth.r, [0, 1, 1, 1])
    np.testing.assert_array_equal(truth.e, [0, 0, 1, 0])


def test_integer_bars():
    block = Block()
    op = Builder(block).op("mul", [block.add_argument(ScalarType(i64)) for _ in range(2)])
    result = lookup("mul").bound(op, bar([3.0]), bar([5.0], 1.0))
    assert (result.r.item(), result.e.item()) == (15, 3)
    quotient = Builder(block).op("floordiv", op.operands)
    assert lookup("floordiv").bound(quotient, bar([7.0]), bar([2.0])).e.item() == 0
    assert lookup("floordiv").bound(quotient, bar([7.0], 1.0), bar([2.0])).e.item() == INF


def test_comparisons_flip_where_bars_touch():
    op = lookup("lt")
    result = op.bound(
        make("lt", 2, (5,)), bar([[1.0, 1, 1, 1, INF]], [[0, 0.5, 0.5, 0, 0]]), bar([[1.0, 1.4, 2, 2, INF]])
    )
    np.testing.assert_array_equal(result.r, [[0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(result.e, [[0, 1, 0, 0, 0]])
