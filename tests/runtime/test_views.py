"""Tensors that are views: any strides are read and written as they are, on every lane, with the same bits."""
# ruff: noqa: F821  names of dims are strings in annotations

from dataclasses import replace

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.config import Config
from tessera.dtypes import bf16
from tessera.errors import ArgumentError
from tessera.frontend.evaluator import trace
from tessera.ir.core import Module
from tessera.ir.opdef import TILE
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.strides import stride_symbols, with_strides
from tessera.program import Program
from tessera.runtime import api, emulator, launch
from tessera.runtime.nvrtc import compile_cubin

needs_compiler = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")
GPU = launch.device_count() > 0
LANES = ["interpret", pytest.param("emulate", marks=needs_compiler)]


@ts.kernel
def affine(x: Tensor["B", "S", "D", ts.f32], bias: Tensor["D", ts.f32], out: Tensor["B", "S", "D", ts.f32]):
    batch = tile.program_id(0)
    row = tile.program_id(1) * 16
    tile.store(x[batch, row : row + 16] * 2.0 + bias[0 : bias.shape[0]], out[batch, row : row + 16])


@ts.kernel
def product(a: Tensor["M", "K", ts.bf16], b: Tensor["K", "N", ts.bf16], out: Tensor["M", "N", ts.bf16]):
    row = tile.program_id(0) * 32
    tile.store(tile.mma(a[row : row + 32], b), out[row : row + 32])


@pytest.fixture
def backend(monkeypatch):
    def choose(name):
        monkeypatch.setattr(api, "config", lambda: replace(Config(), backend=name))

    return choose


