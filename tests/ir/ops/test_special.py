"""The error function and the activations against independent values, and the twin's bits against the interpreter's."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from op_harness import bar, bound, make

from tessera.codegen_cuda.include import CUDA_ULP
from tessera.dtypes import f32
from tessera.ir import special
from tessera.ir.opdef import lookup
from tessera.ir.types import TileType
from tessera.runtime import emulator

NAMES = ["erf", "silu", "gelu", "gelu_tanh"]
TEXT = '#include "tessera_device.h"\n' + "".join(
    f"""
TS_KERNEL(run_{name}, 32)(const float* from, float* to, ts_i64 count) {{
    for (ts_i64 i = ts_thread(); i < count; i += 32) {{
        float x;
        ts_ld_global<float, 1>(&x, from + i);
        const float y = ts_{name}(x);
        ts_st_global<float, 1>(to + i, &y);
    }}
}}
"""
    for name in NAMES
)


def arguments():
    rng = np.random.default_rng(2)
    every = rng.integers(0, 1 << 32, 30000, np.uint64).astype(np.uint32).view(np.float32)
    near = (rng.standard_normal(60000) * 4).astype(np.float32)
    left = np.linspace(-110, -9, 4000).astype(np.float32)  # results that underflow
    edges = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1, -1, 0.99999994, -0.99999994])
    return np.concatenate([every, near, left, edges])


def interpreted(name, x):
    return lookup(name).evaluate(make(name, TileType((len(x),), f32)), x[None])[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_computes_the_same_bits(name):
    x = arguments()
    result = np.zeros_like(x)
    emulator.build(TEXT, [f"run_{n}" for n in NAMES]).launch(f"run_{name}", (1,), 32, 0, [x, result, len(x)])
    expected = interpreted(name, x)
    assert np.array_equal(np.isnan(expected), np.isnan(result))
    number = ~np.isnan(expected)
    assert np.array_equal(expected[number].view(np.uint32), result[number].view(np.uint32))


def erf_by_rationals(x):
    """erf by its Maclaurin series in exact arithmetic, rounded once at the end."""
    x, total, term, n = Fraction(float(x)), Fraction(0), Fraction(float(x)), 0
    while abs(term) > Fraction(1, 10**40):
        total += term / (2 * n + 1)
        n += 1
        term *= -x * x / n
    # 2 / sqrt(pi) to 40 digits
    return total * Fraction(11283791670955125738961589031215451716881, 10**40)


def test_erf_and_gelu_are_correctly_rounded():
    x = np.float32([1e-3, 0.1, 0.3, 0.75, 0.99, 1.01, 1.5, 2.0, -0.4, -1.25])
    exact = [erf_by_rationals(v) for v in x]
    np.testing.assert_array_equal(interpreted("erf", x), [np.float32(np.longdouble(float(e))) for e in exact])
    long = special.erf(x.astype(np.longdouble))
    for value, wanted in zip(long, exact, strict=True):
        high = float(value)
        difference = Fraction(high) + Fraction(float(value - np.longdouble(high))) - wanted
        assert abs(difference) <= abs(wanted) * Fraction(1, 2**60)


@pytest.mark.parametrize(
    "name, model",
    [
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("gelu", lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_activations_are_their_formulas(name, model):
    x = np.linspace(-5, 5, 401).astype(np.float32)
    expected = np.array([model(float(v)) for v in x])
    np.testing.assert_allclose(interpreted(name, x), expected, rtol=2.0**-23, atol=1e-9)


def test_infinities_and_nan():
    x = np.float32([-np.inf, np.inf, np.nan, -0.0, -1e30])
    for name in ("silu", "gelu", "gelu_tanh"):
        result = interpreted(name, x)
        np.testing.assert_array_equal(result, [0, np.inf, np.nan, 0, 0])
        assert np.signbit(result[[0, 3, 4]]).all()
    np.testing.assert_array_equal(interpreted("erf", x), [-1, 1, np.nan, 0, -1])


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_a_bar_around_the_minimum_reaches_down_to_it(name):
    """Neither end shows it: both lie above the minimum inside."""
    function, minimum = getattr(special, name), getattr(special, f"{name.upper()}_MINIMUM")
    low = function(np.array([minimum]))[0]
    for step in (1e-4, -1e-4):
        assert function(np.array([minimum + step]))[0] > low
    center = minimum + 0.3
    result = bound(make(name, TileType((1,), f32)), bar([[center]], 0.5))
    inside = function(np.linspace(center - 0.5, center + 0.5, 1001))
    assert result.r[0, 0] - result.e[0, 0] <= inside.min() and inside.max() <= result.r[0, 0] + result.e[0, 0]
    beside = bound(make(name, TileType((1,), f32)), bar([[2.0]], 0.5))
    assert beside.e[0, 0] < 0.6


def test_stated_errors_are_the_headers():
    for name, ulp in CUDA_ULP.items():
        if name in NAMES or name in ("exp", "exp2", "log", "log2", "tanh", "sigmoid", "rsqrt", "sqrt", "floor", "ceil"):
            assert lookup(name).ulp == ulp, name
