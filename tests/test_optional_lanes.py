"""Optional tensors of kernels: the default None, and None in the body where a call has no such tensor."""

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.runtime import api
from tests.lanes import define, run

ROWS = 16


@ts.kernel
def affine(
    x: Tensor["M", "N", ts.f32],
    out: Tensor["M", "N", ts.f32],
    bias: Tensor["N", ts.f32] = None,
    factor: float = 2.0,
    sums: Tensor["M", ts.f32] = None,
):
    ctx = tile.context()
    row = tile.program_id(0) * ROWS
    block = x[row : row + ROWS, 0 : ctx.N] * factor
    if bias is not None:
        block = block + bias
    tile.store(block, out[row : row + ROWS])
    if sums is not None:
        tile.store(tile.sum(block, axis=1), sums[row : row + ROWS])


@ts.function
def twice(x: Tensor["M", "N", ts.f32], bias: Tensor["N", ts.f32]) -> Tensor["M", "N", ts.f32]:
    return affine(affine(x, bias=bias), bias=None)


X = np.arange(20 * 8, dtype=np.float32).reshape(20, 8)
BIAS = np.arange(8, dtype=np.float32)


def test_what_a_call_has_decides(lane):
    sums = np.full(20, np.nan, np.float32)
    np.testing.assert_array_equal(affine(X), 2 * X)
    np.testing.assert_array_equal(affine(X, bias=BIAS), 2 * X + BIAS)
    assert api.last_run(affine).lane == lane
    np.testing.assert_array_equal(affine(X, bias=None, factor=3.0), 3 * X)
    out = np.full_like(X, np.nan)
    assert affine(X, out, None, 1.0, sums) is None
    np.testing.assert_array_equal(out, X)
    np.testing.assert_array_equal(sums, X.sum(1))
    np.testing.assert_array_equal(affine(X, sums=sums, bias=BIAS), 2 * X + BIAS)
    np.testing.assert_array_equal(sums, (2 * X + BIAS).sum(1))


def test_in_a_function(lane):
    np.testing.assert_array_equal(twice(X, BIAS), 2 * (2 * X + BIAS))


def test_an_output_that_is_not_asked_for_is_no_parameter():
    kernel = affine.without(["sums", "bias"])
    assert [p.name for p in kernel.parameters] == ["x", "out", "factor"]
    made = compile_kernel(kernel, {"M": 20, "N": 8})
    assert [p.name for p in made.program.parameters] == ["x", "out", "factor"]
    assert affine.optional == {"bias", "sums"} and kernel.optional == frozenset()


def test_stages_agree_without_them():
    text = """
        @ts.kernel
        def k(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32], y: Tensor["N", ts.f32] = None):
            start = tile.program_id(0) * 64
            block = tile.load(x[start : start + 64])
            tile.store(block if y is None else block + y[start : start + 64], out[start : start + 64])
    """
    x, y = np.float32([1, 2, 3] * 30), np.float32([4, 5, 6] * 30)
    outputs, _ = run(text, {"x": x, "y": y, "out": np.full(90, np.nan, np.float32)}, {"N": 90})
    np.testing.assert_array_equal(outputs["out"], x + y)
    np.testing.assert_array_equal(define(text)(x), x)


@pytest.mark.parametrize("name", ["factor", "x", "nothing"])
def test_only_optional_tensors_can_be_left_out(name):
    with pytest.raises(ts.TesseraError, match=f"'{name}' is no optional tensor of 'affine'") as caught:
        affine.without([name])
    assert caught.value.code == "TS201" and caught.value.loc is not None


def test_wrong_calls_are_told():
    with pytest.raises(ts.TesseraError, match="needs the argument 'x'"):
        affine(bias=BIAS)
    with pytest.raises(ts.TesseraError, match="twice"):
        affine(X, np.empty_like(X), BIAS, bias=BIAS)
    with pytest.raises(ts.TesseraError, match="takes 5 arguments"):
        affine(X, np.empty_like(X), BIAS, 1.0, np.empty(20, np.float32), None)
    with pytest.raises(ts.TesseraError, match="no parameter 'offset'"):
        affine(X, offset=BIAS)
