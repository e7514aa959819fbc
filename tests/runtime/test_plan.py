"""Warm calls: what they skip, what they still check, and when they fall back to a cold call. No GPU is needed."""
# ruff: noqa: F821  names of dims are strings in annotations

import struct
import threading
from dataclasses import replace

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.config import using
from tessera.errors import ArgumentError, EnvironmentProblem
from tessera.runtime import api, arrays, launch, plan
from tests.runtime import fake_cuda
from tests.runtime.fake_cuda import Array, aligned


def make_scale():
    @ts.kernel
    def scale(
        x: Tensor["S", "D", ts.f32],
        y: Tensor["S", "D", ts.f32],
        out: Tensor["S", "D", ts.f32],
        n: int,
        factor: float = 0.5,
    ):
        row = tile.program_id(0) * 16
        total = x[row : row + 16] * factor + y[row : row + 16] * n
        tile.store(total, out[row : row + 16])

    return scale


@pytest.fixture
def library(monkeypatch):
    made = fake_cuda.Library()
    monkeypatch.setattr(arrays, "ADAPTERS", [made, *arrays.ADAPTERS])
    monkeypatch.setattr(plan, "READERS", dict(plan.READERS))
    return made


@pytest.fixture
def driver(monkeypatch, library):
    made = fake_cuda.Driver()
    monkeypatch.setattr(launch, "LAUNCHER", launch.Launcher(made))
    monkeypatch.setattr(api, "device_arch", lambda device: "sm_80")
    real = api.programs.compiled
    monkeypatch.setattr(
        api.programs, "compiled", lambda kernel, dims, options, build: replace(build(), cubin=kernel.name.encode())
    )
    assert real is not api.programs.compiled
    return made


@pytest.fixture
def cold(monkeypatch):
    """Counts the cold calls."""
    calls, real = [], api._cold_call

    def count(*arguments):
        calls.append(arguments[2])
        return real(*arguments)

    monkeypatch.setattr(api, "_cold_call", count)
    return calls


def test_a_warm_call_launches_what_a_cold_one_does(driver, cold, library):
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    assert scale(x, y, out, 3, 0.25) is None and scale(x, y, out, 3, 0.25) is None
    first, second = driver.launches
    assert first == second and len(cold) == 1 and len(driver.loaded) == 1
    kernel, grid, slots, stream, device = first
    assert (kernel, grid, stream, device) == ("scale", (3, 1, 1), 7, 0)
    # Pointers, then the dim S (D is compiled in), the int, and the bits of the float.
    assert slots == (x.pointer, y.pointer, out.pointer, 40, 3, struct.unpack("<q", struct.pack("<f4x", 0.25))[0])
    run = api.last_run(scale)
    assert run is not None and run.lane == "cuda" and [(k.name, k.grid) for k in run.kernels] == [("scale", (3,))]


def test_a_warm_call_of_a_persistent_kernel_asks_for_no_device(driver, cold, library):
    scale = make_scale().scheduled({"persistent": True})
    small, large = aligned((20, 64)), aligned((400, 64))
    for x, programs in ((small, 2), (large, 2), (small, 2)):
        for _ in range(2):
            assert scale(x, x, aligned(x.shape), 3, 0.25) is None
            assert driver.launches[-1][:2] == ("scale", (programs, 1, 1))
            assert [(k.name, k.grid) for k in api.last_run(scale).kernels] == [("scale", (programs,))]
    assert len(cold) == 2 and driver.counted == [0]


def test_a_warm_call_passes_its_own_arrays_numbers_and_stream(driver, cold, library):
    scale, out = make_scale(), aligned((40, 64))
    calls = [(aligned((40, 64)), aligned((40, 64)), number) for number in (3, -4, np.int64(2**40), 2**63 - 1)]
    for number, (x, y, n) in enumerate(calls):
        library.current_stream = number
        scale(x, y, out, n)
        slots, stream = driver.launches[-1][2:4]
        assert slots[:5] == (x.pointer, y.pointer, out.pointer, 40, n) and stream == number
    assert len(cold) == 2  # an int, and NumPy's int64


def test_omitted_outputs_keywords_and_defaults(driver, cold):
    scale, x, y = make_scale(), aligned((40, 64)), aligned((40, 64))
    for _ in range(2):
        made = scale(x, y, 3)
        assert isinstance(made, Array) and made.shape == (40, 64)
        assert driver.launches[-1][2][:5] == (x.pointer, y.pointer, made.pointer, 40, 3)
        assert driver.launches[-1][2][5] == struct.unpack("<q", struct.pack("<f4x", 0.5))[0]
    assert len(cold) == 1
    for _ in range(2):
        made = scale(n=4, y=y, x=x, factor=2)
        assert driver.launches[-1][2][:5] == (x.pointer, y.pointer, made.pointer, 40, 4)
        assert driver.launches[-1][2][5] == struct.unpack("<q", struct.pack("<f4x", 2.0))[0]
    assert len(cold) == 2


def test_explicit_grids(driver, cold):
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    for size in (3, 4, 3, 4):
        scale[size](x, y, out, 1)
        assert driver.launches[-1][1] == (size, 1, 1)
    assert len(cold) == 2
    scale[2].partial(x, y, out, 1)
    with pytest.raises(ArgumentError, match="never written"):
        scale[2](x, y, out, 1)
    with pytest.raises(ArgumentError, match="takes integers"):
        scale[[3]](x, y, out, 1)


