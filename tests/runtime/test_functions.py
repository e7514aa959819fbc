"""Calls of functions on the CPU lanes: what is traced, planned and used again, what is checked, and what comes back."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import Tensor
from tessera.config import Config
from tessera.errors import SourceError
from tessera.runtime import emulator, function_state, functions, launch
from tessera.runtime.function_plans import emulate_plan, interpret_plan
from tessera.runtime.parameters import ParameterStore, use_store
from tests.raising import raises

bf16 = ml_dtypes.bfloat16
needs_compiler = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")
lanes = pytest.mark.parametrize("lane", ["interpret", pytest.param("emulate", marks=needs_compiler)])


@pytest.fixture
def backend(monkeypatch):
    """Chooses the lane of the calls in a test."""

    def choose(name):
        monkeypatch.setattr(functions, "config", lambda: replace(Config(), backend=name))

    choose("interpret")
    return choose


@pytest.fixture
def traced(monkeypatch):
    """The names of the functions that were traced, a name per trace."""
    names, real = [], function_state.trace_function

    def trace(definition, *arguments):
        names.append(definition.name)
        return real(definition, *arguments)

    monkeypatch.setattr(function_state, "trace_function", trace)
    return names


def make_gated():
    @ts.function
    def gated(
        x: Tensor["B", "S", "D", ts.bf16], w: Tensor["D", "D", ts.bf16], distance: int, t: float = 1.0
    ) -> Tensor["B", "S", "D", ts.bf16]:
        return x * ts.sigmoid(ts.gemm(x, w) * ts.exp(-0.1 * distance) / t)

    return gated


def make_total():
    """A sum of a list of open tensors, weighted by elements of another one; and the sum of that."""

    @ts.function
    def total(xs: list[Tensor], y: Tensor, a: Tensor):
        result = y
        for i, x in enumerate(xs):
            result = result + x * a[i, -1]
        return result, ts.sum(result)

    return total


def normal(*shape, dtype=bf16, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def gated_model(x, w, distance, t=1.0):
    x, w = x.astype(np.float64), w.astype(np.float64)
    return x / (1 + np.exp(-(x @ w) * np.exp(-0.1 * distance) / t))


def states(definition):
    return functions.state_of(definition).traces


def plans(definition):
    return [plan for state in states(definition) for plan in state._plans]


# ---- answers -----------------------------------------------------------------------------------------------------


@lanes
def test_a_function_of_tensors_and_numbers(backend, lane):
    backend(lane)
    gated, x, w = make_gated(), normal(2, 37, 24), normal(24, 24, seed=1)
    for arguments in ({"distance": 3}, {"distance": -2, "t": 0.5}):
        result = gated(x, w, **arguments)
        assert isinstance(result, np.ndarray) and result.dtype == bf16 and result.shape == (2, 37, 24)
        np.testing.assert_allclose(result.astype(float), gated_model(x, w, **arguments), rtol=0.02, atol=0.02)
    run = functions.last_run(gated)
    assert run.lane == lane and len(run.kernels) == (1 if lane == "emulate" else 0)


@lanes
def test_lists_open_tensors_and_results_of_no_axes(backend, lane):
    backend(lane)
    total = make_total()
    xs, y, a = [normal(4, 5, seed=i) for i in range(3)], normal(4, 5, seed=9), normal(4, 4, dtype=np.float32)
    result, whole = total(xs, y, a)
    expected = y.astype(float) + sum(x.astype(float) * a[i, -1] for i, x in enumerate(xs))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert whole.shape == () and whole.dtype == np.float32 and abs(whole - expected.sum()) < 1e-4
    if lane == "emulate":
        run = functions.last_run(total)
        assert len(run.kernels) > 1 and run.workspace > 0


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 37, 24), (3, 5, 7)])
def test_kernels_of_a_plan_interpreted_and_emulated_are_equal(shape):
    @ts.function
    def layer(x: Tensor["B", "S", "D", ts.bf16], w: Tensor["D", "D", ts.bf16], scale: float):
        y = ts.gemm(x, w) * scale
        return y, ts.transpose(y), ts.max(y, axis=1), ts.concatenate([y, x], axis=1)

    state = functions.state_of(layer)
    x, w = normal(*shape), normal(shape[-1], shape[-1], seed=1)
    made = state.prepare((x, w, 0.25), {})
    plan = made.state.plan(made.dims)
    found = []
    for run in (interpret_plan, lambda *given: emulate_plan(*given, "sm_80"), lambda *g: emulate_plan(*g, "sm_80", 7)):
        results = plan.empty_results(made.dims)
        given = {**functions.host_arguments(made), **dict(zip(plan.result_roots(), results, strict=True))}
        run(plan, given, made.dims)
        found.append(results)
    for other in found[1:]:
        assert [array.tobytes() for array in other] == [array.tobytes() for array in found[0]]
    assert all(comparison.ok for comparison in functions.verify_results(made, found[0]).values())
    assert [array.shape for array in found[0]] == [
        shape, (shape[0], shape[2], shape[1]), (shape[0], shape[2]), (shape[0], 2 * shape[1], shape[2])
    ]  # fmt: skip


@lanes
def test_views_that_are_not_contiguous(backend, lane):
    backend(lane)
    gated, x, w = make_gated(), normal(2, 74, 24), normal(24, 48, seed=1)
    result = gated(x[:, ::2], w[:, 5:29], 1)
    copied = gated(x[:, ::2].copy(), w[:, 5:29].copy(), 1)
    assert result.flags.c_contiguous and result.tobytes() == copied.tobytes()


@lanes
def test_tensors_without_elements(backend, lane):
    backend(lane)
    gated, w = make_gated(), normal(24, 24)
    assert gated(normal(0, 5, 24), w, 1).shape == (0, 5, 24)
    assert gated(normal(2, 0, 24), w, 1).shape == (2, 0, 24)


@lanes
def test_a_result_is_never_an_argument(backend, lane):
    backend(lane)

    @ts.function
    def same(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
        return x

    x = normal(50, dtype=np.float32)
    result = same(x)
    assert not np.shares_memory(x, result) and result.tobytes() == x.tobytes()


class Exported:
    """An array of another library, which speaks DLPack only."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@lanes
