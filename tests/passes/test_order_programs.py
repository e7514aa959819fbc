"""Programs in groups: which program takes which ids, where the grid's order stays, and the same bits and widths."""
# ruff: noqa: F821  (the names of dims)

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel, find_arch, make_context, run_pass, trace_kernel
from tessera.errors import SourceError
from tessera.ir import dims as sizes
from tessera.ir.affine import window_of
from tessera.ir.verify import verify
from tessera.passes import pass_named
from tessera.passes.order_programs import order_programs
from tessera.runtime.check import examine_kernel
from tessera.target.schedule import GROUP, Schedule, default_schedule
from tests.passes.test_pipeline import arguments_of, assert_same_bits, emulated, outputs_of

BLOCK = 16


@ts.kernel
def places(x: tile.Tensor["M", "N", ts.i32], out: tile.Tensor["M", "N", ts.i32]):
    """Each program owns one element."""
    i, j = tile.program_id(0), tile.program_id(1)
    tile.store(x[i : i + 1, j : j + 1], out[i : i + 1, j : j + 1])


@ts.kernel
def product(a: tile.Tensor["M", "K", ts.bf16], b: tile.Tensor["K", "N", ts.bf16], out: tile.Tensor["M", "N", ts.bf16]):
    ctx = tile.context()
    m, n = tile.program_id(0) * BLOCK, tile.program_id(1) * BLOCK
    acc = tile.zeros([BLOCK, BLOCK], ts.f32)
    for k in tile.range(0, ctx.K, BLOCK):
        acc = tile.mma(a[m : m + BLOCK, k : k + BLOCK], b[k : k + BLOCK, n : n + BLOCK], acc)
    tile.store(acc, out[m : m + BLOCK, n : n + BLOCK])


@ts.kernel
def batched(
    a: tile.Tensor["B", "M", "K", ts.bf16], b: tile.Tensor["B", "K", "N", ts.bf16],
    out: tile.Tensor["B", "M", "N", ts.bf16],
):  # fmt: skip
    ctx = tile.context()
    m, n, i = tile.program_id(0) * BLOCK, tile.program_id(1) * BLOCK, tile.program_id(2)
    acc = tile.zeros([BLOCK, BLOCK], ts.f32)
    for k in tile.range(0, ctx.K, BLOCK):
        acc = tile.mma(a[i, m : m + BLOCK, k : k + BLOCK], b[i, k : k + BLOCK, n : n + BLOCK], acc)
    tile.store(acc, out[i, m : m + BLOCK, n : n + BLOCK])


@ts.kernel
def row_blocks(
    x: tile.Tensor["B", "M", "K", ts.bf16], w: tile.Tensor["K", 16, ts.bf16], out: tile.Tensor["B", "M", 16, ts.f32]
):
    """A product of which one operand is the same for every program."""
    ctx = tile.context()
    m, i = tile.program_id(0) * BLOCK, tile.program_id(1)
    tile.store(tile.mma(x[i, m : m + BLOCK, 0 : ctx.K], w), out[i, m : m + BLOCK])


@ts.kernel
def prints(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["M", "N", ts.f32]):
    m, n = tile.program_id(0) * 16, tile.program_id(1) * 16
    tile.print("{}", n)
    tile.store(x[m : m + 16, n : n + 16], out[m : m + 16, n : n + 16])


@ts.kernel
def asserts(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["M", "N", ts.f32]):
    m, n = tile.program_id(0) * 16, tile.program_id(1) * 16
    block = x[m : m + 16, n : n + 16]
    tile.assert_(block < 100.0, "small")
    tile.store(block, out[m : m + 16, n : n + 16])


@ts.kernel
def lines(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    n = tile.program_id(0) * 16
    tile.store(x[n : n + 16], out[n : n + 16])


def specialised(definition, dims, grid=None):
    """The kernel as the schedule is chosen for it."""
    module = trace_kernel(definition, dims, grid)
    context = make_context(module.kernel(), find_arch("sm_80"), dims)
    for name in ("specialise", "canonicalise"):
        step = pass_named(name)
        assert step is not None
        module = run_pass(step, module, context)
    return module.kernel()


def visited(kernel, grid, dims):
    """The ids of the output's windows, program by program as the launch starts them."""
    store = next(op for op in kernel.body.walk() if op.name == "store")
    offsets = window_of(store.operand("view")).offsets
    return [
        tuple(sizes.evaluate(offset, {**dims, "pid0": x, "pid1": y}) for offset in offsets)
        for y in range(grid[1])
        for x in range(grid[0])
    ]


def in_groups(first, second, group):
    return [
        (i, j)
        for start in range(0, first, group)
        for j in range(second)
        for i in range(start, min(start + group, first))
    ]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 30), st.booleans())
def test_each_program_takes_the_ids_of_its_place_in_a_group(first, second, group, symbolic):
    dims = {"M": first, "N": second}
    kernel = order_programs(specialised(places, dims, None if symbolic else (first, second)), Schedule(group=group))
    verify(kernel, "tile")
    assert visited(kernel, (first, second), dims) == in_groups(first, second, group)


def test_scaled_ids_keep_their_scale():
    @ts.kernel
    def shifted(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["M", "N", ts.f32]):
        i, j = tile.program_id(0), tile.program_id(1)
        tile.store(x[i : i + 4, j : j + 8] + 1.0, out[i : i + 4, j : j + 8])

    dims = {"M": 20, "N": 17}
    kernel = specialised(shifted, dims)
    assert {op.attributes["scale"] for op in kernel.body.walk() if op.name == "program_id"} == {4, 8}
    ordered = order_programs(kernel, Schedule(group=2))
    assert visited(ordered, (5, 3), dims) == [(4 * i, 8 * j) for i, j in in_groups(5, 3, 2)]


