"""Ops that make, move, reduce and multiply tiles."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from op_harness import bar, bound, evaluate, make

from tessera.dtypes import bf16, f32, i64, parse, round_to
from tessera.errors import SourceError
from tessera.ir import numeric
from tessera.ir.ops.tiles import k_block
from tessera.ir.types import ScalarType, TileType

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(5)


def bfloat(*shape):
    return RNG.standard_normal(shape).astype(ml_dtypes.bfloat16).astype(np.float32)


def test_constant_is_a_number_of_its_dtype():
    assert evaluate(make("constant", value=0.1)).tolist() == [float(np.float32(0.1))]
    assert evaluate(make("constant", value=0.1, dtype=bf16)).tolist() == [0.10009765625]
    assert evaluate(make("constant", value=2**40, dtype=i64)).tolist() == [2**40]
    assert evaluate(make("constant", value=-float("inf"))).tolist() == [-np.inf]


def test_full_rounds_to_its_dtype():
    op = make("full", ScalarType(f32), shape=(2, 3), dtype=bf16)
    result = evaluate(op, np.array([0.1, 2.0], np.float32))
    assert result.shape == (2, 2, 3)
    np.testing.assert_array_equal(result[0], np.full((2, 3), np.float32(ml_dtypes.bfloat16(0.1))))
    np.testing.assert_array_equal(evaluate(op, bar([0.1])).r, np.full((1, 2, 3), 0.10009765625))
    integers = evaluate(make("full", ScalarType(i64), shape=(2,), dtype=f32), np.array([3]))
    assert integers.dtype == np.float32


def test_movement():
    x = bfloat(2, 4, 6)
    np.testing.assert_array_equal(
        evaluate(make("reshape", TileType((4, 6), bf16), shape=(3, 8)), x), x.reshape(2, 3, 8)
    )
    np.testing.assert_array_equal(evaluate(make("transpose", TileType((4, 6), bf16)), x), x.transpose(0, 2, 1))
    row = bfloat(2, 1, 6)
    op = make("broadcast", TileType((1, 6), bf16), shape=(4, 6))
    np.testing.assert_array_equal(evaluate(op, row), np.repeat(row, 4, axis=1))
    moved = evaluate(op, bar(row, 0.5))
    assert moved.r.shape == moved.e.shape == (2, 4, 6) and (moved.e == 0.5).all()
    with pytest.raises(SourceError, match="TS301"):
        make("reshape", TileType((4, 6), bf16), shape=(5, 5))
    with pytest.raises(SourceError, match="TS301"):
        make("broadcast", TileType((2, 6), bf16), shape=(4, 6))


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("dtype", [bf16, f32])
def test_reductions(axis, dtype):
    x = bfloat(2, 5, 70)
    kept = 1 if axis in (0, -2) else 2
    for name, model in (("reduce_max", np.max), ("reduce_min", np.min)):
        op = make(name, TileType((5, 70), dtype), axis=axis)
        np.testing.assert_array_equal(evaluate(op, x), model(x, axis=kept, keepdims=True))
        assert op.result.type.shape == ((1, 70) if kept == 1 else (5, 1))
    op = make("reduce_sum", TileType((5, 70), dtype), axis=axis)
    exact = x.astype(np.float64).sum(axis=kept, keepdims=True)
    result = evaluate(op, x)
    half_ulp = np.abs(exact) * 2.0**-8 if dtype == bf16 else 0
    allowed = half_ulp + 2.0**-24 * 8 * np.abs(x).astype(np.float64).sum(axis=kept, keepdims=True)
    assert (np.abs(result - exact) <= allowed).all()
    if dtype == bf16:
        np.testing.assert_array_equal(result, result.astype(ml_dtypes.bfloat16).astype(np.float32))
    summed = bound(op, bar(x))
    assert (np.abs(evaluate(make("reduce_sum", TileType((5, 70), f32), axis=axis), x) - summed.r) <= summed.e).all()
    with pytest.raises(SourceError, match="TS304"):
        make("reduce_sum", TileType((5, 70), dtype), axis=2)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("dtype", [bf16, f32])
def test_mma(transpose_a, transpose_b, dtype):
    m, n, k = 6, 10, 50
    a, b, acc = bfloat(2, m, k), bfloat(1, k, n), bfloat(2, m, n)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    held_a, held_b = (np.swapaxes(x, 1, 2) if t else x for x, t in ((a, transpose_a), (b, transpose_b)))
    types = TileType(held_a.shape[1:], dtype), TileType(held_b.shape[1:], dtype)
    op = make("mma", *types, transpose_a=transpose_a, transpose_b=transpose_b)
    assert op.result.type == TileType((m, n), f32)
    rounding = 2.0**-24 * 8 * (np.abs(a).astype(np.float64) @ np.abs(b))
    assert (np.abs(evaluate(op, held_a, held_b) - exact) <= rounding).all()
    added = make("mma", *types, TileType((m, n), f32), transpose_a=transpose_a, transpose_b=transpose_b)
    result = evaluate(added, held_a, held_b, acc)
    assert result.dtype == np.float32
    assert (np.abs(result - (exact + acc)) <= rounding + 2.0**-21 * np.abs(acc)).all()
    allowed = bound(added, bar(held_a), bar(held_b), bar(acc))
    assert (np.abs(result - allowed.r) <= allowed.e).all()
    np.testing.assert_allclose(allowed.r, exact + acc, rtol=0, atol=1e-13)


def test_mma_error_follows_the_stated_formula():
    k = 32
    a, b = bar(np.ones((1, 1, k)), 0.25), bar(np.full((1, k, 1), 2.0), 0.125)
    result = bound(make("mma", TileType((1, k), bf16), TileType((k, 1), bf16)), a, b)
    moved = k * (1 * 0.125 + 0.25 * 2 + 0.25 * 0.125)
    assert result.r.item() == 64
    assert result.e.item() == pytest.approx(moved + (k / 16 + 4 * k**0.5) * 2.0**-23 * 64, rel=1e-12)


def test_mma_operands_are_checked():
    with pytest.raises(SourceError, match="inner sizes 8 and 9"):
        make("mma", TileType((4, 8), bf16), TileType((9, 4), bf16))
    with pytest.raises(SourceError, match="TS204"):
        make("mma", TileType((4, 8), bf16), TileType((8, 4), f32))
    with pytest.raises(SourceError, match="accumulator"):
        make("mma", TileType((4, 8), bf16), TileType((8, 4), bf16), TileType((4, 5), f32))


@pytest.mark.parametrize("dtypes", [("f16", "f16"), ("fp8_e4m3", "fp8_e4m3"), ("fp8_e5m2", "fp8_e4m3")])
def test_mma_of_narrow_floats_sums_16_products_at_a_time(dtypes):
    k = 40
    types = TileType((3, k), parse(dtypes[0])), TileType((k, 4), parse(dtypes[1]))
    op = make("mma", *types)
    assert k_block(op) == 16
    a, b = (round_to(t.dtype, np.random.default_rng(i).standard_normal((1, *t.shape))) for i, t in enumerate(types))
    result, exact = evaluate(op, a, b), a.astype(np.float64) @ b.astype(np.float64)
    steps = np.zeros(exact.shape, np.float32)
    for start in range(0, k, 16):
        steps = (steps + (a[..., start : start + 16].astype(np.float64) @ b[:, start : start + 16])).astype(np.float32)
    np.testing.assert_array_equal(result, steps)
    allowed = bound(op, bar(a), bar(b))
    assert (np.abs(result - allowed.r) <= allowed.e).all()


def fp8_operands(k, mean=0.0):
    rng = np.random.default_rng(k)
    types = TileType((16, k), parse("fp8_e4m3")), TileType((k, 24), parse("fp8_e5m2"))
    return types, [round_to(t.dtype, rng.standard_normal((1, *t.shape)) + mean) for t in types]


def test_mma_of_the_fp8_format_adds_parts_of_128_in_f32():
    types, (a, b) = fp8_operands(300)
    acc = np.random.default_rng(1).standard_normal((1, 16, 24)).astype(np.float32)
    op = make("mma", *types, TileType((16, 24), f32), precision="fp8")
    fast = make("mma", *types, TileType((16, 24), f32), precision="fp8_fast")
    assert k_block(op) == k_block(fast) == 32
    parts, in_place = acc, acc
    for start in range(0, 300, 128):
        part = np.zeros_like(acc)
        for at in range(start, min(start + 128, 300), 32):
            block = a[..., at : at + 32].astype(np.float64) @ b[:, at : at + 32]
            part, in_place = ((x + block).astype(np.float32) for x in (part, in_place))
        parts = parts + part
    np.testing.assert_array_equal(evaluate(op, a, b, acc), parts)
    np.testing.assert_array_equal(evaluate(fast, a, b, acc), in_place)
    assert not np.array_equal(parts, in_place)


def sums_of_14_bits(a, b, part):
    """A model of the matrix unit: of each k-block and of what it is added to, all that is below the 14 leading bits of
    the largest of them is dropped. `part`: of k, after which sums go into f32.
    """
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for start in range(0, a.shape[1], part):
        sums = np.zeros(total.shape)
        for at in range(start, min(start + part, a.shape[1]), 32):
            terms = np.concatenate([sums[None], a.T[at : at + 32, :, None] * b[at : at + 32, None, :]]).astype(float)
            unit = np.exp2(np.frexp(np.abs(terms).max(0))[1] - 14.0)
            sums = np.trunc(np.trunc(terms / unit).sum(0) * unit / unit) * unit
        total = (total + sums).astype(np.float32)
    return total


@pytest.mark.parametrize("precision", [None, "fp8"])
@pytest.mark.parametrize("mean", [0.0, 0.25])
def test_the_bars_of_fp8_products_hold_what_the_matrix_unit_drops(precision, mean):
    k = 2048
    types, (a, b) = fp8_operands(k, mean)
    fast = {None: "fast_accum", "fp8": "fp8_fast"}[precision]
    narrow, wide = (bound(make("mma", *types, precision=p), bar(a), bar(b)) for p in (precision, fast))
    in_parts, in_place = (sums_of_14_bits(a[0], b[0], part) for part in (128, k))
    for allowed, result in ((narrow, in_parts), (wide, in_parts), (wide, in_place)):
        assert (np.abs(result - allowed.r[0]) <= allowed.e[0]).all()
        assert not np.array_equal(result, evaluate(make("mma", *types), a, b)[0])
    assert (narrow.e < wide.e).all()
    if mean:
        assert (np.abs(in_place - narrow.r[0]) > narrow.e[0]).any(), "sums that stay there need the wider bar"
    magnitude = np.abs(a[0]).astype(float) @ np.abs(b[0])
    assert (narrow.e[0] <= 2.0**-13 * magnitude * 1.25).all(), "the rule, and little more"


def test_mma_in_tf32_rounds_its_operands():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((1, 5, 24)).astype(np.float32), rng.standard_normal((1, 24, 6)).astype(np.float32)
    types = TileType((5, 24), f32), TileType((24, 6), f32)
    op, exact = make("mma", *types, precision="tf32"), make("mma", *types)
    assert k_block(op) == k_block(exact) == 8
    rounded = numeric.round_tf32(a), numeric.round_tf32(b)
    np.testing.assert_array_equal(evaluate(op, a, b), evaluate(exact, *rounded))
    allowed = bound(op, bar(a), bar(b))
    np.testing.assert_array_equal(allowed.r, bound(exact, *map(bar, rounded)).r)
    assert (np.abs(evaluate(op, a, b) - allowed.r) <= allowed.e).all()
    assert not (np.abs(evaluate(exact, a, b) - allowed.r) <= allowed.e).all(), "true f32 is not within tf32's bars"
    # An operand with a bar may round either way: its whole hull counts.
    moved = bound(op, bar(a, 2.0**-9), bar(b))
    assert (np.abs(evaluate(op, a + np.float32(2.0**-9), b) - moved.r) <= moved.e).all()


def test_mma_precision_is_checked():
    with pytest.raises(SourceError, match="TS402"):
        make("mma", TileType((4, 8), bf16), TileType((8, 4), bf16), precision="tf32")
    with pytest.raises(SourceError, match="TS402"):
        make("mma", TileType((4, 8), f32), TileType((8, 4), f32), precision="f64")
    with pytest.raises(SourceError, match="TS204"):
        make("mma", TileType((4, 8), parse("i8")), TileType((8, 4), parse("i8")))
