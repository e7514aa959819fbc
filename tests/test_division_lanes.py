"""Divisions by what many elements share, on every lane that runs without a GPU: the bits of an IEEE division."""

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tests.lanes import define, run
from tests.runtime.test_api import GPU

RNG = np.random.default_rng(19)
ROWS, COLUMNS = 64, 256
NUMPY = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}
KERNEL = """
@ts.kernel(grid=lambda d: ({programs},))
def k(a: tile.Tensor["M", {columns}, ts.{a}], b: tile.Tensor["M", 1, ts.{b}], q: tile.Tensor["M", {columns}, ts.f32]):
    row = tile.program_id(0) * {rows}
    whole = tile.cast(a[row : row + {rows}, 0:{columns}], ts.f32)
    tile.store(whole / tile.cast(b[row : row + {rows}, 0:1], ts.f32), q[row : row + {rows}, 0:{columns}])
"""
SPECIAL = [
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    2.0**-149,
    -(2.0**-130),
    2.0**-90,
    2.0**-91,
    2.0**90,
    2.0**91,
    3e38,
    -1.0,
]


def text_of(rows=ROWS, columns=COLUMNS, programs=1, a="f32", b="f32"):
    return KERNEL.format(rows=rows, columns=columns, programs=programs, a=a, b=b)


def target_ops(text, **dims):
    return [op.name for op in compile_kernel(define(text), dims).target.kernel().body.walk()]


def divided(a, b, text):
    """Quotients by the emulated CUDA, which `run` compares with the interpreter's at every stage."""
    arguments = {"a": a, "b": b, "q": np.zeros(a.shape, np.float32)}
    return run(text, arguments, {"M": len(a)}, seeds=(3,), archs=("sm_90a",))[0]["q"]


def ieee(a, b):
    with np.errstate(all="ignore"):
        return a.astype(np.float32) / b.astype(np.float32)


def significands(shape, lowest=0, highest=0):
    """Floats of random bits, with exponents from `lowest` to `highest`."""
    return np.ldexp(1 + RNG.random(shape), RNG.integers(lowest, highest + 1, shape)).astype(np.float32)


def tiny(b, columns=COLUMNS):
    """Numerators, of both signs, whose quotients by `b` are subnormal, halves between two subnormals or neighbours of
    such, and zeros; some columns hold numbers that are not tiny."""
    shape = (len(b), columns)
    halves = RNG.integers(0, 2 ** RNG.integers(1, 24, shape)) + RNG.choice([0.5, 0.5, 0], shape)
    a = (halves * 2.0**-149 * b.astype(np.float64)).astype(np.float32)
    a = np.maximum(a.view(np.int32) + RNG.integers(-1, 2, shape, dtype=np.int32), 0).view(np.float32)
    a[:, ::7] = significands(a[:, ::7].shape, -149, 29)
    a[:, ::11] = RNG.integers(0, 2**24, a[:, ::11].shape, dtype=np.int32).view(np.float32)
    a[:, ::61] = 0
    return a * RNG.choice([-1, 1], shape).astype(np.float32)


def round_divisors(b):
    """Divisors of which some have few bits, so that quotients are halves exactly, and some are next to powers of 2."""
    bits = b.view(np.int32).copy()
    bits[::3] &= -(1 << 18)
    bits[1::5] |= 0x7FFFF0
    return bits.view(np.float32)


def same(found, expected):
    np.testing.assert_array_equal(
        found.view(np.uint32)[~np.isnan(expected)], expected.view(np.uint32)[~np.isnan(expected)]
    )
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


@pytest.mark.parametrize(("lowest", "highest"), [(0, 0), (-88, 88)])
def test_random_significands(lowest, highest):
    """Half a million quotients: one that is rounded the other way would differ."""
    programs = 32
    rows = programs * ROWS
    a = significands((rows, COLUMNS), lowest, highest) * RNG.choice([-1, 1], (rows, COLUMNS)).astype(np.float32)
    b = significands((rows, 1), max(lowest, -30), min(highest, 29))
    text = text_of(programs=programs)
    assert "div_by" in target_ops(text, M=rows)
    same(divided(a, b, text), ieee(a, b))


