"""The figures of the PTX ISA against the compiler's tables, the emitted text, the device header and its CPU twin.

The compiler places operands by one table and the twin multiplies by another. Both could be wrong in the same way, and
everything that runs on a CPU would still agree; so each is held against the same literal figures, for every lane.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.dtypes import parse
from tessera.ir.core import Value
from tessera.ir.layout import LANES, LinearLayout
from tessera.ir.stages import allocation
from tessera.ir.types import buffer_layout, tile_layout
from tessera.runtime import emulator
from tessera.runtime.nvrtc import compile_cubin
from tessera.target.fragments import MMA_ATOMS, accumulator_layout, operand_a_layout, operand_b_layout
from tests.passes.test_products import product
from tests.runtime.test_programs import needs_nvrtc
from tests.target import fragment_figures as figures


class Figures(NamedTuple):
    """The figures of one mma instruction."""

    a: str
    b: str
    c: str


INSTRUCTIONS = {
    "bf16": Figures(figures.A_M16N8K16, figures.B_M16N8K16, figures.C_M16N8K16),
    "f16": Figures(figures.A_M16N8K16, figures.B_M16N8K16, figures.C_M16N8K16),
    "tf32": Figures(figures.A_M16N8K8_TF32, figures.B_M16N8K8_TF32, figures.C_M16N8K8),
}
STORAGE = {"bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16), "tf32": np.dtype(np.float32)}
MATRICES = {False: figures.LDMATRIX_M8N8, True: figures.LDMATRIX_M8N8_TRANS}
ADDRESSES = {1: figures.LDMATRIX_X1_ADDRESSES, 2: figures.LDMATRIX_X2_ADDRESSES, 4: figures.LDMATRIX_X4_ADDRESSES}
FORMS = [(count, transposed) for transposed in (False, True) for count in (1, 2, 4)]


# Reading the figures ------------------------------------------------------------------------------------------------


def cells(figure: str) -> dict[tuple[int, str], tuple[int, int]]:
    """(lane, name of the element) -> (row, column)."""
    places = {}
    for row, line in enumerate(figure.strip().splitlines()):
        label, body = line.split("|")
        assert label.split() == ["row", str(row)]
        names = [(int(lane), name) for lane, group in re.findall(r"T(\d+):(\S+)", body) for name in split(group)]
        for column, element in enumerate(names):
            assert element not in places, f"{element} stands twice in the figure"
            places[element] = (row, column)
    return places


def split(group: str) -> list[str]:
    return group.strip("{}").split(",")


def elements(figure: str) -> np.ndarray:
    """The figure of an mma operand as an array [lane, element, 2] of row and column."""
    places = cells(figure)
    count = len(places) // LANES
    letter = next(iter(places))[1][0]
    return np.array([[places[lane, f"{letter}{i}"] for i in range(count)] for lane in range(LANES)])


def address_lanes(table: str) -> list[list[int]]:
    """By matrix, the lanes that give the addresses of its rows."""
    lines = [line.split("|") for line in table.strip().splitlines()]
    assert [label.strip() for label, _ in lines] == [f"r{matrix}" for matrix in range(len(lines))]
    return [[int(lane) for lane in re.findall(r"T(\d+)", body)] for _, body in lines]


def exchanged(figure: str, one: str, other: str) -> str:
    """The figure with two names exchanged, as a slip of the pen would have it."""
    names = {one: other, other: one}
    wrong = re.sub(rf"\b({one}|{other})\b", lambda match: names[match[0]], figure)
    assert wrong != figure
    return wrong


@pytest.mark.parametrize("operand", INSTRUCTIONS)
def test_every_lane_and_cell_stands_in_the_figures_once(operand: str) -> None:
    atom = MMA_ATOMS[operand]
    for figure, shape in zip(INSTRUCTIONS[operand], ((16, atom.k), (atom.k, 8), (16, 8)), strict=True):
        table = elements(figure)
        assert LANES == len(table) == 32
        assert sorted(map(tuple, table.reshape(-1, 2).tolist())) == list(np.ndindex(*shape))


def test_every_lane_and_cell_stands_in_the_figures_of_ldmatrix_once() -> None:
    for figure in MATRICES.values():
        places = cells(figure)
        assert sorted(places) == [(lane, half) for lane in range(LANES) for half in ("hi", "lo")]
        assert sorted(places.values()) == list(np.ndindex(8, 8))
    for count, table in ADDRESSES.items():
        assert np.shape(address_lanes(table)) == (count, 8)


# The compiler's tables ----------------------------------------------------------------------------------------------


def assert_fragment(fragment: LinearLayout, figure: str) -> None:
    """The fragment of an MmaAtom holds what the figure says in every register of every lane."""
    table = elements(figure)
    assert (fragment.size("lane"), fragment.size("register")) == table.shape[:2]
    for lane, places in enumerate(table.tolist()):
        assert [list(fragment.apply(register=r, lane=lane)) for r in range(len(places))] == places, f"lane {lane}"


@pytest.mark.parametrize("operand", INSTRUCTIONS)
def test_atoms_are_those_of_the_figures(operand: str) -> None:
    atom, drawn = MMA_ATOMS[operand], INSTRUCTIONS[operand]
    assert_fragment(atom.a, drawn.a)
    assert_fragment(atom.b, drawn.b)
    assert_fragment(atom.c, drawn.c)


@pytest.mark.parametrize("operand", INSTRUCTIONS)
def test_layouts_of_one_atom_are_those_of_the_figures(operand: str) -> None:
    atom, drawn, warps = MMA_ATOMS[operand], INSTRUCTIONS[operand], (1, 1)
    assert (operand_a_layout((16, atom.k), warps, atom).all_coordinates()[0] == elements(drawn.a)).all()
    assert (operand_b_layout((atom.k, 8), warps, atom).all_coordinates()[0] == elements(drawn.b)).all()
    assert (accumulator_layout((16, 8), warps, atom).all_coordinates()[0] == elements(drawn.c)).all()


def test_every_instruction_is_held_against_figures() -> None:
    assert set(INSTRUCTIONS) == set(MMA_ATOMS)


# The twin -----------------------------------------------------------------------------------------------------------

MULTIPLY = """
TS_KERNEL(multiply_{operand}, 32)(const ts_u32* TS_RESTRICT a, const ts_u32* TS_RESTRICT b,
                                  const float* TS_RESTRICT c, float* TS_RESTRICT out) {{
    const ts_i64 lane = ts_block_id(0) * 32 + ts_lane();
    ts_u32 a_words[4], b_words[2];
    float values[4];
    ts_ld_global<ts_u32, 4>(a_words, a + lane * 4);
    ts_ld_global<ts_u32, 2>(b_words, b + lane * 2);
    ts_ld_global<float, 4>(values, c + lane * 4);
    ts_mma_{shape}_{operand}(values, a_words, b_words);
    ts_st_global<float, 4>(out + lane * 4, values);
}}
"""
# 64 rows of 16 bytes through every form of ldmatrix: offsets[.num][lane], out[form][register][lane].
LOAD = """
TS_KERNEL(load, 32)(const ts_u32* TS_RESTRICT rows, const ts_u32* TS_RESTRICT offsets, ts_u32* TS_RESTRICT out) {
    TS_SHARED(shared);
    ts_u32 words[8];
    ts_ld_global<ts_u32, 4>(words, rows + ts_lane() * 8);
    ts_ld_global<ts_u32, 4>(words + 4, rows + ts_lane() * 8 + 4);
    ts_st_shared<ts_u32, 4>(shared + ts_lane() * 32, words);
    ts_st_shared<ts_u32, 4>(shared + ts_lane() * 32 + 16, words + 4);
    ts_warp_barrier();
    ts_u32 at[3], r[6][4];
    TS_UNROLL
    for (int i = 0; i < 3; ++i) ts_ld_global<ts_u32, 1>(at + i, offsets + i * 32 + ts_lane());
    TS_UNROLL
    for (int i = 0; i < 24; ++i) r[i / 4][i % 4] = 0xFFFFFFFFu;
    ts_ldmatrix_x1(r[0], shared + at[0]);
    ts_ldmatrix_x2(r[1], shared + at[1]);
    ts_ldmatrix_x4(r[2], shared + at[2]);
    ts_ldmatrix_x1_trans(r[3], shared + at[0]);
    ts_ldmatrix_x2_trans(r[4], shared + at[1]);
    ts_ldmatrix_x4_trans(r[5], shared + at[2]);
    TS_UNROLL
    for (int i = 0; i < 24; ++i) ts_st_global<ts_u32, 1>(out + i * 32 + ts_lane(), &r[i / 4][i % 4]);
}
"""


KERNELS = [MULTIPLY.format(operand=atom.operand, shape=atom.name) for atom in MMA_ATOMS.values()] + [LOAD]
TEXT = "\n".join(['#include "tessera_device.h"', *KERNELS])


@functools.cache
def twin() -> emulator.Library:
    return emulator.build(TEXT, [*(f"multiply_{operand}" for operand in MMA_ATOMS), "load"])


def registers(matrices: np.ndarray, figure: str) -> np.ndarray:
    """Matrices [case, row, column] as 32-bit registers [case, lane, register], placed by the figure."""
    rows, columns = np.moveaxis(elements(figure), -1, 0)
    return np.ascontiguousarray(matrices[:, rows, columns]).view(np.uint32)


def multiplied(operand: str, drawn: Figures, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a @ b of each case, as the twin's mma makes it from fragments placed and read by the figures."""
    out = np.full((len(a), LANES, 4), np.nan, np.float32)
    accumulators = registers(c, drawn.c).view(np.float32)
    arguments = [registers(a, drawn.a), registers(b, drawn.b), accumulators, out]
    twin().launch(f"multiply_{operand}", (len(a),), 32, 0, arguments)
    result = np.full(c.shape, np.nan, np.float32)
    rows, columns = np.moveaxis(elements(drawn.c), -1, 0)
    result[:, rows, columns] = out
    return result


