"""Reductions and scans on every lane that runs without a GPU: equal bit for bit at every stage, and right."""

import ml_dtypes
import numpy as np
import pytest

from tests.lanes import run

RNG = np.random.default_rng(3)
NUMPY = {"bf16": ml_dtypes.bfloat16, "f32": np.float32, "i32": np.int32, "i64": np.int64}
REDUCTIONS = ("sum", "max", "min", "mean", "argmax", "argmin")


def random(shape, dtype):
    if dtype in ("i32", "i64"):
        return RNG.integers(-50, 50, shape).astype(NUMPY[dtype])
    return RNG.standard_normal(shape).astype(NUMPY[dtype])


def result_dtype(op, dtype):
    return "i32" if op.startswith("arg") else "f32" if op == "mean" and dtype[0] == "i" else dtype


def reduce_all(shape, axis, dtype, ops=REDUCTIONS, real=None, **options):
    """Every reduction of a tile of `shape` at the start of a tensor of shape `real`, which may be smaller."""
    real = real or shape
    axes = range(len(shape)) if axis is None else (axis % len(shape),)
    kept = [size for number, size in enumerate(shape) if number not in axes] or [1]
    window = ", ".join(f"0:{size}" for size in shape)
    written = {op: result_dtype(op, dtype) for op in ops}
    parameters = "".join(f", {op}: tile.Tensor[{', '.join(map(str, kept))}, ts.{kind}]" for op, kind in written.items())
    sizes = ", ".join(map(str, real))
    text = f"@ts.kernel(grid=lambda d: (1,))\ndef k(x: tile.Tensor[{sizes}, ts.{dtype}]{parameters}):\n"
    text += f"    value = x[{window}]\n"
    for op in ops:
        text += f"    tile.store(tile.{op}(value, axis={axis}), {op}[{', '.join(f'0:{size}' for size in kept)}])\n"
    x = random(real, dtype)
    arguments = {"x": x, **{op: np.zeros(kept, NUMPY[kind]) for op, kind in written.items()}}
    outputs, _ = run(text, arguments, {}, **options)
    padded = np.zeros(shape, x.dtype)
    padded[tuple(map(slice, real))] = x
    for op in ops:
        wide = padded.astype(np.int64 if dtype[0] == "i" else np.float64)
        expected = getattr(np, op)(wide, axis=axis)
        tolerance = {"bf16": 2**-8, "f32": 1e-5}.get(written[op], 0)
        np.testing.assert_allclose(
            outputs[op].astype(np.float64).reshape(np.shape(expected)), expected, rtol=tolerance, atol=tolerance * 8
        )


CASES = [
    ((256, 64), 0, "f32", ("sum", "argmax")),  # columns: warps along the columns
    ((256, 64), 1, "bf16", ("mean", "min")),
    ((3, 2048), 1, "f32", ("sum", "max")),  # long lines: warps share them
    ((1, 1100), -1, "bf16", ("sum", "argmin")),
    ((1000, 3), 0, "bf16", ("mean", "argmax")),
    ((16, 20), 0, "i32", REDUCTIONS),
    ((9, 50), 1, "i64", REDUCTIONS),
    ((3, 10, 40), 1, "f32", REDUCTIONS),
    ((2, 3, 5, 33), 3, "bf16", ("sum", "max", "argmin")),
    ((2, 3, 5, 33), 0, "i32", ("sum", "argmin")),
    ((1024, 2), 0, "i64", ("sum", "max", "argmin")),
    ((4096,), None, "f32", ("sum", "argmax")),
    ((33, 40), None, "bf16", ("mean", "min", "argmax")),
    ((70,), 0, "i32", ("sum", "argmin")),
]


@pytest.mark.parametrize("shape, axis, dtype, ops", CASES, ids=str)
def test_reductions(shape, axis, dtype, ops):
    reduce_all(shape, axis, dtype, ops, archs=(), seeds=(5,))


@pytest.mark.parametrize(
    "shape, axis, dtype, ops",
    [
        ((64, 32), 0, "f32", ("sum", "argmax")),
        ((40, 100), 1, "bf16", ("mean", "max")),
        ((1, 2048), 1, "f32", ("sum", "argmin")),
        ((4, 40), 0, "i64", ("min", "sum")),
    ],
    ids=str,
)
def test_reductions_of_ragged_tiles_compile_without_spills(shape, axis, dtype, ops):
    reduce_all(shape, axis, dtype, ops, real=tuple(max(1, size - 3) for size in shape))


