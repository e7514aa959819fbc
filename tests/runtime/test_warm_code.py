"""Calls that are written for a signature: they do what general ones do, and leave where anything is another way."""
# ruff: noqa: F821  names of dims are strings in annotations

import ctypes
import gc
import inspect
import linecache
import random
import struct
import threading
import traceback
from dataclasses import replace

import numpy as np
import pytest

import tessera as ts
from bench import stub_cuda
from tessera import Tensor, tile
from tessera.config import config, using
from tessera.errors import ArgumentError
from tessera.runtime import api, launch, warm_code
from tessera.runtime.bind import bind
from tessera.runtime.launch import Launcher
from tessera.runtime.warm_code import Cuda, Launches, Value
from tessera.runtime.warm_text import Text
from tests.runtime import fake_cuda, test_launch_maps
from tests.runtime.fake_cuda import Array, aligned
from tests.runtime.test_plan import cold, driver, library, make_scale  # noqa: F401

CALLS = 4  # the first is cold, two are general ones and write the call, and the fourth is that


def repeat(kernel, *arguments):
    for _ in range(CALLS):
        result = kernel(*arguments)
    assert len(kernel.written) == 1
    return result


def test_a_written_call_launches_what_general_ones_do(driver, cold, library):  # noqa: F811
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    repeat(scale, x, y, out, 3, 0.25)
    assert len(set(driver.launches)) == 1 and len(driver.launches) == CALLS and len(cold) == 1
    api._state(scale).last_run = None
    for number, (a, n, factor) in enumerate([(aligned((40, 64)), -5, 1.5), (x, 2**63 - 1, -0.0), (y, -(2**63), 7.0)]):
        library.current_stream = number
        assert scale(a, y, out, n, factor) is None
        bits = struct.unpack("<q", struct.pack("<f4x", factor))[0]
        assert driver.launches[-1] == ("scale", (3, 1, 1), (a.pointer, y.pointer, out.pointer, 40, n, bits), number, 0)
        assert api.last_run(scale).kernels[0].grid == (3,)
    assert len(cold) == 1 and len(scale.written) == 1


