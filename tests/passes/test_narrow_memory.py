"""One-byte dtypes through every kind of memory: vector widths, asynchronous copies, masks, swizzled shared layouts."""
# ruff: noqa: F821  (the names of dims)

import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel
from tessera.dtypes import from_storage, parse
from tessera.frontend.document import load_document
from tessera.frontend.grid import launch_grid
from tessera.ir.layout import shared_layout
from tessera.runtime import emulator, nvrtc
from tessera.runtime.inputs import poison, values
from tessera.runtime.interpreter import interpret

TEXT = """
import tessera as ts
from tessera import tile

@ts.kernel
def through_shared(x: tile.Tensor["M", "N", ts.{dtype}], out: tile.Tensor["M", "N", ts.{dtype}]):
    ctx = tile.context()
    row = tile.program_id(0) * 24
    state = tile.alloc_shared([24, ctx.N], ts.{dtype}, swizzle="xor")
    again = tile.alloc_shared([24, ctx.N], ts.{dtype})
    tile.copy_async(state, x[row : row + 24])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    tile.fill(again, 1)
    value = tile.where(state == again, again, state)
    tile.store(value, out[row : row + 24])
"""
DTYPES = ["i8", "bool", "fp8_e4m3", "fp8_e5m2", "f16"]


def compiled(dtype, dims, folder, arch="sm_80"):
    path = folder / "kernel.py"
    path.write_text(TEXT.format(dtype="bool_" if dtype == "bool" else dtype))
    return compile_kernel(load_document(path)["through_shared"], dims, arch)


def launch(compilation, dims, arguments, seed=0):
    kernel, text = compilation.target.kernel(), compilation.cuda[0]
    library = emulator.build(text.text, [text.name])
    given = [*(arguments[name] for name in text.pointers), *(dims[name] for name in text.sizes)]
    library.launch(text.name, launch_grid(kernel, dims), text.threads, text.shared_bytes, given, seed=seed)


@pytest.mark.parametrize(
    "dtype, columns, copy_bytes",
    [
        *(("fp8_e4m3", columns, width) for columns, width in ((128, 16), (40, 8), (36, 4), (38, 2), (37, 1))),
        *((dtype, columns, width) for dtype in DTYPES for columns, width in ((48, 16), (37, 1)) if dtype != "fp8_e4m3"),
    ],
)
def test_copies_of_every_width_keep_every_byte(dtype, columns, copy_bytes, tmp_path):
    row = parse(dtype)
    dims = {"M": 31, "N": columns}  # the last window is cut off
    compilation = compiled(dtype, dims, tmp_path)
    (copy,) = (op for op in compilation.target.kernel().body.walk() if op.name == "cp_async")
    assert copy.attributes["vector"] == min(copy_bytes * row.bytes, 16)
    x = values((31, columns), row, np.random.default_rng(0))
    ran = {"x": x, "out": poison(x.shape, row)}
    interpreted = {"x": x, "out": poison(x.shape, row)}
    interpret(compilation.stages[0].module.kernel(), interpreted, dims)
    launch(compilation, dims, ran)
    bits = f"u{row.bytes}"
    np.testing.assert_array_equal(interpreted["out"].view(bits), x.view(bits))
    np.testing.assert_array_equal(ran["out"].view(bits), x.view(bits))
    launch(compilation, dims, ran, seed=5)
    np.testing.assert_array_equal(ran["out"].view(bits), x.view(bits))


@pytest.mark.parametrize("dtype", ["i8", "fp8_e4m3"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_one_byte_kernels_compile_without_spills(dtype, arch, tmp_path):
    (text,) = compiled(dtype, {"M": 31, "N": 128}, tmp_path, arch).cuda
    used = nvrtc.compile_cubin(text.text, arch, text.name).resources[text.name]
    assert not used.spill_stores and not used.spill_loads


@ts.kernel
def widen(x: tile.Tensor["N", ts.fp8_e4m3], out: tile.Tensor["N", ts.f32]):
    start = tile.program_id(0) * 4096
    tile.store(tile.cast(x[start : start + 4096], ts.f32), out[start : start + 4096])


def test_a_row_of_bytes_moves_sixteen_at_a_time():
    dims = {"N": 8192}
    compilation = compile_kernel(widen, dims)
    (load,) = (op for op in compilation.target.kernel().body.walk() if op.name == "ld_global")
    assert load.attributes["vector"] == 16
    x = values((8192,), parse("fp8_e4m3"), np.random.default_rng(1))
    arguments = {"x": x, "out": np.full(8192, np.nan, np.float32)}
    launch(compilation, dims, arguments)
    np.testing.assert_array_equal(arguments["out"], from_storage(parse("fp8_e4m3"), x))


@pytest.mark.parametrize("columns", [16, 32, 48, 64, 128, 256])
def test_a_swizzled_layout_of_bytes_holds_each_element_once(columns):
    layout = shared_layout(24, columns, 1)
    rows, cols = np.meshgrid(np.arange(24), np.arange(columns), indexing="ij")
    offsets = layout.offset_array(rows, cols)
    assert sorted(offsets.ravel()) == list(range(layout.bytes))
    assert (offsets.reshape(24, -1, 16)[:, :, 0] % 16 == 0).all()
    assert (np.diff(offsets.reshape(24, -1, 16), axis=2) == 1).all(), "16 neighbours stay together"
