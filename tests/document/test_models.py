"""The models, by identities that the meaning of the document gives; and that the tables of cases are what they say."""

from __future__ import annotations

import ast
import functools
import inspect
import math
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.document import cases, models
from tests.document.cases import AMBIENT, CASES, ERRORS, SIGNATURES, Case, SameAs, T, arguments_of
from tests.document.models import MODELS, Array, round_to

DOCUMENT = Path("examples/gdn/gdn_part1.md")
ALL = [case for of_function in CASES.values() for case in of_function]
AGGREGATIONS = [case.dims for case in CASES["multi_scale_delta_aggregation"]]


def close(a: Array, b: Array) -> None:
    """Equal up to the order of float64 sums."""
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * max(1.0, float(np.max(np.abs(b), initial=0))))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return round_to(scale * np.random.default_rng(seed).standard_normal(shape), "bf16")


def representable(x: Array, dtype: str) -> bool:
    return np.array_equal(x, round_to(x, dtype), equal_nan=True)


# Rounding


def values_of(storage: Any) -> Array:
    """All values of a dtype in the order of their bits: first the positive ones, rising."""
    bits = 8 * np.dtype(storage).itemsize
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.arange(2**bits).astype(f"uint{bits}").view(storage).astype(np.float64)


@pytest.mark.parametrize("dtype, storage", [("bf16", ml_dtypes.bfloat16), ("fp8_e4m3", ml_dtypes.float8_e4m3fn)])
def test_rounding_keeps_every_value_of_the_dtype(dtype, storage):
    values = values_of(storage)
    if dtype == "fp8_e4m3":
        assert np.nanmax(values) == models.FP8_LARGEST
    assert representable(values[~np.isinf(values)], dtype)


@pytest.mark.parametrize("dtype, storage", [("bf16", ml_dtypes.bfloat16), ("fp8_e4m3", ml_dtypes.float8_e4m3fn)])
def test_rounding_is_to_nearest_even_and_happens_once(dtype, storage):
    table = values_of(storage)
    table = table[np.isfinite(table) & ~np.signbit(table)]
    low, high = table[:-1], table[1:]
    middle = (low + high) / 2
    even = np.where(np.arange(len(low)) % 2 == 0, low, high)
    for sign in (1.0, -1.0):
        assert np.array_equal(round_to(sign * middle, dtype), sign * even)
        assert np.array_equal(round_to(sign * np.nextafter(middle, np.inf), dtype), sign * high)
        assert np.array_equal(round_to(sign * np.nextafter(middle, -np.inf), dtype), sign * low)


def test_fp8_saturates_and_keeps_nan_and_subnormals():
    given = np.array([447, 500, -1e300, np.inf, -np.inf, np.nan, 2.0**-9, 2.0**-10, 1.01 * 2.0**-10, 0.0])
    expected = np.array([448, 448, -448, 448, -448, np.nan, 2.0**-9, 0, 2.0**-9, 0])
    assert np.array_equal(round_to(given, "fp8_e4m3"), expected, equal_nan=True)


def test_bf16_overflows_to_infinity():
    limit = 2.0**128 - 2.0**119  # half a step above the largest value, a tie whose even neighbour is infinity
    given = np.array([limit, np.nextafter(limit, 0), -1e300, math.inf])
    assert round_to(given, "bf16").tolist() == [math.inf, 2.0**128 - 2.0**120, -math.inf, math.inf]


# Operations


def test_sigmoid_is_symmetric_and_never_overflows():
    x = np.array([-1e300, -800.0, -1.0, 0.0, 1.0, 800.0, 1e300, np.inf, -np.inf])
    with np.errstate(over="raise"):
        assert np.allclose(models.sigmoid(x) + models.sigmoid(-x), 1)
    assert models.sigmoid(x)[[0, 3, 7, 8]].tolist() == [0, 0.5, 1, 0]
    close(models.sigmoid(np.array([0.3])), 1 / (1 + np.exp(np.array([-0.3]))))


def test_rows_of_softmax_sum_to_one():
    x = np.concatenate([normal(5, 40, scale=4), normal(5, 40, scale=1e30), np.zeros((1, 40))])
    gates = models.softmax(x)
    close(gates.sum(-1), np.ones(11))
    close(models.softmax(x[:5] + 3), gates[:5])
    assert np.array_equal(models.softmax(x, axis=0), models.softmax(x.T).T)


