"""`tile.uniform` in kernels: every stage, the emitted CUDA and NVRTC, against the same numbers drawn one by one."""

import ml_dtypes
import numpy as np
import pytest

from tessera.ir.philox import uniform
from tests.lanes import run

MASKED = """
    @ts.kernel
    def k(x: Tensor["M", "N", ts.bf16], seed: int, out: Tensor["M", "N", ts.f32]):
        ctx = tile.context()
        p = tile.program_id(0) * {rows}
        row = p + tile.iota([{rows}, x.shape[1]], axis=0, dtype=ts.i64)
        element = row * x.shape[1] + tile.iota([{rows}, x.shape[1]], axis=1, dtype=ts.i64)
        kept = tile.uniform(element, seed) >= 0.25
        tile.store(tile.where(kept, x[p : p + {rows}] / 0.75, 0.0), out[p : p + {rows}])
"""
BY_SEED = """
    @ts.kernel
    def k(seeds: Tensor["N", ts.i64], index: Tensor["N", ts.i32], out: Tensor[3, "N", ts.f32]):
        p = tile.program_id(0) * 64
        tile.store(tile.uniform(index[p : p + 64], seeds[p : p + 64]), out[0, p : p + 64])
        tile.store(tile.uniform(4_000_000_000_000, seeds[p : p + 64]), out[1, p : p + 64])
        tile.store(tile.full([64], tile.uniform(index[p], 7) + tile.uniform(3, 7)), out[2, p : p + 64])
"""


@pytest.mark.parametrize("rows", [16, 64])
def test_dropout_does_not_depend_on_the_tiles(rows):
    rng = np.random.default_rng(rows)
    shape, seed = (37, 48), -(2**40) - 3
    x = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    outputs, _ = run(
        MASKED.format(rows=rows),
        {"x": x, "seed": seed, "out": np.full(shape, np.nan, np.float32)},
        {"M": shape[0], "N": shape[1]},
    )
    drawn = uniform(np.arange(shape[0] * shape[1]).reshape(shape), np.array([seed]))
    scaled = (x.astype(np.float32) / np.float32(0.75)).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(outputs["out"], np.where(drawn >= 0.25, scaled, 0))


def test_tiles_of_seeds_and_scalars():
    count = 150
    rng = np.random.default_rng(0)
    seeds = rng.integers(-(2**53), 2**53, count)
    index = rng.integers(-(2**31), 2**31, count).astype(np.int32)
    out = np.full((3, count), np.nan, np.float32)
    outputs, _ = run(BY_SEED, {"seeds": seeds, "index": index, "out": out}, {"N": count})
    first = uniform(index[::64].astype(np.int64), np.array([7])) + uniform(np.array([3]), np.array([7]))
    expected = [uniform(index, seeds), uniform(np.array([4 * 10**12]), seeds), np.repeat(first, 64)[:count]]
    np.testing.assert_array_equal(outputs["out"], np.stack(expected))
