"""The composite operations of functions: what they compute, in which dtypes, and what they refuse."""

import math

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera.errors import TesseraError
from tessera.ir.dims import symbol
from tessera.ir.philox import uniform_number
from tessera.ir.types import TileType, dtype_of, shape_of
from tests.frontend.functions import (  # noqa: F401  the fixture
    bf16,
    definition,
    fp8,
    isolated,
    near,
    normal,
    refused,
    run,
    sigmoid,
    the_ops,
    trace,
    wide,
)

SIZES = {"B": 2, "S": 5, "D": 24}


# Gates ----------------------------------------------------------------------------------------------------------------

GATES = """
@ts.function
def f(x: Tensor["B", "S", "D", ts.{0}], w: Tensor["D", "D", ts.{1}], d: {2}):
    return ts.ops.gating_function(x, w, {3})
"""


@pytest.mark.parametrize("distance", [0, 1, 7, -3, -900])
def test_gates_of_a_run_time_distance(distance):
    x, w = normal(2, 5, 24), normal(24, 24, scale=0.3)
    gates, traced = run(GATES.format("bf16", "bf16", "int", "d"), SIZES, x=x, w=w, d=distance)
    with np.errstate(over="ignore"):
        scale = float(np.float32(np.exp(np.float64(-0.1) * distance)))
    near(gates, sigmoid(scale * (wide(x) @ wide(w))), absolute=1e-4)
    assert dtype_of(traced.function.body.ops[-1].operands[0].type) == ts.bf16


def test_gates_are_rounded_once_and_fusion_may_skip_that():
    traced = trace(GATES.format("bf16", "bf16", "int", "d"), SIZES)
    tensors = [op for op in traced.function.body.ops if op.results and isinstance(op.results[0].type, TileType)]
    assert [(op.name, dtype_of(op.result.type).name) for op in tensors] == [
        ("matmul", "f32"), ("mul", "f32"), ("sigmoid", "f32"), ("cast", "bf16")
    ]  # fmt: skip
    assert tensors[-1].attributes["implicit"]


@pytest.mark.parametrize(
    "x_dtype, w_dtype", [("f32", "f32"), ("bf16", "f32"), ("fp8_e4m3", "bf16"), ("fp8_e4m3", "fp8_e5m2")]
)
def test_gates_have_the_dtype_of_x(x_dtype, w_dtype):
    kinds = {"f32": np.float32, "bf16": bf16, "fp8_e4m3": fp8, "fp8_e5m2": ml_dtypes.float8_e5m2}
    x, w = normal(2, 5, 24, dtype=kinds[x_dtype]), normal(24, 24, dtype=kinds[w_dtype], scale=0.3)
    gates, traced = run(GATES.format(x_dtype, w_dtype, "int", "d"), SIZES, x=x, w=w, d=2)
    assert dtype_of(traced.function.body.ops[-1].operands[0].type).name == x_dtype
    step = {"f32": 1e-5, "bf16": 2.0**-8, "fp8_e4m3": 2.0**-3}[x_dtype]
    near(gates, sigmoid(np.exp(-0.2) * (wide(x) @ wide(w))), step, absolute=2.0**-9 if x_dtype == "fp8_e4m3" else 0)


def test_a_distance_may_be_a_number_or_an_element():
    x, w = normal(2, 5, 24), normal(24, 24, scale=0.3)
    wanted = sigmoid(np.exp(-0.2) * (wide(x) @ wide(w)))
    known, _ = run(GATES.format("bf16", "bf16", "int", "2"), SIZES, x=x, w=w, d=0)
    near(known, wanted, 2.0**-7)
    text = """
    @ts.function
    def f(x: Tensor["B", "S", "D", ts.bf16], w: Tensor["D", "D", ts.bf16], d: Tensor[3, ts.f32]):
        return ts.ops.gating_function(x, w, d[1])
    """
    element, _ = run(text, SIZES, x=x, w=w, d=np.array([9, 2, 9], np.float32))
    near(element, wanted, 2.0**-7)


