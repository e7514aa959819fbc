"""The schedule: what the author leaves open, as data that passes read and never guess.

`default_schedule` is the point that the compiler takes without tuning; it looks at sizes and at the architecture only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tessera.errors import SourceError
from tessera.ir.core import Kernel, Op, Value
from tessera.ir.opdef import REDUCTION, SCAN
from tessera.ir.types import BufferType, TileType, dtype_of, int_shape
from tessera.target.arch import Arch
from tessera.target.reuse import root, shares_operands_both_ways
from tessera.target.row_lines import LONG_LINE, longest_line, warps_of_a_line
from tessera.target.row_slices import COLUMNS, Rows, row_slices
from tessera.target.warpgroup_point import warpgroup_point, ways

REGISTER_TILE_LIMIT = 128  # f32 registers of one tile per thread: half of the 255 that a thread can have
LINE_OF_A_WARP = 4096  # elements of a reduced line that a warp may have to itself, at 128 registers a lane
ELEMENTS_PER_THREAD = 32  # of the largest tile where there is no product: more would lower the occupancy
VECTORS_PER_THREAD = 8  # the same where nothing is reduced: one 16-byte access of bf16 a tensor, and many threads
REDUCED_TILE = 64 * 128  # elements of a reduced tile beside a product: several of its size live at a time
LARGEST_AT_ONCE = 64  # elements per thread beyond which such a kernel takes its tiles in slices
MOST_ROWS = 128  # of a stored tile behind a product: of more, few are computed at a time
GROUP = 8  # blocks of a product's rows whose columns are computed one after the other
LARGE_GRID = 2 * GROUP  # blocks along an axis from which a wave is no column of them
WARPGROUP_LANE = "sm_90a"  # the lane of wgmma, TMA and roles
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
    resident: str = ""  # operands of a sliced product that shared memory holds for all of K: "", "left" or "both"
    through: bool = True  # copies of a loop inside another one go on through that one, with no pause in between
    prefetch: bool = False  # tiles that a loop loads into registers before a product are loaded an iteration ahead
    sums: str = ""  # where sums live that a loop carries round a product: "" (registers) or "shared"
    epilogue: str = ""  # how products are stored: "" through shared memory where that is wider, or "direct"
    walk: str = ""  # slices that are iterations of one program, not programs of their own: "", "columns" or "rows"
    group: int = 0  # blocks of grid axis 0 that programs walk before one along axis 1 (0: all); `order_programs`
    split_k: int = 1  # programs that share the sum of a product along K, which a second launch adds up; `split_k`
    prologue: str = ""  # a computed operand of a product: "" beside it, or "launch", into a workspace; `split_prologue`
    family: str = ""  # instructions of products: "" (mma.sync) or "wgmma", where operands allow it; `warpgroup`
    copies: str = ""  # into shared memory: "" (cp.async) or "tma", by a producer of its own; `split_roles`
    panels: int = 0  # columns of tiles that are loaded, computed and stored one after the other (0: all at once)
    persistent: bool = False  # as many programs as run at a time, each with the work of several; `persist`
    pingpong: bool = False  # programs of a persistent kernel go to two teams of consumers in turn; `split_roles`
    cluster: int = 1  # persistent programs whose producers load for each other what they load alike; `form_clusters`


def schedule_of(kernel: Kernel) -> Schedule:
    """The schedule that `choose_schedule` wrote. Raises SourceError TS703 for a kernel that has none."""
    data = kernel.attributes.get("schedule")
    if not isinstance(data, dict):
        raise SourceError("TS703", f"kernel '{kernel.name}' has no schedule: run choose_schedule first", kernel.loc)
    try:
        return Schedule(**data)
    except TypeError as error:
        raise SourceError("TS703", f"the schedule of kernel '{kernel.name}' is not one: {error}", kernel.loc) from None


def as_lowered(chosen: Schedule, kernels: Iterable[Kernel]) -> Schedule:
    """A schedule as the kernels that were made by it have it: rings have the slots that shared memory holds."""
    stages = [schedule_of(kernel).stages for kernel in kernels if any(op.name == "roles" for op in kernel.body.ops)]
    return replace(chosen, stages=min(stages)) if stages else chosen


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


def default_schedule(kernel: Kernel, arch: Arch, lane: str = "") -> Schedule:
    """The point of `lane`, that of the architecture where it is not said.

    Raises SourceError TS501 when the kernel's buffers fit no placement on `arch`.
    """
    tiles = [r for op in kernel.body.walk() for r in op.results if isinstance(r.type, TileType)]
    products = [op for op in kernel.body.walk() if op.name == "mma"]
    largest = max(map(elements, tiles), default=1)
    product = max((elements(op.result) for op in products), default=0)
    lines = longest_line(kernel)
    # Warps of a line that fills registers. Lines that are programs of their own are loaded once for each store.
    apart = _many_lines(kernel)
    shared = 1 if products or apart and len(_stores(kernel)) > 1 else warps_of_a_line(kernel, lines)
    if products:
        warps = 8 if product >= 128 * 128 or _reduced_tile(kernel) >= REDUCED_TILE else 4
    elif LONG_LINE < lines <= LINE_OF_A_WARP or shared > 1:
        warps = shared if shared > 1 and apart else max(4, shared)  # of smaller blocks more fit
    else:
        per_thread = ELEMENTS_PER_THREAD if lines else VECTORS_PER_THREAD
        warps = min(max(largest // (per_thread * 32), 4), 16)
        warps = 1 << (warps.bit_length() - 1)
    streamed = _streamed(kernel, arch)
    constants = kernel.attributes.get("constants") or {}
    subtile = rows = 0
    stages, blocks = Schedule.stages, Schedule.blocks
    sliced: dict[str, Any] = {}
    many_rows: Rows | None = None
    for op in kernel.body.walk():
        if op.name != "store":
            continue
        shape = int_shape(op.operand("value").type)
        if products:
            if math.prod(shape) > REGISTER_TILE_LIMIT * 32 * warps:
                subtile = COLUMNS
            if _rows(op) > MOST_ROWS:
                many_rows = _store(op, products, kernel)
                sliced = row_slices(many_rows, constants.get("num_warps"), constants.get("num_stages"), arch)
                warps, rows = sliced["warps"], sliced["rows"]
        elif shared > 1:
            rows = 1  # a program each
        elif largest > LARGEST_AT_ONCE * 32 * warps:
            wanted = ELEMENTS_PER_THREAD * 32 * warps
            if LONG_LINE < lines <= LINE_OF_A_WARP:
                wanted = lines * warps  # a line for each warp
            subtile = _slice_extent(kernel, shape, largest, wanted)
    whole = sum(elements(value) * dtype_of(value.type).bytes for op in products for value in op.operands[:2])
    if products and not rows and (streamed or whole > 3 * arch.shared_bytes_per_block // 4):
        subtile = COLUMNS  # tiles of the operands, along the sum too, in the place of whole ones
    buffers = sum(buffer_bytes(op.result) for op in kernel.body.walk() if op.name == "alloc_shared")
    if products and not rows and not subtile and warps == 8 and 0 < 2 * buffers <= arch.shared_bytes_per_block:
        # Two blocks on a multiprocessor hide each other's waits, and one register too many keeps the second one out.
        # Where operands come from the author's buffers there are registers to spare.
        blocks = 2 if product <= 64 * 32 * warps else 1
    group = 0 if rows else _group(kernel)  # rows become programs of their own, in an order that shares operands
    schedule = Schedule(warps, streamed, subtile, rows=rows, stages=stages, blocks=blocks, group=group)
    schedule = replace(schedule, **sliced)
    if (lane or arch.lane) == WARPGROUP_LANE:
        fixed = (constants.get("num_warps"), constants.get("num_stages"))
        uncut = Schedule(warps, streamed, group=_group(kernel)) if many_rows else schedule
        if products and subtile and not many_rows:
            # Few rows of many columns are cut as many rows are: the whole of them is for nobody's registers.
            tiles_stored = [op for op in _stores(kernel) if len(int_shape(op.operand("value").type)) > 1]
            choices: Sequence[Rows | None] = [_store(op, products, kernel) for op in tiles_stored]
        else:
            choices = ways(many_rows)
        plain = _plain_operands(products, kernel)
        for store in choices:
            taken = replace(store, placeable=True) if store is not None and plain else store
            point = warpgroup_point(kernel, taken, *fixed, arch)
            if point is not None:
                schedule = replace(schedule if store else uncut, **point)
                if taken != store:  # what slices read comes through rings, panel by panel
                    schedule = replace(schedule, streamed=plain)
                break
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


def _store(store: Op, products: list[Op], kernel: Kernel) -> Rows:
    """What decides how a store of many rows is sliced."""
    *_, rows, columns = int_shape(store.operand("value").type)
    deepest = max(products, key=_depth)
    top = {id(op) for op in kernel.body.ops}
    made = [operand.defining_op for op in products for operand in op.operands[:2]]
    alone = len(products) == 1  # several share the registers and the shared memory, as the iterations of a loop do
    return Rows(
        rows,
        columns,
        _depth(deepest),
        not alone or any(id(op) not in top for op in products),
        all(op is not None and op.name != "read" for op in made)
        and not any(op.attributes["transpose_a"] for op in products),
        any(op.attributes["transpose_b"] for op in products),
        len(products),
    )


def _plain_operands(products: list[Op], kernel: Kernel) -> tuple[str, ...]:
    """The buffers that products read, if all of them read plain copies alone, the left ones as they are stored."""
    copies = plain_copies(kernel)
    made = [operand.defining_op for op in products for operand in op.operands[:2]]
    read = [op.operands[0] for op in made if op is not None and op.name == "read"]
    whole = len(read) == len(made) and all(buffer in copies for buffer in read)
    whole = whole and not any(op.attributes["transpose_a"] for op in products)
    return tuple(buffer.name for buffer in copies if buffer in read) if whole else ()


def _depth(product: Op) -> int:
    return int_shape(product.operands[0].type)[0 if product.attributes["transpose_a"] else 1]


def _reduced_tile(kernel: Kernel) -> int:
    """Elements of the largest tile that is reduced or scanned; 0 where there is none."""
    along = [op for op in kernel.body.walk() if op.definition.has(REDUCTION) or op.definition.has(SCAN)]
    return max((elements(op.operands[0]) for op in along), default=0)


def _stores(kernel: Kernel) -> list[Op]:
    return [op for op in kernel.body.walk() if op.name == "store"]


def _many_lines(kernel: Kernel) -> bool:
    """Whether a program stores more than one line."""
    return any(_rows(op) > 1 for op in _stores(kernel))


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
            staged = rows * BLOCK_K + BLOCK_K * COLUMNS + rows * COLUMNS
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
