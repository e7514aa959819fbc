"""CUDA graphs of functions on a make-believe GPU: replays run their launches in any order that the graph allows, on
memory that arrays give back when they go, so a missing edge, a stale address or shared memory is a wrong answer.
"""

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.config import Config
from tessera.errors import EnvironmentProblem
from tessera.runtime import api, arrays, function_graphs, function_launch, functions, launch, plan
from tessera.runtime.parameters import ParameterStore, use_store
from tests.runtime import executing_cuda
from tests.runtime.test_functions_cuda import Copied, make_layer, on_host, pytestmark, values  # noqa: F401


@pytest.fixture
def gpu(monkeypatch):
    """A library whose memory is used again; `gpu.driver` has `gpu.multiprocessors` of them on each device."""
    library = executing_cuda.Pool()
    library.driver, library.multiprocessors = executing_cuda.Driver(library), 2
    library.driver.multiprocessors = lambda device: library.multiprocessors
    library.copies = []
    monkeypatch.setattr(arrays, "ADAPTERS", [library, *arrays.ADAPTERS])
    monkeypatch.setattr(plan, "READERS", dict(plan.READERS))
    monkeypatch.setattr(launch, "LAUNCHER", launch.Launcher(library.driver))
    monkeypatch.setattr(api, "device_arch", lambda device: "sm_80")
    monkeypatch.setattr(function_launch, "GRAPHS", function_graphs.GraphCache())

    def compiled(kernel, dims, options, build):
        program = replace(build(), cubin=f"{kernel.name} {len(library.driver.programs)}".encode())
        library.driver.programs[program.cubin] = program
        return program

    def gathered(pointer, info, stream, device):
        copy = np.ascontiguousarray(arrays.as_numpy(pointer, info.shape, info.strides, info.dtype))
        library.copies.append(made := Copied(library.array(copy)))
        return made

    monkeypatch.setattr(api.programs, "compiled", compiled)
    monkeypatch.setattr(function_launch, "gathered", gathered)
    return library


@ts.kernel
def bend(x: Tensor["M", "N", ts.f32], t: float, out: Tensor["M", "N", ts.f32]):
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16] * t + 0.25, out[row : row + 16])


@ts.kernel
def join(a: Tensor["M", "N", ts.f32], b: Tensor["M", "N", ts.f32], out: Tensor["M", "N", ts.f32]):
    row = tile.program_id(0) * 16
    tile.store(a[row : row + 16] * 0.5 - b[row : row + 16], out[row : row + 16])


def make_branches():
    """Ten launches of one block each, four of them at a time; kernels of the author's, which nothing joins."""

    @ts.function
    def branches(x: Tensor["M", "N", ts.f32], t: float = 1.5) -> Tensor["M", "N", ts.f32]:
        a = bend(x, 2.0)
        b = bend(bend(a, 0.5), 3.0)
        c = bend(a, -1.0)
        d = bend(x, t)
        e = bend(bend(d, 0.5), t)
        return join(join(b, c), join(d, e))

    return branches


def expected_of(definition, *args, **kwargs):
    (found,) = on_host(definition, *args, **kwargs)
    return found.tobytes()


def test_the_second_equal_call_captures_and_later_ones_replay(gpu):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    kinds = []
    for number in range(5):
        x.memory[...] = values(16, 16, seed=number).astype(np.float32)  # in place: the address stays
        result = branches(x)
        assert result.memory.tobytes() == expected_of(branches, x.memory)
        kinds.append(functions.last_run(branches).replayed)
        del result
    assert kinds == [False, True, True, True, True]
    assert len(gpu.driver.graphs) == 1 and gpu.driver.replays == [(0, 7)] * 4


def test_results_that_are_kept_are_other_addresses(gpu):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    kept = [branches(x) for _ in range(3)]
    assert not gpu.driver.graphs and len({one.pointer for one in kept}) == 3
    del kept
    for _ in range(3):  # two addresses in turn, as where a loop holds the last result while it computes the next
        kept = branches(x)
        other = branches(x)
        assert kept.memory.tobytes() == other.memory.tobytes() == expected_of(branches, x.memory)
        del kept, other
    assert 1 <= len(gpu.driver.graphs) <= 3 and len(gpu.driver.replays) >= 4