def test_the_gating_function_of_a_bare_matrix():
    text = """
    @ts.function
    def f(x: Tensor["B", "S", "D", ts.bf16], w: Tensor):
        return ts.ops.gating_function(x, w, 1)
    """
    x, w = normal(2, 5, 24), normal(24, 24, scale=0.3)
    gates, traced = run(text, SIZES, ["w"], x=x, w=w)
    near(gates, sigmoid(np.exp(-0.1) * (wide(x) @ wide(w))), 2.0**-7)
    assert [str(size) for size in shape_of(traced.function.parameters[1].type)] == ["D", "D"]


def test_errors_of_the_gating_function():
    head = """@ts.function
def f(x: Tensor["B", "D", ts.bf16], w: Tensor["D", "D", ts.bf16], v: Tensor["D", "E", ts.bf16],
      n: Tensor["B", "D", ts.i32]):
    return """
    sizes = {"B": 2, "D": 8, "E": 6}
    refused("TS301", "'v'", "[8, 6]", "[D, D]", text=head + "ts.ops.gating_function(x, v, 1)", static=sizes)
    refused("TS203", "'3'", "'W' takes a tensor", text=head + "ts.ops.gating_function(x, 3, w)", static=sizes)
    refused("TS203", "'w'", "one number", "(x, W, d)", text=head + "ts.ops.gating_function(x, w, w)", static=sizes)
    refused("TS204", "'n'", "i32", text=head + "ts.ops.gating_function(n, w, 1)", static=sizes)
    refused("TS304", "'x[0]'", "'W' takes a matrix", text=head + "ts.ops.gating_function(x, x[0], 1)", static=sizes)
    refused("TS202", "gating_function(x, W, d)", text=head + "ts.ops.gating_function(x, w)", static=sizes)


NETWORK = """
@ts.function
def f(x: Tensor["B", "S", "D", ts.{0}], w: Tensor["D", "G", ts.{0}]):
    return ts.ops.gating_network(x, w)
"""


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_gating_network_has_no_distance(dtype):
    kind = np.float32 if dtype == "f32" else bf16
    x, w = normal(2, 5, 24, dtype=kind), normal(24, 3, dtype=kind)
    gates, traced = run(NETWORK.format(dtype), {**SIZES, "G": 3}, x=x, w=w)
    near(gates, sigmoid(wide(x) @ wide(w)), 1e-6 * 20 if dtype == "f32" else 2.0**-8, absolute=1e-6)
    (product,) = the_ops(traced, "matmul")
    assert product.attributes["precision"] is None  # true f32


# The MLP of a gate ----------------------------------------------------------------------------------------------------

MLP = """
@ts.function
def f(x: Tensor["B", "S", {0}, ts.bf16], w: Tensor["D", "G", ts.bf16]):
    return ts.ops.mlp_gating(x, w)
"""


def tied(x, w):
    hidden = wide(x)[..., 1:] + wide(x)[..., :1]
    return (hidden * sigmoid(hidden)) @ wide(w).T


@pytest.mark.parametrize("features, units", [(24, 1), (24, 16), (24, 23), (24, 24), (3, 7)])
def test_the_tied_mlp(features, units):
    x, w = normal(2, 5, units + 1), normal(features, units, scale=0.3)
    sizes = {"B": 2, "S": 5, "D": features, "G": units}
    logits, traced = run(MLP.format('"G + 1"'), sizes, x=x, w=w)
    near(logits, tied(x, w), absolute=1e-3)
    assert shape_of(traced.function.body.ops[-1].operands[0].type)[-1] == symbol("D")
    assert traced.function.attributes["shape_dims"] == ()  # the names decide


@pytest.mark.parametrize("units, rule", [(5, "plain"), (7, "tied")])
def test_the_plain_product_where_the_last_axis_is_not_one_more(units, rule):
    x, w = normal(2, 5, 8), normal(8, units)
    logits, traced = run(MLP.format('"D"'), {"B": 2, "S": 5, "D": 8, "G": units}, x=x, w=w)
    near(logits, tied(x, w) if rule == "tied" else wide(x) @ wide(w), absolute=2e-2)
    assert set(traced.function.attributes["shape_dims"]) == {"D", "G"}