CASES = [
    (product, {"M": 7 * BLOCK, "N": 5 * BLOCK, "K": 32}, 3, None),
    (product, {"M": 61, "N": 43, "K": 20}, 2, None),
    (product, {"M": 61, "N": 43, "K": 20}, 16, None),
    (product, {"M": 61, "N": 43, "K": 20}, 3, (4, 3)),
    (batched, {"B": 2, "M": 61, "N": 43, "K": 20}, 2, None),
]


@pytest.mark.parametrize("definition, dims, group, grid", CASES)
def test_every_lane_keeps_every_bit(definition, dims, group, grid):
    compilation = compile_kernel(definition, dims, grid=grid, schedule=Schedule(group=group))
    stages = {stage.name: stage.module.kernel() for stage in compilation.stages}
    assert stages["order_programs"].attributes["grid"] == stages["distribute"].attributes["grid"]
    assert count(stages["order_programs"], "mod") >= 2, "nothing was ordered"
    expected = outputs_of(stages["frontend"], dims, "tile")
    for stage in compilation.stages:
        assert_same_bits(expected, outputs_of(stage.module.kernel(), dims, stage.module.level), stage.name)
    for seed in (0, 7):
        assert_same_bits(expected, emulated(compilation, dims, seed), f"the emitted CUDA, seed {seed}")


def test_check_finds_nothing():
    dims = {"M": 61, "N": 43, "K": 20}
    compilation = compile_kernel(product, dims, schedule=Schedule(group=2))
    report = examine_kernel(compilation, arguments_of(compilation.stages[0].module.kernel(), dims), dims, seeds=(0, 1))
    assert report.ok and report.compared == ("out",)


def test_accesses_stay_as_wide():
    dims = {"M": 256, "N": 256, "K": 64}
    texts = [compile_kernel(product, dims, schedule=Schedule(group=group)).cuda[0].text for group in (0, 3)]
    plain, ordered = (re.findall(r"ts_(?:cp_async|st_global|ldmatrix)\w*(?:<[^>]*>)?\(", text) for text in texts)
    assert plain == ordered and "ts_cp_async<16, true>(" in ordered
    assert "_first" not in texts[1], "offsets are seen not to be below zero"


def count(kernel, name):
    return sum(op.name == name for op in kernel.body.walk())


STAY = [
    (product, {"M": 64, "N": 64, "K": 16}, None, 0),  # no group is asked for
    (product, {"M": 64, "N": 64, "K": 16}, (4, 4), 4),  # one group
    (product, {"M": 64, "N": 16, "K": 16}, (4, 1), 2),  # one column
    (lines, {"N": 64}, None, 2),
    (prints, {"M": 64, "N": 64}, None, 2),
    (asserts, {"M": 64, "N": 64}, None, 2),
]


@pytest.mark.parametrize("definition, dims, grid, group", STAY)
def test_orders_that_stay(definition, dims, grid, group):
    kernel = specialised(definition, dims, grid)
    assert order_programs(kernel, Schedule(group=group)) is kernel


def test_a_group_is_not_negative():
    with pytest.raises(SourceError, match="group is -2") as caught:
        compile_kernel(product, {"M": 64, "N": 64, "K": 16}, schedule=Schedule(group=-2))
    assert caught.value.code == "TS512"


DEFAULTS = [
    (product, {"M": 64, "N": 64, "K": 16}, None, GROUP),  # symbolic extents
    (product, {"M": 512, "N": 512, "K": 16}, (32, 32), GROUP),
    (product, {"M": 64, "N": 512, "K": 16}, (4, 32), 0),
    (batched, {"B": 2, "M": 64, "N": 64, "K": 16}, None, GROUP),
    (row_blocks, {"B": 2, "M": 64, "K": 16}, None, 0),  # nothing is read alike along axis 1 only
    (places, {"M": 64, "N": 64}, None, 0),
    (lines, {"N": 64}, None, 0),
]


@pytest.mark.parametrize("definition, dims, grid, group", DEFAULTS)
def test_the_default_groups_products_whose_operands_lie_along_both_axes(definition, dims, grid, group):
    assert default_schedule(specialised(definition, dims, grid), find_arch("sm_80")).group == group


def test_an_operand_in_a_buffer_is_followed_to_what_fills_it():
    @ts.kernel
    def staged(a: tile.Tensor["M", 32, ts.bf16], b: tile.Tensor[32, "N", ts.bf16], out: tile.Tensor["M", "N", ts.f32]):
        m, n = tile.program_id(0) * BLOCK, tile.program_id(1) * BLOCK
        rows = tile.alloc_shared([BLOCK, 32], ts.bf16)
        tile.copy_async(rows, a[m : m + BLOCK])
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        tile.store(tile.mma(rows, b[0:32, n : n + BLOCK]), out[m : m + BLOCK, n : n + BLOCK])

    dims = {"M": 64, "N": 64}
    assert default_schedule(specialised(staged, dims), find_arch("sm_80")).group == GROUP
    result = outputs_of(compile_kernel(staged, dims).target.kernel(), dims, "target")["out"]
    assert np.isfinite(result).all()