def test_launches_side_by_side_have_edges_and_memory_of_their_own(gpu):
    x = gpu.array(values(16, 16).astype(np.float32))
    workspaces = {}
    for multiprocessors in (1, 2):
        gpu.multiprocessors = multiprocessors
        launch.LAUNCHER._multiprocessors.clear()
        branches = make_branches()
        for seed in range(12):  # each replay runs in another order
            x.memory[...] = values(16, 16, seed=seed).astype(np.float32)
            assert branches(x).memory.tobytes() == expected_of(branches, x.memory), seed
        graph = gpu.driver.graphs[-1]
        count, chained = len(graph.nodes), [(n, n - 1) for n in range(1, len(graph.nodes))]
        assert count == len(functions.last_run(branches).kernels) >= 6
        assert (graph.edges() == chained) == (multiprocessors == 1)
        workspaces[multiprocessors] = functions.last_run(branches).footprint
    assert workspaces[1].workspace < workspaces[2].workspace <= workspaces[2].unshared


def test_numbers_are_a_part_of_the_graph(gpu):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    for t in (0.5, 0.5, 2.0, 2.0, 0.5, 0.0, -0.0, 0.0, -0.0, -0.0):
        assert branches(x, t).memory.tobytes() == expected_of(branches, x.memory, t), t
    assert len(gpu.driver.graphs) == 4


def test_negative_zero_is_another_number(gpu):
    @ts.kernel
    def times(x: Tensor["M", "N", ts.f32], t: float, out: Tensor["M", "N", ts.f32]):
        row = tile.program_id(0) * 16
        tile.store(x[row : row + 16] * t, out[row : row + 16])

    @ts.function
    def twice(x: Tensor["M", "N", ts.f32], t: float) -> Tensor["M", "N", ts.f32]:
        return times(times(x, 1.0), t)

    x = gpu.array(np.ones((8, 8), np.float32))
    for t in (0.0, 0.0, -0.0, -0.0):
        result = twice(x, t).memory
        assert (np.signbit(result) == np.signbit(t)).all() and (result == 0).all()
        del result
    assert len(gpu.driver.graphs) == 2


def test_streams_have_graphs_of_their_own(gpu):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    for stream in (7, 7, 9, 9, 9):
        gpu.current_stream = stream
        assert branches(x).memory.tobytes() == expected_of(branches, x.memory)
    assert [stream for _, stream in gpu.driver.replays] == [7, 9, 9] and len(gpu.driver.graphs) == 2


def test_inputs_that_move_are_never_captured(gpu):
    branches = make_branches()
    for seed in range(4):
        x = gpu.array(values(16, 16, seed=seed).astype(np.float32))
        assert branches(x).memory.tobytes() == expected_of(branches, x.memory)
    assert not gpu.driver.graphs


def test_lists_matrices_and_views(gpu):
    layer, x, w = make_layer(), values(40, 24), gpu.array(values(24, 24))
    whole = gpu.array(x)
    view = executing_cuda.fake_cuda.Array(whole.memory[::2])
    for _ in range(4):
        whole.memory[...] = x
        (found,) = on_host(layer, [x[::2].copy()] * 3, np.array(w.memory))
        assert layer([view] * 3, w).memory.tobytes() == found.tobytes()
        x = x + x
    xs = [gpu.array(values(20, 24, seed=i)) for i in range(3)]
    for _ in range(3):
        result = layer(xs, w)
        assert result.memory.tobytes() == expected_of(layer, [one.memory for one in xs], w.memory)
        del result
    assert gpu.driver.replays