def test_l2_norm_neither_overflows_nor_vanishes():
    rows = np.array([[3.0, -4], [3e200, 4e200], [3e-200, 4e-200], [0, 0], [3e37, -4e37], [math.inf, 1], [math.nan, 0]])
    expected = [5, math.inf, 5e-200, 0, 5e37, math.inf, math.nan]
    np.testing.assert_allclose(models.l2_norm(rows, axis=-1), expected, rtol=1e-15)
    assert models.l2_norm(rows, axis=-1, keepdims=True).shape == (7, 1)
    whole = models.l2_norm(normal(3, 4, 5))
    assert whole.shape == () and math.isclose(whole, np.linalg.norm(normal(3, 4, 5).ravel()))
    assert math.isinf(models.l2_norm(np.full(1600, 1e37))) and math.isfinite(models.l2_norm(np.full(1024, 1e37)))


def test_the_three_rules_of_mlp_gating():
    x, weight = normal(2, 3, 5), normal(7, 4, seed=1)
    hidden = x[..., 1:] + x[..., :1]
    close(models.mlp_gating(x, weight), np.einsum("bsg,dg->bsd", hidden / (1 + np.exp(-hidden)), weight))
    close(models.mlp_gating(normal(2, 3, 7), weight), normal(2, 3, 7) @ weight)
    with pytest.raises(ValueError, match=r"\(2, 3, 6\).*\(7, 4\)"):
        models.mlp_gating(normal(2, 3, 6), weight)
    square = normal(5, 4, seed=2)  # D = G + 1: the tied rule
    assert models.mlp_gating(x, square).shape == (2, 3, 5)
    assert models.mlp_gating(normal(2, 3, 5), square[:, :3].copy()).shape == (2, 3, 3)  # the plain rule again


@pytest.mark.parametrize(
    "features, heads",
    [(16, 1), (60, 1), (64, 1), (127, 1), (128, 2), (130, 2), (192, 3), (200, 2), (256, 4), (1024, 16)],
)
def test_number_of_heads(features, heads):
    assert models.number_of_heads(features) == heads


def test_a_transformer_layer_without_weights_is_the_identity():
    x = normal(2, 5, 16)
    assert np.array_equal(models.transformer_layer(x, np.zeros((16, 192))), x)


@pytest.mark.parametrize("features, causal", [(16, False), (128, False), (128, True)])
def test_transformer_layer_position_by_position(features, causal):
    x, params = normal(2, 5, features), normal(features, 12 * features, seed=1, scale=features**-0.5)
    columns = np.split(params, [features * i for i in (1, 2, 3, 4, 8)], axis=1)
    wq, wk, wv, wo, w1, w2_transposed = columns
    heads, width = features // min(features, 64), min(features, 64)
    expected = np.empty_like(x)
    for b, s in np.ndindex(2, 5):
        unit = [row / math.sqrt(float(row @ row) / features + 1e-6) for row in x[b, : s + 1 if causal else 5]]
        attended = np.zeros(features)
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = [float((unit[s] @ wq)[part] @ (row @ wk)[part]) / math.sqrt(width) for row in unit]
            powers = [math.exp(score) for score in scores]
            for power, row in zip(powers, unit, strict=True):
                attended[part] += power / sum(powers) * (row @ wv)[part]
        middle = x[b, s] + attended @ wo
        hidden = middle / math.sqrt(float(middle @ middle) / features + 1e-6) @ w1
        cubic = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
        expected[b, s] = middle + w2_transposed @ (hidden / 2 * (1 + np.tanh(cubic)))
    close(models.transformer_layer(x, params, causal=causal), expected)


# Functions


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_every_case_gives_values_of_its_dtype(case):
    arguments, ambient = arguments_of(case)
    result = MODELS[case.function](**arguments, **ambient)
    if case.function == "distance_scaling_function":
        assert type(result) is float and 0 < result if case.scalars["layer_distance"] < 1000 else result < 1e-40
        return
    last = case.dims["D"] if "D" in case.dims else case.dims["G"]
    assert result.shape == (case.dims["B"], case.dims["S"], last)
    assert representable(result, "fp8_e4m3" if case.function == "mixed_precision_gdn_layer" else "bf16")
    hurt = 1 if case.spots else 0
    assert np.count_nonzero(~np.isfinite(result).all(-1)) == hurt


