"""Split-K: right by the reference rule at every lane, two launches as plain data, and what cannot be cut is refused."""
# ruff: noqa: F821  (the names of dims)

import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel
from tessera.errors import SourceError
from tessera.ir.dims import evaluate
from tessera.program import Program
from tessera.runtime import execute
from tessera.runtime.check import examine_kernel
from tessera.runtime.interpreter_output import capture
from tessera.runtime.nvrtc import compile_cubin, count_instructions, entry_text
from tessera.target.schedule import Schedule
from tests.passes.test_pipeline import arguments_of, assert_same_bits, outputs_of, streamed_product
from tests.suite import load
from tests.text_law import held_to_its_text


def prepared(definition, dims, **fields):
    """The compilation, arguments for it, and the error bars of its outputs."""
    compilation = compile_kernel(definition, dims, schedule=Schedule(**fields))
    kernel = compilation.stages[0].module.kernel()
    arguments = arguments_of(kernel, dims)
    return compilation, arguments, execute.reference_bars(kernel, arguments, dims)


def copied(arguments):
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


def stage(compilation, name):
    return next(stage for stage in compilation.stages if stage.name == name)


def assert_right(outputs, bars, what):
    for name, bar in bars.items():
        comparison = execute.check(outputs[name], bar)
        assert comparison.ok, f"{what}: {name} is off by {comparison.max_error}, its bound is {comparison.bound}"


SHAPES = [
    ("matmul_nn_bf16", {"M": 64, "N": 64, "K": 256}, 2),
    ("matmul_nn_bf16", {"M": 100, "N": 9, "K": 257}, 3),
    ("matmul_nt_bf16", {"M": 33, "N": 70, "K": 129}, 4),
    ("matmul_tn_bf16", {"M": 1, "N": 1, "K": 256}, 8),
    ("matmul_tt_bf16", {"M": 70, "N": 100, "K": 65}, 3),
    ("matmul_nn_f32", {"M": 40, "N": 65, "K": 200}, 4),
    ("matmul_tt_f32", {"M": 65, "N": 40, "K": 97}, 2),
    ("matmul_bias_gelu", {"M": 70, "N": 9, "K": 100}, 3),
    ("batched_matmul", {"B": 3, "M": 33, "N": 40, "K": 100}, 2),
    ("fp8_matmul", {"M": 33, "N": 100, "K": 129}, 4),
    ("difference_matmul", {"M": 33, "N": 100, "K": 129}, 2),
]


@pytest.mark.parametrize("name, dims, count", SHAPES)
def test_the_parts_add_up(name, dims, count):
    compilation, arguments, bars = prepared(load(name), dims, split_k=count)
    split = stage(compilation, "split_k")
    assert [kernel.name for kernel in split.module.kernels] == [f"{name}_parts", f"{name}_sum"]
    outputs = execute.interpret_all(split.module, copied(arguments), dims).outputs
    assert_right(outputs, bars, "split_k")
    before = outputs_of(stage(compilation, "distribute").module.kernel(), dims, "tile")
    assert [found.name for found in compilation.stages if not found.exact] == ["split_k"]
    for later in compilation.stages[compilation.stages.index(split) + 1 :]:
        found = execute.interpret_all(later.module, copied(arguments), dims).outputs
        assert_same_bits({name: outputs[name] for name in before}, found, later.name)


