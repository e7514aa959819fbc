"""Calls of kernels: lanes, outputs, grids, what is compiled and what is used again."""
# ruff: noqa: F821  names of dims are strings in annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.config import Config
from tessera.errors import ArgumentError, EnvironmentProblem, SourceError
from tessera.runtime import api, emulator, launch

GPU = launch.device_count() > 0
needs_compiler = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs a GPU")]


@pytest.fixture
def backend(monkeypatch):
    """Chooses the lane of the calls in a test."""

    def choose(name):
        monkeypatch.setattr(api, "config", lambda: replace(Config(), backend=name))

    choose("interpret")
    return choose


def make_scale():
    """A new kernel each time, so that a test sees what it compiles itself."""

    @ts.kernel
    def scale(x: Tensor["S", "D", ts.f32], out: Tensor["S", "D", ts.f32], factor: float = 0.5):
        row = tile.program_id(0) * 16
        tile.store(x[row : row + 16] * factor, out[row : row + 16])

    return scale


def make_split():
    """Two outputs, and code that decides by the value of a dim."""

    @ts.kernel
    def split(x: Tensor["S", "D", ts.f32], low: Tensor["S", "D", ts.f32], high: Tensor["S", "D", ts.f32]):
        ctx = tile.context()
        row = tile.program_id(0) * 16
        for _ in range(1 if ctx.D == 8 else 2):
            tile.store(x[row : row + 16] * 2.0, low[row : row + 16])
        tile.store(x[row : row + 16] + 1.0, high[row : row + 16])

    return split


