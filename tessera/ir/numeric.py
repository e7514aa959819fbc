"""Defined bits: the exact results of the functions, products and sums of the language, in NumPy.

The interpreter at every level and the CPU twin of the device header compute by these rules, so they agree bit for bit:

- a smooth function is the correctly rounded f32 of its f64 value (a value near a rounding boundary is taken again in
  long double);
- a matrix product adds one k-block after the other, acc = f32(acc + s), where s is the f64 sum of the block in
  ascending k. The k-block is the depth of the instruction that runs: 16 for 16-bit operands and for fp8, which the
  f16 instruction multiplies, 8 for tf32 and f32 (`tessera.ir.products`). Operands of a tf32 product are rounded to
  tf32 first (`round_tf32`). In the fp8 format k-blocks are 32 deep, and those of each 128 of k have sums of their own,
  which are added in f32 (`matmul_in_parts`). The format bf16x3 adds a k-block once for each part of its left operand
  (`in_bf16_parts`);
- a sum pairs neighbours, then pairs of those, and so on up to one, the line filled up with zeros to a power of two,
  every addition rounded to f32, and adds 0 at last: no sum is -0. So a sum of the sums of aligned blocks of a power of
  two has the bits of the whole;
- a scan works in blocks of 32: `scan_blocks`, then each block takes in the ascending fold of those before;
- a maximum or minimum is NaN when any element is, and +0 is above -0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ml_dtypes import bfloat16

from tessera.ir.products import SPLIT_PARTS

Array = np.ndarray
BLOCK = 32  # elements that a reduction or a scan takes at a time
# Units in the last place of f64 within which two libraries agree on any function here. The largest error is that of
# gelu at its left end, where erfc makes 2 z^2 = 170 units of each unit of its argument.
UNSURE = 1024


def correctly_rounded(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The f32 function whose value is `function` (written over any float dtype) rounded once."""

    def rounded(x: Array) -> Array:
        with np.errstate(all="ignore"):
            y = np.asarray(function(np.asarray(x, np.float64)))
            result = y.astype(np.float32)
            below = y.view(np.int64) & ((1 << 29) - 1)  # the bits that rounding to f32 drops
            near = np.abs(below - (1 << 28)) <= UNSURE
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


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), with no intermediate that overflows or that loses the digits of a small result."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def maximum(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where((a == 0) & (b == 0), a + b, np.maximum(a, b))


def minimum(a: Array, b: Array) -> Array:
    return -maximum(-a, -b)


def reduce_sum(x: Array, axis: int) -> Array:
    """Sum along the negative `axis`, kept with size 1, in the dtype of `x`; of integers in int64."""
    return fold_blocks("sum", reduce_blocks("sum", x, axis), axis)


def reduce_blocks(kind: str, x: Array, axis: int, size: int = BLOCK) -> Array:
    """The "sum", "max" or "min" of each block of `size` along `axis`, which becomes the number of blocks.

    Of a power of two: sums of such blocks are parts of the whole, maxima and minima in any case.
    """
    blocks = _in_blocks(x, axis, _fill(kind, x), size)
    if kind != "sum":
        ends = (reduce_max if kind == "max" else reduce_min)(blocks, -1)
        return np.moveaxis(ends[..., 0], -1, axis)
    return np.moveaxis(_pairs(blocks)[..., 0], -1, axis)


def fold_blocks(kind: str, x: Array, axis: int) -> Array:
    """What the blocks of a line are combined to along `axis`, which stays with size 1."""
    if kind != "sum":
        return (reduce_max if kind == "max" else reduce_min)(x, axis)
    size = 1 << (x.shape[axis] - 1).bit_length()
    total = _pairs(_in_blocks(x, axis, 0, size))[..., 0]
    return np.moveaxis(total + 0, -1, axis)


def _pairs(x: Array) -> Array:
    """The sum of a last axis of a power of two of elements: of neighbours, of pairs, and so on."""
    plus = _combine("sum", x)
    with np.errstate(all="ignore"):
        while x.shape[-1] > 1:
            x = plus(x[..., 0::2], x[..., 1::2])
    return x


