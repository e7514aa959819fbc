"""Arrays of JAX, and of anything that speaks DLPack or the CUDA array interface."""
# ruff: noqa: F821  names of dims are strings in annotations

import sys
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, dtypes, tile
from tessera.config import Config
from tessera.errors import ArgumentError
from tessera.runtime import api, arrays, arrays_exchange, launch

GPU = launch.device_count() > 0
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs a GPU")]


@ts.kernel
def double(x: Tensor["S", "D", ts.bf16], out: Tensor["S", "D", ts.bf16]):
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16] * 2.0, out[row : row + 16])


@ts.kernel
def increment(state: Tensor["S", ts.f32]):
    row = tile.program_id(0) * 16
    tile.store(state[row : row + 16] + 1.0, state[row : row + 16])


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(api, "config", lambda: replace(Config(), backend="interpret"))


def numbers(*shape, dtype=np.float32):
    return np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)


class Exporter:
    """An object of a library that nobody knows; `exporter` makes its capsules."""

    def __init__(self, exporter, device=(1, 0), legacy=False):
        self.exporter, self.place, self.legacy = exporter, device, legacy

    def __dlpack__(self, **options):
        if self.legacy and "max_version" in options:
            raise TypeError("max_version")
        return self.exporter.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.place


@pytest.mark.parametrize("legacy", [False, True])
def test_dlpack(legacy):
    array = numbers(4, 6)[1:, ::2]
    info = arrays.describe(Exporter(array, legacy=legacy))
    assert info is not None and info.adapter.library == "dlpack"
    assert (info.dtype, info.shape, info.strides, info.device) == (dtypes.f32, (3, 3), (6, 2), None)
    assert info.pointer == array.ctypes.data and info.writable and not info.contiguous
    view = arrays.host_view(Exporter(array, legacy=legacy))
    view[1, 1] = 50
    assert array[1, 1] == 50 and (view == array).all()


def test_dlpack_says_read_only():
    array = numbers(4)
    array.flags.writeable = False
    info = arrays.describe(Exporter(array))
    assert info is not None and not info.writable
    assert not arrays.host_view(Exporter(array)).flags.writeable


def test_dlpack_devices_and_dtypes():
    with pytest.raises(ArgumentError, match="Exporter lives on a device of DLPack type 10"):
        arrays.describe(Exporter(numbers(4), (10, 0)))
    info = arrays.describe(Exporter(numbers(4, dtype=np.complex64)))
    assert info is not None and info.dtype is None and info.dtype_text == "DLPack type 5 of 64 bits"


def test_a_kernel_takes_what_dlpack_gives(interpreted):
    state = numbers(40)
    increment(Exporter(state))
    assert (state == numbers(40) + 1).all()
    state.flags.writeable = False
    with pytest.raises(ArgumentError, match="'state' is written by the kernel, but .* read-only"):
        increment(Exporter(state))


class Interface:
    def __init__(self, **values):
        self.__cuda_array_interface__ = values


def test_the_cuda_array_interface(monkeypatch):
    monkeypatch.setattr(arrays_exchange, "_device_of", lambda pointer: 1)
    given = {"shape": (4, 6), "typestr": "<f4", "data": (4096, True), "version": 3}
    info = arrays.describe(Interface(**given))
    assert info is not None and info.adapter.library == "cuda_array_interface"
    assert (info.dtype, info.shape, info.strides, info.pointer, info.device) == (dtypes.f32, (4, 6), (6, 1), 4096, 1)
    assert not info.writable
    info = arrays.describe(Interface(**given, strides=(48, 8)))
    assert info is not None and info.strides == (12, 2)
    info = arrays.describe(Interface(**given, strides=(26, 4)))
    assert info is not None and info.strides is None
    with pytest.raises(ArgumentError, match="masked"):
        arrays.describe(Interface(**given, mask=object()))
    with pytest.raises(ArgumentError, match="GPU 1"):
        arrays.host_view(Interface(**given))


