"""Parallel loops become programs: the grid, what does nothing, what stays a loop, and the same bits on every lane."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel, find_arch, make_context, run_pass, trace_kernel
from tessera.ir.core import clone_kernel
from tessera.ir.dims import evaluate, to_text
from tessera.ir.verify import verify
from tessera.passes import PIPELINE, Pass, pass_named
from tessera.passes.distribute import distribute
from tests.passes.test_pipeline import assert_same_bits, emulated, outputs_of
from tests.text_law import held_to_its_text


def marked(kernel, names=("i", "j")):
    """The kernel with the loops over these variables declared parallel."""
    new, _ = clone_kernel(kernel)
    for op in new.body.walk():
        if op.name == "for" and op.regions[0].arguments[0].name in names:
            op.attributes["parallel"] = True
    return new


def prepared(definition, dims, grid=None):
    """The kernel as the pass meets it."""
    module = trace_kernel(definition, dims, grid)
    context = make_context(module.kernel(), find_arch("sm_80"), dims)
    for name in ("specialise", "canonicalise"):
        step = pass_named(name)
        assert step is not None
        module = run_pass(step, module, context)
    return marked(module.kernel())


def distributed(definition, dims, grid=None):
    kernel = distribute(prepared(definition, dims, grid))
    verify(kernel, "tile")
    return kernel


def grid_text(kernel):
    return [to_text(size) for size in kernel.attributes["grid"]]


def count(kernel, name):
    return sum(op.name == name for op in kernel.body.walk())


@pytest.fixture
def distributing(monkeypatch):
    """The pipeline in which loops over i and j are parallel and distributed."""
    steps = [step for step in PIPELINE if step.name not in ("subtile", "distribute")]
    place = next(i for i, step in enumerate(steps) if step.name == "stage_operands")
    steps[place:place] = [Pass("mark", lambda k, c: marked(k)), Pass("distribute", lambda k, c: distribute(k))]
    monkeypatch.setattr("tessera.compiler.PIPELINE", tuple(steps))


@ts.kernel
def blocks(
    x: tile.Tensor["B", "S", "D", ts.bf16], w: tile.Tensor["L", ts.f32], out: tile.Tensor["B", "S", "D", ts.bf16]
):
    """A number loaded once, and two loops over blocks of rows that go on in the next program."""
    b = tile.program_id(0) * 8
    s = tile.program_id(1) * 32
    weight = w[0]
    for i in tile.range(8):
        for j in tile.range(0, 32, 16):
            tile.store_block(out, tile.load_block(x, b + i, s + j, 1, 16) * weight, b + i, s + j)


@ts.kernel
def products(a: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", "K", ts.bf16], out: tile.Tensor["M", "K", ts.bf16]):
    """Rows in parallel; each iteration multiplies in a loop of its own, through shared memory."""
    ctx = tile.context()
    row = tile.program_id(0) * 64
    for i in tile.range(0, 64, 16):
        total = tile.zeros([16, ctx.K])
        for k in tile.range(0, ctx.K, 16):
            total = tile.mma(a[row + i : row + i + 16, k : k + 16], w[k : k + 16, 0 : ctx.K], total)
        tile.store(total, out[row + i : row + i + 16])


@ts.kernel
def without_ids(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    twos = tile.full([32], 2.0)
    for i in tile.range(6):
        tile.store(x[i * 32 : i * 32 + 32] * twos, out[i * 32 : i * 32 + 32])


@ts.kernel(grid=lambda d: (tile.cdiv(d.N, 64),))
def from_the_middle(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    """The loop does not begin at 0, and two stores of an iteration lie side by side."""
    start = tile.program_id(0) * 64 - 32
    for i in tile.range(32, 96, 32):
        tile.store(x[start + i + 16 : start + i + 32] * 3.0, out[start + i + 16 : start + i + 32])
        tile.store(x[start + i : start + i + 16] * 2.0, out[start + i : start + i + 16])


@ts.kernel
def bare_window(x: tile.Tensor["S", "D", ts.f32], out: tile.Tensor["S", "D", ts.f32]):
    """Windows that start at bare ids: the grid launches every 64th."""
    p = tile.program_id(0)
    for i in tile.range(0, 64, 8):
        tile.store(x[p + i : p + i + 8] + 1.0, out[p + i : p + i + 8])


@ts.kernel
def second_axis(x: tile.Tensor["M", "S", ts.f32], out: tile.Tensor["M", "S", ts.f32]):
    """The loop walks the axis of program_id(1), whose windows start at bare ids."""
    row = tile.program_id(0) * 4
    p = tile.program_id(1)
    for i in tile.range(0, 64, 16):
        tile.store(x[row : row + 4, p + i : p + i + 16] + 1.0, out[row : row + 4, p + i : p + i + 16])


@ts.kernel(grid=lambda d: (3 * tile.cdiv(d.M, 16), 1))
def turns(x: tile.Tensor["M", 8, ts.f32], out: tile.Tensor[3, "M", 8, ts.f32]):
    """Programs that are three turns of one block each; those of a block walk the same rows."""
    p = tile.program_id(0)
    row, scale = p // 3 * 16, tile.cast(p % 3 + 1, ts.f32)
    for i in tile.range(0, 16, 4):
        tile.store(x[row + i : row + i + 4] * scale, out[p % 3, row + i : row + i + 4])


@ts.kernel(grid=lambda d: (2 * tile.cdiv(d.M, 16), 1))
def turns_apart(x: tile.Tensor["M", 8, ts.f32], out: tile.Tensor["M", 8, ts.f32]):
    """Turns that walk rows of their own: their ends are not the block's."""
    p = tile.program_id(0)
    row = p // 2 * 16 + p % 2 * 8
    for i in tile.range(0, 8, 4):
        tile.store(x[row + i : row + i + 4] * 2.0, out[row + i : row + i + 4])