CHANGES = {
    "dtype": (lambda c: {**c, "x": aligned((40, 64), np.int32)}, "'x' must have dtype f32"),
    "shape": (lambda c: {**c, "x": aligned((40, 32))}, "the dim D is"),
    "rank": (lambda c: {**c, "x": aligned((40 * 64,))}, "'x'"),
    "device": (lambda c: {**c, "x": aligned((40, 64), device=1)}, "'x' is on GPU 1 but 'y' is on GPU 0"),
    "host": (lambda c: {**c, "x": np.zeros((40, 64), np.float32)}, "'x' is on the host but 'y' is on GPU 0"),
    "overlap": (lambda c: {**c, "out": c["x"]}, "'out' is written by scale and shares memory with 'x'"),
    "large": (lambda c: {**c, "n": 2**63}, "does not fit 64 bits"),
    "float": (lambda c: {**c, "n": 1.5}, "'n' takes an int"),
    "bool": (lambda c: {**c, "n": True}, "'n' takes an int"),
    "text": (lambda c: {**c, "n": "3"}, "'n'"),
    "none": (lambda c: {**c, "x": None}, "'x'"),
    "list": (lambda c: {**c, "x": [c["x"]]}, "'x'"),
    "more": (lambda c: {**c, "factor": 0.5, "more": 1}, "scale"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_wrong_argument_is_an_error_after_a_written_call(driver, kind):  # noqa: F811
    scale = make_scale()
    right = {"x": aligned((40, 64)), "y": aligned((40, 64)), "out": aligned((40, 64)), "n": 1}
    repeat(scale, *right.values())
    change, message = CHANGES[kind]
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            scale(*change(right).values())
    assert len(driver.launches) == CALLS
    scale(*right.values())
    assert len(driver.launches) == CALLS + 1


def test_another_right_argument_takes_another_way(driver, cold):  # noqa: F811
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    repeat(scale, x, y, out, 1)
    for count, arguments in [
        (2, (aligned((40, 64), shift=4), y, out, 1)),
        (3, (Array(np.zeros((40, 128), np.float32)[:, :64]), y, out, 1)),
        (4, tuple(aligned((48, 64)) for _ in range(3)) + (1,)),
        (5, tuple(aligned((40, 64), device=1) for _ in range(3)) + (1,)),
        (6, (x, y, out, np.int64(1))),
        (7, (x, y, out, 1, 0.5)),
        (8, (x, y, 1)),
    ]:
        for _ in range(CALLS):
            scale(*arguments)
            grid = (3, 1, 1)
            pointers = tuple(one.pointer for one in arguments if isinstance(one, Array))
            assert driver.launches[-1][1] == grid and driver.launches[-1][2][: len(pointers)] == pointers
        assert len(cold) == count
    assert len(scale.written) == warm_code.MOST_WRITTEN


def test_signatures_in_turn_are_all_written_but_those_that_never_repeat_are_not(driver, cold):  # noqa: F811
    scale = make_scale()
    calls = [tuple(aligned((rows, 64)) for _ in range(3)) + (1,) for rows in (16, 32, 48)]
    for one in calls:
        repeat_of = [scale(*one) for _ in range(CALLS)]
        assert repeat_of == [None] * CALLS
    known = scale.written
    assert len(known) == 3
    for one in calls * 3:
        scale(*one)
        assert driver.launches[-1][2][0] == one[0].pointer
    assert scale.written == known and len(cold) == 3
    never = make_scale()
    for _ in range(3):
        for rows in range(16, 64, 4):
            never(*(aligned((rows, 64)) for _ in range(3)), 1)
    assert never.written == ()


def test_keywords_and_grids_have_written_calls_of_their_own(driver, cold):  # noqa: F811
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    for call, grid in [
        (lambda: scale(n=1, out=out, y=y, x=x), (3, 1, 1)),
        (lambda: scale(x=x, out=out, y=y, n=1), (3, 1, 1)),
        (lambda: scale[4](x, y, out, 1), (4, 1, 1)),
        (lambda: scale[2].partial(x, y, out, 1), (2, 1, 1)),
    ]:
        for _ in range(CALLS + 1):
            call()
            assert driver.launches[-1][1] == grid
            assert driver.launches[-1][2][:5] == (x.pointer, y.pointer, out.pointer, 40, 1)
    written = api._state(scale).written._known
    assert len(cold) == 4 and len(written) == 4 and scale.written == ()
    with pytest.raises(ArgumentError, match="never written"):
        scale[2](x, y, out, 1)
    with pytest.raises(ArgumentError, match="takes integers"):
        scale[[3]](x, y, out, 1)
    with pytest.raises(ArgumentError, match="has no parameter 'z'"):
        scale(x=x, out=out, y=y, z=1)


def test_outputs_that_are_left_out(driver, cold):  # noqa: F811
    scale, x, y = make_scale(), aligned((40, 64)), aligned((40, 64))
    made = [scale(x, y, 3) for _ in range(CALLS + 2)]
    assert len(scale.written) == 1 and len(cold) == 1 and len({one.pointer for one in made}) == len(made)
    for one, launched in zip(made, driver.launches, strict=True):
        assert one.shape == (40, 64) and launched[2][:5] == (x.pointer, y.pointer, one.pointer, 40, 3)


def test_a_new_array_that_is_aligned_less_goes_the_general_way(driver, cold, library, monkeypatch):  # noqa: F811
    scale, x, y, shifts = make_scale(), aligned((40, 64)), aligned((40, 64)), [0]
    monkeypatch.setattr(library, "empty", lambda shape, dtype, device: aligned(shape, dtype.numpy, device, shifts[0]))
    repeat(scale, x, y, 3)
    shifts[0] = 4
    made = scale(x, y, 3)
    assert len(cold) == 2 and made.pointer % 16 == 4 and driver.launches[-1][2][2] == made.pointer


def test_lists(driver, cold):  # noqa: F811
    @ts.kernel
    def total(xs: list[Tensor["N", ts.f32]], y: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
        p = tile.program_id(0) * 16
        acc = tile.load(y[p : p + 16])
        for i in tile.static_range(len(xs)):
            acc = acc + tile.load(xs[i][p : p + 16])
        tile.store(acc, out[p : p + 16])

    a, b, y, out = (aligned((64,)) for _ in range(4))
    repeat(total, [a, b], y, out)
    total([b, a], y, out)
    assert len(cold) == 1 and driver.launches[-1][2] == (b.pointer, a.pointer, *driver.launches[0][2][2:])
    written = total.written
    total((a, b), y, out)  # a tuple: the general way
    assert driver.launches[-1] == driver.launches[0]
    total([a], y, out), total([a, b, a], y, out), total([], y, out)
    assert len(cold) == 4 and total.written == written
    with pytest.raises(ArgumentError, match="shares memory"):
        total([a, out], y, out)
    with pytest.raises(ArgumentError, match="xs"):
        total([a, 3], y, out)


def test_settings_in_force_are_asked_for(driver):  # noqa: F811
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    repeat(scale, x, y, out, 1)
    with using(replace(config(), backend="interpret")), pytest.raises(ArgumentError, match="the interpret lane"):
        scale(x, y, out, 1)
    scale(x, y, out, 1)
    assert len(driver.launches) == CALLS + 1


def test_threads_share_no_argument_memory(driver, monkeypatch):  # noqa: F811
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    repeat(scale, x, y, out, 0)
    together, seen, real = threading.Barrier(4), [], driver.launch

    def slow(function, grid, threads, arguments, *rest):
        together.wait(10)  # all four are between packing and launching
        seen.append(struct.unpack_from("<q", arguments.slots, 4 * launch.SLOT)[0])
        real(function, grid, threads, arguments, *rest)

    monkeypatch.setattr(driver, "launch", slow)
    workers = [threading.Thread(target=scale, args=(x, y, out, number)) for number in range(4)]
    [worker.start() for worker in workers], [worker.join() for worker in workers]
    assert sorted(seen) == [0, 1, 2, 3]


# ---- the text --------------------------------------------------------------------------------------------------------


def test_what_is_printed_is_what_runs(driver, capsys):  # noqa: F811
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    with using(replace(config(), dump=frozenset({"host"}))):
        repeat(scale, x, y, out, 1)
    printed = capsys.readouterr().err
    (written,) = scale.written
    assert written.source in printed and inspect.getsource(written) == written.source
    file = written.__code__.co_filename
    again = compile(written.source, file, "exec").co_consts[0]
    assert (again.co_code, again.co_consts) == (written.__code__.co_code, written.__code__.co_consts)
    known = {line[2:].split(":")[0] for line in printed.splitlines() if line.startswith("# ")}
    assert {name for name in written.__code__.co_names if name.isupper()} <= {*known, "MISSED", "UNREADABLE"}


def test_nothing_is_printed_unless_asked_for(driver, capsys):  # noqa: F811
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    repeat(scale, x, y, out, 1)
    assert capsys.readouterr() == ("", "")


def test_tracebacks_show_the_text_which_goes_with_the_kernel(driver, monkeypatch):  # noqa: F811
    scale, x, y, out = make_scale(), *(aligned((40, 64)) for _ in range(3))
    repeat(scale, x, y, out, 1)

    def fail(*given):
        raise RuntimeError("the launch failed")  # of CUDA, which is no reason to try another way

    monkeypatch.setattr(driver, "launch", fail)
    with pytest.raises(RuntimeError, match="the launch failed") as caught:
        scale(x, y, out, 1)
    assert "DRIVER.launch(FUNCTION, (3, 1, 1)" in "".join(traceback.format_exception(caught.value))
    (written,) = scale.written
    file = written.__code__.co_filename
    assert file in linecache.cache
    del written, scale, caught
    gc.collect()
    assert file not in linecache.cache


# ---- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_arguments_are_packed_as_the_general_way_packs_them(seed):
    """Random layouts of maps, lists, numbers and sizes, where some values change, and some only with the workspace."""
    draw = random.Random(seed)
    arguments = [*test_launch_maps.ARGUMENTS, *draw.choices(test_launch_maps.ARGUMENTS[3:], k=draw.randrange(4))]
    draw.shuffle(arguments)
    program, made = test_launch_maps.program(tuple(arguments)), fake_cuda.Library()
    test_launch_maps.ADAPTERS.insert(0, made)
    try:
        x, *xs = (aligned((300, 64), ts.bf16.numpy) for _ in range(3))
        binding = bind("k", test_launch_maps.PARAMETERS, (x, xs, 0.5, aligned((300,))), {})
        general, written = fake_cuda.Driver(), fake_cuda.Driver()
        prepared, again = (Launcher(one).prepare(program, binding, 7) for one in (general, written))
    finally:
        test_launch_maps.ADAPTERS.remove(made)
    # By place: x, the list (which nothing picks), the number, out, and the tensors of the list.
    first, kinds = [4096, None, 0.5, 16384, 32768, 65536], draw.choices(["changes", "fixed by base", "constant"], k=6)
    kinds[2] = draw.choice(["changes", "constant"])
    values = [
        Value.constant(number)
        if kind == "constant"
        else Value(f"given[{place}]" if kind == "changes" else f"base + {number}", kind)
        for place, (number, kind) in enumerate(zip(first, kinds, strict=True))
    ]
    text = Text()
    values += [Value.constant(number) for number in prepared.constants]
    Launches(text, Cuda(written, made, 0), again.launches, values).write("7")
    call = text.function("k", "given, base", config())
    for base in (0, 0, 1 << 20, 1 << 20, 0):
        steps = [{"changes": 64 * draw.randrange(3), "fixed by base": base, "constant": 0}[kind] for kind in kinds]
        given = [None if n is None else n + step for n, step in zip(first, steps, strict=True)]
        for one in prepared.launches:
            one.queue(general, [*given, *prepared.constants], 7, 0)
        call(given, base)
        slots = [one.launches[-1][2] for one in (general, written)]
        maps = sum({"map": 1, "maps": 2}.get(argument.kind, 0) for argument in arguments)
        encoded = [
            [made.encoded[one[16 * number]] for number in range(maps)]
            for made, one in zip((general, written), slots, strict=True)
        ]
        assert encoded[0] == encoded[1] and slots[0][16 * maps :] == slots[1][16 * maps :]


# ---- CuPy ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stub():
    pytest.importorskip("cupy")
    with stub_cuda.stubbed(stub_cuda.CUPY_DEVICE, records=True) as made:
        yield made


def new(shape=(40, 64), dtype=np.float32, shift=0):
    return stub_cuda.cupy_array(shape, dtype, shift)


def words(stub, count):
    """The first arguments of the last launch."""
    pointers = ctypes.cast(stub.queued[-1][9], ctypes.POINTER(ctypes.c_void_p))
    return [ctypes.cast(pointers[n], ctypes.POINTER(ctypes.c_uint64)).contents.value for n in range(count)]


def pointers(*arrays):
    return [array.data.ptr for array in arrays]


def test_cupy_arrays(stub, cold):  # noqa: F811
    scale, x, y, out = make_scale(), new(), new(), new()
    repeat(scale, x, y, out, 3)
    (written,) = scale.written
    assert "_c_contiguous" in written.source and "LAUNCH(" in written.source
    a, b, c = new(), new(), new()
    scale(a, b, c, 5)
    assert words(stub, 5) == [*pointers(a, b, c), 40, 5] and len(cold) == 1
    assert stub.queued[-1][:9] == stub.queued[0][:9] and len(stub.queued) == CALLS + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y, out: (new(dtype=np.int32), y, out, 3), "'x' must have dtype f32"),
        (lambda x, y, out: (new((40, 32)), y, out, 3), "the dim D is"),
        (lambda x, y, out: (x, y, x, 3), "shares memory"),
        (lambda x, y, out: (x, y, x[1:], 3), "S"),
        (lambda x, y, out: (x, y, out, 3.0), "takes an int"),
        (lambda x, y, out: (x, y, out, 2**63), "does not fit"),
        (lambda x, y, out: (x, y, out.get, 3), "'out'"),
    ],
)
def test_cupy_arrays_that_are_wrong(stub, make, message):
    scale, x, y, out = make_scale(), new(), new(), new()
    repeat(scale, x, y, out, 3)
    launched = len(stub.queued)
    with pytest.raises(ArgumentError, match=message):
        scale(*make(x, y, out))
    assert len(stub.queued) == launched


