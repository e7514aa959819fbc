"""Lists of tensors as arguments: how they are bound, passed, planned for and made up."""
# ruff: noqa: F821  names of dims are strings in annotations

from dataclasses import replace

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.errors import ArgumentError, SourceError
from tessera.ir.dims import symbol
from tessera.program import Argument, Parameter, Program
from tessera.runtime import api, execute, inputs, launch
from tessera.runtime.bind import bind
from tests.runtime.fake_cuda import aligned
from tests.runtime.test_plan import cold, driver, library  # noqa: F401  fixtures

N = symbol("N")
PARAMETERS = (
    Parameter("xs", "list", "f32", (N,), length=-1),
    Parameter("y", "tensor", "f32", (N,)),
    Parameter("out", "tensor", "f32", (N,), "out"),
)


def array(size=16, dtype=np.float32):
    return np.ones(size, dtype)


def make_total():
    @ts.kernel
    def total(xs: list[Tensor["N", ts.f32]], y: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
        p = tile.program_id(0) * 16
        acc = tile.load(y[p : p + 16])
        for i in tile.range(len(xs)):
            acc = acc + xs[i][p : p + 16]
        tile.store(acc, out[p : p + 16])

    return total


# Binding --------------------------------------------------------------------------------------------------------------


def test_a_list_is_bound_tensor_by_tensor():
    xs = [array(), array(), array()]
    for given in (xs, tuple(xs)):
        binding = bind("k", PARAMETERS, (given, array()), {})
        assert binding.dims == {"N": 16, "len(xs)": 3} and binding.lengths == {"xs": 3}
        assert [binding.arrays[f"xs[{i}]"] is x for i, x in enumerate(xs)] == [True] * 3
        assert [a is x for a, x in zip(binding.argument(PARAMETERS[0]), xs, strict=True)] == [True] * 3
        assert binding.omitted == {"out": (16,)}


def test_the_alignment_is_that_of_the_worst():
    room = np.zeros(64, np.float32)
    start = -room.ctypes.data % 16 // 4
    xs = [room[start : start + 16], room[start + 18 : start + 34]]
    assert bind("k", PARAMETERS, (xs, array()), {}).alignment["xs"] == 8
    assert bind("k", PARAMETERS, ([], array()), {}).alignment["xs"] == 16


def test_an_empty_list():
    assert bind("k", PARAMETERS, ([], array()), {}).dims == {"N": 16, "len(xs)": 0}


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({"xs": array()}, "TS203", "'xs' is a list of tensors, but a ndarray was passed"),
        ({"xs": 3}, "TS203", "'xs' is a list of tensors, but the number 3 was passed"),
        ({"xs": [array(), 3]}, "TS203", r"'xs\[1\]' is a tensor of f32, but the number 3 was passed"),
        ({"xs": [array(), array(16, np.int32)]}, "TS204", r"'xs\[1\]' must have dtype f32"),
        ({"xs": [array(), np.ones((16, 1), np.float32)]}, "TS304", r"'xs\[1\]' has 1 axes \[N\]"),
        ({"xs": [array(), array(17)]}, "TS302", r"'xs\[1\]' has the shape \[17\] and 'xs\[0\]' \[16\]"),
        ({"xs": [array(17), array(17)]}, "TS302", r"the dim N is 17 on axis 0 of 'xs\[0\]' but 16 on axis 0 of 'y'"),
        ({"xs": [array(32)[::2]]}, "TS603", r"'xs\[0\]' has the strides \[2\]; the tensors of a list are contiguous"),
        ({"y": [array()]}, "TS203", "'y' is one tensor, but a list of 1 was passed"),
    ],
)
def test_wrong_lists(given, code, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        bind("k", PARAMETERS, (), {"xs": [array()], "y": array(), **given})
    assert caught.value.code == code


def test_outputs_that_share_memory_with_a_tensor_of_a_list():
    x = array()
    with pytest.raises(ArgumentError, match=r"'out' is written by k and shares memory with 'xs\[1\]'"):
        bind("k", PARAMETERS, ([array(), x], array(), x), {})
    bind("k", PARAMETERS, ([x, x], x, array()), {})  # inputs may


def test_a_program_is_for_one_length():
    fixed = (Parameter("xs", "list", "f32", (N,), length=2), *PARAMETERS[1:])
    with pytest.raises(ArgumentError, match="'xs' has 3 tensors, and this program was compiled for 2"):
        bind("k", fixed, ([array()] * 3, array()), {})


# Programs -------------------------------------------------------------------------------------------------------------


def test_a_program_as_json():
    program = compile_kernel(make_total(), {"N": 40, "len(xs)": 3}).program
    assert program is not None
    assert program.parameters[0] == Parameter("xs", "list", "f32", (N,), "in", 16, (), 3)
    assert program.launches[0].arguments[:2] == (Argument("pointers", "xs"), Argument("pointer", "y"))
    assert Program.from_json(program.to_json()) == program


def test_lanes_of_a_program():
    program = compile_kernel(make_total(), {"N": 40, "len(xs)": 2}).program
    assert program is not None
    xs, y = [np.arange(40, dtype=np.float32), np.ones(40, np.float32)], np.full(40, 0.5, np.float32)
    arguments = {"xs": xs, "y": y, "out": np.full(40, np.nan, np.float32)}
    outcome = execute.emulate(program, arguments, {"N": 40})
    assert np.array_equal(outcome.outputs["out"], xs[0] + xs[1] + y)


# Calls ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["interpret", "emulate"])
def test_calls_on_the_host(lane, monkeypatch):
    chosen = replace(api.config(), backend=lane)
    monkeypatch.setattr(api, "config", lambda: chosen)
    total, xs, y = make_total(), [np.arange(40, dtype=np.float32), np.ones(40, np.float32)], array(40)
    assert np.array_equal(total(xs, y), xs[0] + xs[1] + y)
    assert np.array_equal(total([], y), y) and np.array_equal(total(tuple(xs[:1]), y), xs[0] + y)
    run = api.last_run(total)
    assert run is not None and run.lane == lane
    with pytest.raises(ArgumentError, match="total needs a list of tensors for 'xs', but a ndarray was passed"):
        total(y, y)
    with pytest.raises(ArgumentError, match="total needs a list of tensors for 'xs'"):
        total(y=y)


def test_bare_tensors_are_as_the_call_has_them():
    @ts.kernel
    def weighted(xs: list[Tensor], w: Tensor["L", ts.f32], y: Tensor, out: Tensor["N", ts.f32]):
        p = tile.program_id(0) * 16
        acc = tile.load(y[p : p + 16])
        for i in tile.static_range(len(xs)):
            acc = acc + xs[i][p : p + 16] * w[i]
        tile.store(acc, out[p : p + 16])

    xs, w = [np.arange(40, dtype=np.float32), np.ones(40, np.float32)], np.array([2, 3, 4], np.float32)
    y, out = np.full(40, 0.5, np.float32), np.zeros(40, np.float32)
    weighted(xs, w, y, out)
    assert np.array_equal(out, y + xs[0] * 2 + xs[1] * 3)
    assert np.array_equal(weighted(xs[:1], w, y), y + xs[0] * 2) and len(api._state(weighted)._resolved) == 1
    weighted([x.astype(np.float16) for x in xs], w, y, out)
    assert np.array_equal(out, y + xs[0] * 2 + xs[1] * 3) and len(api._state(weighted)._resolved) == 2
    weighted([x[:30].copy() for x in xs], w, y, out)  # of a size of its own: zero outside, like any window
    assert np.array_equal(out[:30], (y + xs[0] * 2 + xs[1] * 3)[:30]) and np.array_equal(out[30:], y[30:])


def test_sizes_of_bare_tensors_are_checked():
    @ts.kernel
    def scaled(xs: list[Tensor], y: Tensor["M", "N", ts.f32], out: Tensor["M", "N", ts.f32]):
        row = tile.program_id(0) * 16
        acc = tile.load(y[row : row + 16])
        for x in xs:
            acc = acc + x[row : row + 16, 0 : tile.context().N]
        tile.store(acc, out[row : row + 16])

    y = np.ones((20, 8), np.float32)
    assert np.array_equal(scaled([y, y], y), y * 3)
    with pytest.raises(ArgumentError, match=r"the dim M is 19 on axis 0 of 'xs\[0\]' but 20 on axis 0 of 'y'"):
        scaled([y[:19].copy()], y)


# Launches -------------------------------------------------------------------------------------------------------------


def test_a_launch_passes_the_addresses_of_a_list(driver, cold, library):  # noqa: F811
    total, y, out = make_total(), aligned((40,)), aligned((40,))
    xs, others = [aligned((40,)) for _ in range(3)], [aligned((40,)) for _ in range(3)]
    for given in (xs, xs, others, xs, tuple(others)):
        total(given, y, out)
    assert len(cold) == 1 and len(driver.launches) == 5
    expected = [(*(x.pointer for x in given), y.pointer, out.pointer, 40) for given in (xs, xs, others, xs, others)]
    assert [slots for _, _, slots, _, _ in driver.launches] == expected
    assert not driver.written and not driver.allocated and not driver.waits


def test_the_length_is_part_of_a_plan_and_of_a_program(driver, cold, library):  # noqa: F811
    total, y, out = make_total(), aligned((40,)), aligned((40,))
    xs = [aligned((40,)) for _ in range(3)]
    for count in (3, 2, 3, 2, 0, 0):
        total(xs[:count], y, out)
    assert len(cold) == 3 and [len(slots) - 3 for _, _, slots, _, _ in driver.launches] == [3, 2, 3, 2, 1, 1]
    assert driver.launches[-1][2] == (0, y.pointer, out.pointer, 40)
    assert len(driver.loaded) == 1  # the fake cubins are equal


def test_a_warm_call_sees_what_shares_memory(driver, cold, library):  # noqa: F811
    total, y, out = make_total(), aligned((40,)), aligned((40,))
    xs = [aligned((40,)) for _ in range(2)]
    total(xs, y, out)
    with pytest.raises(ArgumentError, match=r"'out' is written by total and shares memory with 'xs\[1\]'"):
        total([xs[0], out], y, out)
    with pytest.raises(ArgumentError, match="must have dtype f32"):
        total([xs[0], aligned((40,), np.int32)], y, out)
    assert len(cold) == 3


def test_a_misaligned_tensor_of_a_list_is_another_program(driver, cold, library):  # noqa: F811
    total, y, out = make_total(), aligned((40,)), aligned((40,))
    total([aligned((40,)), aligned((40,))], y, out)
    total([aligned((40,)), aligned((40,), shift=4)], y, out)
    assert len(cold) == 2 and len({id(p) for _, known in api._state(total)._programs.items() for p in known}) == 2


def test_new_lists_while_a_graph_is_captured(driver, cold, library):  # noqa: F811
    total, y, out = make_total(), aligned((40,)), aligned((40,))
    total([aligned((40,))] * 2, y, out)
    driver.captured.add(library.current_stream)
    given = [aligned((40,)) for _ in range(2)]
    total(given, y, out)
    other = aligned((56,))
    total([other] * 2, aligned((56,)), aligned((56,)))  # a cold call, of code that is loaded
    assert len(cold) == 2 and len(driver.loaded) == 1
    expected = [tuple(x.pointer for x in given), (other.pointer, other.pointer)]
    assert [slots[:2] for _, _, slots, _, _ in driver.launches[1:]] == expected


def test_more_tensors_than_a_launch_has_room_for():
    # A pointer a tensor, one each for y and out, and N.
    most = (32_764 - 24) // 8
    program = compile_kernel(make_total(), {"N": 40, "len(xs)": most}).program
    assert program is not None and program.parameters[0].length == most == 4092
    message = (
        r"kernel 'total' is passed 4095 tensors, whose addresses and sizes take 32768 bytes of arguments, and a launch "
        "has room for 32764"
    )
    with pytest.raises(SourceError, match=message) as caught:
        compile_kernel(make_total(), {"N": 40, "len(xs)": most + 1})
    assert caught.value.code == "TS511" and caught.value.loc is not None


# Made-up inputs -------------------------------------------------------------------------------------------------------


def test_lengths_of_made_up_lists():
    lists = [Parameter(name, "list", "f32", (N,), length=-1) for name in ("a", "b", "c")]
    assert inputs.choose_lengths("k", lists, {}) == {"len(a)": 3, "len(b)": 3, "len(c)": 3}
    assert inputs.choose_lengths("k", lists, {"b": "5"}) == {"len(a)": 5, "len(b)": 5, "len(c)": 5}
    assert inputs.choose_lengths("k", lists, {"c": "0", "b": "2"}) == {"len(a)": 2, "len(b)": 2, "len(c)": 0}
    for text in ("x", "-1", "1.5", ""):
        with pytest.raises(ArgumentError, match="--arg a is the length of a list"):
            inputs.choose_lengths("k", lists, {"a": text})
    fixed = [Parameter("a", "list", "f32", (N,), length=2)]
    assert inputs.choose_lengths("k", fixed, {}) == {"len(a)": 2}
    with pytest.raises(ArgumentError, match="'k' was made for 2 tensors in 'a', not 3"):
        inputs.choose_lengths("k", fixed, {"a": "3"})


def test_made_up_lists():
    parameters = (Parameter("xs", "list", "f32", (N,), length=3), *PARAMETERS[1:])
    arrays = inputs.make_arrays(parameters, {"N": 8}, 0)
    assert [x.shape for x in arrays["xs"]] == [(8,)] * 3 and not np.array_equal(arrays["xs"][0], arrays["xs"][1])
    with pytest.raises(ArgumentError, match="these dims ask for"):
        inputs.make_arrays(parameters, {"N": 2**29}, 0)


def test_the_interpreter_checks_lists():
    kernel = compile_kernel(make_total(), {"N": 16, "len(xs)": 2}).stages[0].module.kernel()
    out = np.zeros(16, np.float32)
    for xs, message in [
        ([array()], "'xs' must be a list of 2 arrays, not 1"),
        (array(), "'xs' must be a list of 2 arrays, not a ndarray"),
        ([array(), array(17)], r"'xs\[1\]' has the shape \[17\]"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            execute.interpret(kernel, {"xs": xs, "y": array(), "out": out}, {"N": 16})


def test_an_edited_dump_that_writes_a_list():
    from tessera.ir.parser import parse_module
    from tessera.ir.printer import print_module

    module = compile_kernel(make_total(), {"N": 16, "len(xs)": 2}).stages[0].module
    text = (
        print_module(module)
        .replace("window %out", "window %x")
        .replace("store", "%z: i64 = constant {value = 0, dtype = i64}\n  store")
    )
    assert "window %x" in text
    lines = text.split("\n")
    place = next(i for i, line in enumerate(lines) if "window %x" in line)
    lines.insert(place, "  %o: i64 = constant {value = 0, dtype = i64}\n  %x: view<[N], f32> = element %xs, %o")
    edited = parse_module(
        "\n".join(lines).replace('("xs", "in"), ("y", "in"), ("out", "out")', '("xs", "in"), ("y", "in")')
    )
    with pytest.raises(SourceError, match="'xs' is written here, but its role is \"in\""):
        compile_kernel(edited, {"N": 16})


class TestOnAGpu:
    pytestmark = [pytest.mark.gpu, pytest.mark.skipif(launch.device_count() == 0, reason="needs a GPU")]

    def test_lists_of_cupy_arrays(self):
        import cupy

        total = make_total()
        y = cupy.full(1000, 0.5, cupy.float32)
        for seed in range(3):
            xs = [
                cupy.random.default_rng(seed + number).standard_normal(1000, dtype=cupy.float32) for number in range(4)
            ]
            for count in (0, 1, 4, 4):
                found = total(xs[:count], y)
                expected = y.copy()
                for x in xs[:count]:
                    expected += x
                assert cupy.array_equal(found, expected)

    def test_lists_on_two_streams(self):
        import cupy

        total, y = make_total(), cupy.ones(1000, cupy.float32)
        xs = [cupy.full(1000, number, cupy.float32) for number in (1, 2)]
        cupy.cuda.Device().synchronize()
        found = []
        for _ in range(2):
            with cupy.cuda.Stream(non_blocking=True):
                found += [total(xs, y), total(xs[::-1], y)]
        cupy.cuda.Device().synchronize()
        assert all((out == 4).all() for out in found)

    def test_a_thousand_tensors(self):
        import cupy

        whole = cupy.arange(1000 * 64, dtype=cupy.float32).reshape(1000, 64) % 7
        found = make_total()(list(whole), cupy.ones(64, cupy.float32))
        assert cupy.array_equal(found, 1 + whole.sum(axis=0))  # whole numbers: every sum is exact

    def test_a_captured_graph_keeps_its_list(self):
        import cupy

        total, y, out = make_total(), cupy.zeros(1000, cupy.float32), cupy.zeros(1000, cupy.float32)
        xs = [cupy.full(1000, number, cupy.float32) for number in (1, 2)]
        total([y, y], y, out)
        cupy.cuda.Device().synchronize()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            total(xs, y, out)
            graph = stream.end_capture()
            xs[0].fill(5)
            graph.launch(stream)
        cupy.cuda.Device().synchronize()
        assert (out == 7).all()
