"""Three warpgroups of consumers: 192 rows, whose layouts are three groups of 4 warps."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.errors import SourceError
from tessera.ir.core import Module
from tessera.ir.opdef import TARGET
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.types import TileType, tile_layout
from tessera.ir.verify import verify
from tessera.runtime.check import examine_kernel
from tests.passes.lane_kernels import LISTS, make_deltas, make_differences, make_gemm
from tests.passes.lane_running import (
    Ready,
    arguments_of,
    compiled,
    emulate,
    keeps_every_bit,
    needs_compiler,
    ops,
    outputs_of,
    stage,
    why_not,
)
from tests.passes.test_pipeline import assert_same_bits
from tests.suite import load

ROWS, WARPS = 192, 12
WHOLE = {"rows": 0, "subtile": 0, "blocks": 1}  # stores are not cut
deltas = make_deltas(ROWS)
differences = make_differences(ROWS)


@ts.kernel
def both_ways(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], out: Tensor["M", 64, ts.f32],
              first: Tensor["M", ts.i32]):  # fmt: skip
    """Reductions and scans along rows, of which no group has all, and along columns."""
    m = tile.program_id(0) * 192
    acc = tile.mma(a[m : m + 192], b)
    low = tile.max(acc, axis=0, keepdims=True) - tile.sum(acc, axis=0, keepdims=True)
    sums = tile.cumsum(acc, axis=0) + tile.cumsum(acc, axis=1)
    tile.store(sums - low * tile.sum(acc, axis=1, keepdims=True), out[m : m + 192])
    tile.store(tile.argmax(acc, axis=1), first[m : m + 192])


@ts.kernel
def turned(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], out: Tensor[64, "M", ts.bf16]):
    """The sums, transposed, meet a row that a buffer of the author's hands on."""
    m = tile.program_id(0) * 192
    line = tile.alloc_shared([64, 192], ts.f32)
    acc = tile.transpose(tile.mma(a[m : m + 192], b))
    line[:] = acc * 0.5
    tile.barrier()
    tile.store(acc + line[0:1], out[0:64, m : m + 192])


@ts.kernel
def two_products(a: Tensor["M", "K", ts.bf16], b: Tensor["K", 64, ts.bf16], c: Tensor[64, "N", ts.bf16],
                 output: Tensor["M", "N", ts.bf16]):  # fmt: skip
    ctx = tile.context()
    m = tile.program_id(0) * 192
    acc = tile.zeros([192, 64], ts.f32)
    for k in tile.range(0, ctx.K, 64):
        acc = tile.mma(a[m : m + 192, k : k + 64], b[k : k + 64], acc)
    hidden = tile.cast(acc / (tile.max(tile.abs(acc), axis=-1, keepdims=True) + 1.0), ts.bf16)
    for n in tile.range(0, ctx.N, 64):
        tile.store(tile.mma(hidden, c[0:64, n : n + 64]), output[m : m + 192, n : n + 64])


RAGGED = {"M": 200, "N": 136, "K": 136}
KERNELS = {  # sizes at which rows, columns and the sum end within a tile
    **{
        f"gemm_{stored}": (make_gemm(stored, tiles=(ROWS, 128, 64), name=f"gemm_{stored}"), RAGGED)
        for stored in ("nn", "nt", "tn", "tt")
    },
    "gemm_wide": (make_gemm(tiles=(ROWS, 256, 32), name="gemm_wide"), {"M": 200, "N": 264, "K": 72}),
    "gemm_tall": (make_gemm(tiles=(2 * ROWS, 40, 32), name="gemm_tall"), {"M": 600, "N": 72, "K": 72}),
    "gemm_bias": (make_gemm(tiles=(ROWS, 128, 64), epilogue="bias", name="gemm_bias"), RAGGED),
    "gemm_rows": (make_gemm(tiles=(ROWS, 128, 32), epilogue="rows", name="gemm_rows"), RAGGED),
    "gemm_f32_out": (make_gemm(tiles=(ROWS, 64, 64), out=ts.f32, name="gemm_f32_out"), RAGGED),
    "both_ways": (both_ways, {"M": 200}),
    "turned": (turned, {"M": 200}),
    "differences": (differences, {"M": 400}),
    "deltas": (deltas, {"M": 400, **LISTS}),
    "two_products": (two_products, RAGGED),
}