def test_the_interface_s_stream_is_waited_for(monkeypatch):
    calls = []

    class Runtime:
        eventDisableTiming = 2

        def __getattr__(self, name):
            return lambda *arguments: calls.append((name, *arguments)) or 5

    class Cupy:
        class cuda:
            runtime = Runtime()

    monkeypatch.setitem(sys.modules, "cupy", Cupy)
    library = arrays.adapter(Interface(shape=(), typestr="<f4", data=(16, False)))
    assert library is not None
    for pending, stream, waits in [(None, 7, False), (7, 7, False), (1, 0, False), (2, 0, True), (9, 7, True)]:
        calls.clear()
        library.after(Interface(shape=(), typestr="<f4", data=(16, False), stream=pending), stream, 0)
        assert bool(calls) == waits
    assert calls[1:3] == [("eventRecord", 5, 9), ("streamWaitEvent", 7, 5)]


class TestJax:
    def test_on_the_host(self, interpreted):
        jax = pytest.importorskip("jax")
        x = jax.numpy.asarray(numbers(20, 8), jax.numpy.bfloat16)
        info = arrays.describe(x)
        assert info is not None and info.adapter.library == "jax" and info.contiguous and not info.writable
        assert (info.dtype, info.shape, info.device) == (dtypes.bf16, (20, 8), None)
        out = double(x)
        assert isinstance(out, jax.Array) and out.dtype == ml_dtypes.bfloat16 and (out == x * 2).all()

    def test_outputs_cannot_be_given(self, interpreted):
        jax = pytest.importorskip("jax")
        x = jax.numpy.zeros((20, 8), jax.numpy.bfloat16)
        with pytest.raises(ArgumentError, match="'out' is written .* a JAX array cannot change; leave it out"):
            double(x, x + 1)
        with pytest.raises(ArgumentError, match="'state' is written .* pass another library's array"):
            increment(jax.numpy.zeros(20))
        assert (double(x, np.ones((20, 8), ml_dtypes.bfloat16)) is None) and (x == 0).all()

    def test_traced_values_have_no_memory(self, interpreted):
        jax = pytest.importorskip("jax")
        with pytest.raises(ArgumentError, match="outside of jax.jit"):
            jax.jit(double)(jax.numpy.zeros((20, 8), jax.numpy.bfloat16))

    def test_empty(self, interpreted):
        jax = pytest.importorskip("jax")
        out = double(jax.numpy.zeros((0, 8), jax.numpy.bfloat16))
        assert isinstance(out, jax.Array) and out.shape == (0, 8)


def test_torch_views_on_the_host(interpreted):
    torch = pytest.importorskip("torch")
    memory = torch.arange(160 * 2, dtype=torch.float32).reshape(20, 16).to(torch.bfloat16)
    for x in (memory[:, 3:11], memory.t()[:, :8], memory[:, :1].expand(20, 8)):
        out = double(x)
        assert isinstance(out, torch.Tensor) and torch.equal(out, x * 2)
    double(memory[:, :8], memory[:, 8:])
    assert torch.equal(memory[:, 8:], memory[:, :8] * 2)
    with pytest.raises(ArgumentError, match="'out' is written .* share memory"):
        double(memory[:, :8].clone(), memory[:, :1].expand(20, 8))
    with pytest.raises(ArgumentError, match="layout torch.sparse_coo has no strides"):
        double(memory[:, :8].to_sparse())
    assert double(memory[:0, :8]).shape == (0, 8)


class TestOnAGpu:
    pytestmark = needs_gpu

    def test_jax(self):
        jax = pytest.importorskip("jax")
        if jax.default_backend() != "gpu":
            pytest.skip("needs a JAX that has the GPU")
        x = jax.numpy.asarray(numbers(300, 64), jax.numpy.bfloat16)
        out = double(x)
        assert isinstance(out, jax.Array) and out.devices() == x.devices() and (out == x * 2).all()

    def test_dlpack(self):
        import cupy

        x = cupy.arange(64, dtype=cupy.float32)
        increment(Exporter(x, (2, 0)))
        assert (x == cupy.arange(64) + 1).all()

    def test_the_cuda_array_interface(self):
        import cupy

        x = cupy.zeros(64, cupy.float32)
        side = cupy.cuda.Stream(non_blocking=True)
        with side:
            x += 1
        increment(Interface(**{**x.__cuda_array_interface__, "stream": side.ptr}))
        cupy.cuda.get_current_stream().synchronize()
        assert (x == 2).all()
        read_only = {**x.__cuda_array_interface__, "data": (x.data.ptr, True)}
        with pytest.raises(ArgumentError, match="read-only"):
            increment(Interface(**read_only))