def test_parameters_of_the_store_change_under_a_graph(gpu):
    @ts.function
    def scaled(x: Tensor["M", "N", ts.f32]) -> Tensor["M", "N", ts.f32]:
        return bend(bend(x, 1.0) * ts.ops.learnable_scale_parameter(), 4.0)

    x, store = gpu.array(np.ones((8, 6), np.float32)), ParameterStore()
    with use_store(store):
        for value in (1.0, 1.0, 1.0, 0.5, 0.25):
            if value != 1.0:
                store[store.keys()[0]] = np.asarray(value, store[store.keys()[0]].dtype)
            assert (scaled(x).memory == 1.25 * value * 4 + 0.25).all()
    assert len(gpu.driver.replays) == 4
    with use_store(ParameterStore()):  # at another address
        assert (scaled(x).memory == 5.25).all()
    assert len(gpu.driver.replays) == 4


def test_seeds_are_never_captured(gpu):
    @ts.function
    def noisy(x: Tensor["M", "N", ts.f32]) -> Tensor["M", "N", ts.f32]:
        return bend(ts.ops.dropout(bend(x, 1.0), 0.5), 1.0)

    x = gpu.array(np.ones((20, 10), np.float32))
    found = {noisy(x).memory.tobytes() for _ in range(4)}
    assert len(found) == 4 and not gpu.driver.graphs


