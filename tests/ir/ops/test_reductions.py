"""Reductions, indices of extrema and scans: their values, and the bars that say which answers are right."""

from __future__ import annotations

import numpy as np
import pytest
from op_harness import bar, bound, evaluate, make

from tessera.dtypes import boolean, f32, i32
from tessera.errors import SourceError
from tessera.ir import numeric
from tessera.ir.types import TileType

RNG = np.random.default_rng(6)


def test_an_index_is_sure_where_one_bar_is_above_all_others():
    op = make("argmax", TileType((1, 4), f32), axis=1)
    sure = bound(op, bar([[[1.0, 5.0, 3.0, 2.0]]], 0.5))
    assert sure.r.item() == 1 and sure.e.item() == 0
    open_ = bound(op, bar([[[4.5, 1.0, 5.0, 4.2]]], 0.3))
    assert open_.r.item() == 2 and open_.e.item() == 2, "the first may be it, two places away"
    tie = bound(op, bar([[[1.0, 7.0, 7.0, 7.0]]]))
    assert tie.r.item() == 1 and tie.e.item() == 0, "an exact tie goes to the lowest index"
    half = bound(op, bar([[[7.0, 7.0, 1.0, 7.0]]], [[[0.0, 0.0, 0.0, 0.1]]]))
    assert half.r.item() == 0 and half.e.item() == 3
    nan = bound(op, bar([[[1.0, np.nan, 9.0, np.nan]]], 5.0))
    assert nan.r.item() == 1 and nan.e.item() == 0
    lowest = bound(make("argmin", TileType((1, 4), f32), axis=1), bar([[[4.0, 1.0, 1.4, 9.0]]], 0.3))
    assert lowest.r.item() == 1 and lowest.e.item() == 1


def test_an_integer_reduction_that_does_not_fit_says_so():
    op = make("reduce_sum", TileType((3,), i32), axis=0)
    assert evaluate(op, np.array([[2**30, -(2**30), 2**30]], np.int32)).tolist() == [[2**30]]
    with pytest.raises(SourceError, match="TS401"):
        evaluate(op, np.full((1, 3), 2**30, np.int32))
    with pytest.raises(SourceError, match="TS204"):
        make("reduce_sum", TileType((3,), boolean), axis=0)


@pytest.mark.parametrize("count", [1, 5, 32, 33, 64, 150])
@pytest.mark.parametrize("axis", [-1, -2])
def test_scans(count, axis):
    shape = (2, 3, count) if axis == -1 else (2, count, 3)
    x = RNG.standard_normal(shape).astype(np.float32)
    op = make("cumsum", TileType(shape[1:], f32), axis=axis)
    result, allowed = evaluate(op, x), bound(op, bar(x))
    np.testing.assert_allclose(allowed.r, np.cumsum(x.astype(np.float64), axis=axis))
    assert (np.abs(result - allowed.r) <= allowed.e).all()
    if count % 32 == 0:  # the same pairs and blocks as the sum
        np.testing.assert_array_equal(np.take(result, [-1], axis), numeric.reduce_sum(x, axis))
    peak = evaluate(make("cummax", TileType(shape[1:], f32), axis=axis), x)
    np.testing.assert_array_equal(peak, np.maximum.accumulate(x, axis=axis))


def test_a_scan_is_the_stated_order():
    x = RNG.standard_normal(70).astype(np.float32)
    expected = x.copy()
    for start in range(0, 70, 32):
        block = expected[start : start + 32]
        for step in (1, 2, 4, 8, 16):
            for index in range(len(block)):
                if index & step:
                    block[index] += block[index // (2 * step) * 2 * step + step - 1]
    first, second = expected[31], np.float32(expected[31] + expected[63])
    expected[32:64] += first
    expected[64:] += second
    np.testing.assert_array_equal(numeric.scan("sum", x[None], -1)[0], expected)


def test_steps_of_a_reduction_and_of_a_scan_are_the_whole():
    x = RNG.standard_normal((2, 100, 4)).astype(np.float32)
    for kind, whole in (("sum", numeric.reduce_sum), ("max", numeric.reduce_max), ("min", numeric.reduce_min)):
        blocks = evaluate(make("reduce_blocks", TileType((100, 4), f32), axis=0, combine=kind), x)
        assert blocks.shape == (2, 4, 4)
        np.testing.assert_array_equal(numeric.fold_blocks(kind, blocks, -2), whole(x, -2))
        large = evaluate(make("reduce_blocks", TileType((100, 4), f32), axis=0, combine=kind, size=64), x)
        assert large.shape == (2, 2, 4)
        np.testing.assert_array_equal(numeric.fold_blocks(kind, large, -2), whole(x, -2))
    for size in (16, 96):
        with pytest.raises(SourceError, match="of a power of two of at least 32"):
            make("reduce_blocks", TileType((100, 4), f32), axis=0, combine="sum", size=size)
    scanned = evaluate(make("scan_blocks", TileType((100, 4), f32), axis=0, combine="sum"), x)
    totals = evaluate(make("block_totals", TileType((100, 4), f32), axis=0), scanned)
    np.testing.assert_array_equal(numeric.carry_blocks("sum", scanned, totals, -2), numeric.scan("sum", x, -2))