@pytest.mark.parametrize("case", CASES["delta_connection"], ids=lambda case: case.id)
def test_the_kernel_is_the_tail_of_delta_connection(case):
    given, _ = arguments_of(case)
    delta = round_to(given["x_target"] - given["x_source"], "bf16")
    kernel = models.gating_function_kernel(delta, given["gate_params"], given["layer_distance"])
    np.testing.assert_allclose(kernel, models.delta_connection(**given), rtol=2**-7, atol=1e-35)
    exact = models.gating_function_kernel(delta, given["gate_params"], given["layer_distance"], result=None)
    np.testing.assert_allclose(exact, models.delta_connection(**given, result=None), rtol=1e-9, atol=1e-35)


def test_delta_connection_by_hand():
    source, target = np.array([[[1.0, -2.0]]]), np.array([[[3.0, -1.0]]])
    weight = np.array([[0.5, 2.0], [-1.0, 0.25]])
    logits = np.array([2 * 0.5 - 1, 2 * 2 + 0.25]) * math.exp(-0.3)
    expected = np.array([2.0, 1.0]) / (1 + np.exp(-logits))
    close(models.delta_connection(source, target, weight, 3, result=None)[0, 0], expected)
    assert np.array_equal(models.delta_connection(source, target, 0 * weight, 3), (target - source) / 2)


def test_far_layers_tend_to_half_the_delta():
    given, _ = arguments_of(Case("delta_connection", cases.SMALL, {"layer_distance": 400}))
    half = (given["x_target"] - given["x_source"]) / 2
    np.testing.assert_allclose(models.delta_connection(**given, result=None), half, rtol=0.01)


def adaptive(**changes: Any) -> tuple[dict[str, Any], Array]:
    """Arguments of F3, and the gates that it multiplies a delta without zeros by."""
    case = Case("adaptive_gating_mechanism", {**cases.SMALL, "G": 16}, {"layer_distance": 3, "temperature": 1.0})
    given, _ = arguments_of(case)
    given = {**given, **{name: change(given[name]) for name, change in changes.items()}}
    assert np.all(given["delta"] != 0)
    return given, models.adaptive_gating_mechanism(**given, result=None) / given["delta"]


def test_adaptive_gates_sum_to_the_scale():
    _, gates = adaptive()
    close(gates.sum(-1), np.full(gates.shape[:2], math.exp(-0.3)))


def test_at_infinite_temperature_adaptive_gates_are_equal():
    _, gates = adaptive(temperature=lambda _: 1e12)
    np.testing.assert_allclose(gates, math.exp(-0.3) / 60, rtol=1e-9)


def test_adaptive_gates_see_the_norm_of_delta_and_the_context():
    _, gates = adaptive()
    _, longer = adaptive(delta=lambda x: 2 * x)
    _, flipped = adaptive(delta=lambda x: -x)
    _, elsewhere = adaptive(context_vector=lambda x: x[..., ::-1])
    assert np.max(np.abs(longer - gates)) > 1e-3 and np.max(np.abs(elsewhere - gates)) > 1e-3
    close(flipped, gates)


def test_a_negative_temperature_inverts_the_order():
    _, gates = adaptive()
    _, inverted = adaptive(temperature=lambda t: -t)
    assert np.array_equal(np.argmax(gates, -1), np.argmin(inverted, -1))


@pytest.mark.parametrize("d", range(65))
def test_the_function_of_the_document_and_the_op_agree(d):
    assert models.distance_scaling_function(d) == pytest.approx(models.distance_scaling(d), rel=1e-15)
    assert models.distance_scaling(d) == pytest.approx(math.e ** (-d / 10), rel=1e-13)


@pytest.mark.parametrize("dims", AGGREGATIONS, ids=str)
def test_the_three_aggregations_are_one_function(dims):
    given, _ = arguments_of(Case("multi_scale_delta_aggregation", dims))
    values = list(given.values())
    expected = models.multi_scale_delta_aggregation(*values, result=None)
    close(models.parallel_delta_aggregation_kernel(*values, result=None), expected)
    close(models.fused_delta_gating_kernel(*values, result=None), expected)
    if not dims["N"]:
        assert not expected.any()


