"""Wide tiles become panels that are loaded, multiplied and stored in turn, or a kernel stays as it is."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.ir.core import Module
from tessera.ir.opdef import TILE
from tessera.ir.types import int_shape
from tessera.ir.verify import verify
from tessera.passes.split_panels import split_panels
from tessera.target.schedule import Schedule
from tests.passes.lane_kernels import differences, gemm_nn, gemm_rows, make_gemm
from tests.passes.lane_running import ops, outputs_of
from tests.passes.test_order_programs import specialised
from tests.passes.test_pipeline import assert_same_bits

PANELS = Schedule(panels=64)


def panelled(definition, dims, schedule=PANELS):
    """The kernel before and after, of the same bits."""
    kernel = specialised(definition, dims)
    new = split_panels(kernel, schedule)
    verify(Module(TILE, [new]))
    if new is not kernel:
        assert_same_bits(outputs_of(kernel, dims), outputs_of(new, dims), "panels")
    return kernel, new


def shapes(kernel, name):
    return [int_shape(op.result.type) for op in ops(kernel, name)]


def test_a_product_and_what_meets_its_operand_again():
    """Each panel of the operand is loaded once, for the product and for the epilogue."""
    _, new = panelled(differences, {"M": 100})
    assert shapes(new, "load") == [(64, 64), (64, 64), (64, 128)] * 2
    assert shapes(new, "mma") == [(64, 128)] * 2
    assert [int_shape(op.operand("value").type) for op in ops(new, "store")] == [(64, 64)] * 2
    first, second = ops(new, "mma")
    assert second.operands[2] is first.result and len(first.operands) == 2


@pytest.mark.parametrize(("stored", "right"), [("nn", (64, 64)), ("nt", (64, 64))])
def test_a_deep_tile_is_multiplied_panel_by_panel(stored, right):
    _, new = panelled(make_gemm(stored, tiles=(64, 64, 128)), {"M": 72, "N": 72, "K": 136})
    assert shapes(new, "load") == [(64, 64), right] * 2 and len(ops(new, "mma")) == 2


def test_sums_are_stored_in_panels():
    _, new = panelled(make_gemm(epilogue="bias", tiles=(64, 192, 64)), {"M": 72, "N": 200, "K": 72})
    assert [int_shape(op.operand("value").type) for op in ops(new, "store")] == [(64, 64)] * 3
    assert shapes(new, "extract") == [(64, 64)] * 3


@ts.kernel
def row_sums(x: Tensor["M", 128, ts.f32], out: Tensor["M", 128, ts.f32]):
    m = tile.program_id(0) * 16
    value = x[m : m + 16]
    tile.store(value - tile.sum(value, axis=-1, keepdims=True), out[m : m + 16])


@ts.kernel
def copied(x: Tensor["M", 128, ts.f32], out: Tensor["M", 128, ts.f32]):
    m = tile.program_id(0) * 16
    tile.store(x[m : m + 16] + 1.0, out[m : m + 16])


@ts.kernel
def moved_on(x: Tensor["M", 128, ts.f32]):
    """What a store writes is read again, panel by panel: the loads must stay in front."""
    m = tile.program_id(0) * 16
    tile.store(x[m : m + 16] * x[m + 1 : m + 17], x[m : m + 16])


@ts.kernel
def buffered(x: Tensor["M", 128, ts.bf16], w: Tensor[128, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
    """A buffer that changes between its read and the product."""
    m = tile.program_id(0) * 16
    state = tile.alloc_shared([16, 128], ts.bf16)
    tile.copy_async(state, x[m : m + 16])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    doubled = state * 2.0
    tile.fill(state, 1.0)
    tile.store(tile.mma(tile.cast(doubled, ts.bf16), w), out[m : m + 16])


@ts.kernel
def transposed(x: Tensor[128, "M", ts.bf16], w: Tensor[128, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
    m = tile.program_id(0) * 16
    tile.store(tile.mma(x[0:128, m : m + 16], w, transpose_a=True), out[m : m + 16])


STAY = [
    (row_sums, {"M": 20}),  # reduced along its columns
    (moved_on, {"M": 20}),
    (buffered, {"M": 20}),
    (gemm_nn, {"M": 72, "N": 72, "K": 72}),  # no wider than a panel
    (make_gemm(tiles=(64, 96, 96), name="odd"), {"M": 72, "N": 72, "K": 72}),  # no whole panels
]


@pytest.mark.parametrize(("definition", "dims"), STAY, ids=lambda value: getattr(value, "name", ""))
def test_what_has_no_panels_stays(definition, dims):
    kernel, new = panelled(definition, dims)
    assert len(ops(new, "load", "mma", "store")) == len(ops(kernel, "load", "mma", "store"))


def test_tiles_without_products_and_no_width():
    kernel, new = panelled(copied, {"M": 20})
    assert len(ops(new, "store")) == 2
    assert split_panels(kernel, Schedule()) is kernel
    assert len(ops(panelled(copied, {"M": 20}, Schedule(panels=32))[1], "store")) == 4


def test_sums_of_which_rows_are_reduced_are_whole():
    """The quotient is used by rows alone, so it stays whole, and so does its store."""
    kernel, new = panelled(gemm_rows, {"M": 72, "N": 128, "K": 72})
    assert len(ops(new, "store")) == len(ops(kernel, "store")) == 1


def test_sums_are_whole_through_branches():
    """A branch that scales the sums gives what another one multiplies."""

    @ts.kernel
    def halved(a: Tensor["M", "K", ts.bf16], b: Tensor["K", 128, ts.bf16], out: Tensor["M", 128, ts.bf16]):
        ctx = tile.context()
        m = tile.program_id(0) * 16
        acc = tile.zeros([16, 128], ts.f32)
        for k in tile.range(0, ctx.K, 64):
            if k == 64:
                acc = acc * 0.5
            else:
                acc = tile.mma(a[m : m + 16, k : k + 64], b[k : k + 64], acc)
        tile.store(acc, out[m : m + 16])

    _, new = panelled(halved, {"M": 20, "K": 136})
    assert len(ops(new, "store")) == 2 and shapes(new, "mma") == [(16, 128)]


def test_operands_that_run_along_rows_are_not_cut():
    kernel, new = panelled(transposed, {"M": 20})
    assert len(ops(new, "mma")) == len(ops(kernel, "mma")) == 1
