"""What is known about an address: divisibility of indices and the widest aligned access that a window allows."""

from __future__ import annotations

from collections.abc import Mapping

from tessera.ir.core import Kernel, Value
from tessera.ir.dims import Size, divisor
from tessera.ir.strides import parameter_strides
from tessera.ir.types import ViewType, tensor_type

LIMIT = 1 << 20


Loops = Mapping[int, tuple[Value, Value]]


def loops_of(kernel: Kernel) -> dict[int, tuple[Value, Value]]:
    """(lower, step) of every loop by the identity of its region's block: blocks do not know the op that holds them."""
    return {id(op.regions[0]): (op.operands[0], op.operands[2]) for op in kernel.body.walk() if op.name == "for"}


def divisor_of(value: Value, dims: Mapping[str, int], loops: Loops) -> int:
    """A power of two that divides an integer scalar, given powers of two that divide the dims."""
    op = value.defining_op
    if op is None:  # a loop's index is lower + i * step
        loop = loops.get(id(value.owner)) if value.index == 0 else None
        return min(divisor_of(loop[0], dims, loops), divisor_of(loop[1], dims, loops)) if loop else 1
    inputs = (
        [divisor_of(v, dims, loops) for v in op.operands] if op.name in ("add", "sub", "mul", "neg", "cast") else []
    )
    if op.name == "constant":
        number = int(op.attributes["value"])
        return min(number & -number, LIMIT) if number else LIMIT
    if op.name == "size":
        return divisor(op.attributes["size"], dims, LIMIT)
    if op.name == "program_id":
        return op.attributes["scale"] & -op.attributes["scale"]
    if op.name == "mul":
        return min(inputs[0] * inputs[1], LIMIT)
    if op.name == "where":
        return min(divisor_of(value, dims, loops) for value in op.operands[1:])
    return min(inputs) if inputs else 1


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
