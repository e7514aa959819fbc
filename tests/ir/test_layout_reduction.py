"""Layouts for reductions, blocks of 32 and transposes."""

from __future__ import annotations

import pytest

from tessera.ir.layout import (
    block_layout,
    blocked,
    reduction_layout,
    splits_blocks,
    transposed_layout,
    transposed_map,
    warp_part,
)

SHAPES = [(256, 64), (4, 1000), (1, 4096), (4096,), (2000, 3), (33, 5), (2, 3, 5, 33), (7,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warps", [1, 4, 8])
def test_a_block_of_32_lies_in_one_warp(shape, warps):
    for axis in range(len(shape)):
        layout = reduction_layout(shape, warps, axis, 4 if shape[-1] % 4 == 0 else 1)
        assert layout.warps == warps and all(p >= s for p, s in zip(layout.shape, shape, strict=True))
        assert not splits_blocks(layout, axis)
        coordinates = layout.all_coordinates()
        blocks = coordinates.copy()
        blocks[..., axis] //= 32
        for warp in range(warps):
            held = {tuple(c) for c in coordinates[warp].reshape(-1, len(shape)).tolist()}
            members = {tuple(c) for c in blocks[warp].reshape(-1, len(shape)).tolist()}
            extent = min(32, layout.shape[axis])
            last = -(-layout.shape[axis] // 32) - 1
            full = sum(extent if m[axis] != last else layout.shape[axis] - 32 * last for m in members)
            assert len(held) == full


def test_columns_are_spread_over_warps_and_long_lines_too():
    assert reduction_layout((256, 64), 4, 0, 4).registers_per_thread == 256 * 64 // 128
    assert reduction_layout((4096,), 4, 0, 4).registers_per_thread == 4096 // 128
    assert reduction_layout((1, 256), 4, 1, 4).registers_per_thread == 8, "a short line stays in a warp"


@pytest.mark.parametrize(
    ("shape", "axis", "kinds"),
    [
        ((128, 64), 0, "rrlll"),  # 4 lanes of columns for each of 4 warps, 8 lanes of rows
        ((128, 512), 0, "rrrrr"),
        ((64, 128), 1, "rrlll"),  # 8 lanes read a line of 128 bytes, 4 rows at a time
        ((4, 128), 1, "rrlll"),
    ],
)
def test_a_thread_has_the_lowest_elements_of_a_block(shape, axis, kinds):
    """Sums combine those first: what is left to shuffle is one value of each lane."""
    layout = reduction_layout(shape, 4, axis, 4)
    assert "".join(kind[0] for kind, _ in layout.axis_bits(axis)[:5]) == kinds


def test_blocks_of_32_are_in_different_lanes_only_where_nothing_else_is():
    beyond = [
        [place for place, (kind, _) in enumerate(reduction_layout(shape, 4, 1, 4).axis_bits(1)) if kind == "lane"]
        for shape in ((64, 128), (4, 128))
    ]
    assert beyond == [[2, 3, 4], [2, 3, 4, 5, 6]]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_layout_holds_each_block_where_its_elements_are(shape):
    for axis in range(len(shape)):
        layout = reduction_layout(shape, 4, axis, 1)
        partial = block_layout(layout, axis)
        assert partial.shape[axis] == -(-layout.shape[axis] // 32)
        own, coarse = layout.all_coordinates(), partial.all_coordinates()
        own = own.copy()
        own[..., axis] //= 32
        for warp in range(4):
            for lane in (0, 5, 31):
                assert {tuple(c) for c in own[warp, lane].tolist()} == {tuple(c) for c in coarse[warp, lane].tolist()}


@pytest.mark.parametrize(
    "shape, warps, part",
    [((1, 4096), 4, 1024), ((2, 4096), 8, 1024), ((1, 6144), 4, 512), ((1, 3000), 4, 256)],
    ids=str,
)
def test_a_warp_has_one_part_of_a_line_where_it_can_be_cut_so(shape, warps, part):
    layout = reduction_layout(shape, warps, 1, 8)
    assert warp_part(layout, 1) == part
    assert layout.contiguous(1) == 8
    partial = block_layout(layout, 1, part)
    assert partial.shape[1] == -(-layout.shape[1] // part)
    own, coarse = layout.all_coordinates(), partial.all_coordinates()
    own[..., 1] //= part
    for warp in range(warps):
        assert {tuple(c) for c in own[warp, 9].tolist()} == {tuple(c) for c in coarse[warp, 9].tolist()}


@pytest.mark.parametrize("shape", [(64, 48), (33, 25), (2, 10, 100)])
def test_a_transpose_keeps_elements_in_their_thread(shape):
    layout = blocked(shape, 4, 1)
    swapped, sources = transposed_layout(layout), transposed_map(layout)
    for register, source in enumerate(sources):
        for lane, warp in ((0, 0), (17, 3), (31, 1)):
            *leading, row, column = layout.coordinates(source, lane, warp)
            assert swapped.coordinates(register, lane, warp) == (*leading, column, row)
