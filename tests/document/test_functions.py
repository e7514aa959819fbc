"""The thirteen functions of the document, verbatim, through the public API: right on every lane, close to models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera.frontend.document import execute, parse_document, read_document
from tests.document import allowances, models
from tests.document.calls import (
    PRELUDE,
    Given,
    backend,
    given,
    needs_compiler,
    needs_gpu,
    to_array,
    to_values,
)
from tests.document.cases import CASES, SIGNATURES, Case, ListOf, arguments_of
from tests.suite import DOCUMENT, load

ARRAYS = [case for name, cases in CASES.items() if name != "distance_scaling_function" for case in cases]
# What takes most of the time: of their large cases those of one S run, so each D once, and all with -m full.
COSTLY = {
    "parallel_delta_aggregation_kernel",
    "fused_delta_gating_kernel",
    "delta_layer_with_checkpointing",
    "distributed_gdn_layer",
}


def is_costly(case: Case) -> bool:
    d, s, b = (case.dims.get(name, 1) for name in "DSB")
    return case.function in COSTLY and b * s * d * d > (1 << 18) and s != 129


def cases_of_a_suite(cases: list[Case]) -> list[Any]:
    return [pytest.param(c, id=c.id, marks=[pytest.mark.full] * is_costly(c)) for c in cases]


def assert_close(case: Case, result: np.ndarray) -> None:
    """Compares a result with the independent model: every element, and all together."""
    arguments, ambient = arguments_of(case)
    found = to_values(result)
    if case.training:
        ambient["mask"] = (found != 0).astype(np.float64)  # what was kept: no probability of these cases is 0
    expected = models.MODELS[case.function](**arguments, **ambient)
    assert found.shape == expected.shape
    finite = np.isfinite(expected)
    assert np.array_equal(found[~finite], expected[~finite], equal_nan=True)
    values = arguments | ambient
    allowed = np.broadcast_to(allowances.allowance(case.function, values, expected), expected.shape)
    error = np.abs(found - expected)
    assert np.all(error[finite] <= allowed[finite]), float(np.max((error / allowed)[finite]))
    if finite.any():
        limit = allowances.rms_limit(case.function, values)
        assert rms(error[finite]) <= limit * (rms(expected[finite]) + 1e-8)


def rms(x: np.ndarray) -> float:
    largest = float(np.max(np.abs(x), initial=0.0)) or 1.0
    return largest * float(np.sqrt(np.mean(np.square(x / largest)))) if x.size else 0.0


# ---- every case ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases_of_a_suite(ARRAYS))
def test_every_case_is_right_and_close_to_its_model(case):
    call = given(case)
    result = call.call("interpret")
    comparison = call.comparison(result)
    assert comparison.ok, comparison
    assert_close(case, result)


@pytest.mark.parametrize("case", CASES["distance_scaling_function"], ids=lambda case: case.id)
def test_the_distance_scale_is_a_python_number(case):
    distance = case.scalars["layer_distance"]
    result = load(case.function)(distance)
    assert type(result) is float
    assert result == pytest.approx(models.distance_scaling_function(distance), rel=2**-23)


# ---- a sample on the other lanes -------------------------------------------------------------------------------------

SHAPES = [(16, 129, 1, 8), (60, 150, 1, 1), (64, 127, 3, 3), (128, 1, 33, 1), (256, 1, 1, 0)]  # D, S, B, N
HEIGHTS = [(16, 150, 1, 1), (16, 127, 3, 1), (16, 1, 33, 1), (16, 129, 1, 1)]  # of one program
LEAST_N = {"distributed_gdn_layer": 1, "mixed_precision_gdn_layer": 1, "optimized_delta_memory_access": 2}


def sampled(function: str, shapes: list[tuple[int, int, int, int]]) -> list[Case]:
    signature = SIGNATURES[function]
    names = {axis for spec in signature.values() if spec is not None for axis in _shape(spec)}
    found = []
    for d, s, b, n in shapes:
        n = max(n, LEAST_N.get(function, 0))
        b = {1: 2, 3: 6, 33: 34}[b] if function == "distributed_gdn_layer" else b
        sizes = {"B": b, "S": s, "D": d, "G": 16 if "D" in names else d}
        dims = {name: size for name, size in sizes.items() if name in names}
        if any(isinstance(spec, ListOf) for spec in signature.values()):
            dims |= {"N": n, "L": n + 1}
        found.append(Case(function, dims, {"layer_distance": 2} if "layer_distance" in signature else {}))
    return found


def _shape(spec: Any) -> tuple[Any, ...]:
    return spec.element.shape if isinstance(spec, ListOf) else spec.shape


FUNCTIONS = [name for name in CASES if name != "distance_scaling_function"]
SAMPLE = [case for name in FUNCTIONS for case in sampled(name, SHAPES)]
SMALL = [case for name in FUNCTIONS for case in sampled(name, HEIGHTS)]


def plan_of(call: Given) -> np.ndarray:
    """The launches of a function's plan, or the kernel itself, on the interpreter of kernels."""
    return call.call("interpret") if call.is_kernel else call.interpreted_plan()[0]


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.id)
def test_the_kernels_of_a_plan_are_right(case):
    call = given(case)
    result = plan_of(call)
    assert call.comparison(result).ok, call.comparison(result)
    assert_close(case, result)


