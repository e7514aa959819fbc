"""A new elementwise op is one entry of the op table: no other file names it."""

import math

import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel
from tessera.ir import bounds, opdef
from tessera.ir.ops import elementwise
from tessera.runtime.compare import check
from tessera.runtime.reference import reference
from tests.passes.test_pipeline import arguments_of, assert_same_bits, emulated, outputs_of


@pytest.fixture
def softsign():
    """The whole declaration, taken out of the table again afterwards."""

    def function(x):
        return x / (1 + np.abs(x))

    elementwise._declare(
        "softsign",
        "a",
        "a / (1 + |a|)",
        function,
        bounds.monotone(function),
        "ts_div({0}, 1.0f + ts_abs({0}))",
        ulp=1.5,
    )
    yield
    del opdef._table["softsign"]
    tile.__dict__.pop("softsign", None)


@ts.kernel
def squash(x: tile.Tensor["N", ts.bf16], out: tile.Tensor["N", ts.f32]):
    start = tile.program_id(0) * 128
    tile.store(tile.softsign(x[start : start + 128]) + tile.softsign(3), out[start : start + 128])


def test_a_new_op_works_on_every_lane(softsign):
    dims = {"N": 300}
    compilation = compile_kernel(squash, dims)
    kernel = compilation.stages[0].module.kernel()
    expected = outputs_of(kernel, dims, "tile")
    assert_same_bits(expected, emulated(compilation, dims), "the emitted CUDA")
    arguments = arguments_of(kernel, dims)
    result = check(expected["out"], reference(kernel, arguments, dims)["out"])
    assert result.ok
    x = arguments["x"].astype(np.float64)
    # Two roundings to bf16 of values below 2.
    assert np.abs(expected["out"] - (x / (1 + np.abs(x)) + 0.75)).max() <= 2 * 2.0**-8
    assert math.isclose(tile.softsign(-1), -0.5)


def test_without_its_entry_the_name_is_unknown():
    with pytest.raises(AttributeError, match="tile has no 'softsign'"):
        _ = tile.softsign