def by_three(name, **fields):
    definition, dims = KERNELS[name]
    pins = {
        "warps": WARPS,
        "stages": 2,
        **(WHOLE if name in ("gemm_tall", "both_ways") else {}),
        **fields,
    }
    return compiled(definition, dims, **pins), dims


def expected_of(compilation, dims):
    return outputs_of(compilation.stages[0].module.kernel(), dims)


@pytest.mark.parametrize("name", KERNELS)
def test_every_stage_gives_the_same_in_any_order(name):
    compilation, dims = by_three(name)
    assert why_not(compilation) == "" and not ops(compilation.target.kernel(), "mma_sync")
    (roles,) = ops(compilation.target.kernel(), "roles")
    assert roles.attributes["warps"] == (1, WARPS) and roles.attributes["registers"] == (24, 160)
    expected = keeps_every_bit(compilation, dims)
    for step, level in (("split_roles", "tile"), ("interleave", "target")):
        assert_same_bits(expected, outputs_of(stage(compilation, step), dims, level, seed=3), step)


@needs_compiler
def test_the_emitted_cuda_keeps_every_bit():
    built = [by_three(name) for name in KERNELS]
    emulate([Ready(compilation, dims, expected_of(compilation, dims)) for compilation, dims in built])


@needs_compiler
@pytest.mark.parametrize("name", ["gemm_nn", "gemm_nt", "gemm_tn", "gemm_tt", "both_ways", "deltas"])
def test_an_examination_finds_nothing(name):
    compilation, dims = by_three(name)
    arguments = arguments_of(compilation.stages[0].module.kernel(), dims)
    report = examine_kernel(compilation, arguments, dims, seeds=(1, 2))
    assert report.ok and report.compared, [str(seen.finding) for seen in report.findings]


@needs_compiler
@pytest.mark.parametrize("name", ["gemm_nn", "both_ways", "turned"])
def test_teams_of_three_warpgroups(name):
    """28 warps: the first warp of the second team is number 12."""
    gemm = make_gemm(tiles=(ROWS, 64, 64), name="teams"), {**RAGGED, "M": 1000}
    definition, dims = gemm if name == "gemm_nn" else (KERNELS[name][0], {"M": 1000})
    compilation = compiled(definition, dims, warps=WARPS, stages=2, pingpong=True, **WHOLE)
    (roles,) = ops(compilation.target.kernel(), "roles")
    assert roles.attributes["warps"] == (1, WARPS, WARPS) and compilation.cuda[0].threads == 32 * 28
    assert roles.attributes["registers"] == (24, 80, 80)
    expected = expected_of(compilation, dims)
    assert_same_bits(expected, outputs_of(stage(compilation, "interleave"), dims, "target", seed=3), "interleave")
    emulate([Ready(compilation, dims, expected)])


@needs_compiler
def test_clusters_of_three_warpgroups():
    dims = {**RAGGED, "M": 800}
    compilation = compiled(make_gemm(tiles=(ROWS, 64, 64), name="cluster"), dims, warps=WARPS, stages=2, cluster=2)
    (roles,), (ring,) = (ops(compilation.target.kernel(), name) for name in ("roles", "ring"))
    assert (roles.attributes["cluster"], roles.attributes["registers"]) == (2, (40, 152))
    assert (ring.attributes["arrivals"], ring.attributes["cluster"]) == (WARPS, 2)
    emulate([Ready(compilation, dims, expected_of(compilation, dims))])


