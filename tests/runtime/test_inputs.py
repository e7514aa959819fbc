"""Inputs that nobody gave: dims, scalars and values."""

import numpy as np
import pytest

from tessera import dtypes
from tessera.errors import ArgumentError
from tessera.ir.dims import symbol
from tessera.program import Parameter
from tessera.runtime import inputs

B, S, D, N = (symbol(name) for name in "BSDN")
PARAMETERS = (
    Parameter("x", "tensor", "bf16", (B, S, D)),
    Parameter("w", "tensor", "bf16", (D, N)),
    Parameter("count", "scalar", "i64"),
    Parameter("scale", "scalar", "f32"),
    Parameter("index", "tensor", "i32", (S,)),
    Parameter("state", "tensor", "f32", (N,), "inout"),
    Parameter("out", "tensor", "f32", (B, S * 2), "out"),
    Parameter("winner", "tensor", "i64", (B,), "out"),
)
DIMS = {"B": 2, "S": 5, "D": 64, "N": 7}


def usage(call, *arguments):
    with pytest.raises(ArgumentError) as caught:
        call(*arguments)
    assert caught.value.code == "TS605"
    return caught.value.message


def test_dims_in_order():
    assert inputs.dims_of(PARAMETERS) == ("B", "S", "D", "N")


def test_default_dims():
    assert inputs.choose_dims("k", ("B", "S", "D", "N", "K"), None) == {"B": 2, "S": 150, "D": 64, "N": 16, "K": 16}


def test_given_dims_are_complete_and_known():
    assert inputs.choose_dims("k", ("B", "S"), {"S": 3, "B": 1}) == {"B": 1, "S": 3}
    assert "no dim T; its dims are B, S" in usage(inputs.choose_dims, "k", ("B", "S"), {"B": 1, "S": 1, "T": 1})
    assert "no size for S; the dims of k are B, S" in usage(inputs.choose_dims, "k", ("B", "S"), {"B": 1})
    for size in (0, -1):
        message = usage(inputs.choose_dims, "k", ("B", "S"), {"B": 1, "S": size})
        assert f"the dim S must be positive, not {size}; the dims of k are B, S" in message
    assert "its dims are none" in usage(inputs.choose_dims, "k", (), {"B": 1})


@pytest.mark.parametrize("text", ["B", "B=", "=2", "B=2,,S=3", "", "B=x", "B=1.5", "B=1,B=2"])
def test_malformed_dims(text):
    assert "dim" in usage(inputs.parse_dims, text)


def test_parsed_dims():
    assert inputs.parse_dims(" B = 2,S=300") == {"B": 2, "S": 300}


def test_scalars():
    assert inputs.choose_scalars("k", PARAMETERS, {}, {}) == {"count": 2, "scale": 1.0}
    assert inputs.choose_scalars("k", PARAMETERS, {"count": "-3"}, {"count": 9, "scale": 0.5}) == {
        "count": -3,
        "scale": 0.5,
    }
    assert inputs.choose_scalars("k", PARAMETERS, {"scale": "2"}, {})["scale"] == 2.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cuont": "1"}, "no scalar parameter 'cuont'; its scalars are count, scale; did you mean 'count'"),
        ({"x": "1"}, "no scalar parameter 'x'"),
        ({"count": "1.5"}, "count must be an integer, not '1.5'"),
        ({"count": str(2**63)}, "does not fit 64 bits"),
        ({"scale": "big"}, "scale must be a number, not 'big'"),
    ],
)
def test_wrong_scalars(given, message):
    assert message in usage(inputs.choose_scalars, "k", PARAMETERS, given, {})


def test_values():
    arrays = inputs.make_arrays(PARAMETERS, {**DIMS, "S": 500}, 0)
    assert {name: array.shape for name, array in arrays.items()} == {
        "x": (2, 500, 64), "w": (64, 7), "index": (500,), "state": (7,), "out": (2, 1000), "winner": (2,),
    }  # fmt: skip
    for parameter in PARAMETERS:
        if parameter.kind == "tensor":
            assert arrays[parameter.name].dtype == dtypes.parse(parameter.dtype).numpy
    assert np.isnan(arrays["out"]).all() and (arrays["winner"] == np.iinfo(np.int64).min).all()
    assert np.isfinite(arrays["state"]).all()
    assert abs(arrays["x"].astype(np.float32).std() - 1) < 0.02
    assert abs(arrays["w"].astype(np.float32).std() - 64**-0.5) < 0.02
    assert arrays["index"].min() >= 0 and arrays["index"].max() < 16


def test_the_seed_decides_the_values_of_each_parameter():
    first, again, other = (inputs.make_arrays(PARAMETERS, DIMS, seed) for seed in (3, 3, 4))
    for name in ("x", "w", "index", "state"):
        assert (first[name] == again[name]).all() and (first[name] != other[name]).any()
    alone = inputs.make_arrays((PARAMETERS[0],), DIMS, 3)
    assert (alone["x"] == first["x"]).all()
    assert (first["x"].ravel()[:7] != first["w"].ravel()[:7]).any()


def test_arrays_that_no_machine_holds():
    assert "choose smaller ones" in usage(inputs.make_arrays, PARAMETERS, {**DIMS, "S": 2**40}, 0)


@pytest.mark.parametrize("name", sorted(dtypes.TYPES))
def test_values_and_poison_of_every_dtype(name):
    dtype = dtypes.parse(name)
    made = inputs.values((300, 7), dtype, np.random.default_rng(0))
    assert made.dtype == dtype.numpy and len(np.unique(made.astype(np.float64))) > (1 if dtype.is_bool else 7)
    assert np.isfinite(made.astype(np.float64)).all()
    poisoned = inputs.poison((3,), dtype)
    assert poisoned.dtype == dtype.numpy and (not dtype.is_float or np.isnan(poisoned.astype(np.float64)).all())


def test_fp8_values_stay_below_64():
    class Large:
        def standard_normal(self, shape, dtype):
            return np.full(shape, 1000, dtype)

    for name in ("fp8_e4m3", "fp8_e5m2"):
        assert (inputs.values((4,), dtypes.parse(name), Large()).astype(np.float32) == 56).all()