def test_aggregation_reads_the_last_column_of_the_weights_as_it_is():
    given, _ = arguments_of(Case("multi_scale_delta_aggregation", {**cases.SMALL_LIST, "L": 6}))
    weights = np.zeros((6, 6))
    weights[1, -1] = -3.0
    weights[2, 0] = weights[5, -1] = 7.0  # not read
    given["attention_weights"] = weights
    single = models.delta_connection(
        given["source_layers"][1], given["target_layer"], given["gate_networks"][1], 2, result=None
    )
    close(models.multi_scale_delta_aggregation(**given, result=None), -3 * single)


@pytest.mark.parametrize("n", [0, 3])
def test_the_checkpointed_layer_adds_the_aggregation_to_its_layer(n):
    given, ambient = arguments_of(
        Case("delta_layer_with_checkpointing", {"B": 2, "S": 7, "D": 128, "N": n, "L": n + 1})
    )
    layer = models.transformer_layer(given["x"], given["layer_params"])
    result = models.delta_layer_with_checkpointing(**given, **ambient)
    if n == 0:
        assert np.array_equal(result, round_to(layer, "bf16"))
    total = models.multi_scale_delta_aggregation(
        given["previous_layers"], layer, given["gate_params"], ambient["attention_weights"], result=None
    )
    assert np.array_equal(result, round_to(layer + total, "bf16"))
    weights = np.zeros((n + 1, n + 1))
    assert np.array_equal(
        models.delta_layer_with_checkpointing(**given, attention_weights=weights), round_to(layer, "bf16")
    )


def test_the_distributed_layer_is_made_of_its_shares():
    given, ambient = arguments_of(Case("distributed_gdn_layer", {"B": 6, "S": 20, "D": 60, "N": 3}))
    whole = models.distributed_gdn_layer(**given, **ambient, result=None)
    for part in (slice(0, 3), slice(3, 6)):
        share = {
            "x": given["x"][part],
            "previous_layers": [layer[part] for layer in given["previous_layers"]],
            "gate_params": given["gate_params"],
        }
        close(models.distributed_gdn_layer(**share, **ambient, dp=1, result=None), whole[part])


def test_distances_in_the_distributed_layer_fall_to_one():
    given, ambient = arguments_of(Case("distributed_gdn_layer", {"B": 2, "S": 20, "D": 60, "N": 3}))
    layers = [previous if i == 0 else given["x"] for i, previous in enumerate(given["previous_layers"])]
    alone = models.delta_connection(layers[0], given["x"], given["gate_params"][0], 3, result=None)
    layer = models.transformer_layer(given["x"], ambient["transformer_params"])
    given["previous_layers"] = layers
    close(models.distributed_gdn_layer(**given, **ambient, result=None), layer + alone)


def test_the_distributed_layer_takes_deltas_to_its_input():
    given, ambient = arguments_of(Case("distributed_gdn_layer", {"B": 2, "S": 20, "D": 60, "N": 2}))
    given["previous_layers"] = [given["x"], given["x"]]
    layer = models.transformer_layer(given["x"], ambient["transformer_params"])
    assert np.array_equal(models.distributed_gdn_layer(**given, **ambient), round_to(layer, "bf16"))


@pytest.mark.parametrize("features", [16, 64, 1024])
def test_safe_delta_of_huge_tiny_and_zero_rows(features):
    rows = round_to(np.repeat(np.array([1e37, 1e-30, 0.0]), features).reshape(1, 3, features), "bf16")
    result = models.safe_delta_computation(np.zeros_like(rows), rows, result=None)
    norms = np.linalg.norm(result[0], axis=-1)
    np.testing.assert_allclose(norms[0], 1, rtol=1e-12)
    np.testing.assert_allclose(norms[1], float(rows[0, 1, 0]) * math.sqrt(features) / 1e-8, rtol=1e-12)
    assert not result[0, 2].any()


def test_safe_delta_has_the_length_of_its_scale():
    given, _ = arguments_of(Case("safe_delta_computation", cases.SMALL))
    result = models.safe_delta_computation(**given, scale=-2.5, result=None)
    np.testing.assert_allclose(np.linalg.norm(result, axis=-1), 2.5, rtol=1e-12)
    assert np.array_equal(np.sign(result), -np.sign(given["x_target"] - given["x_source"]))