@needs_compiler
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", [ts.bf16, ts.f32])
def test_the_base_lane_takes_twelve_warps(arch, dtype):
    """By mma.sync and by multiply-adds: over rows, over columns, and where there are less of both than warps."""
    batch, tiles = [], [(192, 64, 32), (64, 96, 32), (48, 64, 32), (16, 192, 32), (96, 24, 32), (16, 16, 16)]
    for number, size in enumerate(tiles):
        definition = make_gemm("nt" if number % 2 else "nn", dtype, tiles=size, name=f"base_{number}")
        dims = {"M": size[0] + 5, "N": size[1] + 8, "K": 40}
        pins = {"warps": WARPS, "family": "", "copies": ""}
        compilation = compile_kernel(definition.scheduled(pins), dims, arch)
        assert compilation.cuda[0].threads == 384 and not ops(compilation.target.kernel(), "wgmma")
        batch.append(Ready(compilation, dims, expected_of(compilation, dims)))
    emulate(batch)


@needs_compiler
def test_attention_of_three_warpgroups():
    dims = {"B": 1, "H": 1, "T": 200, "D": 64}
    constants = {"BLOCK_M": ROWS, "BLOCK_N": 64, "num_warps": WARPS, "num_stages": 2}
    compilation = compile_kernel(load("causal_attention"), dims, "sm_90a", constants=constants)
    assert compilation.cuda[0].threads == 512 and len(ops(compilation.target.kernel(), "wgmma")) == 2
    arguments = {**arguments_of(compilation.stages[0].module.kernel(), dims), "scale": 0.2}
    report = examine_kernel(compilation, arguments, dims)
    assert report.ok and set(report.bounded) == {"output", "lse"}, [str(seen.finding) for seen in report.findings]


def test_what_a_launch_and_its_text_say():
    compilation, _ = by_three("both_ways")
    kernel, (text,) = compilation.target.kernel(), compilation.cuda
    (roles,) = ops(kernel, "roles")
    barriers = {(op.attributes["id"], op.attributes["threads"]) for op in ops(kernel, "barrier")}
    assert barriers == {(1, 384)} and text.threads == 512 == compilation.program.launches[0].threads
    assert {op.attributes["arrivals"] for op in ops(kernel, "ring")} == {WARPS}
    assert "TS_KERNEL_OCC(both_ways, 512, 1)" in text.text and "ts_barrier_of(1, 384)" in text.text
    assert "if (ts_warp() >= 12) {  // load" in text.text
    values = [value for op in roles.regions[1].walk() for value in op.results if isinstance(value.type, TileType)]
    assert {tile_layout(value.type).warps for value in values} == {WARPS}
    sums = tile_layout(ops(kernel, "wgmma")[0].result.type)
    assert (sums.groups, sums.group_axis, sums.shape) == (3, 0, (ROWS, 64))


def test_an_instruction_has_as_many_columns_as_a_thread_has_registers():
    """512 threads start with 128 registers, which the sums of 256 columns would fill; 384 start with 168."""
    (three,) = ops(by_three("gemm_wide")[0].target.kernel(), "wgmma")
    wide = compiled(make_gemm(tiles=(128, 256, 32), name="two"), KERNELS["gemm_wide"][1], warps=8, stages=2)
    (two,) = ops(wide.target.kernel(), "wgmma")
    assert (three.attributes["columns"], two.attributes["columns"]) == (128, 256)


@pytest.mark.parametrize("columns", [64, 128, 192, 256])
@pytest.mark.parametrize("epilogue", ["none", "bias"])
def test_products_do_not_spill(columns, epilogue):
    pytest.importorskip("cupy", reason="CuPy brings NVRTC")
    from tessera.runtime.nvrtc import compile_cubin

    large = {"M": 4096, "N": 4096, "K": 4096}
    compilation = compile_kernel(make_gemm(epilogue=epilogue, tiles=(ROWS, columns, 64)), large, "sm_90a")
    assert compilation.schedule.warps == WARPS and not compilation.program.notes
    (text,) = compilation.cuda
    built = compile_cubin(text.text, "sm_90a", text.name)
    found = built.resources[text.name]
    assert (found.registers, found.spill_stores, found.spill_loads) == (128, 0, 0) and "C75" not in built.log