# A transformer layer has fifteen programs, made for the powers of two that divide S and B; compiling others takes long.
LAYERS = {"delta_layer_with_checkpointing", "distributed_gdn_layer"}
QUICK = [case for case in SMALL if case.function not in LAYERS or case.dims["S"] == 127]


@needs_compiler
@pytest.mark.parametrize(
    "case",
    [*QUICK, *(pytest.param(c, marks=pytest.mark.full) for c in (*SMALL, *SAMPLE) if c not in QUICK)],
    ids=lambda case: case.id,
)
def test_the_emitted_cuda_has_the_bits_of_the_plan(case):
    call = given(case)
    result = call.call("emulate")
    if case.function not in LAYERS:  # the row sums of their attention are deferred, which is not exact (`defer_sums`)
        assert result.tobytes() == plan_of(call).tobytes()
    comparison = call.comparison(result)
    assert comparison.ok, comparison


@pytest.mark.parametrize("case", [*SMALL, *SAMPLE], ids=lambda case: case.id)
class TestOnAGpu:
    pytestmark = needs_gpu

    def test_a_gpu_is_right(self, case):
        call = given(case)
        result = call.call("cuda")
        comparison = call.comparison(result)
        assert comparison.ok, comparison
        assert_close(case, result)


# ---- equalities between functions ------------------------------------------------------------------------------------


def ulp_of(x: np.ndarray) -> np.ndarray:
    """The distance of neighbours of bf16 at x."""
    return np.exp2(np.floor(np.log2(np.maximum(np.abs(x), 2.0**-126))) - 7)


@pytest.mark.parametrize("d, s, distance", [(16, 129, 1), (60, 20, 5), (128, 127, 0), (64, 150, -3), (256, 20, 64)])
def test_the_kernel_is_the_tail_of_the_connection(d, s, distance):
    case = Case("delta_connection", {"B": 3, "S": s, "D": d}, {"layer_distance": distance})
    call = given(case)
    whole = to_values(call.call("interpret"))
    source, target = (to_values(call.arguments[name]) for name in ("x_source", "x_target"))
    delta = to_array(models.round_to(target - source, "bf16"), "bf16")
    with backend("interpret"):
        tail = to_values(load("gating_function_kernel")(delta, call.arguments["gate_params"], distance))
    assert np.all(np.abs(tail - whole) <= 2 * ulp_of(np.maximum(np.abs(tail), np.abs(whole))))