@pytest.mark.parametrize("last, units, rule", [(8, 3, "plain"), (4, 3, "tied")])
def test_sizes_of_another_name_choose_by_their_values(last, units, rule):
    x, w = normal(2, 5, last), normal(8, units)
    logits, _ = run(MLP.format('"K"'), {"B": 2, "S": 5, "K": last, "D": 8, "G": units}, x=x, w=w)
    near(logits, tied(x, w) if rule == "tied" else wide(x) @ wide(w), absolute=2e-2)


@pytest.mark.parametrize("bare", [["x"], ["w"], ["x", "w"]])
def test_the_tied_rule_binds_bare_parameters(bare):
    head = "Tensor" if "x" in bare else 'Tensor["B", "S", 4, ts.bf16]'
    tail = "Tensor" if "w" in bare else 'Tensor["D", "G", ts.bf16]'
    text = f"@ts.function\ndef f(x: {head}, w: {tail}):\n    return ts.ops.mlp_gating(x, w)\n"
    x, w = normal(2, 5, 4), normal(8, 3)
    logits, _ = run(text, {"B": 2, "S": 5, "D": 8, "G": 3}, bare, x=x, w=w)
    near(logits, tied(x, w), absolute=2e-2)


def test_the_mlp_refuses_what_neither_rule_takes():
    sizes = {"B": 2, "S": 8, "K": 7, "D": 16, "G": 4}
    words = ("ts.ops.mlp_gating", "'x' is [2, 8, 7]", "'w'", "[16, 4]", "G + 1 = 5", "D = 16")
    refused("TS301", *words, text=MLP.format('"K"'), static=sizes)
    refused("TS205", "'x'", "rule", text=MLP.format('"K"'), static={})


# Norms ----------------------------------------------------------------------------------------------------------------

NORM = """
@ts.function
def f(x: Tensor["B", "S", "D", ts.{0}]):
    return {1}
"""


@pytest.mark.parametrize("name", ["ts.ops.l2_norm", "ts.l2_norm"])
@pytest.mark.parametrize("axis, keepdims", [(None, False), (None, True), (-1, True), (1, False), ((0, 2), False)])
def test_the_norm_along_axes(name, axis, keepdims):
    x = normal(2, 5, 24)
    norm, traced = run(NORM.format("bf16", f"{name}(x, axis={axis}, keepdims={keepdims})"), SIZES, x=x)
    wanted = np.sqrt(np.sum(wide(x) ** 2, axis=axis, keepdims=keepdims))
    assert len(shape_of(traced.function.body.ops[-1].operands[0].type)) == wanted.ndim
    near(norm.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e37, 1e-30, 1e-38, 1e-45, 3e38, np.inf, np.nan])
def test_the_norm_neither_overflows_nor_vanishes(value):
    x = np.full((2, 5, 1024), value, np.float32)
    x[0, 0] *= -1
    norm, _ = run(NORM.format("f32", "ts.ops.l2_norm(x, axis=-1)"), {"B": 2, "S": 5, "D": 1024}, x=x)
    wanted = np.abs(x[..., 0].astype(np.float64)) * 32
    wanted[wanted > np.finfo(np.float32).max] = np.inf
    near(norm, wanted, 1e-6, absolute=2.0**-149)


def test_one_infinity_makes_the_norm_infinite():
    x = normal(2, 5, 24, dtype=np.float32)
    x[0, 0, 3], x[1, 1, 2] = -np.inf, np.nan
    norm, _ = run(NORM.format("f32", "ts.l2_norm(x, -1)"), SIZES, x=x)
    assert norm[0, 0] == np.inf and np.isnan(norm[1, 1])
    assert np.isfinite(norm).sum() == 8


def test_the_norm_of_no_axes_and_of_integers():
    text = "@ts.function\ndef f(x: Tensor[4, ts.f32]):\n    return ts.l2_norm(x[1])\n"
    assert run(text, x=np.array([0, -3, 0, 0], np.float32))[0] == 3
    refused("TS204", "'x'", "i32", text=NORM.format("i32", "ts.ops.l2_norm(x)"), static=SIZES)
    refused("TS304", "axis 3", text=NORM.format("f32", "ts.ops.l2_norm(x, axis=3)"), static=SIZES)
    refused("TS203", "'axis'", "int", text=NORM.format("f32", "ts.ops.l2_norm(x, axis='mp')"), static=SIZES)


