"""The cuda lane of functions on a make-believe GPU whose launches run on the emulator: cold and warm calls."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.errors import TesseraError
from tessera.runtime import api, arrays, emulator, function_launch, functions, launch, plan
from tessera.runtime.parameters import ParameterStore, use_store
from tests.runtime import executing_cuda

bf16 = ml_dtypes.bfloat16
pytestmark = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")


@pytest.fixture
def gpu(monkeypatch):
    """The library; its driver is `gpu.driver`, and `gpu.cold` counts the calls that were prepared."""
    library = executing_cuda.Library()
    library.driver, library.cold = executing_cuda.Driver(library), []
    monkeypatch.setattr(arrays, "ADAPTERS", [library, *arrays.ADAPTERS])
    monkeypatch.setattr(plan, "READERS", dict(plan.READERS))
    monkeypatch.setattr(launch, "LAUNCHER", launch.Launcher(library.driver))
    monkeypatch.setattr(api, "device_arch", lambda device: "sm_80")

    def compiled(kernel, dims, options, build):
        program = replace(build(), cubin=f"{kernel.name} {len(library.driver.programs)}".encode())
        library.driver.programs[program.cubin] = program
        return program

    def gathered(pointer, info, stream, device):
        copy = np.ascontiguousarray(arrays.as_numpy(pointer, info.shape, info.strides, info.dtype))
        return Copied(library.array(copy))

    real = function_launch.cold_call
    monkeypatch.setattr(api.programs, "compiled", compiled)
    monkeypatch.setattr(function_launch, "gathered", gathered)
    monkeypatch.setattr(function_launch, "cold_call", lambda *given: (library.cold.append(1), real(*given))[1])
    return library


class Copied:
    """As much of a CuPy array as a launch asks for."""

    def __init__(self, array):
        self.data, self.ptr = self, array.pointer


def make_layer():
    @ts.function
    def layer(
        xs: list[Tensor["B", "D", ts.bf16]], w: Tensor["D", "D", ts.bf16], scale: float = 2.0
    ) -> Tensor["D", "B", ts.f32]:
        total = xs[0]
        for x in xs[1:]:
            total = total + ts.gemm(x, w)
        return ts.transpose(total * scale)

    return layer


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(bf16)


def on_host(definition, *args, monkeypatch=None, **kwargs):
    """What the emulate lane makes of the same call."""
    made = functions.state_of(definition).prepare(args, kwargs)
    results, _ = functions.run_on_host(made, "emulate", "sm_80")
    return results


def test_cold_and_warm_calls_are_right(gpu):
    layer = make_layer()
    for seed in range(3):
        xs, w = [values(20, 24, seed=seed + i) for i in range(3)], values(24, 24, seed=9)
        (expected,) = on_host(layer, xs, w, scale=0.5 + seed)
        result = layer([gpu.array(x) for x in xs], gpu.array(w), scale=0.5 + seed)
        assert isinstance(result, executing_cuda.fake_cuda.Array) and result.shape == (24, 20)
        assert result.memory.tobytes() == expected.tobytes()
    assert len(gpu.cold) == 1 and {stream for *_, stream, _ in gpu.driver.launches} == {7}
    run = functions.last_run(layer)
    assert run.lane == "cuda" and len(run.kernels) * 3 == len(gpu.driver.launches) and run.workspace > 0


def test_calls_on_a_stream_share_a_small_workspace(gpu):
    layer, xs, w = make_layer(), [gpu.array(values(20, 24))] * 2, gpu.array(values(24, 24))
    other, made = make_layer(), []
    for function, stream in ((layer, 7), (layer, 7), (other, 7), (layer, 8), (layer, 8)):
        gpu.current_stream, before = stream, (gpu.made, len(gpu.driver.blocks))
        function(xs, w)
        made.append((gpu.made - before[0], len(gpu.driver.blocks) - before[1]))
    # The result is the library's, a block that is new on a stream is not: it outlives the call.
    assert made == [(1, 1), (1, 0), (1, 0), (1, 1), (1, 0)]


def test_a_large_workspace_is_made_for_each_call(gpu, monkeypatch):
    monkeypatch.setattr(function_launch.workspace, "KEPT_BYTES", 100)
    layer, xs, w = make_layer(), [gpu.array(values(20, 24))] * 2, gpu.array(values(24, 24))
    for _ in range(3):
        before = gpu.made
        layer(xs, w)
        assert gpu.made == before + 2


def test_keywords_defaults_and_the_order_of_arguments(gpu):
    layer, x, w = make_layer(), values(20, 24), values(24, 24)
    (expected,) = on_host(layer, [x, x], w)
    for _ in range(2):
        for call in (
            lambda a, b: layer(a, b),
            lambda a, b: layer(w=b, xs=a),
            lambda a, b: layer(a, scale=2.0, w=b),
            lambda a, b: layer(a, b, 2),
        ):
            assert call([gpu.array(x)] * 2, gpu.array(w)).memory.tobytes() == expected.tobytes()
    assert len(gpu.cold) == 4
    with pytest.raises(TesseraError, match="TS601"):
        layer([gpu.array(x)])


def test_other_shapes_lengths_and_streams(gpu):
    layer, w = make_layer(), values(24, 24)
    for rows, count, stream in ((20, 2, 3), (5, 2, 4), (20, 1, 5), (20, 2, 6)):
        gpu.current_stream = stream
        xs = [values(rows, 24, seed=i) for i in range(count)]
        (expected,) = on_host(layer, xs, w)
        assert layer([gpu.array(x) for x in xs], gpu.array(w)).memory.tobytes() == expected.tobytes()
        assert gpu.driver.launches[-1][2] == stream
    assert len(gpu.cold) == 3


def test_views_are_copied(gpu):
    layer, x, w = make_layer(), values(40, 24), values(24, 24)
    (expected,) = on_host(layer, [x[::2].copy()], w)
    for _ in range(2):
        whole = gpu.array(x)
        view = executing_cuda.fake_cuda.Array(whole.memory[::2])
        assert layer([view], gpu.array(w)).memory.tobytes() == expected.tobytes()
    assert len(gpu.cold) == 1


def test_a_kernel_of_the_plan_that_takes_lists(gpu):
    @ts.kernel
    def weighted(
        xs: list[Tensor["B", "D", ts.bf16]], ws: list[Tensor["B", "D", ts.bf16]], t: float,
        out: Tensor["B", "D", ts.f32],
    ):  # fmt: skip
        row = tile.program_id(0) * 16
        acc = tile.zeros([16, tile.context().D])
        for i in tile.range(len(xs)):
            acc = acc + xs[i][row : row + 16] * ws[i][row : row + 16]
        tile.store(acc * t, out[row : row + 16])

    @ts.function
    def twice(xs: list[Tensor["B", "D", ts.bf16]], t: float) -> Tensor["B", "D", ts.f32]:
        products = [ts.gemm(ts.gemm(x, ts.transpose(x)), x) for x in xs]
        return weighted(xs, products, t) + weighted([xs[1], xs[0]], xs, t)

    for seed in range(3):
        xs = [values(20, 24, seed=seed + i) for i in range(2)]
        (expected,) = on_host(twice, xs, 0.5)
        assert twice([gpu.array(x) for x in xs], 0.5).memory.tobytes() == expected.tobytes()
    assert len(gpu.cold) == 1 and not gpu.driver.written
    gpu.driver.captured.add(7)  # lists that no call had before
    assert twice([gpu.array(x) for x in xs], 0.5).memory.tobytes() == expected.tobytes()


def test_a_kernel_of_the_plan_that_is_persistent(gpu):
    @ts.kernel(schedule={"persistent": True})
    def scaled(x: Tensor["B", "D", ts.f32], t: float, out: Tensor["B", "D", ts.f32]):
        row = tile.program_id(0) * 16
        tile.store(x[row : row + 16] * t, out[row : row + 16])

    @ts.function
    def twice(x: Tensor["B", "D", ts.f32], t: float) -> Tensor["B", "D", ts.f32]:
        return scaled(scaled(x, t), 0.5)

    for rows in (150, 150, 20):
        x = values(rows, 24).astype(np.float32)
        (expected,) = on_host(twice, x, 2.0)
        assert (expected == x).all() and (twice(gpu.array(x), 2.0).memory == x).all()
        assert [kernel.grid for kernel in functions.last_run(twice).kernels] == [(2,)] * 2
    assert len(gpu.cold) == 2 and gpu.driver.counted == [0]


def test_guards_of_warm_calls(gpu):
    @ts.function
    def divided(x: Tensor["N", ts.f32], t: float):
        return x / t

    x = gpu.array(np.ones(30, np.float32))
    assert (divided(x, 2.0).memory == 0.5).all() and (divided(x, 4.0).memory == 0.25).all() and len(gpu.cold) == 1
    launched = len(gpu.driver.launches)
    with pytest.raises(TesseraError, match="'t' is 0.0, but it must not be 0"):
        divided(x, 0.0)
    assert len(gpu.driver.launches) == launched
    assert (divided(x, 1e300).memory == 0).all()  # as the cold call rounds it


def test_numbers_that_the_host_computes(gpu):
    """They follow the call's numbers, 0.0 and -0.0 among them, and constants stay."""

    @ts.kernel
    def times(x: Tensor["B", "D", ts.f32], t: float, u: float, out: Tensor["B", "D", ts.f32]):
        row = tile.program_id(0) * 16
        tile.store(x[row : row + 16] * t + u, out[row : row + 16])

    @ts.function
    def product(x: Tensor["B", "D", ts.f32], t: float) -> Tensor["B", "D", ts.f32]:
        return times(x, t * 2.0, -0.0)

    x = gpu.array(np.ones((5, 4), np.float32))
    for t in (1.5, 0.0, -0.0, 1.5, 0.0):
        result = product(x, t).memory
        assert (result == 2 * t).all() and (np.signbit(result) == np.signbit(t)).all(), t
    assert len(gpu.cold) == 1