def test_what_makes_a_call_cold(driver, cold):
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    transposed = Array(np.zeros((64, 40), np.float32).T)
    for count, arguments in [
        (1, (x, y, out, 1)),
        (2, (aligned((40, 64), shift=4), y, out, 1)),  # an alignment
        (3, (Array(np.zeros((40, 128), np.float32)[:, :64]), y, out, 1)),  # strides
        (4, (transposed, y, out, 1)),
        (4, (x, y, out, 2)),
        (5, tuple(aligned((48, 64)) for _ in range(3)) + (1,)),  # a shape
        (6, tuple(aligned((48, 64), device=1) for _ in range(3)) + (1,)),  # a device
        (6, tuple(aligned((48, 64), device=1) for _ in range(3)) + (1,)),
    ]:
        scale(*arguments)
        assert len(cold) == count
    assert driver.loaded == [0, 0, 0, 1] or driver.loaded == [0, 1]  # by cubin and device


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {**c, "out": c["x"]}, "'out' is written by scale and shares memory with 'x'"),
        (lambda c: {**c, "n": 2**63}, "does not fit 64 bits"),
        (lambda c: {**c, "n": 1.5}, "'n' takes an int"),
        (lambda c: {**c, "n": True}, "'n' takes an int"),
        (lambda c: {**c, "x": aligned((40, 64), np.int32)}, "'x' must have dtype f32"),
        (lambda c: {**c, "x": aligned((40, 32))}, "the dim D is"),
        (lambda c: {**c, "x": aligned((40, 64), device=1)}, "'x' is on GPU 1 but 'y' is on GPU 0"),
        (lambda c: {**c, "x": np.zeros((40, 64), np.float32)}, "'x' is on the host but 'y' is on GPU 0"),
        (lambda c: {**c, "z": 1}, "has no parameter 'z'"),
    ],
)
def test_a_wrong_call_is_an_error_after_right_ones_too(driver, change, message):
    scale = make_scale()
    right = {"x": aligned((40, 64)), "y": aligned((40, 64)), "out": aligned((40, 64)), "n": 1}
    scale(**right)
    scale(**right)
    with pytest.raises(ArgumentError, match=message):
        scale(**change(right))
    assert len(driver.launches) == 2


def test_arrays_that_touch_share_no_memory(driver, cold):
    scale = make_scale()
    memory = aligned((120, 64)).memory
    x, y, out = (Array(memory[start : start + 40]) for start in (0, 40, 80))
    for _ in range(3):
        scale(x, y, out, 1)
    assert len(cold) == 1
    with pytest.raises(ArgumentError, match="shares memory with 'y'"):
        scale(x, Array(memory[41:81]), out, 1)


def test_interleaved_views_are_decided_by_a_cold_call(driver, cold):
    scale = make_scale()
    memory = aligned((40, 192)).memory
    x, y, out = (Array(memory[:, start : start + 64]) for start in (0, 64, 128))
    for count in (1, 2):
        scale(x, y, out, 1)
        assert len(cold) == count and len(driver.launches) == count
    # Pointers, S, then the strides between rows.
    assert driver.launches[0][2][3:7] == (40, 192, 192, 192)


def test_empty_arrays_launch_nothing(driver):
    scale, x, y = make_scale(), aligned((0, 64)), aligned((0, 64))
    for _ in range(2):
        assert scale(x, y, 1).shape == (0, 64)
    run = api.last_run(scale)
    assert driver.launches == [] and driver.loaded == [] and run is not None and run.kernels == ()


def test_under_capture(driver, library):
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    driver.captured.add(library.current_stream)
    with pytest.raises(EnvironmentProblem, match="scale is called for the first time .* captured into a CUDA graph"):
        scale(x, y, out, 1)
    driver.captured.clear()
    scale(x, y, out, 1)
    driver.captured.add(library.current_stream)
    scale(x, y, out, 2)
    scale(*(aligned((56, 64)) for _ in range(3)), 2)  # a cold call, of code that is loaded
    assert len(driver.launches) == 3 and driver.loaded == [0]


def test_threads_share_no_argument_memory(driver, monkeypatch):
    scale, out = make_scale(), aligned((40, 64))
    x, y = aligned((40, 64)), aligned((40, 64))
    scale(x, y, out, 0)
    together, seen = threading.Barrier(4), []
    real = driver.launch

    def slow(function, grid, threads, arguments, *rest):
        together.wait(10)  # all four are between packing and launching
        seen.append(struct.unpack_from("<q", arguments.slots, 4 * launch.SLOT)[0])
        real(function, grid, threads, arguments, *rest)

    monkeypatch.setattr(driver, "launch", slow)
    workers = [threading.Thread(target=scale, args=(x, y, out, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(seen) == [0, 1, 2, 3]


def test_plans_do_not_grow_without_end(driver, monkeypatch):
    monkeypatch.setattr(plan, "LARGEST", 3)
    scale = make_scale()
    for rows in range(16, 16 + 8):
        scale(*(aligned((rows, 64)) for _ in range(3)), 1)
    assert 1 <= len(api._state(scale)._plans) <= 3


def test_settings_are_looked_at_by_every_call(driver):
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    for calls in range(4):
        for _ in range(calls):
            scale(x, y, out, 1)
        launched = len(driver.launches)
        refused = pytest.raises(ArgumentError, match="the interpret lane runs on the CPU")
        with using(replace(api.config(), backend="interpret")), refused:
            scale(x, y, out, 1)
        assert len(driver.launches) == launched
