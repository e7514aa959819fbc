"""The default schedule of products whose store has more rows than one program takes: rows and columns at a time, and
where operands live. What was measured is named; `bench/` has the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tessera.target.arch import Arch

ROWS = 64  # rows of a product at a time
COLUMNS = 128  # columns of a product that are computed at a time when not all fit
WIDEST = 256  # columns, and K, up to which operands may stay in shared memory
PREFETCHED = (
    64  # 16-bit elements of a thread that are loaded an iteration ahead: a quarter of what it has, for two tiles
)
ACCUMULATORS = 128  # f32 registers of a thread for the accumulators of a product and a sum


@dataclass(frozen=True)
class Rows:
    """A store with many rows: its last two sizes, K of the product behind it, whether a loop around the product carries
    a sum, whether operands may be placed in shared memory by the compiler, whether a right one is stored transposed, as
    [columns, K], and how many products there are.
    """

    rows: int
    columns: int
    depth: int
    looped: bool
    placeable: bool
    transposed: bool = False
    products: int = 1


def row_slices(store: Rows, warps: int | None, stages: int | None, arch: Arch) -> dict[str, Any]:
    """Fields of a schedule; `warps` and `stages` where the author has fixed them."""
    alone = store.products == 1 and not store.transposed
    whole = store.placeable and alone and max(store.columns, store.depth) <= WIDEST
    if whole and store.columns % 16 == store.depth % 16 == 0:
        found = _resident(store, warps or 8, stages or 2, arch)
        if found is not None:
            return found
    return _streamed(store, warps or 4)


def _resident(store: Rows, warps: int, stages: int, arch: Arch) -> dict[str, Any] | None:
    """All columns at once, the left operand in shared memory and, where it fits, the right one, for rows after rows.

    Measured on an H100 with 32,768 rows: 32 rows at a time are 1 to 3 % faster than 64 where nothing is carried, since
    shorter phases of two blocks meet; where a sum is carried, 64 read the right operand half as often.
    """
    share = 2 if store.looped else 1  # accumulators of the product and of the sum; stages of the right operand
    for which in ("both", "left"):
        for rows in (ROWS, ROWS // 2) if store.looped else (ROWS // 2, ROWS):
            rows = dividing(store.rows, rows)
            left = share * rows * store.depth
            right = store.depth * store.columns * (stages if store.looped else 1)
            if which == "left":
                right = stages * min(64, store.depth) * store.columns
            held = 2 * (left + right + rows * store.columns)
            accumulators = share * rows * store.columns // (32 * warps)
            if held > arch.shared_bytes_per_block or accumulators > ACCUMULATORS:
                continue
            threads = 32 * warps
            loaded = rows * store.depth // threads * (1 if store.looped else 2)
            blocks = max(1, min(2, arch.shared_bytes_per_sm // held, arch.registers_per_sm // (threads * 128)))
            return {
                "warps": warps,
                "rows": rows,
                "subtile": store.columns,
                "stages": stages,
                "blocks": blocks if accumulators * share <= ACCUMULATORS // 2 else 1,
                "resident": which,
                "walk": "rows" if which == "both" else "",
                "prefetch": loaded <= PREFETCHED,
            }
    return None


def _streamed(store: Rows, warps: int) -> dict[str, Any]:
    """Slices of both operands along K, as they are needed.

    Where no sum is carried, the accumulators of a product take half of a thread's registers: as large a tile as they
    hold reads the fewest bytes of its operands. Else a sum and a product have 64 each, of narrow tiles 32. Measured on
    an H100: two blocks of four warps hide each other's waits, with three stages of 32 where tiles are large, and two of
    64 where they are small. A number of blocks must be stated: without one, ptxas may spill to let more blocks in.
    """
    columns = store.columns
    if not store.looped and columns % COLUMNS == 0 and columns > COLUMNS:
        rows = dividing(store.rows, 2 * ROWS)
        subtile = dividing(columns, min(WIDEST, ACCUMULATORS * 32 * warps // rows))
        large = {"warps": warps, "rows": rows, "subtile": subtile, "stages": 3, "blocks": 2 if warps <= 4 else 1}
        return {**large, "block_k": 32 if warps <= 4 else 64}
    rows = dividing(store.rows, ROWS)
    wide = columns > COLUMNS and columns % COLUMNS == 0
    subtile = dividing(columns, min(COLUMNS, (64 if wide else 32) * 32 * warps // rows))
    if columns % 64 and columns <= COLUMNS:  # of parts, the last one would be mostly empty
        subtile, rows = columns, dividing(store.rows, ROWS // 2)
    masks = columns % subtile or columns % 64
    blocks = (2 if wide or masks else 3) if warps <= 4 else 1
    return {
        "warps": warps, "rows": rows, "subtile": subtile, "stages": 2, "blocks": blocks, "through": not store.looped
    }  # fmt: skip


def dividing(size: int, most: int) -> int:
    """The largest multiple of 16 up to `most` that divides `size`, where that is not much less; else `most`."""
    found = next((step for step in range(most // 16 * 16, most // 2 - 1, -16) if size % step == 0), most)
    return min(found, size)