CASES = [
    (turns, {"M": 22}, ["3*cdiv(M, 4)", "1"], (18, 1), 0),
    (turns_apart, {"M": 22}, ["4*cdiv(M, 16)", "1"], (8, 1), 0),
    (blocks, {"B": 3, "S": 40, "D": 8, "L": 2}, ["2*B", "cdiv(S, 32)"], (6, 2), 1),
    (blocks, {"B": 33, "S": 7, "D": 16, "L": 2}, ["2*B", "cdiv(S, 32)"], (66, 1), 1),
    (blocks, {"B": 1, "S": 1, "D": 5, "L": 1}, ["2*B", "cdiv(S, 32)"], (2, 1), 1),
    (products, {"M": 70, "K": 32}, ["cdiv(M, 16)"], (5,), 0),
    (products, {"M": 5, "K": 40}, ["cdiv(M, 16)"], (1,), 0),
    (without_ids, {"N": 192}, ["6"], (6,), 1),
    (from_the_middle, {"N": 150}, ["2*cdiv(N, 64)"], (6,), 1),
    (bare_window, {"S": 150, "D": 4}, ["cdiv(S, 8)"], (19,), 0),
    (second_axis, {"M": 6, "S": 150}, ["4*cdiv(M, 4)", "cdiv(S, 64)"], (8, 3), 1),
]


@pytest.mark.parametrize(
    "definition, dims, grid, numbers, guards", CASES, ids=lambda value: getattr(value, "name", None)
)
def test_iterations_become_programs_and_bits_stay(definition, dims, grid, numbers, guards, distributing):
    kernel = distributed(definition, dims)
    assert grid_text(kernel) == grid
    assert tuple(evaluate(size, dims) for size in kernel.attributes["grid"]) == numbers
    assert count(kernel, "if") == guards
    assert not any(op.get("parallel") for op in kernel.body.walk())
    compilation = compile_kernel(definition, dims)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    before = ""
    for stage in compilation.stages:
        text = held_to_its_text(stage.module, stage.name)
        if text != before:
            assert_same_bits(expected, outputs_of(stage.module.kernel(), dims, stage.module.level), stage.name)
        before = text
    assert compilation.program.launches[0].grid == kernel.attributes["grid"]
    for seed in (0, 7):
        assert_same_bits(expected, emulated(compilation, dims, seed), f"the emitted CUDA, seed {seed}")


def test_a_grid_given_at_the_call_keeps_all_of_its_programs():
    dims = {"B": 3, "S": 40, "D": 8, "L": 2}
    kernel = distributed(blocks, dims, grid=(5, 2))
    assert kernel.attributes["grid"] == (80, 2)
    before = prepared(blocks, dims, (5, 2))
    assert_same_bits(outputs_of(before, dims, "tile"), outputs_of(kernel, dims, "tile"), "distribute")


def test_a_grid_beyond_what_cuda_launches_is_not_made():
    dims = {"B": 3, "S": 40, "D": 8, "L": 2}
    kernel = prepared(blocks, dims, (2**28, 1))
    assert distribute(kernel) is kernel
    assert distribute(prepared(blocks, dims, (2**26, 1))).attributes["grid"] == (2**30, 1)


