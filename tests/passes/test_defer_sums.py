"""Sums of rows of accumulators: which loops carry them in parts, that nothing is left to shuffle there, and the values.

The kernel with everything around such a sum is the attention of the examples (`tests/test_attention_lanes.py`).
"""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.ir.layout import RegisterLayout, blocked
from tessera.ir.types import int_shape, tile_layout
from tessera.passes.assign_layouts import reshaped
from tessera.runtime.check import examine_kernel
from tessera.target.fragments import accumulator_layout
from tests.passes.test_pipeline import arguments_of
from tests.passes.test_register_operands import ops

DIMS = {"M": 40, "N": 70, "D": 16}


def summing(step, columns=32, start=0.0, keepdims=True):
    """The kernel that carries `total = step(total, block)` over blocks of x @ y^T, from `start`."""
    shape = [32, 1] if keepdims else [32]

    @ts.kernel
    def kernel(x: Tensor["M", "D", ts.bf16], y: Tensor["N", "D", ts.bf16], out: Tensor["M", ts.f32]):
        ctx = tile.context()
        m = tile.program_id(0) * 32
        total = tile.full(shape, start)
        for n in tile.range(0, ctx.N, columns):
            block = tile.mma(x[m : m + 32], y[n : n + columns], transpose_b=True)
            total = step(total, block)
        tile.store(tile.reshape(total, [32]), out[m : m + 32])

    return kernel


def added(total, block):
    return total + tile.sum(block, axis=1, keepdims=True)


def added_vector(total, block):
    return tile.sum(tile.maximum(block, 0.0), axis=1) + total * 0.5


def scaled(total, block):
    largest = tile.max(tile.abs(block), axis=1, keepdims=True)
    return (1.0 / (1.0 + largest)) * total + tile.sum(tile.exp2(block * 0.1), axis=-1, keepdims=True)


DEFERRED = [
    ("a plain sum", summing(added)),
    ("whose axis is dropped, scaled by a number", summing(added_vector, keepdims=False)),
    ("scaled by rows", summing(scaled)),
    ("of blocks with one atom of columns too many for pairs", summing(scaled, columns=24)),
]


@pytest.mark.parametrize("why, kernel", DEFERRED, ids=[why for why, _ in DEFERRED])
def test_sums_of_rows_wait_for_the_end_of_the_loop(why, kernel):
    compilation = compile_kernel(kernel, DIMS)
    assert [stage.name for stage in compilation.stages if not stage.exact] == ["defer_sums"]
    report = examine_kernel(compilation, arguments_of(compilation.stages[0].module.kernel(), DIMS), DIMS)
    assert report.ok, [str(seen.finding) for seen in report.findings]
    assert "out" in report.bounded, "nothing was compared with the author's kernel"
    body = compilation.target.kernel().body
    loop = next(op for op in body.ops if op.name == "for")
    sums = ops(loop.regions[0], "reduce_sum")
    assert sums and all(_lanes_along(op) == 0 for op in sums), "sums inside the loop are of registers"
    assert [_lanes_along(op) for op in body.ops if op.name == "reduce_sum"] == [2]
    assert not ops(loop.regions[0], "st_shared", "st_flat")


def _lanes_along(reduction) -> int:
    """How many lane bits a reduction goes along: shuffles a row."""
    layout, axis = tile_layout(reduction.operands[0].type), reduction.attributes["axis"]
    return sum(kind == "lane" for kind, _ in layout.axis_bits(axis % len(layout.shape)))


def twice(total, block):
    total = total + tile.sum(block, axis=1, keepdims=True)
    return total * tile.max(total, axis=0, keepdims=True)


def of_itself(total, block):
    return total + tile.sum(block * total, axis=1, keepdims=True)


def largest(total, block):
    return tile.maximum(total, tile.sum(block, axis=1, keepdims=True))


def columns_of(total, block):
    return total + tile.reshape(tile.sum(block, axis=0), [32, 1])


LEFT = [
    ("the sum is looked at in the loop", summing(of_itself)),
    ("what is yielded is no sum", summing(twice)),
    ("nothing is added", summing(largest)),
    ("columns are summed", summing(columns_of)),
    ("the sum does not start at zero", summing(added, start=1.0)),
    ("a block is one part", summing(added, columns=8)),
]


@pytest.mark.parametrize("why, kernel", LEFT, ids=[why for why, _ in LEFT])
def test_other_sums_are_left(why, kernel):
    assert all(stage.exact for stage in compile_kernel(kernel, DIMS).stages), why


@ts.kernel
def sum_of_rows(x: Tensor["M", "N", ts.f32], out: Tensor["M", ts.f32]):
    ctx = tile.context()
    m = tile.program_id(0) * 32
    total = tile.zeros([32])
    for n in tile.range(0, ctx.N, 32):
        total = total + tile.sum(x[m : m + 32, n : n + 32], axis=1)
    tile.store(total, out[m : m + 32])


def test_sums_of_loaded_rows_keep_their_bits():
    assert all(stage.exact for stage in compile_kernel(sum_of_rows, {"M": 40, "N": 70}).stages)


@pytest.mark.parametrize("columns, inner", [(64, 8), (64, 16), (40, 8)])
def test_two_axes_for_one_name_the_same_registers(columns, inner):
    layout = accumulator_layout((64, columns), (4, 1))
    split = reshaped(layout, (64, columns), (64, columns // inner, inner))
    assert split is not None and split.registers_per_thread == layout.registers_per_thread
    old, new = layout.all_coordinates(), split.all_coordinates()
    assert (new[..., 0] == old[..., 0]).all() and (new[..., 1] * inner + new[..., 2] == old[..., 1]).all()


@pytest.mark.parametrize(
    "layout, shape, wanted",
    [
        (accumulator_layout((64, 64), (4, 1)), (64, 64), (64, 2, 32)),  # the inner axis is no part of the block
        (accumulator_layout((64, 24), (4, 1)), (64, 24), (64, 2, 12)),  # nor a power of two
        (blocked((64, 64), 4, 4), (64, 64), (32, 64, 2)),  # elements of two rows
    ],
)
def test_other_shapes_are_other_registers(layout: RegisterLayout, shape, wanted):
    assert reshaped(layout, shape, wanted) is None


def running(total, block):
    return tile.maximum(total, tile.max(block, axis=1, keepdims=True))


def test_maxima_shuffle_one_value_a_row():
    kernel = compile_kernel(summing(running, columns=64), DIMS)
    (op,) = ops(kernel.target.kernel().body, "reduce_max")
    rows = tile_layout(op.result.type).registers_per_thread
    assert int_shape(op.operands[0].type) == (32, 64) and rows == 2
    assert kernel.cuda[0].text.count("ts_shfl_xor(") == 2 * rows