@pytest.mark.parametrize("name", ["ts.ops.softmax_safe", "ts.softmax"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(name, axis):
    x = normal(2, 5, 24, scale=3)
    result, _ = run(NORM.format("bf16", f"{name}(x, axis={axis})"), SIZES, x=x)
    raised = np.exp(wide(x) - wide(x).max())
    near(result, raised / raised.sum(axis=axis, keepdims=True))


def test_softmax_of_large_and_hidden_elements():
    x = np.array([[[3e38, 3e38, -3e38, -np.inf], [-3e38, -3e38, -3e38, -3e38]]], np.float32)
    result, _ = run(NORM.format("f32", "ts.softmax(x)"), {"B": 1, "S": 2, "D": 4}, x=x)
    assert result.tolist() == [[[0.5, 0.5, 0, 0], [0.25] * 4]]
    refused("TS304", "no axis", text=NORM.format("f32", "ts.softmax(x[0, 0, 0])"), static=SIZES)


WEIGHTED = """
@ts.function
def f(x: Tensor["B", "S", "D", ts.bf16], w: Tensor["D", ts.{0}], b: Tensor["D", ts.f32], e: float):
    return {1}
"""


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_rms_norm(dtype):
    x, w, b = normal(2, 5, 24), normal(24, dtype=bf16 if dtype == "bf16" else np.float32), np.zeros(24, np.float32)
    wanted = wide(x) / np.sqrt(np.mean(wide(x) ** 2, -1, keepdims=True) + 0.5) * wide(w)
    result, traced = run(WEIGHTED.format(dtype, "ts.rms_norm(x, w, eps=e)"), SIZES, x=x, w=w, b=b, e=0.5)
    near(result, wanted)
    assert dtype_of(traced.function.body.ops[-1].operands[0].type) == ts.bf16
    plain, _ = run(WEIGHTED.format(dtype, "ts.rms_norm(x)"), SIZES, x=x, w=w, b=b, e=0.5)
    near(plain, wide(x) / np.sqrt(np.mean(wide(x) ** 2, -1, keepdims=True) + 1e-6))


def test_layer_norm():
    x, w, b = normal(2, 5, 24), normal(24), normal(24, dtype=np.float32)
    centred = wide(x) - wide(x).mean(-1, keepdims=True)
    unit = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-5)
    arguments = {"x": x, "w": w, "b": b, "e": 0.5}
    result, _ = run(WEIGHTED.format("bf16", "ts.layer_norm(x, w, b)"), SIZES, **arguments)
    near(result, unit * wide(w) + wide(b), absolute=1e-5)
    plain, _ = run(WEIGHTED.format("bf16", "ts.layer_norm(x, eps=1e-5)"), SIZES, **arguments)
    near(plain, unit, absolute=1e-5)


def test_errors_of_weighted_norms():
    text = WEIGHTED.replace("e: float", "e: float, o: Tensor['G', ts.f32]")
    sizes = {**SIZES, "G": 3}
    refused("TS301", "'o' is [3]", "'x'", "24", text=text.format("bf16", "ts.layer_norm(x, o)"), static=sizes)
    refused("TS304", "'weight' takes one axis", text=text.format("bf16", "ts.rms_norm(x, x)"), static=sizes)
    refused("TS203", "'eps' takes one number", text=text.format("bf16", "ts.rms_norm(x, w, eps=b)"), static=sizes)
    refused("TS203", "'2'", "'bias' takes a tensor", text=text.format("bf16", "ts.layer_norm(x, w, 2)"), static=sizes)


# Dropout --------------------------------------------------------------------------------------------------------------

DROPOUT = """
@ts.function
def f(x: Tensor["B", "S", "D", ts.{0}], p: float, n: int):
    return {1}
"""
MANY = {"B": 4, "S": 32, "D": 64}


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p):
    x = np.ones((4, 32, 64), np.float32)
    result, traced = run(DROPOUT.format("f32", "ts.ops.dropout(x, p)"), MANY, x=x, p=p, n=0, seed=11)
    kept = result != 0
    near(result[kept], 1 / (1 - p), 1e-6)
    assert abs(kept.mean() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / x.size) + 1e-12
    assert traced.collected.seed == "seed"
    assert [guard.parameter for guard in traced.collected.guards] == ["p"]


