"""Inverses of unit lower triangular tiles, written in the language: plain functions that kernels inline.

`lower` is strictly lower triangular, so that I + lower is unit lower triangular and has a unit lower triangular
inverse. Sizes are powers of two, 16 or more. All products go to the matrix unit; of f32 tiles they are true f32, or
tf32 where `precision` says so.
"""

from typing import Any

import tessera as ts
from tessera import tile

BLOCK = 16  # the smallest product of the matrix unit


def neumann_inverse(lower, precision=None):
    """(I + lower)^-1 as the product of I + (-lower)^(2^i), i = 0 ... log2(size) - 1; an f32 tile.

    Exact in exact arithmetic, since lower^size = 0. Powers of `lower` may be far larger than the inverse, whose digits
    then cancel: with equal unit keys and beta = 2 entries of lower^8 reach 10^6. `doubling_inverse` has no such terms.
    """
    size = lower.shape[0]
    power = -lower
    result = tile.where(_diagonal(size), 1.0, tile.cast(power, ts.f32))
    for _ in range(size.bit_length() - 2):
        power = tile.cast(tile.mma(power, power, precision=precision), lower.dtype)
        result = tile.mma(tile.cast(result, lower.dtype), power, result, precision=precision)
    return result


def doubling_inverse(lower, precision=None):
    """(I + lower)^-1 by merging diagonal blocks of 1, 2, 4, ... rows into blocks twice as large; an f32 tile.

    With T the inverse of the diagonal blocks so far and E the part of `lower` that joins two of them,
    (I + L)^-1 = T - T E T. This is block substitution: no term is larger than products of entries of the inverse.
    """
    return doubling_inverses([lower], precision)[0]


def doubling_inverses(tiles, precision=None):
    """`doubling_inverse` of tiles of one size, step by step together, so that none waits for its own products."""
    size, dtype = tiles[0].shape[0], tiles[0].dtype
    results = [tile.where(_diagonal(size), 1.0, tile.cast(-_joining(lower, 1), ts.f32)) for lower in tiles]
    for rows in [2**i for i in range(1, size.bit_length() - 1)]:
        rounded = [tile.cast(result, dtype) for result in results]
        joined = [_joining(lower, rows) for lower in tiles]
        first = [tile.mma(a, b, precision=precision) for a, b in zip(rounded, joined, strict=True)]
        left = [tile.cast(-product, dtype) for product in first]
        results = [tile.mma(a, b, c, precision=precision) for a, b, c in zip(left, rounded, results, strict=True)]
    return results


def blocked_inverse(lower, precision=None):
    """(I + lower)^-1 by forward substitution over blocks of 16 rows: blocks (i, j), j <= i, as a dict of f32 tiles.

    T_ii = (I + L_ii)^-1 and T_ij = -T_ii sum_m L_im T_mj. Blocks equally far from the diagonal do not need each other,
    and are made together. `lower` is a tile or a buffer. Blocks above the diagonal are zero, and left out.
    """
    count, dtype = lower.shape[0] // BLOCK, lower.dtype
    made = doubling_inverses([_block(lower, i, i) for i in range(count)], precision)
    inverse = {(i, i): made[i] for i in range(count)}
    own = [tile.cast(inverse[i, i], dtype) for i in range(count)]
    for distance in range(1, count):
        places = [(i, i - distance) for i in range(distance, count)]
        sums: list[Any] = [None for _ in places]
        for m in range(distance):
            terms = [(_block(lower, i, j + m), tile.cast(inverse[j + m, j], dtype)) for i, j in places]
            sums = [tile.mma(a, b, total, precision=precision) for (a, b), total in zip(terms, sums, strict=True)]
        sums = [tile.cast(-total, dtype) for total in sums]
        made = [tile.mma(own[i], total, precision=precision) for (i, _), total in zip(places, sums, strict=True)]
        inverse = {**inverse, **dict(zip(places, made, strict=True))}
    return inverse


def _block(lower, i, j):
    return lower[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]


def _diagonal(size):
    return tile.iota([size, 1], axis=0) == tile.iota([1, size], axis=1)


def _joining(lower, rows):
    """The part of `lower` inside diagonal blocks of 2 * rows rows, and outside those of `rows` rows."""
    size = lower.shape[0]
    i, j = tile.iota([size, 1], axis=0), tile.iota([1, size], axis=1)
    joins = (i // (2 * rows) == j // (2 * rows)) and (i // rows != j // rows)
    return tile.where(joins, lower, 0.0)
