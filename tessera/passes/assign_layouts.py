"""Decide where every tile's elements live in registers and how every buffer lies in shared memory.

Tiles that meet in an elementwise op, or are carried by a loop, form a group with one layout. Groups are anchored in
this order: a product's accumulator fragments; the fragments of an operand that is computed in registers; a reduction,
which wants its axis inside a warp; and else a row-major layout with wide vectors. What a reshape, a broadcast or a
reduction ties to a group follows it (a broadcast and a reduction: a slice of its layout) before the next one is
anchored. Where two groups must meet and differ, the lowering converts through shared memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from tessera.ir.core import Kernel, Op, Value
from tessera.ir.layout import (
    LinearLayout,
    RegisterLayout,
    SharedLayout,
    blocked,
    reduction_layout,
    shared_layout,
    transposed_layout,
)
from tessera.ir.opdef import ALIGNED, ELEMENTWISE, LOOP, REDUCTION, SCAN
from tessera.ir.ops.control import carried_values, constant_value
from tessera.ir.ops.tiles import format_of, k_block, negative_axis
from tessera.ir.stages import allocation
from tessera.ir.types import BufferType, TileType, dtype_of, int_shape
from tessera.passes.register_operands import computed_grid, in_registers
from tessera.passes.warpgroup import by_warpgroups
from tessera.target import fragments
from tessera.target.fragments import LINE_BLOCK, product_atom
from tessera.target.schedule import Schedule

SHARED_LINE = 256  # columns from which warps share the rows of a product that are reduced


@dataclass
class Layouts:
    """`tile`: layout of a tile value; `buffer`: layout of a buffer; `product`: (a, b, accumulator) layouts of an mma's
    k-block, by the op's id.
    """

    tile: dict[Value, RegisterLayout] = field(default_factory=dict)
    buffer: dict[Value, SharedLayout] = field(default_factory=dict)
    product: dict[int, tuple[RegisterLayout, RegisterLayout, RegisterLayout]] = field(default_factory=dict)


def warp_grid(shape: tuple[int, int], warps: int, one_warp_per_row: bool, lines: bool = False) -> tuple[int, int]:
    """(rows, columns) of warps over a product: rows of 16 first, as square as the tile, so that operands are shared.

    `lines`: rows are reduced. Those that are long are shared by the warps that a short tile would leave without work.
    """
    *less, rows = (rows for rows in fragments.grid_rows(warps) if rows == 1 or 16 * rows <= -(-shape[0] // 16) * 16)
    powers = warps & (warps - 1) == 0
    if lines and powers and shape[1] >= SHARED_LINE and shape[1] >= LINE_BLOCK * (warps // rows):
        return rows, warps // rows
    if one_warp_per_row:
        return rows, 1  # the spare warps of a short tile compute what another one does
    for fewer in reversed(less):
        if shape[1] // (warps // rows) <= 2 * (shape[0] // rows) or shape[1] < 16 * (warps // fewer):
            break
        rows = fewer
    return rows, warps // rows


def assign_layouts(kernel: Kernel, schedule: Schedule) -> Layouts:
    """Raises SourceError TS501 for a tile whose registers do not fit a thread."""
    layouts = Layouts()
    groups = _Groups(kernel)
    along = [op for op in kernel.body.walk() if _has_axis(op)]
    rows_reduced = {groups.of(value) for op in along if (value := _reduced_rows(op)) is not None}
    items = _narrowest(kernel, groups)
    known: dict[int, RegisterLayout] = {}
    products = [op for op in kernel.body.walk() if op.name == "mma"]
    computed = [op for op in products if in_registers(op)]
    # Accumulators that are an operand's fragments: each warp needs whole rows of them.
    fragments_of = {groups.of(op.operands[0]) for op in computed}
    whole_rows = rows_reduced | fragments_of
    shared = rows_reduced - fragments_of - {groups.of(op.result) for op in computed}  # rows that several warps may have
    grids = {groups.of(op.result): computed_grid(op, schedule.warps) for op in reversed(computed)}
    for op in products:
        group = groups.of(op.result)
        lines = group in shared and product_atom(format_of(op)) is not None
        grid = warp_grid(_shape(op.result), schedule.warps, group in whole_rows, lines)
        if by_warpgroups(op, schedule):
            grid, lines = (schedule.warps, 1), False
        elif group not in whole_rows:
            grid = grids.get(group, grid)  # products that add to the same accumulators have one
        layouts.product[op.id] = product_layouts(op, grid, lines)
        known.setdefault(group, layouts.product[op.id][2])
    for op in computed:
        known.setdefault(groups.of(op.operands[0]), whole_operand(op, layouts.product[op.id][0]))
    _spread(kernel, groups, known)
    # The largest tiles first: what they are computed from is then loaded into the registers where it is needed.
    for op in sorted(along, key=lambda op: -math.prod(int_shape(op.operands[0].type))):
        group = groups.of(op.operands[0])
        if group not in known:
            known[group] = layout_along(op, schedule, items[group])
            _spread(kernel, groups, known)
    for value in groups.values:
        group = groups.of(value)
        if group not in known:
            known[group] = coalesced(value, schedule, items[group])
            _spread(kernel, groups, known)
        layouts.tile[value] = known[group]
    _assign_buffers(kernel, layouts)
    return layouts


def _narrowest(kernel: Kernel, groups: _Groups) -> dict[int, int]:
    """Bytes of the narrowest element of each group, those that it is stored to included: its vectors suit that one.

    bf16 that is loaded, computed in f32 and stored as bf16 then moves 16 bytes an access, without a trip through shared
    memory in between.
    """
    items: dict[int, int] = {}

    def see(value: Value, size: int) -> None:
        items[groups.of(value)] = min(items.get(groups.of(value), 16), size)

    for value in groups.values:
        see(value, dtype_of(value.type).bytes)
    for op in kernel.body.walk():
        if op.name == "store":
            see(op.operand("value"), dtype_of(op.operand("view").type).bytes)
    return items


class _Groups:
    """Union-find over tile values that must share a layout. Values of different shapes are never in one group."""

    def __init__(self, kernel: Kernel):
        self.parent: dict[Value, Value] = {}
        self.values: list[Value] = []
        for op in kernel.body.walk():
            for region in op.regions:
                for value in region.arguments:
                    self._add(value)
            for value in op.results:
                self._add(value)
        for op in kernel.body.walk():
            if any(op.definition.has(trait) for trait in (ELEMENTWISE, ALIGNED, SCAN)):
                self._join([*op.results, *op.operands])
            elif op.name == "mma":
                self._join([op.result, *op.operands[2:]])
            elif op.definition.has(LOOP):
                for group in carried_values(op):
                    self._join(list(group))
            elif op.regions:
                for group in zip(op.results, *(region.ops[-1].operands for region in op.regions), strict=True):
                    self._join(list(group))

    def _add(self, value: Value) -> None:
        if isinstance(value.type, TileType):
            self.parent[value] = value
            self.values.append(value)

    def _join(self, values: list[Value]) -> None:
        tiles = [value for value in values if isinstance(value.type, TileType)]
        for value in tiles[1:]:
            self.parent[self._root(value)] = self._root(tiles[0])

    def _root(self, value: Value) -> Value:
        while self.parent[value] is not value:
            self.parent[value] = self.parent[self.parent[value]]
            value = self.parent[value]
        return value

    def of(self, value: Value) -> int:
        return id(self._root(value))


def product_layouts(
    op: Op, grid: tuple[int, int], lines: bool = False
) -> tuple[RegisterLayout, RegisterLayout, RegisterLayout]:
    """Layouts of one k-block of a product over a grid of warps: operand a, operand b and the accumulator."""
    transposed = op.attributes["transpose_a"], op.attributes["transpose_b"]
    return fragments.product_layouts(format_of(op), _shape(op.result), k_block(op), grid, transposed, lines)


def _shape(value: Value) -> tuple[int, int]:
    rows, columns = int_shape(value.type)
    return rows, columns


def whole_operand(op: Op, k_block_layout: RegisterLayout) -> RegisterLayout:
    """The layout of a whole left operand in registers, from that of one of its k-blocks."""
    rows, _ = k_block_layout.repeats
    return replace(k_block_layout, repeats=(rows, int_shape(op.operands[0].type)[1] // k_block(op)))


def _has_axis(op: Op) -> bool:
    """Whether the op reduces or scans its operand along an axis."""
    return op.definition.has(REDUCTION) or op.definition.has(SCAN)


def _reduced_rows(op: Op) -> Value | None:
    """The tile whose rows a reduction goes along: along its last axis, or along one of the two that this has become."""
    (value,) = op.operands
    shape = int_shape(value.type)
    axis, view = op.attributes["axis"] % len(shape), value.defining_op
    if view is not None and view.name == "reshape":
        before = int_shape(view.operands[0].type)
        if len(shape) == len(before) + 1 and shape[:-2] == before[:-1] and axis >= len(before) - 1:
            return view.operands[0]
    return value if axis == len(shape) - 1 else None


def layout_along(op: Op, schedule: Schedule, item: int | None = None) -> RegisterLayout:
    """What a reduction or a scan wants of its operand: each block of 32 along its axis inside a warp.

    `item`: bytes of the elements whose accesses should be 16 bytes wide (the operand's own).
    """
    shape = int_shape(op.operands[0].type)
    axis = negative_axis(op, len(shape)) + len(shape)
    return reduction_layout(shape, schedule.warps, axis, _vector(op.operands[0], item))


def coalesced(value: Value, schedule: Schedule, item: int | None = None) -> RegisterLayout:
    """Row-major with 16-byte vectors of elements of `item` bytes (the tile's own) where the last axis allows them."""
    return blocked(int_shape(value.type), schedule.warps, _vector(value, item))


def _vector(value: Value, item: int | None = None) -> int:
    shape = int_shape(value.type)
    last = shape[-1] if shape else 1
    vector = 16 // (item or dtype_of(value.type).bytes)
    while vector > 1 and last % vector:
        vector //= 2
    return vector


def sliced(layout: RegisterLayout, shape: tuple[int, ...], wanted: tuple[int, ...]) -> RegisterLayout:
    """The layout of a tile of shape `wanted` that spreads over `shape` held in `layout`: a slice per spread axis."""
    for axis, (small, large) in enumerate(zip(wanted, shape, strict=True)):
        if small == 1 and large != 1:
            layout = layout.slice(axis)
    return layout


def columns_layout(extract: Op, layout: RegisterLayout) -> RegisterLayout | None:
    """The layout of a part of a tile that is whole blocks of columns, in the registers where they are; None for any
    other part.
    """
    shape, starts = int_shape(extract.operands[0].type), extract.attributes["starts"]
    extents, width = tuple(extract.attributes["extents"]), layout.repeat_shape[-1]
    if any(starts[:-1]) or extents[:-1] != shape[:-1] or starts[-1] % width or extents[-1] % width:
        return None
    return replace(layout, repeats=(*layout.repeats[:-1], extents[-1] // width))


def reshaped(layout: RegisterLayout, shape: tuple[int, ...], wanted: tuple[int, ...]) -> RegisterLayout | None:
    """The same registers under a shape that has axes of size 1 more or fewer, or two axes for one; None for any other
    reshape.
    """
    if len(wanted) == len(shape) + 1 and 1 not in wanted:
        return _split(layout, shape, wanted)
    if [size for size in shape if size != 1] != [size for size in wanted if size != 1]:
        return None
    source = iter([axis for axis, size in enumerate(shape) if size != 1])
    axes = [next(source) if size != 1 else None for size in wanted]
    bases = {
        name: [tuple(0 if axis is None else vector[axis] for axis in axes) for vector in group]
        for name, group in layout.block.bases
    }
    repeats = tuple(1 if axis is None else layout.repeats[axis] for axis in axes)
    if math.prod(repeats) != math.prod(layout.repeats) or layout.group_axis not in (None, *axes):
        return None  # padding repeats, or groups of warps lie, along an axis of size 1
    groups = None if layout.group_axis is None else axes.index(layout.group_axis)
    return RegisterLayout(LinearLayout.of(len(wanted), **bases), repeats, layout.groups, groups)


def _split(layout: RegisterLayout, shape: tuple[int, ...], wanted: tuple[int, ...]) -> RegisterLayout | None:
    """The same registers where one axis has become two, the inner one a power of two that divides the block."""
    axis = next((a for a, size in enumerate(shape) if wanted[a] != size), len(shape))
    inner = wanted[axis + 1] if axis < len(shape) else 0
    same = axis < len(shape) and wanted[axis] * inner == shape[axis] and wanted[axis + 2 :] == shape[axis + 1 :]
    if not same or inner & (inner - 1) or layout.block_shape[axis] % inner:
        return None

    def split(vector: tuple[int, ...]) -> tuple[int, ...]:
        return (*vector[:axis], vector[axis] // inner, vector[axis] % inner, *vector[axis + 1 :])

    bases = {name: [split(vector) for vector in group] for name, group in layout.block.bases}
    repeats = (*layout.repeats[: axis + 1], 1, *layout.repeats[axis + 1 :])
    groups = layout.group_axis  # of the axis that is split, they step over whole blocks: along its outer part
    groups = groups + 1 if groups is not None and groups > axis else groups
    return RegisterLayout(LinearLayout.of(len(wanted), **bases), repeats, layout.groups, groups)


def _spread(kernel: Kernel, groups: _Groups, known: dict[int, RegisterLayout]) -> None:
    """Gives layouts to groups that reductions and broadcasts tie to groups that have one, until nothing changes."""
    changed = True
    while changed:
        changed = False
        for op in kernel.body.walk():
            if op.name == "reshape":
                changed |= _spread_reshape(op, groups, known)
                continue
            if op.name == "transpose":
                changed |= _spread_transpose(op, groups, known)
                continue
            if op.name == "extract":
                changed |= _spread_extract(op, groups, known)
                continue
            if op.name == "broadcast":
                large, small = op.result, op.operands[0]
            elif op.definition.has(REDUCTION):
                large, small = op.operands[0], op.result
            else:
                continue
            if groups.of(large) in known and groups.of(small) not in known:
                shapes = int_shape(large.type), int_shape(small.type)
                known[groups.of(small)] = sliced(known[groups.of(large)], *shapes)
                changed = True


def _spread_reshape(op: Op, groups: _Groups, known: dict[int, RegisterLayout]) -> bool:
    """A reshape that `reshaped` has a layout for keeps registers where they are, in both directions."""
    for source, target in ((op.operands[0], op.result), (op.result, op.operands[0])):
        if groups.of(source) in known and groups.of(target) not in known:
            layout = reshaped(known[groups.of(source)], int_shape(source.type), int_shape(target.type))
            if layout is not None:
                known[groups.of(target)] = layout
                return True
    return False


def _spread_extract(op: Op, groups: _Groups, known: dict[int, RegisterLayout]) -> bool:
    """Whole blocks of columns stay in their registers."""
    source, target = groups.of(op.operands[0]), groups.of(op.result)
    if source not in known or target in known:
        return False
    layout = columns_layout(op, known[source])
    if layout is not None:
        known[target] = layout
    return layout is not None


def _spread_transpose(op: Op, groups: _Groups, known: dict[int, RegisterLayout]) -> bool:
    """A transpose keeps every element in its thread: its users take the layout that follows."""
    source, target = groups.of(op.operands[0]), groups.of(op.result)
    if source in known and target not in known:
        known[target] = transposed_layout(known[source])
        return True
    if target in known and source not in known and _comes_from_buffers(op.operands[0]):
        known[source] = transposed_layout(known[target])
        return True
    return False


def _comes_from_buffers(value: Value) -> bool:
    """Whether a tile is computed, element by element, from parts of buffers alone, which any layout can be read in."""
    op = value.defining_op
    if op is None or not isinstance(value.type, TileType):
        return op is not None
    return op.name == "read" or op.definition.has(ELEMENTWISE) and all(map(_comes_from_buffers, op.operands))


def _assign_buffers(kernel: Kernel, layouts: Layouts) -> None:
    """Physical shapes: at least the logical one, and all that a product reads past its edges. All axes but the last
    are rows.
    """
    rows: dict[Value, int] = {}
    cols: dict[Value, int] = {}
    for op in kernel.body.walk():
        for value in op.results:
            if isinstance(value.type, BufferType) and allocation(value) is value:
                *leading, cols[value] = int_shape(value.type)
                rows[value] = math.prod(leading)
    for op in kernel.body.walk():
        if op.name == "mma":
            for role, value in zip("ab", op.operands[:2], strict=True):
                if role == "b" or not in_registers(op):
                    _require(op, role, value, layouts, rows, cols)
    for value, row_count in rows.items():
        layouts.buffer[value] = shared_layout(row_count, cols[value], dtype_of(value.type).bytes)


def _require(op: Op, role: str, value: Value, layouts: Layouts, rows: dict[Value, int], cols: dict[Value, int]) -> None:
    read = value.defining_op
    assert read is not None and read.name == "read", "stage_operands ran before"
    depth = k_block(op)
    flipped = op.attributes["transpose_a" if role == "a" else "transpose_b"]
    shape = int_shape(value.type)
    layout = layouts.product[op.id][0 if role == "a" else 1]
    k_axis = (0 if role == "b" else 1) ^ flipped
    physical = [0, 0]
    physical[k_axis] = -(-shape[k_axis] // depth) * depth
    physical[1 - k_axis] = layout.shape[0 if role == "a" else 1]
    buffer = allocation(read.operands[0])
    # A start that only the run knows is at most where the window still lies inside the buffer.
    latest = [size - extent for size, extent in zip(int_shape(buffer.type), shape, strict=True)]
    known = [constant_value(value) for value in read.operands[1:]] or [0, 0]
    row, col = (most if start is None else start for most, start in zip(latest, known, strict=True))
    rows[buffer] = max(rows[buffer], row + physical[0])
    cols[buffer] = max(cols[buffer], col + physical[1])