def test_dropout_is_a_function_of_its_seed():
    x = normal(4, 32, 64)
    text = DROPOUT.format("bf16", "ts.ops.dropout(x, p=0.5, seed={})")
    first, again, other = (run(text.format(seed), MANY, x=x, p=0.0, n=0)[0] for seed in (1, 1, 2))
    assert (first == again).all() and 0.4 < ((first == 0) != (other == 0)).mean() < 0.6
    late, traced = run(text.format("n"), MANY, x=x, p=0.0, n=1)
    assert (late == first).all() and traced.collected.seed is None
    kept = first != 0
    assert (first[kept] == 2 * wide(x)[kept]).all()


@pytest.mark.parametrize("shape, dims", [((), ""), ((5,), '"A"'), ((2, 3), '"A", "B"'), ((2, 3, 4), '"A", "B", "C"')])
def test_an_element_is_dropped_by_its_place_in_row_major_order(shape, dims):
    head = f"x: Tensor[{dims + ', ' if dims else '1, '}ts.f32]"
    text = f"@ts.function\ndef f({head}):\n    return ts.ops.dropout({'x' if dims else 'x[0]'}, 0.4, seed=9)\n"
    result, _ = run(text, dict(zip("ABC", shape, strict=False)), x=np.ones(shape or (1,), np.float32))
    kept = [uniform_number(place, 9) >= np.float32(0.4) for place in range(math.prod(shape))]
    assert (result.reshape(-1) != 0).tolist() == kept


def test_each_dropout_of_a_function_has_its_own_numbers():
    x = np.ones((4, 32, 64), np.float32)
    text = DROPOUT.format("f32", "ts.stack([ts.ops.dropout(x, 0.5), ts.ops.dropout(x, 0.5)])")
    (a, b), traced = run(text, MANY, x=x, p=0.0, n=0, seed=3)
    assert 0.4 < (a != b).mean() < 0.6
    assert [p.name for p in traced.function.parameters] == ["x", "p", "n", "seed"]


def test_a_parameter_called_seed_is_not_the_hidden_one():
    text = DROPOUT.replace("n: int", "seed: int").format("f32", "ts.ops.dropout(x, 0.5) * seed")
    traced = trace(text, MANY)
    assert traced.collected.seed == "seed_"


def test_dropout_of_probability_0_is_the_identity():
    traced = trace(DROPOUT.format("bf16", "ts.ops.dropout(x, 0.0)"), MANY)
    assert [op.name for op in traced.function.body.ops] == ["return"] and traced.collected.seed is None


@pytest.mark.parametrize("p", ["1.0", "-0.1", "1.5", "1"])
def test_dropout_refuses_other_probabilities(p):
    text = DROPOUT.format("f32", f"ts.ops.dropout(x, p={p}, seed=0)")
    refused("TS403", p, "[0, 1)", "dropout(x)", text=text, static=MANY)


def test_errors_of_dropout():
    refused("TS203", "'p' takes one number", text=DROPOUT.format("f32", "ts.ops.dropout(x, x)"), static=MANY)
    refused("TS203", "'seed' takes an integer", text=DROPOUT.format("f32", "ts.ops.dropout(x, .5, p)"), static=MANY)
    refused("TS204", "'x'", "i32", text=DROPOUT.format("i32", "ts.ops.dropout(x, .5)"), static=MANY)
    (guard,) = trace(DROPOUT.format("f32", "ts.ops.dropout(x, p)"), MANY).collected.guards
    guard.check(0.999)
    for value in (1.0, -0.25):
        with pytest.raises(TesseraError, match=r"'p' is .*\[0, 1\).*dropout") as caught:
            guard.check(value)
        assert caught.value.code == "TS403"