def test_ties_and_nans():
    text = """
        @ts.kernel(grid=lambda d: (1,))
        def k(x: tile.Tensor[8, 70, ts.f32], top: tile.Tensor[8, ts.i32], bottom: tile.Tensor[8, ts.i32],
              most: tile.Tensor[8, ts.f32], running: tile.Tensor[8, 70, ts.f32]):
            tile.store(tile.argmax(x[0:8], axis=1), top)
            tile.store(tile.argmin(x[0:8], axis=1), bottom)
            tile.store(tile.max(x[0:8], axis=1), most)
            tile.store(tile.cummax(x[0:8], axis=1), running)
    """
    x = RNG.integers(-2, 3, (8, 70)).astype(np.float32)
    x[1, 40] = x[1, 60] = np.nan
    x[2] = -np.inf
    x[3] = np.where(np.arange(70) % 2, 0.0, -0.0)
    x[4, 69] = np.inf
    arguments = {
        "x": x,
        "top": np.zeros(8, np.int32),
        "bottom": np.zeros(8, np.int32),
        "most": np.zeros(8, np.float32),
        "running": np.zeros((8, 70), np.float32),
    }
    outputs, _ = run(text, arguments, {}, archs=())
    np.testing.assert_array_equal(outputs["top"], np.argmax(x, axis=1))
    np.testing.assert_array_equal(outputs["bottom"], np.argmin(x, axis=1))
    np.testing.assert_array_equal(outputs["most"], np.max(x, axis=1))
    np.testing.assert_array_equal(outputs["running"], np.maximum.accumulate(x, axis=1))
    assert not np.signbit(outputs["most"][3]), "+0 is above -0"


@pytest.mark.parametrize("count", [8, 32, 40, 600])
def test_the_sum_of_negative_zeros(count):
    """The zero that a sum adds at last is part of the definition."""
    text = f"""
        @ts.kernel(grid=lambda d: (1,))
        def k(x: tile.Tensor[2, {count}, ts.f32], rows: tile.Tensor[2, ts.f32]):
            tile.store(tile.sum(x[0:2], axis=1), rows)
    """
    arguments = {"x": np.full((2, count), -0.0, np.float32), "rows": np.ones(2, np.float32)}
    outputs, _ = run(text, arguments, {}, archs=(), seeds=(0,))
    assert not np.signbit(outputs["rows"]).any()


SCANS = [
    ((8, 20), 1, "f32", ()),
    ((40, 100), 1, "bf16", ("sm_80", "sm_90a")),
    ((100, 24), 0, "f32", ("sm_80", "sm_90a")),
    ((700,), 0, "f32", ()),
    ((2, 70, 9), 1, "i32", ()),
    ((5, 66), -1, "i64", ("sm_80",)),
    ((1, 1100), 1, "bf16", ()),
]


@pytest.mark.parametrize("shape, axis, dtype, archs", SCANS, ids=str)
def test_scans(shape, axis, dtype, archs):
    sizes, window = ", ".join(map(str, shape)), ", ".join(f"0:{size}" for size in shape)
    text = f"""
        @ts.kernel(grid=lambda d: (1,))
        def k(x: tile.Tensor[{sizes}, ts.{dtype}], total: tile.Tensor[{sizes}, ts.{dtype}],
              peak: tile.Tensor[{sizes}, ts.{dtype}]):
            tile.store(tile.cumsum(x[{window}], axis={axis}), total[{window}])
            tile.store(tile.cummax(x[{window}] * 2, axis={axis}), peak[{window}])
    """
    x = random(shape, dtype)
    outputs, _ = run(text, {"x": x, "total": np.zeros_like(x), "peak": np.zeros_like(x)}, {}, archs=archs)
    wide = x.astype(np.int64 if dtype[0] == "i" else np.float64)
    tolerance = {"bf16": 2**-8, "f32": 1e-5}.get(dtype, 0)
    total = np.cumsum(wide, axis=axis)
    np.testing.assert_allclose(outputs["total"].astype(np.float64), total, rtol=tolerance, atol=tolerance * 8)
    np.testing.assert_array_equal(outputs["peak"].astype(np.float64), np.maximum.accumulate(2 * wide, axis=axis))


def test_a_product_reduced_along_both_axes():
    """An accumulator layout splits blocks over warps along its rows, so a column sum moves it first."""
    text = """
        @ts.kernel(grid=lambda d: (1,))
        def k(a: tile.Tensor[64, 32, ts.bf16], b: tile.Tensor[32, 48, ts.bf16], rows: tile.Tensor[64, ts.f32],
              columns: tile.Tensor[48, ts.f32], out: tile.Tensor[64, 48, ts.f32]):
            product = tile.mma(a[0:64], b[0:32])
            tile.store(tile.sum(product, axis=0), columns)
            tile.store(tile.max(product, axis=1), rows)
            tile.store(product - tile.mean(product, axis=0, keepdims=True), out)
    """
    arguments = {
        "a": random((64, 32), "bf16"),
        "b": random((32, 48), "bf16"),
        "rows": np.zeros(64, np.float32),
        "columns": np.zeros(48, np.float32),
        "out": np.zeros((64, 48), np.float32),
    }
    run(text, arguments, {})
