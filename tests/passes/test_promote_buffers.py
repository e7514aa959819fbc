"""Buffers become tiles: which ones, what loops and branches carry, and the same bits on every lane."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel, find_arch, make_context, run_pass, trace_kernel
from tessera.errors import SourceError
from tessera.ir.compare import difference
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.verify import verify
from tessera.passes import PIPELINE, Pass, pass_named
from tessera.passes.promote_buffers import computed_buffers, promotable, promote_buffers
from tessera.runtime.interpreter import interpret
from tessera.runtime.nvrtc import compile_cubin
from tests.passes.test_pipeline import arguments_of, assert_same_bits, emulated, outputs_of


def prepared(definition, dims, arch="sm_80"):
    """The kernel as the pass meets it."""
    module = trace_kernel(definition, dims)
    context = make_context(module.kernel(), find_arch(arch), dims)
    for name in ("specialise", "canonicalise"):
        step = pass_named(name)
        assert step is not None
        module = run_pass(step, module, context)
    return module.kernel()


def promoted(definition, dims):
    kernel = promote_buffers(prepared(definition, dims))
    verify(kernel, "tile")
    return kernel


def named(kernel):
    """The names of the buffers that a kernel still has."""
    return {op.result.name for op in kernel.body.walk() if op.name == "alloc_shared"}


@pytest.fixture
def everything_promoted(monkeypatch):
    """The pipeline with every buffer promoted that can be."""
    steps = [step for step in PIPELINE if step.name != "promote_buffers"]
    place = next(i for i, step in enumerate(steps) if step.name == "choose_schedule")
    steps.insert(place, Pass("promote_buffers", lambda k, c: promote_buffers(k)))
    monkeypatch.setattr("tessera.compiler.PIPELINE", tuple(steps))


@ts.kernel
def accumulator(x: tile.Tensor["M", "N", ts.bf16], out: tile.Tensor["M", ts.bf16]):
    """Filled, added to in a run-time loop, cast and stored."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    acc = tile.alloc_shared([16, 32], ts.f32)
    tile.fill(acc, 0.0)
    for column in tile.range(0, ctx.N, 32):
        tile.accumulate(acc, x[row : row + 16, column : column + 32], precision="mixed")
    tile.barrier()
    tile.store(tile.cast(tile.sum(acc, axis=1), ts.bf16), out[row : row + 16])


@ts.kernel
def rank_three(
    x: tile.Tensor["B", "S", "D", ts.bf16], w: tile.Tensor["D", "D", ts.bf16], out: tile.Tensor["B", "S", "D", ts.bf16]
):
    """An accumulator and a difference that every iteration writes anew, both of rank 3, in a static loop."""
    ctx = tile.context()
    b = tile.program_id(0) * 2
    s = tile.program_id(1) * 8
    acc = tile.alloc_shared([2, 8, ctx.D], ts.f32)
    delta = tile.alloc_shared([2, 8, ctx.D], ts.bf16)
    tile.fill(acc, 0.0)
    for i in tile.static_range(3):
        block = tile.load_block(x, b, s, 2, 8)
        tile.subtract(block, block * (0.25 * (i + 1)), delta)
        tile.accumulate(acc, tile.apply_gating(delta, w, 3 - i, 0.5), precision="mixed")
    tile.store_block(out, tile.cast(acc, ts.bf16), b, s)


@ts.kernel
def nested(x: tile.Tensor["N", ts.f32], n: int, out: tile.Tensor["N", ts.f32]):
    """Carried through two loops and a while; one buffer lives inside the inner loop."""
    start = tile.program_id(0) * 64
    total = tile.alloc_shared([64], ts.f32)
    tile.fill(total, 1.0)
    for i in tile.range(n):
        for j in tile.range(2):
            scaled = tile.alloc_shared([64], ts.bf16)
            tile.multiply(x[start : start + 64], 1.0 + i + j, scaled)
            tile.add(total, scaled, total)
        tile.multiply(total, 0.5, total)
    left = n
    while left > 0:
        tile.add(total, left, total)
        left = left - 1
    tile.store(total + 0.0, out[start : start + 64])