@ts.kernel
def residual(x: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", "N", ts.bf16], out: tile.Tensor["M", "N", ts.f32]):
    """In-out, and a sum that does not begin at zero."""
    ctx = tile.context()
    m, n = tile.program_id(0) * 16, tile.program_id(1) * 16
    total = tile.load(out[m : m + 16, n : n + 16])
    for k in tile.range(0, ctx.K, 16):
        total = tile.mma(x[m : m + 16, k : k + 16], w[k : k + 16, n : n + 16], total)
    tile.store(total * 0.5, out[m : m + 16, n : n + 16])


@ts.kernel
def gated(
    x: tile.Tensor["M", "K", ts.bf16], u: tile.Tensor["K", "N", ts.bf16], v: tile.Tensor["K", "N", ts.bf16],
    out: tile.Tensor["M", "N", ts.bf16],
):  # fmt: skip
    """Two sums in one loop."""
    ctx = tile.context()
    m, n = tile.program_id(0) * 16, tile.program_id(1) * 32
    left, right = tile.zeros([16, 32], ts.f32), tile.zeros([16, 32], ts.f32)
    for k in tile.range(0, ctx.K, 16):
        rows = tile.load(x[m : m + 16, k : k + 16])
        left = tile.mma(rows, u[k : k + 16, n : n + 32], left)
        right = tile.mma(rows, v[k : k + 16, n : n + 32], right)
    tile.store(tile.sigmoid(left) * right, out[m : m + 16, n : n + 32])


@ts.kernel
def backwards(x: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", "N", ts.bf16], out: tile.Tensor["M", "N", ts.f32]):
    """Ids without a block size, a loop that runs down, and two products in a step."""
    ctx = tile.context()
    i, j = tile.program_id(0), tile.program_id(1)
    total = tile.zeros([16, 16], ts.f32)
    for k in tile.range(ctx.K - 16, -16, -16):
        total = tile.mma(x[i : i + 16, k : k + 16], w[k : k + 16, j : j + 16], total)
        total = tile.mma(x[i : i + 16, k : k + 16], w[k : k + 16, j : j + 16], total)
    tile.store(total, out[i : i + 16, j : j + 16])


OWN = [
    (residual, {"M": 20, "N": 30, "K": 70}, {"split_k": 2}),
    (gated, {"M": 20, "N": 70, "K": 100}, {"split_k": 3, "group": 2}),
    (backwards, {"M": 40, "N": 33, "K": 80}, {"split_k": 4}),
    (streamed_product, {"M": 17, "D": 88}, {"streamed": ("weights",), "subtile": 32, "block_k": 16, "split_k": 2}),
    (
        streamed_product,
        {"M": 35, "D": 64},
        {"streamed": ("weights",), "subtile": 32, "block_k": 16, "rows": 8, "split_k": 4},
    ),
    (load("matmul_nn_bf16"), {"M": 70, "N": 40, "K": 129}, {"rows": 16, "subtile": 32, "split_k": 3}),
]


@pytest.mark.parametrize("definition, dims, fields", OWN)
def test_check_finds_nothing(definition, dims, fields):
    """The emitted CUDA has the bits of the split kernel, and outputs within the bounds of the author's."""
    compilation, arguments, bars = prepared(definition, dims, **fields)
    for found in compilation.stages:
        held_to_its_text(found.module, found.name)
    report = examine_kernel(compilation, arguments, dims, seeds=(0, 3), blocks="all")
    assert report.ok and set(report.bounded) == set(bars) <= set(report.compared)
    assert [launch.name for launch in report.kernels] == [step.kernel for step in compilation.program.launches]


def test_the_emulated_launches_are_right():
    dims = {"M": 16, "N": 9, "K": 70}
    compilation, arguments, bars = prepared(residual, dims, split_k=2, group=1)
    outcome = execute.emulate(compilation.program, copied(arguments), dims)
    assert_right(outcome.outputs, bars, "emulate")
    assert [(ran.name, ran.grid) for ran in outcome.kernels] == [
        ("residual_parts", (1, 1, 2)),
        ("residual_sum", (1, 1)),
    ]


def test_a_sample_of_blocks_is_compared_as_far_as_it_ran():
    """The sum gets what all parts make, though few of them ran."""
    dims = {"M": 100, "N": 150, "K": 64}
    compilation, arguments, _ = prepared(load("matmul_nn_bf16"), dims, split_k=2)
    report = examine_kernel(compilation, arguments, dims, seeds=(0,), blocks=2)
    assert report.ok and report.compared == ("partials", "output") and report.sampled


def test_an_examination_finds_a_part_that_is_wrong():
    import dataclasses

    dims = {"M": 16, "N": 16, "K": 64}
    compilation, arguments, _ = prepared(residual, dims, split_k=2)
    parts, total = compilation.cuda
    wrong = dataclasses.replace(parts, text=parts.text.replace("ts_mma_m16n8k16_bf16(", "(void)(", 1))
    report = examine_kernel(dataclasses.replace(compilation, cuda=[wrong, total]), arguments, dims, seeds=(0,))
    assert [seen.finding.kind for seen in report.findings] == ["wrong-value"]
    assert report.findings[0].finding.message.startswith("partials[")


@ts.kernel
def noisy(x: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", 16, ts.bf16], out: tile.Tensor["M", 16, ts.f32]):
    """Everything but the product happens once, behind the sum."""
    ctx = tile.context()
    m = tile.program_id(0) * 16
    total = tile.zeros([16, 16], ts.f32)
    for k in tile.range(0, ctx.K, 16):
        total = tile.mma(x[m : m + 16, k : k + 16], w[k : k + 16], total)
    tile.print("rows from {}", m)
    tile.assert_(tile.abs(total - 64.0) < 0.5, "all of the sum")
    tile.store(total, out[m : m + 16])


def test_prints_and_assertions_stay_with_the_sum():
    dims = {"M": 32, "K": 64}
    compilation, arguments, _ = prepared(noisy, dims, split_k=2)
    for name in ("x", "w"):
        arguments[name][...] = 1.0
    with capture() as printed:
        execute.emulate(compilation.program, copied(arguments), dims)
    assert printed == ["[program (0)] rows from 0", "[program (1)] rows from 16"]


def test_a_program_of_two_launches_is_plain_data():
    dims = {"M": 100, "N": 150, "K": 200}
    program = compile_kernel(load("batched_matmul"), {"B": 5, **dims}, schedule=Schedule(split_k=3)).program
    assert program.name == "batched_matmul" and [p.name for p in program.parameters] == ["a", "b", "output"]
    (space,) = program.workspaces
    sizes = {"B": 5, **dims}
    assert [evaluate(size, sizes) for size in space.shape] == [3, 2, 3, 5, 64, 64]
    assert space.bytes(sizes) == 3 * 2 * 3 * 5 * 64 * 64 * 4
    parts, total = program.launches
    assert [evaluate(size, sizes) for size in parts.grid] == [2, 3, 15]
    assert parts.writes == ("partials",) and total.writes == ("output",)
    again = Program.from_json(program.to_json())
    assert again == program and again.workspaces == program.workspaces


def test_the_sum_has_programs_of_a_few_rows():
    dims = {"M": 64, "N": 64, "K": 512}
    compilation = compile_kernel(load("matmul_nn_bf16"), dims, schedule=Schedule(split_k=8))
    parts, total = compilation.program.launches
    assert [evaluate(size, dims) for size in total.grid] == [4, 1]
    result = compile_cubin(compilation.program.cuda, "sm_80", "both", want_ptx=True)
    counts = {step.kernel: count_instructions(entry_text(result.ptx, step.kernel)) for step in (parts, total)}
    assert counts[parts.kernel]["mma.sync"] == 16 and counts[total.kernel]["mma.sync"] == 0
    assert all(found.spill_stores == 0 for found in result.resources.values())
    assert "ts_ld_global<float, 4>(" in compilation.cuda[1].text, "the sum loads 16 bytes at a time"


@ts.kernel
def no_product(x: tile.Tensor["M", ts.f32], out: tile.Tensor["M", ts.f32]):
    m = tile.program_id(0) * 16
    tile.store(x[m : m + 16], out[m : m + 16])


@ts.kernel
def chained(x: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", "K", ts.bf16], out: tile.Tensor["M", 16, ts.f32]):
    """The second product takes what the first one sums."""
    ctx = tile.context()
    m = tile.program_id(0) * 16
    first, second = tile.zeros([16, 16], ts.f32), tile.zeros([16, 16], ts.f32)
    for k in tile.range(0, ctx.K, 16):
        first = tile.mma(x[m : m + 16, k : k + 16], w[k : k + 16, 0:16], first)
    for k in tile.range(0, ctx.K, 16):
        second = tile.mma(tile.cast(first, ts.bf16), w[k : k + 16, 0:16], second)
    tile.store(second, out[m : m + 16])


@ts.kernel
def read_within(x: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", 16, ts.bf16], out: tile.Tensor["M", 16, ts.f32]):
    """What a step sums is looked at inside the loop."""
    ctx = tile.context()
    m = tile.program_id(0) * 16
    total = tile.zeros([16, 16], ts.f32)
    for k in tile.range(0, ctx.K, 16):
        total = tile.mma(x[m : m + 16, k : k + 16], w[k : k + 16], tile.maximum(total, 0.0))
    tile.store(total, out[m : m + 16])


@ts.kernel
def overwritten(x: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", 16, ts.bf16]):
    """The loop reads what the kernel writes."""
    ctx = tile.context()
    m = tile.program_id(0) * 16
    total = tile.zeros([16, 16], ts.f32)
    for k in tile.range(0, ctx.K, 16):
        total = tile.mma(x[m : m + 16, k : k + 16], w[k : k + 16], total)
    tile.store(total, x[m : m + 16, 0:16])


@ts.kernel
def doubled(x: tile.Tensor["M", 16, ts.bf16], w: tile.Tensor["K", 16, ts.bf16]):
    """A product takes what the kernel has written before."""
    ctx = tile.context()
    m = tile.program_id(0) * 16
    tile.store(x[m : m + 16] * 2.0, x[m : m + 16])
    rows = tile.load(x[m : m + 16])
    total = tile.zeros([16, 16], ts.f32)
    for k in tile.range(0, ctx.K, 16):
        total = tile.mma(rows, w[k : k + 16], total)
    tile.store(total, x[m : m + 16])


REFUSED = [
    (load("matmul_nn_bf16"), {"M": 64, "N": 64, "K": 64}, 3, "a loop of 'matmul_nn_bf16' has 2 iterations"),
    (load("matmul_nn_bf16"), {"M": 64, "N": 64, "K": 64}, 0, "split_k is 0"),
    (no_product, {"M": 64}, 2, "has no loop that sums a product"),
    (read_within, {"M": 64, "K": 64}, 2, "has no loop that sums a product"),
    (overwritten, {"M": 64, "K": 64}, 2, "has no loop that sums a product"),
    (doubled, {"M": 64, "K": 64}, 2, "writes 'x', which its product reads"),
    (chained, {"M": 64, "K": 64}, 2, "takes what another one sums"),
]


@pytest.mark.parametrize("definition, dims, count, message", REFUSED)
def test_what_cannot_be_cut_is_refused(definition, dims, count, message):
    with pytest.raises(SourceError, match=message) as caught:
        compile_kernel(definition, dims, schedule=Schedule(split_k=count))
    assert caught.value.code == "TS512" and caught.value.loc is not None
