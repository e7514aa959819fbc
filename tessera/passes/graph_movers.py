"""Kernels of the graph ops that are no row group: moves of elements, reductions along other axes, indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tessera.dtypes import i64
from tessera.errors import InternalError
from tessera.ir.core import Op, Value
from tessera.ir.dims import Size
from tessera.ir.opdef import REDUCTION, SCAN
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import Shape, dtype_of, shape_of
from tessera.passes.fusion_cost import Sizes, count, power_of_two
from tessera.passes.graph_kernels import KernelMaker

ELEMENTS = 4096  # of a program's tile
WIDTH = 128  # columns of a tile that a copy moves
SIDE = 64  # of a tile that is transposed on the way


def mover_kernels(op: Op, sizes: Sizes) -> list[KernelMaker]:
    """The kernels of an op, in order; all write its result."""
    if op.definition.has(REDUCTION) or op.definition.has(SCAN):
        return [_along_axis(op, sizes)]
    make = _MAKERS.get(op.name)
    if make is None:
        raise InternalError("TS901", f"no kernel computes {op.name}", op.loc)
    return make(op, sizes)


def copy_kernel(value: Value, result: Value, sizes: Sizes, op: Op) -> KernelMaker:
    """Copies a contiguous tensor element by element; `result` stands for its new memory."""
    maker = KernelMaker(op.origin)
    total = count(shape_of(value.type))
    block = min(1024, power_of_two(sizes.guess(total)))
    length = maker.dim("T", total)
    (offset,) = maker.programs([(length, block)])
    tile = maker.load(maker.window(maker.view(value, (length,)), [offset], (block,), (True,)))
    maker.store(maker.window(maker.view(result, (length,), "out"), [offset], (block,), (True,)), tile)
    return maker


def _symbols(maker: KernelMaker, shape: Shape, prefix: str = "N") -> Shape:
    """The shape over dims of the kernel: sizes that are not numbers get a name by their axis."""
    return tuple(maker.dim(f"{prefix}{axis}", size) for axis, size in enumerate(shape))


def _blocks(sizes: Sizes, shape: Shape, axes: Sequence[int], most: Sequence[int]) -> list[int]:
    """The extent of a tile along each axis: 1 but for `axes`, which get at most `most`."""
    blocks = [1] * len(shape)
    for axis, limit in zip(axes, most, strict=True):
        blocks[axis] = min(limit, power_of_two(sizes.guess(shape[axis])))
    return blocks


def _last_two(shape: Shape) -> list[int]:
    return list(range(len(shape)))[-2:]


def _offsets(maker: KernelMaker, shape: Shape, blocks: Sequence[int]) -> list[Value]:
    """The offset of a program's tile along each axis; the last axis runs fastest."""
    found = maker.programs(list(reversed(list(zip(shape, blocks, strict=True)))))
    return list(reversed(found))


# Moves ----------------------------------------------------------------------------------------------------------------


