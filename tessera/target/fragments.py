"""Tensor-core instructions as data: their shapes, and which lane holds which element in which register.

The layouts are those of the figures "Matrix Fragments for mma.m16n8k16 / mma.m16n8k8" of the PTX ISA, and of 8-bit
operands, which only wgmma takes here, of "mma.m16n8k32".  An operand's coordinates are as in mathematics: A is (m, k),
B is (k, n), C is (m, n).  A register of a layout is one element; where elements are 16 bits wide, two of them share a
32-bit register: element register = 2 * (32-bit register) + half.

A block-level layout places these atoms over a CTA of wm * wn warps, warp = warp_row + warp_column * wm; of a grid such
as 12 * 1 or 4 * 3 the three groups of 4 warps (`warp_groups`) lie along the axis that is no power of two.  Atoms are
interleaved over the warps, so that the padding of a ragged extent is at most one atom for each warp.  Registers are
grouped by atom: register = atom.registers * (i * count of j + j) + register of the atom, for atom row i and atom
column j of the warp, so an emitter may loop over atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from tessera.dtypes import DType
from tessera.ir.layout import LANES, LinearLayout, RegisterLayout, warp_groups
from tessera.ir.layout_linear import bit_count, power_of_two_above
from tessera.ir.products import FP8, SPLIT, SPLIT_PARTS

__all__ = [
    "LDMATRIX_ROW_BYTES",
    "M16N8K8_TF32",
    "M16N8K16_BF16",
    "M16N8K16_F16",
    "M16N8K32_FP8",
    "MMA_ATOMS",
    "OPERAND_LOADS",
    "PRODUCT_INSTRUCTIONS",
    "FmaLayouts",
    "MmaAtom",
    "ProductInstruction",
    "accumulator_layout",
    "adjacent_atoms",
    "atom_counts",
    "atom_origin",
    "fma_layouts",
    "grid_rows",
    "matrices_at_once",
    "mma_mismatch",
    "multiplying_instruction",
    "operand_a_layout",
    "operand_b_layout",
    "pairs_columns",
    "product_atom",
    "product_layouts",
    "vector_registers",
]


def _fragment(registers: Sequence[tuple[int, int]], four_axis: int, four_step: int) -> LinearLayout:
    """lane % 4 steps `four_step` along `four_axis`, lane / 4 steps 1 along the other axis."""
    steps = [four_step, 2 * four_step], [1, 2, 4]
    along_rows, along_columns = steps if four_axis == 0 else steps[::-1]
    rows, columns = [(step, 0) for step in along_rows], [(0, step) for step in along_columns]
    return LinearLayout.of(2, register=registers, lane=rows + columns if four_axis == 0 else columns + rows)


@dataclass(frozen=True)
class MmaAtom:
    """One mma.sync instruction: D(m, n) = A(m, k) * B(k, n) + C(m, n), accumulated in f32.

    `a`, `b`, `c` map (register, lane) to coordinates, one register per element; `operand_bits` is the width of an
    element of A and B.
    """

    name: str
    operand: str
    operand_bits: int
    m: int
    n: int
    k: int
    a: LinearLayout
    b: LinearLayout
    c: LinearLayout

    @property
    def instruction(self) -> str:
        return f"mma.sync.aligned.{self.name}.row.col.f32.{self.operand}.{self.operand}.f32"

    @property
    def a_words(self) -> int:
        """32-bit registers of A in one thread."""
        return self.a.size("register") * self.operand_bits // 32

    @property
    def b_words(self) -> int:
        return self.b.size("register") * self.operand_bits // 32

    @property
    def c_words(self) -> int:
        return self.c.size("register")


# c0, c1: row lane/4, columns (lane%4)*2 + {0, 1}; c2, c3: 8 rows below.
_C_M16N8 = _fragment(registers=[(0, 1), (8, 0)], four_axis=1, four_step=2)


def _m16n8k16(operand: str) -> MmaAtom:
    return MmaAtom(
        name="m16n8k16",
        operand=operand,
        operand_bits=16,
        m=16,
        n=8,
        k=16,
        # a0, a1: row lane/4, k (lane%4)*2 + {0, 1}; a2, a3: row + 8; a4, a5: k + 8; a6, a7: both.
        a=_fragment(registers=[(0, 1), (8, 0), (0, 8)], four_axis=1, four_step=2),
        # b0, b1: k (lane%4)*2 + {0, 1}, column lane/4; b2, b3: k + 8.
        b=_fragment(registers=[(1, 0), (8, 0)], four_axis=0, four_step=2),
        c=_C_M16N8,
    )


M16N8K16_BF16 = _m16n8k16("bf16")
M16N8K16_F16 = _m16n8k16("f16")
M16N8K8_TF32 = MmaAtom(
    name="m16n8k8",
    operand="tf32",
    operand_bits=32,
    m=16,
    n=8,
    k=8,
    # a0: row lane/4, k lane%4; a1: row + 8; a2: k + 4; a3: both.
    a=_fragment(registers=[(8, 0), (0, 4)], four_axis=1, four_step=1),
    # b0: k lane%4, column lane/4; b1: k + 4.
    b=_fragment(registers=[(4, 0)], four_axis=0, four_step=1),
    c=_C_M16N8,
)

# What each warp of a warpgroup has of products of 8-bit operands.
M16N8K32_FP8 = MmaAtom(
    name="m16n8k32",
    operand="fp8",
    operand_bits=8,
    m=16,
    n=8,
    k=32,
    # a0 to a3: row lane/4, k (lane%4)*4 + {0, 1, 2, 3}; a4 to a7: row + 8; a8 to a11: k + 16; a12 to a15: both.
    a=_fragment(registers=[(0, 1), (0, 2), (8, 0), (0, 16)], four_axis=1, four_step=4),
    # b0 to b3: k (lane%4)*4 + {0, 1, 2, 3}, column lane/4; b4 to b7: k + 16.
    b=_fragment(registers=[(1, 0), (2, 0), (16, 0)], four_axis=0, four_step=4),
    c=_C_M16N8,
)

MMA_ATOMS: dict[str, MmaAtom] = {atom.operand: atom for atom in (M16N8K16_BF16, M16N8K16_F16, M16N8K8_TF32)}


# What a product runs as ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProductInstruction:
    """How a warp runs products of one format. Formats and k-blocks are those of `tessera.ir.products`.

    `multiply` is the Target op of one k-block, which runs for each of `parts` of the left operand, and `operand` the
    dtype of its fragments; `atom` is its instruction, None where there is none; `function` the device function of one
    atom; `rounding` the Target op that brings operands into the format, or "".
    """

    multiply: str
    operand: str
    atom: MmaAtom | None
    function: str
    rounding: str = ""
    parts: int = 1


PRODUCT_INSTRUCTIONS: dict[str, ProductInstruction] = {
    "bf16": ProductInstruction("mma_sync", "bf16", M16N8K16_BF16, "ts_mma_m16n8k16_bf16"),
    SPLIT: ProductInstruction("mma_sync", "bf16", M16N8K16_BF16, "ts_mma_m16n8k16_bf16", parts=SPLIT_PARTS),
    "f16": ProductInstruction("mma_sync", "f16", M16N8K16_F16, "ts_mma_m16n8k16_f16"),
    "tf32": ProductInstruction("mma_sync", "f32", M16N8K8_TF32, "ts_mma_m16n8k8_tf32", "round_tf32"),
    "f32": ProductInstruction("fma_block", "f32", None, "ts_fma_block8"),
}


def product_atom(format_: str) -> MmaAtom | None:
    """The atom of a format, of warps or of a warp in a warpgroup; None where there is none."""
    return M16N8K32_FP8 if format_ == FP8 else PRODUCT_INSTRUCTIONS[format_].atom


LINE_BLOCK = 32  # columns that a reduction along rows takes at a time
LDMATRIX_ROW_BYTES = 16  # of a matrix, what its row addresses must be multiples of

# The Target op that loads an operand, by its dtype in shared memory and its format: (the buffer's rows run along k,
# they run across k). ldmatrix transposes 16-bit elements only; along k it also serves 4-byte ones, since a row of 16
# bytes goes to four lanes, 4 bytes each, whatever the elements are.
OPERAND_LOADS: dict[tuple[str, str], tuple[str, str]] = {
    ("bf16", "bf16"): ("ldmatrix", "ldmatrix"),
    ("f32", SPLIT): ("ld_operand", "ld_operand"),
    ("bf16", SPLIT): ("ldmatrix", "ldmatrix"),
    ("f16", "f16"): ("ldmatrix", "ldmatrix"),
    ("fp8_e4m3", "f16"): ("ld_operand", "ld_operand"),
    ("fp8_e5m2", "f16"): ("ld_operand", "ld_operand"),
    ("f32", "tf32"): ("ldmatrix", "ld_operand"),
    ("f32", "f32"): ("ld_operand", "ld_operand"),
}


def multiplying_instruction(multiply: str, operand: DType) -> ProductInstruction:
    """The row of a Target product by the name of its op and the dtype of its operands."""
    return next(x for x in PRODUCT_INSTRUCTIONS.values() if x.multiply == multiply and x.operand == operand.name)


# Block-level layouts ------------------------------------------------------------------------------------------------


def grid_rows(warps: int) -> tuple[int, ...]:
    """The rows that a grid of so many warps can have, fewest first: 1, 2, 4 of 4 warps, 1, 2, 3, 4, 6, 12 of 12."""
    return tuple(rows for rows in range(1, warps + 1) if warps % rows == 0)


def _grid(warps: tuple[int, int]) -> tuple[tuple[int, int], int, int | None]:
    """A grid of warps as one of powers of two, the number of its groups, and the axis along which they lie."""
    groups = [warp_groups(count) for count in warps]
    if min(groups) > 1:
        raise ValueError(f"groups of warps lie along one axis, not along both of {warps[0]} * {warps[1]}")
    axis = groups.index(max(groups)) if max(groups) > 1 else None
    return (warps[0] // groups[0], warps[1] // groups[1]), max(groups), axis


def pairs_columns(columns: int, warp_columns: int, atom: MmaAtom = M16N8K16_BF16) -> bool:
    """Whether a warp holds its n8 atoms in adjacent pairs, which lets one ldmatrix.x4 load B for two of them.

    So it is wherever pairs need no more padding than single atoms: 128 columns, but not 100 (13 atoms).
    """
    single, pair = atom.n * warp_columns, 2 * atom.n * warp_columns
    return -columns % pair == -columns % single


def _place(
    atom: LinearLayout, shape: Sequence[int], warps: tuple[int, int], along_m: bool, along_n: bool, adjacent: int
) -> RegisterLayout:
    """Repeat an atom: `adjacent` ones along axis 1, then warps along the axes that they divide, then repeats."""
    block = atom.product(LinearLayout.of(2, register=[(0, 1 << bit) for bit in range(bit_count(adjacent))]))
    powers, groups, axis = _grid(warps)
    rows, columns = (bit_count(count) for count in powers)
    warp_bits = [(1 << bit if along_m else 0, 0) for bit in range(rows)]
    warp_bits += [(0, 1 << bit if along_n else 0) for bit in range(columns)]
    block = block.product(LinearLayout.of(2, warp=warp_bits))
    if min(shape) < 1:
        raise ValueError(f"shape {tuple(shape)} has an empty axis")
    axis = None if axis is None or not (along_m, along_n)[axis] else axis
    one = RegisterLayout(block, (1, 1), groups, axis)
    repeats = tuple(-(-extent // step) for extent, step in zip(shape, one.repeat_shape, strict=True))
    return replace(one, repeats=repeats)


def adjacent_atoms(columns: int, warp_columns: int, atom: MmaAtom = M16N8K16_BF16, lines: bool = False) -> int:
    """How many n8 atoms a warp holds side by side. `lines`: rows will be reduced, blocks of 32 columns in a warp."""
    if lines and warp_columns > 1:
        return LINE_BLOCK // atom.n
    return 2 if pairs_columns(columns, warp_columns, atom) else 1


def accumulator_layout(
    shape: tuple[int, int], warps: tuple[int, int], atom: MmaAtom = M16N8K16_BF16, lines: bool = False
) -> RegisterLayout:
    """C of (M, N) over wm * wn warps: f32, register = 4 * (i * nj + j) + e with e = 0..3 for c0..c3 of the atom."""
    return _place(atom.c, shape, warps, True, True, adjacent_atoms(shape[1], warps[1], atom, lines))


def operand_a_layout(shape: tuple[int, int], warps: tuple[int, int], atom: MmaAtom = M16N8K16_BF16) -> RegisterLayout:
    """A of (M, K) over the same warps: every warp column holds a copy.  Atom (i, j) is row block i, k-step j."""
    return _place(atom.a, shape, warps, True, False, 1)


def operand_b_layout(
    shape: tuple[int, int], warps: tuple[int, int], atom: MmaAtom = M16N8K16_BF16, lines: bool = False
) -> RegisterLayout:
    """B of (K, N) over the same warps: every warp row holds a copy.  Atom (i, j) is k-step i, column block j."""
    return _place(atom.b, shape, warps, False, True, adjacent_atoms(shape[1], warps[1], atom, lines))


def atom_counts(layout: RegisterLayout, atom: LinearLayout) -> tuple[int, int]:
    """How many atoms one warp holds along each axis: (mi, nj) for C, (mi, k-steps) for A, (k-steps, nj) for B.

    `atom` is the field of MmaAtom (`a`, `b` or `c`) that `layout` was made from.
    """
    return layout.repeats[0], layout.repeats[1] * (layout.block_registers // atom.size("register"))


def atom_origin(layout: RegisterLayout, atom: LinearLayout, i: int, j: int, warp: int) -> tuple[int, int]:
    """The first coordinates of atom (i, j) of a warp."""
    rows, columns = atom_counts(layout, atom)
    if not (0 <= i < rows and 0 <= j < columns):
        raise ValueError(f"atom ({i}, {j}) is outside the {rows} x {columns} atoms of a warp")
    row, column = layout.coordinates(atom.size("register") * (i * columns + j), 0, warp)
    return row, column


def mma_mismatch(atom: MmaAtom, a: RegisterLayout, b: RegisterLayout, c: RegisterLayout) -> str | None:
    """Why C += A * B cannot be a loop over this instruction, in one sentence; None when it can."""
    for operand, layout, fragment in (("A", a, atom.a), ("B", b, atom.b), ("C", c, atom.c)):
        registers, lanes = fragment.group("register"), fragment.group("lane")
        if layout.block.group("register")[: len(registers)] != registers or layout.block.group("lane") != lanes:
            return f"{operand} is not made of {atom.name} fragments: {layout}"
    if not a.warps == b.warps == c.warps:
        return f"A, B and C are spread over {a.warps}, {b.warps} and {c.warps} warps"
    (rows, steps), (b_steps, columns) = atom_counts(a, atom.a), atom_counts(b, atom.b)
    if (rows, columns) != atom_counts(c, atom.c):
        return f"A and B make {rows} x {columns} atoms, C has {atom_counts(c, atom.c)}"
    if steps != b_steps:
        return f"A has {steps} steps along k, B has {b_steps}"
    for warp in range(c.warps):
        c_rows = [atom_origin(c, atom.c, i, 0, warp)[0] for i in range(rows)]
        c_columns = [atom_origin(c, atom.c, 0, j, warp)[1] for j in range(columns)]
        for i, j in product(range(rows), range(columns)):
            if atom_origin(c, atom.c, i, j, warp) != (c_rows[i], c_columns[j]):
                return f"the atoms of C in warp {warp} are not a grid"
        for i, step in product(range(rows), range(steps)):
            if atom_origin(a, atom.a, i, step, warp) != (c_rows[i], step * atom.k):
                return f"warp {warp} holds C from row {c_rows[i]} but other rows of A"
        for step, j in product(range(steps), range(columns)):
            if atom_origin(b, atom.b, step, j, warp) != (step * atom.k, c_columns[j]):
                return f"warp {warp} holds C from column {c_columns[j]} but other columns of B"
    return None


# Matrix products without tensor cores -------------------------------------------------------------------------------


class FmaLayouts(NamedTuple):
    """Layouts of C += A * B by f32 fused multiply-adds: the accumulator, and for one k, a column of A (M, 1) and a row
    of B (1, N), each thread holding what its accumulators need."""

    accumulator: RegisterLayout
    a: RegisterLayout
    b: RegisterLayout


_FMA_VECTOR = 4
_FMA_LANE_COLUMNS = 8
_FMA_THREAD_ROWS = 8


def fma_layouts(
    shape: tuple[int, int], warps: tuple[int, int], adjacent: tuple[bool, bool] = (False, True)
) -> FmaLayouts:
    """Layouts of an (M, N) f32 accumulator over wm * wn warps, warp = warp_row + warp_column * wm.

    A thread holds up to 8 rows of 4 columns in the block, and repeats; a warp has 8 lanes along the columns and 4 along
    the rows. `adjacent` says by axis (rows, columns) whether a thread's first four lie side by side: so they do where
    the operand's rows in shared memory run along that axis, and come in one 16-byte access. Where they run along k, it
    is neighbouring lanes that hold neighbouring rows or columns, so what a warp reads at once lies in different banks.
    Threads beyond a small tile hold replicas.
    """
    if min(shape) < 1:
        raise ValueError(f"shape {shape} has an empty axis")
    powers, groups, along = _grid(warps)
    if along is not None and shape[along] < groups:
        along = None  # all groups compute the few rows or columns that there are
    rows, columns = (-(-extent // groups) if axis == along else extent for axis, extent in enumerate(shape))
    shape = rows, columns  # of one group
    block = [1, 1]
    bases: dict[str, list[tuple[int, int]]] = {"register": [], "lane": [], "warp": []}

    def add(name: str, axis: int | None) -> None:
        bases[name].append((0, 0) if axis is None else (block[0], 0) if axis == 0 else (0, block[1]))
        if axis is not None:
            block[axis] *= 2

    for axis in (1, 0):
        if adjacent[axis]:
            for _ in range(bit_count(min(_FMA_VECTOR, power_of_two_above(shape[axis])))):
                add("register", axis)
    for bit in range(bit_count(LANES)):
        open_axes = [axis for axis in (1, 0) if block[axis] < shape[axis]]
        prefer_rows = bit >= bit_count(_FMA_LANE_COLUMNS) and 0 in open_axes
        add("lane", 0 if prefer_rows else open_axes[0] if open_axes else None)
    for axis, count in enumerate(powers):
        for _ in range(bit_count(count)):
            add("warp", axis if block[axis] < shape[axis] else None)
    for axis, most in enumerate((_FMA_THREAD_ROWS, _FMA_VECTOR)):
        for _ in range(bit_count(most // _FMA_VECTOR if adjacent[axis] else most)):
            # More of a thread only where they cost no padding.
            extent, now = shape[axis], block[axis]
            if -extent % (2 * now) == -extent % now and now < extent:
                add("register", axis)
    repeats = tuple(-(-extent // step) for extent, step in zip(shape, block, strict=True))
    accumulator = RegisterLayout(LinearLayout.of(2, **bases), repeats, groups, along)
    return FmaLayouts(accumulator, accumulator.slice(1), accumulator.slice(0))


def product_layouts(
    format_: str,
    shape: tuple[int, int],
    k_block: int,
    warps: tuple[int, int],
    transposed: tuple[bool, bool] = (False, False),
    lines: bool = False,
) -> tuple[RegisterLayout, RegisterLayout, RegisterLayout]:
    """Layouts of operand a, operand b and the accumulator for one k-block of an (M, N) product of a format.

    `transposed`: which operands (a, b) shared memory holds as their transpose; `lines`: as of `adjacent_atoms`.
    """
    (m, n), atom = shape, product_atom(format_)
    if atom is not None:
        return (
            operand_a_layout((m, k_block), warps, atom),
            operand_b_layout((k_block, n), warps, atom, lines),
            accumulator_layout((m, n), warps, atom, lines),
        )
    parts = fma_layouts((m, n), warps, (transposed[0], not transposed[1]))
    a = replace(parts.a, repeats=(parts.a.repeats[0], k_block))
    b = replace(parts.b, repeats=(k_block, parts.b.repeats[1]))
    return a, b, parts.accumulator


def vector_registers(layout: RegisterLayout, axis: int, width: int) -> list[tuple[int, ...]] | None:
    """The registers of a thread in groups that hold `width` consecutive coordinates along `axis`, lowest first, from a
    multiple of `width` on; None where they do not fall into such groups. Registers of a group need not be adjacent.
    """
    if any(vector[axis] % width for vector in (*layout.block.group("lane"), *layout.warp_steps)):
        return None
    groups: dict[tuple[int, ...], dict[int, int]] = {}
    for register in range(layout.registers_per_thread):
        place = list(layout.coordinates(register, 0, 0))
        step = place[axis] % width
        place[axis] -= step
        groups.setdefault(tuple(place), {})[step] = register
    if any(len(group) != width for group in groups.values()):
        return None
    return [tuple(group[step] for step in range(width)) for group in groups.values()]


def matrices_at_once(layout: RegisterLayout, across: bool = False) -> int:
    """How many 8x8 matrices of 16-bit elements one ldmatrix brings into registers of a layout that follow one another:
    4, 2 or 1, and 0 where the lanes of a warp do not hold such matrices.

    A lane holds two neighbours of a row. So lie operands of 16 bits, and accumulators as well. `across`: two neighbours
    of a column, as in their transposes, which ldmatrix exchanges with those of rows on the way.
    """
    rank = len(layout.repeats)
    if rank < 2:
        return 0

    def step(axis: int, size: int) -> tuple[int, ...]:
        return tuple(size if a == axis else 0 for a in range(rank))

    row, column = (rank - 1, rank - 2) if across else (rank - 2, rank - 1)
    pair, *words = layout.block.group("register") or ((),)
    lanes = (step(column, 2), step(column, 4), step(row, 1), step(row, 2), step(row, 4))
    others = (*words, *layout.warp_steps)
    if pair != step(column, 1) or layout.block.group("lane") != lanes:
        return 0
    return 0 if any(vector[row] % 8 or vector[column] % 8 for vector in others) else min(4, 1 << len(words))
