"""What is asked of CUDA for graphs: the calls in order on a make-believe runtime, and everything on a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.runtime import cupy_graphs, functions, launch

gpu_only = [pytest.mark.gpu, pytest.mark.skipif(not launch.device_count(), reason="needs a GPU")]


class Runtime:
    """Writes down calls. `fails` names those that raise."""

    class CUDARuntimeError(RuntimeError):
        pass

    streamNonBlocking, streamCaptureModeRelaxed, eventDisableTiming = "non-blocking", "relaxed", "untimed"

    def __init__(self):
        self.calls, self.made, self.fails = [], 100, ()

    def getDevice(self):
        return 0

    def __getattr__(self, name):
        def call(*given):
            self.calls.append((name, *given))
            if name in self.fails:
                raise self.CUDARuntimeError(name)
            self.made += 1
            return self.made

        return call


@pytest.fixture
def runtime(monkeypatch):
    found = Runtime()
    monkeypatch.setattr(cupy_graphs, "cuda", lambda: SimpleNamespace(runtime=found))
    monkeypatch.setattr(cupy_graphs, "import_module", missing)
    return found


def missing(name):
    raise ImportError(name)


def test_instantiation_does_not_disturb_captures_of_others(runtime, monkeypatch):
    """The mode of this thread is relaxed meanwhile, and what it was before after that, also after an error."""
    modes = []
    driver = SimpleNamespace(
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed"),
        cuThreadExchangeStreamCaptureMode=lambda mode: (modes.append((mode, len(runtime.calls))), (0, "global"))[1],
    )
    monkeypatch.setattr(cupy_graphs, "import_module", lambda name: driver)
    cupy_graphs.CupyGraphs().end_capture(5, 0)
    assert modes == [("relaxed", 1), ("global", 2)]
    runtime.fails = ("graphInstantiate",)
    with pytest.raises(RuntimeError):
        cupy_graphs.CupyGraphs().end_capture(5, 0)
    assert [mode for mode, _ in modes] == ["relaxed", "global"] * 2


def test_the_streams_are_made_once(runtime):
    graphs = cupy_graphs.CupyGraphs()
    assert graphs.own_streams(2, 0) == [101, 102] and graphs.own_streams(1, 0) == [101]
    assert graphs.own_streams(3, 0) == [101, 102, 103]
    assert runtime.calls == [("streamCreateWithFlags", "non-blocking")] * 3


def test_a_capture_and_its_end(runtime):
    graphs = cupy_graphs.CupyGraphs()
    graphs.begin_capture(5, 0)
    event = graphs.record(5, 0)
    graphs.wait(6, event, 0)
    graphs.forget(event, 0)
    made = graphs.end_capture(5, 0)
    graphs.replay(made, 9, 0)
    graphs.destroy(made, 0)
    names = [name for name, *_ in runtime.calls]
    assert names == [
        "streamBeginCapture", "eventCreateWithFlags", "eventRecord", "streamWaitEvent", "eventDestroy",
        "streamEndCapture", "graphInstantiate", "graphDestroy", "graphLaunch", "graphExecDestroy",
    ]  # fmt: skip
    ended, instance = runtime.calls[5], runtime.calls[6]
    assert runtime.calls[0][1:] == (5, "relaxed") and ended[1:] == (5,)
    assert (
        runtime.calls[7][1:] == instance[1:] and runtime.calls[8][1:] == (made, 9) and runtime.calls[9][1:] == (made,)
    )


def test_a_graph_that_cannot_be_instantiated_is_freed(runtime):
    runtime.fails = ("graphInstantiate",)
    with pytest.raises(RuntimeError, match="graphInstantiate"):
        cupy_graphs.CupyGraphs().end_capture(5, 0)
    assert runtime.calls[-1][0] == "graphDestroy"


def test_an_abandoned_capture_raises_nothing(runtime):
    cupy_graphs.CupyGraphs().abandon_capture(5, 0)
    assert [name for name, *_ in runtime.calls] == ["streamEndCapture", "graphDestroy"]
    runtime.fails = ("streamEndCapture",)
    cupy_graphs.CupyGraphs().abandon_capture(5, 0)


@ts.kernel
def bend(x: Tensor["M", "N", ts.f32], t: float, out: Tensor["M", "N", ts.f32]):
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16] * t + 0.25, out[row : row + 16])


@ts.function
def branches(x: Tensor["M", "N", ts.f32], t: float = 1.5) -> Tensor["M", "N", ts.f32]:
    a = bend(x, 2.0)
    return (bend(bend(a, 0.5), 3.0) - bend(bend(x, t), -1.0)) + bend(a, t)


class TestOnGpu:
    pytestmark = gpu_only

    def test_replays_are_right_and_follow_their_inputs(self):
        import cupy

        x = cupy.zeros((64, 64), cupy.float32)
        kinds = []
        for seed in range(6):
            x[...] = cupy.asarray(np.random.default_rng(seed).standard_normal((64, 64), np.float32))
            found = branches(x).get()
            a = x.get().astype(np.float64) * 2 + 0.25
            b, c = (a * 0.5 + 0.25) * 3 + 0.25, -(x.get() * 1.5 + 0.25) + 0.25
            np.testing.assert_allclose(found, b - c + a * 1.5 + 0.25, rtol=1e-5, atol=1e-5)
            run = functions.last_run(branches)
            assert run is not None
            kinds.append(run.replayed)
        assert kinds[0] is False and kinds[-1] is True

    def test_inside_of_a_capture_of_the_caller(self):
        import cupy

        x, stream = cupy.ones((64, 64), cupy.float32), cupy.cuda.Stream(non_blocking=True)
        with stream:
            eager = branches(x)
            stream.begin_capture()
            made = branches(x)
            graph = stream.end_capture()
            x *= 3
            graph.launch()
            eager = branches(x)
            stream.synchronize()
            assert (made == eager).all()

    def test_torch_graphs(self):
        torch = pytest.importorskip("torch")
        x = torch.ones(64, 64, device="cuda")
        for _ in range(3):
            eager = branches(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = branches(x)
        x *= 3
        graph.replay()
        eager = branches(x)
        torch.cuda.synchronize()
        assert torch.equal(made, eager)
