"""fp8 products by warpgroups: which are multiplied as fp8, the same bits at every stage behind that, and the bars."""
# ruff: noqa: F821  (the names of dims)

from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import Compilation, compile_kernel, trace_kernel
from tessera.errors import SourceError
from tessera.ir.compare import difference
from tessera.ir.core import Kernel, Module, Op
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.types import TileType
from tessera.passes.warpgroup import why_not
from tessera.runtime.check import examine_kernel
from tessera.runtime.compare import check
from tessera.runtime.interpreter import interpret
from tessera.runtime.nvrtc import compile_cubin, count_instructions, entry_text
from tessera.runtime.reference import reference
from tessera.target.schedule import Schedule
from tests.passes.test_pipeline import arguments_of

LANE = {"family": "wgmma", "copies": "tma", "persistent": True}
E4M3, E5M2 = ts.fp8_e4m3, ts.fp8_e5m2


def product(dtypes=(E4M3, E4M3), tiles=(64, 32, 128), flipped=(False, True), precision=None, out=ts.f32):
    """`out = a @ b`; `flipped`: which operands are stored as their transpose."""
    rows, columns, depth = tiles
    (left, right), (flip_a, flip_b) = dtypes, flipped
    A = Tensor["K", "M", left] if flip_a else Tensor["M", "K", left]
    B = Tensor["N", "K", right] if flip_b else Tensor["K", "N", right]

    @ts.kernel(name="product")
    def kernel(a: A, b: B, out: Tensor["M", "N", out]):
        ctx = tile.context()
        m, n = tile.program_id(0) * rows, tile.program_id(1) * columns
        acc = tile.zeros([rows, columns], ts.f32)
        for k in tile.range(0, ctx.K, depth):
            x = a[k : k + depth, m : m + rows] if flip_a else a[m : m + rows, k : k + depth]
            y = b[n : n + columns, k : k + depth] if flip_b else b[k : k + depth, n : n + columns]
            acc = tile.mma(x, y, acc, transpose_a=flip_a, transpose_b=flip_b, precision=precision)
        tile.store(acc, out[m : m + rows, n : n + columns])

    return kernel


def on_the_lane(definition, dims, **fields) -> Compilation:
    return compile_kernel(definition, dims, "sm_90a", schedule=Schedule(**{**LANE, **fields}))


def named(kernel: Kernel, name: str) -> list[Op]:
    return [op for op in kernel.body.walk() if op.name == name]


def chosen(compilation: Compilation) -> Module:
    """What `choose_formats` made."""
    return next(stage.module for stage in compilation.stages if stage.name == "choose_formats")


def precisions(compilation: Compilation) -> list[str | None]:
    return [op.attributes["precision"] for op in named(chosen(compilation).kernel(), "mma")]


def wide_arguments(kernel: Kernel, dims) -> dict[str, Any]:
    """Of so many exponents that sums of fp8 products are rounded, and the order of summation shows."""
    arguments, rng = arguments_of(kernel, dims), np.random.default_rng(5)
    for name, array in arguments.items():
        if array.dtype.itemsize == 1:
            values = rng.standard_normal(array.shape) * 2.0 ** rng.integers(-6, 7, array.shape)
            arguments[name] = values.astype(array.dtype)
    return arguments


def output(module: Module, arguments, dims) -> np.ndarray:
    given = {name: value.copy() for name, value in arguments.items()}
    interpret(module.kernel(), given, dims, level=module.level)
    return given["out"]


def assert_right(compilation: Compilation, dims) -> None:
    """One pass changes bits; no stage behind it does; the bars of the author's kernel hold all of them."""
    assert [stage.name for stage in compilation.stages if not stage.exact] == ["choose_formats"]
    author = compilation.stages[0].module
    arguments = wide_arguments(author.kernel(), dims)
    before, expected = (output(module, arguments, dims) for module in (author, chosen(compilation)))
    assert not np.array_equal(before, expected)
    np.testing.assert_array_equal(output(compilation.tile, arguments, dims), expected)
    np.testing.assert_array_equal(output(compilation.target, arguments, dims), expected)
    bar = reference(author.kernel(), arguments, dims)["out"]
    for result in (check(before, bar), check(expected, bar)):
        assert result.ok and not result.rms_rule
    for stage in compilation.stages:
        assert difference(stage.module, parse_module(print_module(stage.module))) is None, stage.name


