"""Rounding is checked against ml_dtypes, and against exact rational arithmetic where ml_dtypes rounds twice."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera import dtypes
from tessera.dtypes import NumericType, accum, bf16, boolean, f32, f64, i32, i64, promote, round_to
from tessera.errors import ArgumentError, SourceError


def float32_patterns() -> np.ndarray:
    """Float32 bit patterns of every exponent, both signs, with the halfway points of bf16 among them."""
    high = np.arange(0, 1 << 16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return (high[:, None] | low).ravel().view(np.float32)


def exact_bf16(value: float) -> float:
    """Round to nearest even by rational arithmetic: 8 significand bits, smallest exponent -126."""
    if value == 0:
        return value
    exponent = max(np.frexp(value)[1] - 1, -126) - 7
    scaled = Fraction(value) / Fraction(2) ** int(exponent)
    rounded = round(scaled) * Fraction(2) ** int(exponent)  # Fraction.__round__ rounds half to even
    return float(rounded) if abs(rounded) <= bf16.largest else float(np.copysign(np.inf, value))


def test_bf16_from_float32_matches_ml_dtypes_on_every_exponent():
    values = float32_patterns()
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    result = round_to(bf16, values)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(np.signbit(result)[finite], np.signbit(values)[finite])


def test_bf16_from_float64_rounds_once():
    just_over_half = 1 + 2**-8 + 2**-40  # float32 would drop the last bit and leave a tie that rounds to even, to 1
    assert round_to(bf16, np.float64(just_over_half)) == 1 + 2**-7
    assert round_to(bf16, np.float64(1 + 2**-8)) == 1


@settings(deadline=None, max_examples=300)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_bf16_from_float64_is_the_exact_rounding(value):
    assert float(round_to(bf16, np.float64(value))) == exact_bf16(value)


@given(st.integers(-(2**63), 2**63 - 1))
@settings(deadline=None, max_examples=300)
def test_bf16_from_int64_rounds_once(value):
    scaled = Fraction(value)
    exponent = max(abs(value).bit_length() - 8, 0)
    expected = float(round(scaled / 2**exponent) * 2**exponent)
    assert float(round_to(bf16, np.int64(value))) == expected


def test_overflow_is_infinity_and_nan_stays_nan():
    for dtype in (bf16, f32):
        result = round_to(dtype, np.array([1e300, -1e300, np.nan, np.inf, -0.0]))
        np.testing.assert_array_equal(result, [np.inf, -np.inf, np.nan, np.inf, 0.0])
        assert np.signbit(result[4])


def test_storage_round_trip_keeps_shape_strides_and_bits():
    stored = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    finite = stored[~np.isnan(stored.astype(np.float32))]
    held = dtypes.from_storage(bf16, finite)
    assert held.dtype == np.float32
    np.testing.assert_array_equal(dtypes.to_storage(bf16, held).view(np.uint16), finite.view(np.uint16))
    transposed = finite[:60].reshape(6, 10).T
    np.testing.assert_array_equal(dtypes.from_storage(bf16, transposed), transposed.astype(np.float32))
    scalar = dtypes.to_storage(bf16, 1.1)
    assert scalar.shape == () and scalar.dtype == ml_dtypes.bfloat16
    assert dtypes.from_storage(bf16, scalar) == np.float32(1.1015625)


def test_storage_of_inexact_values_rounds():
    np.testing.assert_array_equal(
        dtypes.to_storage(bf16, np.float32([1.001, 1.004])).astype(np.float32), np.float32([1.0, 1.0078125])
    )


def test_from_storage_refuses_other_types():
    with pytest.raises(ArgumentError, match="bf16 was expected, not one of float32") as caught:
        dtypes.from_storage(bf16, np.zeros(3, np.float32))
    assert caught.value.code == "TS604"


def test_integers_drop_the_fraction_and_refuse_what_does_not_fit():
    np.testing.assert_array_equal(round_to(i32, np.float32([-1.9, 1.9, 2**31 - 128])), [-1, 1, 2**31 - 128])
    np.testing.assert_array_equal(round_to(i32, np.array([-(2**31), 2**31 - 1])), [-(2**31), 2**31 - 1])
    assert round_to(i64, np.array([True, False])).tolist() == [1, 0]
    for dtype, value in [(i32, 2**31), (i32, -(2**31) - 1), (i64, 2.0**63), (i32, np.nan), (i64, np.uint64(2**63))]:
        with pytest.raises(SourceError, match=f"does not fit {dtype}") as caught:
            round_to(dtype, np.array([value]))
        assert caught.value.code == "TS401"


def test_bool_is_unequal_to_zero():
    assert round_to(boolean, np.float32([0.0, -0.0, 0.5, np.nan])).tolist() == [False, False, True, True]


def test_ulp_is_the_distance_to_the_next_value():
    values = np.float32([1.0, 1.9921875, 300.0, -1.5, 2.0**-126, 1e-39])
    held = round_to(bf16, np.abs(values))
    following = (dtypes.to_storage(bf16, held).view(np.uint16) + np.uint16(1)).view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(dtypes.ulp(bf16, held), following.astype(np.float64) - held.astype(np.float64))
    np.testing.assert_array_equal(dtypes.ulp(f32, values), np.abs(np.spacing(values)).astype(np.float64))
    assert dtypes.ulp(bf16, 0.0) == 2.0**-133
    assert np.isnan(dtypes.ulp(bf16, np.inf)) and np.isnan(dtypes.ulp(bf16, np.nan))
    assert dtypes.ulp(i64, 7) == 0


@pytest.mark.parametrize(
    ("a", "b", "result"),
    [
        (bf16, bf16, bf16),
        (bf16, f32, f32),
        (f32, f64, f64),
        (i32, i64, i64),
        (i64, bf16, f32),
        (i32, f32, f32),
        (i32, f64, f64),
        (boolean, bf16, bf16),
        (boolean, i32, i32),
        (boolean, boolean, boolean),
    ],
)
def test_promotion_is_symmetric(a, b, result):
    assert promote(a, b) == promote(b, a) == result


def test_accumulation_policy():
    assert bf16 @ accum(f32) == NumericType(bf16, f32)
    assert str(bf16 @ accum(f32)) == "bf16 @ accum(f32)"
    assert bf16.accumulate == f32 and f32.accumulate == f32
    with pytest.raises(TypeError):
        bf16 @ f32  # type: ignore[operator]
    with pytest.raises(SourceError, match="accum takes a float dtype"):
        accum(i32)


def test_names():
    for name, dtype in dtypes.TYPES.items():
        assert dtypes.parse(name) is dtype and str(dtype) == name
        assert dtypes.from_numpy(dtype.numpy) is dtype
    assert dtypes.from_numpy(np.complex64) is None
    with pytest.raises(SourceError, match="did you mean 'bf16'") as caught:
        dtypes.parse("bf61")
    assert caught.value.code == "TS201"


NARROW = [dtypes.f16, dtypes.fp8_e4m3, dtypes.fp8_e5m2]


def codes(dtype):
    return np.arange(1 << dtype.bits, dtype=np.uint32).astype(f"u{dtype.bytes}").view(dtype.numpy)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_every_code_survives_storage(dtype):
    stored = codes(dtype)
    held = dtypes.from_storage(dtype, stored)
    assert held.dtype == np.float32
    kept = np.isfinite(held) | (np.isinf(held) & (not dtype.saturates))
    back = dtypes.to_storage(dtype, held)
    np.testing.assert_array_equal(back[kept].view(f"u{dtype.bytes}"), stored[kept].view(f"u{dtype.bytes}"))
    np.testing.assert_array_equal(np.isnan(dtypes.from_storage(dtype, back)), np.isnan(held))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_rounding_takes_the_nearest_value_and_the_even_one_of_two(dtype):
    """Every midpoint of neighbours and its neighbours in float64 and float32, against the table of values."""
    values = dtypes.from_storage(dtype, codes(dtype))
    values = np.unique(values[np.isfinite(values)].astype(np.float64))
    middle = (values[1:] + values[:-1]) / 2
    for step in (np.inf, -np.inf):
        beside = np.nextafter(middle, step)
        np.testing.assert_array_equal(round_to(dtype, beside), values[1:] if step > 0 else values[:-1])
    even = round_to(dtype, middle)
    np.testing.assert_array_equal(even, round_to(dtype, middle.astype(np.float32)))
    bits = dtypes.to_storage(dtype, even).view(f"u{dtype.bytes}")
    assert (bits % 2 == 0).all() and ((even == values[1:]) | (even == values[:-1])).all()


def test_fp8_saturates_and_f16_overflows():
    large = np.array([448, 449, 1e5, -1e30, np.inf, -np.inf])
    for values in (large, large.astype(np.float32)):
        np.testing.assert_array_equal(round_to(dtypes.fp8_e4m3, values), [448, 448, 448, -448, 448, -448])
        np.testing.assert_array_equal(round_to(dtypes.fp8_e5m2, values)[2:], [57344, -57344, 57344, -57344])
        np.testing.assert_array_equal(round_to(dtypes.f16, values)[2:], [np.inf, -np.inf, np.inf, -np.inf])
    for dtype in NARROW:
        assert np.isnan(round_to(dtype, np.nan)) and np.isnan(round_to(dtype, np.float32(np.nan)))
    assert round_to(dtypes.f16, np.float32(65519.0)) == 65504 and np.isinf(round_to(dtypes.f16, np.float32(65520.0)))
    assert round_to(dtypes.fp8_e4m3, 2.0**-10) == 0 and round_to(dtypes.fp8_e4m3, 1.5 * 2.0**-10) == 2.0**-9


@given(st.integers(-(2**63), 2**63 - 1))
@settings(deadline=None, max_examples=200)
def test_narrow_floats_from_int64_round_once(value):
    for dtype in NARROW:
        exponent = max(abs(value).bit_length() - dtype.precision, 0)
        expected = float(round(Fraction(value) / 2**exponent) * 2**exponent)
        if abs(expected) > dtype.largest:
            expected = math.copysign(dtype.largest if dtype.saturates else math.inf, value)
        assert float(round_to(dtype, np.int64(value))) == expected


def test_i8_range():
    np.testing.assert_array_equal(round_to(dtypes.i8, np.float32([-128.9, 127.9])), [-128, 127])
    with pytest.raises(SourceError, match="the value 128 does not fit i8"):
        round_to(dtypes.i8, np.array([128]))


@pytest.mark.parametrize(
    ("a", "b", "result"),
    [
        ("fp8_e4m3", "bf16", "bf16"),
        ("fp8_e5m2", "f16", "f16"),
        ("fp8_e4m3", "fp8_e5m2", "f32"),
        ("f16", "bf16", "f32"),
        ("f16", "f16", "f16"),
        ("f16", "f32", "f32"),
        ("i8", "i32", "i32"),
        ("i8", "fp8_e4m3", "f32"),
        ("i8", "f16", "f32"),
        ("bool", "fp8_e4m3", "fp8_e4m3"),
    ],
)
def test_promotion_of_narrow_dtypes(a, b, result):
    a, b, result = map(dtypes.parse, (a, b, result))
    assert promote(a, b) == promote(b, a) == result
