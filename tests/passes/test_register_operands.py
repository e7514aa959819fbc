"""Left operands that are computed in registers: which ones, in which layout, and that nothing else changes.

The values are tested with the suite (`examples/computed_operands.py`); here are the shapes at which a rule changes.
"""
# ruff: noqa: F821  (the names of dims)

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.errors import SourceError
from tessera.ir.core import Op
from tessera.ir.layout import blocked, transposed_layout
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.types import tile_layout
from tessera.ir.verify import verify
from tessera.passes.register_operands import operand_grid
from tessera.runtime.nvrtc import compile_cubin
from tessera.target.fragments import (
    accumulator_layout,
    matrices_at_once,
    operand_a_layout,
)
from tests.passes.test_pipeline import assert_same_bits, emulated, outputs_of
from tests.suite import load

DIFFERENCE = {"M": 130, "N": 72, "K": 104}
PERCEPTRON = {"M": 70, "D": 48, "H": 64, "N": 40}


def ops(body, *names) -> list[Op]:
    return [op for op in body.walk() if op.name in names]


def target(kernel, dims, **options):
    return compile_kernel(kernel, dims, **options).target.kernel()


def step_of(kernel) -> list[str]:
    """Names of the ops of the innermost loop that multiplies, in order."""
    return [
        op.name for op in [op for op in ops(kernel.body, "for") if ops(op.regions[0], "mma_sync")][-1].regions[0].ops
    ]


def assert_right(kernel, dims):
    compilation = compile_kernel(kernel, dims)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    for stage in compilation.stages:
        assert_same_bits(expected, outputs_of(stage.module.kernel(), dims, stage.module.level), stage.name)
    for seed in (0, 3):
        assert_same_bits(expected, emulated(compilation, dims, seed), "the emitted CUDA")
    return compilation


def test_a_difference_goes_from_copies_to_the_product_in_fragments():
    """One barrier in a turn of the copies, and k-block by k-block only what one of them needs is in registers."""
    kernel = target(load("difference_matmul"), DIFFERENCE)
    step = step_of(kernel)
    assert not {"st_shared", "ld_shared", "barrier"} & set(step)
    assert step.count("ld_matrices") == 2 and step.count("fragment") == step.count("mma_sync") == 1
    turn = [op.name for op in ops(kernel.body, "for")[0].regions[0].ops]
    assert turn.count("barrier") == 1 and turn.index("async_wait") < turn.index("barrier") < turn.index("for")
    block = operand_a_layout((64, 16), (4, 1))
    assert [tile_layout(op.result.type) for op in ops(kernel.body, "ld_matrices")] == [block, block]
    assert {tile_layout(op.operands[0].type) for op in ops(kernel.body, "fragment")} == {block}
    product = ops(kernel.body, "mma_sync")[0]
    assert tile_layout(product.result.type) == accumulator_layout((64, 64), (4, 1))


def test_accumulators_of_one_product_are_the_fragments_of_the_next():
    kernel = target(load("perceptron"), PERCEPTRON)
    first, *others = ops(kernel.body, "mma_sync")
    parts = ops(kernel.body, "fragment")
    assert len(others) == len(parts) == 4
    assert (
        tile_layout(first.result.type) == tile_layout(parts[0].operands[0].type) == operand_a_layout((64, 64), (4, 1))
    )
    assert len(ops(kernel.body, "st_shared")) == 1, "the one of the result"


@pytest.mark.parametrize("name, dims", [("difference_matmul", DIFFERENCE), ("perceptron", PERCEPTRON)])
def test_nothing_spills(name, dims):
    for arch in ("sm_80", "sm_90a"):
        text = compile_kernel(load(name), dims, arch).cuda[0]
        compiled = compile_cubin(text.text, arch, text.name)
        assert compiled.resources[text.name].spill_stores == 0


def scaled(block_k, dtype=ts.bf16, transposed=False):
    A = Tensor["K", "M", dtype] if transposed else Tensor["M", "K", dtype]

    @ts.kernel(name=f"scaled_{block_k}_{dtype}")
    def kernel(a: A, w: Tensor["K", "N", dtype], out: Tensor["M", "N", ts.f32]):
        ctx = tile.context()
        m = tile.program_id(0) * 64
        acc = tile.zeros([64, ctx.N], ts.f32)
        for k in tile.range(0, ctx.K, block_k):
            block = a[k : k + block_k, m : m + 64] if transposed else a[m : m + 64, k : k + block_k]
            half = tile.cast(block * 0.5, dtype)
            acc = tile.mma(half, w[k : k + block_k, 0 : ctx.N], acc, transpose_a=transposed)
        tile.store(acc, out[m : m + 64])

    return kernel


STAGED = [
    ("k-blocks that are not whole", scaled(24), {"M": 70, "N": 16, "K": 48}),
    ("no instruction of the dtype", scaled(16, ts.f32), {"M": 64, "N": 16, "K": 32}),
    ("a transposed operand", scaled(16, transposed=True), {"M": 64, "N": 16, "K": 32}),
    ("a chain of more columns than one straight line", load("perceptron"), {"M": 64, "D": 16, "H": 128, "N": 192}),
    ("a chain whose k-blocks are not whole", load("perceptron"), {"M": 33, "D": 20, "H": 24, "N": 16}),
]


