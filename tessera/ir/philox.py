"""Philox4x32-10, the counter-based random generator, in NumPy: what the device header and its twin repeat.

Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. A word is a pure function of
counter and key, so an element's number does not depend on the order, the grid or the tiles in which it is computed.
"""

from __future__ import annotations

import numpy as np

from tessera.errors import SourceError
from tessera.ir.bounds import Bar

Array = np.ndarray

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the two key words after each round
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array]) -> tuple[Array, ...]:
    """The four words of a counter of four words and a key of two: uint64 arrays that broadcast, each below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    first, second = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
    for _ in range(ROUNDS):
        # Products of two 32-bit words: 64 bits hold them.
        left, right = first * c0, second * c2
        c0, c1, c2, c3 = (right >> _SHIFT) ^ c1 ^ k0, right & _LOW, (left >> _SHIFT) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + np.uint64(WEYL[0])) & _LOW, (k1 + np.uint64(WEYL[1])) & _LOW
    return c0, c1, c2, c3


def uniform(index: Array, seed: Array) -> Array:
    """f32 in [0, 1), a multiple of 2^-24, by int64 element number and seed: the upper 24 bits of the first word."""
    zero = np.zeros(1, np.uint64)
    low, high = _words(index)
    word, *_ = philox4x32((low, high, zero, zero), _words(seed))
    return (word >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def uniform_number(index: int, seed: int) -> float:
    """`uniform` of two Python integers; raises SourceError TS204 for other numbers and TS401 beyond i64."""
    for name, number in (("index", index), ("seed", seed)):
        if type(number) is not int:
            raise SourceError("TS204", f"'uniform' takes integers, but '{name}' is {number!r}")
        if not -(2**63) <= number < 2**63:
            raise SourceError("TS401", f"the integer {number} does not fit i64")
    return float(uniform(*(np.array([number], np.int64) for number in (index, seed)))[0])


def uniform_bound(op: object, index: Bar, seed: Bar) -> Bar:
    """Exact for exact operands; anything in [0, 1) where an operand is uncertain.

    An integer of 2^53 and more is uncertain too: a bar holds it in float64, which may have rounded it.
    """
    open_ = np.zeros(np.broadcast_shapes(index.shape, seed.shape), bool)
    for x in (index, seed):
        open_ = open_ | (x.e > 0) | (np.abs(x.r) >= 2.0**53)
    held = (np.where(np.abs(x.r) < 2.0**53, x.r, 0).astype(np.int64) for x in (index, seed))
    drawn = uniform(*held).astype(np.float64)
    return Bar(np.where(open_, 0.5, drawn), np.where(open_, 0.5, 0.0))


def _words(number: Array) -> tuple[Array, Array]:
    """The low and the high 32 bits of int64."""
    bits = np.asarray(number, np.int64).view(np.uint64)
    return bits & _LOW, bits >> _SHIFT
