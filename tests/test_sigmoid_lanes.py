"""Sigmoids that share a reciprocal: what stands beside one number does not change what becomes of the other."""

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tests.lanes import define, run
from tests.runtime.test_api import GPU

ROWS, COLUMNS = 64, 256
KERNEL = """
@ts.kernel(grid=lambda d: ({programs},))
def k(a: tile.Tensor["M", 256, ts.{dtype}], {scale}q: tile.Tensor["M", 256, ts.{dtype}]):
    row = tile.program_id(0) * 64
    tile.store(tile.sigmoid(a[row : row + 64, 0:256]{by}), q[row : row + 64, 0:256])
"""
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, -60.0, -63.5, -80.0, -87.0, -87.4, -88.0, 40.0, 3.0, -3.0]


def text_of(programs=1, dtype="f32", by=""):
    scale = "s: float, " if by == " * s" else ""
    return KERNEL.format(programs=programs, dtype=dtype, by=by, scale=scale)


def numbers(rows, seed=5):
    """Of every size, with each special number beside each other one."""
    rng = np.random.default_rng(seed)
    a = (rng.standard_normal((rows, COLUMNS)) * rng.choice([0.01, 1, 20, 60], (rows, 1))).astype(np.float32)
    n = len(SPECIAL)
    for first in range(n):
        a[first, : 2 * n : 2], a[first, 1 : 2 * n : 2] = SPECIAL[first], SPECIAL
    return a


def cuda_of(text):
    return compile_kernel(define(text), {"M": ROWS}, "sm_90a").cuda[0].text


@pytest.mark.parametrize("by", ["", " * s"])
def test_lanes_without_a_gpu(by):
    a = numbers(ROWS)
    arguments = {"a": a, **({"s": 0.75} if by else {}), "q": np.zeros_like(a)}
    found = run(text_of(by=by), arguments, {"M": ROWS}, seeds=(3,), archs=("sm_80", "sm_90a"))[0]["q"]
    with np.errstate(all="ignore"):
        exact = 1 / (1 + np.exp(-(a * np.float32(0.75 if by else 1)).astype(np.float64)))
    assert np.array_equal(found, exact.astype(np.float32), equal_nan=True)


def test_which_sigmoids_share():
    assert "ts_sigmoids<8>" in cuda_of(text_of()) and "ts_sigmoids" not in cuda_of(text_of(dtype="bf16"))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("by", ["", " * s", " * 0.75"])
def test_a_gpu_keeps_the_stated_error(by):
    """2^24 numbers, each within 5 + 0.62 |x| ulp for x < 0 and 5 for others; half a unit of x for its product."""
    import cupy

    programs = 1024
    a = numbers(programs * ROWS)
    q = cupy.full(a.shape, cupy.nan, cupy.float32)
    scale = 0.75 if by else 1.0
    define(text_of(programs=programs, by=by))(cupy.asarray(a), *([0.75] if by == " * s" else []), q)
    with np.errstate(all="ignore"):
        x = a.astype(np.float64) * scale
        exact = 1 / (1 + np.exp(-x))
        ulp = 5 + np.where(x < 0, (0.62 + (0.5 if by else 0)) * np.minimum(-x, 128), 0)
        off = np.abs(q.get() - exact)
    nan = np.isnan(x)
    assert np.array_equal(np.isnan(q.get()), nan)
    small = exact < 2.0**-126  # may be zero
    assert np.all(off[~nan & ~small] <= (ulp * 2.0**-23 * exact)[~nan & ~small])
    assert np.all(off[small] <= 2.0**-126)
