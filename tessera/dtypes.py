"""The one table of number types, and the only place where a value is rounded to one of them.

A *carrier* is the NumPy type in which the interpreter holds values of a dtype while it computes: bf16 values live in
float32 arrays whose every element is exactly a bf16. *Storage* is the type of the array that a caller sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from tessera.errors import ArgumentError, SourceError, did_you_mean
from tessera.location import Loc


@dataclass(frozen=True, slots=True)
class DType:
    """One row of the table; two are equal when their names are.

    For floats, `precision` counts significand bits with the hidden one and `min_exponent` is the exponent of the
    smallest normal number, so the spacing at x is 2 ** (max(exponent of x, min_exponent) - precision + 1).
    `rank` orders floats (and integers among themselves) for promotion.
    """

    name: str
    bits: int = field(compare=False)
    kind: str = field(compare=False)  # "float", "int" or "bool"
    numpy: np.dtype = field(compare=False)
    carrier: np.dtype = field(compare=False)
    cuda: str = field(compare=False)
    rank: int = field(compare=False)
    largest: float | int = field(compare=False)  # largest finite value
    precision: int = field(default=0, compare=False)
    min_exponent: int = field(default=0, compare=False)
    accumulator: str = field(default="", compare=False)  # name of the dtype in which sums of it are kept
    saturates: bool = field(default=False, compare=False)  # what is too large, infinity too, becomes the largest value

    @property
    def bytes(self) -> int:
        return (self.bits + 7) // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_int(self) -> bool:
        return self.kind == "int"

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"

    @property
    def accumulate(self) -> DType:
        """The dtype in which sums and matrix products of this one are accumulated unless the author says otherwise."""
        return TYPES[self.accumulator or self.name]

    def __matmul__(self, policy: object) -> NumericType:
        if not isinstance(policy, Accumulate):
            return NotImplemented
        return NumericType(self, policy.dtype)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"tessera.{self.name}"


@dataclass(frozen=True, slots=True)
class Accumulate:
    """The right side of ``bf16 @ accum(f32)``."""

    dtype: DType


@dataclass(frozen=True, slots=True)
class NumericType:
    """A storage dtype with the dtype in which sums of it are accumulated."""

    dtype: DType
    accumulate: DType

    def __str__(self) -> str:
        return f"{self.dtype} @ accum({self.accumulate})"


def _float(
    name: str, numpy: object, carrier: object, cuda: str, rank: int, accumulator: str = "", saturates: bool = False
) -> DType:
    info = ml_dtypes.finfo(numpy)  # type: ignore[arg-type]
    storage, held = np.dtype(numpy), np.dtype(carrier)  # type: ignore[call-overload]
    largest, precision = float(info.max), info.nmant + 1  # nmant leaves out the hidden bit
    return DType(
        name, info.bits, "float", storage, held, cuda, rank, largest, precision, info.minexp, accumulator, saturates
    )


def _int(name: str, numpy: type[np.signedinteger], cuda: str, rank: int) -> DType:
    info = np.iinfo(numpy)
    return DType(name, info.bits, "int", np.dtype(numpy), np.dtype(numpy), cuda, rank, int(info.max))


boolean = DType("bool", 8, "bool", np.dtype(np.bool_), np.dtype(np.bool_), "bool", 0, 1)
i8 = _int("i8", np.int8, "ts_i8", 1)
i32 = _int("i32", np.int32, "ts_i32", 2)
i64 = _int("i64", np.int64, "ts_i64", 3)
# Both fp8 types round as CUDA's cvt.rn.satfinite does: beyond the largest value, infinity included, is the largest
# value, and NaN stays NaN. e4m3 has no infinity; that of e5m2 comes from memory only and the next rounding ends it.
fp8_e4m3 = _float("fp8_e4m3", ml_dtypes.float8_e4m3fn, np.float32, "ts_fp8_e4m3", 5, "f32", saturates=True)
fp8_e5m2 = _float("fp8_e5m2", ml_dtypes.float8_e5m2, np.float32, "ts_fp8_e5m2", 5, "f32", saturates=True)
f16 = _float("f16", np.float16, np.float32, "ts_f16", 10, accumulator="f32")
bf16 = _float("bf16", ml_dtypes.bfloat16, np.float32, "ts_bf16", 10, accumulator="f32")
f32 = _float("f32", np.float32, np.float32, "float", 20)
f64 = _float("f64", np.float64, np.float64, "double", 30)  # host references only: no kernel computes in it

TYPES: dict[str, DType] = {
    dtype.name: dtype for dtype in (boolean, i8, i32, i64, fp8_e4m3, fp8_e5m2, f16, bf16, f32, f64)
}


def accum(dtype: DType) -> Accumulate:
    """The accumulation policy of an annotation, as in ``ts.bf16 @ ts.accum(ts.f32)``."""
    if not isinstance(dtype, DType) or not dtype.is_float:
        raise SourceError("TS203", f"accum takes a float dtype such as ts.f32, not {dtype!r}")
    return Accumulate(dtype)


def parse(name: str, loc: Loc | None = None) -> DType:
    """The dtype called `name`; raises SourceError TS201 for any other name."""
    if name not in TYPES:
        known = ", ".join(TYPES)
        raise SourceError("TS201", f"there is no dtype '{name}' (known: {known}){did_you_mean(name, TYPES)}", loc)
    return TYPES[name]


def from_numpy(dtype: object) -> DType | None:
    """The row whose storage is this NumPy dtype, or None."""
    wanted = np.dtype(dtype)  # type: ignore[call-overload]
    return next((row for row in TYPES.values() if row.numpy == wanted), None)


def promote(a: DType, b: DType) -> DType:
    """Result dtype of an elementwise op on two dtypes: bool < i8 < i32 < i64 < fp8 < f16 and bf16 < f32.

    The wider one, except where neither holds the values of the other: bf16 with f16, one fp8 with the other, and an
    integer with a float narrower than f32 give f32.
    """
    low, high = sorted((a, b), key=lambda dtype: dtype.rank)
    if low.is_int and high.is_float:
        return high if high.rank >= f32.rank else f32
    return high if low.rank < high.rank or low == high else f32


def round_to(dtype: DType, array: object) -> np.ndarray:
    """`array` rounded once, to nearest even, to `dtype`; the result has the dtype's carrier type.

    NaN stays NaN. Float overflow gives infinity, or the largest value of a dtype that saturates. A float becomes an
    integer by dropping its fraction. Raises SourceError TS401 when a value does not fit an integer dtype.
    """
    values = np.asarray(array)
    if values.dtype not in _CARRIERS:
        row = from_numpy(values.dtype)
        if row is not None:
            values = from_storage(row, values)
        elif values.dtype.kind in "iu":
            values = _round_to_integer(i64, values)
        else:
            values = values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32)
    if dtype.is_bool:
        return np.asarray(values != 0)
    if dtype.is_int:
        return _round_to_integer(dtype, values)
    if dtype.carrier == dtype.numpy:
        with np.errstate(over="ignore"):  # overflow to infinity is the documented result
            return values.astype(dtype.carrier)
    if values.dtype == np.float32:
        return _float32_to_bf16(values) if dtype == bf16 else _float32_to_narrow(dtype, values)
    return _round_significand(dtype, _to_float64_sticky(values)).astype(dtype.carrier)


def to_storage(dtype: DType, carrier: object) -> np.ndarray:
    """Values held in a carrier as an array of the storage type; values that are not exact are rounded."""
    values = round_to(dtype, carrier)
    if dtype == bf16:
        return np.asarray(values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(dtype.numpy)
    with np.errstate(invalid="ignore"):  # NaN is a value like any other
        return values.astype(dtype.numpy, copy=False)


def from_storage(dtype: DType, array: np.ndarray) -> np.ndarray:
    """An array of the storage type as carrier values, exactly; raises ArgumentError TS604 for any other type."""
    if array.dtype != dtype.numpy:
        raise ArgumentError("TS604", f"an array of dtype {dtype.name} was expected, not one of {array.dtype}")
    if dtype == bf16:
        return np.asarray(array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        return array.astype(dtype.carrier, copy=False)


def ulp(dtype: DType, array: object) -> np.ndarray:
    """Spacing of `dtype` at each value, in float64: NaN at infinity and NaN, 0 for integers and bool (no rounding)."""
    values = np.asarray(array, np.float64)
    if not dtype.is_float:
        return np.zeros_like(values)
    spacing = np.ldexp(1.0, _spacing_exponent(dtype, values))
    return np.where(np.isfinite(values), spacing, np.nan)


_CARRIERS = frozenset(row.carrier for row in TYPES.values())


def _float32_to_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    # Adding just under half of the dropped bits, plus one when the kept value is odd, carries exactly on RNE.
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) & np.uint32(0xFFFF0000)
    # The carry would turn some NaNs into infinity or zero.
    return np.where(np.isnan(values), np.float32(np.nan), np.asarray(rounded).view(np.float32))


def _float32_to_narrow(dtype: DType, values: np.ndarray) -> np.ndarray:
    """To f16 and fp8, whose conversions from float32 in NumPy and ml_dtypes round once but do not saturate."""
    if dtype.saturates:
        values = np.clip(values, -dtype.largest, dtype.largest)  # keeps NaN
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values.astype(dtype.numpy).astype(np.float32))


def _to_float64_sticky(values: np.ndarray) -> np.ndarray:
    """float64 values that round to any dtype of at most 40 significand bits as `values` do.

    Only int64 beyond 2**53 needs care: its dropped bits are OR-ed into the last one kept, so that a value just past
    a halfway point stays past it.
    """
    if values.dtype != np.int64:
        return values.astype(np.float64)
    large = np.abs(values.astype(np.float64)) >= 2.0**53
    sticky = (values >> 11) | ((values & 0x7FF) != 0)
    return np.where(large, np.ldexp(sticky.astype(np.float64), 11), values.astype(np.float64))


def _spacing_exponent(dtype: DType, values: np.ndarray) -> np.ndarray:
    _, exponent = np.frexp(values)  # values = m * 2**exponent with 0.5 <= |m| < 1
    exponent = np.where(values == 0, dtype.min_exponent, exponent - 1)
    return np.maximum(exponent, dtype.min_exponent) - (dtype.precision - 1)


def _round_significand(dtype: DType, values: np.ndarray) -> np.ndarray:
    """float64 `values` rounded straight to `dtype`; going through float32 first would round twice."""
    exponent = _spacing_exponent(dtype, values)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(values, -exponent)), exponent)
    too_large = dtype.largest if dtype.saturates else np.inf
    return np.where(np.abs(rounded) > dtype.largest, np.copysign(too_large, values), rounded)


def _round_to_integer(dtype: DType, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        values = np.asarray(np.trunc(values))
        # -2**63 and 2**63 are exact in float64 while the largest int64 is not: compare with the open upper limit.
        limit = float(dtype.largest) if dtype.bits <= 32 else 2.0**63
        fits = (values >= -(2.0 ** (dtype.bits - 1))) & ((values <= limit) if dtype.bits <= 32 else (values < limit))
    elif values.dtype.kind == "b":
        fits = np.ones_like(values)
    else:
        fits = (values >= -dtype.largest - 1) & (values <= dtype.largest)
    fits = np.asarray(fits)
    if not np.all(fits):
        bad = values[~fits].flat[0]
        raise SourceError("TS401", f"the value {bad} does not fit {dtype.name}, whose largest value is {dtype.largest}")
    return np.asarray(values).astype(dtype.numpy)
