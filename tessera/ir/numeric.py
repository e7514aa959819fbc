"""Defined bits: the exact results of the functions, products and sums of the language, in NumPy.

The interpreter at every level and the CPU twin of the device header compute by these rules, so they agree bit for bit:

- a smooth function is the correctly rounded f32 of its f64 value (a value near a rounding boundary is taken again in
  long double);
- a matrix product adds one k-block after the other, acc = f32(acc + s), where s is the f64 sum of the block in
  ascending k (k-block 16 for 16-bit operands, 8 for f32);
- a sum takes ascending blocks of 32 (the last one padded with zeros), pairs neighbours inside a block, and adds the
  blocks in order, every addition rounded to f32;
- a maximum or minimum is NaN when any element is, and +0 is above -0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
SUM_BLOCK = 32


def correctly_rounded(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The f32 function whose value is `function` (written over any float dtype) rounded once."""

    def rounded(x: Array) -> Array:
        with np.errstate(all="ignore"):
            y = np.asarray(function(np.asarray(x, np.float64)))
            result = y.astype(np.float32)
            below = y.view(np.int64) & ((1 << 29) - 1)  # the bits that rounding to f32 drops
            near = np.abs(below - (1 << 28)) <= 16
            tiny = (np.abs(y) < 2.0**-125) & (y != 0)  # f32 subnormals round at another place
            again = (near | tiny) & np.isfinite(y)
            if again.any():
                result[again] = function(np.asarray(x)[again].astype(np.longdouble)).astype(np.float32)
        return result

    return rounded


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) for x >= 0 and exp(x) / (1 + exp(x)) below, so that no intermediate overflows."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def maximum(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where((a == 0) & (b == 0), a + b, np.maximum(a, b))


def minimum(a: Array, b: Array) -> Array:
    return -maximum(-a, -b)


def reduce_sum(x: Array, axis: int) -> Array:
    """Sum along the negative `axis`, kept with size 1, in the dtype of `x`."""
    x = np.moveaxis(x, axis, -1)
    count = x.shape[-1]
    blocks = -(-count // SUM_BLOCK)
    padded = np.zeros((*x.shape[:-1], blocks * SUM_BLOCK), x.dtype)
    padded[..., :count] = x
    pairs = padded.reshape(*x.shape[:-1], blocks, SUM_BLOCK)
    plus = checked(np.add) if x.dtype.kind == "i" else np.add
    with np.errstate(all="ignore"):
        while pairs.shape[-1] > 1:
            pairs = plus(pairs[..., 0::2], pairs[..., 1::2])
        total = pairs[..., 0, 0]
        for block in range(1, blocks):
            total = plus(total, pairs[..., block, 0])
    return np.moveaxis(total[..., None], -1, axis)


def reduce_max(x: Array, axis: int) -> Array:
    result = np.max(x, axis=axis, keepdims=True)
    if x.dtype.kind != "f":
        return result
    positive_zero = np.any((x == 0) & ~np.signbit(x), axis=axis, keepdims=True)
    return np.where(result == 0, np.where(positive_zero, x.dtype.type(0), x.dtype.type(-0.0)), result)


def reduce_min(x: Array, axis: int) -> Array:
    return -reduce_max(-x, axis) if x.dtype.kind == "f" else np.min(x, axis=axis, keepdims=True)


def matmul(a: Array, b: Array, acc: Array, k_block: int) -> Array:
    """acc + a @ b over the last two axes by the k-block rule; a: [..., M, K], b: [..., K, N], acc: [..., M, N], f32."""
    depth = -(-a.shape[-1] // k_block) * k_block  # the last block is filled up with zero products
    a64 = np.zeros((*a.shape[:-1], depth))
    a64[..., : a.shape[-1]] = a
    b64 = np.zeros((*b.shape[:-2], depth, b.shape[-1]))
    b64[..., : b.shape[-2], :] = b
    product_shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    acc = np.broadcast_to(acc, np.broadcast_shapes(acc.shape, product_shape))
    with np.errstate(all="ignore"):
        for start in range(0, depth, k_block):
            acc = _add_block(a64[..., start : start + k_block], b64[..., start : start + k_block, :], acc)
    return acc


def _add_block(a: Array, b: Array, acc: Array) -> Array:
    """f32(acc + s), s the float64 sum of one k-block in ascending k.

    BLAS sums in an order of its own, at most `margin` away from that; where the rounding to f32 does not tell the two
    apart, its sum serves, and the few other elements (near a rounding boundary, or zeros of either sign) are taken
    again.
    """
    count = a.shape[-1]
    total = acc.astype(np.float64)
    total += a @ b
    largest = np.max(np.abs(a), axis=-1, keepdims=True) * np.max(np.abs(b), axis=-2, keepdims=True)
    margin = 2.0**-51 * (count * count * largest + np.abs(total))
    low, high = (total - margin).astype(np.float32), (total + margin).astype(np.float32)
    result = total.astype(np.float32)
    negative_zero = (total == 0) & np.signbit(acc)
    again = np.isfinite(total) & ((low.view(np.int32) != high.view(np.int32)) & (margin > 0) | negative_zero)
    if again.any():
        *batch, row, column = np.nonzero(again)
        left = np.broadcast_to(a, (*acc.shape[:-2], *a.shape[-2:]))[(*batch, row)]
        right = np.swapaxes(np.broadcast_to(b, (*acc.shape[:-2], *b.shape[-2:])), -1, -2)[(*batch, column)]
        products = left * right
        ascending = products[:, 0]
        for k in range(1, count):
            ascending = ascending + products[:, k]
        result[again] = (acc[again].astype(np.float64) + ascending).astype(np.float32)
    return result


def checked(function: Callable[..., Array]) -> Callable[..., Array]:
    """An int64 op that raises OverflowError(exact result) where that does not fit."""

    def run(*arguments: Array) -> Array:
        with np.errstate(all="ignore"):
            result = function(*arguments)
            suspicious = np.abs(function(*(np.asarray(x, np.float64) for x in arguments))) >= 2.0**62
        if np.any(suspicious):
            picked = (np.broadcast_to(x, suspicious.shape)[suspicious].astype(object) for x in arguments)
            for value in function(*picked):
                if not -(2**63) <= value < 2**63:
                    raise OverflowError(value)
        return result

    return run


def floordiv(a: Array, b: Array) -> Array:
    """a // b of int64, rounded down. Raises ZeroDivisionError and OverflowError."""
    _no_zero(b)
    return checked(np.floor_divide)(a, b)


def mod(a: Array, b: Array) -> Array:
    """a % b of int64, with the sign of b. Raises ZeroDivisionError."""
    _no_zero(b)
    return np.mod(a, b)


def _no_zero(divisor: Array) -> None:
    if np.any(divisor == 0):
        raise ZeroDivisionError