def values(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("lane", ["interpret", pytest.param("emulate", marks=needs_compiler)])
def test_a_call_allocates_and_returns_the_output(backend, lane):
    backend(lane)
    scale, x = make_scale(), values(20, 8)
    out = scale(x)
    assert isinstance(out, np.ndarray) and (out == x * np.float32(0.5)).all()
    run = api.last_run(scale)
    assert run is not None and run.lane == lane and [k.name for k in run.kernels] == ["scale"]
    assert run.kernels[0].grid[0] == 2
    assert (scale(x, factor=2.0) == x * 2).all()


def test_a_call_writes_the_output_that_it_is_given(backend):
    scale, x = make_scale(), values(20, 8)
    out = np.empty_like(x)
    assert scale(x, out) is None and (out == x * np.float32(0.5)).all()
    out[...] = 0
    assert scale(x, out=out, factor=3) is None
    assert (out == x * 3).all()


def test_several_outputs(backend):
    split, x = make_split(), values(20, 8)
    for width in (8, 16, 8):
        x = values(20, width)
        low, high = split(x)
        assert (low == x * 2).all() and (high == x + 1).all()


def test_no_launch_for_empty_arrays(backend):
    scale = make_scale()
    out = scale(values(0, 8))
    run = api.last_run(scale)
    assert out.shape == (0, 8) and run is not None and run.kernels == ()


def test_wrong_arguments_reach_the_caller(backend):
    scale, x = make_scale(), values(20, 8)
    for call, code in [
        (lambda: scale(), "TS601"),
        (lambda: scale(x.astype(ml_dtypes.bfloat16)), "TS204"),
        (lambda: scale(x, np.broadcast_to(np.float32(0), (20, 8))), "TS604"),  # NumPy makes it read-only
        (lambda: scale(x, x), "TS602"),
        (lambda: scale[2.5](x), "TS203"),
    ]:
        with pytest.raises(ArgumentError) as caught:
            call()
        assert caught.value.code == code


def test_a_grid_must_cover_the_output(backend):
    scale, x = make_scale(), values(40, 8)
    assert (scale[3](x) == scale(x)).all()
    assert (scale[(5,)](x) == scale(x)).all()
    out = np.full_like(x, -1)
    with pytest.raises(ArgumentError, match="never written") as caught:
        scale[2](x, out)
    assert caught.value.code == "TS306" and (out == -1).all()
    scale[2].partial(x, out)
    assert (out[:32] == x[:32] * np.float32(0.5)).all() and (out[32:] == -1).all()


@needs_compiler
def test_what_is_compiled_is_used_again(backend, monkeypatch):
    backend("emulate")
    compiled = []
    real = api.compile_kernel

    def count(definition, dims, *arguments):
        compiled.append(dict(dims))
        return real(definition, dims, *arguments)

    monkeypatch.setattr(api, "compile_kernel", count)
    scale = make_scale()
    memory = np.zeros(64 * 8 + 8, np.float32)
    start = (-memory.ctypes.data // 4) % 4
    aligned, shifted = memory[start : start + 160].reshape(20, 8), memory[start + 1 : start + 161].reshape(20, 8)
    for x, count_so_far in [
        (aligned, 1),
        (aligned, 1),
        (memory[start : start + 240].reshape(30, 8), 1),  # another S: no shape and no innermost axis holds it
        (memory[start : start + 160].reshape(10, 16), 2),  # another D
        (shifted, 3),  # another alignment
        (aligned, 3),
    ]:
        assert (scale(x) == x * np.float32(0.5)).all() and len(compiled) == count_so_far


@needs_compiler
def test_a_decision_by_a_dim_is_compiled_for_its_value(backend):
    backend("emulate")
    split = make_split()
    for width in (8, 16, 8):
        x = values(20, width)
        low, high = split(x)
        assert (low == x * 2).all() and (high == x + 1).all()


def test_innermost_divisors():
    signature = api.KernelState(make_scale()).signature
    assert api.innermost_divisors(signature, {"S": 6, "D": 24}) == {"D": 8}
    assert api.innermost_divisors(signature, {"S": 6, "D": 64}) == {"D": 16}
    assert api.innermost_divisors(signature, {"S": 6, "D": 7}) == {"D": 1}


def test_lanes(monkeypatch):
    monkeypatch.setattr(launch, "device_count", lambda: 0)
    assert api.choose_lane("auto", None, lambda: 0) == "interpret"
    assert api.choose_lane("auto", None, lambda: 1) == "cuda"
    assert api.choose_lane("auto", 0, lambda: 1) == "cuda"
    assert api.choose_lane("emulate", None, lambda: 1) == "emulate"
    with pytest.raises(EnvironmentProblem) as caught:
        api.choose_lane("cuda")
    assert caught.value.code == "TS505"
    with pytest.raises(ArgumentError, match="live on GPU 1, and the interpret lane"):
        api.choose_lane("interpret", 1)


def test_architectures(monkeypatch):
    monkeypatch.setattr(api, "config", lambda: replace(Config(), arch="sm_89"))
    assert api.choose_arch(None) == "sm_89" and api.choose_arch("sm_90a") == "sm_90a"
    with pytest.raises(ArgumentError, match="no architecture 'sm_75'"):
        api.choose_arch("sm_75")


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((8, 0), "sm_80"),
        ((8, 7), "sm_87"),
        ((9, 0), "sm_90a"),
        ((12, 1), "sm_121"),
        ((7, 5), None),
        ((99, 0), None),
        ((10, 3), "sm_103"),
    ],
)
def test_the_architecture_of_a_device(monkeypatch, capability, arch):
    api.device_arch.cache_clear()
    monkeypatch.setattr(launch, "compute_capability", lambda device: capability)
    try:
        if arch is not None:
            assert api.device_arch(0) == arch
        else:
            with pytest.raises(EnvironmentProblem) as caught:
                api.device_arch(0)
            assert caught.value.code == "TS508"
    finally:
        api.device_arch.cache_clear()


def test_an_annotation_that_is_not_supported(backend):
    @ts.kernel
    def no_dtype(x: Tensor["S"], out: Tensor["S", ts.f32]):
        tile.store(x[0:16], out[0:16])

    with pytest.raises(SourceError, match="of 'x' has no dtype"):
        no_dtype(values(16))


