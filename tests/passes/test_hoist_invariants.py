"""What programs of a persistent kernel load alike is loaded before their loop, once, and only where that is safe."""
# ruff: noqa: F821  (the names of dims)

import dataclasses

import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel
from tessera.ir.programs import persistent_loop
from tessera.ir.types import ScalarType, TileType
from tessera.passes.hoist_invariants import REGISTERS
from tessera.runtime.interpreter import interpret
from tessera.target.schedule import root
from tests.check.test_document_kernels import names
from tests.passes.test_persist import compiled, stage
from tests.passes.test_pipeline import assert_same_bits, outputs_of
from tests.suite import load
from tests.test_document_blocks import given_to, made_up

GATING = {"B": 3, "S": 300, "D": 64}


def parts(compilation, name="hoist_invariants"):
    """The ops in front of the persistent loop, and those in it."""
    kernel = stage(compilation, name)
    loop = persistent_loop(kernel)
    return kernel.body.ops[: kernel.body.ops.index(loop)], list(loop.regions[0].walk())


def named(ops, *wanted):
    return [op for op in ops if op.name in wanted]


def keeps_every_bit(compilation, dims):
    expected = outputs_of(stage(compilation, "frontend"), dims, "tile")
    for name, level in (("hoist_invariants", "tile"), ("interleave", "target")):
        assert_same_bits(expected, outputs_of(stage(compilation, name), dims, level), name)
    return True


def test_weights_are_copied_once_before_the_loop():
    compilation = compiled("gating_function_kernel", GATING)
    before, inside = parts(compilation)
    (copy,) = named(before, "copy_async")
    assert copy.operand("view").name == "gate_params" and copy.operand("buffer").defining_op in before
    assert before[-1].name == "wait" and before[-1].operands == [copy.result]
    (own,) = named(inside, "copy_async")
    assert own.operand("buffer").name == "smem_delta"
    assert [op.operands for op in named(inside, "wait")] == [[own.result]]
    before, inside = parts(compilation, "interleave")
    assert len(named(before, "cp_async")) == len(named(inside, "cp_async")) == 1
    assert keeps_every_bit(compilation, GATING)


def test_numbers_are_computed_once():
    before, inside = parts(compiled("gating_function_kernel", GATING))
    assert named(before, "exp") and not named(inside, "exp")
    scalars = [op for op in inside if op.results and isinstance(op.results[0].type, ScalarType)]
    assert {op.name for op in scalars} == {"mod", "floordiv", "mul"}  # of the program's number


def test_operands_that_the_compiler_stages():
    @ts.kernel
    def rows_of_products(
        x: tile.Tensor["M", 64, ts.bf16], w: tile.Tensor[64, 32, ts.f32], out: tile.Tensor["M", 32, ts.f32]
    ):
        """An operand that is loaded, rounded and written to a buffer."""
        m = tile.program_id(0) * 16
        tile.store(tile.mma(x[m : m + 16], tile.cast(w, ts.bf16)), out[m : m + 16])

    dims = {"M": 150}
    compilation = compiled(rows_of_products, dims)
    before, inside = parts(compilation, "canonicalise_slices")
    assert len(named(before, "load")) == len(named(before, "cast")) == len(named(before, "write")) == 1
    assert not named(inside, "load", "cast", "write")
    assert keeps_every_bit(compilation, dims)


def test_a_guard_round_the_work_is_no_obstacle():
    n, b, s, d = 1, 2, 150, 40
    symbols = names("fused_delta_gating_kernel", n, {"B": b, "S": s, "D": d, "L": n + 1})
    definition = load("fused_delta_gating_kernel")
    own = compile_kernel(definition, symbols, "sm_90a").schedule
    schedule = dataclasses.replace(own, persistent=True, rows=32, walk="", resident="", block_k=64)
    compilation = compile_kernel(definition, symbols, "sm_90a", schedule=schedule)
    before, inside = parts(compilation)
    (copy,) = named(before, "copy_async")
    assert named(inside, "if") and root(copy.operand("view")).name == "gate_params"
    arguments, _ = made_up(n, b, s, d)
    expected = given_to(compilation.stages[0].module.kernel().name, arguments)
    interpret(stage(compilation, "frontend"), expected, symbols)
    given = given_to(compilation.stages[0].module.kernel().name, arguments)
    interpret(compilation.target.kernel(), given, symbols, level="target")
    assert np.array_equal(given["output"].view(np.uint16), expected["output"].view(np.uint16))


# Where it stays -------------------------------------------------------------------------------------------------------