def test_arrays_of_other_libraries(backend, lane):
    backend(lane)

    @ts.function
    def double(x: Tensor["N", ts.f32]):
        return x * 2

    x = normal(33, dtype=np.float32)
    np.testing.assert_array_equal(double(Exported(x)), 2 * x)


def test_numbers_alone_are_computed_by_python(traced):
    @ts.function
    def scaling(distance: int, rate: float = 0.1) -> float:
        return ts.ops.exp(-rate * distance)

    @ts.function
    def halved(distance: int) -> float:
        return scaling(distance) / distance

    result = scaling(3)
    assert type(result) is float and result == np.exp(-0.1 * 3) and scaling(np.int64(2), rate=1) == np.exp(-2.0)
    assert halved(2) == scaling(2) / 2 and not traced
    raises("TS403", lambda: halved(0), "halved(distance=0) divides by zero")
    raises("TS203", lambda: scaling(2.5), "'distance' takes an int")
    raises("TS601", lambda: scaling(), "scaling needs the argument 'distance'")


# ---- what is used again ----------------------------------------------------------------------------------------------


def test_numbers_and_sizes_are_arguments_of_one_trace(backend, traced):
    gated, w = make_gated(), normal(24, 24)
    for value in range(200):
        gated(normal(1, 2, 24), w, value, t=1.0 + value)
    for size in range(1, 20):
        gated(normal(1 + size % 3, size, 24), w, 1)
    assert traced == ["gated"]


@needs_compiler
def test_numbers_and_sizes_are_arguments_of_one_program(backend):
    backend("emulate")
    gated, w = make_gated(), normal(24, 24)
    for value in range(20):
        gated(normal(1, 2 + value, 24), w, value)
    (plan,) = plans(gated)
    assert len(plan._programs) == 1 and plan.plan.static == {"D": 24}
    gated(normal(1, 2, 16), normal(16, 16), 1)
    assert len(states(gated)) == 1 and len(plans(gated)) == 2


def test_lengths_ranks_and_dtypes_are_traces_of_their_own(backend, traced):
    total, a = make_total(), normal(4, 4, dtype=np.float32)
    for count, shape, dtype in ((1, (4, 5), bf16), (2, (4, 5), bf16), (1, (3, 4, 5), bf16), (1, (4, 5), np.float32)):
        for _ in range(2):
            xs = [normal(*shape, dtype=dtype, seed=i) for i in range(count)]
            assert total(xs, normal(*shape, dtype=dtype), a)[0].shape == shape
    assert len(traced) == 4


def test_sizes_of_one_are_traced_anew_where_they_broadcast(backend, traced):
    @ts.function
    def add(x: Tensor, y: Tensor):
        return x + y

    x, row = normal(4, 5, dtype=np.float32), normal(1, 5, dtype=np.float32, seed=1)
    np.testing.assert_array_equal(add(x, x), x + x)
    np.testing.assert_array_equal(add(x, row), x + row)
    np.testing.assert_array_equal(add(row, x), row + x)
    np.testing.assert_array_equal(add(row, row), row + row)
    np.testing.assert_array_equal(add(x[:3], row), x[:3] + row)
    assert len(traced) == 3
    raises("TS301", lambda: add(x, x[:3]))