@ts.kernel
def branches(x: tile.Tensor["N", ts.f32], n: int, out: tile.Tensor["N", ts.f32]):
    """Written in one branch, in both, and in neither."""
    start = tile.program_id(0) * 64
    a = tile.alloc_shared([64], ts.f32)
    b = tile.alloc_shared([64], ts.bf16)
    tile.fill(a, 2.0)
    if n > 2:
        tile.add(a, x[start : start + 64], a)
        tile.fill(b, 3.0)
    else:
        tile.multiply(x[start : start + 64], 2.0, b)
    for i in tile.range(4):
        if i == n:
            tile.subtract(a, b, a)
    tile.store(a * b, out[start : start + 64])


@ts.kernel
def halves(x: tile.Tensor["M", "D", ts.f32], out: tile.Tensor["M", "D", ts.f32]):
    """Two halves written apart and read apart, and one fill over both."""
    row = tile.program_id(0) * 16
    both = tile.alloc_shared([16, 32], ts.f32)
    tile.fill(both, 1.0)
    value = x[row : row + 16, 0:16]
    for _ in tile.range(3):
        tile.fill(both[0:16, 0:16], 5.0)
        tile.store(both[0:16, 16:32] + both[0:16, 0:16] + value, out[row : row + 16, 0:16])


@ts.kernel
def whole_of_halves(x: tile.Tensor["M", "D", ts.f32], out: tile.Tensor["M", "D", ts.f32]):
    """Two parts written apart and read together, which is what shared memory is for."""
    row = tile.program_id(0) * 16
    both = tile.alloc_shared([16, 32], ts.f32)
    tile.fill(both[0:16, 0:16], 1.0)
    tile.fill(both[0:16, 16:32], 2.0)
    tile.store(both + x[row : row + 16, 0:32], out[row : row + 16, 0:32])


@ts.kernel
def part_of_whole(x: tile.Tensor["M", "D", ts.bf16], out: tile.Tensor["M", "D", ts.bf16]):
    """Written whole, read in parts."""
    row = tile.program_id(0) * 16
    state = tile.alloc_shared([16, 32], ts.bf16)
    tile.multiply(x[row : row + 16, 0:32], 3.0, state)
    tile.store(state[0:16, 8:24] + state[0:16, 0:16], out[row : row + 16, 0:16])


@ts.kernel
def copied(x: tile.Tensor["M", "D", ts.bf16], w: tile.Tensor["D", "D", ts.bf16], out: tile.Tensor["M", "D", ts.bf16]):
    """Two copies under one wait, one more in a loop."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    state = tile.alloc_shared([16, ctx.D], ts.bf16)
    weights = tile.alloc_shared([ctx.D, ctx.D], ts.bf16)
    tile.copy_async(state, x[row : row + 16])
    tile.copy_async(weights, w)
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    tile.barrier()
    total = tile.mma(state, weights) * state
    for i in tile.range(2):
        tile.copy_async(state, x[row + i : row + i + 16])
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        total = total + state
    tile.store(total, out[row : row + 16])


@ts.kernel
def last_of_loop(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    """What the last iteration wrote is read after a loop that certainly runs."""
    start = tile.program_id(0) * 64
    last = tile.alloc_shared([64], ts.bf16)
    for i in tile.range(3):
        tile.multiply(x[start : start + 64], i + 1.5, last)
    tile.store(last + 0.0, out[start : start + 64])


@ts.kernel
def last_of_any_loop(x: tile.Tensor["N", ts.f32], n: int, out: tile.Tensor["N", ts.f32]):
    """The same where the loop may not run: certain only at run time."""
    start = tile.program_id(0) * 64
    last = tile.alloc_shared([64], ts.bf16)
    for i in tile.range(n):
        tile.multiply(x[start : start + 64], i + 1.5, last)
    tile.store(last + 0.0, out[start : start + 64])


@ts.kernel
def exchanged(x: tile.Tensor["N", ts.f32], n: int, out: tile.Tensor["N", ts.f32]):
    """Two buffers that take each other's value in every iteration."""
    start = tile.program_id(0) * 64
    a = tile.alloc_shared([64], ts.f32)
    b = tile.alloc_shared([64], ts.f32)
    tile.multiply(x[start : start + 64], 2.0, a)
    tile.fill(b, 1.0)
    for _ in tile.range(n):
        old = a + 0.0
        tile.add(b, 0.5, a)
        tile.subtract(old, 0.25, b)
    tile.store(a + b * 3.0, out[start : start + 64])


