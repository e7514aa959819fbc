"""Elementwise ops on 16-bit floats, two registers at once: the bits of single ones on every lane, and the PTX of it."""

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.runtime import nvrtc
from tests.lanes import define, run

RNG = np.random.default_rng(5)
NUMPY = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}
KERNEL = """
@ts.kernel(grid=lambda d: (1,))
def k(a: tile.Tensor[32, {n}, ts.{a}], b: tile.Tensor[32, {n}, ts.{b}], s: float,
      wide: tile.Tensor[32, {n}, ts.f32], narrow: tile.Tensor[32, {n}, ts.{a}], other: tile.Tensor[32, {n}, ts.{b}]):
    x = a[0:32, 0:{n}]
    y = b[0:32, 0:{n}]
    product = x * y
    tile.store(tile.where(x < y, tile.cast(product, ts.f32), tile.cast(x, ts.f32) - s), wide[0:32, 0:{n}])
    tile.store(tile.cast(tile.cast(product, ts.f32) / 3.0, ts.{a}), narrow[0:32, 0:{n}])
    tile.store(tile.exp(tile.cast(x, ts.{b})), other[0:32, 0:{n}])
"""
SPECIAL = np.array([0.0, -0.0, 1e-40, -1e-7, 300.0, -12.0, 2.0**-24], np.float32)


def values(shape, dtype):
    found = np.where(RNG.random(shape) < 0.1, RNG.choice(SPECIAL, shape), RNG.standard_normal(shape))
    return found.astype(np.float32).astype(NUMPY[dtype])


@pytest.mark.parametrize(("a", "b"), [("bf16", "bf16"), ("f16", "bf16"), ("bf16", "f16"), ("f16", "f16")])
@pytest.mark.parametrize("columns", [128, 1])
def test_lanes_agree(a, b, columns):
    """With two registers of a thread and more, and with one."""
    shape = (32, columns)
    arguments = {"a": values(shape, a), "b": values(shape, b), "s": 0.3, "wide": np.zeros(shape, np.float32)}
    arguments |= {name: np.zeros(shape, NUMPY[dtype]) for name, dtype in (("narrow", a), ("other", b))}
    with np.errstate(all="ignore"):
        found = run(KERNEL.format(a=a, b=b, n=columns), arguments, {}, seeds=(3,), archs=("sm_80",))[0]
        product = arguments["a"].astype(np.float32) * arguments["b"].astype(np.float32)
        if a == b:
            product = product.astype(NUMPY[a]).astype(np.float32)
        expected = (product / np.float32(3)).astype(NUMPY[a])
    np.testing.assert_array_equal(found["narrow"].astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_halves_are_converted_two_at_a_time(arch):
    """No element is taken out of its word to be widened, or put into one after it was rounded alone."""
    text = compile_kernel(define(KERNEL.format(a="bf16", b="bf16", n=128)), {}, arch).cuda[0].text
    ptx = nvrtc.compile_cubin(text, arch, "k", want_ptx=True).ptx
    assert ptx is not None
    assert "cvt.rn.bf16x2.f32" in ptx and "cvt.rn.bf16.f32" not in ptx
    assert "prmt.b32" not in ptx