def test_one_launch_is_queued(gpu):
    @ts.function
    def double(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
        return x * 2.0

    x = gpu.array(np.ones(30, np.float32))
    for _ in range(4):
        assert (double(x).memory == 2).all()
    assert not gpu.driver.graphs


def test_graphs_can_be_turned_off(gpu, monkeypatch):
    chosen = Config(graphs="off")
    monkeypatch.setattr(function_launch, "config", lambda: chosen)
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    for _ in range(4):
        assert branches(x).memory.tobytes() == expected_of(branches, x.memory)
    assert not gpu.driver.graphs and {one[2] for one in gpu.driver.launches} == {7}


# ---- inside of a capture of the caller's --------------------------------------------------------------------------


def test_in_a_capture_of_the_caller_launches_are_queued_on_its_stream(gpu):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    for _ in range(3):
        branches(x)
    replays, launched = len(gpu.driver.replays), len(gpu.driver.launches)
    gpu.driver.captured.add(7)
    for _ in range(3):
        assert branches(x).memory.tobytes() == expected_of(branches, x.memory)
    new = gpu.driver.launches[launched:]
    assert len(gpu.driver.replays) == replays and {one[2] for one in new} == {7}
    assert len(new) == 3 * len(functions.last_run(branches).kernels) and not functions.last_run(branches).replayed


def workspace_blocks(call):
    return [array.pointer for array in call.captured]


@pytest.mark.parametrize("private", [False, True])
def test_memory_of_a_captured_call_stays(gpu, private):
    """The caller's graph may run at any time: nothing else may get the workspace of a captured call."""
    gpu.keeps_captured = private
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    branches(x)
    (warm,) = functions.state_of(branches).warm.values()
    gpu.driver.captured.add(7)
    branches(x)
    branches(x)
    gpu.driver.captured.clear()
    blocks = workspace_blocks(warm.call)
    assert len(set(blocks)) == (0 if private else 2)
    gc.collect()
    size = functions.last_run(branches).workspace
    others = [gpu.empty((size,), ts.i8, 0).pointer for _ in range(3)]
    assert not set(others) & set(blocks)


def test_copies_of_views_stay_too(gpu):
    layer, w = make_layer(), gpu.array(values(24, 24))
    view = executing_cuda.fake_cuda.Array(gpu.array(values(40, 24)).memory[::2])
    layer([view] * 2, w)
    gpu.keeps_captured = True
    gpu.driver.captured.add(7)
    layer([view] * 2, w)
    (warm,) = functions.state_of(layer).warm.values()
    assert warm.call.captured == gpu.copies[-2:]


def test_no_memory_in_a_capture_is_an_error_that_says_so(gpu):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    branches(x)
    gpu.driver.captured.add(7)
    gpu.free.clear()
    gpu.fails = RuntimeError("cudaErrorStreamCaptureUnsupported")
    launched = len(gpu.driver.launches)
    with pytest.raises(
        EnvironmentProblem, match="branches needs memory .* captured .* cudaErrorStreamCapture"
    ) as caught:
        branches(x)
    assert caught.value.code == "TS516" and len(gpu.driver.launches) == launched
    gpu.driver.captured.clear()
    gpu.fails = MemoryError("out of memory")
    with pytest.raises(MemoryError, match="out of memory"):  # the library's own word, where nothing is captured
        branches(x)


# ---- captures that go wrong, and many graphs ------------------------------------------------------------------------


def test_a_capture_that_fails_is_told_once_and_not_tried_again(gpu):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    gpu.driver.refuses = RuntimeError("cudaErrorUnknown")
    branches(x)
    with pytest.warns(RuntimeWarning, match="branches cannot be captured .* one by one: cudaErrorUnknown"):
        result = branches(x)
    assert result.memory.tobytes() == expected_of(branches, x.memory)
    del result
    gpu.driver.refuses = None
    assert branches(x).memory.tobytes() == expected_of(branches, x.memory) and not gpu.driver.graphs


def test_a_launch_that_fails_leaves_no_capture_open(gpu, monkeypatch):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    branches(x)
    real, calls = gpu.driver.into_graph, []

    def fails(*given):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("cudaErrorInvalidValue")
        return real(*given)

    monkeypatch.setattr(gpu.driver, "into_graph", fails)
    with pytest.warns(RuntimeWarning, match="cudaErrorInvalidValue"):
        result = branches(x)
    assert gpu.driver.capture is None and result.memory.tobytes() == expected_of(branches, x.memory)


def test_while_another_thread_captures_launches_are_queued(gpu):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    branches(x)
    with function_graphs._capturing:
        assert branches(x).memory.tobytes() == expected_of(branches, x.memory)
    assert not gpu.driver.graphs
    branches(x)
    assert len(gpu.driver.graphs) == 1


def test_graphs_go_when_many_others_came(gpu, monkeypatch):
    monkeypatch.setattr(function_launch, "GRAPHS", function_graphs.GraphCache(most=3))
    branches, arrays_ = make_branches(), [gpu.array(values(16, 16, seed=s).astype(np.float32)) for s in range(5)]
    for x in arrays_:
        for _ in range(3):
            assert branches(x).memory.tobytes() == expected_of(branches, x.memory)
    gc.collect()
    alive = [graph.alive for graph in gpu.driver.graphs]
    assert alive == [False, False, True, True, True] and len(function_launch.GRAPHS) == 3
    before = len(gpu.driver.graphs)
    for _ in range(3):
        assert branches(arrays_[0]).memory.tobytes() == expected_of(branches, arrays_[0].memory)
    assert len(gpu.driver.graphs) == before + 1


def test_the_graph_in_use_outlives_the_cache(gpu, monkeypatch):
    monkeypatch.setattr(function_launch, "GRAPHS", cache := function_graphs.GraphCache(most=1))
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    for _ in range(2):
        branches(x)
    cache.put("another key", object())
    gc.collect()
    assert len(cache) == 1 and gpu.driver.graphs[0].alive
    assert branches(x).memory.tobytes() == expected_of(branches, x.memory)
    assert len(gpu.driver.replays) == 2


def test_calls_that_never_repeat_drive_out_no_graph(gpu):
    branches, x = make_branches(), gpu.array(values(16, 16).astype(np.float32))
    for _ in range(2):
        branches(x)
    for number in range(function_graphs.MOST_SEEN + 10):
        assert function_launch.GRAPHS.find(("moving", number)) == (False, None)
    assert len(function_launch.GRAPHS) == 1 and len(function_launch.GRAPHS._seen) == function_graphs.MOST_SEEN
    (warm,) = functions.state_of(branches).warm.values()
    warm.call.last = None
    assert branches(x).memory.tobytes() == expected_of(branches, x.memory) and len(gpu.driver.graphs) == 1


def test_the_cache_under_threads():
    cache = function_graphs.GraphCache(most=8, most_seen=5)
    errors = []

    def work(seed):
        try:
            for number in range(300):
                key = (seed * number) % 13
                seen, graph = cache.find(key)
                if seen and graph is None:
                    cache.put(key, object())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not errors and len(cache) <= 8