def scan_blocks(kind: str, x: Array, axis: int) -> Array:
    """Running "sum" or "max" inside each block of 32 along `axis`: for d = 1, 2, 4, 8, 16, each element whose index
    has the bit d takes in the last element before its run of d. The last of a full block is the block's reduction.
    """
    count = x.shape[axis]
    blocks = _in_blocks(x, axis, 0)
    combine = _combine(kind, blocks)
    with np.errstate(all="ignore"):
        for step in (1, 2, 4, 8, 16):
            runs = blocks.reshape(*blocks.shape[:-1], -1, 2, step)
            upper = combine(runs[..., :1, -1:], runs[..., 1:, :])
            blocks = np.concatenate([runs[..., :1, :], upper], axis=-2).reshape(blocks.shape)
    flat = blocks.reshape(*blocks.shape[:-2], -1)[..., :count]
    return np.moveaxis(flat, -1, axis)


def carry_blocks(kind: str, scanned: Array, totals: Array, axis: int) -> Array:
    """`scan_blocks` of an axis, each element combined with the ascending fold of the `totals` of the blocks before."""
    blocks = _in_blocks(scanned, axis, 0)
    totals = np.moveaxis(totals, axis, -1)
    # A tile that is the same in every program has a leading axis of 1, which its totals in a buffer do not have.
    leading = np.broadcast_shapes(blocks.shape[:-2], totals.shape[:-1])
    blocks = np.broadcast_to(blocks, leading + blocks.shape[-2:])
    combine = _combine(kind, blocks)
    parts, carry = [blocks[..., 0, :]], totals[..., 0]
    with np.errstate(all="ignore"):
        for block in range(1, blocks.shape[-2]):
            parts.append(combine(carry[..., None], blocks[..., block, :]))
            carry = combine(carry, totals[..., block])
    return np.moveaxis(np.concatenate(parts, axis=-1)[..., : scanned.shape[axis]], -1, axis)


def block_totals(scanned: Array, axis: int) -> Array:
    """The last element of each block of 32 along `axis`."""
    count = scanned.shape[axis]
    return np.take(scanned, np.minimum(np.arange(BLOCK - 1, count + BLOCK - 1, BLOCK), count - 1), axis)


def scan(kind: str, x: Array, axis: int) -> Array:
    """Running "sum" or "max" along `axis`, in the dtype of `x`; of integers in int64."""
    scanned = scan_blocks(kind, x, axis)
    return carry_blocks(kind, scanned, block_totals(scanned, axis), axis)


