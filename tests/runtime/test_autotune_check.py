"""What answers are compared with: the smaller problem, scratch memory for every kind of output, and distances."""

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.dtypes import parse
from tessera.runtime import api, arrays, autotune_check
from tessera.runtime.autotune_check import Judge, Problem, largest_distance, small_dims
from tessera.runtime.bind import bind
from tessera.runtime.execute import emulate
from tessera.runtime.launch import Launcher
from tessera.search import search
from tests.runtime import fake_cuda
from tests.runtime.fake_tuning import Behaviour, Device, Setup, cubin_of, make_double, right
from tests.suite import load


@ts.kernel
def product(a: Tensor["M", "K", ts.bf16], b: Tensor["K", "N", ts.bf16], c: Tensor["M", "N", ts.f32]):
    i, j = tile.program_id(0) * 64, tile.program_id(1) * 64
    acc = tile.zeros([64, 64])
    for k in tile.range(0, tile.context().K, 32):
        acc = tile.mma(a[i : i + 64, k : k + 32], b[k : k + 32, j : j + 64], acc)
    tile.store(acc, c[i : i + 64, j : j + 64])


@ts.kernel
def rows(x: Tensor["M", "D", ts.bf16], index: Tensor["M", ts.i32], out: Tensor["M", "D", ts.bf16]):
    i = tile.program_id(0) * 16
    tile.store(x[i : i + 16] * tile.cast(tile.sum(index[i : i + 16]), ts.f32), out[i : i + 16])


@pytest.fixture
def library(monkeypatch):
    made = fake_cuda.Library()
    monkeypatch.setattr(arrays, "ADAPTERS", [made, *arrays.ADAPTERS])
    return made


class Storage:
    """A shape and a dtype that say that they are an array; nothing reads it."""


def shrunk(kernel, shapes, **dtypes):
    """The dims of the small problem of a call of these shapes."""
    state = api.KernelState(kernel)
    given = {}
    for name, shape in shapes.items():
        dtype = dtypes.get(name, ml_dtypes.bfloat16)
        # One element that every index leads to: the sizes alone are looked at.
        one = fake_cuda.Array(np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape)))
        one.strides = tuple(int(np.prod(shape[axis + 1 :])) * one.dtype.itemsize for axis in range(len(shape)))
        given[name] = one
    parameters = [p for p in state.signature]
    binding = bind(kernel.name, parameters, (), given)
    traced = state.kernel(binding.dims)
    binding.parameters = state.parameters_of(traced)
    program = compile_kernel(kernel, binding.dims).program
    return small_dims(traced, binding, [program])


def test_what_is_small_stays(library):
    shapes = {"a": (100, 64), "b": (64, 200), "c": (100, 200)}
    assert shrunk(product, shapes, c=np.float32) == {"M": 100, "K": 64, "N": 200}


