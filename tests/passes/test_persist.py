"""Persistent programs: each program of the grid runs once, in its order, on every lane, and keeps every bit."""
# ruff: noqa: F821  (the names of dims)

import dataclasses
import math
import shutil

import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel, find_arch
from tessera.errors import SourceError
from tessera.ir import dims as sizes
from tessera.ir.affine import opaque_symbol, window_of
from tessera.ir.compare import difference
from tessera.ir.core import Module
from tessera.ir.opdef import TILE
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.programs import (
    EMULATED_MULTIPROCESSORS,
    MULTIPROCESSORS,
    grid_extents,
    persistent_loop,
    program_body,
)
from tessera.ir.ranges import Ranges
from tessera.ir.verify import verify
from tessera.passes.order_programs import order_programs
from tessera.passes.persist import persist
from tessera.runtime import execute
from tessera.runtime.check import FULL_GRID, SAMPLE, examine_kernel
from tessera.target.cost import cost
from tessera.target.schedule import Schedule
from tessera.target.schedules import candidates, parse_pin
from tests.passes.lane_kernels import parted
from tests.passes.test_order_programs import asserts, batched, in_groups, places, prints, product, specialised, visited
from tests.passes.test_pipeline import arguments_of, assert_same_bits, outputs_of
from tests.suite import MATMULS, load

ARCH = find_arch("sm_90a")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
MANY = {"M": 170, "N": 140, "K": 40}  # nine programs of 64 rows and columns
CASES = {  # a grid that the machine runs at once, and one of which programs do several, not all the same number
    "gating_function_kernel": [{"B": 1, "S": 129, "D": 64}, {"B": 3, "S": 300, "D": 100}],
    "vector_add": [{"N": 1000}, {"N": 9 * 1024 + 5}],
    "vector_add_bf16": [{"N": 1024}, {"N": 6 * 1024 + 1}],
    "softmax": [{"M": 5, "N": 100}, {"M": 90, "N": 256}],
    "softmax_bf16": [{"M": 17, "N": 25}, {"M": 150, "N": 64}],
    **{name: [MANY] for name in MATMULS},
    "layer_norm": [{"M": 1, "N": 1}, {"M": 150, "N": 100}],
    "column_sum": [{"M": 70, "N": 100}, {"M": 20, "N": 700}],
    "sum_of_first": [{"M": 40, "N": 130}, {"M": 150, "N": 40}],
    "cumulative_max": [{"M": 5, "N": 300}, {"M": 150, "N": 40}],
    "top_1": [{"M": 64, "N": 50}, {"M": 300, "N": 33}],
    "matmul_bias_gelu": [{"M": 64, "N": 64, "K": 64}, MANY],
    "batched_matmul": [{"B": 1, "M": 33, "N": 40, "K": 16}, {"B": 3, "M": 70, "N": 100, "K": 50}],
    "difference_matmul": [MANY],
    "perceptron": [{"M": 64, "D": 32, "H": 64, "N": 48}, {"M": 330, "D": 20, "H": 24, "N": 9}],
    "fp8_matmul": [MANY],
    **{f"gemm_{case}": [{"M": 300, "N": 270, "K": 40}] for case in ("nn", "nt", "tn", "tt")},
    "transpose": [{"M": 64, "N": 32}, {"M": 150, "N": 100}],
    "gather_rows": [{"M": 20, "N": 1, "K": 1}, {"M": 20, "N": 100, "K": 30}],
    "histogram": [{"N": 100, "K": 16}, {"N": 1000, "K": 12}],
}


def compiled(definition, dims, arch="sm_90a", **fields):
    definition = load(definition) if isinstance(definition, str) else definition
    return compile_kernel(definition.scheduled({"family": "", "persistent": True, **fields}), dims, arch)


def stage(compilation, name):
    return next(stage.module.kernel() for stage in compilation.stages if stage.name == name)


@pytest.mark.parametrize(("name", "case"), [(n, i) for n, cases in CASES.items() for i in range(len(cases))])
def test_every_kernel_keeps_every_bit(name, case):
    dims = CASES[name][case]
    compilation = compiled(name, dims)
    (launch,) = compilation.program.launches
    assert all(persistent_loop(stage(compilation, step)) for step in ("persist", "hoist_invariants", "interleave"))
    programs = math.prod(grid_extents(stage(compilation, "order_programs").attributes["grid"], dims))
    assert launch.extents(dims) == (min(programs, EMULATED_MULTIPROCESSORS * compilation.schedule.blocks),)
    assert len(CASES[name]) == 2 and case == 0 or programs > launch.extents(dims)[0]
    expected = outputs_of(stage(compilation, "frontend"), dims, "tile")
    for step, level in (("persist", "tile"), ("pipeline", "tile"), ("interleave", "target")):
        assert_same_bits(expected, outputs_of(stage(compilation, step), dims, level), step)