class TestOnAGpu:
    pytestmark = needs_gpu

    def test_cupy(self):
        import cupy

        scale = make_scale()
        x = cupy.asarray(values(300, 64))
        with cupy.cuda.Stream(non_blocking=True) as stream:
            out = scale(x)
            stream.synchronize()
        run = api.last_run(scale)
        assert isinstance(out, cupy.ndarray) and (out == x * np.float32(0.5)).all()
        assert run is not None and run.lane == "cuda"
        unaligned = cupy.zeros(301 * 64, cupy.float32)[1 : 1 + 300 * 64].reshape(300, 64)
        unaligned[...] = x
        assert (scale(unaligned) == x * np.float32(0.5)).all()

    def test_torch(self):
        torch = pytest.importorskip("torch")
        scale = make_scale()
        x = torch.randn(300, 64, device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            out = scale(x)
        side.synchronize()
        assert isinstance(out, torch.Tensor) and out.device == x.device and torch.equal(out, x * 0.5)

    def test_torch_graphs(self, monkeypatch):
        torch = pytest.importorskip("torch")
        # A launcher that has loaded nothing: an earlier test may have loaded the same machine code.
        monkeypatch.setattr(launch, "LAUNCHER", launch.Launcher(launch.CupyDriver()))
        scale = make_scale()
        x, out = torch.randn(300, 64, device="cuda"), torch.empty(300, 64, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(EnvironmentProblem, match="called for the first time .* captured"), torch.cuda.graph(graph):
            scale(x, out)
        scale(x, out)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scale(x, out)
            made = scale(x)  # from the graph's own pool
        out.zero_()
        x.add_(1)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, x * 0.5) and torch.equal(made, out)

    def test_cupy_graphs(self):
        import cupy

        scale, x = make_scale(), cupy.asarray(values(300, 64))
        out = cupy.empty_like(x)
        scale(x, out)
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            scale(x, out)
            graph = stream.end_capture()
            x += 1
            graph.launch(stream)
            stream.synchronize()
        assert (out == x * np.float32(0.5)).all()

    def test_the_work_is_queued_on_the_caller_s_stream(self):
        import cupy

        scale, x = make_scale(), cupy.zeros((4096, 1024), cupy.float32)
        out = cupy.empty_like(x)
        scale(x, out)
        for stream in (cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream.ptds, cupy.cuda.Stream.null):
            with stream:
                for number in range(20):  # a launch on any other stream would see an earlier number
                    x.fill(number)
                    scale(x, out)
                    assert float(out[-1, -1]) == number / 2
            cupy.cuda.runtime.deviceSynchronize()

    def test_a_thread_that_has_not_used_cuda(self):
        import threading

        import cupy

        scale, x = make_scale(), cupy.asarray(values(300, 64))
        out = cupy.zeros_like(x)
        scale(x, out)
        out.fill(0)
        cupy.cuda.runtime.deviceSynchronize()
        worker = threading.Thread(target=scale, args=(x, out))
        worker.start()
        worker.join()
        cupy.cuda.runtime.deviceSynchronize()
        assert (out == x * np.float32(0.5)).all()

    def test_two_devices(self):
        import cupy

        if launch.device_count() < 2:
            pytest.skip("needs two GPUs")
        scale, x = make_scale(), cupy.asarray(values(300, 64))
        with cupy.cuda.Device(1):
            there = cupy.asarray(values(300, 64))
        for _ in range(2):
            out = scale(there)  # while device 0 is current
            assert out.device.id == 1 and cupy.cuda.runtime.getDevice() == 0
            assert (cupy.asnumpy(out) == values(300, 64) * np.float32(0.5)).all()
        with pytest.raises(ArgumentError, match="'x' is on GPU 0 but 'out' is on GPU 1"):
            scale(x, there)

    def test_empty_arrays(self):
        import cupy

        scale = make_scale()
        assert scale(cupy.zeros((0, 64), cupy.float32)).shape == (0, 64)
        assert scale(cupy.zeros((5, 0), cupy.float32)).shape == (5, 0)
        torch = pytest.importorskip("torch")
        assert scale(torch.zeros(0, 64, device="cuda")).shape == (0, 64)

    def test_host_arrays_travel(self):
        scale, x = make_scale(), values(300, 64)
        out = scale(x)
        run = api.last_run(scale)
        assert isinstance(out, np.ndarray) and (out == x * np.float32(0.5)).all()
        assert run is not None and run.lane == "cuda"

    def test_mixed_arrays(self):
        import cupy

        with pytest.raises(ArgumentError, match="'x' is on GPU 0 but 'out' is on the host"):
            make_scale()(cupy.zeros((4, 8), cupy.float32), values(4, 8))