def test_dims_of_results_shrink_before_those_of_sums(library):
    size = 8192
    shapes = {"a": (size, size), "b": (size, size), "c": (size, size)}
    found = shrunk(product, shapes, c=np.float32)
    assert found["K"] == size and found["M"] < 300 and found["N"] < 300
    assert all(found[name] % 16 == 0 and found[name] // 16 % 2 for name in ("M", "N"))  # a last block that is a part


def test_compiled_dims_stay_and_integers_keep_every_size(library):
    size = 1 << 20
    shapes = {"x": (size, 64), "index": (size,), "out": (size, 64)}
    assert shrunk(rows, shapes, index=np.int32) is None
    assert shrunk(rows, {"x": (300, 64), "index": (300,), "out": (300, 64)}, index=np.int32) == {"M": 300, "D": 64}


def test_a_problem_that_stays_large_is_compared_bit_by_bit(library, monkeypatch):
    monkeypatch.setattr(autotune_check, "MOST_ELEMENTS", 1)
    setup = Setup(make_double())

    def near(memory):
        right(memory)
        memory["out"][5] = np.nextafter(memory["out"][5], np.float32(9))

    setup.behave(Behaviour(right), Behaviour(near), Behaviour(right))
    report = setup.tune()
    assert report.checked == "bits alone: no smaller problem is small enough"
    assert [row.verdict for row in report.rows] == ["ok", "wrong", "ok"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_without_bars_most_of_the_first_decide(library, monkeypatch, place):
    monkeypatch.setattr(autotune_check, "MOST_ELEMENTS", 1)

    def wrong(memory):
        memory["out"][...] = memory["x"] * 2.5

    setup = Setup(make_double())
    setup.behave(*(Behaviour(wrong, 1e-6) if number == place else Behaviour(right) for number in range(3)))
    report = setup.tune()
    assert [row.verdict == "wrong" for row in report.rows] == [number == place for number in range(3)]
    assert report.winner != place


@pytest.mark.parametrize("layout", ["plain", "shifted", "strided", "reversed"])
def test_outputs_of_any_layout_have_scratch_memory_of_their_own(library, layout):
    kernel = make_double()
    state = api.KernelState(kernel)
    x = fake_cuda.aligned((100,))
    x.memory[...] = 1.0
    out = fake_cuda.aligned((100,), shift=4 if layout == "shifted" else 0)
    if layout in ("strided", "reversed"):
        whole = np.zeros(200, np.float32)
        out = fake_cuda.Array(whole[::2] if layout == "strided" else whole[:100][::-1])
    traced = state.kernel({"N": 100})
    binding = bind(kernel.name, state.parameters_of(traced), (x, out), {})
    problem = Problem(Device(), binding)
    (scratch,) = problem.scratch
    info, own = binding.infos["out"], problem.binding.infos["out"]
    assert own.alignment == info.alignment and own.strides == info.strides and own.pointer != info.pointer
    low, high = own.extent
    assert (own.pointer + low, own.pointer + high) == (scratch.start, scratch.start + scratch.size)
    problem.reset()
    assert np.isnan(arrays.as_numpy(own.pointer, (100,), info.strides, ts.f32)).all()
    assert (out.memory == 0).all() and problem.binding.infos["x"].pointer == x.pointer


def test_the_small_problem_is_a_corner_of_the_caller_s_arrays(library, monkeypatch):
    monkeypatch.setattr(autotune_check, "MOST_ELEMENTS", 100)
    setup = Setup(make_double())
    device, programs = setup.device, [candidate.program for candidate in setup.candidates]
    judge = Judge(Problem(device, setup.binding), setup.kernel, programs, Launcher(device.driver))
    assert judge.small.binding.dims == {"N": 40} and judge.checked == "error bars at N=40, and bits"
    assert (judge.bars["out"].r == setup.arrays["x"].memory[:40].astype(np.float64) * 2).all()
    small = arrays.as_numpy(judge.small.binding.infos["x"].pointer, (40,), None, ts.f32)
    assert (small == setup.arrays["x"].memory[:40]).all()


@pytest.mark.parametrize("asserts", [True, False])
def test_calls_that_no_smaller_one_stands_for(library, monkeypatch, asserts):
    monkeypatch.setattr(autotune_check, "MOST_ELEMENTS", 100)

    @ts.kernel.autotune(space=dict(BLOCK=[32, 64]), key=["N"])
    def picky(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
        start = tile.program_id(0) * tile.context().BLOCK
        if asserts:
            tile.assert_(tile.num_programs(0) > 10, "too short")
        other = 0.0 if asserts else x[700] * 0.0
        tile.store(x[start : start + tile.context().BLOCK] * 2.0 + other, out[start : start + tile.context().BLOCK])

    setup = Setup(picky)
    setup.behave(Behaviour(right), Behaviour(right))
    report = setup.tune()
    sentence = (
        "no smaller problem is small enough"
        if asserts
        else "a smaller problem goes wrong (the index 700 is outside axis 0"
    )
    assert report.checked.startswith(f"bits alone: {sentence}") and report.measured


@pytest.mark.parametrize("name", ["f32", "bf16", "f16", "fp8_e4m3", "i32"])
def test_largest_distance(name):
    dtype = parse(name)
    a = np.arange(6).astype(dtype.numpy)
    b = a.copy()
    assert largest_distance(a.view(np.uint8), b.view(np.uint8), dtype) == 0
    b[3] = a[3] + a[2]
    assert largest_distance(a.view(np.uint8), b.view(np.uint8), dtype) == 2
    if dtype.is_float:
        b[4] = np.nan
        assert largest_distance(a.view(np.uint8), b.view(np.uint8), dtype) == np.inf
        a[4] = np.nan
        assert largest_distance(a.view(np.uint8), b.view(np.uint8), dtype) == 2


def test_candidates_have_texts_of_their_own():
    setup = Setup(make_double())
    assert len({cubin_of(candidate.program) for candidate in setup.candidates}) == 3


def test_candidates_of_warpgroups_are_checked_as_others_are(library, monkeypatch):
    """Their emitted CUDA on this CPU, against the bars and the bits of a candidate of the base lane."""

    def prepare(problem, launcher, program):
        infos = problem.binding.infos.items()
        given = {name: arrays.as_numpy(info.pointer, info.shape, None, info.dtype) for name, info in infos}
        return lambda: emulate(program, given, {**program.static, **problem.binding.dims}) and None

    monkeypatch.setattr(Problem, "prepare", prepare)
    kernel = load("gemm_nt").pinned({"BLOCK_N": 64, "BLOCK_K": 64})
    shapes, random = {"a": (144, 64), "b": (72, 64), "output": (144, 72)}, np.random.default_rng(0)
    given = {name: fake_cuda.aligned(shape, ml_dtypes.bfloat16) for name, shape in shapes.items()}
    for array in given.values():
        array.memory[...] = random.standard_normal(array.shape)
    traced = api.KernelState(kernel).kernel({"M": 144, "N": 72, "K": 64})
    binding = bind(kernel.name, api.KernelState(kernel).parameters_of(traced), (), given)
    found = [search(kernel, binding.dims, "sm_90a", pins={"family": family}, wide=False) for family in ("", "wgmma")]
    base, lane = (each.candidates[0] for each in found)
    assert (base.schedule.family, lane.schedule.copies) == ("", "tma")
    device = Device()
    judge = Judge(Problem(device, binding), traced, [base.program, lane.program], Launcher(device.driver))
    for candidate in (base, lane):
        verdict, _ = judge.judge(candidate.program)
        assert (verdict.ok, verdict.reason, verdict.exact) == (True, "", True)
    assert judge.checked == "error bars at M=144,K=64,N=72, and bits"