CASES = [
    (accumulator, {"M": 33, "N": 100}, {"acc"}),
    (rank_three, {"B": 3, "S": 20, "D": 16}, {"acc", "delta"}),
    (nested, {"N": 100}, {"total", "scaled"}),
    (branches, {"N": 100}, {"a", "b"}),
    (halves, {"M": 20, "D": 16}, {"both"}),
    (whole_of_halves, {"M": 20, "D": 32}, set()),
    (part_of_whole, {"M": 20, "D": 16}, {"state"}),
    (copied, {"M": 20, "D": 32}, {"state", "weights"}),
    (last_of_loop, {"N": 100}, {"last"}),
    (last_of_any_loop, {"N": 100}, set()),
    (exchanged, {"N": 100}, {"a", "b"}),
]


@pytest.mark.parametrize("definition, dims, gone", CASES, ids=lambda value: getattr(value, "name", None))
def test_buffers_go_and_bits_stay(definition, dims, gone, everything_promoted):
    before = prepared(definition, dims)
    assert named(before) - named(promoted(definition, dims)) == gone
    compilation = compile_kernel(definition, dims)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    for stage in compilation.stages:
        text = print_module(stage.module)
        assert difference(stage.module, parse_module(text)) is None, stage.name
        assert_same_bits(expected, outputs_of(stage.module.kernel(), dims, stage.module.level), stage.name)
    for seed in (0, 7):
        assert_same_bits(expected, emulated(compilation, dims, seed), f"the emitted CUDA, seed {seed}")


@pytest.mark.parametrize("definition, dims", [(rank_three, {"B": 3, "S": 20, "D": 16}), (nested, {"N": 100})])
def test_promoted_kernels_compile_without_spills(definition, dims, everything_promoted):
    for arch in ("sm_80", "sm_90a"):
        (text,) = compile_kernel(definition, dims, arch).cuda
        used = compile_cubin(text.text, arch, text.name).resources[text.name]
        assert not used.spill_stores and not used.spill_loads


def test_a_loop_carries_what_it_changes_and_no_more():
    kernel = promoted(rank_three, {"B": 2, "S": 8, "D": 16})
    for loop in (op for op in kernel.body.walk() if op.name == "for"):
        assert [result.name for result in loop.results] == ["acc"], "an iteration writes 'delta' before it reads it"
    inner, outer = (op for op in promoted(nested, {"N": 64}).body.walk() if op.name == "for")
    assert [result.name for result in inner.results] == [result.name for result in outer.results] == ["total"]


def test_a_write_rounds_by_a_cast_that_nothing_skips():
    kernel = promoted(nested, {"N": 64})
    (cast,) = (op for op in kernel.body.walk() if op.name == "cast" and op.result.type.dtype == ts.bf16)
    assert cast.result.name == "scaled"


def test_a_barrier_goes_with_the_last_buffer():
    assert "barrier" not in [op.name for op in promoted(accumulator, {"M": 16, "N": 32}).body.walk()]
    kernel = prepared(copied, {"M": 16, "D": 16})
    (weights,) = (op.result for op in kernel.body.walk() if op.name == "alloc_shared" and op.result.name == "weights")
    left = promote_buffers(kernel, {weights})
    assert named(left) == {"state"} and "barrier" in [op.name for op in left.body.walk()]
    (wait, _) = (op for op in left.body.walk() if op.name == "wait")
    assert len(wait.operands) == 1, "the token of the copy that is a load now is gone"


def test_what_is_read_before_it_is_written_stays_and_is_reported():
    kernel = promoted(last_of_any_loop, {"N": 64})
    assert named(kernel) == {"last"}
    arguments = {**arguments_of(kernel, {"N": 64}), "n": 0}
    with pytest.raises(SourceError, match="'last' is read before all of its elements are written"):
        interpret(kernel, arguments, {"N": 64})


@ts.kernel
def indexed(x: tile.Tensor["N", ts.f32], n: int, out: tile.Tensor["N", ts.f32]):
    state = tile.alloc_shared([64], ts.f32)
    tile.multiply(x[0:64], 2.0, state)
    tile.store(state[n : n + 16], out[0:16])


