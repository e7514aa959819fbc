"""Slices past the end of a tile: the last one of a loop reaches beyond where that is safe, and no bit changes."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel
from tessera.ir.ops.control import constant_value
from tessera.target.schedule import Schedule
from tests.passes.test_pipeline import assert_same_bits, emulated, outputs_of


@ts.kernel
def product(x: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", "N", ts.bf16], out: tile.Tensor["M", "N", ts.bf16]):
    """Columns and K both end in the middle of a step."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    a = x[row : row + 16, 0 : ctx.K] - x[row : row + 16, 0 : ctx.K] * x[row : row + 16, 0 : ctx.K]
    y = tile.mma(a, w[0 : ctx.K, 0 : ctx.N])
    tile.store(tile.sigmoid(y) * x[row : row + 16, 0 : ctx.N], out[row : row + 16, 0 : ctx.N])


@ts.kernel
def exponentials(
    x: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", "N", ts.bf16], out: tile.Tensor["M", "N", ts.bf16]
):
    """What lies beyond K is exp(0), which is no zero."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    y = tile.mma(tile.exp(x[row : row + 16, 0 : ctx.K]), w[0 : ctx.K, 0 : ctx.N])
    tile.store(y, out[row : row + 16, 0 : ctx.N])


@ts.kernel
def onto_a_sum(
    x: tile.Tensor["M", "K", ts.bf16], w: tile.Tensor["K", "N", ts.bf16], out: tile.Tensor["M", "N", ts.bf16]
):
    """The sum that a product adds to may hold -0.0, which adding a zero would turn into 0.0."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    start = tile.cast(x[row : row + 16, 0 : ctx.N] * -0.0, ts.f32)
    y = tile.mma(x[row : row + 16, 0 : ctx.K] * 0.0, w[0 : ctx.K, 0 : ctx.N], start)
    tile.store(y, out[row : row + 16, 0 : ctx.N])


@ts.kernel
def inside(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["M", "N", ts.f32]):
    """The stored window ends inside its tensor: what lies beyond belongs to others, and is read and written here."""
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16, 3:45] * 2.0 + out[row : row + 16, 3:45], out[row : row + 16, 3:45])
    tile.store(x[row : row + 16, 45:50] + 1.0, out[row : row + 16, 45:50])


@ts.kernel
def turned(x: tile.Tensor["N", "M", ts.f32], out: tile.Tensor["M", "N", ts.f32]):
    """Rows and columns change places; indices and constants are made up beyond the end."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    index = tile.cast(tile.iota([16, ctx.N], axis=1), ts.f32)
    tile.store(tile.transpose(x[0 : ctx.N, row : row + 16]) * index + tile.full([16, ctx.N], 0.5), out[row : row + 16])


@ts.kernel
def quotients(x: tile.Tensor["M", "N", ts.i32], y: tile.Tensor["M", "N", ts.i32], out: tile.Tensor["M", "N", ts.i32]):
    """Beyond the end the divisors would be zeros."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    bottom = tile.abs(y[row : row + 16, 0 : ctx.N]) % 7 + 1
    tile.store(x[row : row + 16, 0 : ctx.N] // bottom, out[row : row + 16])


@ts.kernel
def resident(x: tile.Tensor["M", "N", ts.f32], out: tile.Tensor["M", "N", ts.f32]):
    """A buffer ends where its tile does."""
    ctx = tile.context()
    row = tile.program_id(0) * 16
    state = tile.alloc_shared([16, ctx.N], ts.f32)
    tile.copy_async(state, x[row : row + 16, 0 : ctx.N])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    tile.barrier()
    tile.store(state * 2.0, out[row : row + 16, 0 : ctx.N])


COLUMNS = Schedule(4, subtile=16, block_k=32)
CASES = [  # kernel, dims, and of the loops what they count to
    (product, {"M": 20, "K": 60, "N": 40}, [40, 60]),
    (product, {"M": 20, "K": 33, "N": 40}, [40, 32]),  # a second step for one column of K would be wasted
    (exponentials, {"M": 20, "K": 60, "N": 40}, [40, 32]),
    (onto_a_sum, {"M": 20, "K": 60, "N": 40}, [40, 32]),
    (inside, {"M": 20, "N": 60}, [42]),
    (turned, {"M": 20, "N": 40}, [40]),
    (quotients, {"M": 32, "N": 40}, [32]),
    (resident, {"M": 20, "N": 40}, [32]),
]


def ends(kernel):
    loops = [op for op in kernel.body.walk() if op.name == "for"]
    return [constant_value(loop.operands[1]) for loop in loops]


@pytest.mark.parametrize("definition, dims, expected", CASES, ids=lambda value: getattr(value, "name", None))
def test_loops_reach_beyond_and_bits_stay(definition, dims, expected):
    compilation = compile_kernel(definition, dims, schedule=COLUMNS)
    subtiled = next(stage for stage in compilation.stages if stage.name == "subtile").module.kernel()
    assert ends(subtiled) == expected
    outputs = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    for stage in compilation.stages:
        assert_same_bits(outputs, outputs_of(stage.module.kernel(), dims, stage.module.level), stage.name)
    for seed in (0, 3):
        assert_same_bits(outputs, emulated(compilation, dims, seed), f"the emitted CUDA, seed {seed}")
