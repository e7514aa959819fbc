"""Calls of functions that are written for a signature, on a make-believe GPU whose launches run on the emulator.

The tests of general calls that are imported here run again, with the first warm call of each signature writing it.
"""

import ctypes
import gc
import struct
import sys
import threading
import weakref
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

import tessera as ts
from bench import stub_cuda
from tessera import Tensor
from tessera.config import config, using
from tessera.errors import TesseraError
from tessera.frontend import definition
from tessera.runtime import function_launch, functions, warm_code, workspace
from tests.runtime import executing_cuda
from tests.runtime.test_compiled import test_calls_with_options_are_warm_and_apart  # noqa: F401
from tests.runtime.test_function_graphs import (  # noqa: F401
    bend,
    expected_of,
    gpu,
    make_branches,
    test_a_capture_that_fails_is_told_once_and_not_tried_again,
    test_a_launch_that_fails_leaves_no_capture_open,
    test_calls_that_never_repeat_drive_out_no_graph,
    test_in_a_capture_of_the_caller_launches_are_queued_on_its_stream,
    test_inputs_that_move_are_never_captured,
    test_lists_matrices_and_views,
    test_memory_of_a_captured_call_stays,
    test_negative_zero_is_another_number,
    test_no_memory_in_a_capture_is_an_error_that_says_so,
    test_numbers_are_a_part_of_the_graph,
    test_parameters_of_the_store_change_under_a_graph,
    test_results_that_are_kept_are_other_addresses,
    test_seeds_are_never_captured,
    test_streams_have_graphs_of_their_own,
    test_the_second_equal_call_captures_and_later_ones_replay,
    test_while_another_thread_captures_launches_are_queued,
)
from tests.runtime.test_functions_cuda import make_layer, on_host, pytestmark, values  # noqa: F401


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """A plan gets its function when it first serves a call."""
    real = warm_code.WrittenCalls.served

    def served(self, form, plan, *rest):
        self._recent = plan
        real(self, form, plan, *rest)

    monkeypatch.setattr(warm_code.WrittenCalls, "served", served)


@pytest.fixture
def cold(monkeypatch):
    """Counts the calls that were prepared."""
    calls, real = [], function_launch.cold_call
    monkeypatch.setattr(function_launch, "cold_call", lambda *given: (calls.append(1), real(*given))[1])
    return calls


def make_plain():
    """One that never replays."""
    return ts.compile(make_branches(), graphs=False)


def floats(*shape, seed=0):
    return values(*shape, seed=seed).astype(np.float32)


def test_launches_that_are_queued(gpu, cold):  # noqa: F811
    branches = make_plain()
    for seed in range(5):
        gpu.current_stream = 7 + seed % 2
        x, t = gpu.array(floats(16, 16, seed=seed)), 0.5 * seed
        before = len(gpu.driver.launches)
        result = branches(x, t)
        assert result.memory.tobytes() == expected_of(branches._definition, x.memory, t)
        assert {one[2] for one in gpu.driver.launches[before:]} == {gpu.current_stream}
    assert len(branches._definition.written) == 1 and len(cold) == 1 and not gpu.driver.graphs
    run = branches.last_run
    assert run.kernels and not run.replayed


def test_a_stream_without_a_workspace_gets_one(gpu):  # noqa: F811
    branches, x = make_plain(), gpu.array(floats(16, 16))
    for _ in range(4):
        branches(x)
    source = branches._definition.written[0].source
    assert "KEPT_BLOCK" in source
    expected = expected_of(branches._definition, x.memory)
    for stream in range(20, 20 + 2 * workspace.MOST_KEPT):  # more than are kept
        gpu.current_stream = stream
        for _ in range(2):
            assert branches(x).memory.tobytes() == expected
    assert len(branches._definition.written) == 1


