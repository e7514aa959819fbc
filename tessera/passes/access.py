"""What is known about an address: the widest aligned access that a window allows."""

from __future__ import annotations

from tessera.ir.core import Kernel, Value
from tessera.ir.dims import Size, divisor
from tessera.ir.divisors import LIMIT, Loops, divisor_of, loops_of
from tessera.ir.strides import parameter_strides
from tessera.ir.types import ViewType, tensor_type


def access_bytes(view: Value, kernel: Kernel, loops: Loops) -> int:
    """The widest access, in bytes and at most 16, that is aligned at every row of a window and at every program."""
    dims = kernel.attributes.get("divisors", {})
    offsets: dict[int, list[Value]] = {}
    root, axes, extents = _resolve(view, offsets)
    type_ = tensor_type(root.type)
    assert type_ is not None
    item = type_.dtype.bytes
    if not axes or axes[-1] != len(type_.shape) - 1:
        return item
    steps = parameter_strides(root.name, type_.shape, kernel.attributes)
    if steps[-1] != 1:  # neighbours in a row are no neighbours in memory
        return item
    aligned = kernel.attributes.get("alignment", {}).get(root.name, 16)
    for axis, stride in enumerate(steps):
        stride_bytes = divisor(stride, dims, LIMIT) * item
        for offset in offsets.get(axis, ()):
            aligned = min(aligned, divisor_of(offset, dims, loops) * stride_bytes)
        if axis in axes[:-1] and extents[axes.index(axis)] != 1:
            aligned = min(aligned, stride_bytes)
    return max(item, min(aligned, 16))


def in_whole_pieces(view: Value, count: int, kernel: Kernel, loops: Loops) -> bool:
    """Whether `count` elements of the last axis, at a multiple of `count`, are in the window all or none.

    That is so where each of its ends, and each end of the windows that it is a part of, is such a multiple.
    """
    dims = kernel.attributes.get("divisors", {})
    offsets: dict[int, list[Value]] = {}
    root, axes, _ = _resolve(view, offsets)
    type_ = tensor_type(root.type)
    assert type_ is not None
    if not axes or axes[-1] != len(type_.shape) - 1:
        return False
    ends = [type_.shape[-1]]
    value = view
    while (op := value.defining_op) is not None and op.name != "element":
        if op.name != "window":
            return False
        ends.append(op.attributes["extents"][-1])
        value = op.operands[0]
    return all(divisor(end, dims, LIMIT) % count == 0 for end in ends) and all(
        divisor_of(offset, dims, loops) % count == 0 for offset in offsets.get(axes[-1], ())
    )


def _resolve(view: Value, offsets: dict[int, list[Value]]) -> tuple[Value, list[int], list[Size]]:
    """The parameter behind a view, which of its axes the view keeps, the view's extents; collects offsets by axis."""
    assert isinstance(view.type, ViewType)
    op = view.defining_op
    if op is None or op.name == "element":
        return view if op is None else op.operands[0], list(range(len(view.type.shape))), list(view.type.shape)
    root, axes, _ = _resolve(op.operands[0], offsets)
    if op.name == "limit":
        return root, axes, list(view.type.shape)
    for axis, offset in zip(axes, op.operands[1:], strict=True):
        offsets.setdefault(axis, []).append(offset)
    kept = [axis for axis, keep in zip(axes, op.attributes["kept"], strict=True) if keep]
    return root, kept, list(view.type.shape)


__all__ = ["Loops", "access_bytes", "divisor_of", "in_whole_pieces", "loops_of"]
