"""Stores by warps: buffers that take turns, waits for those that are read, and what is stored otherwise."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tests.passes import lane_kernels
from tests.passes.lane_kernels import CASES, make_gemm
from tests.passes.lane_running import Ready, compiled, emulate, needs_compiler, ops, outputs_of, reached, stage
from tests.passes.test_pipeline import assert_same_bits

DIMS = {"M": 72, "N": 200, "K": 72}


def stores(kernel):
    """For each store by TMA: its buffer, and how many stores may still be in flight when that is written."""
    waits = [op.attributes["pending"] for op in ops(kernel, "tma_store_wait")]
    return [(op.operands[1], pending) for op, pending in zip(ops(kernel, "tma_store"), waits[:-1], strict=True)]


def buffers(found):
    order = {}
    return [order.setdefault(buffer, len(order)) for buffer, _ in found]


@pytest.mark.parametrize(
    ("columns", "turns", "pending"), [(64, [0], [0]), (128, [0, 1], [1, 1]), (192, [0, 1, 0], [0, 1, 1])]
)
def test_panels_take_turns_in_two_buffers(columns, turns, pending):
    """One store may fly while the next panel is written; a buffer that comes twice in a row is waited for."""
    found = stores(*reached(make_gemm(tiles=(64, columns, 64)), DIMS, "lower_to_target"))
    assert buffers(found) == turns and [number for _, number in found] == pending


def test_the_role_ends_when_all_stores_have_read():
    (kernel,) = reached(lane_kernels.gemm_bias, CASES["gemm_bias"], "lower_to_target")
    (roles,) = ops(kernel, "roles")
    *_, last, _ = roles.regions[1].ops
    assert (last.name, last.attributes["pending"], last.attributes["scope"]) == ("tma_store_wait", 0, "warp")


def test_other_blocks_and_other_tiles():
    """Where stores stand in several blocks none is in flight; buffers of other shapes are others."""

    @ts.kernel(name="branched")
    def branched(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], c: Tensor[64, 32, ts.bf16],
                 one: Tensor["M", 64, ts.bf16], two: Tensor["M", 32, ts.bf16]):  # fmt: skip
        m = tile.program_id(0) * 64
        value = a[m : m + 64]
        tile.store(tile.mma(value, b), one[m : m + 64])
        if m > 0:
            tile.store(tile.mma(value, c), two[m : m + 64])
        else:
            tile.store(tile.mma(value, c) + 1.0, two[m : m + 64])

    tile_level, kernel = reached(branched, {"M": 400}, "canonicalise", "lower_to_target")
    found = stores(kernel)
    assert [pending for _, pending in found] == [0, 0, 0] and buffers(found) == [0, 1, 1]
    expected = outputs_of(tile_level, {"M": 400})
    assert_same_bits(expected, outputs_of(kernel, {"M": 400}, "target"), "lowering")


def three(name, dtype):
    """Three products that are stored one after the other, to tensors of which the second one is of another dtype."""

    @ts.kernel(name=name)
    def stored(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], one: Tensor["M", 64, ts.bf16],
               two: Tensor["M", 64, dtype], three: Tensor["M", 64, ts.bf16]):  # fmt: skip
        m = tile.program_id(0) * 64
        acc = tile.mma(a[m : m + 64], b)
        tile.store(acc, one[m : m + 64])
        tile.store(acc * 2.0, two[m : m + 64])
        tile.store(acc + 1.0, three[m : m + 64])

    return stored


STORED = [(three("stored_bf16", ts.bf16), 1), (three("stored_f16", ts.f16), 2), (three("stored_f32", ts.f32), 1)]


@needs_compiler
def test_several_stores_in_any_order_of_warps():
    """f32 goes through shared memory by threads, beside the buffers that TMA still reads."""
    dims = {"M": 330}
    batch = []
    for definition, blocks in STORED:
        compilation = compiled(definition, dims, blocks=blocks)
        assert len(stores(stage(compilation, "lower_to_target"))) == (2 if "f32" in definition.name else 3)
        batch.append(Ready(compilation, dims, outputs_of(compilation.stages[0].module.kernel(), dims)))
    emulate(batch, seeds=(0, 4, 5))


@ts.kernel
def masked(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
    m = tile.program_id(0) * 64
    acc = tile.mma(a[m : m + 64], b)
    tile.store(acc, out[m : m + 64], mask=acc > 0.0)


@pytest.mark.parametrize(
    ("definition", "dims", "fields"),
    [
        (masked, {"M": 72}, {}),
        (make_gemm(out=ts.f32), DIMS, {}),
        (make_gemm(), DIMS, {"epilogue": "direct"}),
        (make_gemm(), DIMS, {"copies": ""}),
        (make_gemm("nt"), {**DIMS, "N": 100}, {}),  # rows of the output are no multiples of 16 bytes
        (make_gemm(tiles=(32, 64, 64)), DIMS, {}),  # mma.sync spreads columns over warps
        (lane_kernels.scaled_sum, {"M": 72}, {}),  # no fragments
    ],
    ids=["mask", "f32", "direct", "no producer", "stride", "columns", "no product"],
)
def test_other_stores(definition, dims, fields):
    (kernel,) = reached(definition, dims, "lower_to_target", **fields)
    assert not ops(kernel, "tma_store", "tma_store_wait") and ops(kernel, "st_global")
