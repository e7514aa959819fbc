"""Reductions that meet at the same barriers: fewer of them, and every bit as it was."""

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tests.lanes import define, run

RNG = np.random.default_rng(2)

KERNEL = """
    @ts.kernel
    def k(x: Tensor["M", "N", ts.bf16], y: Tensor["M", "N", ts.bf16], output: Tensor["M", "N", ts.bf16]):
        row = tile.program_id(0) * 2
        a, b = tile.cast(x[row : row + 2], ts.f32), tile.cast(y[row : row + 2], ts.f32)
        {body}
"""
CASES = {
    "two sums of a tile": (
        """mean, squares = tile.mean(a, axis=-1, keepdims=True), tile.mean(a * a, axis=-1, keepdims=True)
        tile.store((a - mean) * tile.rsqrt(squares - mean * mean) + b, output[row : row + 2])""",
        1,
    ),
    "sums of two tiles and an extremum": (
        """first, second = tile.sum(a * a, axis=-1, keepdims=True), tile.sum(b * b, axis=-1, keepdims=True)
        top = tile.max(a + b, axis=-1, keepdims=True)
        tile.store(a * first + b * second + top, output[row : row + 2])""",
        1,
    ),
    "the second waits for the first": (
        """centred = a - tile.mean(a, axis=-1, keepdims=True)
        tile.store(centred * tile.sum(centred * b, axis=-1, keepdims=True), output[row : row + 2])""",
        2,
    ),
    "what is computed for the second is needed later": (
        """first, weights = tile.sum(a, axis=-1, keepdims=True), tile.exp2(a)
        second = tile.sum(weights, axis=-1, keepdims=True)
        tile.store(a * first + weights * second, output[row : row + 2])""",
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n, barriers", [(4096, 1), (24576, 2)], ids=["few parts", "many parts"])
def test_barriers(case, n, barriers):
    """In front of a fold, and behind one that some threads do for all."""
    body, count = CASES[case]
    (kernel,) = compile_kernel(define(KERNEL.format(body=body)), {"M": 4, "N": n}).target.kernels
    assert [op.name for op in kernel.body.walk()].count("barrier") == count * barriers


@pytest.mark.parametrize("case", ["two sums of a tile", "sums of two tiles and an extremum"])
def test_bits(case):
    body, _ = CASES[case]
    x, y = (RNG.standard_normal((3, 4096)).astype(ml_dtypes.bfloat16) for _ in range(2))
    arguments = {"x": x, "y": y, "output": np.zeros_like(x)}
    run(KERNEL.format(body=body), arguments, {"M": 3, "N": 4096}, seeds=(0, 5))