def test_a_large_workspace_is_made_for_each_call(gpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(workspace, "KEPT_BYTES", 100)
    branches, x = make_plain(), gpu.array(floats(16, 16))
    for _ in range(5):
        before = gpu.made
        assert branches(x).memory.tobytes() == expected_of(branches._definition, x.memory)
        assert gpu.made in (before + 2, before + 1)  # the pool has had it
    assert "ALLOCATE" in branches._definition.written[0].source


def view(x):
    return executing_cuda.fake_cuda.Array(x.memory[:, ::2])


@pytest.mark.parametrize("graphs", [False, True])
def test_another_argument_takes_another_way(gpu, cold, graphs):  # noqa: F811
    branches = ts.compile(make_branches(), graphs=graphs)
    x = gpu.array(floats(16, 16))
    for _ in range(5):
        branches(x, 2.0)
    own, other = branches._definition, gpu.array(floats(32, 16))
    wide = gpu.array(floats(16, 32))
    shifted = executing_cuda.fake_cuda.aligned((16, 16), np.float32, 0, 4)
    shifted.memory[...] = x.memory
    gpu.known(shifted)
    for count, arguments in enumerate([(other, 2.0), (view(wide), 2.0), (shifted, 2.0), (x,), (x, np.float32(2))]):
        for _ in range(4):
            found = branches(*arguments).memory.tobytes()
            assert found == expected_of(own, np.ascontiguousarray(arguments[0].memory), *arguments[1:])
        assert len(cold) == 2 + count
    for wrong in [
        (gpu.array(np.ones((16, 16), np.int32)), 2.0),
        (gpu.array(np.ones(16, np.float32)), 2.0),
        (x.memory, "2"),
        (x, True),
        (x, 2.0, 1),
        (),
    ]:
        launched = len(gpu.driver.launches)
        with pytest.raises(TesseraError):
            branches(*wrong)
        assert len(gpu.driver.launches) == launched
    assert branches(x, 2.0).memory.tobytes() == expected_of(own, x.memory, 2.0)


def test_keywords_have_functions_of_their_own(gpu, cold):  # noqa: F811
    branches, x = make_branches(), gpu.array(floats(16, 16))
    for _ in range(5):
        assert branches(x, t=0.5).memory.tobytes() == expected_of(branches, x.memory, 0.5)
        assert branches(t=2.0, x=x).memory.tobytes() == expected_of(branches, x.memory, 2.0)
    known = functions.state_of(branches).written._known
    assert [len(written) for written in known.values()] == [1, 1] and branches.written == () and len(cold) == 2


def test_the_mode_and_the_seed(gpu, cold):  # noqa: F811
    @ts.function
    def noisy(x: Tensor["N", ts.f32]):
        return ts.ops.dropout(x, 0.5) if ts.is_training() else x * 1.0

    x = gpu.array(np.ones(200, np.float32))
    runs = []
    for _ in range(3):
        for _ in range(3):
            assert (noisy(x).memory == 1).all()
        with ts.train():
            ts.manual_seed(3)
            drawn = [noisy(x).memory.copy() for _ in range(4)]
        assert all(set(np.unique(one)) == {0, 2} for one in drawn) and len({one.tobytes() for one in drawn}) == 4
        runs.append([one.tobytes() for one in drawn])
    assert runs[0] == runs[1] == runs[2]
    assert len(cold) == 2 and len(noisy.written) == 2


def test_guards_of_numbers(gpu, cold):  # noqa: F811
    @ts.function
    def divided(x: Tensor["N", ts.f32], t: float):
        return x / t

    x = gpu.array(np.ones(30, np.float32))
    for t in (2.0, 4.0, 8.0, 0.5):
        assert (divided(x, t).memory == 1 / t).all()
    launched = len(gpu.driver.launches)
    with pytest.raises(TesseraError, match="'t' is 0.0, but it must not be 0"):
        divided(x, 0.0)
    assert len(gpu.driver.launches) == launched and len(divided.written) == 1 and len(cold) == 1
    assert (divided(x, 1e300).memory == 0).all() and len(cold) == 2  # a number that f32 does not hold
    assert (divided(x, 2.0).memory == 0.5).all()


def test_numbers_that_the_host_computes(gpu, cold):  # noqa: F811
    @ts.function
    def product(x: Tensor["B", "D", ts.f32], t: float, u: float) -> Tensor["B", "D", ts.f32]:
        return bend(bend(x, t * 2.0), u - t)

    x = gpu.array(np.ones((5, 4), np.float32))
    for t, u in ((1.5, 2.0), (0.0, 1.0), (1.5, 2.0), (-0.0, 1.0), (4.0, 4.0), (0.25, 4.0)):
        assert product(x, t, u).memory.tobytes() == expected_of(product, x.memory, t, u)
    assert len(cold) == 1 and len(product.written) == 1


def test_settings_in_force(gpu, cold):  # noqa: F811
    branches, x = make_branches(), gpu.array(floats(16, 16))
    for _ in range(4):
        branches(x)
    replays = len(gpu.driver.replays)
    assert replays and branches.written
    with using(replace(config(), graphs="off")):
        assert branches(x).memory.tobytes() == expected_of(branches, x.memory)
    assert len(gpu.driver.replays) == replays and len(cold) == 2
    with using(replace(config(), backend="interpret")), pytest.raises(TesseraError, match="the interpret lane"):
        branches(x)
    interpreted = ts.compile(branches, backend="interpret")
    with pytest.raises(TesseraError, match="the interpret lane"):
        interpreted(x)


def test_options_follow_the_settings_around_a_call(gpu, cold):  # noqa: F811
    """The options of `ts.compile` change what is in force; a call under other settings is another one."""
    plain, x = make_plain(), gpu.array(floats(16, 16))
    for _ in range(4):
        plain(x)
    assert len(plain._definition.written) == 1 and len(cold) == 1
    with using(replace(config(), backend="interpret")), pytest.raises(TesseraError, match="the interpret lane"):
        plain(x)
    assert plain(x).memory.tobytes() == expected_of(plain._definition, x.memory)
    assert not gpu.driver.graphs


def test_threads_share_no_argument_memory(gpu, monkeypatch):  # noqa: F811
    @ts.function
    def bent(x: Tensor["M", "N", ts.f32], t: float) -> Tensor["M", "N", ts.f32]:
        return bend(x, t)

    inputs = [gpu.array(floats(16, 16, seed=seed)) for seed in range(3)]
    for x in inputs:
        bent(x, 1.0)
    together, seen = threading.Barrier(3), []

    def slow(function, grid, threads, arguments, *rest):
        together.wait(10)  # all three are between packing and launching
        seen.append(struct.unpack_from("<Q", arguments.slots)[0])

    monkeypatch.setattr(gpu.driver, "launch", slow)
    workers = [threading.Thread(target=bent, args=(x, 2.0)) for x in inputs]
    [one.start() for one in workers], [one.join() for one in workers]
    assert len(bent.written) == 1 and sorted(seen) == sorted(x.pointer for x in inputs)


def test_replay_is_one_comparison_and_one_graph(gpu, cold, monkeypatch):  # noqa: F811
    branches, x = make_branches(), gpu.array(floats(16, 16))
    for _ in range(4):
        branches(x)
    found = []
    real = function_launch.DeviceCall.graph_of
    monkeypatch.setattr(
        function_launch.DeviceCall, "graph_of", lambda self, *given: (found.append(1), real(self, *given))[1]
    )
    for seed in range(3):
        x.memory[...] = floats(16, 16, seed=seed)
        assert branches(x).memory.tobytes() == expected_of(branches, x.memory)
        assert functions.last_run(branches).replayed
    assert found == [] and len(branches.written) == 1
    kept = branches(x)
    again = branches(x)  # at another address
    assert found and kept.memory.tobytes() == again.memory.tobytes() and not functions.last_run(branches).replayed


def test_what_was_written_goes_with_the_function(gpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(definition, "FUNCTIONS", {})
    branches, x = make_branches(), gpu.array(floats(16, 16))
    for _ in range(4):
        branches(x)
    (written,) = branches.written
    gone = weakref.ref(written)
    definition.FUNCTIONS.clear()
    del written, branches
    gc.collect()
    assert gone() is None


# ---- CuPy ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stub():
    pytest.importorskip("cupy")
    with stub_cuda.stubbed(stub_cuda.CUPY_DEVICE, records=True) as made:
        yield made


def make_steps(count):
    @ts.function
    def steps(x: Tensor["M", "N", ts.f32], t: float = 1.5) -> Tensor["M", "N", ts.f32]:
        for _ in range(count):
            x = bend(x, t)
        return x

    return steps


def passed(launched, count):
    """The first arguments of a launch, as it reads them."""
    pointers = ctypes.cast(launched[9], ctypes.POINTER(ctypes.c_void_p))
    return [ctypes.cast(pointers[n], ctypes.POINTER(ctypes.c_uint64)).contents.value for n in range(count)]


@pytest.mark.parametrize("count", [1, 3])
def test_cupy_arrays_that_are_queued(stub, cold, count):
    import cupy

    steps = ts.compile(make_steps(count), graphs=False)
    for number in range(5):
        x = stub_cuda.cupy_array((16, 64))
        before = len(stub.queued)
        made = steps(x)
        launched = stub.queued[before:]
        assert type(made) is cupy.ndarray and made.shape == (16, 64) and len(launched) == count
        if number == 0:
            continue  # memory of launches that are over is written again
        assert passed(launched[0], 1) == [x.data.ptr]
        assert made.data.ptr in passed(launched[-1], 4)
    assert len(cold) == 1 and len(steps._definition.written) == 1 and "NDARRAY(" in steps._definition.written[0].source


def test_cupy_arrays_that_are_replayed(stub, cold):
    steps, x = make_steps(3), stub_cuda.cupy_array((16, 64))
    for _ in range(3):
        steps(x)
    queued, replayed = len(stub.queued), len(stub.replayed)
    for _ in range(3):
        steps(x)
        assert functions.last_run(steps).replayed
    assert len(stub.replayed) == replayed + 3 and len(stub.queued) == queued and len(set(map(id, stub.replayed))) == 1
    assert "REPLAY(graph.handle" in steps.written[0].source
    steps(x, 2.0)  # another number, and a call of two arguments: its signature has no function yet
    assert len(cold) == 2 and len(stub.queued) == queued + 3
    stub.captured.add(0)
    steps(x)
    assert len(stub.queued) == queued + 6 and not functions.last_run(steps).replayed
    stub.captured.clear()
    steps(x)
    assert functions.last_run(steps).replayed and len(steps.written) <= warm_code.MOST_OF_A_PLAN


def test_cupy_arrays_of_another_device_or_thread(stub, cold, monkeypatch):
    import cupy

    steps, x, device, entered, contexts = make_steps(1), stub_cuda.cupy_array((16, 64)), [0], [], []
    stub._calls = replace(stub.calls(), current_device=lambda: device[0])
    for _ in range(3):
        steps(x)
    monkeypatch.setattr(cupy.cuda, "Device", lambda one: (entered.append(one), stub_cuda.nullcontext())[1])
    monkeypatch.setattr(cupy.cuda.runtime, "setDevice", contexts.append)
    steps(x)
    assert entered == []
    device[0] = 1
    steps(x)
    assert entered and set(entered) == {0}
    device[0] = 0
    worker = threading.Thread(target=lambda: [steps(x) for _ in range(2)])
    worker.start(), worker.join()
    assert contexts == [0] and len(cold) == 1 and len(stub.queued) == 7


def python_calls(call):
    """The names of the functions of this package that a call enters."""
    found = []

    def note(frame, event, _):
        file = frame.f_code.co_filename
        if event == "call" and ("tessera" in file and "tests" not in file and "stub_cuda" not in file):
            found.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def test_a_written_call_enters_two_functions(stub):
    """What a caller waits for is straight lines: the definition's own call, and what was written."""
    x, steps, one = stub_cuda.cupy_array((16, 64)), make_steps(3), copy(bend)
    queued, out = ts.compile(make_steps(8), graphs=False), stub_cuda.cupy_array((16, 64))
    for _ in range(4):
        steps(x), queued(x), one(x, 2.0, out), one(x, 2.0)
    assert steps.written and len(one.written) == 2
    assert python_calls(lambda: steps(x)) == ["__call__", "call_steps"]
    assert python_calls(lambda: queued(x)) == ["__call__", "call_steps"]
    assert python_calls(lambda: one(x, 3.0)) == ["__call__", "call_bend"]
