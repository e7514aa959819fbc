"""Sigmoids of what a number scales: one op, the same values, and only where the number is known to be harmless."""

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.ir.bounds import Bar
from tests.lanes import define, run

KERNEL = """
@ts.kernel(grid=lambda d: (1,))
def k(x: tile.Tensor["M", 64, ts.f32], n: int, s: tile.Tensor[1, ts.f32], out: tile.Tensor["M", 64, ts.f32]):
    whole = x[0:64, 0:64]
    acc = tile.zeros([64, 64], ts.f32)
    for layer in tile.range(3):
        scaled = whole * {scale}
        acc += {value}
    tile.store(acc, out[0:64, 0:64])
"""


def text_of(scale, value="tile.sigmoid(scaled)"):
    return KERNEL.format(scale=scale, value=value)


def names(text):
    return [op.name for op in compile_kernel(define(text), {"M": 64}).target.kernel().body.walk()]


@pytest.mark.parametrize("scale", ["0.375", "-3.0", "tile.exp(-0.1 * (3 - layer))", "1e30"])
def test_a_known_scale_goes_into_the_sigmoid(scale):
    found = names(text_of(scale))
    assert "scaled_sigmoid" in found and "sigmoid" not in found


@pytest.mark.parametrize(
    ("scale", "value"),
    [
        ("s[0]", "tile.sigmoid(scaled)"),  # of which nothing is known
        ("tile.exp(-0.1 * n)", "tile.sigmoid(scaled)"),  # nor of this
        ("1e-38", "tile.sigmoid(scaled)"),
        ("1e38", "tile.sigmoid(scaled)"),
        ("(layer - 1)", "tile.sigmoid(scaled)"),  # may be zero
        ("whole", "tile.sigmoid(scaled)"),
        ("0.375", "scaled * tile.sigmoid(scaled)"),  # the product is there for others anyway
    ],
)
def test_other_products_stay(scale, value):
    found = names(text_of(scale, value))
    assert "sigmoid" in found and "scaled_sigmoid" not in found


@pytest.mark.parametrize("scale", ["-3.0", "tile.exp(-0.1 * (3 - layer))"])
def test_every_lane_gives_the_same(scale):
    """The product is rounded before its sigmoid is, on the interpreter and in the emulated CUDA alike."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((64, 64)) * np.float32(2.0) ** rng.integers(-20, 7, (64, 64))).astype(np.float32)
    x[0, :6] = 0.0, np.inf, -np.inf, np.nan, 200.0, -200.0
    arguments = {"x": x, "n": 1, "s": np.ones(1, np.float32), "out": np.zeros((64, 64), np.float32)}
    run(text_of(scale), arguments, {"M": 64}, seeds=(3,), archs=("sm_80", "sm_90a"))


def test_its_error_is_that_of_both():
    compilation = compile_kernel(define(text_of("0.375")), {"M": 64})
    (op,) = [op for op in compilation.target.kernel().body.walk() if op.name == "scaled_sigmoid"]
    x = np.linspace(-90, 90, 64 * 64).astype(np.float32).astype(np.float64).reshape(1, 64, 64)
    scale = np.full((1,), 0.375)
    assert op.definition.bound is not None
    bar = op.definition.bound(op, Bar(x, np.zeros_like(x)), Bar(scale, np.zeros_like(scale)))
    wanted = 1 / (1 + np.exp(-0.375 * x))
    with np.errstate(over="ignore"):
        factor = np.float32(-1.44269504) * np.float32(0.375)
        power = np.exp2((x.astype(np.float32) * factor).astype(np.float64))
        folded = (1 / (1 + power.astype(np.float32)).astype(np.float64)).astype(np.float32)
    assert (np.abs(folded - wanted) <= bar.e).all()
    assert (bar.e <= wanted * 2.0**-22 * (8 + 2 * np.abs(x))).all()
