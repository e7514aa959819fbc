"""Fragments against tables typed from the figures of the PTX ISA, and against NumPy products made lane by lane."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tessera.codegen_cuda.include import device_header
from tessera.dtypes import parse
from tessera.ir.layout import LANES, RegisterLayout, conversion, ldmatrix_wavefronts, shared_layout
from tessera.ir.products import FORMATS, FP8, K_BLOCKS
from tessera.target.fragments import (
    M16N8K8_TF32,
    M16N8K16_BF16,
    M16N8K16_F16,
    M16N8K32_FP8,
    MMA_ATOMS,
    OPERAND_LOADS,
    PRODUCT_INSTRUCTIONS,
    MmaAtom,
    accumulator_layout,
    atom_counts,
    atom_origin,
    fma_layouts,
    matrices_at_once,
    mma_mismatch,
    multiplying_instruction,
    operand_a_layout,
    operand_b_layout,
    pairs_columns,
    product_atom,
    product_layouts,
    vector_registers,
)
from tessera.target.wgmma import WGMMA_INSTRUCTIONS

ATOMS = [M16N8K16_BF16, M16N8K8_TF32]
BLOCKS = [((128, 128), (2, 4)), ((128, 100), (4, 1)), ((64, 48), (2, 2)), ((16, 8), (1, 1)), ((40, 24), (2, 1))]

# (lane, register) -> (row, column), read off the figures of the PTX ISA for lanes 0, 1, 4, 6 and 31.
A_M16N8K16 = {
    0: [(0, 0), (0, 1), (8, 0), (8, 1), (0, 8), (0, 9), (8, 8), (8, 9)],
    1: [(0, 2), (0, 3), (8, 2), (8, 3), (0, 10), (0, 11), (8, 10), (8, 11)],
    4: [(1, 0), (1, 1), (9, 0), (9, 1), (1, 8), (1, 9), (9, 8), (9, 9)],
    6: [(1, 4), (1, 5), (9, 4), (9, 5), (1, 12), (1, 13), (9, 12), (9, 13)],
    31: [(7, 6), (7, 7), (15, 6), (15, 7), (7, 14), (7, 15), (15, 14), (15, 15)],
}
B_M16N8K16 = {
    0: [(0, 0), (1, 0), (8, 0), (9, 0)],
    1: [(2, 0), (3, 0), (10, 0), (11, 0)],
    4: [(0, 1), (1, 1), (8, 1), (9, 1)],
    6: [(4, 1), (5, 1), (12, 1), (13, 1)],
    31: [(6, 7), (7, 7), (14, 7), (15, 7)],
}
C_M16N8 = {
    0: [(0, 0), (0, 1), (8, 0), (8, 1)],
    1: [(0, 2), (0, 3), (8, 2), (8, 3)],
    4: [(1, 0), (1, 1), (9, 0), (9, 1)],
    6: [(1, 4), (1, 5), (9, 4), (9, 5)],
    31: [(7, 6), (7, 7), (15, 6), (15, 7)],
}
A_M16N8K8 = {
    0: [(0, 0), (8, 0), (0, 4), (8, 4)],
    1: [(0, 1), (8, 1), (0, 5), (8, 5)],
    4: [(1, 0), (9, 0), (1, 4), (9, 4)],
    6: [(1, 2), (9, 2), (1, 6), (9, 6)],
    31: [(7, 3), (15, 3), (7, 7), (15, 7)],
}
B_M16N8K8 = {0: [(0, 0), (4, 0)], 1: [(1, 0), (5, 0)], 4: [(0, 1), (4, 1)], 6: [(2, 1), (6, 1)], 31: [(3, 7), (7, 7)]}
A_M16N8K32 = {
    0: [(row, k + i) for k in (0, 16) for row in (0, 8) for i in range(4)],
    6: [(row, k + i) for k in (8, 24) for row in (1, 9) for i in range(4)],
    31: [(row, k + i) for k in (12, 28) for row in (7, 15) for i in range(4)],
}
B_M16N8K32 = {
    0: [(0, 0), (1, 0), (2, 0), (3, 0), (16, 0), (17, 0), (18, 0), (19, 0)],
    6: [(8, 1), (9, 1), (10, 1), (11, 1), (24, 1), (25, 1), (26, 1), (27, 1)],
    31: [(12, 7), (13, 7), (14, 7), (15, 7), (28, 7), (29, 7), (30, 7), (31, 7)],
}


@pytest.mark.parametrize(
    ("fragment", "table"),
    [
        (M16N8K16_BF16.a, A_M16N8K16),
        (M16N8K16_BF16.b, B_M16N8K16),
        (M16N8K16_BF16.c, C_M16N8),
        (M16N8K16_F16.a, A_M16N8K16),
        (M16N8K16_F16.b, B_M16N8K16),
        (M16N8K8_TF32.a, A_M16N8K8),
        (M16N8K8_TF32.b, B_M16N8K8),
        (M16N8K8_TF32.c, C_M16N8),
        (M16N8K32_FP8.a, A_M16N8K32),
        (M16N8K32_FP8.b, B_M16N8K32),
        (M16N8K32_FP8.c, C_M16N8),
    ],
)
def test_fragments_are_those_of_the_ptx_isa(fragment, table) -> None:
    for lane, expected in table.items():
        assert [fragment.apply(register=r, lane=lane) for r in range(fragment.size("register"))] == expected


@pytest.mark.parametrize("atom", [*MMA_ATOMS.values(), M16N8K32_FP8], ids=lambda atom: atom.operand)
def test_atoms_hold_each_element_once(atom: MmaAtom) -> None:
    for fragment, shape in ((atom.a, (atom.m, atom.k)), (atom.b, (atom.k, atom.n)), (atom.c, (atom.m, atom.n))):
        assert fragment.is_injective and fragment.is_surjective and fragment.shape == shape


def test_words_and_names() -> None:
    assert (M16N8K16_BF16.a_words, M16N8K16_BF16.b_words, M16N8K16_BF16.c_words) == (4, 2, 4)
    assert (M16N8K8_TF32.a_words, M16N8K8_TF32.b_words, M16N8K8_TF32.c_words) == (4, 2, 4)
    assert M16N8K16_BF16.instruction == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    assert M16N8K8_TF32.instruction == "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"


def test_two_accumulator_atoms_are_one_a_fragment() -> None:
    """A value computed in accumulator layout feeds the next product without moving."""
    c, a = accumulator_layout((16, 16), (1, 1)), operand_a_layout((16, 16), (1, 1))
    assert c == a and conversion(c, a) == "none"


@pytest.mark.parametrize(("shape", "warps"), [((64, 64), (4, 1)), ((128, 48), (2, 1)), ((64, 96), (1, 1))])
def test_a_wide_accumulator_is_the_a_operand_where_one_warp_spans_the_columns(shape, warps) -> None:
    assert conversion(accumulator_layout(shape, warps), operand_a_layout(shape, warps)) == "none"


def test_ragged_accumulator_feeds_a_by_padding_only() -> None:
    # 13 atoms of 8 columns against 7 k-steps of 16: the registers agree, the last half step is padding.
    c, a = accumulator_layout((16, 100), (1, 1)), operand_a_layout((16, 100), (1, 1))
    assert (c.shape, a.shape) == ((16, 104), (16, 112))
    assert conversion(c, a, (16, 100)) == "registers"


@pytest.mark.parametrize("atom", ATOMS, ids=lambda atom: atom.name)
@pytest.mark.parametrize(("shape", "warps"), BLOCKS)
def test_atoms_of_a_block(shape: tuple[int, int], warps: tuple[int, int], atom: MmaAtom) -> None:
    depth = 2 * atom.k
    c = accumulator_layout(shape, warps, atom)
    a = operand_a_layout((shape[0], depth), warps, atom)
    b = operand_b_layout((depth, shape[1]), warps, atom)
    assert mma_mismatch(atom, a, b, c) is None
    for layout, fragment in ((c, atom.c), (a, atom.a), (b, atom.b)):
        assert RegisterLayout.parse(str(layout)) == layout
        rows, columns = atom_counts(layout, fragment)
        size = fragment.size("register")
        assert rows * columns * size == layout.registers_per_thread
        coordinates = layout.all_coordinates()
        assert {tuple(e) for e in coordinates.reshape(-1, 2).tolist()} == set(np.ndindex(*layout.shape))
        inner = fragment.apply_array(register=np.arange(size)[None, :], lane=np.arange(LANES)[:, None])
        for warp in range(layout.warps):
            for i, j in np.ndindex(rows, columns):
                origin = atom_origin(layout, fragment, i, j, warp)
                first = size * (i * columns + j)
                assert (coordinates[warp, :, first : first + size] == inner + np.array(origin)).all()
    with pytest.raises(ValueError, match="outside"):
        atom_origin(c, atom.c, atom_counts(c, atom.c)[0], 0, 0)


def test_warps_interleave_rows_first() -> None:
    c = accumulator_layout((64, 64), (2, 2))
    assert atom_counts(c, M16N8K16_BF16.c) == (2, 4)
    assert [atom_origin(c, M16N8K16_BF16.c, 0, 0, warp) for warp in range(4)] == [(0, 0), (16, 0), (0, 16), (16, 16)]
    assert [atom_origin(c, M16N8K16_BF16.c, 1, j, 3) for j in range(4)] == [(48, 16), (48, 24), (48, 48), (48, 56)]


def test_operands_are_replicated_over_the_other_warps() -> None:
    a, b = operand_a_layout((64, 16), (2, 4)), operand_b_layout((16, 64), (2, 4))
    assert a.block.broadcast_bits("warp") == (1, 2) and b.block.broadcast_bits("warp") == (0,)


@pytest.mark.parametrize(
    ("columns", "warp_columns", "paired", "physical"),
    [
        (128, 1, True, 128),
        (100, 1, False, 104),
        (100, 2, False, 112),
        (8, 1, False, 8),
        (64, 4, True, 64),
        (63, 2, True, 64),
    ],
)
def test_pairs_cost_no_padding(columns: int, warp_columns: int, paired: bool, physical: int) -> None:
    assert pairs_columns(columns, warp_columns) is paired
    assert accumulator_layout((16, columns), (1, warp_columns)).shape[1] == physical


@pytest.mark.parametrize("atom", ATOMS, ids=lambda atom: atom.name)
@pytest.mark.parametrize(("shape", "warps"), BLOCKS)
def test_a_product_made_atom_by_atom(shape: tuple[int, int], warps: tuple[int, int], atom: MmaAtom) -> None:
    """Gather A and B into registers, multiply atom by atom as an emitter would, scatter C: the matrix product."""
    depth = 2 * atom.k
    c = accumulator_layout(shape, warps, atom)
    a = operand_a_layout((shape[0], depth), warps, atom)
    b = operand_b_layout((depth, shape[1]), warps, atom)
    rng = np.random.default_rng(0)
    a_tile, b_tile = rng.integers(-4, 5, a.shape), rng.integers(-4, 5, b.shape)
    a_registers, b_registers = (
        t[tuple(np.moveaxis(m.all_coordinates(), -1, 0))] for t, m in ((a_tile, a), (b_tile, b))
    )
    c_registers = np.zeros((c.warps, LANES, c.registers_per_thread), dtype=np.int64)
    (rows, columns), steps = atom_counts(c, atom.c), atom_counts(a, atom.a)[1]

    def index(fragment):
        place = fragment.apply_array(
            lane=np.arange(LANES)[:, None], register=np.arange(fragment.size("register"))[None, :]
        )
        return place[..., 0], place[..., 1]

    def registers(fragment, atom_index: int) -> slice:
        return slice(fragment.size("register") * atom_index, fragment.size("register") * (atom_index + 1))

    for warp in range(c.warps):
        for i, j, step in np.ndindex(rows, columns, steps):
            a_atom, b_atom = np.zeros((atom.m, atom.k), np.int64), np.zeros((atom.k, atom.n), np.int64)
            a_atom[index(atom.a)] = a_registers[warp, :, registers(atom.a, i * steps + step)]
            b_atom[index(atom.b)] = b_registers[warp, :, registers(atom.b, step * columns + j)]
            c_registers[warp, :, registers(atom.c, i * columns + j)] += (a_atom @ b_atom)[index(atom.c)]
    result = np.zeros(c.shape, np.int64)
    result[tuple(np.moveaxis(c.all_coordinates(), -1, 0))] = c_registers
    assert (result == (a_tile @ b_tile)[: c.shape[0], : c.shape[1]]).all()


def test_mma_mismatch_says_what_is_wrong() -> None:
    atom = M16N8K16_BF16
    c = accumulator_layout((64, 64), (2, 2))
    a, b = operand_a_layout((64, 32), (2, 2)), operand_b_layout((32, 64), (2, 2))
    assert mma_mismatch(atom, a, b, c) is None
    assert "A is not made of" in (mma_mismatch(atom, b, b, c) or "")
    assert "steps along k" in (mma_mismatch(atom, operand_a_layout((64, 16), (2, 2)), b, c) or "")
    assert "warps" in (mma_mismatch(atom, operand_a_layout((64, 32), (2, 1)), b, c) or "")
    assert "atoms" in (mma_mismatch(atom, operand_a_layout((64, 32), (1, 4)), b, c) or "")
    swapped = RegisterLayout.parse(str(a).replace("warps[[16,0],[0,0]]", "warps[[0,0],[16,0]]"))
    assert "other rows of A" in (mma_mismatch(atom, swapped, b, c) or "")
    swapped = RegisterLayout.parse(str(b).replace("warps[[0,0],[0,16]]", "warps[[0,16],[0,0]]"))
    assert "other columns of B" in (mma_mismatch(atom, a, swapped, c) or "")
    with pytest.raises(ValueError, match="along one axis, not along both of 3 \\* 3"):
        accumulator_layout((64, 64), (3, 3))


@pytest.mark.parametrize("warps", [(12, 1), (1, 12), (4, 3), (3, 4), (6, 2), (2, 6)])
def test_three_groups_of_warps_multiply(warps: tuple[int, int]) -> None:
    """Every warp has the rows of A and the columns of B that its part of C takes."""
    for atom, shape in itertools.product((M16N8K16_BF16, M16N8K8_TF32), ((192, 128), (384, 96), (100, 200))):
        c = accumulator_layout(shape, warps, atom)
        a = operand_a_layout((shape[0], 2 * atom.k), warps, atom)
        b = operand_b_layout((2 * atom.k, shape[1]), warps, atom)
        assert (c.warps, a.warps, b.warps) == (12, 12, 12) and mma_mismatch(atom, a, b, c) is None
        elements = c.all_coordinates().reshape(-1, 2)
        assert len(elements) == len(np.unique(elements, axis=0)) == math.prod(c.shape)
        fma = fma_layouts(shape, warps)
        assert (fma.accumulator.slice(1), fma.accumulator.slice(0)) == (fma.a, fma.b) and fma.a.warps == 12
        held = fma.accumulator.all_coordinates().reshape(-1, 2)
        assert len(np.unique(held, axis=0)) == math.prod(fma.accumulator.shape)
        assert all(p >= e for p, e in zip(fma.accumulator.shape, shape, strict=True))


def test_three_warpgroups_have_64_rows_each() -> None:
    layout = accumulator_layout((384, 64), (12, 1))
    for warp in range(12):
        rows = np.unique(layout.all_coordinates()[warp, :, :, 0])
        assert rows.tolist() == [16 * warp + row + turn for turn in (0, 192) for row in range(16)]
    assert matrices_at_once(layout) == 4


def test_atoms_load_by_conflict_free_ldmatrix() -> None:
    """The four 8x8 matrices of an A atom, and of a pair of B atoms (transposed), in one wavefront each."""
    a, b = operand_a_layout((128, 64), (4, 1)), operand_b_layout((64, 128), (1, 2))
    for layout, fragment, pair in ((a, M16N8K16_BF16.a, 1), (b, M16N8K16_BF16.b, 2)):
        shared = shared_layout(layout.shape[0], layout.shape[1], itemsize=2)
        rows, columns = atom_counts(layout, fragment)
        for i, j in np.ndindex(rows, columns // pair):
            row, col = atom_origin(layout, fragment, i, pair * j, 1)
            if pair == 2:
                assert atom_origin(layout, fragment, i, 2 * j + 1, 1) == (row, col + 8)
            addresses = [shared.offset(row + lane % 16, col + 8 * (lane // 16)) for lane in range(LANES)]
            assert ldmatrix_wavefronts(addresses) == 4


# Products without tensor cores --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "warps"),
    [((128, 128), (2, 4)), ((64, 100), (4, 1)), ((3, 5), (2, 2)), ((1, 100), (1, 4)), ((100, 1), (4, 1))],
)
@pytest.mark.parametrize("adjacent", [(False, True), (True, True), (False, False), (True, False)], ids=str)
def test_fma_layouts(shape: tuple[int, int], warps: tuple[int, int], adjacent: tuple[bool, bool]) -> None:
    layouts = fma_layouts(shape, warps, adjacent)
    accumulator = layouts.accumulator
    coordinates = accumulator.all_coordinates()
    assert accumulator.warps == warps[0] * warps[1]
    assert {tuple(e) for e in coordinates.reshape(-1, 2).tolist()} == set(np.ndindex(*accumulator.shape))
    assert all(physical >= extent for physical, extent in zip(accumulator.shape, shape, strict=True))
    for axis in (0, 1):
        wide = vector_registers(accumulator, axis, 4) is not None
        assert wide or not adjacent[axis] or shape[axis] < 4
    if adjacent[1]:
        assert accumulator.contiguous(1, 4) >= min(4, shape[1])
    # A thread finds both factors of each accumulator in its own registers.
    rows = layouts.a.all_coordinates()[:, :, list(accumulator.slice_map(1)), 0]
    columns = layouts.b.all_coordinates()[:, :, list(accumulator.slice_map(0)), 1]
    assert (rows == coordinates[..., 0]).all() and (columns == coordinates[..., 1]).all()


def test_fma_layout_of_a_large_tile() -> None:
    accumulator = fma_layouts((128, 128), (2, 4)).accumulator
    assert str(accumulator) == (
        "regs[[0,1],[0,2],[8,0],[16,0],[32,0]] lanes[[0,4],[0,8],[0,16],[1,0],[2,0]] "
        "warps[[4,0],[0,32],[0,64]] rep[2,1]"
    )


# Instructions of products -------------------------------------------------------------------------------------------


def test_every_format_has_an_instruction_of_its_depth_and_loads() -> None:
    assert set(FORMATS.values()) == set(PRODUCT_INSTRUCTIONS) | {FP8} == set(K_BLOCKS)  # wgmma alone multiplies fp8
    assert M16N8K32_FP8.k == K_BLOCKS[FP8] == WGMMA_INSTRUCTIONS["fp8_e4m3", "fp8_e4m3"].k
    for format_, instruction in PRODUCT_INSTRUCTIONS.items():
        assert instruction.atom is None or instruction.atom.k == K_BLOCKS[format_]
        assert instruction.function in device_header()
        found = multiplying_instruction(instruction.multiply, parse(instruction.operand))
        assert (found.function, found.atom) == (instruction.function, instruction.atom)
        assert found is instruction or instruction.parts > 1
    sources = {(dtype, f) for (*operands, _), f in FORMATS.items() for dtype in operands if f != FP8}
    assert sources == set(OPERAND_LOADS)
    for (source, format_), loads in OPERAND_LOADS.items():
        assert loads[1] == "ld_operand" or parse(source).bits == 16, "ldmatrix transposes 16-bit elements only"
        assert "ldmatrix" not in loads or source == PRODUCT_INSTRUCTIONS[format_].operand  # and so not of f32 in parts


@pytest.mark.parametrize("format_", K_BLOCKS)
def test_layouts_of_a_k_block_fit_their_instruction(format_: str) -> None:
    depth, atom = K_BLOCKS[format_], product_atom(format_)
    a, b, c = product_layouts(format_, (64, 100), depth, (2, 2))
    assert (a.shape[1], b.shape[0], a.shape[0], b.shape[1]) == (depth, depth, *c.shape)
    if atom is not None:
        assert mma_mismatch(atom, a, b, c) is None


def test_an_8x8_matrix_of_16_byte_rows_is_a_tf32_fragment_too() -> None:
    """ldmatrix gives lane l the bytes 4 (l % 4) to 4 (l % 4) + 3 of row l / 4: k = l % 4 of four-byte elements."""
    for fragment, k_axis in ((M16N8K8_TF32.a, 1), (M16N8K8_TF32.b, 0)):
        for lane in range(LANES):
            place = fragment.apply(register=0, lane=lane)
            assert (place[1 - k_axis], place[k_axis]) == (lane // 4, lane % 4)
    assert [M16N8K8_TF32.a.apply(register=r, lane=0) for r in range(4)] == [(0, 0), (8, 0), (0, 4), (8, 4)]


def test_vector_registers() -> None:
    a, b, _ = product_layouts("f16", (16, 16), 16, (1, 1))
    assert vector_registers(a, 1, 2) == [(0, 1), (2, 3), (4, 5), (6, 7)]  # k runs in pairs
    assert vector_registers(a, 1, 4) is None and vector_registers(a, 0, 2) is None
    assert vector_registers(b, 0, 2) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert vector_registers(b, 1, 2) is None and vector_registers(b, 1, 1) == [(r,) for r in range(8)]
    a, b, _ = product_layouts("f32", (64, 64), 8, (2, 2))
    for layout, axis in ((a, 1), (b, 0), (b, 1)):
        groups = vector_registers(layout, axis, 4)
        assert groups is not None
        assert sorted(r for group in groups for r in group) == list(range(layout.registers_per_thread))
        for lane, group in itertools.product((0, 5, 31), groups):
            places = [layout.coordinates(register, lane, 1) for register in group]
            assert [p[axis] - places[0][axis] for p in places] == [0, 1, 2, 3] and places[0][axis] % 4 == 0
            assert len({p[1 - axis] for p in places}) == 1
    assert vector_registers(a, 0, 2) is None  # rows are spread over lanes
