"""Group neighbours along grid axis 0 in clusters, whose programs run at the same time and can load for each other.

With `Schedule.cluster` c, axis 0 of the grid counts clusters, and a last axis the programs of each:

    a, b = program_id(0), program_id(1)     a, b = program_id(0) * c + program_id(2), program_id(1)
    grid (g0, g1)                           grid (cdiv(g0, c), g1, c)

`order_programs` then puts whole clusters in order, `persist` lets the programs of one go from cluster to cluster
together, and `split_roles` finds what they load alike: what depends on axis 1 only, like the right operand of a product
whose rows are along axis 0. Programs behind the last one look at windows outside of their tensors, of which loads give
zeros and stores leave everything as it is. Exact.
"""

from __future__ import annotations

from tessera.dtypes import i64
from tessera.ir import dims
from tessera.ir.clusters import PLACE_AXIS, derived
from tessera.ir.core import (
    Block,
    Builder,
    Kernel,
    Mapping,
    Op,
    Value,
    add_notes,
    clone_kernel,
    clone_op,
    clone_with_regions,
    new_kernel_like,
)
from tessera.ir.opdef import UNORDERED
from tessera.ir.ops.control import constant_value
from tessera.ir.programs import counts_multiprocessors
from tessera.ir.types import ViewType
from tessera.passes.persist import why_in_order
from tessera.target.schedule import Schedule

CLIPPED = frozenset(("load", "store", "copy_async"))  # what looks at a window only where that is inside its tensor
WINDOWS = frozenset(("window", "limit", "element"))


def form_clusters(kernel: Kernel, schedule: Schedule) -> Kernel:
    """The kernel with its programs in clusters; itself, with a note of the reason, where that cannot be."""
    cluster, grid = schedule.cluster, kernel.attributes.get("grid", (1,))
    if cluster == 1:
        return kernel
    reason = _reason(kernel, schedule)
    if reason:
        new, _ = clone_kernel(kernel)
        note = f"cluster = {cluster} has no effect: {reason}"
        add_notes(new, note)
        return new
    new, builder, mapping = new_kernel_like(kernel)
    new.attributes["grid"] = (dims.cdiv(grid[0], cluster), *(grid[1:] or (1,)), cluster)
    new.attributes["cluster"] = cluster
    _copy(kernel.body, builder, mapping, cluster)
    return new


def _reason(kernel: Kernel, schedule: Schedule) -> str:
    """Why a kernel's programs form no clusters, as a clause; empty where they do."""
    grid = kernel.attributes.get("grid", (1,))
    if schedule.copies != "tma" or not schedule.persistent:
        return "programs load for each other where they are persistent and copies = 'tma'"
    if len(grid) > PLACE_AXIS or counts_multiprocessors(grid):
        return f"the grid has {len(grid)} axes"
    if any(op.name == "num_programs" for op in kernel.body.walk()):
        return "the kernel asks for the number of its programs"
    if grid[0] == 1:
        return "there is one program along axis 0"
    ordered = why_in_order(kernel)
    if ordered or dims.mod(grid[0], schedule.cluster) == 0:
        return ordered
    return _why_not_beyond(kernel)


def _why_not_beyond(kernel: Kernel) -> str:
    """Why no program may run behind the last one along axis 0, as a clause."""
    rows = derived(kernel, lambda op: op.name == "program_id" and op.attributes["axis"] == 0)
    for op in kernel.body.walk():
        views = any(isinstance(value.type, ViewType) for value in op.operands)
        fits = not views or op.name in CLIPPED or op.name in WINDOWS and not any(v in rows for v in _indices(op))
        if not fits or op.definition.has(UNORDERED):
            return "programs along axis 0 are not known to be a multiple, and what they choose by it is more than tiles"
    return ""


def _indices(op: Op) -> list[Value]:
    """The operands of an op that choose among things instead of moving a window that is clipped."""
    if op.name != "window":
        return op.operands[1:]
    return [value for value, kept in zip(op.operands[1:], op.attributes["kept"], strict=True) if not kept]


def _copy(block: Block, builder: Builder, mapping: Mapping, cluster: int) -> None:
    for op in block.ops:
        builder.at(op)
        if op.name == "program_id" and op.attributes["axis"] == 0:
            mapping[op.result] = _id(op, builder, cluster)
        elif (divisor := _divided_by(op)) and divisor % cluster == 0:
            mapping[op.result] = _part(op, builder, divisor, cluster)
        elif op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _copy(old, inner, mapping, cluster))
        else:
            clone_op(builder, op, mapping)


def _id(op: Op, builder: Builder, cluster: int) -> Value:
    row, place = (builder.value("program_id", axis=axis) for axis in (0, PLACE_AXIS))
    first = builder.value("mul", row, _constant(builder, cluster))
    number, scale = builder.value("add", first, place), op.attributes["scale"]
    return number if scale == 1 else builder.value("mul", number, _constant(builder, scale))


def _divided_by(op: Op) -> int:
    """The constant by which an op divides the index along axis 0, as where that counts column tiles fastest; else 0."""
    made = op.operands[0].defining_op if op.name in ("floordiv", "mod") else None
    if made is None or made.name != "program_id" or made.attributes != {"axis": 0, "scale": 1}:
        return 0
    divisor = constant_value(op.operands[1])
    return divisor if isinstance(divisor, int) and divisor > 0 else 0


def _part(op: Op, builder: Builder, divisor: int, cluster: int) -> Value:
    """Quotient or remainder of row * cluster + place by a multiple of the cluster: the place is in the remainder."""
    row = builder.value("program_id", axis=0)
    if op.name == "floordiv":
        return builder.value("floordiv", row, _constant(builder, divisor // cluster))
    place = builder.value("program_id", axis=PLACE_AXIS)
    if divisor == cluster:
        return place
    first = builder.value("mod", row, _constant(builder, divisor // cluster))
    return builder.value("add", builder.value("mul", first, _constant(builder, cluster)), place)


def _constant(builder: Builder, value: int) -> Value:
    return builder.value("constant", value=value, dtype=i64)