@pytest.mark.parametrize("why, kernel, dims", STAGED, ids=[why for why, *_ in STAGED])
def test_other_operands_go_through_a_buffer(why, kernel, dims):
    compilation = assert_right(kernel, dims)
    assert not ops(compilation.target.kernel().body, "fragment"), why


@pytest.mark.parametrize("dtype", [ts.bf16, ts.f16], ids=str)
@pytest.mark.parametrize("block_k", [16, 64, 256])
def test_a_scaled_operand_is_taken_from_registers(block_k, dtype):
    compilation = assert_right(scaled(block_k, dtype), {"M": 70, "N": 24, "K": 72})
    assert ops(compilation.target.kernel().body, "fragment")


@pytest.mark.parametrize("dims", [{"M": 64, "D": 64, "H": 16, "N": 100}, {"M": 5, "D": 9, "H": 64, "N": 7}], ids=str)
def test_chains_of_ragged_products_are_right(dims):
    assert ops(assert_right(load("perceptron"), dims).target.kernel().body, "fragment")


@ts.kernel
def gate(
    x: Tensor["M", 64, ts.bf16], y: Tensor["M", 64, ts.bf16], w: Tensor[64, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]
):
    """An operand that meets the accumulators again: for both it is read from the buffers of its sources."""
    row = tile.program_id(0) * 64
    left = tile.alloc_shared([64, 64], ts.bf16)
    right = tile.alloc_shared([64, 64], ts.bf16)
    tile.copy_async(left, x[row : row + 64])
    tile.copy_async(right, y[row : row + 64])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    delta = left[:, :] - right[:, :]
    tile.store(delta * tile.sigmoid(tile.mma(delta, w[0:64])), out[row : row + 64])


def test_an_operand_that_meets_the_accumulators_is_computed_for_both():
    kernel = assert_right(gate, {"M": 100}).target.kernel()
    assert len(ops(kernel.body, "fragment")) == 1 and len(ops(kernel.body, "ld_matrices")) == 4
    assert len(ops(kernel.body, "st_shared")) == 1, "the one of the result"


def test_the_grid_of_warps_reads_the_fewest_bytes():
    assert operand_grid((64, 64), 4, 2) == (4, 1)
    assert operand_grid((64, 64), 4, 1) == (2, 2)
    assert operand_grid((32, 128), 4, 2) == (2, 2)
    assert operand_grid((16, 64), 4, 1) == (1, 4)
    assert operand_grid((64, 256), 4, 0) == (4, 1) and operand_grid((16, 64), 4, 0) == (1, 1)


def test_which_layouts_hold_matrices():
    assert matrices_at_once(operand_a_layout((64, 32), (2, 2))) == 4
    assert matrices_at_once(accumulator_layout((64, 64), (2, 2))) == 4
    assert matrices_at_once(accumulator_layout((64, 40), (4, 1))) == 2  # single atoms of eight columns
    assert matrices_at_once(blocked((64, 64), 4, 8)) == 0
    assert matrices_at_once(blocked((64,), 4, 2)) == 0
    flipped = transposed_layout(accumulator_layout((64, 40), (4, 1)))
    assert matrices_at_once(flipped) == 0 and matrices_at_once(flipped, across=True) == 2
    assert matrices_at_once(accumulator_layout((64, 64), (2, 2)), across=True) == 0


def test_a_fragment_is_a_whole_k_block_of_its_tile():
    compilation = compile_kernel(load("perceptron"), PERCEPTRON)
    text = print_module(compilation.target)
    assert "offset = 16}" in text
    for wrong in ("offset = 8}", "offset = 64}"):
        with pytest.raises(SourceError, match="k-block"):
            verify(parse_module(text.replace("offset = 16}", wrong)))


def exact(value) -> Fraction:
    return Fraction(float(value))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=str)
def test_rounding_to_f32_in_between_changes_no_sum(dtype):
    """Pairs are added in one rounding: the nearest of a sum's neighbours, and the even one of two."""
    rng = np.random.default_rng(0)
    bits = np.concatenate([rng.integers(0, 1 << 16, 120), [0, 1, 0x8001, 0x7F, 0x80, 0x3F7, 0x400]]).astype(np.uint16)
    numbers = [x for x in bits.view(dtype) if np.isfinite(x.astype(np.float32))]
    for a, b in itertools.combinations(numbers, 2):
        got = (np.float32(a) - np.float32(b)).astype(dtype)
        if not np.isfinite(got.astype(np.float32)):
            continue
        around = (got.view(np.uint16) + np.array([-1, 0, 1])).astype(np.uint16).view(dtype)
        errors = [abs(exact(x) - (exact(a) - exact(b))) for x in around if np.isfinite(x.astype(np.float32))]
        mine = abs(exact(got) - (exact(a) - exact(b)))
        assert mine == min(errors), (a, b)
        assert errors.count(mine) == 1 or not got.view(np.uint16) & 1 or mine == 0, (a, b)
