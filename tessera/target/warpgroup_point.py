"""The default schedule of products where there are wgmma and TMA: persistent programs of a producer and warpgroups.

Rows are taken 128 at a time where two warpgroups of the consumers have 64 each, or 192 of three where they are no
multiple of 128. A right operand of which all of K fits stays in shared memory; what streams through a ring has what is
left, in as many slots as fit.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tessera.ir.affine import PROGRAM_IDS, expression
from tessera.ir.core import Kernel, Op, uses
from tessera.ir.dims import symbols
from tessera.ir.opdef import COUNTED, LOOP, REDUCTION, SCAN
from tessera.ir.products import is_fp8
from tessera.ir.types import TileType, ViewType, dtype_of, int_shape
from tessera.target.arch import Arch
from tessera.target.reuse import ops_behind
from tessera.target.role_registers import register_limit, role_registers
from tessera.target.row_slices import Rows
from tessera.target.tensor_maps import tensor_reason
from tessera.target.wgmma import WGMMA_INSTRUCTIONS, WGMMA_ROWS, WGMMA_WARPS

PANEL_BYTES = 128  # of a row: the widest swizzle
MOST_SLOTS, LEAST_SLOTS = 6, 2
ACCUMULATORS = 128  # f32 registers of a thread for the sums of a product
HELD = 176  # where a loop works on the sums of one product and carries others: of 192, attention spills
BESIDE = {"sums": 32, "held": 40}  # of what a consumer has: of 160, products take 128, and attention 117, not 133
WIDEST_WHOLE = 256  # K up to which a right operand stays in shared memory; half of it for those of a loop
SUMS_AT_ONCE = {False: 256, True: 128}  # columns of a product at a time, by whether a loop carries a sum of it
# Registers of a consumer from which these fit beside an operand that is computed: with the 160 of three warpgroups the
# aggregation spills at 256 columns, at 128 that are carried, and at 128 where K of 256 is in registers too.
ENOUGH = 240
# Tiles of columns from which on an operand that is computed from several tensors goes through memory once (`prologue`).
# Each tile that computes it fills shared memory with all of them and reads them again, which is what bounds it; the
# workspace is written and read once. Sums of two, four and eight gated deltas in 16 tiles (D = 2,048) take 12 to 16 %
# less time with it. In 8 tiles it was slower, by 4 % (four, D = 1,024) and 5 % (one, D = 2,048), when the programs in
# front did not yet go row by row (H200).
LAUNCHED = 16
# Columns of it that a loop takes at a time, where it carries a sum of them: what 240 registers hold of two, if the work
# between is for each element by itself. They read the left operand two thirds as often as 128 do: 2 to 5 % (H200).
LAUNCHED_COLUMNS = 192


MANY_ROWS = (2 * WGMMA_ROWS, 3 * WGMMA_ROWS)  # that warpgroups share out, 64 each; the first that divides them


def ways(store: Rows | None) -> tuple[Rows | None, ...]:
    """How to take a store of many rows, if there is one, best first: rows at a time, or whole (None) where warpgroups
    have all of them at once, which is best in the author's loop over K.
    """
    if store is None or store.rows > max(MANY_ROWS):
        return (store,)
    return (None, store) if store.looped else (store, None)


def _warps_of(rows: int) -> int:
    """The warps of one warpgroup, or of as many as share out many rows."""
    step = next((step for step in MANY_ROWS if rows % step == 0), WGMMA_ROWS)
    return WGMMA_WARPS * step // WGMMA_ROWS


def warpgroup_point(
    kernel: Kernel, store: Rows | None, warps: int | None, stages: int | None, arch: Arch
) -> dict[str, Any] | None:
    """Fields of a schedule, or None where products are not for warpgroups or windows not for tensor maps.

    `store`: of a kernel whose store has more rows than a program takes, None where the author's tiles are a program's;
    `warps` and `stages` where the author has fixed them.
    """
    products = [op for op in kernel.body.walk() if op.name == "mma"]
    if not products or not all(map(_has_instruction, products)) or not _has_maps(kernel):
        return None
    if store is None:
        fields = _tiles(kernel, products, warps, stages, arch)
    else:
        fields = _rows(kernel, store, warps, stages, arch) if _item(products) == 2 else None
    if fields is None:
        return None
    lane = {"blocks": 1, "family": "wgmma", "copies": "tma", "persistent": not _uneven(kernel), **fields}
    return lane if lane["persistent"] else {**lane, "blocks": 1}  # others fill a multiprocessor by themselves


def _uneven(kernel: Kernel) -> bool:
    """Whether programs differ in how long they loop. The device gives the next one to whoever is done; programs of a
    persistent launch take turns.
    """
    bounds = [v for op in kernel.body.walk() if op.definition.has(COUNTED) for v in op.operands[:3]]
    return any(not symbols(expression(bound)).isdisjoint(PROGRAM_IDS) for bound in bounds)


def _has_instruction(product: Op) -> bool:
    a, b = (dtype_of(value.type).name for value in product.operands[:2])
    along_k = product.attributes["transpose_b"] and not product.attributes["transpose_a"]
    return (found := WGMMA_INSTRUCTIONS.get((a, b))) is not None and (found.transposes or along_k)


def _item(products: list[Op]) -> int:
    """Bytes of the narrowest operand of any product."""
    return min(dtype_of(value.type).bytes for op in products for value in op.operands[:2])


def _registers(product: Op) -> int:
    """Elements of the sums that a product needs at a time: those of a part of k, where it has parts, beside all."""
    in_parts = is_fp8(*(dtype_of(v.type) for v in product.operands[:2])) and product.attributes["precision"] is None
    return prod(int_shape(product.result.type)) * (2 if in_parts else 1)


def _held(loop: Op) -> int:
    """Elements of what a loop carries beside the sums of a product that it works on; 0 where it works on none."""
    body = loop.regions[-1]
    carried = {id(value) for value in body.ops[-1].operands}
    others = [_registers(op) for op in body.walk() if op.name == "mma" and id(op.result) not in carried]
    tiles = [result.type for result in loop.results if isinstance(result.type, TileType)]
    return sum(prod(int_shape(tile)) for tile in tiles) + max(others) if others else 0


def _has_maps(kernel: Kernel) -> bool:
    """Whether tensor maps describe every tensor of which tiles are loaded."""
    ops = list(kernel.body.walk())
    views = [op.operands[0] for op in ops if op.name == "load" and isinstance(op.result.type, TileType)]
    views += [op.operand("view") for op in ops if op.name == "copy_async"]
    return all(tensor_reason(view, kernel) is None for view in views)


def _tiles(
    kernel: Kernel, products: list[Op], warps: int | None, stages: int | None, arch: Arch
) -> dict[str, Any] | None:
    """The author's tiles: as many warpgroups as their rows and registers ask for."""
    shapes = [int_shape(op.result.type) for op in products]
    rows = min(shape[0] for shape in shapes)
    warps = warps or _warps_of(rows)
    if warps % WGMMA_WARPS or any(shape[0] % (WGMMA_ROWS // WGMMA_WARPS * warps) for shape in shapes):
        return None
    loops = [op for op in kernel.body.walk() if op.definition.has(LOOP)]
    own = _consumer_registers(arch, warps)
    if (
        max(map(_registers, products)) > min(ACCUMULATORS, own - BESIDE["sums"]) * 32 * warps
        or max(map(_held, loops), default=0) > min(HELD, own - BESIDE["held"]) * 32 * warps
    ):
        return None
    panel = PANEL_BYTES // _item(products)
    inside = {inner.id for loop in loops for region in loop.regions for inner in region.walk()}
    slot = kept = stored = 0
    for op in kernel.body.walk():
        copied = op.operand("view").type if op.name in ("load", "copy_async") else None
        if isinstance(copied, ViewType) and copied.shape:
            size = prod(int_shape(copied)) * copied.dtype.bytes
            slot, kept = (slot + size, kept) if op.id in inside else (slot, kept + size)
        if op.name == "store":
            stored = max(stored, _stored_bytes(int_shape(op.operand("value").type), panel))
    slots = stages or _slots(arch, kept + stored, slot)
    # Where one warpgroup waits for the few bytes that its slots hold, another one has products to start.
    half = arch.shared_bytes_per_sm // 2 - arch.reserved_shared_bytes - PANEL_BYTES * 8
    twice = warps == WGMMA_WARPS and kept + stored + slots * slot <= half
    return {"blocks": 2 if twice else 1, "warps": warps, "panels": panel, "stages": slots}


def _rows(kernel: Kernel, store: Rows, warps: int | None, stages: int | None, arch: Arch) -> dict[str, Any] | None:
    """Rows of a large store, with as many columns as registers and shared memory hold; of 16-bit operands."""
    warps = warps or max(2 * WGMMA_WARPS, _warps_of(store.rows))
    rows = WGMMA_ROWS // WGMMA_WARPS * warps
    panel = PANEL_BYTES // 2
    if warps % WGMMA_WARPS or store.rows % rows or store.columns % panel or store.depth % panel or not store.placeable:
        return None
    share = 1 if _consumer_registers(arch, warps) >= ENOUGH else 2
    columns, depth = _columns(store, share), store.depth
    whole = depth <= WIDEST_WHOLE // (2 if store.looped else 1) // share
    loaded = _loaded(kernel)
    launched = not whole and store.columns >= LAUNCHED * columns and loaded > 1
    if launched and store.looped and share == store.products == 1 and _by_element(kernel):
        columns = max(columns, min(LAUNCHED_COLUMNS, store.columns))
    slot = (1 if store.looped or launched else loaded) * rows * panel * 2
    kept = depth * columns * 2 if whole and not store.looped else 0
    slot += 0 if kept else panel * columns * 2  # the right operand streams beside the left one
    stored = (2 if columns > panel else 1) * rows * panel * 2
    return {
        "warps": warps,
        "rows": rows,
        "subtile": columns,
        "block_k": depth if whole else panel,
        "panels": panel,
        "stages": stages or _slots(arch, kept + stored, slot),
        "resident": "",
        "walk": "",
        "prefetch": False,
        "prologue": "launch" if launched else "",
        "group": 0,
    }


def _loaded(kernel: Kernel) -> int:
    """How many tiles are loaded for the left operand of a product, at most."""
    used = uses(kernel.body)
    products = [op for op in kernel.body.walk() if op.name == "mma"]
    behind = [ops_behind([op.operands[0]], used) for op in products]
    return max(sum(op.name in ("load", "copy_async") for op in ops) for ops in behind)


def _by_element(kernel: Kernel) -> bool:
    """Whether nothing but products needs more of a tile than one element of it."""
    return not any(op.definition.has(REDUCTION) or op.definition.has(SCAN) for op in kernel.body.walk())


def _columns(store: Rows, share: int) -> int:
    """Columns of a product at a time: as many as registers hold the sums of. A carried sum takes as many as these."""
    widest = SUMS_AT_ONCE[store.looped] // share // min(store.products, 2)  # one is kept while the next is computed
    return next(size for size in range(min(widest, store.columns), 0, -16) if store.columns % size == 0)


def _consumer_registers(arch: Arch, warps: int) -> int:
    """Registers of a thread of so many warps, beside a producer."""
    _, moved = role_registers(arch, warps, WGMMA_WARPS)
    return moved or register_limit(arch, 32 * (warps + WGMMA_WARPS), 1)


def _slots(arch: Arch, kept: int, slot: int) -> int:
    """How many slots of a ring fit beside what is kept, in bytes."""
    room = arch.shared_bytes_per_block - PANEL_BYTES * 8 - kept
    return max(LEAST_SLOTS, min(MOST_SLOTS, room // slot if slot else MOST_SLOTS))


def _stored_bytes(shape: tuple[int, ...], panel: int) -> int:
    """Bytes of the buffers in which panels of a stored tile of 16-bit elements take turns."""
    return prod(shape[:-1]) * 2 * min(shape[-1], 2 * panel)