def values(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


VIEWS = {
    "columns": lambda x: x[:, :, 8:40],
    "unaligned columns": lambda x: x[:, :, 3:35],
    "rows": lambda x: x[:, 5:25, :32],
    "every second element": lambda x: x[:, :, ::2][:, :, :32],
    "every second row": lambda x: x[:, ::2, :32],
    "backwards": lambda x: x[::-1, ::-1, 31::-1],
    "transposed": lambda x: x[:, :32, :20].transpose(0, 2, 1),
    "one row many times": lambda x: np.broadcast_to(x[:, :1, :32], (2, 20, 32)),
    "one column": lambda x: x[:, :, 7:8],
    "one batch": lambda x: x[1:, :, 8:40],
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", VIEWS)
def test_inputs(backend, lane, name):
    backend(lane)
    x = VIEWS[name](values(2, 40, 66))
    bias = values(80)[: 2 * x.shape[2] : 2]
    assert (affine(x, bias) == x * np.float32(2) + bias).all()


ON_BOTH = ("unaligned columns", "backwards", "transposed")  # masked, from behind, element by element


@pytest.mark.parametrize(
    ("lane", "name"),
    [("interpret", name) for name in VIEWS if name != "one row many times"]
    + [pytest.param("emulate", name, marks=needs_compiler) for name in ON_BOTH],
)
def test_outputs(backend, lane, name):
    backend(lane)
    memory = np.full((2, 40, 66), np.float32(-1))
    out = VIEWS[name](memory)
    x, bias = values(*out.shape), values(out.shape[2])
    expected = x * np.float32(2) + bias
    assert affine(x, bias, out) is None and (out == expected).all()
    assert (memory == -1).sum() == memory.size - out.size  # nothing else was touched


@pytest.mark.parametrize("lane", LANES)
def test_an_output_beside_its_input(backend, lane):
    backend(lane)
    memory = values(2, 20, 64)
    x, out = memory[:, :, :32], memory[:, :, 32:]
    expected = x * np.float32(2)
    affine(x, np.zeros(32, np.float32), out)
    assert (out == expected).all()


def test_an_output_whose_elements_share_memory(backend):
    backend("interpret")
    out = np.lib.stride_tricks.as_strided(np.zeros((2, 20, 32), np.float32), (2, 20, 32), (2560, 64, 4))
    with pytest.raises(ArgumentError, match="'out' is written .* share memory: its strides are .640, 16, 1."):
        affine(values(2, 20, 32), values(32), out)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    ("a_view", "b_view"),
    [
        (lambda a: a[:, :48], lambda b: b[:48, 16:48]),  # cp.async of 16 bytes
        (lambda a: a[:, 2:50], lambda b: b[:48, 1:33]),  # of 4, and of elements
        (lambda a: a.T[:40, :48], lambda b: b.T[:48, :32]),
    ],
)
def test_products(backend, lane, a_view, b_view):
    backend(lane)
    a, b = a_view(values(64, 64).astype(bf16.numpy)), b_view(values(64, 64).astype(bf16.numpy))
    backend("interpret")
    expected = product(np.ascontiguousarray(a), np.ascontiguousarray(b))
    backend(lane)
    assert (product(a, b).view(np.uint16) == expected.view(np.uint16)).all()


def compiled(x, arch="sm_80"):
    state = api._state(affine)
    binding, _ = api._bind(state, None, (x, values(x.shape[2])), {})
    return state.program_for(binding, arch, on_gpu=False)


def aligned(*shape):
    memory = np.zeros(int(np.prod(shape)) * 4 + 16, np.uint8)
    start = -memory.ctypes.data % 16
    return memory[start : start + int(np.prod(shape)) * 4].view(np.float32).reshape(shape)


def test_views_keep_wide_accesses_where_strides_allow():
    memory = aligned(2, 40, 64)
    assert "ts_ld_global_if<float, 4>(ld_global + r" in compiled(memory[:, :, 8:40]).cuda
    narrow = compiled(aligned(2, 40, 66)[:, :, :32]).cuda
    assert "ts_ld_global_if<float, 2>(ld_global + r" in narrow and "<float, 4>(ld_global + r" not in narrow
    assert "dim_x_stride2" in compiled(memory[:, :, ::2]).cuda


def test_the_guards_of_a_program_survive_json():
    program = compiled(aligned(2, 40, 64)[:, :, 8:40])
    (x, bias, out) = program.parameters
    assert [str(s) for s in x.strides] == ["x.stride0", "x.stride1", "1"] and bias.strides == out.strides == ()
    assert Program.from_json(program.to_json()) == program


def test_ir_with_strides_is_text():
    kernel = with_strides(trace(affine, {}).kernel(), {"x": stride_symbols("x", 3, True)})
    module = Module(TILE, [kernel])
    again = parse_module(print_module(module))
    assert print_module(again) == print_module(module)
    assert again.kernel().attributes["strides"] == kernel.attributes["strides"]
    assert again.kernel().attributes["dims"][-2:] == ("x.stride0", "x.stride1")


def test_programs_are_shared_by_views_that_look_alike():
    memory = aligned(2, 40, 64)
    assert compiled(memory[:, :, 8:40]) is compiled(memory[:, 3:30, 12:44])
    assert compiled(memory[:, :, 8:40]) is not compiled(np.ascontiguousarray(memory[:, :, 8:40]))
    assert compiled(memory[:, :, 8:40]) is not compiled(memory[:, :, ::2])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_views_compile_without_spills(arch):
    pytest.importorskip("cupy")
    program = compiled(aligned(2, 40, 64)[:, :, ::2], arch)
    result = compile_cubin(program.cuda, program.arch, program.name)
    assert all(resources.spill_stores == 0 for resources in result.resources.values())


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("name", VIEWS)
def test_on_a_gpu(name):
    import cupy

    memory = values(2, 40, 66)
    x = VIEWS[name](memory)
    view = cupy.lib.stride_tricks.as_strided(cupy.asarray(memory), x.shape, x.strides) if "many" in name else None
    moved = VIEWS[name](cupy.asarray(memory)) if view is None else view
    bias = values(x.shape[2])
    out = affine(moved, cupy.asarray(bias))
    assert (cupy.asnumpy(out) == x * np.float32(2) + bias).all()
    if view is None:
        target = VIEWS[name](cupy.full((2, 40, 66), -1, cupy.float32))
        affine(cupy.ascontiguousarray(moved), cupy.asarray(bias), target)
        assert (target == out).all()