@ts.kernel
def changed_source(x: tile.Tensor["N", ts.f32]):
    state = tile.alloc_shared([64], ts.f32)
    tile.copy_async(state, x[0:64])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    tile.store(state * 2.0, x[0:64])
    tile.store(state + 1.0, x[0:64])


@pytest.mark.parametrize("definition", [indexed, changed_source])
def test_unknown_windows_and_copies_of_changing_tensors_stay(definition):
    assert named(promoted(definition, {"N": 64})) == {"state"}


COPY_ACROSS_ITERATIONS = """
tessera 1 tile
file 0 "k.py"

kernel @k(
  %x: view<[64], f32>,
  %out: view<[64], f32>
) attributes {parameters = (("x", "in"), ("out", "out")), grid = (1,)} @0:1:1-1:2 {
  %state: buffer<[64], f32> = alloc_shared {shape = (64,), dtype = f32} @0:1:1-1:2
  %0: i64 = constant {value = 0, dtype = i64} @0:1:1-1:2
  %1: i64 = constant {value = 1, dtype = i64} @0:1:1-1:2
  %first: token = copy_async %state, %x @0:1:1-1:2
  %last: token = for %0, %1, %1, %first (%i: i64, %token: token) {
    wait %token @0:1:1-1:2
    %old: tile<[64], f32> = read %state @0:1:1-1:2
    store %out, %old @0:1:1-1:2
    %next: token = copy_async %state, %x @0:1:1-1:2
    yield %next @0:1:1-1:2
  } @0:1:1-1:2
  wait %last @0:1:1-1:2
}
"""


def test_copies_whose_tokens_a_loop_carries_stay():
    kernel = parse_module(COPY_ACROSS_ITERATIONS.lstrip()).kernel()
    verify(kernel, "tile")
    assert promotable(kernel) == {} and promote_buffers(kernel) is kernel


@ts.kernel
def unread(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    spare = tile.alloc_shared([64], ts.f32)
    tile.fill(spare, 0.0)
    tile.store(x[0:64] * 2.0, out[0:64])


def test_an_unread_buffer_goes_with_a_note():
    module = trace_kernel(unread, {"N": 64})
    kernel = promote_buffers(module.kernel())
    assert not named(kernel)
    assert kernel.attributes["notes"][-1] == "the buffer 'spare' is never read: its 64 elements take no memory"


@ts.kernel
def resident_operand(
    x: tile.Tensor["M", "D", ts.bf16], w: tile.Tensor["D", "D", ts.bf16], out: tile.Tensor["M", "D", ts.bf16]
):
    """A computed operand that a loop of products reads again and again, and one that each iteration computes."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    weights = tile.alloc_shared([ctx.D, ctx.D], ts.bf16)
    state = tile.alloc_shared([16, ctx.D], ts.bf16)
    tile.multiply(w, 0.5, weights)
    total = tile.zeros([16, ctx.D])
    for i in tile.range(3):
        tile.multiply(x[row : row + 16], i + 1, state)
        total = total + tile.mma(state, weights)
    tile.store(total, out[row : row + 16])


def test_the_default_keeps_what_is_cheaper_in_shared_memory():
    def chosen(definition, dims, arch="sm_80"):
        return {buffer.name for buffer in computed_buffers(prepared(definition, dims, arch), find_arch(arch))}

    assert chosen(resident_operand, {"M": 16, "D": 32}) == {"state"}
    assert chosen(resident_operand, {"M": 16, "D": 512}) == {"state", "weights"}, "half a megabyte fits nowhere"
    assert chosen(copied, {"M": 16, "D": 32}) == set(), "copies are the schedule's to place"
    assert chosen(part_of_whole, {"M": 16, "D": 16}) == set()
    assert chosen(halves, {"M": 16, "D": 16}) == {"both"}, "a number is never cut out of a tile"


def test_nothing_to_promote_is_the_kernel_itself():
    kernel = prepared(indexed, {"N": 64})
    assert promote_buffers(kernel) is kernel
    kernel = prepared(nested, {"N": 64})
    assert promote_buffers(kernel, set()) is kernel