def test_cupy_arrays_that_are_another_case(stub, cold):  # noqa: F811
    scale, x, y, out = make_scale(), new(), new(), new()
    repeat(scale, x, y, out, 3)
    wide, tall = new((40, 128)), new((64, 40))
    for count, a in enumerate([new(shift=4), wide[:, :64], wide[:, 64:], tall.T, new()[::-1]]):
        for _ in range(CALLS):
            scale(a, y, out, 3)
            assert words(stub, 3) == pointers(a, y, out)
        assert len(cold) == count + 2 - (count > 1), count  # the two halves are of one signature
    assert len(scale.written) == warm_code.MOST_WRITTEN


def test_cupy_outputs_that_are_left_out(stub, cold):  # noqa: F811
    import cupy

    scale, x, y = make_scale(), new(), new()
    for _ in range(CALLS + 2):
        made = scale(x, y, 3)
        assert type(made) is cupy.ndarray and made.shape == (40, 64) and made.dtype == np.float32
        assert words(stub, 5) == [*pointers(x, y, made), 40, 3]
    assert len(scale.written) == 1 and "NDARRAY((40, 64), DTYPE)" in scale.written[0].source and len(cold) == 1


def test_another_current_device_or_a_new_thread_goes_the_general_way(stub, monkeypatch, cold):  # noqa: F811
    import cupy

    scale, x, y, out = make_scale(), new(), new(), new()
    device, entered = [0], []
    calls = stub.calls()
    stub._calls = replace(calls, current_device=lambda: device[0])
    repeat(scale, x, y, out, 3)
    entering = lambda device: (entered.append(device), stub_cuda.nullcontext())[1]  # noqa: E731
    monkeypatch.setattr(cupy.cuda, "Device", entering)
    scale(x, y, out, 3)
    assert entered == []
    device[0] = 1
    for _ in range(20):
        scale(x, y, out, 3)
    assert entered == [0] * 20 and len(scale.written) <= warm_code.MOST_OF_A_PLAN and len(cold) == 1
    device[0], contexts = 0, []
    monkeypatch.setattr(cupy.cuda.runtime, "setDevice", contexts.append)
    worker = threading.Thread(target=lambda: [scale(x, y, out, 3) for _ in range(3)])
    worker.start(), worker.join()
    assert contexts == [0] and len(stub.queued) == CALLS + 1 + 20 + 3


def test_the_current_stream_is_asked_for_by_every_call(stub, monkeypatch):
    import cupy

    streams = iter(range(100, 200))
    current = stub_cuda.SimpleNamespace
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda device: current(ptr=next(streams)))
    scale, x, y, out = make_scale(), new(), new(), new()
    for _ in range(CALLS + 3):
        scale(x, y, out, 3)
    assert len(scale.written) == 1
    assert len({one[8] for one in stub.queued}) == CALLS + 3