def test_parameters_are_copied_once_and_after_each_change(gpu):
    @ts.function
    def scaled(x: Tensor["N", ts.f32]):
        return x * ts.ops.learnable_scale_parameter()

    x, store = gpu.array(np.ones(30, np.float32)), ParameterStore()
    with use_store(store):
        for _ in range(3):
            assert (scaled(x).memory == 1).all()
        (key,) = store.keys()
        store[key] = bf16(0.5)
        for _ in range(2):
            assert (scaled(x).memory == 0.5).all()
    assert len(gpu.driver.written) == 2 and len(gpu.driver.allocated) == 1
    with use_store(ParameterStore()):
        assert (scaled(x).memory == 1).all()
    gpu.driver.captured.add(7)
    with use_store(ParameterStore()), pytest.raises(TesseraError, match="TS510"):
        scaled(x)


def test_the_mode_and_seeds(gpu):
    @ts.function
    def noisy(x: Tensor["N", ts.f32]):
        return ts.ops.dropout(x, 0.5) if ts.is_training() else x * 1.0

    x = gpu.array(np.ones(200, np.float32))
    for _ in range(2):
        assert (noisy(x).memory == 1).all()
        with ts.train():
            ts.manual_seed(3)
            first, second = noisy(x).memory.copy(), noisy(x).memory.copy()
            assert set(np.unique(first)) == {0, 2} and (first != second).any()
    ts.manual_seed(3)
    with ts.train():
        assert (noisy(x).memory == first).all()
    assert len(gpu.cold) == 2


def test_arrays_of_two_devices(gpu):
    layer = make_layer()
    with pytest.raises(TesseraError, match="all arrays of a call must live in one place"):
        layer([gpu.array(values(20, 24))], gpu.array(values(24, 24), device=1))