DIMS = {"M": 70, "N": 40, "K": 400}
CASES = {
    "e4m3": (product(), {}),
    "e5m2": (product((E5M2, E5M2)), {}),
    "mixed": (product((E4M3, E5M2)), {}),
    "the other way": (product((E5M2, E4M3)), {}),
    "cp.async": (product(), {"copies": "", "persistent": False}),
    "two parts": (product(tiles=(64, 32, 256)), {}),
    "a ragged part": (product(tiles=(64, 32, 160)), {}),
    "half a part": (product(tiles=(64, 32, 64)), {}),
    "two warpgroups": (product(tiles=(128, 32, 128)), {"warps": 8}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_stage_behind_has_the_same_bits(case):
    definition, fields = CASES[case]
    compilation = on_the_lane(definition, DIMS, **fields)
    assert precisions(compilation) == ["fp8"]
    assert_right(compilation, DIMS)
    products = named(compilation.target.kernel(), "wgmma")
    assert {op.attributes["precision"] for op in products} == {"fp8_fast"}
    assert all(op.attributes["fresh"] and op.attributes["depth"] <= 128 for op in products)


def test_sums_stay_in_the_matrix_unit_by_request():
    compilation = on_the_lane(product(precision="fast_accum"), DIMS)
    assert precisions(compilation) == ["fp8_fast"]
    assert_right(compilation, DIMS)
    (op,) = named(compilation.target.kernel(), "wgmma")
    additions = named(compilation.target.kernel(), "add")
    assert not op.attributes["fresh"] and not any(isinstance(add.result.type, TileType) for add in additions)
    assert precisions(compile_kernel(product(precision="fast_accum"), DIMS)) == ["fast_accum"]


def assert_examined(compilation: Compilation, dims) -> None:
    arguments = wide_arguments(compilation.stages[0].module.kernel(), dims)
    report = examine_kernel(compilation, arguments, dims, seeds=(0, 3))
    assert report.ok, report.findings
    assert report.compared == report.bounded == ("out",) and report.totals.mma


def test_the_emitted_text_on_the_emulator():
    assert_examined(on_the_lane(product(tiles=(128, 32, 256)), DIMS, warps=8), DIMS)
    mixed = product((E4M3, E5M2), precision="fast_accum")
    assert_examined(on_the_lane(mixed, DIMS), DIMS)


@pytest.mark.parametrize(
    ("flipped", "tiles", "reason"),
    [
        ((False, False), (64, 32, 128), "e4m3 operands must run along k, and these rows run along n"),
        ((True, True), (64, 32, 128), "e4m3 operands must run along k, and these rows run along m"),
        ((False, True), (64, 32, 48), "there are no instructions for its 32 columns or its depth of 48"),
    ],
)
def test_what_warpgroups_cannot_take_stays_exact(flipped, tiles, reason):
    compilation = on_the_lane(product(flipped=flipped, tiles=tiles), DIMS, copies="", persistent=False)
    assert precisions(compilation) == [None] and all(stage.exact for stage in compilation.stages)
    (op,) = named(chosen(compilation).kernel(), "mma")
    assert why_not(op, compilation.schedule) == reason and not named(compilation.target.kernel(), "wgmma")
    arguments = wide_arguments(compilation.stages[0].module.kernel(), DIMS)
    expected = output(compilation.stages[0].module, arguments, DIMS)
    np.testing.assert_array_equal(output(compilation.target, arguments, DIMS), expected)


def test_other_lanes_multiply_as_f16():
    compilation = compile_kernel(product(), DIMS)
    assert precisions(compilation) == [None] and all(stage.exact for stage in compilation.stages)


@ts.kernel
def mixed_sums(
    a: Tensor["M", 64, ts.bf16], b: Tensor[32, 64, ts.bf16], c: Tensor["M", 128, E4M3], d: Tensor[32, 128, E4M3],
    out: Tensor["M", 32, ts.f32],
):  # fmt: skip
    """An fp8 product that adds to sums of bf16 ones, which must have arrived."""
    m = tile.program_id(0) * 64
    acc = tile.mma(a[m : m + 64], b[0:32], transpose_b=True)
    tile.store(tile.mma(c[m : m + 64], d[0:32], acc, transpose_b=True), out[m : m + 64])


def test_an_fp8_product_waits_for_the_sums_that_it_adds_to():
    dims = {"M": 64}
    compilation = on_the_lane(mixed_sums, dims, copies="", persistent=False)
    assert precisions(compilation) == [None, "fp8"]
    assert_right(compilation, dims)
    assert_examined(compilation, dims)


def test_the_format_has_no_other_lane():
    """A dump from behind the pass, run under a schedule that has no warpgroups."""
    compilation = on_the_lane(product(), DIMS, copies="", persistent=False)
    with pytest.raises(SourceError, match="only warpgroups multiply in the format") as caught:
        compile_kernel(chosen(compilation), DIMS, "sm_90a", schedule=Schedule())
    assert caught.value.code == "TS703"


def test_wgmma_of_fp8_says_where_its_sums_stay():
    text = print_module(on_the_lane(product(), DIMS, copies="", persistent=False).target)
    with pytest.raises(SourceError, match="wgmma of fp8_e4m3 and fp8_e4m3 operands in precision None"):
        parse_module(text.replace(', precision = "fp8_fast"', "", 1))


def test_the_default_point_and_its_registers():
    """64 rows of a warpgroup: 64 registers for the sums and as many for those of a part; none spills."""
    for precision, columns in ((None, 128), ("fast_accum", 256)):
        module = trace_kernel(product(tiles=(128, columns, 128), precision=precision, out=ts.bf16), {})
        module.kernels[0].attributes["pins"] = {"family": "wgmma"}
        compilation = compile_kernel(module, {"M": 4096, "N": 4096, "K": 4096}, "sm_90a")
        schedule = compilation.schedule
        assert schedule is not None and (schedule.copies, schedule.persistent, schedule.panels) == ("tma", True, 128)
        text = compilation.cuda[0]
        result = compile_cubin(text.text, "sm_90a", text.name, want_ptx=True)
        resources = result.resources[text.name]
        assert (resources.spill_stores, resources.spill_loads) == (0, 0) and "C75" not in result.log
        assert result.ptx is not None and count_instructions(entry_text(result.ptx, text.name))["wgmma"] == 4


def test_wide_sums_in_parts_are_not_for_the_default_point():
    module = trace_kernel(product(tiles=(128, 256, 128)), {})
    module.kernels[0].attributes["pins"] = {"family": "wgmma"}
    compilation = compile_kernel(module, {"M": 512, "N": 512, "K": 512}, "sm_90a")
    assert compilation.schedule is not None and compilation.schedule.copies == ""
