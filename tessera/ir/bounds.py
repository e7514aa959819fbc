"""Reference mode: values with error bars, and how each kind of op moves them (the numerics rule of the design).

A `Bar` is a float64 value `r` and an elementwise bound `e` on the distance of any correct answer from it. `Bound` functions
take the op and its operands as bars and return the result's bar before the rounding to the result dtype, which
`round_explicit` (casts, stores) or `round_implicit` (results of other ops) adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera.dtypes import DType, round_to, ulp

Array = np.ndarray
HALF_ULP_F32 = 2.0**-24


@dataclass(frozen=True)
class Bar:
    """float64 arrays of one shape: reference values and error bars. Integers and bools have e = 0."""

    r: Array
    e: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.r.shape

    def map(self, function: Callable[[Array], Array]) -> Bar:
        return Bar(function(self.r), function(self.e))


def lift(function: Callable[[Array], Array], value: Any) -> Any:
    """Applies a function that only moves elements to an array, or to both halves of a bar."""
    return value.map(function) if isinstance(value, Bar) else function(value)


def add(op: Any, a: Bar, b: Bar) -> Bar:
    r = a.r + b.r
    return Bar(r, a.e + b.e + HALF_ULP_F32 * np.abs(r))


def subtract(op: Any, a: Bar, b: Bar) -> Bar:
    r = a.r - b.r
    return Bar(r, a.e + b.e + HALF_ULP_F32 * np.abs(r))


def multiply(op: Any, a: Bar, b: Bar) -> Bar:
    r = a.r * b.r
    return Bar(r, np.abs(a.r) * b.e + np.abs(b.r) * a.e + a.e * b.e + HALF_ULP_F32 * np.abs(r))


def divide(op: Any, a: Bar, b: Bar) -> Bar:
    """|a/b - (a+da)/(b+db)| <= (e_a + |a/b| e_b) / (|b| - e_b); unbounded where the divisor's bar holds zero."""
    r = a.r / b.r
    room = np.abs(b.r) - b.e
    with np.errstate(all="ignore"):
        e = np.where(room > 0, (a.e + np.abs(r) * b.e) / room, np.where((a.e == 0) & (b.e == 0), 0.0, np.inf))
    return Bar(r, e + 2 * HALF_ULP_F32 * np.abs(r))


def exact(function: Callable[..., Array]) -> Callable[..., Bar]:
    """For ops that do not round and move the bar unchanged (neg, abs)."""

    def bound(op: Any, a: Bar) -> Bar:
        return Bar(function(a.r), a.e)

    return bound


def monotone(function: Callable[[Array], Array]) -> Callable[..., Bar]:
    """A monotone smooth function: the bar's ends give its largest change; plus the stated CUDA error of the op."""

    def bound(op: Any, a: Bar) -> Bar:
        with np.errstate(all="ignore"):
            r = function(a.r)
            high, low = function(a.r + a.e), function(a.r - a.e)
            spread = np.fmax(np.abs(high - r), np.abs(r - low))
            spread = np.where(a.e == 0, 0.0, spread)
        return Bar(r, spread + op.definition.ulp * 2 * HALF_ULP_F32 * np.abs(r) + 2.0**-149)

    return bound


def extremum(function: Callable[[Array, Array], Array]) -> Callable[..., Bar]:
    """Maximum or minimum: the hull of the candidates that the bars allow."""

    def bound(op: Any, a: Bar, b: Bar) -> Bar:
        r = function(a.r, b.r)
        high, low = function(a.r + a.e, b.r + b.e), function(a.r - a.e, b.r - b.e)
        return Bar(r, np.fmax(high - r, r - low))

    return bound


def select(op: Any, condition: Bar, a: Bar, b: Bar) -> Bar:
    """`where`: a condition is exact unless its own bar says that it may flip; then both candidates are allowed."""
    chosen = condition.r != 0
    r = np.where(chosen, a.r, b.r)
    e = np.where(chosen, a.e, b.e)
    other = np.maximum(np.abs(a.r - r) + a.e, np.abs(b.r - r) + b.e)
    return Bar(r, np.where(condition.e > 0, np.maximum(e, other), e))


def compare(function: Callable[[Array, Array], Array]) -> Callable[..., Bar]:
    """A comparison: e = 1 where the operands' bars overlap (the answer may flip), else 0."""

    def bound(op: Any, a: Bar, b: Bar) -> Bar:
        r = function(a.r, b.r).astype(np.float64)
        return Bar(r, ((np.abs(a.r - b.r) <= a.e + b.e) & ((a.e + b.e) > 0)).astype(np.float64))

    return bound


def reduce_sum(op: Any, x: Bar, axis: int) -> Bar:
    """Errors add; every element passes count/32 + 5 roundings of partial sums, each at most 2^-24 of sum|x|."""
    count = x.r.shape[axis]
    r = x.r.sum(axis=axis, keepdims=True)
    magnitude = np.abs(x.r).sum(axis=axis, keepdims=True)
    depth = -(-count // 32) + 5
    return Bar(r, x.e.sum(axis=axis, keepdims=True) + depth * HALF_ULP_F32 * magnitude)


def reduce_extremum(function: Callable[..., Array]) -> Callable[..., Bar]:
    def bound(op: Any, x: Bar, axis: int) -> Bar:
        r = function(x.r, axis=axis, keepdims=True)
        high, low = function(x.r + x.e, axis=axis, keepdims=True), function(x.r - x.e, axis=axis, keepdims=True)
        return Bar(r, np.fmax(high - r, r - low))

    return bound


def matmul(a: Bar, b: Bar, acc: Bar | None, k_block: int) -> Bar:
    """sum(|a| e_b + e_a |b| + e_a e_b) + (K/k + 4 sqrt K) 2^-23 sum|a||b| (tensor cores truncate), plus the accumulator."""
    depth = a.r.shape[-1]
    r, magnitude = a.r @ b.r, np.abs(a.r) @ np.abs(b.r)
    e = (depth / k_block + 4 * np.sqrt(depth)) * 2.0**-23 * magnitude
    if a.e.any() or b.e.any():
        e = e + np.abs(a.r) @ b.e + a.e @ np.abs(b.r) + a.e @ b.e
    if acc is not None:
        r = r + acc.r
        e = e + acc.e + (depth / k_block) * 2.0**-23 * np.abs(acc.r)
    return Bar(r, e)


def round_explicit(dtype: DType, value: Bar) -> Bar:
    """A rounding that nothing may skip: e = 0 stays 0."""
    if not dtype.is_float:
        return value
    r = _round(dtype, value.r)
    with np.errstate(invalid="ignore"):
        e = np.fmax(np.abs(_round(dtype, value.r + value.e) - r), np.abs(r - _round(dtype, value.r - value.e)))
    return Bar(r, np.where(value.e == 0, 0.0, e))


def round_implicit(dtype: DType, value: Bar) -> Bar:
    """The rounding of an op's result, which fusion may skip. f32 results stay: their rounding is in the op's bound."""
    if not dtype.is_float or dtype.bits >= 32:
        return value
    rounded = round_explicit(dtype, value)
    return Bar(rounded.r, np.maximum(rounded.e, value.e + 0.5 * ulp(dtype, value.r)))


def _round(dtype: DType, values: Array) -> Array:
    return np.asarray(round_to(dtype, values), np.float64)
