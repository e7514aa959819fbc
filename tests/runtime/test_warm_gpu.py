"""Written calls on a GPU: right results with CuPy and torch, on streams, in threads, and after changes of arguments."""
# ruff: noqa: F821  names of dims are strings in annotations

import threading

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.errors import ArgumentError
from tessera.runtime import launch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(launch.device_count() == 0, reason="needs a GPU")]
CALLS = 6


class Cupy:
    def __init__(self):
        import cupy

        self.module, self.float32, self.int32 = cupy, cupy.float32, cupy.int32

    def array(self, values):
        return self.module.asarray(values)

    def host(self, array):
        return array.get()

    def stream(self):
        return self.module.cuda.Stream(non_blocking=True)


class Torch:
    def __init__(self):
        self.module = pytest.importorskip("torch")
        self.float32, self.int32 = self.module.float32, self.module.int32

    def array(self, values):
        return self.module.from_numpy(np.ascontiguousarray(values)).cuda()

    def host(self, array):
        return array.cpu().numpy()

    def stream(self):
        stream = self.module.cuda.Stream()
        return self.module.cuda.stream(stream)


@pytest.fixture(params=[Cupy, Torch])
def library(request):
    return request.param()


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def make_scale():
    @ts.kernel
    def scale(x: Tensor["S", "D", ts.f32], y: Tensor["S", "D", ts.f32], out: Tensor["S", "D", ts.f32], n: int):
        row = tile.program_id(0) * 16
        tile.store(x[row : row + 16] + y[row : row + 16] * n, out[row : row + 16])

    return scale


def make_steps():
    @ts.kernel
    def bend(x: Tensor["M", "N", ts.f32], t: float, out: Tensor["M", "N", ts.f32]):
        row = tile.program_id(0) * 16
        tile.store(x[row : row + 16] * t + 0.25, out[row : row + 16])

    @ts.function
    def steps(x: Tensor["M", "N", ts.f32], t: float) -> Tensor["M", "N", ts.f32]:
        return bend(bend(bend(x, t), 0.5), t)

    return steps


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_kernels(library):
    scale, (x, y) = make_scale(), (values(40, 64, seed=seed) for seed in range(2))
    a, b, out = library.array(x), library.array(y), library.array(np.zeros_like(x))
    left_out = make_scale()
    for n in range(CALLS):
        scale(a, b, out, n)
        close(library.host(out), x + y * n)
        close(library.host(left_out(a, b, n)), x + y * n)
    assert len(scale.written) == len(left_out.written) == 1
    for other in range(CALLS):
        z = values(48, 64, seed=other)
        close(library.host(scale(library.array(z), library.array(z), 2)), z * 3)
        scale(library.array(z[:40]), b, out, 2)
        close(library.host(out), z[:40] + y * 2)
    shifted = library.array(values(40 * 64 + 1))[1:].reshape(40, 64)
    wide = library.array(values(40, 128))
    for view in (shifted, wide[:, 64:], library.array(values(64, 40)).T):
        for n in range(CALLS):
            scale(view, b, out, n)
            close(library.host(out), library.host(view) + y * n)
    for wrong in [(a, b, a, 1), (a, b, out, 1.0), (library.array(x.astype(np.int32)), b, out, 1), (a, b[:, :32], 1)]:
        with pytest.raises(ArgumentError):
            scale(*wrong)


@pytest.mark.parametrize("graphs", [False, True])
def test_functions(library, graphs):
    steps, x = ts.compile(make_steps(), graphs=graphs), values(64, 32)
    given, kinds = library.array(x), []
    for number in range(2 * CALLS):
        x = values(64, 32, seed=number)
        given[...] = library.array(x)
        t = 1.5 if number < CALLS else 1.5 + number
        close(library.host(steps(given, t)), ((x * t + 0.25) * 0.5 + 0.25) * t + 0.25)
        kinds.append(steps.last_run.replayed)
    assert kinds[CALLS - 1] == graphs and len(steps._definition.written) == 1
    other = values(16, 32)
    close(library.host(steps(library.array(other), 2.0)), ((other * 2 + 0.25) * 0.5 + 0.25) * 2 + 0.25)


def test_streams_and_threads(library):
    scale, steps, x = make_scale(), make_steps(), values(40, 64)
    a, out = library.array(x), library.array(np.zeros_like(x))
    for n in range(CALLS):
        scale(a, a, out, n), steps(a, 2.0)
    library.module.cuda.Device(0).synchronize() if isinstance(library, Cupy) else library.module.cuda.synchronize()
    errors = []

    def work(seed):
        try:
            with library.stream():
                for n in range(20):
                    mine = values(40, 64, seed=seed * 100 + n)
                    b = library.array(mine)
                    close(library.host(scale(b, b, n)), mine * (1 + n))
                    close(library.host(steps(b, 2.0)), ((mine * 2 + 0.25) * 0.5 + 0.25) * 2 + 0.25)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [one.start() for one in threads], [one.join() for one in threads]
    assert not errors, errors[0]


def test_a_caller_captures_written_calls(library):
    """A graph of the caller's own that has them in it computes what they do."""
    steps, x = make_steps(), values(64, 32)
    given = library.array(x)
    for _ in range(CALLS):
        steps(given, 2.0)
    if isinstance(library, Cupy):
        stream = library.module.cuda.Stream(non_blocking=True)
        with stream:
            for _ in range(2):
                steps(given, 2.0)
            stream.synchronize()
            stream.begin_capture()
            result = steps(given, 2.0)
            graph = stream.end_capture()
            given[...] = library.array(x + 1)
            graph.launch(stream)
            stream.synchronize()
    else:
        torch = library.module
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = steps(given, 2.0)
        given.copy_(library.array(x + 1))
        graph.replay()
        torch.cuda.synchronize()
    close(library.host(result), (((x + 1) * 2 + 0.25) * 0.5 + 0.25) * 2 + 0.25)