def test_safe_delta_is_zero_where_the_norm_leaves_f32_and_propagates_what_is_not_a_number():
    target = round_to(np.full((1, 3, 60), 3e38), "bf16")
    target[0, 1] = 1.0
    target[0, 1, 4] = math.inf
    target[0, 2, 0] = math.nan
    result = models.safe_delta_computation(np.zeros_like(target), target)[0]
    assert not result[0].any()
    assert math.isnan(result[1, 4]) and np.isnan(result[2]).all()


def test_stable_gates_sum_to_one_until_dropout():
    x = normal(3, 20, 60, scale=5)
    gates = models.stable_gating_computation(x, 0.5, result=None)
    close(gates.sum(-1), np.ones((3, 20)))
    close(np.diff(np.log(gates)), np.diff(x) / 0.5)
    assert np.max(np.abs(models.stable_gating_computation(x, 0.5).sum(-1) - 1)) < 2**-8
    mask = (np.random.default_rng(0).random(x.shape) >= 0.5).astype(np.float64)
    dropped = models.stable_gating_computation(x, 0.5, 0.5, mask=mask, result=None)
    close(dropped, 2 * mask * gates)
    ones = np.ones_like(mask)
    assert np.array_equal(models.stable_gating_computation(x, 0.5, 0.0, mask=ones, result=None), gates)


@pytest.mark.parametrize("n", [1, 3])
def test_mixed_precision_rounds_where_the_listing_casts(n):
    given, _ = arguments_of(Case("mixed_precision_gdn_layer", {"B": 1, "S": 5, "D": 16, "N": n}))
    parts = [
        models.delta_connection(previous, given["x"], weight, 0, result="fp8_e4m3")
        for previous, weight in zip(given["previous_layers"], given["gate_params"], strict=True)
    ]
    expected = round_to(given["x"] + round_to(functools.reduce(np.add, parts), "fp8_e4m3"), "fp8_e4m3")
    assert np.array_equal(models.mixed_precision_gdn_layer(**given), expected)


def test_mixed_precision_saturates_and_keeps_nan():
    x, previous = np.full((1, 2, 16), 448.0), np.full((1, 2, 16), -448.0)
    weight = np.eye(16)
    assert (models.mixed_precision_gdn_layer(x, [previous], [weight]) == 448).all()
    assert (models.mixed_precision_gdn_layer(previous, [x], [-weight]) == -448).all()
    x[0, 1, 3] = math.nan
    result = models.mixed_precision_gdn_layer(x, [previous], [weight])
    assert (result[0, 0] == 448).all() and np.isnan(result[0, 1]).all()


def test_mixed_precision_casts_an_f32_layer_to_bf16_before_it_subtracts():
    x, previous = np.array([[[256.0, 0.0]]]), np.array([[[256.9, -1.0]]])  # bf16(256.9) is 256, so the first delta is 0
    weight = np.array([[0.0, 1000.0], [0.0, 0.0]])  # and does not shut the gate of the second
    assert models.mixed_precision_gdn_layer(x, [previous], [weight]).tolist() == [[[256, 0.5]]]


@pytest.mark.parametrize("case", CASES["optimized_delta_memory_access"], ids=lambda case: case.id)
def test_tiles_of_the_sequence_change_nothing(case):
    given, _ = arguments_of(case)
    layers, gates = given["layer_activations"], given["gate_parameters"]
    pairs = zip(layers[:-1], layers[1:], gates[1:], strict=True)
    untiled = sum(models.delta_connection(before, after, weight, 1, result=None) for before, after, weight in pairs)
    close(models.optimized_delta_memory_access(**given, result=None), np.asarray(untiled))


# Tables


@functools.cache
def signatures() -> dict[str, list[str]]:
    """Parameters of the functions of the document; `.global` is no Python, so it gets a suffix."""
    blocks = DOCUMENT.read_text().split("```python\n")[1:]
    found: dict[str, list[str]] = {}
    for block in blocks:
        for node in ast.parse(block.split("```")[0].replace(".global(", ".global_(")).body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = [argument.arg for argument in node.args.args]
    return found


