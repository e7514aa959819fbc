"""The schedule: what the author leaves open, as data that passes read and never guess.

`default_schedule` is the point that the compiler takes without tuning; it looks at sizes and at the architecture only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tessera.errors import SourceError
from tessera.ir.core import Kernel, Op, Value
from tessera.ir.opdef import REDUCTION, SCAN
from tessera.ir.types import BufferType, TileType, ViewType, dtype_of, int_shape
from tessera.target.arch import Arch
from tessera.target.reuse import shares_operands_both_ways

REGISTER_TILE_LIMIT = 128  # f32 registers of one tile per thread: half of the 255 that a thread can have
ELEMENTS_PER_THREAD = 32  # of the largest tile where there is no product: more would lower the occupancy
VECTORS_PER_THREAD = 8  # the same where nothing is reduced: one 16-byte access of bf16 a tensor, and many threads
LONG_LINE, LINE_OF_A_WARP = 1024, 4096  # reduced lines between these take a warp each, at up to 128 registers a lane
LARGEST_AT_ONCE = 64  # elements per thread beyond which such a kernel takes its tiles in slices
SUBTILE_ROWS, MOST_ROWS = 64, 128  # rows of a product at a time when a stored tile has more than the second
SUBTILE_COLUMNS = 128  # columns of a product that are computed at a time when not all fit
GROUP = 8  # blocks of a product's rows whose columns are computed one after the other
LARGE_GRID = 2 * GROUP  # blocks along an axis from which a wave is no column of them
BLOCK_K = 64  # K extent of a streamed matrix operand: 128-byte rows of bf16


FIXED_BY_CONSTANTS = {"num_warps": "warps", "num_stages": "stages"}


@dataclass(frozen=True)
class Schedule:
    """`warps` of a block; `streamed`: buffers read from global memory where they are used instead of being resident;
    `subtile`: the largest extent of a store's tile along the axis that is processed in a loop (0: all at once);
    `block_k`: K extent of the tiles in which operands of a product arrive that are in no buffer; `rows`: how many rows
    of a store are processed at a time, of one index of each axis before them (0: all).
    """

    warps: int = 4
    streamed: tuple[str, ...] = ()
    subtile: int = 0
    block_k: int = BLOCK_K
    rows: int = 0
    blocks: int = 1  # that a multiprocessor must be able to hold: bounds the registers of a thread
    stages: int = 3  # buffers that the copies of a loop take turns in, at most (1: none flies ahead); `pipeline`
    group: int = 0  # blocks of grid axis 0 that programs walk before one along axis 1 (0: all); `order_programs`
    split_k: int = 1  # programs that share the sum of a product along K, which a second launch adds up; `split_k`


def schedule_of(kernel: Kernel) -> Schedule:
    """The schedule that `choose_schedule` wrote. Raises SourceError TS703 for a kernel that has none."""
    data = kernel.attributes.get("schedule")
    if not isinstance(data, dict):
        raise SourceError("TS703", f"kernel '{kernel.name}' has no schedule: run choose_schedule first", kernel.loc)
    try:
        return Schedule(**data)
    except TypeError as error:
        raise SourceError("TS703", f"the schedule of kernel '{kernel.name}' is not one: {error}", kernel.loc) from None


def elements(value: Value) -> int:
    """Number of elements of a value whose sizes are all bound."""
    return math.prod(int_shape(value.type))


def buffer_bytes(buffer: Value) -> int:
    return elements(buffer) * dtype_of(buffer.type).bytes


def plain_copies(kernel: Kernel) -> dict[Value, Op]:
    """Buffers whose only write is one whole asynchronous copy of a tensor that nothing here writes.

    The copy and every use are at top level: what a loop reads again and again stays resident.
    """
    written = {
        value for op in kernel.body.walk() for effect, value in op.definition.effects_of(op) if effect == "writes"
    }
    roots = {root(value) for value in written}
    found: dict[Value, Op] = {}
    counts: dict[Value, int] = {}
    for op in kernel.body.walk():
        for effect, value in op.definition.effects_of(op):
            if effect == "writes" and isinstance(value.type, BufferType):
                counts[value] = counts.get(value, 0) + 1
    top = {id(op) for op in kernel.body.ops}
    inside = {value for op in kernel.body.walk() if id(op) not in top for value in op.operands}
    for op in kernel.body.ops:
        if op.name == "copy_async":
            buffer, view = op.operands
            if counts[buffer] == 1 and root(view) not in roots and buffer not in inside:
                found[buffer] = op
    return found


def root(value: Value) -> Value:
    """The parameter behind a view; other values are their own root."""
    while isinstance(value.type, ViewType) and value.defining_op is not None:
        value = value.defining_op.operands[0]  # a window, or a window with a limit
    return value


def default_schedule(kernel: Kernel, arch: Arch) -> Schedule:
    """Raises SourceError TS501 when the kernel's buffers fit no placement on `arch`."""
    tiles = [r for op in kernel.body.walk() for r in op.results if isinstance(r.type, TileType)]
    products = [op for op in kernel.body.walk() if op.name == "mma"]
    largest = max(map(elements, tiles), default=1)
    product = max((elements(op.result) for op in products), default=0)
    lines = _longest_line(kernel)
    if products:
        warps = 8 if product >= 128 * 128 else 4
    elif LONG_LINE < lines <= LINE_OF_A_WARP:
        warps = 8
    else:
        per_thread = ELEMENTS_PER_THREAD if lines else VECTORS_PER_THREAD
        warps = min(max(largest // (per_thread * 32), 4), 16)
        warps = 1 << (warps.bit_length() - 1)
    streamed = _streamed(kernel, arch)
    constants = kernel.attributes.get("constants") or {}
    subtile = rows = 0
    stages, blocks = Schedule.stages, Schedule.blocks
    for op in kernel.body.walk():
        if op.name != "store":
            continue
        shape = int_shape(op.operand("value").type)
        if products:
            if math.prod(shape) > REGISTER_TILE_LIMIT * 32 * warps:
                subtile = SUBTILE_COLUMNS
            if _rows(op) > MOST_ROWS:
                rows = _dividing(shape[-2], SUBTILE_ROWS)
                warps = constants.get("num_warps", 4)
                # Of the accumulators, of the sum and of a product, 32 registers each are a thread's; 64 where no mask
                # of columns takes registers, too, and more than one tile of columns reads the same operands.
                wide = shape[-1] > SUBTILE_COLUMNS and shape[-1] % SUBTILE_COLUMNS == 0
                subtile = _dividing(shape[-1], min(SUBTILE_COLUMNS, (64 if wide else 32) * 32 * warps // rows))
                if shape[-1] % 64 and shape[-1] <= SUBTILE_COLUMNS:
                    # Of parts, the last one would be mostly empty.
                    subtile, rows = shape[-1], _dividing(shape[-2], SUBTILE_ROWS // 2)
                # Measured on an H100 (bench/aggregation.py): two stages and two blocks of wide tiles beat three stages,
                # and three blocks of narrow ones. A number must be stated: without one, ptxas may spill to let more
                # blocks in.
                masks = shape[-1] % subtile or shape[-1] % 64
                stages, blocks = 2, (2 if wide or masks else 3) if warps <= 4 else 1
        elif largest > LARGEST_AT_ONCE * 32 * warps:
            wanted = ELEMENTS_PER_THREAD * 32 * warps
            if LONG_LINE < lines <= LINE_OF_A_WARP:
                wanted = lines * warps  # a line for each warp
            subtile = _slice_extent(kernel, shape, largest, wanted)
    whole = sum(elements(value) * dtype_of(value.type).bytes for op in products for value in op.operands[:2])
    if products and not rows and (streamed or whole > 3 * arch.shared_bytes_per_block // 4):
        subtile = SUBTILE_COLUMNS  # tiles of the operands, along the sum too, in the place of whole ones
    buffers = sum(buffer_bytes(op.result) for op in kernel.body.walk() if op.name == "alloc_shared")
    if products and not rows and not subtile and warps == 8 and 0 < 2 * buffers <= arch.shared_bytes_per_block:
        # Two blocks on a multiprocessor hide each other's waits, and one register too many keeps the second one out.
        # Where operands come from the author's buffers there are registers to spare.
        blocks = 2 if product <= 64 * 32 * warps else 1
    group = 0 if rows else _group(kernel)  # rows become programs of their own, in an order that shares operands
    schedule = Schedule(warps, streamed, subtile, rows=rows, stages=stages, blocks=blocks, group=group)
    # What the author's point of a tuning space says of the launch is no longer the compiler's to choose.
    fixed = {field: constants[name] for name, field in FIXED_BY_CONSTANTS.items() if name in constants}
    return replace(schedule, **fixed)


def _group(kernel: Kernel) -> int:
    """How many blocks of grid axis 0 a wave of programs should cover; 0 where that saves no reading."""
    grid = kernel.attributes.get("grid", ())[:2]
    large = len(grid) == 2 and all(not isinstance(size, int) or size >= LARGE_GRID for size in grid)
    return GROUP if large and shares_operands_both_ways(kernel) else 0


def takes_rows(kernel: Kernel) -> bool:
    """Whether the default schedule of a kernel computes a few rows of a store at a time."""
    ops = list(kernel.body.walk())
    return any(op.name == "mma" for op in ops) and any(op.name == "store" and _rows(op) > MOST_ROWS for op in ops)


def _rows(store: Op) -> int:
    return math.prod(int_shape(store.operand("value").type)[:-1])


def _dividing(size: int, most: int) -> int:
    """The largest multiple of 16 up to `most` that divides `size`, where that is not much less; else `most`."""
    found = next((step for step in range(most // 16 * 16, most // 2 - 1, -16) if size % step == 0), most)
    return min(found, size)


def _longest_line(kernel: Kernel) -> int:
    """The longest last axis that is reduced or scanned; 0 where there is none."""
    lines = [0]
    for op in kernel.body.walk():
        if op.definition.has(REDUCTION) or op.definition.has(SCAN):
            shape = int_shape(op.operands[0].type)
            if op.attributes["axis"] in (-1, None, len(shape) - 1):
                lines.append(shape[-1])
    return max(lines)


def _slice_extent(kernel: Kernel, stored: tuple[int, ...], largest: int, wanted: int) -> int:
    """How much of a stored tile to compute at a time so that the largest tile behind it has `wanted` elements.

    Columns, or rows where the last axis is reduced or scanned and so is needed whole.
    """
    along = [
        op.attributes["axis"] for op in kernel.body.walk() if op.definition.has(REDUCTION) or op.definition.has(SCAN)
    ]
    rows_only = any(axis in (-1, None) or axis == len(stored) - 1 for axis in along)
    cut = stored[0] if rows_only else stored[-1]
    extent = max(1 if rows_only else 32, wanted * cut // largest)
    return 1 << (extent.bit_length() - 1)


def _staging_bytes(kernel: Kernel) -> int:
    """Bytes that streaming needs beside the resident buffers: the K and N tiles of a product and its staged store."""
    most = 0
    for op in kernel.body.walk():
        if op.name == "mma":
            a = op.operands[0]
            rows = elements(a) // max(1, int_shape(a.type)[0 if op.attributes["transpose_a"] else 1])
            rows = min(rows, MOST_ROWS)  # more are not taken at a time
            staged = rows * BLOCK_K + BLOCK_K * SUBTILE_COLUMNS + rows * SUBTILE_COLUMNS
            most = max(most, staged * dtype_of(a.type).bytes)
    return most


def _streamed(kernel: Kernel, arch: Arch) -> tuple[str, ...]:
    """Which buffers to stream so that the others fit: the largest plain copies first."""
    buffers = {op.result: op for op in kernel.body.walk() if op.name == "alloc_shared"}
    sizes = {buffer: buffer_bytes(buffer) for buffer in buffers}
    total, limit = sum(sizes.values()), arch.shared_bytes_per_block
    if total <= limit:
        return ()
    limit -= _staging_bytes(kernel)
    streamed: list[Value] = []
    for value in sorted(plain_copies(kernel), key=lambda v: -sizes[v]):
        if total <= limit:
            break
        total -= sizes[value]
        streamed.append(value)
    if total > limit:
        value = max((v for v in sizes if v not in streamed), key=lambda v: sizes[v])
        rows = max(1, math.prod(int_shape(value.type)[:1]))
        fit = max(0, limit - (total - sizes[value])) // (sizes[value] // rows)
        raise SourceError(
            "TS501",
            f"the shared buffers need {total} bytes and {arch.name} has {limit} per block; with the "
            f"others as they are, '{value.name}' fits up to {fit} of its {rows} rows",
            buffers[value].loc,
        )
    return tuple(value.name for value in streamed)
