"""Software pipelining: the same bits for every number of stages and of iterations, one barrier an iteration, no hazard.

What breaks it (a stage too few, a wait too early, the wrong stage, no drain) is found by the verifier, by the
interpreter and by the examination of the emitted CUDA.
"""
# ruff: noqa: F821  (the names of dims)

import dataclasses
import re
import shutil

import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel
from tessera.errors import SourceError
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.verify import verify
from tessera.passes.pipeline import pipeline
from tessera.passes.place_shared import place_shared
from tessera.runtime.check import examine_kernel
from tessera.runtime.interpreter import interpret
from tessera.runtime.nvrtc import compile_cubin
from tessera.target.arch import ARCHS, find
from tests.check.mutations import Edit, mutated
from tests.lanes import define
from tests.passes.test_pipeline import arguments_of, assert_same_bits, emulated, outputs_of
from tests.suite import load

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def compiled(kernel, dims, stages, arch="sm_80", **changed):
    """The kernel by the default schedule of the base lane, but for the stages."""
    kernel = kernel.scheduled({"family": ""})
    schedule = dataclasses.replace(compile_kernel(kernel, dims, arch).schedule, stages=stages, **changed)
    return compile_kernel(kernel, dims, arch, schedule=schedule)


def stages_of(compilation):
    """Stages by buffer, of those that have several."""
    shared = [op for op in compilation.target.kernel().body.walk() if op.name == "shared"]
    return {op.result.name: op.attributes["stages"] for op in shared if op.attributes["stages"] > 1}


def stage(compilation, name):
    return next(stage for stage in compilation.stages if stage.name == name)


def assert_exact(compilation, dims, seeds=()):
    """The interpreter agrees before and after the pass and at the end, and so does the emitted CUDA."""
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    for name in ("stage_operands", "pipeline", "lower_to_target", "insert_barriers"):
        made = stage(compilation, name).module
        assert_same_bits(expected, outputs_of(made.kernel(), dims, made.level), name)
    if seeds:
        report = examine_kernel(compilation, arguments_of(compilation.stages[0].module.kernel(), dims), dims, seeds)
        assert report.ok, [str(seen.finding) for seen in report.findings]
        assert report.compared
    else:
        assert_same_bits(expected, emulated(compilation, dims, seed=1), "the emitted CUDA")


# Kernels --------------------------------------------------------------------------------------------------------------


@ts.kernel
def sum_of_products(
    x: tile.Tensor["L", "M", "D", ts.bf16], w: tile.Tensor["L", "D", "D", ts.bf16], out: tile.Tensor["M", "D", ts.f32]
):
    """The loop's index picks a matrix: an index beyond the last one is no masked element but a wrong address."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    acc = tile.zeros([16, ctx.D], ts.f32)
    for layer in tile.range(0, ctx.L):
        acc = tile.mma(x[layer, row : row + 16, 0 : ctx.D], w[layer, 0 : ctx.D, 0 : ctx.D], acc)
    tile.store(acc, out[row : row + 16, 0 : ctx.D])


@ts.kernel
def sum_of_rows(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["N", ts.f32]):
    """The author's own buffer and copies, no product, and a step backwards."""
    ctx = tile.context()
    rows = tile.alloc_shared([4, 32], ts.f32)
    column = tile.program_id(0) * 32
    total = tile.zeros([32], ts.f32)
    for row in tile.range(ctx.M - 4, -4, -4):
        tile.copy_async(rows, x[row : row + 4, column : column + 32])
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        total = total + tile.sum(rows, axis=0)
    tile.store(total, out[column : column + 32])


