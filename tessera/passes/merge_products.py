"""Make one product of several that multiply one tensor by parts of another that lie side by side.

    q = x @ w[:, 0:n]                  all = x @ w[:, 0:3n]
    k = x @ w[:, n:2n]         ->      q, k, v = parts of all, which lie between others of its columns
    v = x @ w[:, 2n:3n]

The left operand is read once and there is one launch, where there were several. What follows reads the parts in place
(`sibling_products`). Exact: an element is the same sum.
"""

from __future__ import annotations

from collections.abc import Mapping

from tessera.ir.core import Builder, Kernel, Op, Value, clone_op, new_kernel_like, uses
from tessera.ir.core import Mapping as Values
from tessera.ir.dead_code import drop_unused
from tessera.ir.types import shape_of
from tessera.passes.fusion_cost import Sizes
from tessera.passes.plan_fusion import plan_fusion
from tessera.passes.sibling_products import Sibling, number_of, sibling_products


def merge_products(function: Kernel, dims: Mapping[str, int]) -> Kernel:
    used = uses(function.body)
    groups = sibling_products(function.body.ops, used, Sizes(dims))
    if groups:  # what shares a kernel reads its rows once as it is
        clusters = plan_fusion(function, dims).clusters
        home = {op: number for number, cluster in enumerate(clusters) for op in cluster.ops}
        groups = [group for group in groups if len({home[each.product] for each in group}) == len(group)]
    if not groups:
        return function
    first = {min(group, key=lambda s: function.body.ops.index(s.product)).product: group for group in groups}
    members = {op: sibling for group in groups for sibling in group for op in sibling.ops}
    new, builder, mapping = new_kernel_like(function)
    parts: dict[Op, Value] = {}  # by reshape
    for op in function.body.ops:
        builder.at(op)
        if op in first:
            parts.update(_merged(first[op], builder, mapping))
        if op not in members:
            clone_op(builder, op, mapping)
        elif op is members[op].heads:
            mapping[op.result] = parts[op]
    drop_unused(new.body)
    return new


def _merged(group: list[Sibling], builder: Builder, mapping: Values) -> dict[Op, Value]:
    """The product of all, and by reshape the part of it that the reshape has the place of."""
    sibling, total = group[0], sum(each.columns for each in group)
    x, matrix = mapping[sibling.product.operands[0]], mapping[sibling.matrix]
    depth, begin = number_of(shape_of(sibling.product.operands[1].type)[0]), sibling.start
    builder.at(*(each.product for each in group))
    right = builder.value("extract", matrix, starts=(sibling.row, begin), extents=(depth, total))
    value = builder.value("matmul", x, right, **sibling.product.attributes)
    if sibling.cast is not None:
        value = builder.value("cast", value, **sibling.cast.attributes)
    *leading, _, width = shape_of(sibling.heads.result.type)
    value = builder.value("reshape", value, shape=(*leading, total // width, width), layout=None)
    found = {}
    for each in group:
        starts = (*(0 for _ in leading), (each.start - begin) // width, 0)
        shape = shape_of(each.heads.result.type)
        found[each.heads] = builder.at(each.heads).value("extract", value, starts=starts, extents=shape)
    return found


__all__ = ["merge_products"]