def _permute(op: Op, sizes: Sizes) -> list[KernelMaker]:
    maker = KernelMaker(op.origin)
    merged, order = _merged(shape_of(op.operands[0].type), op.attributes["permutation"])
    source_shape = _symbols(maker, merged)
    result_shape = tuple(source_shape[axis] for axis in order)
    source = maker.view(op.operands[0], source_shape)
    result = maker.view(op.result, result_shape, "out")
    rank = len(order)
    last = rank - 1
    moves = order[last] != last
    # The tile covers the last axis of both, so that both are read and written along their rows.
    other = order[last] if moves else order[last - 1]
    actual = tuple(
        sizes.guess(size) for size in _merged(shape_of(op.operands[0].type), op.attributes["permutation"])[0]
    )
    blocks = [1] * rank
    blocks[last] = min(SIDE if moves else WIDTH, power_of_two(actual[last]))
    blocks[other] = min(SIDE if moves else ELEMENTS // WIDTH, power_of_two(actual[other]))
    offsets = _offsets(maker, source_shape, blocks)
    kept = [axis in (other, last) for axis in range(rank)]
    tile = maker.load(maker.window(source, offsets, blocks, kept))
    if moves:
        tile = maker.builder.value("transpose", tile)
    window = maker.window(
        result,
        [offsets[axis] for axis in order],
        [blocks[axis] for axis in order],
        [kept[axis] for axis in order],
    )
    maker.store(window, tile)
    return [maker]


def _merged(shape: Shape, order: Sequence[int]) -> tuple[Shape, list[int]]:
    """A permutation with axes that stay neighbours, in order, made one."""
    runs: list[list[int]] = []
    for axis in order:
        if runs and axis == runs[-1][-1] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    by_source = sorted(runs)
    merged = tuple(count([shape[axis] for axis in run]) for run in by_source)
    return merged, [by_source.index(run) for run in runs]


def _around(shape: Shape, axis: int) -> tuple[Size, Size]:
    """How many elements lie in the axes before and behind an axis."""
    return count(shape[:axis]), count(shape[axis + 1 :])


def _concatenate(op: Op, sizes: Sizes) -> list[KernelMaker]:
    """One kernel per part: its rows go to a range of the result's columns."""
    shape = shape_of(op.result.type)
    axis = negative_axis(op, len(shape)) + len(shape)
    before, behind = _around(shape, axis)
    makers, start = [], 0
    for part in op.operands:
        width = shape_of(part.type)[axis]
        makers.append(_place(op, part, before, width * behind, start * behind, shape[axis] * behind, sizes))
        start = start + width
    return makers


def _place(op: Op, part: Value, rows: Size, width: Size, start: Size, total: Size, sizes: Sizes) -> KernelMaker:
    maker = KernelMaker(op.origin)
    shape = _symbols(maker, (rows, width))
    source = maker.view(part, shape)
    result = maker.view(op.result, (shape[0], maker.dim("R", total)), "out")
    blocks = _blocks(sizes, (rows, width), (0, 1), (ELEMENTS // WIDTH, WIDTH))
    row, column = _offsets(maker, shape, blocks)
    tile = maker.load(maker.window(source, [row, column], blocks, (True, True)))
    offset = maker.index(maker.dim("first", start))
    end = maker.builder.value("add", offset, maker.index(shape[1]))
    # Nothing beyond this part's columns: those behind are another part's.
    bounded = maker.builder.value("limit", result, maker.index(shape[0]), end)
    target = maker.builder.value("add", column, offset)
    maker.store(maker.window(bounded, [row, target], blocks, (True, True)), tile)
    return maker


def _extract(op: Op, sizes: Sizes) -> list[KernelMaker]:
    maker = KernelMaker(op.origin)
    source_shape, shape = shape_of(op.operands[0].type), shape_of(op.result.type)
    source = maker.view(op.operands[0], _symbols(maker, source_shape))
    own = _symbols(maker, shape, "R")
    result = maker.view(op.result, own, "out")
    axes = _last_two(shape)
    blocks = _blocks(sizes, shape, axes, (ELEMENTS // WIDTH, WIDTH)[-len(axes) :])
    offsets = _offsets(maker, own, blocks)
    starts = [maker.dim(f"first{axis}", start) for axis, start in enumerate(op.attributes["starts"])]
    shifted = [
        offset if start == 0 else maker.builder.value("add", offset, maker.index(start))
        for offset, start in zip(offsets, starts, strict=True)
    ]
    kept = [axis in axes for axis in range(len(shape))]
    # The tile may reach beyond the part, into elements that are not stored, but never beyond the tensor unmasked.
    tile = maker.load(maker.window(source, shifted, blocks, kept))
    maker.store(maker.window(result, offsets, blocks, kept), tile)
    return [maker]


def _broadcast(op: Op, sizes: Sizes) -> list[KernelMaker]:
    maker = KernelMaker(op.origin)
    shape = shape_of(op.result.type)
    given = shape_of(op.operands[0].type)
    own = _symbols(maker, shape)
    narrow = tuple(1 if size == 1 else own[axis] for axis, size in enumerate(given))
    source, result = maker.view(op.operands[0], narrow), maker.view(op.result, own, "out")
    axes = _last_two(shape)
    blocks = _blocks(sizes, shape, axes, (ELEMENTS // WIDTH, WIDTH)[-len(axes) :])
    offsets = _offsets(maker, own, blocks)
    kept = [axis in axes for axis in range(len(shape))]
    spread = [size == 1 and shape[axis] != 1 for axis, size in enumerate(given)]
    window = maker.window(
        source,
        [0 if s else offset for s, offset in zip(spread, offsets, strict=True)],
        [1 if s else block for s, block in zip(spread, blocks, strict=True)],
        kept,
    )
    tile = maker.builder.value("broadcast", maker.load(window), shape=tuple(blocks[axis] for axis in axes))
    maker.store(maker.window(result, offsets, blocks, kept), tile)
    return [maker]


# Along an axis --------------------------------------------------------------------------------------------------------


def _along_axis(op: Op, sizes: Sizes) -> KernelMaker:
    """A reduction or a scan along an axis that is not the last: a program takes some columns of one slice."""
    maker = KernelMaker(op.origin)
    shape = shape_of(op.operands[0].type)
    axis = negative_axis(op, len(shape)) + len(shape)
    before, behind = _around(shape, axis)
    length = sizes.fix(shape[axis])
    outer, inner = maker.dim("P", before), maker.dim("N", behind)
    kept_length = 1 if op.definition.has(REDUCTION) else length
    source = maker.view(op.operands[0], (outer, length, inner))
    result = maker.view(op.result, (outer, kept_length, inner), "out")
    block = min(power_of_two(sizes.guess(behind)), max(8, min(WIDTH, ELEMENTS // power_of_two(length))))
    column, slice_ = maker.programs([(inner, block), (outer, 1)])
    kept = (False, True, True)
    tile = maker.load(maker.window(source, [slice_, 0, column], (1, length, block), kept))
    tile = maker.builder.value(op.name, tile, **{**op.attributes, "axis": 0})
    maker.store(maker.window(result, [slice_, 0, column], (1, kept_length, block), kept), tile)
    return maker


def _iota(op: Op, sizes: Sizes) -> list[KernelMaker]:
    """Each element is its number among all, divided by what lies behind the axis, modulo the axis."""
    maker = KernelMaker(op.origin)
    shape = shape_of(op.result.type)
    axis = negative_axis(op, len(shape)) + len(shape)
    _, behind = _around(shape, axis)
    total = count(shape)
    block = min(1024, power_of_two(sizes.guess(total)))
    length = maker.dim("T", total)
    result = maker.view(op.result, (length,), "out")
    (offset,) = maker.programs([(length, block)])
    builder = maker.builder
    number = builder.value("add", builder.value("iota", shape=(block,), axis=0, dtype=i64), offset)
    inner, own = maker.index(maker.dim("N", behind)), maker.index(maker.dim("A", shape[axis]))
    index = builder.value("mod", builder.value("floordiv", number, inner), own)
    tile = builder.value("cast", index, dtype=dtype_of(op.result.type))
    maker.store(maker.window(result, [offset], (block,), (True,)), tile)
    return [maker]


_MAKERS: dict[str, Callable[[Op, Sizes], list[KernelMaker]]] = {
    "permute": _permute,
    "concatenate": _concatenate,
    "extract": _extract,
    "broadcast": _broadcast,
    "iota": _iota,
}

__all__ = ["copy_kernel", "mover_kernels"]
