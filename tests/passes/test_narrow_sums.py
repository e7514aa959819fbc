"""Sums in f32 of two narrow values that are rounded to their dtype: one narrow op with the same bits."""

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.ir.types import TileType, dtype_of
from tests.lanes import define, run

NUMPY = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}
KERNEL = """
@ts.kernel(grid=lambda d: (tile.cdiv(d.N, 1024),))
def k(a: tile.Tensor["N", ts.{dtype}], b: tile.Tensor["N", ts.{second}], q: tile.Tensor["N", ts.{dtype}]):
    start = tile.program_id(0) * 1024
    x, y = tile.cast(a[start : start + 1024], ts.f32), tile.cast(b[start : start + 1024], ts.f32)
    tile.store(tile.cast({expression}, ts.{dtype}), q[start : start + 1024])
"""


def text_of(expression, dtype="bf16", second=None):
    return KERNEL.format(expression=expression, dtype=dtype, second=second or dtype)


def narrow_ops(text, dtype):
    """Ops other than casts whose results have the narrow dtype, of the last tile level."""
    found = compile_kernel(define(text), {"N": 3000})
    kernel = next(stage.module.kernel() for stage in found.stages if stage.name == "canonicalise")
    ops = [op for op in kernel.body.walk() if op.name in ("add", "sub", "mul")]
    return [op.name for op in ops if isinstance(op.result.type, TileType) and dtype_of(op.result.type).name == dtype]


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("name, sign", [("add", "+"), ("sub", "-")])
def test_bits_of_every_kind_of_number(dtype, name, sign):
    """Numbers of all exponents, near ones, subnormals, zeros of both signs and infinities; NaN has bits of its own."""
    rng = np.random.default_rng(7)
    words = rng.integers(0, 1 << 16, (2, 30000), dtype=np.uint16)
    words[1, 10000:20000] = words[0, 10000:20000] ^ rng.integers(0, 1 << 9, 10000, dtype=np.uint16)  # these cancel
    words[:, 20000:25000] &= 0x81FF  # subnormals and the smallest normals
    a, b = words.view(NUMPY[dtype])
    with np.errstate(all="ignore"):
        a[np.isnan(a)] = b[np.isnan(b)] = 1
        b[np.isinf(a) & np.isinf(b)] = 1
    text = text_of(f"x {sign} y", dtype)
    assert narrow_ops(text, dtype) == [name]
    found = run(text, {"a": a, "b": b, "q": np.zeros_like(a)}, {"N": len(a)}, archs=("sm_80", "sm_90a"))[0]["q"]
    with np.errstate(all="ignore"):
        x, y = a.astype(np.float32), b.astype(np.float32)
        expected = (x + y if sign == "+" else x - y).astype(NUMPY[dtype])
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(
    "expression, second",
    [
        ("x * y", "bf16"),  # a product that is subnormal in f32 would be rounded twice
        ("x + y", "f16"),
        ("x + y + x", "bf16"),
        ("x + 1.0", "bf16"),
    ],
)
def test_what_stays_wide(expression, second):
    assert narrow_ops(text_of(expression, second=second), "bf16") == []