@pytest.mark.parametrize(
    ("depth", "keys", "held"), [(64, 128, True), (128, 64, True), (96, 128, True), (128, 128, False)]
)
def test_attention_is_for_three_warpgroups_where_it_does_not_spill(depth, keys, held):
    """A consumer has 160 registers: sums of 128 keys and of 128 columns are more than it can hold beside the rest."""
    pytest.importorskip("cupy", reason="CuPy brings NVRTC")
    from tessera.runtime.nvrtc import compile_cubin

    constants = {"BLOCK_M": ROWS, "BLOCK_N": keys, "num_warps": WARPS, "num_stages": 2}
    dims = {"B": 1, "H": 1, "T": 1024, "D": depth}
    compilation = compile_kernel(load("causal_attention"), dims, "sm_90a", constants=constants)
    assert (compilation.schedule.family == "wgmma") == held
    (text,) = compilation.cuda
    built = compile_cubin(text.text, "sm_90a", text.name)
    found = built.resources[text.name]
    assert not held or (found.spill_stores, found.spill_loads) == (0, 0) and "C75" not in built.log


@pytest.mark.parametrize(("width", "layers"), [(128, 1), (128, 4), (256, 1), (256, 4), (1024, 1)])
def test_the_aggregation_does_not_spill(width, layers):
    """Half of the columns at a time that two warpgroups take, whose consumers have 240 registers."""
    pytest.importorskip("cupy", reason="CuPy brings NVRTC")
    from tessera.runtime.nvrtc import compile_cubin

    lists = {"len(source_layers)": layers, "len(gate_params)": layers}
    dims = {"B": 16, "S": 1920, "D": width, "L": layers + 1, **lists}
    constants = {"BLOCK_B": 16, "BLOCK_S": ROWS, "num_warps": WARPS, "num_stages": 2}
    compilation = compile_kernel(load("fused_delta_gating_kernel"), dims, "sm_90a", constants=constants)
    assert (compilation.schedule.family, compilation.schedule.rows) == ("wgmma", ROWS)
    assert compilation.schedule.subtile == (128 if layers == 1 else 64)
    (text,) = compilation.cuda
    built = compile_cubin(text.text, "sm_90a", text.name)
    found = built.resources[text.name]
    assert (found.spill_stores, found.spill_loads) == (0, 0) and "C75" not in built.log


def test_rows_that_three_warpgroups_do_not_share_out():
    """They say so, and what would; the product is right by mma.sync."""
    dims = {"M": 136, "N": 72, "K": 72}
    compilation = compiled(make_gemm(tiles=(128, 64, 64)), dims, warps=WARPS)
    reason = "its 128 rows are not shared out by 12 warps, 4 at a time with 64 rows; 4 or 8 warps would"
    assert f"family = 'wgmma' has no effect on a product: {reason}" in compilation.program.notes
    assert_same_bits(expected_of(compilation, dims), outputs_of(compilation.target.kernel(), dims, TARGET), "target")


def test_edited_layouts_that_do_not_fit_the_warps_are_refused():
    kernel = by_three("gemm_nn")[0].target.kernel()
    text = print_module(Module(TARGET, [kernel]))
    assert " groups[3,0]" in text
    with pytest.raises(SourceError, match=r"wgmma of 192 rows by 20 warps, each of which takes 16 at a time"):
        verify(parse_module(text.replace(" groups[3,0]", " groups[5,0]")))
    line = next(line for line in text.splitlines() if "groups[3,0]" in line)
    with pytest.raises(SourceError, match="cannot be read: 2 groups of warps: powers of two are bits of the block"):
        parse_module(text.replace(line, line.replace("groups[3,0]", "groups[2,0]")))


def test_edited_layouts_of_the_base_lane_are_refused():
    compilation = compiled(make_gemm(tiles=(192, 64, 32)), RAGGED, warps=WARPS, family="", copies="", persistent=False)
    text = print_module(compilation.target)
    with pytest.raises(SourceError, match="the layout of tile '?%?\\w+'? is of 20 warps, and the kernel has 12"):
        verify(parse_module(text.replace(" groups[3", " groups[5")))


def test_other_numbers_of_warps_are_refused():
    with pytest.raises(
        SourceError, match="the field warps of a schedule is a power of two from 1 to 32, or 12, not 24"
    ):
        make_gemm().scheduled({"warps": 24})