@pytest.mark.parametrize(("lowest", "highest"), [(0, 0), (-30, 29)])
def test_subnormal_quotients(lowest, highest):
    """Rounded once, to even: a quarter of a million, ever so near to where rounding turns, and zeros of both signs."""
    programs = 16
    b = round_divisors(significands((programs * ROWS, 1), lowest, highest))
    a = tiny(b)
    expected = ieee(a, b)
    assert np.mean((expected != 0) & (np.abs(expected) < 2.0**-126)) > 0.5
    rounded_twice = (a.astype(np.float64) * 2.0**64 / b).astype(np.float32) * np.float32(2.0**-64)
    assert np.mean(rounded_twice != expected) > 0.001
    same(divided(a, b, text_of(programs=programs)), expected)


def test_hard_divisors():
    """Significands next to 1 and 2, where reciprocals are least exact, and quotients next to halves of a last place."""
    steps = np.arange(32, dtype=np.uint32)
    b = np.concatenate([0x3F800000 + steps, 0x3FFFFFFF - steps]).astype(np.uint32).view(np.float32)[:, None]
    a = (b * significands((ROWS, COLUMNS))).astype(np.float32)
    same(divided(a, b, text_of()), ieee(a, b))


@pytest.mark.parametrize(
    "divisor", [0.0, -0.0, np.inf, np.nan, -2.0, 2.0**-149, 2.0**-31, 2.0**-30, 2.0**30, 2.0**31, 3.0]
)
def test_special_numbers(divisor):
    """Every special numerator, alone and among others, by every special divisor."""
    a = significands((ROWS, COLUMNS), -20, 20)
    for row, value in enumerate(SPECIAL):
        a[row, row * 7] = value
        a[20 + row] = value
    b = np.where(np.arange(ROWS) % 2, divisor, 3.0).astype(np.float32)[:, None]
    same(divided(a, b, text_of()), ieee(a, b))


@pytest.mark.parametrize("dtypes", [("bf16", "f32"), ("f16", "bf16")])
def test_narrow_dtypes(dtypes):
    a, b = (
        RNG.standard_normal(shape).astype(NUMPY[t])
        for shape, t in zip(((ROWS, COLUMNS), (ROWS, 1)), dtypes, strict=True)
    )
    a[:, ::9] = 0
    b = np.abs(b)
    same(divided(a, b, text_of(a=dtypes[0], b=dtypes[1])), ieee(a, b))


def test_a_number_of_the_call():
    """A scalar is shared by all; a constant that is a power of two is left to the CUDA compiler, and a number of the
    call that is one multiplies, whatever the numerators."""
    kernel = """
    @ts.kernel(grid=lambda d: (1,))
    def k(a: tile.Tensor[16, 128, ts.f32], s: float, q: tile.Tensor[16, 128, ts.f32]):
        tile.store(a[0:16, 0:128] / {by}, q[0:16, 0:128])
    """
    a = significands((16, 128), -5, 5)
    for by, shared in (("s", True), ("3.0", True), ("8.0", False)):
        text = kernel.format(by=by)
        assert ("div_by" in target_ops(text)) == shared
        for scalar in (0.7, 0.25, 2.0**-31, 0.0) if by == "s" else (0.7,):
            numerators = a.copy() if scalar == 0.7 else tiny(np.full((16, 1), scalar or 1, np.float32), 128)
            numerators[1, : len(SPECIAL)] = SPECIAL
            arguments = {"a": numerators, "s": scalar, "q": np.zeros_like(a)}
            found = run(text, arguments, {}, seeds=(3,), archs=("sm_80",))[0]["q"]
            same(found, ieee(numerators, np.float32(scalar if by == "s" else float(by))))


def test_few_quotients_of_a_thread_are_divided_one_by_one():
    ops = target_ops(text_of(128, 2), M=128)
    assert "div" in ops and "div_by" not in ops


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("numerators", ["ordinary", "tiny"])
def test_a_gpu_divides_alike(numerators):
    """2^26 quotients."""
    import cupy

    programs = 4096
    rows = programs * ROWS
    b = significands((rows, 1), -30, 29)
    if numerators == "tiny":
        b = round_divisors(b)
        a = tiny(b)
    else:
        a = significands((rows, COLUMNS), -88, 88) * RNG.choice([-1, 1], (rows, COLUMNS)).astype(np.float32)
        a[::97, ::5] = RNG.choice(np.array(SPECIAL, np.float32), a[::97, ::5].shape)
        b[::31] = RNG.choice(np.array(SPECIAL, np.float32), b[::31].shape)
    q = cupy.full((rows, COLUMNS), cupy.nan, cupy.float32)
    define(text_of(programs=programs))(cupy.asarray(a), cupy.asarray(b), q)
    same(q.get(), ieee(a, b))
