"""Every pass keeps every bit, verifies, and prints to text that parses back.

The emitted CUDA computes the same on a CPU.
"""
# ruff: noqa: F821  (the names of dims)

import dataclasses

import numpy as np
import pytest

import tessera as ts
from tessera import compiler, tile
from tessera.compiler import compile_kernel, run_pass
from tessera.ir.opdef import TARGET
from tessera.ir.printer import print_module
from tessera.passes import PIPELINE
from tessera.runtime import emulator
from tessera.runtime.execute import parameters_of
from tessera.runtime.inputs import make_arrays
from tessera.runtime.interpreter import interpret
from tessera.target.schedule import Schedule
from tests.passes import kernels, lane_kernels
from tests.text_law import held_to_its_text

CASES = {
    "scaled_copy": [{"N": 1000}, {"N": 256}, {"N": 1}, {"N": 333}],
    "attention_row": [{"M": 40, "N": 64, "D": 64}, {"M": 32, "N": 48, "D": 40}, {"M": 5, "N": 20, "D": 16}],
    "two_layers": [{"M": 33, "D": 32}, {"M": 16, "D": 72}, {"M": 7, "D": 20}],
    "running_sum": [{"M": 20, "N": 96}, {"M": 8, "N": 50}, {"M": 3, "N": 1}],
    "two_groups": [{"M": 70, "D": 64}, {"M": 32, "D": 25}, {"M": 1, "D": 8}],
    "wide_elementwise": [{"M": 70, "D": 1024}, {"M": 64, "D": 1000}],
}
ALL = [
    pytest.param(name, dims, id=f"{name}-{'-'.join(map(str, dims.values()))}")
    for name, cases in CASES.items()
    for dims in cases
]


def arguments_of(kernel, dims, seed=0):
    """Random inputs and NaN outputs for a Tile kernel's parameters, as `tessera run` makes them."""
    parameters = parameters_of(kernel)
    arrays = make_arrays(parameters, dims, seed)
    scalars = {p.name: 3 if p.dtype.startswith("i") else 1.25 for p in parameters if p.kind == "scalar"}
    return {p.name: scalars[p.name] if p.kind == "scalar" else arrays[p.name] for p in parameters}


def outputs_of(kernel, dims, level, grid=None):
    """What a kernel writes, on the interpreter."""
    arguments = arguments_of(kernel, dims)
    interpret(kernel, arguments, dims, grid, level=level)
    return {name: arguments[name] for name, role in kernel.attributes["parameters"] if role != "in"}


def emulated(compilation, dims, seed=0):
    """What the emitted CUDA writes, run on a CPU."""
    from tessera.frontend.grid import launch_grid

    kernel, text = compilation.target.kernel(), compilation.cuda[0]
    arguments = arguments_of(compilation.stages[0].module.kernel(), dims)
    values = [
        *(arguments[name] for name in text.pointers),
        *(dims[name] for name in text.sizes),
        *(arguments[name] for name in text.scalars),
    ]
    library = emulator.build(text.text, [text.name])
    library.launch(text.name, launch_grid(kernel, dims), text.threads, text.shared_bytes, values, seed=seed)
    return {name: arguments[name] for name, role in kernel.attributes["parameters"] if role != "in"}


def bits(array):
    return array.view(f"u{array.dtype.itemsize}")


def assert_same_bits(expected, actual, what):
    for name, array in expected.items():
        assert not np.isnan(array.astype(np.float32)).any(), f"{name} was not written"
        assert np.array_equal(bits(array), bits(actual[name])), f"{what} changed {name}"


@pytest.mark.parametrize("name, dims", ALL)
def test_every_pass_keeps_every_bit_and_the_text_law(name, dims):
    compilation = compile_kernel(getattr(kernels, name), dims)
    assert [stage.name for stage in compilation.stages] == ["frontend", *(p.name for p in PIPELINE)]
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    before = ""
    for stage in compilation.stages:
        assert stage.exact
        text = held_to_its_text(stage.module, stage.name)
        if text != before:
            assert_same_bits(expected, outputs_of(stage.module.kernel(), dims, stage.module.level), stage.name)
        before = text
    assert_same_bits(expected, emulated(compilation, dims), "the emitted CUDA")
    assert_same_bits(expected, emulated(compilation, dims, seed=7), "another order of warps and blocks")