def _in_blocks(x: Array, axis: int, fill: float | int, size: int = BLOCK) -> Array:
    """[..., blocks, size]: `axis` moved to the end and padded with `fill`; integers as int64."""
    x = np.moveaxis(x, axis, -1)
    x = x.astype(np.int64) if x.dtype.kind == "i" else x
    count = x.shape[-1]
    blocks = -(-count // size)
    padded = np.full((*x.shape[:-1], blocks * size), fill, x.dtype)
    padded[..., :count] = x
    return padded.reshape(*x.shape[:-1], blocks, size)


def _fill(kind: str, x: Array) -> float | int:
    """What changes no reduction of `x`."""
    if kind == "sum":
        return 0
    limits = np.iinfo(np.int64)
    lowest, highest = (-np.inf, np.inf) if x.dtype.kind == "f" else (limits.min, limits.max)
    return lowest if kind == "max" else highest


def _combine(kind: str, x: Array) -> Callable[[Array, Array], Array]:
    if kind == "sum":
        return checked(np.add) if x.dtype.kind == "i" else np.add
    if x.dtype.kind == "i":
        return np.maximum if kind == "max" else np.minimum
    return maximum if kind == "max" else minimum


def reduce_max(x: Array, axis: int) -> Array:
    result = np.max(x, axis=axis, keepdims=True)
    if x.dtype.kind != "f":
        return result
    positive_zero = np.any((x == 0) & ~np.signbit(x), axis=axis, keepdims=True)
    return np.where(result == 0, np.where(positive_zero, x.dtype.type(0), x.dtype.type(-0.0)), result)


def reduce_min(x: Array, axis: int) -> Array:
    return -reduce_max(-x, axis) if x.dtype.kind == "f" else np.min(x, axis=axis, keepdims=True)


def round_tf32(x: Array) -> Array:
    """`x` rounded to tf32, f32 with 10 fraction bits: to nearest, ties away from zero, as cvt.rna.tf32.f32 does.

    float32 or float64, and the result alike; NaN stays NaN, and what lies half a step above the largest is infinite.
    """
    with np.errstate(all="ignore"):
        wide = np.asarray(x, np.float64)
        exponent = np.maximum(np.frexp(wide)[1] - 1, -126)  # below, subnormals keep one spacing
        spacing = np.ldexp(1.0, exponent - 10)
        magnitude = np.floor(np.abs(wide) / spacing + 0.5) * spacing
        magnitude = np.where(magnitude < 2.0**128, magnitude, np.inf)
        return np.where(np.isfinite(wide), np.copysign(magnitude, wide), wide).astype(np.asarray(x).dtype)


def matmul(a: Array, b: Array, acc: Array, k_block: int) -> Array:
    """acc + a @ b over the last two axes by the k-block rule; a: [..., M, K], b: [..., K, N], acc: [..., M, N], f32."""
    live = _live_rows(a, b, acc)
    if live is not None:
        result = np.array(np.broadcast_to(acc, (1, a.shape[-2], b.shape[-1])))
        result[:, live] = matmul(a[:, live], b, result[:, live], k_block)
        return result
    depth = -(-a.shape[-1] // k_block) * k_block  # the last block is filled up with zero products
    a64 = np.zeros((*a.shape[:-1], depth))
    b64 = np.zeros((*b.shape[:-2], depth, b.shape[-1]))
    product_shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    acc = np.broadcast_to(acc, np.broadcast_shapes(acc.shape, product_shape))
    with np.errstate(all="ignore"):
        a64[..., : a.shape[-1]] = a
        b64[..., : b.shape[-2], :] = b
        for start in range(0, depth, k_block):
            acc = _add_block(a64[..., start : start + k_block], b64[..., start : start + k_block, :], acc)
    return acc


def in_bf16_parts(a: Array, b: Array, k_block: int) -> tuple[Array, Array]:
    """f32 operands and bf16 ones as operands of a product of bf16 that `matmul` adds up as the format bf16x3 does.

    a is the sum of three bf16 values; each k-block of b comes once for each of them, the lowest first. What is not
    finite has no lower parts.
    """
    parts, rest = [], np.asarray(a, np.float32)
    with np.errstate(all="ignore"):
        for _ in range(SPLIT_PARTS):
            part = rest.astype(bfloat16).astype(np.float32)
            rest = np.where(np.isfinite(part), rest - part, np.float32(0))
            parts.insert(0, part)
    blocks = -(-a.shape[-1] // k_block)
    beyond = [(0, 0)] * (a.ndim - 1) + [(0, blocks * k_block - a.shape[-1])]
    wide = np.stack([np.pad(p, beyond).reshape(*a.shape[:-1], blocks, k_block) for p in parts], axis=-2)
    rows = np.pad(b, [(0, 0)] * (b.ndim - 2) + [beyond[-1], (0, 0)])
    rows = rows.reshape(*b.shape[:-2], blocks, 1, k_block, b.shape[-1])
    rows = np.broadcast_to(rows, (*b.shape[:-2], blocks, SPLIT_PARTS, k_block, b.shape[-1]))
    depth = blocks * SPLIT_PARTS * k_block
    return wide.reshape(*a.shape[:-1], depth), rows.reshape(*b.shape[:-2], depth, b.shape[-1])


def matmul_in_parts(a: Array, b: Array, acc: Array, k_block: int, part: int) -> Array:
    """f32(acc + s) for one part of k after the other, s the sums of the part, which begin at zero; as `matmul`."""
    zeros = np.zeros((1, a.shape[-2], b.shape[-1]), np.float32)
    for start in range(0, a.shape[-1], part):
        sums = matmul(a[..., start : start + part], b[..., start : start + part, :], zeros, k_block)
        with np.errstate(all="ignore"):
            acc = acc + sums
    return acc


def _live_rows(a: Array, b: Array, acc: Array) -> Array | None:
    """The rows of the one matrix `a` to compute, where many are zero, as those outside a tensor are; or None.

    A row of zeros adds nothing to the accumulator, unless `b` is not finite or the accumulator has a negative zero.
    """
    if a.ndim != 3 or a.shape[0] != 1 or b.shape[:-2] not in ((), (1,)) or acc.shape[:-2] not in ((), (1,)):
        return None
    signed = np.any((acc == 0) & np.signbit(acc), axis=-1)
    live = np.any(a, axis=-1)[0] | signed.reshape(-1)
    few = 4 * np.count_nonzero(live) < 3 * live.size
    return live if few and np.all(np.isfinite(b)) else None


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
