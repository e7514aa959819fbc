"""Inverses of unit lower triangular tiles against NumPy's in float64, on every lane."""

import numpy as np
import pytest

from tests.lanes import run

KERNEL = """
    from tessera.gdn.triangular import blocked_inverse, doubling_inverse, neumann_inverse

    @ts.kernel(schedule=dict(warps={warps}))
    def k(x: Tensor["S", {n}, {n}, ts.f32], out: Tensor["S", {n}, {n}, ts.f32]):
        s = tile.program_id(0)
        lower = tile.cast(x[s], ts.{dtype})
        {body}
"""
WHOLE = "tile.store({name}(lower, {precision!r}), out[s])"
BLOCKS = """blocks = blocked_inverse(lower, {precision!r})
        for i in range({n} // 16):
            for j in range({n} // 16):
                part = blocks[i, j] if j <= i else tile.zeros([16, 16])
                tile.store(part, out[s, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16])"""


def inverted(name, lower, dtype="f32", precision=None, warps=1):
    n = lower.shape[-1]
    body = (BLOCKS if name == "blocked_inverse" else WHOLE).format(name=name, precision=precision, n=n)
    text = KERNEL.format(n=n, body=body, dtype=dtype, warps=warps)
    arrays = {"x": lower.astype(np.float32), "out": np.full(lower.shape, np.nan, np.float32)}
    outputs, _ = run(text, arrays, {"S": len(lower)}, seeds=(0,))
    return outputs["out"]


def random_lower(n, count=2):
    """beta_i k_i k_j^T of unit keys, below the diagonal."""
    rng = np.random.default_rng(n)
    keys = rng.standard_normal((count, n, 32)) + 0.5
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    return np.tril(keys @ keys.swapaxes(1, 2) * rng.random((count, n, 1)), -1).astype(np.float32)


CASES = [
    ("neumann_inverse", 16, "f32", None, 1e-6),
    ("neumann_inverse", 32, "f16", None, 5e-3),
    ("doubling_inverse", 16, "f32", None, 1e-6),
    ("doubling_inverse", 16, "f32", "tf32", 2e-3),
    ("doubling_inverse", 32, "f16", None, 2e-3),
    ("blocked_inverse", 16, "f32", None, 1e-6),
    ("blocked_inverse", 32, "f32", "tf32", 2e-3),
]


@pytest.mark.parametrize(("name", "n", "dtype", "precision", "most"), CASES, ids=str)
def test_the_inverse(name, n, dtype, precision, most):
    lower = random_lower(n)
    found = inverted(name, lower, dtype, precision, 4 if n == 32 else 1)
    exact = np.linalg.inv(np.eye(n) + lower.astype(np.float64))
    assert np.abs(found - exact).max() <= most


def test_equal_keys():
    """L_ij = 15/8: the inverse has entries below 2, powers of L some of a million, whose digits cancel."""
    lower = np.tril(np.full((1, 16, 16), 1.875, np.float32), -1)
    exact = np.linalg.inv(np.eye(16) + lower.astype(np.float64))
    assert np.abs(inverted("doubling_inverse", lower, precision="tf32") - exact).max() < 0.01
    assert np.abs(inverted("neumann_inverse", lower, precision="tf32") - exact).max() > 0.1