def added(columns, count):
    """A kernel that adds the same `count` rows of so many columns to every row."""

    @ts.kernel
    def adds(
        x: tile.Tensor["M", columns, ts.f32], y: tile.Tensor[count, columns, ts.f32],
        out: tile.Tensor["M", columns, ts.f32],
    ):  # fmt: skip
        m = tile.program_id(0)
        total = x[m : m + 1]
        for row in tile.static_range(count):
            total = total + y[row : row + 1]
        tile.store(total, out[m : m + 1])

    return adds


@pytest.mark.parametrize(
    ("columns", "count", "hoisted"), [(64, 3, 3), (32 * REGISTERS, 1, 1), (512, 4, 2), (2048, 1, 0)]
)
def test_tiles_stay_in_registers_as_far_as_there_are_some(columns, count, hoisted):
    dims = {"M": 9}
    compilation = compiled(added(columns, count), dims)
    before, inside = parts(compilation)
    tiles = [op for op in named(before, "load") if isinstance(op.result.type, TileType)]
    assert len(tiles) == hoisted and len(named(inside, "load")) == 1 + count - hoisted
    assert keeps_every_bit(compilation, dims)


def test_what_the_kernel_writes_is_loaded_again():
    @ts.kernel
    def repeated(x: tile.Tensor["N", 16, ts.f32], out: tile.Tensor["N", 16, ts.f32]):
        n = tile.program_id(0)
        tile.store(x[0:1] * 2.0, out[n : n + 1])
        tile.store(x[n : n + 1] + 1.0, x[n : n + 1])

    compilation = compiled(repeated, {"N": 7})
    before, inside = parts(compilation)
    assert not named(before, "load") and len(named(inside, "load")) == 2


def test_a_buffer_that_is_written_twice_is_filled_again():
    @ts.kernel
    def refilled(x: tile.Tensor["M", 16, ts.bf16], w: tile.Tensor[16, 16, ts.bf16], out: tile.Tensor["M", 16, ts.f32]):
        m = tile.program_id(0) * 16
        weights = tile.alloc_shared([16, 16], ts.bf16)
        tile.copy_async(weights, w)
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        first = tile.mma(x[m : m + 16], weights)
        tile.add(weights, 1.0, weights)
        tile.store(first + tile.mma(x[m : m + 16], weights), out[m : m + 16])

    dims = {"M": 100}
    compilation = compiled(refilled, dims)
    before, inside = parts(compilation)
    assert not named(before, "copy_async", "write") and named(inside, "write")
    assert keeps_every_bit(compilation, dims)


def test_buffers_stay_where_shared_memory_does_not_hold_them_together():
    @ts.kernel
    def three_layers(
        x: tile.Tensor["M", 128, ts.bf16], u: tile.Tensor[128, 256, ts.bf16], v: tile.Tensor[256, 128, ts.bf16],
        w: tile.Tensor[128, 256, ts.bf16], out: tile.Tensor["M", 256, ts.f32],
    ):  # fmt: skip
        m = tile.program_id(0) * 16
        hidden = tile.cast(tile.mma(x[m : m + 16], u), ts.bf16)
        hidden = tile.cast(tile.mma(hidden, v), ts.bf16)
        tile.store(tile.mma(hidden, w), out[m : m + 16])

    dims, pins = {"M": 70}, {"streamed": (), "subtile": 0, "rows": 0}
    for arch, blocks, expected in (("sm_90a", 1, 3), ("sm_80", 1, 1), ("sm_90a", 2, 0)):  # of 64 KiB each
        compilation = compiled(three_layers, dims, arch, blocks=blocks, **pins)
        before, inside = parts(compilation)
        copies = [op for op in named(inside, "copy_async") if root(op.operand("view")).name != "x"]
        assert len(named(before, "copy_async")) == expected and len(copies) == 3 - expected
    assert keeps_every_bit(compilation, dims)


def test_a_division_that_may_fail_stays_behind_its_guard():
    @ts.kernel
    def guarded(x: tile.Tensor["N", ts.i32], limit: int, out: tile.Tensor["N", ts.i32]):
        n = tile.program_id(0) * 16
        if limit > 0:
            tile.store(x[n : n + 16] + tile.cast(100 // limit, ts.i32), out[n : n + 16])

    compilation = compiled(guarded, {"N": 100})
    before, inside = parts(compilation)
    assert not named(before, "floordiv") and named(inside, "floordiv")
    x, out = np.arange(100, dtype=np.int32), np.zeros(100, np.int32)
    interpret(compilation.target.kernel(), {"x": x, "limit": 0, "out": out}, {"N": 100}, level="target")
    assert not out.any()


def test_a_kernel_that_is_not_persistent_stays():
    compilation = compile_kernel(load("gating_function_kernel"), GATING)
    assert stage(compilation, "hoist_invariants") is stage(compilation, "stage_operands")