SCHEDULES = [Schedule(4), Schedule(8), Schedule(4, subtile=32), Schedule(8, subtile=16)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(
    "name, dims",
    [("two_groups", {"M": 40, "D": 72}), ("wide_elementwise", {"M": 65, "D": 100}), ("scaled_copy", {"N": 300})],
)
def test_schedules_do_not_change_bits(name, dims, schedule):
    compilation = compile_kernel(getattr(kernels, name), dims, schedule=schedule)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    assert_same_bits(expected, emulated(compilation, dims), str(schedule))


@pytest.mark.parametrize("subtile, block_k", [(16, 16), (32, 16), (64, 64), (128, 32)])
def test_streaming_operands_does_not_change_bits(subtile, block_k):
    dims = {"M": 17, "D": 88}
    streamed = Schedule(4, ("weights",), subtile, block_k)
    compilation = compile_kernel(streamed_product, dims, schedule=streamed)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    assert_same_bits(expected, emulated(compilation, dims), str(streamed))
    buffers = {op.result.name for op in compilation.target.kernel().body.walk() if op.name == "shared"}
    assert "weights" not in buffers, "a streamed buffer has no place of its own"


@ts.kernel
def streamed_product(
    x: tile.Tensor["M", "D", ts.bf16], w: tile.Tensor["D", "D", ts.bf16], out: tile.Tensor["M", "D", ts.bf16]
):
    ctx = tile.context()
    row = tile.program_id(0) * 16
    state = tile.alloc_shared([16, ctx.D], ts.bf16)
    weights = tile.alloc_shared([ctx.D, ctx.D], ts.bf16)
    tile.copy_async(state, x[row : row + 16])
    tile.copy_async(weights, w)
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    tile.store(tile.mma(state, weights) * state, out[row : row + 16])


def test_a_kernel_lowered_for_a_smaller_shared_memory_streams_what_does_not_fit():
    dims = {"M": 16, "D": 256}
    for arch, resident in (("sm_80", True), ("sm_89", False)):
        compilation = compile_kernel(streamed_product, dims, arch)
        buffers = {op.result.name for op in compilation.target.kernel().body.walk() if op.name == "shared"}
        assert ("weights" in buffers) == resident
        assert compilation.target.kernel().attributes["shared_bytes"] <= 101376 or resident


def test_no_straight_line_region_holds_more_than_128_tensor_core_instructions():
    for dims in ({"M": 64, "N": 256, "D": 128}, {"M": 64, "N": 64, "D": 256}):
        target = compile_kernel(kernels.attention_row, dims).target.kernel()
        regions = [(target.body, 1)]
        regions += [(op.regions[0], op.attributes["unroll"]) for op in target.body.walk() if op.name == "for"]
        counts = []
        for block, unroll in regions:
            products = [op.operands for op in block.ops if op.name == "mma_sync"]
            layouts = [(a.type.layout, b.type.layout) for a, b, *_ in products]
            atoms = [a.registers_per_thread // 8 * (b.registers_per_thread // 4) for a, b in layouts]
            counts.append(sum(atoms) * unroll)
        assert 0 < max(counts) <= 128


def test_dead_code_is_dropped_and_constants_are_folded():
    compilation = compile_kernel(dead_code, {"N": 64})
    stages = {stage.name: stage.module.kernel() for stage in compilation.stages}
    before = [op.name for op in stages["specialise"].body.walk()]
    after = [op.name for op in stages["canonicalise"].body.walk()]
    assert "alloc_shared" in before and before.count("load") == 2 and "mul" in after
    assert "alloc_shared" not in after and "write" not in after and after.count("load") == 1
    assert TARGET == compilation.target.level


@ts.kernel
def dead_code(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    start = tile.program_id(0) * 64
    unused = tile.alloc_shared([64], ts.f32)
    tile.fill(unused, 0.0)
    tile.exp(x[start : start + 64])
    tile.store(x[start : start + 64], out[start : start + 64])


def test_schedule_is_plain_data():
    assert dataclasses.replace(Schedule(), warps=8) == Schedule(8)


@ts.kernel
def reversed_in_place(x: tile.Tensor["N", ts.f32]):
    """Stores a block and reads it back shifted: other threads wrote what a thread reads."""
    start = tile.program_id(0) * 256
    tile.store(x[start : start + 256] * 2.0, x[start : start + 256])
    tile.store(x[start + 1 : start + 1 + 128] + 1.0, x[start : start + 128])


def test_a_tensor_that_is_written_and_read_again_gets_barriers_between():
    target = compile_kernel(reversed_in_place, {"N": 256}).target.kernel()
    names = [op.name for op in target.body.walk() if op.name in ("ld_global", "st_global", "barrier")]
    assert names == ["ld_global", "barrier", "st_global", "barrier", "ld_global", "barrier", "st_global"]


def test_a_kernel_that_a_pass_gives_back_is_as_it_was(monkeypatch):
    """It is not verified again, so no pass may change it in place."""
    given_back = set()

    def run_and_compare(step, module, context):
        before = print_module(module)
        new = run_pass(step, module, context)
        if new.kernels == module.kernels:
            assert print_module(module) == before, step.name
            given_back.add(step.name)
        return new

    monkeypatch.setattr(compiler, "run_pass", run_and_compare)
    lane_cases = lane_kernels.CASES
    for arch in ("sm_80", "sm_90a"):
        for definition, dims in (
            (lane_kernels.gemm_rows, lane_cases["gemm_rows"]),
            (lane_kernels.deltas, lane_cases["deltas"]),
        ):
            compile_kernel(definition, dims, arch)
    assert {"split_k", "defer_sums", "pipeline"} <= given_back
