"""How a kernel reads a tensor that is another one moved: in place, through windows of the other one's memory.

Parts, orders of axes, axes of size 1 and wider dtypes cost nothing where a tile is loaded: an `Access` says where each
axis of a value lies in the tensor that has the memory, its root. What no window describes has a kernel that copies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tessera.ir.core import Op, Value
from tessera.ir.dims import Size
from tessera.ir.types import Shape, shape_of
from tessera.passes.graph_groups import is_alias, is_view, is_widening


@dataclass(frozen=True)
class Access:
    """Axis i of the value is axis `axes[i]` of `root`, from `starts[axes[i]]` on; None: an axis of size 1 that the root
    does not have. Of the other axes of the root one index, `starts`, is taken.
    """

    root: Value
    axes: tuple[int | None, ...]
    starts: tuple[Size, ...]
    viewed: bool  # not the root itself, or a wider one


def anywhere(op: Op) -> bool:
    return True


def access(value: Value, through: Callable[[Op], bool] = anywhere) -> Access:
    """How a value is read: the longest way back through views, unit axes and wider dtypes, if there is a view on it.

    `through`: which of these ops are not there when the value is read.
    """
    ops: list[Op] = []
    source = value
    while (op := source.defining_op) is not None and through(op) and (is_view(op) or is_widening(op) or unit(op)):
        ops.append(op)
        source = op.operands[0]
    while ops and unit(ops[-1]):
        source = ops.pop().result  # a reshape of a root is a name of it
    if not any(map(is_view, ops)):
        source, ops = value, []
        while (op := source.defining_op) is not None and through(op) and is_widening(op):
            source = op.operands[0]
    shape = shape_of(source.type)
    axes: list[int | None] = list(range(len(shape)))
    starts: list[Size] = [0] * len(shape)
    for op in reversed(ops):
        if op.name == "extract":
            for axis, start in zip(axes, op.attributes["starts"], strict=True):
                if axis is not None:
                    starts[axis] = starts[axis] + start
        elif op.name == "permute":
            axes = [axes[axis] for axis in op.attributes["permutation"]]
        elif op.name == "reshape":
            axes = _reshaped(axes, shape_of(op.operands[0].type), shape_of(op.result.type))
    return Access(source, tuple(axes), tuple(starts), bool(ops))


def unit(op: Op) -> bool:
    """Whether an op is a reshape that adds or drops axes of size 1 and nothing else."""
    if not is_alias(op):
        return False
    return _long(shape_of(op.operands[0].type)) == _long(shape_of(op.result.type))


def _long(shape: Shape) -> list[Size]:
    return [size for size in shape if size != 1]


def _reshaped(axes: Sequence[int | None], before: Shape, after: Shape) -> list[int | None]:
    kept = [axis for axis, size in zip(axes, before, strict=True) if size != 1]
    return [None if size == 1 else kept.pop(0) for size in after]


def rows_in_place(value: Value, found: Access) -> tuple[Size, Size] | None:
    """The first row and the first column of a value in its root, where both are matrices of rows; None: it is none.

    The axes but the last are those of the root, all of them, but for a part of the first one.
    """
    shape, root = shape_of(value.type), shape_of(found.root.type)
    if list(found.axes) != list(range(len(root))) or not root:
        return None
    inner: Size = 1
    for axis in range(len(root) - 1):
        if axis and (found.starts[axis] != 0 or shape[axis] != root[axis]):
            return None
        inner = inner * root[axis] if axis else inner
    first = found.starts[0] * inner if len(root) > 1 else 0
    return first, found.starts[-1]


__all__ = ["Access", "access", "rows_in_place", "unit"]