@ts.kernel
def prints(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    for i in tile.range(4):
        tile.print("{}", i)
        tile.store(x[i * 16 : i * 16 + 16], out[i * 16 : i * 16 + 16])


@ts.kernel
def asserts(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    for i in tile.range(4):
        value = x[i * 16 : i * 16 + 16]
        tile.assert_(value < 100.0, "small")
        tile.store(value, out[i * 16 : i * 16 + 16])


@ts.kernel
def counts_programs(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    for i in tile.range(4):
        tile.store(x[i * 16 : i * 16 + 16] * tile.num_programs(0), out[i * 16 : i * 16 + 16])


@ts.kernel
def adds(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32], total: tile.Tensor["K", ts.f32]):
    for i in tile.range(4):
        tile.atomic_add(total[0:16], x[i * 16 : i * 16 + 16])
        tile.store(x[i * 16 : i * 16 + 16], out[i * 16 : i * 16 + 16])


@ts.kernel
def shared_tile(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    first = tile.exp(x[0:16])
    for i in tile.range(4):
        tile.store(x[i * 16 : i * 16 + 16] + first, out[i * 16 : i * 16 + 16])


@ts.kernel
def shared_buffer(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    first = tile.alloc_shared([16], ts.f32)
    tile.multiply(x[0:16], 2.0, first)
    for i in tile.range(4):
        tile.store(first + x[i * 16 : i * 16 + 16], out[i * 16 : i * 16 + 16])


@ts.kernel
def buffer_of_an_iteration(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    first = tile.alloc_shared([16], ts.f32)
    for i in tile.range(4):
        tile.multiply(x[i * 16 : i * 16 + 16], 2.0, first)
        tile.store(first + 1.0, out[i * 16 : i * 16 + 16])


@ts.kernel
def store_after(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    for i in tile.range(4):
        tile.store(x[i * 16 : i * 16 + 16], out[i * 16 : i * 16 + 16])
    tile.store(x[64:72], out[64:72])


@ts.kernel
def two_loops(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    for i in tile.range(4):
        tile.store(x[i * 16 : i * 16 + 16], out[i * 16 : i * 16 + 16])
    for j in tile.range(4, 6):
        tile.store(x[j * 16 : j * 16 + 16], out[j * 16 : j * 16 + 16])


@ts.kernel
def run_time_bound(x: tile.Tensor["N", ts.f32], n: int, out: tile.Tensor["N", ts.f32]):
    for i in tile.range(n):
        tile.store(x[i * 16 : i * 16 + 16], out[i * 16 : i * 16 + 16])


@ts.kernel
def not_parallel(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    for k in tile.range(4):
        tile.store(x[k * 16 : k * 16 + 16], out[k * 16 : k * 16 + 16])


STAY = [
    prints,
    asserts,
    counts_programs,
    adds,
    shared_tile,
    shared_buffer,
    store_after,
    two_loops,
    run_time_bound,
    not_parallel,
]


@pytest.mark.parametrize("definition", STAY, ids=lambda value: value.name)
def test_loops_that_stay(definition):
    kernel = prepared(definition, {"N": 96, "K": 16} if definition is adds else {"N": 96}, (1,))
    assert count(kernel, "for")
    assert distribute(kernel) is kernel


def test_a_buffer_that_each_iteration_fills_is_each_program_s_own():
    kernel = distributed(buffer_of_an_iteration, {"N": 96}, (1,))
    assert not count(kernel, "for") and count(kernel, "alloc_shared") == 1


@ts.kernel
def rows_of_a_shared_block(x: tile.Tensor["B", "N", ts.f32], out: tile.Tensor["B", "N", ts.f32]):
    """The inner loop shares a tile, so only the outer one is distributed."""
    for i in tile.range(4):
        first = tile.exp(x[i, 0:16])
        for j in tile.range(0, 64, 16):
            tile.store(x[i, j : j + 16] + first, out[i, j : j + 16])


def test_what_an_inner_loop_shares_keeps_it_in_the_program(distributing):
    dims = {"B": 4, "N": 64}
    kernel = distribute(prepared(rows_of_a_shared_block, dims, (1,)))
    assert kernel.attributes["grid"] == (4,) and count(kernel, "for") == 1
    compilation = compile_kernel(rows_of_a_shared_block, dims, grid=(1,))
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    assert_same_bits(expected, emulated(compilation, dims), "the emitted CUDA")


def test_programs_outside_the_tensor_do_nothing():
    """The guard leaves out whole sub-tiles: with it, no load of a program outside runs."""
    dims = {"M": 4, "S": 65}
    kernel = distributed(second_axis, dims)
    (guard,) = (op for op in kernel.body.walk() if op.name == "if")
    assert [op.name for op in guard.regions[1].ops] == ["yield"]
    assert {"load", "store"} <= {op.name for op in guard.regions[0].ops}
    assert not {"load", "store"} & {op.name for op in kernel.body.ops}