@ts.kernel
def repeated_products(
    a: tile.Tensor["M", "K", ts.bf16], b: tile.Tensor["K", "N", ts.bf16], out: tile.Tensor["M", "N", ts.bf16]
):
    """A pipelined loop inside another loop: what one run leaves behind meets the start of the next."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    for column in tile.range(0, ctx.N, 16):
        acc = tile.zeros([16, 16], ts.f32)
        for k in tile.range(0, ctx.K, 16):
            acc = tile.mma(a[row : row + 16, k : k + 16], b[k : k + 16, column : column + 16], acc)
        tile.store(acc, out[row : row + 16, column : column + 16])


@ts.kernel
def two_buffers(
    x: tile.Tensor["M", "N", ts.f32],
    y: tile.Tensor["M", "N", ts.f32],
    first: tile.Tensor["N", ts.f32],
    out: tile.Tensor["R", "N", ts.f32],
):
    """Two groups waited for one after the other, beside a copy from before the loop that is waited for behind it."""
    ctx = tile.context()
    left = tile.alloc_shared([8, 16], ts.f32)
    right = tile.alloc_shared([8, 16], ts.f32)
    line = tile.alloc_shared([16], ts.f32)
    column = tile.program_id(0) * 16
    tile.copy_async(line, first[column : column + 16])
    tile.cp_commit_group()
    total = tile.zeros([8, 16], ts.f32)
    for row in tile.range(0, ctx.M, 8):
        tile.copy_async(left, x[row : row + 8, column : column + 16])
        tile.cp_commit_group()
        tile.copy_async(right, y[row : row + 8, column : column + 16])
        tile.cp_commit_group()
        tile.cp_wait_group(1)
        total = total + left
        tile.cp_wait_group(0)
        total = total * right
    tile.store(total, out[0:8, column : column + 16])


@ts.kernel
def buffers_of_an_iteration(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["M", "N", ts.f32]):
    """Each iteration has buffers of its own, of which one is filled by a copy from where every iteration reads."""
    ctx = tile.context()
    row = tile.program_id(0) * 8
    for column in tile.range(0, ctx.N, 8):
        same = tile.alloc_shared([8, 8], ts.f32)
        moved = tile.alloc_shared([8, 8], ts.f32)
        tile.copy_async(same, x[row : row + 8, 0:8])
        tile.copy_async(moved, x[row : row + 8, column : column + 8])
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        tile.store(same + moved, out[row : row + 8, column : column + 8])


# Exactness ------------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["matmul_nt_bf16", "matmul_tn_f32"])
def test_every_number_of_stages_and_iterations_gives_the_same_bits(name, stages):
    """Trip counts 0, 1, 2, 3, 4, 5 of blocks of 32, ragged and whole, of vectors and of elements."""
    for k in (0, 1, 40, 96, 128, 129):
        dims = {"M": 40, "N": 24, "K": k}
        compilation = compiled(load(name), dims, stages)
        assert set(stages_of(compilation).values()) == ({stages} if stages > 1 else set())
        assert_exact(compilation, dims)


@needs_compiler
@pytest.mark.parametrize(
    "name, dims",
    [
        *(
            (f"matmul_{case}_{dtype}", {"M": 70, "N": 33, "K": 136})
            for case in ("nn", "tt")
            for dtype in ("bf16", "f32")
        ),
        ("batched_matmul", {"B": 2, "M": 33, "N": 40, "K": 50}),
        ("fp8_matmul", {"M": 33, "N": 24, "K": 200}),
        ("fp8_matmul", {"M": 33, "N": 32, "K": 224}),
    ],
    ids=str,
)
def test_products_pass_an_examination(name, dims):
    compilation = compile_kernel(load(name), dims)
    assert set(stages_of(compilation).values()) == {3}
    assert_exact(compilation, dims, seeds=range(6))


@needs_compiler
@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize(
    "kernel, dims, buffers",
    [
        (sum_of_products, {"L": 6, "M": 20, "D": 16}, 2),
        (sum_of_products, {"L": 1, "M": 20, "D": 16}, 2),
        (sum_of_rows, {"M": 24, "N": 40}, 1),
        (sum_of_rows, {"M": 4, "N": 33}, 1),
        (repeated_products, {"M": 20, "N": 40, "K": 72}, 2),
        (repeated_products, {"M": 16, "N": 48, "K": 0}, 2),
        (buffers_of_an_iteration, {"M": 20, "N": 50}, 2),
        (two_buffers, {"M": 40, "N": 40, "R": 8}, 2),
        (two_buffers, {"M": 8, "N": 16, "R": 8}, 2),
    ],
    ids=lambda value: getattr(value, "name", None) or str(value),
)
def test_loops_of_all_kinds(kernel, dims, buffers, stages):
    compilation = compiled(kernel, dims, stages)
    assert list(stages_of(compilation).values()) == [stages] * buffers
    assert_exact(compilation, dims, seeds=range(4))


@needs_compiler
@pytest.mark.parametrize("block_k", [16, 32])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_streamed_operands(block_k, stages):
    from tests.passes.test_pipeline import streamed_product

    dims = {"M": 17, "D": 88}
    compilation = compiled(streamed_product, dims, stages, streamed=("weights",), subtile=32, block_k=block_k)
    assert_exact(compilation, dims, seeds=(0, 1))


def test_no_more_stages_than_iterations_and_than_memory():
    dims = {"M": 16, "D": 64}
    few = compiled(repeated_products, {"M": 16, "N": 16, "K": 64}, 4)
    assert set(stages_of(few).values()) == {4}

    @ts.kernel
    def two_steps(
        a: tile.Tensor["M", "D", ts.bf16], b: tile.Tensor["D", "D", ts.bf16], out: tile.Tensor["M", "D", ts.f32]
    ):
        ctx = tile.context()
        acc = tile.zeros([16, ctx.D], ts.f32)
        for k in tile.range(0, 64, 32):
            acc = tile.mma(a[0:16, k : k + 32], b[k : k + 32, 0 : ctx.D], acc)
        tile.store(acc, out[0:16, 0 : ctx.D])

    assert set(stages_of(compiled(two_steps, dims, 4)).values()) == {2}
    made = compiled(two_steps, dims, 4)
    assert not [op for op in made.target.kernel().body.ops if op.name == "if"], "the first iterations are known to run"

    @ts.kernel
    def wide(a: tile.Tensor["M", "K", ts.bf16], b: tile.Tensor["K", "N", ts.bf16], out: tile.Tensor["M", "N", ts.bf16]):
        ctx = tile.context()
        m, n = tile.program_id(0) * 64, tile.program_id(1) * 128
        acc = tile.zeros([64, 128], ts.f32)
        for k in tile.range(0, ctx.K, 128):
            acc = tile.mma(a[m : m + 64, k : k + 128], b[k : k + 128, n : n + 128], acc)
        tile.store(acc, out[m : m + 64, n : n + 128])

    # 48 KiB a stage: a block holds 163, 99 and 227 KiB; the staged store shares the bytes behind the loop.
    for arch, stages in (("sm_80", 3), ("sm_89", 2), ("sm_90a", 4)):
        made = compiled(wide, {"M": 64, "N": 128, "K": 512}, 4, arch)
        assert set(stages_of(made).values()) == {stages}, arch
    # Of two blocks each has 81, 49 and 113 KiB: room for one, for none and for two.
    for arch, stages in (("sm_80", 3), ("sm_89", 2), ("sm_90a", 2)):
        two = wide.scheduled({"blocks": 2})
        made = compiled(two, {"M": 64, "N": 128, "K": 512}, 4, arch)
        assert set(stages_of(made).values()) == {stages}, arch
    asked = compiled(wide.scheduled({"blocks": 2, "stages": 4}), {"M": 64, "N": 128, "K": 512}, 4, "sm_90a")
    assert set(stages_of(asked).values()) == {4}


@ts.kernel
def two_loops(
    a: tile.Tensor["M", "K", ts.bf16],
    b: tile.Tensor["K", "N", ts.bf16],
    c: tile.Tensor["K", "D", ts.bf16],
    narrow: tile.Tensor["M", "N", ts.f32],
    wide: tile.Tensor["M", "D", ts.f32],
):
    ctx = tile.context()
    m = tile.program_id(0) * 32
    acc = tile.zeros([32, 128], ts.f32)
    for k in tile.range(0, ctx.K, 64):
        acc = tile.mma(a[m : m + 32, k : k + 64], b[k : k + 64, 0:128], acc)
    tile.store(acc, narrow[m : m + 32, 0:128])
    total = tile.zeros([32, 512], ts.f32)
    for k in tile.range(0, ctx.K, 32):
        total = tile.mma(a[m : m + 32, k : k + 32], c[k : k + 32, 0:512], total)
    tile.store(total, wide[m : m + 32, 0:512])


def test_a_loop_does_without_no_stage_that_helps_no_other_one():
    """Slices of 20 and of 34 KiB, never there together: 81 KiB hold two of these, and still three of those."""
    dims = {"M": 32, "K": 256, "N": 128, "D": 512}
    made = compiled(two_loops.scheduled({"blocks": 2}), dims, 3)
    assert sorted(stages_of(made).values()) == [2, 2, 3, 3]
    assert made.target.kernel().attributes["shared_bytes"] <= ARCHS["sm_80"].shared_bytes_beside(2)
    assert_exact(made, dims)


@pytest.mark.parametrize("asked, given", [(1, {1}), (2, {2}), (4, {4}), (None, {3})])
def test_the_author_may_say_how_many_stages_a_copy_has(asked, given):
    compilation = compile_kernel(load("matmul_nt_bf16"), NT)
    text = print_module(stage(compilation, "stage_operands").module)
    if asked is not None:
        text = changed(text, r"\{bypass_l1 = true\}", f"{{bypass_l1 = true, stages = {asked}}}", count=2)
    made = pipeline(parse_module(text).kernel(), compilation.schedule, find("sm_80"))
    verify(made)
    assert {op.attributes["stages"] for op in made.body.walk() if op.name == "alloc_shared"} == given


def test_what_cannot_run_ahead_stays():
    @ts.kernel
    def written(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["M", "N", ts.f32]):
        """Iterations read what earlier ones have written."""
        ctx = tile.context()
        rows = tile.alloc_shared([8, 16], ts.f32)
        tile.store(x[0:8, 0:16], out[0:8, 0:16])
        for row in tile.range(0, ctx.M, 8):
            tile.copy_async(rows, out[row : row + 8, 0:16])
            tile.cp_commit_group()
            tile.cp_wait_group(0)
            tile.store(rows + 1.0, out[row + 8 : row + 16, 0:16])

    @ts.kernel
    def carried(x: tile.Tensor["M", "N", ts.f32], y: tile.Tensor["M", ts.i32], out: tile.Tensor["M", "N", ts.f32]):
        """Where an iteration reads depends on what the one before has computed."""
        ctx = tile.context()
        rows = tile.alloc_shared([8, 16], ts.f32)
        total = tile.zeros([8, 16], ts.f32)
        at = 0
        for _row in tile.range(0, ctx.M, 8):
            tile.copy_async(rows, x[at : at + 8, 0:16])
            tile.cp_commit_group()
            tile.cp_wait_group(0)
            total = total + rows
            at = at + 8
        tile.store(total, out[0:8, 0:16])

    @ts.kernel
    def last(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["M", "N", ts.f32]):
        """The buffer is read behind the loop as well."""
        ctx = tile.context()
        rows = tile.alloc_shared([8, 16], ts.f32)
        tile.fill(rows, 0.0)
        total = tile.zeros([8, 16], ts.f32)
        for row in tile.range(0, ctx.M, 8):
            tile.copy_async(rows, x[row : row + 8, 0:16])
            tile.cp_commit_group()
            tile.cp_wait_group(0)
            total = total + rows
        tile.store(total * rows, out[0:8, 0:16])

    for kernel in (written, carried, last):
        compilation = compiled(kernel, {"M": 32, "N": 16}, 3)
        assert not stages_of(compilation), kernel.name


def test_one_barrier_an_iteration_and_a_count_for_every_wait():
    for stages in (1, 2, 3, 4):
        target = compiled(load("matmul_nt_bf16"), {"M": 64, "N": 64, "K": 256}, stages).target.kernel()
        (loop,) = [op for op in target.body.ops if op.name == "for"]
        barriers = [op for op in loop.regions[0].walk() if op.name == "barrier"]
        assert len(barriers) == (2 if stages == 1 else 1)
        assert all(op in loop.regions[0].ops for op in barriers), "none inside the loop over fragments"
        waits = [op.attributes["pending"] for op in target.body.walk() if op.name == "async_wait"]
        assert waits == ([0] if stages == 1 else [stages - 2, 0])
        assert len([op for op in target.body.walk() if op.name == "async_commit"]) == stages


def test_a_barrier_for_what_comes_before_a_loop_stands_before_it():
    """Operands that are written before the loop over fragments that reads them."""
    target = compile_kernel(load("gating_function_kernel"), {"B": 1, "S": 150, "D": 64}).target.kernel()
    loops = [op for op in target.body.walk() if op.name == "for"]
    assert loops and not [op for loop in loops for op in loop.regions[0].walk() if op.name == "barrier"]


# Hazards --------------------------------------------------------------------------------------------------------------

NT = {"M": 33, "N": 72, "K": 200}


def target_text():
    return print_module(stage(compile_kernel(load("matmul_nt_bf16"), NT), "insert_barriers").module)


def changed(text, pattern, replacement, count=1):
    new, matches = re.subn(pattern, replacement, text, count=count)
    assert matches, pattern
    return new


WRONG = {
    "a wait off by one": (r"pending = 1", "pending = 2", "TS502", "leaves 2 groups in flight"),
    "no drain": (r"\n  async_wait %\d+, %\d+ @\S+", "", "TS502", "nothing waits for the copy"),
    "no wait": (r"\n    async_wait [^\n]*", "", "TS502", "stage 0 of 'operand_0' is read while"),
    "a stage too few": (
        r"(eq %used, )%\d+", r"\g<1>%one", "TS502", "is (read|written) while an asynchronous copy into it may be"
    ),
    "the stage that is refilled is used": (
        r"(%operand_0\S* = stage %operand_0, )%used|(: buffer<\[64, 32\], bf16, #S0> = stage %operand_0, )%used",
        r"\1\2%refilled", "TS502", "'operand_0' is read while",
    ),
    "the stage that is used is refilled": (
        r"stage %operand_0, %refilled", "stage %operand_0, %used", "TS502|TS503", "operand_0"
    ),
    "no barrier": (r"\n    barrier [^\n]*", "", "TS703", "no barrier lies between"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_verifier_finds(name):
    pattern, replacement, code, message = WRONG[name]
    text = target_text()
    verify(parse_module(text), barriers=True)
    one = re.search(r"(%\d+): i32 = constant \{value = 1, dtype = i32\}", text)
    assert one
    module = parse_module(changed(text, pattern, replacement.replace("%one", one[1])))
    with pytest.raises(SourceError, match=message) as caught:
        verify(module, barriers=True)
    assert re.match(code, caught.value.code)


@pytest.mark.parametrize("name", ["no wait", "a stage too few", "the stage that is refilled is used"])
def test_the_interpreter_finds(name):
    """A copy lands at its wait: a stage that is in flight is an error to touch."""
    pattern, replacement, _, _ = WRONG[name]
    text = target_text()
    one = re.search(r"(%\d+): i32 = constant \{value = 1, dtype = i32\}", text)
    kernel = parse_module(changed(text, pattern, replacement.replace("%one", one[1]))).kernel()
    source = compile_kernel(load("matmul_nt_bf16"), NT).stages[0].module.kernel()
    with pytest.raises(SourceError) as caught:
        interpret(kernel, arguments_of(source, NT), NT, level="target")
    assert caught.value.code == "TS502"


def test_a_number_beyond_the_stages_is_an_error():
    text = changed(target_text(), r"(%\d+: i32 = constant \{value = )2(, dtype = i32\})", r"\g<1>3\2")
    source = compile_kernel(load("matmul_nt_bf16"), NT).stages[0].module.kernel()
    with pytest.raises(SourceError, match="no number 3") as caught:
        interpret(parse_module(text).kernel(), arguments_of(source, NT), NT, level="target")
    assert caught.value.code == "TS504"


def test_a_buffer_of_several_stages_is_used_by_stage():
    text = changed(target_text(), r"(ldmatrix )%operand_0\S*,", r"\1%operand_0,")
    with pytest.raises(SourceError, match="of whose stages it must name one") as caught:
        verify(parse_module(text))
    assert caught.value.code == "TS703"


def test_bytes_are_free_behind_the_drain_only():
    """A buffer lives to the last wait for a copy into it, and all its stages count."""
    target = stage(compile_kernel(load("matmul_nt_bf16"), NT), "hoist_loads").module.kernel()
    placed = place_shared(target, find("sm_80"))
    bytes_of = {op.result.name: op.attributes for op in placed.body.walk() if op.name == "shared"}
    assert [bytes_of[name]["offset"] for name in ("operand_0", "operand_1", "tile_scratch")] == [0, 3 * 4096, 0]
    assert placed.attributes["shared_bytes"] == 2 * 3 * 4096


MUTATIONS = {
    "a stage too few": ([Edit("eq", r"used == (\w+)", r"used == \1 - 1")], {"in-flight", "race"}),
    "a stage too many": ([Edit("eq", r"used == (\w+)", r"used == \1 + 1")], {"shared-out-of-bounds"}),
    "a wait off by one": ([Edit("async_wait", "<1>", "<2>")], {"in-flight"}),
    "no commit where no copy is made": (
        [Edit("async_commit", r"ts_cp_async_commit\(\);", "if (lt_3) ts_cp_async_commit();", number=2)], {"in-flight"}
    ),
    "the wrong stage is read": (
        [Edit("stage operand_1", r"used", "refilled", number=3)], {"in-flight", "race", "wrong-value"}
    ),
    "the wrong stage is filled": ([Edit("stage operand_1", r"refilled", "used", number=2)], {"in-flight", "race"}),
    "stages that overlap": (
        [Edit("stage operand_0", r"\* 4096", "* 4080", number=n) for n in range(4)], {"in-flight", "race"}
    ),
    "a guard one iteration too long": ([Edit("lt", r"(\w+ < \w+)", r"\1 + 32", number=2)], {"wrong-value"}),
    "a guard one iteration too short": (
        [Edit("lt", r"(\w+ < \w+)", r"\1 - 32", number=2)], {"wrong-value", "race"}
    ),
}  # fmt: skip
# Beyond the end of the tensor every element is masked: a copy too many is waste.
HARMLESS = {"a guard one iteration too long"}


@needs_compiler
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_examination_finds(name):
    edits, kinds = MUTATIONS[name]
    compilation = compile_kernel(load("matmul_nt_bf16"), NT)
    wrong = mutated(compilation, tuple(edits))
    report = examine_kernel(wrong, arguments_of(compilation.stages[0].module.kernel(), NT), NT, (0, 1, 2))
    found = {seen.finding.kind for seen in report.findings}
    assert found <= kinds and bool(found) == (name not in HARMLESS), [str(seen.finding) for seen in report.findings]


# The machine code -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    "name, instructions", [("matmul_nt_bf16", 16), ("matmul_tt_f32", 0), ("batched_matmul", 16), ("fp8_matmul", 16)]
)
def test_loops_stay_rolled_and_nothing_spills(name, instructions, arch):
    dims = {"B": 2, "M": 192, "N": 200, "K": 2048}
    kernel = load(name).scheduled({"family": ""})
    names = compile_kernel(kernel, dims, arch).target.kernel().attributes["dims"]
    made = compile_kernel(kernel, {dim: dims[dim] for dim in names}, arch).cuda[0]
    result = compile_cubin(made.text, arch, made.name, want_ptx=True)
    resources = result.resources[made.name]
    assert resources.spill_stores == resources.spill_loads == 0
    assert len(re.findall(r"mma\.sync", result.ptx)) == instructions
    assert len(re.findall(r"cp\.async\.wait_group", result.ptx)) == 2
    # The copies of two iterations in front of the loop and of one inside, each a straight line.
    assert len(re.findall(r"cp\.async\.c[ag]\.shared", result.ptx)) % 3 == 0


# The author's number of stages ----------------------------------------------------------------------------------------

BLOCKS = """
@ts.kernel.autotune(space=dict(BLOCK_B=[16], BLOCK_S=[64]), key=["B"])
def k(x: list[Tensor["B", "S", "D", ts.bf16]], y: Tensor["B", "S", "D", ts.bf16], w: Tensor["D", "D", ts.bf16],
      out: Tensor["B", "S", "D", ts.bf16]):
    ctx = tile.context()
    acc = tile.alloc_shared([ctx.BLOCK_B, ctx.BLOCK_S, ctx.D], ts.f32)
    tile.fill(acc, 0.0)
    for i in tile.static_range(len(x)):
        left = tile.async_load_block(x[i]%s)
        right = tile.async_load_block(y%s)
        tile.async_wait()
        tile.fused_gating_accumulate(tile.subtract(right, left), w, 1.0, len(x) - i, acc)
    tile.async_store_block(out, tile.cast(acc, ts.bf16))
"""


@pytest.mark.parametrize("left, right, expected", [
    ("", "", 2), (", stages=3", "", 3), (", stages=4", ", stages=3", 4), (", stages=2", ", stages=3", 3),
], ids=str)  # fmt: skip
def test_what_the_author_says_of_stages_survives_promotion(left, right, expected):
    """The blocks fit no shared memory and become loads in slices, which become copies again."""
    dims = {"B": 1, "S": 20, "D": 512, "len(x)": 2}
    compilation = compile_kernel(define(BLOCKS % (left, right)), dims)
    assert set(stages_of(compilation).values()) == {expected}
    loads = [op for op in stage(compilation, "subtile").module.kernel().body.walk() if op.name == "load"]
    assert {load.attributes["stages"] for load in loads} >= ({3} if "3" in left + right else {None})


def test_one_stage_is_one_stage():
    """Where the author wants none of a loop's copies ahead, those beside them that the compiler makes still may be."""
    compilation = compile_kernel(
        define(BLOCKS % (", stages=1", ", stages=1")), {"B": 1, "S": 20, "D": 256, "len(x)": 2}
    )
    assert not {"left", "right"} & stages_of(compilation).keys()
