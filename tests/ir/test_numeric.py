"""The defined bits against slow, literal versions of the rules, in Python floats and 60-digit decimals."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from tessera.dtypes import f32
from tessera.ir import numeric
from tessera.ir.core import Block, Builder
from tessera.ir.opdef import lookup
from tessera.ir.types import TileType

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(7)


def decimal_sigmoid(x):
    return 1 / (1 + (-x).exp())


def decimal_tanh(x):
    e = (2 * x).exp()
    return (e - 1) / (e + 1)


LN2 = Decimal("0.69314718055994530941723212145817656807550013436025525412068000949339362196969471560586332699641868754")
FUNCTIONS = {
    "exp": (lambda x: x.exp(), (-104, 89)),
    "exp2": (lambda x: (x * LN2).exp(), (-150, 129)),
    "log": (lambda x: x.ln(), (1e-40, 1e3)),
    "log2": (lambda x: x.ln() / LN2, (1e-40, 1e3)),
    "sqrt": (lambda x: x.sqrt(), (0, 1e6)),
    "rsqrt": (lambda x: 1 / x.sqrt(), (1e-6, 1e3)),
    "tanh": (decimal_tanh, (-10, 10)),
    "softplus": (lambda x: (1 + x.exp()).ln(), (-100, 100)),
    "sigmoid": (decimal_sigmoid, (-100, 30)),
}


def round_decimal(value: Decimal) -> np.float32:
    """To nearest even f32, by comparing with the two neighbours of a first guess; no double rounding."""
    if abs(value) >= Decimal(2) ** 128 - Decimal(2) ** 103:
        return np.float32(math.copysign(math.inf, value))
    guess = np.float32(min(float(value), float(np.finfo(np.float32).max)))
    candidates = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(
        (c for c in candidates if np.isfinite(c)),
        key=lambda c: (abs(Decimal(float(c)) - value), int(c.view(np.uint32)) & 1),
    )


def evaluate(name, x):
    block = Block()
    op = Builder(block).op(name, [block.add_argument(TileType((x.shape[-1],), f32))])
    return lookup(name).evaluate(op, x[None])[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_correctly_rounded(name):
    function, (low, high) = FUNCTIONS[name]
    x = np.concatenate([RNG.uniform(low, high, 250), RNG.uniform(max(low, 1e-3), 1.0, 50), [1.0]]).astype(np.float32)
    with localcontext() as context:
        context.prec = 60
        expected = np.array([round_decimal(function(Decimal(float(v)))) for v in x])
    np.testing.assert_array_equal(evaluate(name, x), expected)


def test_functions_at_the_edges():
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1000.0, -1000.0], np.float32)
    inf, nan = np.inf, np.nan
    np.testing.assert_array_equal(evaluate("exp", x), [nan, inf, 0, 1, 1, inf, 0])
    np.testing.assert_array_equal(evaluate("sigmoid", x), [nan, 1, 0, 0.5, 0.5, 1, 0])
    np.testing.assert_array_equal(evaluate("tanh", x), [nan, 1, -1, 0, 0, 1, -1])
    np.testing.assert_array_equal(evaluate("rsqrt", x)[:4], [nan, 0, nan, inf])
    np.testing.assert_array_equal(evaluate("log", x)[:4], [nan, inf, nan, -inf])


def test_a_value_near_a_rounding_boundary_is_taken_again():
    boundary = 1.0 + 2.0**-24  # halfway between two floats

    def nearly(x):  # float64 sees the tie, long double what lies behind it
        return (
            np.full(x.shape, boundary)
            if x.dtype == np.float64
            else x.dtype.type(boundary) + x * 0 + x.dtype.type(2.0**-60)
        )

    if np.finfo(np.longdouble).nmant < 60:
        pytest.skip("long double is no wider than float64 here")
    result = numeric.correctly_rounded(nearly)(np.zeros(3, np.float32))
    np.testing.assert_array_equal(result, np.float32(1.0 + 2.0**-23))


def literal_matmul(a, b, acc, k_block):
    rows, depth = a.shape
    out = np.array(np.broadcast_to(acc, (rows, b.shape[1])), np.float32)
    for i in range(rows):
        for j in range(b.shape[1]):
            for start in range(0, depth, k_block):
                block = None
                for k in range(start, start + k_block):
                    product = float(a[i, k]) * float(b[k, j]) if k < depth else 0.0
                    block = product if block is None else block + product
                out[i, j] = np.float32(float(out[i, j]) + block)
    return out


def random_matrix(shape, bits, spread):
    """Values of `bits` significant bits whose exponents spread over 2 ** +-spread."""
    mantissa = RNG.integers(-(2**bits) + 1, 2**bits, shape)
    return np.ldexp(mantissa.astype(np.float64), RNG.integers(-spread, spread + 1, shape) - bits).astype(np.float32)


@pytest.mark.parametrize("k_block", [8, 16])
@pytest.mark.parametrize(("bits", "spread"), [(8, 0), (8, 4), (8, 30), (24, 0), (24, 12), (24, 40), (2, 0)])
@pytest.mark.parametrize("depth", [1, 16, 37])
def test_matmul_is_the_literal_rule(k_block, bits, spread, depth):
    a, b = random_matrix((2, 5, depth), bits, spread), random_matrix((2, depth, 6), bits, spread)
    acc = random_matrix((2, 5, 6), 24, spread)
    result = numeric.matmul(a, b, acc, k_block)
    expected = np.stack([literal_matmul(a[p], b[p], acc[p], k_block) for p in range(2)])
    np.testing.assert_array_equal(result.view(np.uint32), expected.view(np.uint32))


def test_matmul_with_cancellation_and_signed_zeros():
    a = np.array([[1e8, 1.0, -1e8, 0.1], [0.0, -0.0, 0.0, 0.0], [1e-30, -1e-30, 1e-38, 1e-38]], np.float32)
    b = np.array([[1.0, -1.0], [1.0, -0.0], [1.0, -1.0], [1e-7, -1e-8]], np.float32)
    for acc in (np.zeros((1, 2), np.float32), np.full((1, 2), -0.0, np.float32), np.full((1, 2), 1.0, np.float32)):
        for k_block in (2, 4, 8):
            result = numeric.matmul(a[None], b[None], acc, k_block)[0]
            np.testing.assert_array_equal(result.view(np.uint32), literal_matmul(a, b, acc, k_block).view(np.uint32))


def test_matmul_at_ties_of_the_accumulator():
    """acc + s lies exactly between two floats, or one float64 step beside that, in many orders of summation."""
    tie = np.float32(1.0)
    for tail in (0.0, 2.0**-50, -(2.0**-50), 2.0**-53):
        a = np.array([[2.0**-24, tail, 1.0, -1.0]], np.float32)
        b = np.ones((4, 1), np.float32)
        result = numeric.matmul(a[None], b[None], np.full((1, 1, 1), tie), 4)[0]
        np.testing.assert_array_equal(result, literal_matmul(a, b, np.full((1, 1), tie), 4))


def test_matmul_of_infinities_and_nans():
    a = np.array([[np.inf, 1.0], [np.nan, 1.0], [3e38, 3e38], [1.0, 2.0]], np.float32)
    b = np.array([[0.0, 1.0], [1.0, 3e38]], np.float32)
    result = numeric.matmul(a[None], b[None], np.zeros((1, 1, 1), np.float32), 8)[0]
    inf, nan = np.inf, np.nan
    np.testing.assert_array_equal(result, np.array([[nan, inf], [nan, nan], [3e38, inf], [2.0, inf]], np.float32))


@pytest.mark.parametrize("kept", [0, 1, 5])
@pytest.mark.parametrize("odd", [None, np.inf, np.nan])
def test_rows_of_zeros_are_the_accumulator(kept, odd):
    """Rows outside a tensor are zero and are not multiplied, except where that would show."""
    a, b = random_matrix((1, 8, 19), 8, 2), random_matrix((19, 6), 8, 2)
    a[0, kept:] = np.where(np.arange(19) % 2, 0.0, -0.0)
    if odd is not None:
        b[3, 2] = odd
    acc = random_matrix((1, 8, 6), 24, 2)
    acc[0, 6] = -0.0
    acc[0, 7] = 0.0
    with np.errstate(invalid="ignore"):
        expected = literal_matmul(a[0], b, acc[0], 16)
    np.testing.assert_array_equal(numeric.matmul(a, b, acc, 16)[0].view(np.uint32), expected.view(np.uint32))


def test_one_operand_serves_all_programs():
    a, b = random_matrix((3, 4, 16), 8, 2), random_matrix((1, 16, 4), 8, 2)
    result = numeric.matmul(a, b, np.zeros((1, 4, 4), np.float32), 16)
    for p in range(3):
        np.testing.assert_array_equal(result[p], literal_matmul(a[p], b[0], np.zeros((1, 1)), 16))


def literal_sum(values):
    """Neighbours, pairs, pairs of pairs: what has no neighbour waits for the next round."""
    sums = [np.float32(v) for v in values]
    while len(sums) > 1:
        sums = [sum(sums[i + 1 : i + 2], sums[i]) for i in range(0, len(sums), 2)]
    return sums[0] + np.float32(0)


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 100, 257, 1100, 3072])
def test_sum_is_the_literal_rule(count):
    x = random_matrix((3, count, 2), 24, 10)
    by_row = numeric.reduce_sum(x, axis=-2)
    assert by_row.shape == (3, 1, 2) and by_row.dtype == np.float32
    for p in range(3):
        for column in range(2):
            assert by_row[p, 0, column] == literal_sum(x[p, :, column])
    np.testing.assert_array_equal(numeric.reduce_sum(np.swapaxes(x, -1, -2), axis=-1), np.swapaxes(by_row, -1, -2))


def test_maximum_and_minimum_of_nans_and_signed_zeros():
    values = np.array([0.0, -0.0, np.nan, 1.0, -1.0, np.inf], np.float32)
    a, b = (x.ravel() for x in np.meshgrid(values, values))
    for numpy, ours, reduce in ((max, numeric.maximum, numeric.reduce_max), (min, numeric.minimum, numeric.reduce_min)):
        result = ours(a, b)
        reduced = reduce(np.stack([a, b]), -2)[0]
        for x, y, z, w in zip(a, b, result, reduced, strict=True):
            if np.isnan(x) or np.isnan(y):
                assert np.isnan(z) and np.isnan(w)
            else:
                wanted = numpy(x, y, key=lambda v: (v, not np.signbit(v)))
                assert (z, np.signbit(z)) == (wanted, np.signbit(wanted)) == (w, np.signbit(w))


def test_integer_reductions():
    x = np.array([[3, -5, 2**62]], np.int64)
    assert numeric.reduce_max(x, -1) == 2**62 and numeric.reduce_min(x, -1) == -5
    assert numeric.reduce_sum(x, -1) == 2**62 - 2
    with pytest.raises(OverflowError):
        numeric.reduce_sum(np.array([2**62, 2**62], np.int64), -1)


INTEGERS = [0, 1, -1, 7, -7, 2**31, -(2**31), 2**62, -(2**62), 2**62 + 1, 2**63 - 1, -(2**63), 3037000500, -3037000499]


@pytest.mark.parametrize(
    ("function", "exact"),
    [(np.add, lambda a, b: a + b), (np.subtract, lambda a, b: a - b), (np.multiply, lambda a, b: a * b)],
)
def test_integers_raise_exactly_where_python_leaves_64_bits(function, exact):
    run = numeric.checked(function)
    for a in INTEGERS:
        for b in INTEGERS:
            wanted, left, right = exact(a, b), np.array([a], np.int64), np.array([b], np.int64)
            if -(2**63) <= wanted < 2**63:
                assert run(left, right).tolist() == [wanted]
            else:
                with pytest.raises(OverflowError) as error:
                    run(left, right)
                assert error.value.args == (wanted,)


def test_quotients_follow_python():
    for a in INTEGERS:
        for b in INTEGERS:
            left, right = np.array([a], np.int64), np.array([b], np.int64)
            if b == 0:
                for function in (numeric.floordiv, numeric.mod):
                    with pytest.raises(ZeroDivisionError):
                        function(left, right)
            elif a // b == 2**63:
                with pytest.raises(OverflowError):
                    numeric.floordiv(left, right)
            else:
                assert numeric.floordiv(left, right).tolist() == [a // b]
                assert numeric.mod(left, right).tolist() == [a % b]


def test_tf32_rounds_to_nearest_and_ties_away_from_zero():
    """cvt.rna.tf32.f32 on bits: half of the 13 dropped bits more, and the rest cleared."""
    patterns = np.random.default_rng(0).integers(0, 2**32, 200000, dtype=np.uint32)
    patterns[:8] = [0, 1 << 31, 0x1000, 0xFFF, 0x3F801000, 0xBF801000, 0x7F7FF000, 0x7F7FEFFF]
    x = patterns.view(np.float32)
    finite = np.isfinite(x)
    expected = (patterns[finite] + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    np.testing.assert_array_equal(numeric.round_tf32(x[finite]).view(np.uint32), expected)
    np.testing.assert_array_equal(numeric.round_tf32(np.array([np.nan, np.inf, -np.inf])), [np.nan, np.inf, -np.inf])
    assert numeric.round_tf32(x[6]) == np.inf and numeric.round_tf32(x[7]) == np.float32(2.0**128 - 2.0**117)


def test_tf32_of_a_float64_is_rounded_once():
    step = 2.0**-10
    just_above_half = 1 + step / 2 + 2.0**-40  # through f32 it would be the tie itself, either way up
    just_below_half = 1 + step / 2 - 2.0**-40  # through f32 it would be a tie, and go up
    np.testing.assert_array_equal(numeric.round_tf32(np.array([just_above_half, just_below_half])), [1 + step, 1.0])
    assert numeric.round_tf32(np.array(just_below_half)).dtype == np.float64