EXAMINED = [
    ("gating_function_kernel", {"B": 3, "S": 300, "D": 64}, {"blocks": 2}),
    ("batched_matmul", {"B": 3, "M": 70, "N": 100, "K": 50}, {}),
    ("softmax", {"M": 90, "N": 256}, {}),
    ("histogram", {"N": 1000, "K": 12}, {}),
]


@needs_compiler
@pytest.mark.parametrize(("name", "dims", "fields"), EXAMINED, ids=lambda value: str(value))
def test_the_emitted_cuda_is_right_and_check_finds_nothing(name, dims, fields):
    compilation = compiled(name, dims, **fields)
    arguments = arguments_of(stage(compilation, "frontend"), dims)
    report = examine_kernel(compilation, arguments, dims, seeds=(0, 5))
    assert report.ok and report.compared and not report.sampled
    assert report.kernels[0].grid == compilation.program.launches[0].extents(dims)


# Order ----------------------------------------------------------------------------------------------------------------


def windows(kernel, dims, count):
    """The offsets of the output's window in each iteration of the persistent loop."""
    loop = persistent_loop(kernel)
    store = next(op for op in kernel.body.walk() if op.name == "store")
    offsets = window_of(store.operand("view")).offsets
    index = opaque_symbol(loop.regions[0].arguments[0])
    return [tuple(sizes.evaluate(offset, {**dims, index: p}) for offset in offsets) for p in range(count)]