def test_dims_that_the_code_decides_by(backend, traced):
    @ts.function
    def halves(x: Tensor["B", "S", ts.f32]):
        return x[:, x.shape[1] // 2 :]

    for batch, size in ((2, 6), (3, 6), (2, 9), (5, 9)):
        x = normal(batch, size, dtype=np.float32)
        np.testing.assert_array_equal(halves(x), x[:, size // 2 :])
    assert len(traced) == 2


def test_the_mode_is_part_of_a_trace(backend, traced):
    @ts.function
    def moded(x: Tensor["N", ts.f32]):
        return x * 2 if ts.is_training() else x

    x = normal(5, dtype=np.float32)
    np.testing.assert_array_equal(moded(x), x)
    with ts.train():
        np.testing.assert_array_equal(moded(x), 2 * x)
    np.testing.assert_array_equal(moded(x), x)
    assert len(traced) == 2


# ---- parameters that no call passes ------------------------------------------------------------------------------


@lanes
def test_parameters_of_the_store(backend, lane):
    backend(lane)

    @ts.function
    def scaled(x: Tensor["N", ts.f32]):
        return x * ts.ops.learnable_scale_parameter()

    x, store = normal(40, dtype=np.float32), ParameterStore()
    with use_store(store):
        np.testing.assert_array_equal(scaled(x), x)
        (key,) = store.keys()
        store[key] = bf16(0.5)
        np.testing.assert_array_equal(scaled(x), x / 2)
    with use_store(ParameterStore(strict=True)):
        raises("TS609", lambda: scaled(x), "learnable_scale_parameter")


@lanes
def test_seeds(backend, lane):
    backend(lane)

    @ts.function
    def dropped(x: Tensor["N", ts.f32]):
        return ts.ops.dropout(x, 0.5)

    x = np.ones(300, np.float32)
    with ts.train():
        ts.manual_seed(7)
        first, second = dropped(x), dropped(x)
        ts.manual_seed(7)
        again = dropped(x)
    assert first.tobytes() == again.tobytes() != second.tobytes()
    assert set(np.unique(first)) == {0.0, 2.0}


# ---- what is wrong with a call -----------------------------------------------------------------------------------


def test_wrong_arguments(backend):
    gated, x, w = make_gated(), normal(2, 3, 24), normal(24, 24)
    raises("TS302", lambda: gated(x, w[:, :20], 1), "D is 24 on axis 2 of 'x' but 20 on axis 1 of 'w'")
    raises("TS304", lambda: gated(x[0], w, 1), "'x' has 3 axes [B, S, D]", "[3, 24]")
    raises("TS204", lambda: gated(x.astype(np.float32), w, 1), "'x' must have dtype bf16", "f32")
    raises("TS203", lambda: gated(x, w, 1.5), "'distance' takes an int")
    raises("TS203", lambda: gated(x, 3, 1), "'w' is a tensor of bf16, but the number 3 was passed")
    raises("TS401", lambda: gated(x, w, 2**70), "does not fit 64 bits")
    raises("TS601", lambda: gated(x, w), "gated needs the argument 'distance' (it takes x, w, distance, t)")
    raises("TS601", lambda: gated(x, w, 1, temperature=2.0), "gated has no parameter 'temperature'")
    raises("TS601", lambda: gated(x, w, 1, 2.0, 3), "takes 4 arguments", "5 were given")
    raises("TS403", lambda: gated(x, w, 1, t=0.0), "'t' is 0.0, but it must not be 0")
    raises("TS403", lambda: gated(x, w, 1, 0), "'t' is 0.0")
    assert gated(x, w, 1).shape == x.shape


def test_wrong_lists(backend):
    @ts.function
    def first(xs: list[Tensor["N", "D", ts.f32]], y: Tensor["N", ts.f32]):
        return xs[0] + ts.reshape(y, (y.shape[0], 1))

    x, y = normal(4, 5, dtype=np.float32), normal(4, dtype=np.float32)
    raises("TS203", lambda: first(x, y), "'xs' is a list of tensors, but a ndarray was passed")
    raises("TS203", lambda: first(3, y), "'xs' is a list of tensors, but the number 3 was passed")
    raises("TS302", lambda: first([x, x[:3]], y), "on axis 0 of 'xs[0]' but 3 on axis 0 of 'xs[1]'")
    raises("TS204", lambda: first([x, x.astype(bf16)], y), "'xs[1]' must have dtype f32")
    raises("TS203", lambda: first([x, 2.0], y), "'xs[1]' is a tensor of f32")
    assert first((x, x), y).shape == (4, 5)


def test_wrong_open_tensors(backend):
    total, x, a = make_total(), normal(4, 5), normal(4, 4, dtype=np.float32)
    raises("TS203", lambda: total([x], 5, a), "'y' is a tensor, but the number 5 was passed")
    raises("TS203", lambda: total([x, "x"], x, a), "'xs[1]' is a tensor, but a str was passed")
    raises("TS204", lambda: total([x], x, a.astype(np.complex64)), "'a' is an array of complex64")
    with pytest.raises(SourceError) as caught:
        total([x] * 5, x, a)
    assert caught.value.code == "TS504" and caught.value.loc is not None


def test_a_gpu_that_is_not_there(backend, monkeypatch):
    backend("cuda")
    monkeypatch.setattr(launch, "device_count", lambda: 0)
    raises("TS505", lambda: make_gated()(normal(2, 3, 24), normal(24, 24), 1))