@pytest.mark.parametrize("d, s, n", [(16, 129, 3), (60, 20, 8), (64, 20, 1), (128, 9, 3), (16, 20, 0)])
def test_the_three_aggregations_are_one_function(d, s, n):
    """The function rounds to bf16 once more per layer than the kernels: up to 6e-2 where results are about 8."""
    dims = {"B": 1, "S": s, "D": d, "N": n, "L": n + 1}
    call = given(Case("multi_scale_delta_aggregation", dims, magnitude=4.0))
    arrays = list(call.arguments.values())
    first = call.call("interpret")
    assert call.comparison(first).ok
    kernels = []
    for name in ("parallel_delta_aggregation_kernel", "fused_delta_gating_kernel"):
        renamed = dict(zip(SIGNATURES[name], arrays, strict=True))
        other = Given(Case(name, dims), renamed, call.store)
        kernels.append(other.call("interpret"))
        assert other.comparison(kernels[-1]).ok
    assert kernels[0].tobytes() == kernels[1].tobytes()
    expected = to_values(kernels[0])
    difference = np.abs(to_values(first) - expected)
    assert np.all(difference <= 6e-2 * np.maximum(np.max(np.abs(expected), initial=0.0) / 8, 1))


@pytest.mark.parametrize("s", [1, 128, 129, 1030])
def test_tiles_of_the_sequence_are_a_loop_over_connections(s):
    call = given(Case("optimized_delta_memory_access", {"B": 1, "S": s, "D": 16, "N": 3}))
    tiled = to_values(call.call("interpret"))
    layers, gates = call.arguments["layer_activations"], call.arguments["gate_parameters"]
    with backend("interpret"):
        parts = [to_values(load("delta_connection")(layers[i - 1], layers[i], gates[i], 1)) for i in (1, 2)]
    assert np.array_equal(tiled, models.round_to(parts[0] + parts[1], "bf16"))


SCALED = """
@ts.function
def scaled(x: Tensor["N", ts.f32], layer_distance: int):
    return ts.multiply(x, distance_scaling_function(layer_distance))

@ts.function
def scaled_by_op(x: Tensor["N", ts.f32], layer_distance: int):
    return ts.multiply(x, ts.ops.distance_scaling(layer_distance))
"""


@pytest.fixture(scope="module")
def scaled():
    """Functions that use the document's scale, and the op of its name, at a distance that the call gives."""

    prelude = {**PRELUDE, "distance_scaling_function": load("distance_scaling_function")}
    return execute(parse_document("scaled.py", SCALED), prelude)


@pytest.mark.parametrize("lane", ["interpret", pytest.param("emulate", marks=needs_compiler)])
def test_the_scale_of_the_document_and_the_op_are_one(scaled, lane):
    ones = np.ones(4, np.float32)
    with backend(lane):
        for distance in range(65):
            exact = math.exp(-0.1 * distance)
            assert load("distance_scaling_function")(distance) == pytest.approx(exact, rel=1e-6)
            assert ts.ops.distance_scaling(distance) == pytest.approx(exact, rel=1e-6)
            for name in ("scaled", "scaled_by_op"):
                np.testing.assert_allclose(scaled[name](ones, distance), exact, rtol=1e-6)


def test_the_distributed_layer_is_its_body_without_a_mesh():
    """Logical devices that take turns change no bit: neither of the gathered copies nor of the shares of the batch."""
    lines = read_document(DOCUMENT).blocks[4].text.splitlines()
    text = "\n".join(lines[: next(i for i, line in enumerate(lines) if line.startswith("@ts.distribute"))])
    body = "\n".join(lines[len(text.splitlines()) :])
    for taken, instead in (
        ("@ts.distribute(mesh=mesh)", "@ts.function"),
        ('dist.shard(x, axis=0, mesh_axis="dp")', "x"),
        ("with dist.device_assignment(mp_rank):", "if True:"),
        ('delta_contrib = dist.all_gather(delta_contrib, axis="mp")', "pass"),
    ):
        assert body.count(taken) == 1
        body = body.replace(taken, instead)

    prelude = {**PRELUDE, "delta_connection": load("delta_connection")}
    alone = execute(parse_document("alone.py", text + "\n" + body), prelude)["distributed_gdn_layer"]
    for b, s, d, n in ((2, 20, 16, 3), (6, 9, 60, 1), (2, 5, 128, 8)):
        call = given(Case("distributed_gdn_layer", {"B": b, "S": s, "D": d, "N": n}))
        with backend("interpret"), call.setting():
            single = alone(**call.arguments)
        assert call.call("interpret").tobytes() == single.tobytes()
