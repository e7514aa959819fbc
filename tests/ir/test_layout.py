"""The layout algebra against brute force: every claim is recomputed from the coordinates of every register."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.ir.layout import (
    LANES,
    LinearLayout,
    RegisterLayout,
    SharedLayout,
    bank_wavefronts,
    block_layout,
    blocked,
    conversion,
    draw,
    draw_shared,
    ldmatrix_wavefronts,
    reduction_layout,
    register_map,
    row_reduction,
    shared_layout,
    splits_blocks,
    transposed_layout,
    warp_groups,
)

SHAPES = [(1,), (3,), (100,), (1000,), (1024,), (1, 1), (7, 3), (1, 100), (128, 100), (192, 64), (16, 8), (2, 3, 40)]
BLOCKED = [blocked(shape, warps, vector) for shape in SHAPES for warps in (1, 4, 12) for vector in (1, 2, 8)]


@st.composite
def linear_layouts(draw_from: st.DrawFn) -> LinearLayout:
    axes = draw_from(st.integers(1, 3))
    vector = st.tuples(*[st.integers(0, 15)] * axes)
    names = draw_from(st.sampled_from([("register", "lane", "warp"), ("offset",), ("a", "b")]))
    return LinearLayout.of(axes, **{name: draw_from(st.lists(vector, max_size=4)) for name in names})


@st.composite
def register_layouts(draw_from: st.DrawFn) -> RegisterLayout:
    """Bijective-or-broadcast layouts with the coordinate bits dealt to registers, lanes and warps at random, of one
    group of warps or of three.
    """
    axes = draw_from(st.integers(1, 2))
    bits = [draw_from(st.integers(0, 4)) for _ in range(axes)]
    units = [tuple(1 << b if a == axis else 0 for a in range(axes)) for axis in range(axes) for b in range(bits[axis])]
    units = draw_from(st.permutations(units))
    lanes = draw_from(st.integers(0, min(5, len(units))))
    warps = draw_from(st.integers(0, min(2, len(units) - lanes)))
    zero = (0,) * axes
    registers = units[lanes + warps :]
    if draw_from(st.booleans()):
        registers = sorted(registers, key=lambda unit: (unit[0], unit))
    lane_bases = draw_from(st.permutations([*units[:lanes], *[zero] * (5 - lanes)]))
    block = LinearLayout.of(axes, register=registers, lane=lane_bases, warp=units[lanes : lanes + warps])
    repeats = tuple(draw_from(st.integers(1, 4)) for _ in range(axes))
    return RegisterLayout(block, repeats, *draw_from(st.sampled_from([(1, None), (3, None), (3, 0), (3, axes - 1)])))


def all_inputs(layout: LinearLayout) -> list[dict[str, int]]:
    ranges = [range(layout.size(name)) for name in layout.names]
    return [dict(zip(layout.names, values, strict=True)) for values in itertools.product(*ranges)]


# Linear layouts ------------------------------------------------------------------------------------------------------


@given(linear_layouts())
def test_linear_text_round_trip(layout: LinearLayout) -> None:
    assert LinearLayout.parse(str(layout)) == layout
    assert hash(LinearLayout.parse(str(layout))) == hash(layout)


@settings(max_examples=40, deadline=None)
@given(linear_layouts())
def test_linear_apply_rank_and_kernel_by_brute_force(layout: LinearLayout) -> None:
    inputs = all_inputs(layout)[:1024]
    table = np.array([list(place.values()) for place in inputs]).reshape(len(inputs), -1)
    scalar = np.array([layout.apply(**place) for place in inputs])
    vectorised = layout.apply_array(**{name: table[:, i] for i, name in enumerate(layout.names)})
    assert (scalar == vectorised).all()
    if math.prod(layout.size(name) for name in layout.names) > 1024:
        return
    images = {tuple(row) for row in scalar.tolist()}
    assert len(images) == 1 << layout.rank
    assert layout.is_injective == (len(images) == len(inputs))
    assert layout.is_surjective == (len(images) == math.prod(layout.shape))
    zeros = {tuple(place.values()) for place, image in zip(inputs, scalar.tolist(), strict=True) if not any(image)}
    spanned = {(0,) * len(layout.names)}
    for vector in layout.kernel():
        spanned |= {tuple(a ^ b for a, b in zip(vector, other, strict=True)) for other in spanned}
    assert spanned == zeros


@given(linear_layouts())
def test_inverse_is_a_generalised_inverse(layout: LinearLayout) -> None:
    inverse = layout.inverse()
    renamed = LinearLayout(tuple((f"x{i}", group) for i, (_, group) in enumerate(layout.bases)), layout.axes)
    assert renamed.compose(inverse.compose(layout)) == layout
    if layout.is_surjective:
        identity = renamed.compose(inverse)
        for name, axis in zip(identity.names, range(layout.axes), strict=True):
            expected = [tuple(1 << b if a == axis else 0 for a in range(layout.axes)) for b in range(4)]
            assert list(identity.group(name)) == expected[: len(identity.group(name))]


def test_inverse_puts_zeros_in_broadcast_bits() -> None:
    layout = LinearLayout.of(1, register=[(1,)], lane=[(0,), (2,), (1,)])
    assert layout.inverse() == LinearLayout.of(2, axis0=[(1, 0), (0, 2)])
    assert layout.broadcast_bits("lane") == (0,)
    assert layout.kernel() == ((0, 1), (1, 4))


def test_product_tiles_one_layout_by_another() -> None:
    atom = LinearLayout.of(2, register=[(0, 1)], lane=[(1, 0)])
    tiled = atom.product(LinearLayout.of(2, register=[(1, 0)], warp=[(0, 1)]))
    assert tiled == LinearLayout.of(2, register=[(0, 1), (2, 0)], lane=[(1, 0)], warp=[(0, 2)])
    assert tiled.shape == (4, 4)


def test_linear_layout_misuse_is_an_error() -> None:
    layout = LinearLayout.of(2, lane=[(0, 1)])
    with pytest.raises(ValueError, match="outside"):
        layout.apply(lane=2)
    with pytest.raises(ValueError, match="no input"):
        layout.group("warp")
    with pytest.raises(ValueError, match="2 non-negative"):
        LinearLayout.of(2, lane=[(1,)])
    with pytest.raises(ValueError, match="inputs"):
        layout.compose(layout)
    for text in ("", "lane[[0,1]]", "lane[[0,1]] axes[2] ?"):
        with pytest.raises(ValueError, match="layout"):
            LinearLayout.parse(text)


# Register layouts ----------------------------------------------------------------------------------------------------


def brute_contiguous(layout: RegisterLayout, axis: int) -> int:
    coordinates = layout.all_coordinates()
    width = 1
    while layout.registers_per_thread % (2 * width) == 0:
        grouped = coordinates.reshape(layout.warps, LANES, -1, 2 * width, layout.block.axes)
        step = np.zeros((2 * width, layout.block.axes), dtype=np.int64)
        step[:, axis] = np.arange(2 * width)
        aligned = (grouped[..., 0, axis] % (2 * width) == 0).all()
        if not aligned or not (grouped == grouped[..., :1, :] + step).all():
            break
        width *= 2
    return width


def check_register_layout(layout: RegisterLayout) -> None:
    coordinates = layout.all_coordinates()
    assert RegisterLayout.parse(str(layout)) == layout
    assert not set("<>{}\n") & set(str(layout))
    assert coordinates.shape == (layout.warps, LANES, layout.registers_per_thread, layout.block.axes)
    for warp, lane, register in [(0, 0, 0), (layout.warps - 1, 31, layout.registers_per_thread - 1), (0, 13, 0)]:
        assert layout.coordinates(register, lane, warp) == tuple(coordinates[warp, lane, register])
    held = {tuple(c) for c in coordinates.reshape(-1, layout.block.axes).tolist()}
    assert held == set(np.ndindex(*layout.shape))
    for axis in range(layout.block.axes):
        assert layout.contiguous(axis) == brute_contiguous(layout, axis)
        assert layout.contiguous(axis, 2) <= 2
        sliced, mapping = layout.slice(axis), layout.slice_map(axis)
        assert sliced.shape == tuple(1 if a == axis else e for a, e in enumerate(layout.shape))
        expected = coordinates.copy()
        expected[..., axis] = 0
        assert (sliced.all_coordinates()[:, :, list(mapping)] == expected).all()
        assert set(mapping) == set(range(sliced.registers_per_thread))
        drivers = layout.axis_bits(axis)
        assert 1 << len(drivers) == layout.block_shape[axis]
        for bit, (name, input_bit) in enumerate(drivers):
            place = {"register": 0, "lane": 0, "warp": 0, name: 1 << input_bit}
            assert layout.coordinates(**place) == tuple(1 << bit if a == axis else 0 for a in range(layout.block.axes))


@settings(max_examples=120, deadline=None)
@given(register_layouts())
def test_register_layout_by_brute_force(layout: RegisterLayout) -> None:
    check_register_layout(layout)


@pytest.mark.parametrize("layout", BLOCKED, ids=str)
def test_blocked_by_brute_force(layout: RegisterLayout) -> None:
    check_register_layout(layout)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warps", [1, 4])
def test_blocked_covers_the_tile_with_vectors(shape: tuple[int, ...], warps: int) -> None:
    layout = blocked(shape, warps, 4)
    assert layout.warps == warps
    assert all(p >= e for p, e in zip(layout.shape, shape, strict=True))
    assert layout.contiguous(len(shape) - 1) >= min(4, shape[-1])
    busy = math.prod(layout.block_shape) // layout.block_registers
    # A thread idles only when the tile has no element for it, counted with each axis padded to a power of two.
    room = math.prod(1 << (extent - 1).bit_length() for extent in shape) // layout.block_registers
    assert busy == min(room, layout.threads)


def test_blocked_pads_little() -> None:
    assert blocked((128, 100), 4, 4).shape == (128, 112)
    assert blocked((192, 64), 4, 8).shape == (192, 64)
    assert blocked((128, 104), 4, 8).shape == (128, 112)
    assert blocked((1000,), 4, 4).shape == (1024,)


def test_blocked_lanes_are_coalesced() -> None:
    layout = blocked((128, 128), 4, 8)
    assert str(layout) == (
        "regs[[0,1],[0,2],[0,4]] lanes[[0,8],[0,16],[0,32],[0,64],[1,0]] warps[[2,0],[4,0]] rep[16,1]"
    )


def test_blocked_follows_the_order_of_axes() -> None:
    layout = blocked((64, 32), 2, 4, order=(0, 1))
    assert layout.contiguous(0) == 4 and layout.contiguous(1) == 1
    with pytest.raises(ValueError, match="permutation"):
        blocked((64, 32), 2, 4, order=(0, 0))


def test_small_tiles_are_replicated() -> None:
    layout = blocked((4, 4), 4, 4)
    assert layout.block.broadcast_bits("lane") == (2, 3, 4) and layout.block.broadcast_bits("warp") == (0, 1)


def test_three_groups_of_warps_share_out_an_axis_or_hold_the_same() -> None:
    rows = blocked((192, 64), 12, 8)
    assert str(rows).endswith("warps[[4,0],[8,0]] rep[4,1] groups[3,0]") and (rows.warps, rows.threads) == (12, 384)
    assert rows.repeat_shape == (48, 64) and rows.warp_steps == ((4, 0), (8, 0), (16, 0), (32, 0))
    coordinates = rows.all_coordinates().reshape(-1, 2)
    assert len(coordinates) == len(np.unique(coordinates, axis=0)) == 192 * 64  # each element once
    assert rows.coordinates(0, 0, 4) == (16, 0) and rows.coordinates(8, 0, 4) == (64, 0)
    assert blocked((64, 384), 12, 8).group_axis == 0  # 72 rows, an eighth more
    columns, alike = blocked((8, 384), 12, 8), blocked((8, 64), 12, 8)
    assert (columns.group_axis, columns.shape) == (1, (8, 384))
    assert str(alike).endswith(" groups[3]") and (alike.all_coordinates()[:4] == alike.all_coordinates()[8:]).all()
    assert blocked((192, 64), 24, 8).block.size("warp") == 8 and warp_groups(16) == 1 and warp_groups(12) == 3


def test_moves_between_groups_of_warps_go_through_shared_memory() -> None:
    rows, alike = blocked((192, 64), 12, 8), replace(blocked((192, 64), 4, 8), groups=3)
    assert conversion(rows, rows) == "none" and conversion(rows, alike) == "shared"
    block = RegisterLayout.parse("regs[] lanes[[1],[2],[4],[8],[16]] warps[] rep[3] groups[3]")
    assert conversion(block, replace(block, repeats=(1,), group_axis=0)) == "shuffle"  # each group has all


def test_a_reduction_leaves_replicas_in_the_groups_along_its_axis() -> None:
    layout = blocked((192, 64), 12, 8)
    assert (layout.slice(0).groups, layout.slice(0).group_axis, layout.slice(1).group_axis) == (3, None, 0)
    assert transposed_layout(layout).group_axis == 1 and transposed_layout(layout).shape == (64, 192)
    assert block_layout(blocked((4, 384), 12, 8), 1).shape == (4, 12)
    assert splits_blocks(layout, 0) and not splits_blocks(layout, 1)


@pytest.mark.parametrize("warps", [4, 12])
@pytest.mark.parametrize("shape", [(4, 1000), (64, 64), (1, 17), (33, 5), (2, 3, 40), (192, 40)])
def test_row_reduction_keeps_a_row_in_one_warp(shape: tuple[int, ...], warps: int) -> None:
    for axis in range(len(shape)):
        layout = row_reduction(shape, warps, axis, 4)
        check_register_layout(layout)
        check_register_layout(reduction_layout(shape, warps, axis, 4))
        assert layout.group_axis != axis and all(name != "warp" for name, _ in layout.axis_bits(axis))
        # All the elements of a line are found within each warp that holds one of them.
        coordinates = layout.all_coordinates()
        for warp in range(layout.warps):
            held = {tuple(c) for c in coordinates[warp].reshape(-1, len(shape)).tolist()}
            lines = {tuple(c for a, c in enumerate(element) if a != axis) for element in held}
            assert len(held) == len(lines) * layout.shape[axis]


def test_axis_bits_rejects_a_tangled_axis() -> None:
    lanes = [(2, 0), (4, 0), (8, 0), (16, 0), (32, 0)]
    swizzled = RegisterLayout(LinearLayout.of(2, register=[(1, 0)], lane=lanes, warp=[(1, 1)]), (1, 1))
    with pytest.raises(ValueError, match="axis 0"):
        swizzled.axis_bits(0)
    twice = RegisterLayout(
        LinearLayout.of(1, register=[(1,), (2,)], lane=[(2,), (4,), (0,), (0,), (0,)], warp=[]), (1,)
    )
    with pytest.raises(ValueError, match="lane bit 0"):
        twice.axis_bits(0)
    assert twice.contiguous(0) == brute_contiguous(twice, 0) == 2


def test_register_layout_rejects_holes_and_wrong_inputs() -> None:
    lanes = [(4,), (8,), (16,), (32,), (64,)]
    with pytest.raises(ValueError, match="nothing holds"):
        RegisterLayout(LinearLayout.of(1, register=[(2,)], lane=lanes, warp=[]), (1,))
    with pytest.raises(ValueError, match="5 lane bits"):
        RegisterLayout(LinearLayout.of(1, register=[(1,)], lane=[(2,)], warp=[]), (1,))
    with pytest.raises(ValueError, match="do not fit"):
        RegisterLayout(LinearLayout.of(1, register=[], lane=[(0,)] * 5, warp=[]), (1, 1))
    with pytest.raises(ValueError, match="register layout"):
        RegisterLayout.parse("regs[] lanes[] rep[1]")
    line = "regs[] lanes[[1],[2],[4],[8],[16]] warps[] rep[1]"
    for groups, sentence in [
        ("groups[2]", "2 groups of warps: powers of two are bits of the block"),
        ("groups[3,1]", "3 groups of warps do not lie along axis 1"),
        ("groups[1,0]", "1 groups of warps do not lie along axis 0"),
        ("groups[3,0,0]", "how many, and the axis along which they lie"),
        ("groups[[3]]", "how many, and the axis along which they lie"),
        ("rep[3]", "then perhaps groups"),
    ]:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            RegisterLayout.parse(f"{line} {groups}")


def test_coordinates_out_of_range_are_errors() -> None:
    layout = blocked((8, 8), 1, 2)
    with pytest.raises(ValueError, match="register=2"):
        layout.coordinates(2, 0, 0)
    with pytest.raises(ValueError, match="lane=32"):
        layout.coordinates(0, 32, 0)
    with pytest.raises(ValueError, match="warp=12 is outside 0..11"):
        blocked((192, 8), 12, 2).coordinates(0, 0, 12)


# Conversions ---------------------------------------------------------------------------------------------------------


def permute_registers(layout: RegisterLayout) -> RegisterLayout:
    bases = dict(layout.block.bases)
    bases["register"] = bases["register"][::-1]
    return RegisterLayout(LinearLayout(tuple(bases.items()), layout.block.axes), layout.repeats)


def test_conversion_kinds() -> None:
    src = blocked((64, 64), 4, 4)
    assert conversion(src, src) == "none"
    assert conversion(src, permute_registers(src)) == "registers"
    assert register_map(src, permute_registers(src))[:4] == (0, 2, 1, 3)  # type: ignore[index]
    lanes = dict(src.block.bases)
    lanes["lane"] = lanes["lane"][::-1]
    shuffled = RegisterLayout(LinearLayout(tuple(lanes.items()), 2), src.repeats)
    assert conversion(src, shuffled) == "shuffle" and register_map(src, shuffled) is None
    assert conversion(src, blocked((64, 64), 4, 4, order=(0, 1))) == "shared"
    assert conversion(src, blocked((64, 64), 2, 4)) == "shared"


@settings(max_examples=60, deadline=None)
@given(register_layouts(), register_layouts())
def test_conversion_agrees_with_brute_force(src: RegisterLayout, dst: RegisterLayout) -> None:
    if src.block.axes != dst.block.axes:
        with pytest.raises(ValueError, match="axes"):
            conversion(src, dst)
        return
    kind, mapping = conversion(src, dst), register_map(src, dst)
    assert (mapping is not None) == (kind in ("none", "registers"))
    common = np.minimum(src.shape, dst.shape)
    have, want = src.all_coordinates(), dst.all_coordinates()
    inside = np.asarray((want < common).all(axis=-1))
    if mapping is not None:
        moved = have[:, :, [max(m, 0) for m in mapping]]
        assert ((moved == want).all(axis=-1) | ~inside).all()
        assert all(m >= 0 or not inside[:, :, r].any() for r, m in enumerate(mapping))
    elif kind == "shuffle" or src.warps == dst.warps:
        within = all(
            {tuple(c) for c in want[w][inside[w]].tolist()}
            <= {tuple(c) for c in have[w].reshape(-1, len(common)).tolist()}
            for w in range(src.warps)
        )
        assert within == (kind == "shuffle")
        # No static renaming exists: some register of dst has no register of src that serves every thread.
        served = np.equal(want[:, :, :, None], have[:, :, None]).all(axis=-1) | ~inside[..., None]
        assert not served.all(axis=(0, 1)).any(axis=-1).all()
    else:
        assert kind == "shared"


def test_conversion_ignores_padding_outside_the_tile() -> None:
    narrow = RegisterLayout.parse("regs[] lanes[[1],[2],[4],[8],[16]] warps[] rep[3]")
    wide = RegisterLayout.parse("regs[[32],[64]] lanes[[1],[2],[4],[8],[16]] warps[] rep[1]")
    assert register_map(narrow, wide, (96,)) == (0, 1, 2, -1)
    assert conversion(narrow, wide) == "registers" and conversion(wide, narrow) == "registers"
    with pytest.raises(ValueError, match="does not fit"):
        conversion(narrow, wide, (97,))


# Shared memory -------------------------------------------------------------------------------------------------------

SHARED = [
    shared_layout(rows, cols, itemsize, swizzle=swizzle)
    for rows, cols, itemsize in [
        (128, 100, 2),
        (16, 16, 2),
        (8, 32, 2),
        (32, 64, 2),
        (24, 192, 2),
        (8, 32, 4),
        (5, 7, 4),
    ]
    for swizzle in (True, False)
]


@pytest.mark.parametrize("layout", SHARED, ids=str)
def test_shared_offsets(layout: SharedLayout) -> None:
    assert SharedLayout.parse(str(layout)) == layout
    rows, cols = np.mgrid[: layout.rows, : layout.cols]
    offsets = layout.offset_array(rows, cols)
    # Every element has a place of its own, and no byte is wasted.
    assert sorted(offsets.ravel().tolist()) == list(range(0, layout.bytes, layout.itemsize))
    assert layout.offset(layout.rows - 1, layout.cols - 1) == offsets[-1, -1]
    # 16-byte chunks stay whole.
    step = 16 // layout.itemsize
    chunks = offsets.reshape(layout.rows, -1, step)
    assert (chunks == chunks[..., :1] + np.arange(step) * layout.itemsize).all() and (chunks[..., 0] % 16 == 0).all()


@pytest.mark.parametrize("layout", [s for s in SHARED if not s.panel_columns & (s.panel_columns - 1)], ids=str)
def test_shared_linear_block_agrees_with_offset(layout: SharedLayout) -> None:
    block = layout.linear()
    assert block.is_injective and block.is_surjective and block.shape == (8, layout.panel_columns)
    size = block.size("offset")
    coordinates = block.apply_array(offset=np.arange(size))
    for panel, row_block in itertools.product(range(layout.panels), range(layout.rows // 8)):
        start = panel * layout.panel_stride + row_block * 8 * layout.pitch
        row, col = coordinates[:, 0] + 8 * row_block, coordinates[:, 1] + panel * layout.panel_columns
        assert (layout.offset_array(row, col) == start + np.arange(size) * layout.itemsize).all()


@pytest.mark.parametrize(("cols", "chunks"), [(100, 1), (16, 2), (32, 4), (64, 8), (192, 8), (96, 4)])
def test_swizzle_frees_ldmatrix_of_conflicts(cols: int, chunks: int) -> None:
    layout = shared_layout(64, cols, 2)
    assert layout.chunks == chunks
    for row in range(0, 64, 8):
        for col in range(0, layout.cols, 8):
            assert ldmatrix_wavefronts([layout.offset(row + r, col) for r in range(8)]) == 1


def test_plain_row_major_conflicts() -> None:
    plain = shared_layout(8, 64, 2, swizzle=False)
    assert plain.pitch == 128 and plain.panels == 1
    assert ldmatrix_wavefronts([plain.offset(r, 0) for r in range(8)]) == 8
    assert ldmatrix_wavefronts([plain.offset(r % 8, 8 * (r // 8)) for r in range(32)]) == 32


def test_shared_layout_constructor() -> None:
    assert str(shared_layout(128, 100, 2)) == "shared rows=128 cols=104 item=2 w=1 swizzle=1"
    padded = shared_layout(5, 100, 2, row_multiple=16, col_multiple=16)
    assert (padded.rows, padded.cols, padded.chunks, padded.bytes) == (16, 112, 2, 16 * 224)
    assert padded.panel_stride == 16 * 32
    with pytest.raises(ValueError, match="outside"):
        padded.offset(16, 0)
    with pytest.raises(ValueError, match="whole panels"):
        SharedLayout(8, 100, 2, 4, True)
    with pytest.raises(ValueError, match="chunks"):
        SharedLayout(8, 96, 2, 3, True)
    with pytest.raises(ValueError, match="shared layout"):
        SharedLayout.parse("shared rows=8")


def test_wavefronts_of_a_warp() -> None:
    lanes = range(32)
    assert bank_wavefronts([4 * lane for lane in lanes], 4) == 1
    assert bank_wavefronts([0] * 32, 4) == 1
    assert bank_wavefronts([8 * lane for lane in lanes], 4) == 2
    assert bank_wavefronts([128 * lane for lane in lanes], 4) == 32
    assert bank_wavefronts([2 * lane for lane in lanes], 2) == 1
    assert bank_wavefronts([8 * lane for lane in lanes], 8) == 2
    assert bank_wavefronts([16 * lane for lane in lanes], 16) == 4
    # Lanes 0..7 of each quarter on one group of four banks: 8 wavefronts a quarter.
    assert bank_wavefronts([128 * lane for lane in lanes], 16) == 32
    assert bank_wavefronts([None] * 31 + [64], 16) == 1
    with pytest.raises(ValueError, match="multiple"):
        bank_wavefronts([2] * 32, 4)
    with pytest.raises(ValueError, match="8, 16 or 32"):
        ldmatrix_wavefronts([0] * 7)


# Drawings ------------------------------------------------------------------------------------------------------------


def test_draw() -> None:
    layout = RegisterLayout.parse("regs[[0,1]] lanes[[0,2],[1,0],[0,0],[0,0],[0,0]] warps[[2,0]] rep[1,1]")
    assert draw(layout) == (
        "w0t0:0+ w0t0:1+ w0t1:0+ w0t1:1+\n"
        "w0t2:0+ w0t2:1+ w0t3:0+ w0t3:1+\n"
        "w1t0:0+ w1t0:1+ w1t1:0+ w1t1:1+\n"
        "w1t2:0+ w1t2:1+ w1t3:0+ w1t3:1+"
    )
    assert draw(layout, (1, 2)) == "w0t0:0+ w0t0:1+"
    line = RegisterLayout.parse("regs[] lanes[[1],[2],[4],[8],[16]] warps[] rep[1]")
    assert draw(line, (3,)) == "w0t0:0 w0t1:0 w0t2:0"
    assert draw(blocked((2, 1, 2), 1, 1)).startswith("[0, :, :]\n")


def test_draw_shared() -> None:
    assert draw_shared(shared_layout(8, 16, 2), rows=5).splitlines()[4].split() == ["144/b4", "128/b0"]


@pytest.mark.parametrize(
    "itemsize, cols, swizzle", [(2, 16, True), (2, 32, True), (2, 128, True), (4, 48, False), (1, 64, True)]
)
def test_offsets_split_into_bits_that_cross_and_a_rest_that_adds_up(itemsize: int, cols: int, swizzle: bool) -> None:
    layout = shared_layout(32, cols, itemsize, swizzle=swizzle)
    rng = np.random.default_rng(0)
    for _ in range(500):
        row_bits, col_bits = (int(bits) for bits in rng.integers(0, 256, 2))  # those of the first place
        row, col = int(rng.integers(0, 32)), int(rng.integers(0, cols))
        first, second = (row & row_bits, col & col_bits), (row & ~row_bits, col & ~col_bits)
        crossed, added = layout.split(*second)
        assert (layout.offset(*first) ^ crossed) + added == layout.offset(row, col)
        assert sum(layout.split(row, col)) == layout.offset(row, col)
