"""Defined bits: the exact results of the functions, products and sums of the language, in NumPy.

The interpreter at every level and the CPU twin of the device header compute by these rules, so they agree bit for bit:

- a smooth function is the correctly rounded f32 of its f64 value (a value near a rounding boundary is taken again in long double);
- a matrix product adds one k-block after the other, acc = f32(acc + s), where s is the f64 sum of the block in ascending k
  (k-block 16 for 16-bit operands, 8 for f32);
- a sum takes ascending blocks of 32 (the last one padded with zeros), pairs neighbours inside a block, and adds the blocks in
  order, every addition rounded to f32;
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
            below = y.view(np.int64) & ((1 << 29) - 1)         # the bits that rounding to f32 drops
            near = np.abs(below - (1 << 28)) <= 4
            tiny = (np.abs(y) < 2.0**-125) & (y != 0)          # f32 subnormals round at another place
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
    with np.errstate(all="ignore"):
        while pairs.shape[-1] > 1:
            pairs = pairs[..., 0::2] + pairs[..., 1::2]
        total = pairs[..., 0, 0]
        for block in range(1, blocks):
            total = total + pairs[..., block, 0]
    return np.moveaxis(total[..., None], -1, axis)


def reduce_max(x: Array, axis: int) -> Array:
    result = np.max(x, axis=axis, keepdims=True)
    positive_zero = np.any((x == 0) & ~np.signbit(x), axis=axis, keepdims=True)
    return np.where(result == 0, np.where(positive_zero, np.float32(0), np.float32(-0.0)).astype(x.dtype), result)


def reduce_min(x: Array, axis: int) -> Array:
    return -reduce_max(-x, axis)


def matmul(a: Array, b: Array, acc: Array, k_block: int) -> Array:
    """acc + a @ b over the last two axes by the k-block rule. a: [..., M, K], b: [..., K, N], acc: [..., M, N], all f32."""
    depth = -(-a.shape[-1] // k_block) * k_block               # the last block is filled up with zero products
    a64 = np.zeros((*a.shape[:-1], depth))
    a64[..., :a.shape[-1]] = a
    b64 = np.zeros((*b.shape[:-2], depth, b.shape[-1]))
    b64[..., :b.shape[-2], :] = b
    acc = np.broadcast_to(acc, np.broadcast_shapes(acc.shape, (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]),
                                                               a.shape[-2], b.shape[-1])))
    with np.errstate(all="ignore"):
        for start in range(0, depth, k_block):
            left, right = a64[..., start:start + k_block], b64[..., start:start + k_block, :]
            acc = (acc.astype(np.float64) + _block_sum(left, right)).astype(np.float32)
    return acc


def _block_sum(a: Array, b: Array) -> Array:
    """Sum over one k-block in float64, ascending k. BLAS, whose order is its own, only where every order is exact."""
    if _sum_is_exact(a, b):
        return a @ b
    total = a[..., :, 0, None] * b[..., 0, None, :]
    for k in range(1, a.shape[-1]):
        total = total + a[..., :, k, None] * b[..., k, None, :]
    return total


def _sum_is_exact(a: Array, b: Array) -> bool:
    """Whether the products' bits all fit one 53-bit window, for operands of at most 8 significant bits (bf16)."""
    spans = []
    for x in (a, b):
        if not np.all(np.isfinite(x)) or np.any(x.view(np.int64) & ((1 << 45) - 1)):
            return False                                       # more than 8 significant bits: f32 operands
        magnitudes = np.abs(x[x != 0])
        if magnitudes.size == 0:
            return True
        exponents = np.frexp(np.array([magnitudes.min(), magnitudes.max()]))[1]
        spans.append((int(exponents[0]), int(exponents[1])))
    highest = spans[0][1] + spans[1][1] + int(a.shape[-1]).bit_length()
    lowest = spans[0][0] + spans[1][0] - 16
    return highest - lowest <= 53


def checked(function: Callable[..., Array], limit_bits: int = 63) -> Callable[..., Array]:
    """An int64 op that raises OverflowError where the exact result does not fit."""

    def run(*arguments: Array) -> Array:
        with np.errstate(all="ignore"):
            result = function(*arguments)
            estimate = function(*(np.asarray(x, np.float64) for x in arguments))
        if np.any(np.abs(estimate) >= 2.0**limit_bits):
            raise OverflowError
        return result

    return run
