"""Operands of products that shared memory holds for all of K: made once, for all slices along K and all other uses.

A product that is computed in slices takes its operands K slice by K slice. So each slice of columns computes the left
operand again, and what else uses it does, too; and each slice of rows loads the right one again. A *placed* operand is
made once for some rows, or columns: in the outermost block that knows them, and every slice of it, for whatever use, is
read from there.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

from tessera.ir.core import Block, Builder, Kernel, Op, Value
from tessera.ir.opdef import ELEMENTWISE
from tessera.ir.types import TileType, dtype_of, int_shape

if TYPE_CHECKING:
    from tessera.passes.slicing import Part, Scope, Slicer


def placed_operands(kernel: Kernel, streamed: Collection[Value], which: str) -> dict[Value, int]:
    """The operands of products that no buffer holds, before any reshape, and the axis along which each is placed whole.

    `which` is the field `resident` of a schedule. Left ones are loaded tiles, and those that are computed element by
    element, with what of these is the same in all iterations of a loop; right ones are loaded.
    """
    found: dict[Value, int] = {}
    for op in kernel.body.walk() if which else ():
        if op.name != "mma" or len(int_shape(op.result.type)) != 2:
            continue
        left, right = (without_reshape(operand) for operand in op.operands[:2])
        computed = left.defining_op is not None and left.defining_op.definition.has(ELEMENTWISE)
        rows_stay = int_shape(left.type)[-1] == int_shape(op.operands[0].type)[-1]
        if (computed or _is_loaded(left, streamed)) and rows_stay and not op.attributes["transpose_a"]:
            last = len(int_shape(left.type)) - 1
            found[left] = last
            found.update(dict.fromkeys(_invariant(left, set(kernel.parameters)), last))
        if which == "both" and right is op.operands[1] and _is_loaded(right, streamed):
            found[right] = 1 if op.attributes["transpose_b"] else 0
    return found


def _is_loaded(value: Value, streamed: Collection[Value]) -> bool:
    op = value.defining_op
    return op is not None and (op.name == "load" or op.name == "read" and op.operands[0] in streamed)


def _invariant(value: Value, parameters: set[Value]) -> set[Value]:
    """The loaded tiles behind an operand that stay the same in a loop in which the operand changes."""
    changing, found, pending = _arguments(value) - parameters, set(), [value]
    while pending:
        op = pending.pop().defining_op
        if op is None or op.regions:
            continue
        for operand in op.operands:
            if isinstance(operand.type, TileType):
                same_shape = int_shape(operand.type) == int_shape(value.type)
                if same_shape and _is_loaded(operand, ()) and _arguments(operand) - parameters < changing:
                    found.add(operand)
                pending.append(operand)
    return found


def without_reshape(value: Value) -> Value:
    """The tile behind reshapes."""
    while value.defining_op is not None and value.defining_op.name == "reshape":
        value = value.defining_op.operands[0]
    return value


def placed_part(slicer: Slicer, scope: Scope, op: Op, part: Part) -> Value:
    """A part of the placed result of `op`: read from the buffer that holds all of its axis.

    The buffer is two-dimensional, as products take it; a tile of another rank is its reshape.
    """
    axis = slicer.placed[op.result]
    whole: Part = tuple(None if number == axis else cut for number, cut in enumerate(part))
    for holder in scope.chain():
        if (op.result, whole) in holder.buffers:
            buffer = holder.buffers[op.result, whole]
            break
    else:
        buffer = _place(slicer, home(scope, op.result, whole), op, whole)
    builder, extents = scope.builder.at(op), list(int_shape(buffer.type))
    cut = part[axis]
    if cut is None:
        tile = builder.value("read", buffer, hint=op.result.name)
    else:
        along = 1 if axis else 0  # axes before the last are merged
        offsets = [scope.at_zero()] * 2
        offsets[along], extents[along] = cut.start, cut.extent
        tile = builder.value("read", buffer, *offsets, extents=tuple(extents), hint=op.result.name)
    sizes = zip(part, int_shape(op.result.type), strict=True)
    shape = tuple(size if cut is None else cut.extent for cut, size in sizes)
    return tile if shape == tuple(extents) else builder.value("reshape", tile, shape=shape, hint=op.result.name)


def _place(slicer: Slicer, scope: Scope, op: Op, part: Part) -> Value:
    """Puts a part of a tile into a new buffer, in `scope`: computed and written, or copied where it is but loaded."""
    sizes = zip(part, int_shape(op.result.type), strict=True)
    *leading, width = (size if cut is None else cut.extent for cut, size in sizes)
    shape = (math.prod(leading), width)
    top = Builder(Block(), scope.builder.at(op).origin)
    name = op.result.name or ("operand" if slicer.placed[op.result] else "right_operand")
    buffer = top.value("alloc_shared", shape=shape, dtype=dtype_of(op.result.type), swizzle="xor", hint=name)
    slicer.allocations += top.block.ops
    tile = slicer.made(scope, op, part)
    load = tile.defining_op
    if load is not None and load.name == "load" and len(leading) == 1:
        scope.builder.block.ops.remove(load)
        token = scope.builder.value("copy_async", buffer, load.operands[0], bypass_l1=True)
        scope.builder.op("wait", [token])
    else:
        if len(leading) != 1:
            tile = scope.builder.value("reshape", tile, shape=shape, hint=op.result.name)
        scope.builder.op("write", [buffer, tile])
    scope.buffers[op.result, part] = buffer
    return buffer


def home(scope: Scope, value: Value, part: Part) -> Scope:
    """The outermost scope of a program in which a part of a tile can be computed: that of its cuts, of the loops whose
    index or carried values it is computed from.
    """
    chain = scope.chain()
    depth = max((cut.depth for cut in part if cut is not None), default=0)
    depth = max(depth, *(holder.depth for holder in chain if holder.program), 0)
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


__all__ = ["home", "placed_operands", "placed_part", "without_reshape"]