@pytest.mark.parametrize("group", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("symbolic", [False, True])
def test_programs_keep_their_order(symbolic, group):
    dims = {"M": 5, "N": 3}
    plain = specialised(places, dims, None if symbolic else (5, 3))
    ordered = order_programs(plain, Schedule(group=group))
    kernel = persist(ordered, Schedule(group=group, persistent=True), ARCH)
    verify(Module(TILE, [kernel]))
    found = windows(kernel, dims, 15)
    assert found == visited(ordered, (5, 3), dims)
    assert found == (in_groups(5, 3, group) if 0 < group < 5 else [(i, j) for j in range(3) for i in range(5)])


def test_three_axes_and_scales():
    @ts.kernel
    def shifted(x: tile.Tensor["B", "M", "N", ts.f32], out: tile.Tensor["B", "M", "N", ts.f32]):
        i, j, k = tile.program_id(0), tile.program_id(1), tile.program_id(2)
        tile.store(x[k, i : i + 4, j : j + 8] + 1.0, out[k, i : i + 4, j : j + 8])

    dims = {"B": 2, "M": 20, "N": 17}
    expected = [(k, 4 * i, 8 * j) for k in range(2) for j in range(3) for i in range(5)]
    for group in (0, 2):
        ordered = order_programs(specialised(shifted, dims), Schedule(group=group))
        found = windows(persist(ordered, Schedule(persistent=True), ARCH), dims, 30)
        assert found == [(k, 4 * i, 8 * j) for k in range(2) for i, j in in_groups(5, 3, group or 5)]
        assert group or found == expected


def test_the_number_of_programs_is_that_of_the_grid():
    @ts.kernel(grid=lambda d: (tile.cdiv(d.N, 16), 3))
    def counted(x: tile.Tensor["N", ts.f32], out: tile.Tensor[3, "N", ts.f32]):
        n, row = tile.program_id(0) * 16, tile.program_id(1)
        count = tile.num_programs(0) * 10 + tile.num_programs(1)
        tile.store(x[n : n + 16] + tile.cast(count, ts.f32), out[row, n : n + 16])

    dims = {"N": 100}
    compilation = compiled(counted, dims)
    expected = outputs_of(stage(compilation, "frontend"), dims, "tile")
    assert_same_bits(expected, outputs_of(compilation.target.kernel(), dims, "target"), "the loop")


def count(block, *names):
    return sum(op.name in names for op in block.walk())


@pytest.mark.parametrize(
    ("definition", "dims", "grid", "group", "divisions"),
    [
        (product, {"M": 100, "N": 90, "K": 16}, None, 0, 2),
        (product, {"M": 100, "N": 90, "K": 16}, (7, 1), 0, 0),  # an axis of one program
        (product, {"M": 100, "N": 90, "K": 16}, (1, 6), 0, 0),
        (product, {"M": 100, "N": 90, "K": 16}, None, 3, 4),  # those of the group alone
        (batched, {"B": 2, "M": 100, "N": 90, "K": 16}, None, 0, 4),
    ],
)
def test_few_divisions_an_iteration(definition, dims, grid, group, divisions):
    compilation = compile_kernel(definition, dims, grid=grid, schedule=Schedule(group=group, persistent=True))
    body = program_body(stage(compilation, "canonicalise_slices"))
    assert count(body, "mod", "floordiv") == divisions


def test_what_is_known_of_the_loop():
    kernel = persist(specialised(places, {"M": 5, "N": 3}, (5, 3)), Schedule(persistent=True), ARCH)
    ranges, loop = Ranges(kernel), persistent_loop(kernel)
    lower, _, step = loop.operands
    assert ranges.interval(loop.regions[0].arguments[0]) == (0, 14)
    assert ranges.interval(lower) == (0, 14) and ranges.interval(step) == (1, 15)
    store = next(op for op in kernel.body.walk() if op.name == "store")
    offsets = store.operand("view").defining_op.operands[1:]
    assert [ranges.interval(offset) for offset in offsets] == [(0, 4), (0, 2)]


# What stays, and what is launched -------------------------------------------------------------------------------------


@ts.kernel
def column_total(x: tile.Tensor["M", ts.f32], out: tile.Tensor[1, ts.f32]):
    m = tile.program_id(0) * 16
    tile.atomic_add(out[0:1], tile.sum(x[m : m + 16], axis=0, keepdims=True))


@pytest.mark.parametrize(
    ("definition", "dims", "reason"),
    [
        (prints, {"M": 64, "N": 64}, "prints and assertions name the program that they are of"),
        (asserts, {"M": 64, "N": 64}, "prints and assertions name the program that they are of"),
        (column_total, {"M": 64}, "the sums in 'out' depend on the order of programs"),
    ],
)
def test_orders_that_show_stay_and_a_note_says_so(definition, dims, reason):
    compilation = compiled(definition, dims)
    assert persistent_loop(compilation.target.kernel()) is None and not compilation.program.launches[0].persistent
    assert f"persistent = true has no effect: {reason}" in compilation.program.notes


def test_one_program_and_a_kernel_that_is_not_asked_stay():
    kernel = specialised(places, {"M": 1, "N": 1}, (1, 1))
    assert persist(kernel, Schedule(persistent=True), ARCH) is kernel
    kernel = specialised(places, {"M": 5, "N": 3})
    assert persist(kernel, Schedule(), ARCH) is kernel
    done = persist(kernel, Schedule(persistent=True), ARCH)
    assert persist(done, Schedule(persistent=True), ARCH) is done


@pytest.mark.parametrize("dims", [{"M": 0, "N": 40, "K": 16}, {"M": 40, "N": 0, "K": 16}])
def test_an_empty_grid_runs_nothing(dims):
    compilation = compiled(product, dims)
    kernel, program = compilation.target.kernel(), compilation.program
    arguments = arguments_of(stage(compilation, "frontend"), dims)
    assert execute.interpret(kernel, arguments, dims, level="target").kernels[0].grid == (0,)
    assert program.launches[0].extents(dims, 132) == (0,)


def test_text_and_json_keep_the_grid():
    compilation = compiled("gating_function_kernel", {"B": 3, "S": 300, "D": 64}, blocks=2)
    for name in ("persist", "hoist_invariants", "interleave"):
        module = next(stage.module for stage in compilation.stages if stage.name == name)
        again = parse_module(print_module(module))
        assert difference(module, again) is None
        assert again.kernel().attributes["grid"] == module.kernel().attributes["grid"]
    program = type(compilation.program).from_json(compilation.program.to_json())
    assert program == compilation.program and program.launches[0].persistent
    dims = {"B": 3, "S": 300}
    assert [program.launches[0].extents(dims, count) for count in (1, 2, 132)] == [(2,), (4,), (9,)]


def test_a_dump_compiles_again():
    dims = {"B": 3, "S": 300, "D": 64}
    compilation = compiled("gating_function_kernel", dims)
    text = print_module(next(stage.module for stage in compilation.stages if stage.name == "hoist_invariants"))
    again = compile_kernel(parse_module(text), dims, "sm_90a")
    assert count(again.target.kernel().body, "for") == count(compilation.target.kernel().body, "for")
    expected = outputs_of(stage(compilation, "frontend"), dims, "tile")
    assert_same_bits(expected, outputs_of(again.target.kernel(), dims, "target"), "the dump")


def test_the_grid_alone_knows_the_machine():
    kernel = specialised(places, {"M": 5, "N": 3})
    kernel.body.ops[0].attributes["axis"] = 0
    kernel.attributes["grid"] = (sizes.symbol(MULTIPROCESSORS),)
    assert grid_extents(kernel.attributes["grid"], {}, 7) == (7,)
    assert sizes.parse(sizes.to_text(sizes.symbol(MULTIPROCESSORS) * 2)) == sizes.symbol(MULTIPROCESSORS) * 2
    with pytest.raises(ValueError):
        sizes.parse("device.2x")


# Schedules, predictions, checks ---------------------------------------------------------------------------------------


def test_it_is_pinned_and_not_searched():
    assert parse_pin("persistent", "true") is True
    with pytest.raises(SourceError, match="the field persistent of a schedule is true or false, not 'maybe'"):
        parse_pin("persistent", "maybe")
    kernel = specialised(product, {"M": 64, "N": 64, "K": 16})
    assert candidates(kernel, find_arch("sm_80"))["persistent"] == (False,)  # the lane of warpgroups is searched


def test_the_parts_of_a_split_sum_are_persistent():
    dims = {"M": 170, "N": 140, "K": 200}
    compilation = compiled("matmul_nn_bf16", dims, split_k=2)
    assert [launch.extents(dims, 5) for launch in compilation.program.launches] == [(5,), (11, 3)]
    source = next(stage.module for stage in compilation.stages if stage.name == "split_k")
    found = []
    for module in (source, compilation.target):
        arguments = arguments_of(stage_of(compilation), dims)
        found.append(execute.interpret_all(module, arguments, dims).outputs["output"])
    assert np.array_equal(found[0].view(np.uint16), found[1].view(np.uint16))


def stage_of(compilation):
    return compilation.stages[0].module.kernel()


def test_predictions_are_of_the_typical_machine():
    arch, dims = find_arch("sm_90a"), {"B": 4, "S": 18000, "D": 128}
    plain, persistent = (
        cost(compile_kernel(load("gating_function_kernel").scheduled(pins), dims, "sm_90a").target.kernel(), arch, dims)
        for pins in ({"family": ""}, {"family": "", "persistent": True, "blocks": 2})
    )
    assert persistent.waves == 1.0 < plain.waves
    assert persistent.flops == pytest.approx(plain.flops, rel=1e-6)
    weights = 128 * 128 * 2  # once a program of the launch, not once a program of the grid
    programs = 4 * math.ceil(18000 / 128)
    assert plain.bytes_l2 - persistent.bytes_l2 == (programs - 2 * 132) * weights


@needs_compiler
def test_a_sample_of_a_large_grid_has_blocks_of_two_programs():
    dims = {"N": (2 * FULL_GRID + 7) * 1024}
    compilation = compiled("vector_add", dims)
    arguments = arguments_of(stage_of(compilation), dims)
    report = examine_kernel(compilation, arguments, dims, seeds=(0,))
    (launch,) = report.kernels
    assert report.ok and launch.grid == (FULL_GRID + 4,) and launch.blocks_run == SAMPLE
    # What only blocks of this grid do is looked for in this grid.
    right = "ts_to_f32(ld_global[r]) + "
    text = compilation.cuda[0].text.replace(right, f"(program < {FULL_GRID + 4} ? 0.0f : 1.0f) + {right}")
    compilation.cuda[0] = dataclasses.replace(compilation.cuda[0], text=text)
    (seen,) = examine_kernel(compilation, arguments, dims, seeds=(0,)).findings
    assert seen.finding.op == "add" and "total" in seen.finding.message


# Parts of a row -------------------------------------------------------------------------------------------------------

PARTED = {"M": 1200}  # six parts of nineteen rows of tiles


def test_programs_keep_to_a_part_of_a_row():
    """Each program of the launch meets the same part again and again, and what belongs to it is loaded once."""
    compilation = compiled(parted, PARTED, family="wgmma", copies="tma", blocks=1)
    (launch,) = compilation.program.launches
    assert [launch.extents(PARTED, count) for count in (132, 20, 6, 5, 1)] == [(114,), (18,), (6,), (6,), (6,)]
    kernel = stage(compilation, "hoist_invariants")
    loop = persistent_loop(kernel)
    assert count(loop.regions[0], "copy_async") == 1 and count(kernel.body, "copy_async") == 2
    assert count(loop.regions[0], "mod") == 0 and count(kernel.body, "mod") == 1
    expected = outputs_of(stage(compilation, "frontend"), PARTED, "tile")
    for step, level in (("persist", "tile"), ("interleave", "target")):
        assert_same_bits(expected, outputs_of(stage(compilation, step), PARTED, level), step)


def test_parts_that_would_leave_multiprocessors_idle_are_taken_in_turn():
    def by(parts):
        @ts.kernel(grid=lambda d: (parts * tile.cdiv(d.M, 64),))
        def cut(x: tile.Tensor["M", 64 * parts, ts.f32], out: tile.Tensor["M", 64 * parts, ts.f32]):
            part, m = tile.program_id(0) % parts * 64, tile.program_id(0) // parts * 64
            tile.store(x[m : m + 64, part : part + 64] + 1.0, out[m : m + 64, part : part + 64])

        (launch,) = compiled(cut, {"M": 6400}).program.launches
        return launch.extents({"M": 6400}, 131)

    assert [by(parts) for parts in (4, 5, 6)] == [(128,), (131,), (126,)]  # of 132, 5 is no divisor
