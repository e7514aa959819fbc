"""Reference mode: values with error bars, and how each kind of op moves them (the numerics rule of the design).

A `Bar` is a float64 value `r` and an elementwise bound `e` on the distance of any correct answer from it. `Bound`
functions take the op and its operands as bars and return the result's bar before the rounding to the result dtype,
which `round_explicit` (casts, stores) or `round_implicit` (results of other ops) adds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera.dtypes import DType, round_to, ulp
from tessera.ir.products import FP8, FP8_PART, K_BLOCKS

Array = np.ndarray
HALF_ULP_F32 = 2.0**-24
FP8_SUM = 2.0**-13  # of what an fp8 instruction adds up, which of 14 bits drops the rest


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


def widen(r: Array, e: Array, rounding: Array | float = 0.0) -> Bar:
    """The bar of a result whose error is e plus a rounding; where r is infinite or NaN there is no error to speak of.

    A term 0 * infinity leaves NaN in e: of a finite r it means that nothing bounds the error.
    """
    with np.errstate(all="ignore"):
        e = e + rounding
        return Bar(r, np.where(np.isfinite(r), np.where(np.isnan(e), np.inf, e), 0.0))


def half_ulp(r: Array) -> Array:
    """The error of one rounding to f32: 2^-24 |r|, half the smallest subnormal where that is more, none for a 0."""
    return np.where(r == 0, 0.0, np.maximum(HALF_ULP_F32 * np.abs(r), 2.0**-150))


def _times(magnitude: Array, e: Array) -> Array:
    """magnitude * e for a magnitude that may be infinite: an exact operand adds no error."""
    with np.errstate(all="ignore"):
        return np.where(e == 0, 0.0, magnitude * e)


def add(op: Any, a: Bar, b: Bar) -> Bar:
    r = a.r + b.r
    return widen(r, a.e + b.e, HALF_ULP_F32 * np.abs(r))


def subtract(op: Any, a: Bar, b: Bar) -> Bar:
    r = a.r - b.r
    return widen(r, a.e + b.e, HALF_ULP_F32 * np.abs(r))


def multiply(op: Any, a: Bar, b: Bar) -> Bar:
    r = a.r * b.r
    return widen(r, _times(np.abs(a.r), b.e) + _times(np.abs(b.r), a.e) + _times(a.e, b.e), half_ulp(r))


def divide(op: Any, a: Bar, b: Bar) -> Bar:
    """|a/b - (a+da)/(b+db)| <= (e_a + |a/b| e_b) / (|b| - e_b); unbounded where the divisor's bar holds zero."""
    with np.errstate(all="ignore"):
        r = a.r / b.r
        room = np.abs(b.r) - b.e
        exact_operands = (a.e == 0) & (b.e == 0)
        e = np.where(room > 0, (a.e + _times(np.abs(r), b.e)) / room, np.inf)
        return widen(r, np.where(exact_operands | np.isinf(b.r), 0.0, e), half_ulp(r))


def exact(function: Callable[..., Array]) -> Callable[..., Bar]:
    """For ops that do not round and move the bar unchanged (neg, abs)."""

    def bound(op: Any, a: Bar) -> Bar:
        return Bar(function(a.r), a.e)

    return bound


def _hull(r: Array, *ends: Array) -> Array:
    """The largest distance of the ends from r; unbounded where a finite r has a NaN end (a square root below 0)."""
    with np.errstate(all="ignore"):
        distances = [np.where(end == r, 0.0, np.abs(end - r)) for end in ends]
    e = distances[0]
    for distance in distances[1:]:
        e = np.maximum(e, distance)  # keeps NaN
    return np.where(np.isfinite(r), np.where(np.isnan(e), np.inf, e), 0.0)


def monotone(
    function: Callable[[Array], Array], amplification: Callable[[Array], Array] | None = None, flushes: float = 0.0
) -> Callable[..., Bar]:
    """A monotone smooth function: the bar's ends give its largest change; plus the stated CUDA error of the op.

    `amplification` gives further ulp, by argument, to the stated error: what the function makes of the rounding of an
    intermediate result. `flushes`: a result below it may be zero.
    """

    def bound(op: Any, a: Bar) -> Bar:
        with np.errstate(all="ignore"):
            r = function(a.r)
            spread = np.where(a.e == 0, 0.0, _hull(r, function(a.r + a.e), function(a.r - a.e)))
            ulp = op.definition.ulp + (0.0 if amplification is None else amplification(a.r))
            stated = ulp * np.maximum(2 * HALF_ULP_F32 * np.abs(r), 2.0**-149)
            if flushes:
                stated = np.where(np.abs(r) < flushes, np.abs(r) + stated, stated)
        return widen(r, spread, stated)

    return bound


