"""Which operands of matrix products are computed in the registers that the product takes them from.

A matrix instruction takes its left operand from registers. One that is computed element by element, from tiles in
buffers or from another product, is computed there: its sources are read in the layout of the fragments, and no value of
it goes through shared memory. The same holds for the accumulators of one product that are the operand of the next:
those of two neighbouring columns of eight are the fragment of sixteen k's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tessera.ir.core import Block, Op, Value
from tessera.ir.opdef import ELEMENTWISE, LOOP
from tessera.ir.ops.tiles import format_of
from tessera.ir.types import TileType, dtype_of, int_shape
from tessera.passes.warpgroup import by_warpgroups
from tessera.target.fragments import grid_rows, product_atom
from tessera.target.schedule import Schedule

MMA_LIMIT = 128  # mma.sync in one straight-line region: ptxas time explodes beyond
OPERAND_WORDS = 32  # 32-bit registers of a thread that such an operand may take: more would spill beside accumulators
WARPGROUP_WORDS = 64  # the same where warpgroups compute the product: no fragment of the right operand is in registers
SPREAD = frozenset(("broadcast", "full", "iota", "constant"))  # tiles that any layout has for nothing


def in_registers(product: Op) -> bool:
    """Whether the left operand of a product is taken from registers: `stage_operands` puts all others into buffers."""
    read = product.operands[0].defining_op
    return read is None or read.name != "read"


def may_stay_in_registers(
    product: Op,
    schedule: Schedule,
    is_copied: Callable[[Op], bool],
    used: Mapping[Value, list[Op]],
    loops: Mapping[Block, Op],
) -> bool:
    """Whether the left operand of a product, which is computed, is best taken from registers.

    Its k-blocks are whole, since nothing masks what lies beyond them, and few enough to be one straight line, since
    registers have no index at run time. All that it is computed from can be had in the fragments' layout: parts of
    buffers, loads that `is_copied` turns into copies, and products, those that a loop carries included. Where
    accumulators may meet it, in what it is computed from or in another use of that, their layout must be that of the
    fragments: each warp has whole rows. `used`: users of every value; `loops`: the op of every region.
    """
    value = product.operands[0]
    warps, atom = schedule.warps, product_atom(format_of(product))
    dtype = dtype_of(value.type)
    if atom is None or product.attributes["transpose_a"] or dtype.bits != 16 or dtype.name != atom.operand:
        return False
    (m, n), depth = int_shape(product.result.type), int_shape(value.type)[1]
    tree = _tree(value)
    leaves = _leaves(value)
    if depth % atom.k or not leaves:
        return False
    for leaf in leaves:
        source = leaf.defining_op
        loaded = source is not None and (source.name == "read" or source.name == "load" and is_copied(source))
        if not loaded and product_behind(_carried(leaf, loops)) is None:
            return False
    if by_warpgroups(product, schedule):
        return m // (atom.m * warps) * (depth // atom.k) * atom.a_words <= WARPGROUP_WORDS
    private = all(
        user.name == "mma" or (user.results and user.results[0] in tree) for part in tree for user in used.get(part, ())
    )
    if not (private and _weight(leaves)) and atom.m * warps > -(-m // atom.m) * atom.m:
        return False
    rows, columns = operand_grid((m, n), warps, _weight(leaves))
    row_atoms, column_atoms = -(-m // (atom.m * rows)), -(-n // (atom.n * columns))
    blocks = depth // atom.k
    return row_atoms * column_atoms * blocks <= MMA_LIMIT and row_atoms * blocks * atom.a_words <= OPERAND_WORDS


def operand_grid(shape: tuple[int, int], warps: int, weight: int) -> tuple[int, int]:
    """(rows, columns) of warps over a product whose left operand is computed from `weight` tiles (0: from a product).

    Each column of warps reads those tiles, each row of warps the right operand: as few bytes as that can be, and among
    equals as few columns, since each one computes the operand anew. What comes from a product is not split.
    """
    m, n = shape
    grids = [(rows, warps // rows) for rows in grid_rows(warps) if rows == 1 or 16 * rows <= -(-m // 16) * 16]
    if not weight:
        return grids[-1][0], 1
    return min(grids, key=lambda grid: (grid[1] * weight * m + grid[0] * n, grid[1]))


def computed_grid(product: Op, warps: int) -> tuple[int, int]:
    """The grid of a product whose left operand is in registers."""
    m, n = int_shape(product.result.type)
    return operand_grid((m, n), warps, _weight(_leaves(product.operands[0])))


def product_behind(value: Value) -> Op | None:
    """The product whose accumulators a tile is, that of a loop over its k-blocks included."""
    op = value.defining_op
    while op is not None and op.name == "for":
        value = op.regions[0].ops[-1].operands[op.results.index(value)]
        op = value.defining_op
    return op if op is not None and op.name == "mma" else None


def _carried(value: Value, loops: Mapping[Block, Op]) -> Value:
    """What a loop carries from iteration to iteration in the place of a value: its yield; other values themselves."""
    loop = loops.get(value.owner) if isinstance(value.owner, Block) else None
    if loop is None or not loop.definition.has(LOOP):
        return value
    (body,) = loop.regions
    missing = len(body.arguments) - len(body.ops[-1].operands)  # a counted loop's index is not carried
    return body.ops[-1].operands[value.index - missing] if value.index >= missing else value


def from_product(value: Value) -> bool:
    """Whether a tile is computed from accumulators, element by element."""
    return any(product_behind(leaf) is not None for leaf in _leaves(value))


def _weight(leaves: list[Value]) -> int:
    """How many tiles have to be read; none where accumulators are among them, which a loop may carry."""
    return (
        0 if any(isinstance(leaf.owner, Block) or product_behind(leaf) is not None for leaf in leaves) else len(leaves)
    )


def _tree(value: Value) -> dict[Value, bool]:
    """The tiles that an operand is computed from, element by element, itself included; whether each is a leaf.

    What a branch gives is computed from what either side of it yields.
    """
    found: dict[Value, bool] = {}

    def visit(value: Value) -> None:
        op = value.defining_op
        if value in found or not isinstance(value.type, TileType) or op is not None and op.name in SPREAD:
            return
        sources = None if op is None else _sources(op, value)
        found[value] = sources is None
        for source in sources or ():
            visit(source)

    visit(value)
    return found


def _sources(op: Op, result: Value) -> list[Value] | None:
    """What a result is computed from in the same registers; None where it is not."""
    if op.name == "if":
        return [region.ops[-1].operands[op.results.index(result)] for region in op.regions]
    return op.operands if op.definition.has(ELEMENTWISE) or op.name in ("reshape", "transpose") else None


def _leaves(value: Value) -> list[Value]:
    return [value for value, is_leaf in _tree(value).items() if is_leaf]