def defined_product(operand: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, ascending: bool = True) -> np.ndarray:
    """The bits that semantics define: a float64 sum of the block in ascending k from +0, then one rounding of c + sum.

    The tf32 instruction ignores the low 13 bits of its operands.
    """
    if operand == "tf32":
        a, b = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b))
    total = np.zeros(c.shape)
    for k in range(a.shape[2])[:: 1 if ascending else -1]:
        total += a[:, :, k, None].astype(np.float64) * b[:, k, None, :].astype(np.float64)
    return (c.astype(np.float64) + total).astype(np.float32)


def assert_multiplies(operand: str, drawn: Figures, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    """The twin's mma on fragments placed by the figures is the defined product, bit for bit."""
    got, expected = multiplied(operand, drawn, a, b, c), defined_product(operand, a, b, c)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def random_product(operand: str, cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(cases)
    depth, dtype = MMA_ATOMS[operand].k, STORAGE[operand]
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((cases, 16, depth), (cases, depth, 8)))
    return a.astype(dtype), b.astype(dtype), rng.standard_normal((cases, 16, 8), np.float32)


@pytest.mark.parametrize("operand", INSTRUCTIONS)
def test_the_twin_multiplies_each_element_alone(operand: str) -> None:
    """One 1 in A, at each place in turn, picks a row of B, whose elements all differ: the place of every element."""
    depth, dtype = MMA_ATOMS[operand].k, STORAGE[operand]
    cases = 16 * depth
    a = np.eye(cases).reshape(cases, 16, depth).astype(dtype)
    b = np.broadcast_to(1 + np.arange(depth * 8).reshape(1, depth, 8), (cases, depth, 8)).astype(dtype)
    assert len(np.unique(b)) == depth * 8
    c = np.zeros((cases, 16, 8), np.float32)
    expected = np.where(np.any(a, axis=2, keepdims=True), b[0][np.arange(cases) % depth, None], 0)
    np.testing.assert_array_equal(multiplied(operand, INSTRUCTIONS[operand], a, b, c), expected.astype(np.float32))


@pytest.mark.parametrize("operand", INSTRUCTIONS)
def test_the_twin_makes_the_defined_bits(operand: str) -> None:
    assert_multiplies(operand, INSTRUCTIONS[operand], *random_product(operand, 64))


@pytest.mark.parametrize("operand", INSTRUCTIONS)
def test_the_twin_sums_in_ascending_k(operand: str) -> None:
    """Large products that cancel over small ones: the sum depends on its order, even in float64."""
    rng = np.random.default_rng(0)
    cases, depth, dtype = 32, MMA_ATOMS[operand].k, STORAGE[operand]
    magnitude = np.where(rng.integers(0, 2, (cases, depth)), 2.0**14, 2.0**-14)
    a = (rng.integers(-2, 3, (cases, 16, depth)) * magnitude[:, None, :]).astype(dtype)
    b = (rng.integers(-2, 3, (cases, depth, 8)) * magnitude[:, :, None]).astype(dtype)
    c = rng.standard_normal((cases, 16, 8), np.float32) * np.float32(2.0**-28)
    assert (defined_product(operand, a, b, c) != defined_product(operand, a, b, c, ascending=False)).mean() > 0.01
    assert_multiplies(operand, INSTRUCTIONS[operand], a, b, c)


def assert_loads(count: int, transposed: bool, matrix: str, addresses: str) -> None:
    """The twin's ldmatrix delivers what the figures say: rows at random places, every 16-bit element different.

    Lanes whose address is not used point at rows of no matrix.
    """
    slots = np.random.default_rng(count).permutation(64)
    values = np.arange(64 * 8, dtype=np.uint16).reshape(64, 8)
    image = np.empty_like(values)
    image[slots] = values
    lanes = address_lanes(addresses)
    rows = np.arange(LANES) + 32
    for number, row_lanes in enumerate(lanes):
        rows[row_lanes] = np.arange(8) + 8 * number
    offsets = np.tile(16 * slots[rows].astype(np.uint32), (3, 1))
    out = np.zeros((len(FORMS), 4, LANES), np.uint32)
    twin().launch("load", (1,), 32, 1024, [image.view(np.uint32), offsets, out])
    expected = np.full((4, LANES, 2), 0xFFFF, np.uint16)
    for number in range(len(lanes)):
        for (lane, half), (row, column) in cells(matrix).items():
            expected[number, lane, ("lo", "hi").index(half)] = values[8 * number + row, column]
    got = out[FORMS.index((count, transposed))]
    np.testing.assert_array_equal(got, expected.view(np.uint32)[..., 0])


@pytest.mark.parametrize(("count", "transposed"), FORMS)
def test_the_twin_loads_matrices_by_the_figures(count: int, transposed: bool) -> None:
    assert_loads(count, transposed, MATRICES[transposed], ADDRESSES[count])


# The device header --------------------------------------------------------------------------------------------------


@needs_nvrtc
def test_the_device_hands_registers_to_the_instructions_in_the_order_of_the_figures() -> None:
    """In the PTX of the kernels above: what was loaded as a[0], a[1], ... stands in that order in the instruction."""
    ptx = compile_cubin(TEXT, "sm_80", "fragments", want_ptx=True).ptx
    assert ptx is not None
    *products, loads = ptx.split(".entry")[1:]
    for atom, body in zip(MMA_ATOMS.values(), products, strict=True):
        same = dict(re.findall(r"mov\.b32\s+(%\w+), (%\w+);", body))
        a, b, c = (found.split(", ") for found in re.findall(r"ld\.global\.v\d\.\w+\s+\{(.*?)\}", body))
        name, *operands = re.findall(r"(mma\.sync\S+)\s+\{(.*?)\}, \{(.*?)\}, \{(.*?)\}, \{(.*?)\};", body)[0]
        d, *taken = (operand.split(", ") for operand in operands)
        (stored,) = re.findall(r"st\.global\.v4\.\w+\s+\[\S+\], \{(.*?)\}", body)
        assert name == atom.instruction
        assert [[same.get(x, x) for x in operand] for operand in taken] == [a, b, c]
        assert [same.get(x, x) for x in stored.split(", ")] == d
    found = re.findall(r"ldmatrix\.sync\.aligned\.m8n8\.x(\d)(\.trans)?\.shared\.b16\s+\{(.*?)\}", loads)
    assert [(int(count), bool(trans)) for count, trans, _ in found] == FORMS
    received = [name for _, _, names in found for name in names.split(", ")]
    stored = re.findall(r"st\.global\.u32\s+\[\S+\], (%r\d+);", loads)
    assert [name for name in stored if name in received] == received and len(stored) == 4 * len(FORMS)


# The emitted text ---------------------------------------------------------------------------------------------------

EMITTED = [
    *(("bf16", None, a, b, 32) for a in (False, True) for b in (False, True)),
    ("f16", None, False, False, 32),
    ("bf16", None, False, False, 24),  # an odd number of atoms of B: ldmatrix.x4 and .x2
    ("bf16", None, False, True, 24),
    ("f32", "tf32", False, True, 32),  # the form of f32 operands that ldmatrix serves
]


def address_of(argument: str, lane: int, buffer: Value) -> int:
    """The byte of the buffer that a lane of warp 0 gives to ldmatrix in the first k-block and the first stage."""
    layout, start = buffer_layout(buffer.type), allocation(buffer).defining_op.attributes["offset"]
    text = re.sub(r"\bS\d+", "S", argument.replace("(int)", ""))
    names = dict.fromkeys(re.findall(r"\bL\d+_w\d\b|\bk_\d+\b|\b\w+_turn\b", text), 0)
    parts = {"S": layout.offset, "S_x": lambda *at: layout.split(*at)[0], "S_a": lambda *at: layout.split(*at)[1]}
    return eval(text, {"__builtins__": {}}, {**names, **parts, "ts_lane": lambda: lane, "shared_base": -start})


def assert_emitted_loads(format_: tuple, drawn: Figures, matrices: dict[bool, str], addresses: dict[int, str]) -> None:
    """Each ldmatrix of a kernel's text, fed and read by the figures, brings its operand's fragments."""
    dtype, precision, transpose_a, transpose_b, columns = format_
    definition = product("k", parse(dtype), parse(dtype), precision, transpose_a, transpose_b, (128, columns, 32))
    compilation = compile_kernel(definition, {"M": 64, "N": 64, "K": 64})
    item = parse(dtype).bits // 8
    ops = [op for op in compilation.target.kernel().body.walk() if op.name == "ldmatrix"]
    calls = re.findall(r"ts_ldmatrix_x(\d)(_trans)?\(\w+ \+ (\d+), (shared_base .*)\);", compilation.cuda[0].text)
    assert [op.attributes["role"] for op in ops] == ["a", "b"]
    assert {int(count) for count, *_ in calls} == ({4} if columns == 32 else {2, 4})
    for op in ops:
        layout = tile_layout(op.result.type)
        fragment = elements(drawn.a if op.attributes["role"] == "a" else drawn.b)
        words = {}
        while len(words) < layout.registers_per_thread * item // 4:
            count, trans, first, argument = calls.pop(0)
            for number, row_lanes in enumerate(address_lanes(addresses[int(count)])):
                words[int(first) + number] = (matrices[bool(trans)], row_lanes, argument)
        for word, (matrix, row_lanes, argument) in words.items():
            for (lane, half), (row, column) in cells(matrix).items():
                element, within = divmod(4 * word + 2 * ("lo", "hi").index(half), item)
                atom, index = divmod(element, fragment.shape[1])
                place = fragment[lane, index] + layout.coordinates(atom * fragment.shape[1], 0, 0)
                if op.attributes["transposed"]:
                    place = place[::-1]
                start = address_of(argument, row_lanes[row], op.operands[0])
                expected = buffer_layout(op.operands[0].type).offset(*map(int, place)) + within
                assert start + 2 * column == expected, (op, word)
    assert not calls


def figures_of(format_: tuple) -> Figures:
    return INSTRUCTIONS[format_[1] or format_[0]]


@pytest.mark.parametrize("format_", EMITTED, ids=lambda format_: "-".join(map(str, format_)))
def test_emitted_ldmatrix_brings_the_fragments_of_the_figures(format_: tuple) -> None:
    assert_emitted_loads(format_, figures_of(format_), MATRICES, ADDRESSES)


# Do the checks see a wrong table? -----------------------------------------------------------------------------------

SLIPS = [
    ("a", "a1", "a2"),
    ("a", "T1", "T4"),
    ("b", "b0", "b1"),
    ("b", "T1", "T4"),
    ("c", "c1", "c2"),
    ("c", "T1", "T4"),
]


@pytest.mark.parametrize(("matrix", "one", "other"), SLIPS)
@pytest.mark.parametrize("operand", INSTRUCTIONS)
def test_a_wrong_figure_is_seen_in_the_compiler_and_in_the_twin(
    operand: str, matrix: str, one: str, other: str
) -> None:
    drawn, atom = INSTRUCTIONS[operand], MMA_ATOMS[operand]
    right = getattr(drawn, matrix)
    wrong = exchanged(right, one, other)
    assert_fragment(getattr(atom, matrix), right)
    with pytest.raises(AssertionError):
        assert_fragment(getattr(atom, matrix), wrong)
    values = random_product(operand, 1)
    assert_multiplies(operand, drawn, *values)
    with pytest.raises(AssertionError):
        assert_multiplies(operand, drawn._replace(**{matrix: wrong}), *values)


@pytest.mark.parametrize(("count", "transposed"), FORMS)
def test_a_wrong_figure_of_ldmatrix_is_seen(count: int, transposed: bool) -> None:
    matrix, addresses = MATRICES[transposed], ADDRESSES[count]
    for wrong in (exchanged(matrix, "T1", "T4"), exchanged(matrix, "lo", "hi"), MATRICES[not transposed]):
        with pytest.raises(AssertionError):
            assert_loads(count, transposed, wrong, addresses)
    with pytest.raises(AssertionError):
        assert_loads(count, transposed, matrix, exchanged(addresses, "T2", "T5"))


@pytest.mark.parametrize("format_", [EMITTED[0], EMITTED[-1]], ids=["bf16", "tf32"])
def test_a_wrong_figure_is_seen_in_the_emitted_text(format_: tuple) -> None:
    drawn = figures_of(format_)
    wrong = exchanged(drawn.a, "a1", "a2"), exchanged(drawn.b, "b0", "b1")
    for figures_ in (drawn._replace(a=wrong[0]), drawn._replace(b=wrong[1])):
        with pytest.raises(AssertionError):
            assert_emitted_loads(format_, figures_, MATRICES, ADDRESSES)
    with pytest.raises(AssertionError):
        assert_emitted_loads(format_, drawn, MATRICES, {4: exchanged(ADDRESSES[4], "T8", "T16")})
    with pytest.raises(AssertionError):
        assert_emitted_loads(format_, drawn, {True: MATRICES[False], False: MATRICES[True]}, ADDRESSES)