def unimodal(
    function: Callable[[Array], Array],
    minimum: float,
    amplification: Callable[[Array], Array] | None = None,
    flushes: float = 0.0,
) -> Callable[..., Bar]:
    """A smooth function that falls up to `minimum` and rises after it: a bar that holds the minimum reaches down to it.

    `amplification` and `flushes` as for `monotone`.
    """
    rising = monotone(function, amplification, flushes)

    def bound(op: Any, a: Bar) -> Bar:
        ends = rising(op, a)
        with np.errstate(all="ignore"):
            inside = (a.e > 0) & (a.r - a.e < minimum) & (minimum < a.r + a.e)
            e = np.where(inside, np.maximum(ends.e, _hull(ends.r, function(np.full_like(a.r, minimum)))), ends.e)
        return Bar(ends.r, e)

    return bound


def extremum(function: Callable[[Array, Array], Array]) -> Callable[..., Bar]:
    """Maximum or minimum: the hull of the candidates that the bars allow."""

    def bound(op: Any, a: Bar, b: Bar) -> Bar:
        r = function(a.r, b.r)
        return Bar(r, _hull(r, function(a.r + a.e, b.r + b.e), function(a.r - a.e, b.r - b.e)))

    return bound


def select(op: Any, condition: Bar, a: Bar, b: Bar) -> Bar:
    """`where`: a condition is exact unless its own bar says that it may flip; then both candidates are allowed."""
    chosen = condition.r != 0
    r, e = np.where(chosen, a.r, b.r), np.where(chosen, a.e, b.e)
    with np.errstate(all="ignore"):
        other = np.maximum(_hull(r, a.r) + a.e, _hull(r, b.r) + b.e)
    return Bar(r, np.where(condition.e > 0, np.maximum(e, other), e))


def compare(function: Callable[[Array, Array], Array]) -> Callable[..., Bar]:
    """A comparison: e = 1 where the operands' bars overlap (the answer may flip), else 0."""

    def bound(op: Any, a: Bar, b: Bar) -> Bar:
        with np.errstate(all="ignore"):
            open_ = (np.abs(a.r - b.r) <= a.e + b.e) & ((a.e + b.e) > 0)
        return Bar(function(a.r, b.r).astype(np.float64), open_.astype(np.float64))

    return bound


def logical(function: Callable[..., Array]) -> Callable[..., Bar]:
    """A monotone function of bools (and, or, not): e = 1 where operands that may flip can flip the answer."""

    def bound(op: Any, *operands: Bar) -> Bar:
        truth = [x.r != 0 for x in operands]
        flips = [x.e > 0 for x in operands]
        low = function(*(t & ~f for t, f in zip(truth, flips, strict=True)))
        high = function(*(t | f for t, f in zip(truth, flips, strict=True)))
        return Bar(function(*truth).astype(np.float64), (low != high).astype(np.float64))

    return bound


def reduce_sum(op: Any, x: Bar, axis: int) -> Bar:
    """Errors add; every element passes a rounding for each level of pairs, each at most 2^-24 of sum|x|."""
    count = x.r.shape[axis]
    with np.errstate(all="ignore"):
        r = x.r.sum(axis=axis, keepdims=True)
        e = x.e.sum(axis=axis, keepdims=True)
        if not op.result.type.dtype.is_float:
            return Bar(r, e)
        magnitude = np.abs(x.r).sum(axis=axis, keepdims=True)
    return widen(r, e, pair_levels(count) * HALF_ULP_F32 * magnitude)


def pair_levels(count: int) -> int:
    """How many additions an element passes in a sum of `count`: of neighbours, of pairs, and so on up to one."""
    return (count - 1).bit_length()


def reduce_extremum(function: Callable[..., Array]) -> Callable[..., Bar]:
    def bound(op: Any, x: Bar, axis: int) -> Bar:
        r = function(x.r, axis=axis, keepdims=True)
        with np.errstate(all="ignore"):
            high, low = function(x.r + x.e, axis=axis, keepdims=True), function(x.r - x.e, axis=axis, keepdims=True)
        return Bar(r, _hull(r, high, low))

    return bound


