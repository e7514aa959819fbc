"""The error function and the activations: their definitions over float64 and long double.

float64 takes erf and erfc of the C library. NumPy has neither, and no library has them in long double for it, so the
second opinion that `numeric.correctly_rounded` asks for beside a rounding boundary is computed here: by a power series
below 1 and a continued fraction from 1 on, with the same operations in the same order as the CPU twin, and so with the
same bits.
"""

from __future__ import annotations

import math

import numpy as np

from tessera.ir.numeric import sigmoid

Array = np.ndarray

SERIES_TERMS = 40  # 2^n / (2n + 1)!! falls below 2^-66 at n = 27
# The continued fraction of erfc at z is off by about exp(-2 z sqrt(2 N)) after N steps: 2^-70 at z = 1.
FRACTION_STEPS = 300

# Where the activations, which fall on the left of it and rise on the right, have their one minimum.
SILU_MINIMUM, GELU_MINIMUM, GELU_TANH_MINIMUM = -1.278464543, -0.751791517, -0.752461425
# Below these arguments the activations are zero in f32; clamping there keeps -infinity from giving NaN.
SILU_LOWEST, GELU_LOWEST = -256.0, -16.0


def _constant(text: str, x: Array) -> np.floating:
    return x.dtype.type(text)


def _tail(z: Array, square: Array) -> Array:
    """erfc(z) for z >= 0 in long double; `square` is z * z, given because it may be known exactly where z is not."""
    series, term = np.ones_like(z), np.ones_like(z)
    small = np.minimum(square, 1)  # beyond, the series is not used and must only stay finite
    for n in range(1, SERIES_TERMS):
        term = term * (2 * small) / (2 * n + 1)
        series = series + term
    e = np.exp(-square)
    below = 1 - _constant("1.128379167095512573896158903121545172", z) * z * e * series
    fraction = z
    with np.errstate(all="ignore"):
        for n in range(FRACTION_STEPS, 0, -1):
            fraction = z + n / (2 * fraction)
        above = _constant("0.564189583547756286948079451560772586", z) * e / fraction
    return np.where(z < 1, below, above)


def _one_by_one(function: np.ufunc, x: Array) -> Array:
    return np.asarray(function(x), np.float64)


_ERF, _ERFC = np.frompyfunc(math.erf, 1, 1), np.frompyfunc(math.erfc, 1, 1)


def erf(x: Array) -> Array:
    x = np.asarray(x)
    if x.dtype != np.longdouble:
        return _one_by_one(_ERF, x)
    z = np.abs(x)
    small = np.where(z < 1, z, 0)
    series, term = np.ones_like(z), np.ones_like(z)
    for n in range(1, SERIES_TERMS):
        term = term * (2 * (small * small)) / (2 * n + 1)
        series = series + term
    below = _constant("1.128379167095512573896158903121545172", z) * small * np.exp(-(small * small)) * series
    return np.copysign(np.where(z < 1, below, 1 - _tail(z, z * z)), x)


def silu(x: Array) -> Array:
    """x * sigmoid(x)"""
    x = np.maximum(x, SILU_LOWEST)
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    """x * (1 + erf(x / sqrt 2)) / 2, by erfc, which does not cancel for negative x."""
    x = np.asarray(np.maximum(x, GELU_LOWEST))
    z = np.abs(x) * _constant("0.707106781186547524400844362104849039", x)
    tail = _one_by_one(_ERFC, z) if x.dtype != np.longdouble else _tail(z, x * x / 2)
    return np.where(x < 0, x * tail / 2, x * (2 - tail) / 2)


def gelu_tanh(x: Array) -> Array:
    """x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, as x times the sigmoid of twice the tanh's argument."""
    x = np.asarray(np.maximum(x, GELU_LOWEST))
    return x * sigmoid(gelu_tanh_argument(x))


def gelu_tanh_argument(x: Array) -> Array:
    scale = _constant("1.595769121605730711759784239737527474", x)
    return scale * (x + _constant("0.044715", x) * (x * x * x))
