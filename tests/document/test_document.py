"""The document as a whole: the command that runs it, and what must hold between the calls of its functions."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera.errors import TesseraError
from tessera.frontend.definition import FunctionDefinition
from tessera.frontend.document import load_document
from tessera.runtime import api, functions, launch
from tessera.runtime.parameters import ParameterStore, use_store
from tests.command_line import strict_json
from tests.document.calls import backend, given, needs_compiler, needs_gpu, to_array, to_values
from tests.document.cases import SIGNATURES, Case
from tests.pace import slower, within
from tests.suite import DOCUMENT

SECONDS = 60  # for the whole document without a GPU
KERNELS = {"gating_function_kernel", "parallel_delta_aggregation_kernel", "fused_delta_gating_kernel"}
SCALE = "distance_scaling_function"  # which Python computes
LANES = ["interpret", pytest.param("cuda", marks=needs_gpu)]
EVERY_LANE = ["interpret", pytest.param("emulate", marks=needs_compiler), pytest.param("cuda", marks=needs_gpu)]


@pytest.fixture
def document():
    """The document, loaded for this test alone, so that it sees what it traces and compiles itself."""
    return load_document(DOCUMENT)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return to_array(np.random.default_rng(seed).standard_normal(shape).astype(np.float16), "bf16")


def normals(number: int, *shape: int) -> list[np.ndarray]:
    return [normal(*shape, seed=seed) for seed in range(number)]


def refused(code: str, action: Any, *words: str) -> None:
    with pytest.raises(TesseraError) as caught:
        action()
    assert caught.value.code == code, caught.value
    assert all(word in caught.value.message for word in words), caught.value.message


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", LANES)
def test_the_whole_document_runs(tessera, lane):
    start = time.perf_counter()
    code, out, err = tessera("run", DOCUMENT, "--backend", lane)
    assert time.perf_counter() - start < SECONDS * slower()
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split()[:2] == ["kernel", "dims"]
    assert [row.split()[0] for row in rows] == list(SIGNATURES)
    assert all(row.endswith("ok") and f" {lane} " in row for row in rows), out


@pytest.mark.parametrize("lane", LANES)
def test_the_whole_document_as_json(tessera, lane):
    code, out, _ = tessera("run", DOCUMENT, "--backend", lane, "--json")
    result = strict_json(out)
    assert code == 0 and result["ok"] and result["lane"] == lane and "errors" not in result
    ran = {found["name"]: found for found in result["functions"]}
    assert list(ran) == list(SIGNATURES) and len(ran) == 13
    for name, found in ran.items():
        assert found["ok"] and found["lane"] == lane and "error" not in found
        assert [output["ok"] for output in found["outputs"]] == [True] and found["outputs"][0]["fraction_bad"] == 0
        # On the interpreter a function is one walk over its graph, and a kernel one launch.
        assert isinstance(found["kernels"], list)
        assert (len(found["kernels"]) > 0) == (name in KERNELS or lane != "interpret")
        assert all(isinstance(k["name"], str) and 1 <= len(k["grid"]) <= 3 for k in found["kernels"])


@needs_compiler
@pytest.mark.parametrize(
    "name, options",
    [
        ("delta_connection", ["--dims", "B=2,S=37,D=24"]),
        ("gating_function_kernel", ["--dims", "B=2,S=130,D=24"]),
        ("safe_delta_computation", ["--dims", "B=2,S=37,D=24"]),
        ("stable_gating_computation", ["--dims", "B=2,S=37,G=24"]),
        ("optimized_delta_memory_access", ["--dims", "B=1,S=140,D=24", "--arg", "layer_activations=2"]),
    ],
)
def test_one_function_on_the_emulated_gpu(tessera, name, options):
    code, out, err = tessera("run", f"{DOCUMENT}::{name}", "--backend", "emulate", "--json", *options)
    found = strict_json(out)
    assert code == 0 and err == ""
    assert found["name"] == name and found["ok"] and found["lane"] == "emulate" and found["arch"] == "sm_80"
    assert len(found["kernels"]) >= 1 and all(0 not in kernel["grid"] for kernel in found["kernels"])
    dims = dict(part.split("=") for part in options[1].split(","))
    assert {size: str(value) for size, value in found["dims"].items()} == dims


def test_what_an_author_should_know_is_said(tessera):
    _, out, _ = tessera("run", DOCUMENT, "--backend", "interpret", "--json")
    notes = {found["name"]: " ".join(found["notes"]) for found in strict_json(out)["functions"]}
    assert "coarsened" in notes["gating_function_kernel"]
    assert "'delta_contributions' are never used" in notes["delta_layer_with_checkpointing"]
    assert "hint" in notes["optimized_delta_memory_access"]


# ---- no silent fallback ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SIGNATURES if name != SCALE])
def test_a_gpu_that_is_not_there_is_an_error(name, document, monkeypatch):
    monkeypatch.setattr(launch, "device_count", lambda: 0)
    signature = SIGNATURES[name]
    dims = {"B": 2, "S": 8, "D": 16, "G": 16, "N": 2, "L": 3}
    call = given(Case(name, dims, {"layer_distance": 1} if "layer_distance" in signature else {}))
    with backend("cuda"):
        refused("TS505", lambda: document[name](**call.arguments))


@pytest.mark.parametrize("lane", EVERY_LANE)
def test_the_run_says_which_lane_it_took(lane, document):
    x, w = normal(2, 9, 16), normal(16, 16)
    connection, kernel = document["delta_connection"], document["gating_function_kernel"]
    with backend(lane):
        connection(x, x, w, 1)
        kernel(x, w, 1)
    runs: list[Any] = [functions.last_run(connection), api.last_run(kernel)]
    assert [run.lane for run in runs] == [lane, lane]
    assert [len(run.kernels) for run in runs] == [0 if lane == "interpret" else 1, 1]


# ---- training and evaluation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", EVERY_LANE)
def test_the_mode_of_a_call_is_that_of_its_time(lane, document):
    gating, x = document["stable_gating_computation"], normal(3, 20, 60)
    with backend(lane):
        before = gating(x)
        with ts.train():
            ts.manual_seed(1)
            first, second = gating(x), gating(x)
            ts.manual_seed(1)
            again = gating(x)
        after = gating(x)
        with ts.train():
            unchanged = gating(x, gating_dropout=0.0)
    assert before.tobytes() == after.tobytes() == unchanged.tobytes()
    assert first.tobytes() == again.tobytes() != second.tobytes()
    kept = to_values(first) != 0
    assert not kept.all() and np.all(to_values(before) != 0)
    np.testing.assert_allclose(to_values(first)[kept], to_values(before)[kept] / 0.9, rtol=2.0**-7)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.875])
def test_dropout_keeps_the_mean(p, document):
    gating, x = document["stable_gating_computation"], normal(8, 200, 64)
    with backend("interpret"):
        kept = to_values(gating(x))
        with ts.train():
            ts.manual_seed(3)
            dropped = to_values(gating(x, gating_dropout=p))
    # Of independent elements q, each 0 or q / (1 - p): the variance of the sum is that of all of them.
    deviation = math.sqrt(np.sum(kept**2) * p / (1 - p))
    assert abs(dropped.sum() - kept.sum()) < 5 * deviation + 2.0**-8 * kept.sum()
    share, spread = np.mean(dropped != 0), math.sqrt(p * (1 - p) / kept.size)
    assert abs(share - (1 - p)) < 5 * spread


@pytest.mark.parametrize("lane", EVERY_LANE)
def test_numbers_are_checked_at_every_call(lane, document):
    """A call that is like one which ran before is checked too, and a refused one leaves the function as it was."""
    gating, x = document["stable_gating_computation"], normal(2, 3, 16)
    adaptive, w = document["adaptive_gating_mechanism"], normal(16, 4)
    with backend(lane):
        first = gating(x, 0.5)
        refused("TS403", lambda: gating(x, 0.0), "'temperature' is 0.0")
        assert gating(x, 0.5).tobytes() == first.tobytes()
        with ts.train():
            gating(x, 1.0, 0.5)
            for p in (1.0, -0.1, 1.5, math.nan):
                refused("TS403", lambda p=p: gating(x, 1.0, p), f"'gating_dropout' is {p}", "[0, 1)")
        gating(x, 1.0, 1.5)  # not read in evaluation
        if lane == "interpret":  # five kernels, whose numbers are no other's business
            adaptive(x, x, w, 1)
            refused("TS403", lambda: adaptive(x, x, w, 1, temperature=0.0), "'temperature' is 0.0")
            adaptive(x, x, w, 1, temperature=-1.0)


# ---- what is compiled ------------------------------------------------------------------------------------------------


def test_a_thousand_distances_are_one_trace(document):
    connection, kernel = document["delta_connection"], document["gating_function_kernel"]
    x, w = normal(1, 2, 16), normal(16, 16)
    with backend("interpret"):
        found = {connection(x, normal(1, 2, 16, seed=1), w, distance).tobytes() for distance in range(1000)}
        for distance in range(20):
            kernel(x, w, distance)
    assert len(functions.state_of(connection).traces) == 1
    assert len(found) > 20  # they are not one result: gates go to a half as distances grow


@needs_compiler
def test_distances_and_lengths_are_one_program(document):
    connection, kernel = document["delta_connection"], document["gating_function_kernel"]
    w = normal(16, 16)
    with backend("emulate"):
        for distance, s in zip(range(25), (1, 2, 3, 7, 20) * 5, strict=True):
            connection(normal(1, s, 16), normal(1, s, 16, seed=1), w, distance)
            kernel(normal(1, s, 16), w, distance)
    (trace,) = functions.state_of(connection).traces
    (plan,) = trace._plans
    assert len(plan._programs) == 1
    programs = vars(kernel)["_runtime_state"]._programs
    assert [len(known) for known in programs.values()] == [1]


def test_distances_of_the_store_are_no_part_of_a_trace(document):
    """A parameter that is set between two calls is read by the second, which traces nothing."""
    safe, x = document["safe_delta_computation"], normals(2, 2, 5, 16)
    store = ParameterStore()
    with backend("interpret"), use_store(store):
        first = to_values(safe(*x))
        (key,) = store.keys()
        store[key] = -2.0
        second = to_values(safe(*x))
    np.testing.assert_array_equal(second, -2 * first)
    assert len(functions.state_of(safe).traces) == 1


def test_the_kernels_of_tiles_do_not_depend_on_the_sequence(document):
    """Two tiles or eight: the slices are merged, so that a longer sequence is a larger grid."""
    function = document["optimized_delta_memory_access"]
    assert isinstance(function, FunctionDefinition)
    launches = []
    for s in (256, 1000):
        made = functions.state_of(function).prepare((normals(3, 1, s, 16), normals(3, 16, 16)), {})
        launches.append([step.kernel.name for step in made.state.plan(made.dims).steps(made.dims)])
    assert len(launches[0]) == len(launches[1]) <= 2


def test_a_layer_computes_each_connection_once(document):
    """What `delta_contributions` collects is dropped: as many gates as sources, and the same result without them."""
    layer, d = document["delta_layer_with_checkpointing"], 16
    for n in (0, 1, 3):
        arguments = (normal(1, 4, d), normals(n, 1, 4, d), normal(d, 12 * d), normals(n, d, d))
        made = functions.state_of(layer).prepare(arguments, {})
        ops = [op.name for op in made.state.trace.function.body.walk()]
        assert ops.count("sigmoid") == n


@pytest.mark.parametrize("n", [1, 64])
def test_many_layers_are_traced_in_seconds(n, document):
    aggregation = document["multi_scale_delta_aggregation"]
    arguments = (normals(n, 1, 3, 16), normal(1, 3, 16), normals(n, 16, 16), normal(n + 1, n + 1))
    with within(10):
        functions.state_of(aggregation).prepare(arguments, {})
