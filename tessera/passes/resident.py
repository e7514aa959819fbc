"""Left operands of products that shared memory holds whole: rows that are computed once, for all slices along K.

A product that is computed in slices takes its left operand K slice by K slice, and so each slice of columns computes
the operand again, and what else uses it does, too. A *placed* operand is computed once for some rows: in the outermost
block that knows them, and every slice of it, for whatever use, is read from there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from tessera.ir.core import Block, Builder, Kernel, Op, Value
from tessera.ir.opdef import ELEMENTWISE
from tessera.ir.types import TileType, dtype_of, int_shape

if TYPE_CHECKING:
    from tessera.passes.slicing import Part, Scope, Slicer


def left_operands(kernel: Kernel, streamed: Collection[Value]) -> set[Value]:
    """The left operands of products that no buffer holds, before any reshape: loaded tiles, and those that are computed
    element by element.
    """
    found = set()
    for op in kernel.body.walk():
        if op.name == "mma" and len(int_shape(op.result.type)) == 2 and not op.attributes["transpose_a"]:
            value = without_reshape(op.operands[0])
            made = value.defining_op
            if made is None or made.regions:
                continue
            loaded = made.name == "load" or made.name == "read" and made.operands[0] in streamed
            if (loaded or made.definition.has(ELEMENTWISE)) and _ends_in_rows(value, op.operands[0]):
                found |= {value, *_invariant(value, set(kernel.parameters))}
    return found


def _invariant(value: Value, parameters: set[Value]) -> set[Value]:
    """The loaded tiles behind an operand that stay the same in a loop in which the operand changes."""
    changing, found, pending = _arguments(value) - parameters, set(), [value]
    while pending:
        op = pending.pop().defining_op
        if op is None or op.regions:
            continue
        for operand in op.operands:
            if isinstance(operand.type, TileType):
                made = operand.defining_op
                same_shape = int_shape(operand.type) == int_shape(value.type)
                if (
                    made is not None
                    and made.name == "load"
                    and same_shape
                    and _arguments(operand) - parameters < changing
                ):
                    found.add(operand)
                pending.append(operand)
    return found


def without_reshape(value: Value) -> Value:
    """The tile behind reshapes."""
    while value.defining_op is not None and value.defining_op.name == "reshape":
        value = value.defining_op.operands[0]
    return value


def _ends_in_rows(value: Value, operand: Value) -> bool:
    return int_shape(value.type)[-1] == int_shape(operand.type)[-1]


def part_of_rows(slicer: Slicer, scope: Scope, op: Op, part: Part) -> Value:
    """A part of the placed result of `op`: read from the buffer that holds the rows of that part.

    The buffer is two-dimensional, as products take it; a tile of another rank is its reshape.
    """
    *leading, last = part
    rows: Part = (*leading, None)
    for holder in scope.chain():
        if (op.result, rows) in holder.buffers:
            buffer = holder.buffers[op.result, rows]
            break
    else:
        buffer = _place(slicer, home(scope, op.result, rows), op, rows)
    height = int_shape(buffer.type)[0]
    builder = scope.builder.at(op)
    if last is None:
        tile = builder.value("read", buffer, hint=op.result.name)
        width = int_shape(buffer.type)[1]
    else:
        width = last.extent
        tile = builder.value(
            "read", buffer, scope.at_zero(), last.start, extents=(height, width), hint=op.result.name
        )  # fmt: skip
    shape = tuple(
        size if cut is None else cut.extent for cut, size in zip(part, int_shape(op.result.type), strict=True)
    )
    return tile if shape == (height, width) else builder.value("reshape", tile, shape=shape, hint=op.result.name)


def _place(slicer: Slicer, scope: Scope, op: Op, rows: Part) -> Value:
    """Computes rows of a tile and writes them to a new buffer, in `scope`."""
    tile = slicer.made(scope, op, rows)
    *leading, width = int_shape(tile.type)
    height = 1
    for size in leading:
        height *= size
    top = Builder(Block(), scope.builder.at(op).origin)
    buffer = top.value(
        "alloc_shared",
        shape=(height, width),
        dtype=dtype_of(tile.type),
        swizzle="xor",
        hint=op.result.name or "left_operand",
    )
    slicer.allocations += top.block.ops
    if len(leading) != 1:
        tile = scope.builder.value("reshape", tile, shape=(height, width), hint=op.result.name)
    scope.builder.op("write", [buffer, tile])
    scope.buffers[op.result, rows] = buffer
    return buffer


def home(scope: Scope, value: Value, part: Part) -> Scope:
    """The outermost scope in which a part of a tile can be computed: that of its cuts, of the loops whose index or
    carried values it is computed from.
    """
    depth = max((cut.depth for cut in part if cut is not None), default=0)
    chain = scope.chain()
    arguments = _arguments(value)
    for holder in chain:
        regions = holder.loop.regions if holder.loop is not None else ()
        if holder.depth >= depth and any(argument in arguments for region in regions for argument in region.arguments):
            return holder
    return next(holder for holder in reversed(chain) if holder.depth >= depth)


def _arguments(value: Value) -> set[Value]:
    """The arguments of blocks that a value is computed from."""
    pending, seen, found = [value], set(), set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        op = value.defining_op
        if op is None:
            found.add(value)
            continue
        pending += op.operands
        for region in op.regions:
            pending += [operand for inner in region.walk() for operand in inner.operands]
    return found


__all__ = ["home", "left_operands", "part_of_rows", "without_reshape"]