def test_models_and_cases_take_the_parameters_of_the_document():
    assert list(MODELS) == list(SIGNATURES) == list(CASES) and set(MODELS) == set(signatures())
    for name, model in MODELS.items():
        documented = [parameter for parameter in signatures()[name] if parameter != "output"]
        parameters = inspect.signature(model).parameters.values()
        assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == documented, name
        assert list(SIGNATURES[name]) == documented, name
        assert set(AMBIENT.get(name, ())) <= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("name", [name for name in CASES if name != "distance_scaling_function"])
def test_cases_hold_every_value_and_the_named_pairs(name):
    dims = [case.dims for case in CASES[name]]
    batches = cases.B_SHARDED if name == "distributed_gdn_layer" else cases.B
    assert {d["B"] for d in dims} >= set(batches) and {d["S"] for d in dims} >= set(cases.S)
    if name == "stable_gating_computation":
        assert {(d["G"], d["S"]) for d in dims} >= set(product((1, 16, 59, 60, 255, 256), cases.S))
        return
    assert {(d["D"], d["S"]) for d in dims} >= set(product(cases.D, cases.S))
    if name == "adaptive_gating_mechanism":
        assert {(d["D"], d["G"]) for d in dims} >= {(d, g) for d in cases.D for g in (1, 16, d - 1, d)}
    if any("N" in d for d in dims):
        least = {"distributed_gdn_layer": (1, 3, 8), "mixed_precision_gdn_layer": (1, 3, 8)}
        numbers = (2, 3, 8) if name == "optimized_delta_memory_access" else least.get(name, cases.N)
        assert {(d["N"], d["B"]) for d in dims} >= set(product(numbers, batches))


@pytest.mark.parametrize("case", ALL[::7], ids=lambda case: case.id)
def test_inputs_are_values_of_their_dtypes_and_always_the_same(case):
    arguments, ambient = arguments_of(case)
    again = arguments_of(case)[0]
    for name, spec in SIGNATURES[case.function].items():
        values = arguments.get(name)
        for i, value in enumerate(values if isinstance(values, list) else [values]):
            if isinstance(spec, (T, cases.ListOf)):
                dtype = spec.dtype if isinstance(spec, T) else spec.element.dtype
                other = again[name][i] if isinstance(values, list) else again[name]
                assert isinstance(value, np.ndarray) and value.dtype == np.float64
                assert representable(value, dtype) and np.array_equal(value, other, equal_nan=True)
    assert set(AMBIENT.get(case.function, ())) <= set(ambient)


def test_titles_of_cases_and_errors_are_unique():
    assert len({case.id for case in ALL}) == len(ALL)
    assert len({case.id for case in ERRORS}) == len(ERRORS)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.id)
def test_an_error_is_a_call_that_could_be_made(error):
    assert error.words
    if error.source:
        tree = ast.parse(error.source.replace(".global(", ".global_("))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        parameters = [argument.arg for function in functions for argument in function.args.args]
    else:
        parameters = signatures()[error.function]
    assert [name for name in parameters if name != "output"] == [name for name in error.arguments if name != "output"]
    for value in error.arguments.values():
        assert not isinstance(value, SameAs) or value.parameter in error.arguments


def zeros(spec: Any) -> Any:
    if isinstance(spec, list):
        return [zeros(element) for element in spec]
    return np.zeros(tuple(map(int, spec.shape))) if isinstance(spec, T) else spec


@pytest.mark.parametrize(
    "error",
    [e for e in (*cases.LENGTHS, *cases.EMPTY, *cases.VALUES) if not (e.block or e.grid or "output" in e.arguments)],
    ids=lambda error: error.id,
)
def test_models_raise_where_a_call_must(error):
    arguments = {name: zeros(spec) for name, spec in error.arguments.items()}
    ambient = {name: zeros(spec) for name, spec in error.ambient.items()}
    if error.training:
        ambient["mask"] = np.ones_like(arguments["gating_input"])
    for name, spec in AMBIENT.get(error.function, {}).items():
        ambient.setdefault(name, np.zeros((16, 192) if spec.shape == ("D", "12D") else (3, 3)))
    with pytest.raises(ValueError):
        MODELS[error.function](**arguments, **ambient)