def matmul_fp8(a: Bar, b: Bar, acc: Bar | None, k_block: int, in_place: bool) -> Bar:
    """A product of fp8 operands, of which any lane may run: that of `matmul`, and 2^-13 sum|a||b| for each part of k.

    `in_place`: an instruction adds to all sums so far, so each one drops 2^-13 of these, too; else only to those of its
    part. A rule of the first order: what is dropped of terms of either sign cancels. Where nearly all have one sign, an
    instruction may drop half a unit of each of its 32 terms.
    """
    for start in range(0, a.r.shape[-1], FP8_PART):
        part = slice(start, start + FP8_PART)
        left, right = Bar(a.r[..., part], a.e[..., part]), Bar(b.r[..., part, :], b.e[..., part, :])
        found = matmul(left, right, acc, k_block)
        with np.errstate(all="ignore"):
            dropped = np.abs(left.r) @ np.abs(right.r)
            if in_place and acc is not None:
                dropped = dropped + -(-left.r.shape[-1] // K_BLOCKS[FP8]) * np.abs(acc.r)
            acc = widen(found.r, found.e, FP8_SUM * dropped)
    assert acc is not None, "a product has a depth"
    return acc


def matmul(a: Bar, b: Bar, acc: Bar | None, k_block: int) -> Bar:
    """sum(|a| e_b + e_a |b| + e_a e_b) + (K/k + 4 sqrt K) 2^-23 sum|a||b|, plus the accumulator.

    2^-23 and not 2^-24, because tensor cores truncate.
    """
    depth = a.r.shape[-1]
    with np.errstate(all="ignore"):
        r, magnitude = a.r @ b.r, np.abs(a.r) @ np.abs(b.r)
        e = (depth / k_block + 4 * np.sqrt(depth)) * 2.0**-23 * magnitude
        if b.e.any():
            e = e + (np.abs(a.r) + a.e) @ b.e
        if a.e.any():
            e = e + a.e @ np.abs(b.r)
        if acc is not None:
            r = r + acc.r
            e = e + acc.e + (depth / k_block) * 2.0**-23 * np.abs(acc.r)
    return widen(r, e)


def integer(function: Callable[..., Array], *operands: Bar) -> Bar:
    """An integer op that is monotone in each operand: the values at the corners of the bars bound it."""
    r = np.asarray(function(*(x.r.astype(np.int64) for x in operands)), np.float64)
    e = np.zeros_like(r)
    uncertain = [x for x in operands if x.e.any()]
    for signs in itertools.product((-1, 1), repeat=len(operands)) if uncertain else ():
        corner = [(x.r + sign * x.e).astype(np.int64) for sign, x in zip(signs, operands, strict=True)]
        e = np.maximum(e, np.abs(np.asarray(function(*corner), np.float64) - r))
    return Bar(r, e)


def exact_integers(function: Callable[..., Array]) -> Callable[..., Bar]:
    """Quotients and remainders: exact operands give an exact result, others leave it open."""

    def bound(op: Any, *operands: Bar) -> Bar:
        r = np.asarray(function(*(x.r.astype(np.int64) for x in operands)), np.float64)
        uncertain = np.zeros(r.shape, bool)
        for x in operands:
            uncertain = uncertain | (x.e > 0)
        return Bar(r, np.where(uncertain, np.inf, 0.0))

    return bound


def rounded_explicitly(function: Callable[[Array], Array], value: Bar) -> Bar:
    """A rounding by a monotone function that nothing may skip: e = 0 stays 0."""
    r = function(value.r)
    if not value.e.any():
        return Bar(r, np.zeros_like(r))
    with np.errstate(all="ignore"):
        return Bar(r, _hull(r, function(value.r - value.e), function(value.r + value.e)))


def round_explicit(dtype: DType, value: Bar) -> Bar:
    """A rounding that nothing may skip: e = 0 stays 0."""
    r = _round(dtype, value.r)
    if not value.e.any():
        return Bar(r, np.zeros_like(r))
    with np.errstate(all="ignore"):
        return Bar(r, _hull(r, *(_ends(dtype, value))))


def _ends(dtype: DType, value: Bar) -> tuple[Array, Array]:
    """The bar's ends in `dtype`; an integer's may stay infinite, and a bool may be both where its bar holds 0."""
    low, high = value.r - value.e, value.r + value.e
    if dtype.is_bool:
        holds_zero = (low <= 0) & (high >= 0)
        return np.where(holds_zero, 0.0, 1.0), np.where(value.e > 0, 1.0, value.r != 0)
    if dtype.is_int:
        return np.trunc(low), np.trunc(high)
    return _round(dtype, low), _round(dtype, high)


def round_implicit(dtype: DType, value: Bar) -> Bar:
    """The rounding of an op's result, which fusion may skip; where it changes nothing (e = 0, r in `dtype`) e stays 0.

    f32 results keep r: their rounding is in the op's bound. Only a value beyond the largest f32 becomes infinite.
    """
    if not dtype.is_float:
        return value
    rounded = round_explicit(dtype, value)
    if dtype.bits >= 32:
        overflows = np.isinf(rounded.r)
        unbounded = overflows | np.isinf(rounded.e)
        return Bar(np.where(overflows, rounded.r, value.r), np.where(unbounded, rounded.e, value.e))
    with np.errstate(all="ignore"):
        skipped = np.maximum(rounded.e, value.e + 0.5 * ulp(dtype, value.r))
    changes = np.isfinite(rounded.r) & ((value.e > 0) | (rounded.r != value.r))
    return Bar(rounded.r, np.where(changes, skipped, rounded.e))


def _round(dtype: DType, values: Array) -> Array:
    return np.asarray(round_to(dtype, values), np.float64)
