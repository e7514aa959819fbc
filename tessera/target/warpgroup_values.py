"""Which values of the fields of a schedule are worth trying where its own point is that of `warpgroup_point`.

Fields that are not here have one value there: what they decide on the base lane, such as which operand of a sliced
product stays in shared memory, follows from the copies and the ring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tessera.target.warpgroup_point import ACCUMULATORS, MOST_SLOTS, PANEL_BYTES
from tessera.target.wgmma import THREE_WARPGROUPS, WGMMA_ROWS, WGMMA_WARPS

if TYPE_CHECKING:
    from tessera.target.schedule import Schedule
    from tessera.target.schedules import Structure

PANEL = PANEL_BYTES // 2  # columns of 16-bit elements
TURNS = 2  # times 64 rows of each warpgroup, at most
DEEPEST = 512  # K of which a right operand may stay in shared memory
WIDE = 1024  # columns from which on a computed operand may be worth a pass through memory


def _warps(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    """One warpgroup, two or three, where they share out the rows, and hold all sums of a tile that is not cut."""
    held = 0 if default.rows else kernel.product
    return tuple(
        warps
        for warps in (WGMMA_WARPS, 2 * WGMMA_WARPS, THREE_WARPGROUPS)
        if _shares(default.rows or kernel.rows, warps) and held <= ACCUMULATORS * 32 * warps
    )


def _rows(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    """Of a store of many rows: 64 of each warpgroup, once or twice, as far as the sums of all columns fit."""
    step = WGMMA_ROWS // WGMMA_WARPS * default.warps
    sizes = range(step, min(TURNS * step, _sums(kernel, default) // max(1, default.subtile)) + 1, step)
    return tuple(size for size in sizes if default.rows and kernel.rows % size == 0)


def _sums(kernel: Structure, default: Schedule) -> int:
    """Elements of a product whose sums the registers of the consumers hold; a sum that a loop carries takes as many."""
    return ACCUMULATORS * 32 * default.warps // (2 if kernel.loops else 1)


def _shares(rows: int, warps: int) -> bool:
    return rows % (WGMMA_ROWS // WGMMA_WARPS * warps) == 0


def _subtile(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    """As many columns as the registers of the consumers hold, and less."""
    if not default.subtile or not default.rows:
        return ()
    most = _sums(kernel, default) // default.rows
    sizes = (PANEL, 2 * PANEL, 4 * PANEL)
    return tuple(size for size in sizes if size <= min(most, kernel.columns) and kernel.columns % size == 0)


def _block_k(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    """A panel at a time or, where it can stay in shared memory, the whole right operand."""
    if not default.rows:
        return ()
    return (PANEL, kernel.depth) if kernel.depth <= DEEPEST else (PANEL,)


def _stages(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    return tuple(range(2, MOST_SLOTS + 1)) if not kernel.asked else ()


VALUES: dict[str, Callable[[Structure, Schedule], tuple[Any, ...]]] = {
    "warps": _warps,
    "rows": _rows,
    "subtile": _subtile,
    "block_k": _block_k,
    "stages": _stages,
    "blocks": lambda kernel, default: (1, 2),
    "group": lambda kernel, default: (0, 4, 8, 16) if default.group else (),
    "panels": lambda kernel, default: (0, PANEL),
    "prologue": lambda kernel, default: ("", "launch") if kernel.computed and kernel.columns >= WIDE else (),
    "cluster": lambda kernel, default: (1, 2) if kernel.computed and kernel.columns >= WIDE else (),
    "persistent": lambda kernel, default: (True, False),
    "pingpong": lambda kernel, default: (False, True),
    "split_k": lambda kernel, default: (1, 2, 4) if kernel.loops and not default.rows else (),
}

__all__ = ["VALUES", "WIDE"]
