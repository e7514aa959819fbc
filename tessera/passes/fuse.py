"""Puts the ops that share a kernel into `fused` regions, one for each kernel, in the order in which they run.

A region holds all that its kernel computes, what it makes again and the views through which it reads among them, so
what it takes from outside is tensors in memory and scalars. `plan_fusion` decides. Ops outside of regions have kernels
of their own, or none.
"""

from __future__ import annotations

from collections.abc import Mapping

from tessera.ir.core import Block, Builder, Kernel, Op, Value, clone_op, merge_origins, new_kernel_like
from tessera.ir.dead_code import drop_unused
from tessera.passes.graph_access import access, unit
from tessera.passes.graph_groups import is_alias
from tessera.passes.plan_fusion import MOVE, Cluster, Fusion, plan_fusion


def fuse(function: Kernel, dims: Mapping[str, int]) -> Kernel:
    """Exact. The attribute `fixed` of the new function holds the dims by whose values it was decided.

    A function that has regions already stays as it is.
    """
    if any(op.name == "fused" for op in function.body.ops):
        return function
    return fused(function, plan_fusion(function, dims))


def fused(function: Kernel, fusion: Fusion) -> Kernel:
    """The function with the clusters of a fusion as regions."""
    new, builder, mapping = new_kernel_like(function)
    _Regions(fusion, builder, mapping).fill(function.body)
    drop_unused(new.body)
    if fusion.fixed:
        new.attributes["fixed"] = dict(sorted(fusion.fixed.items()))
    return new


class _Regions:
    """`mapping` holds what is made outside of regions, each time when it is first needed."""

    def __init__(self, fusion: Fusion, builder: Builder, mapping: dict[Value, Value]) -> None:
        self.fusion, self.builder, self.mapping = fusion, builder, mapping

    def fill(self, body: Block) -> None:
        for cluster in self.fusion.clusters:
            if cluster.kind == MOVE:
                (op,) = cluster.ops
                for value in op.operands:
                    self._outside(value)
                clone_op(self.builder, op, self.mapping)
            elif cluster.outputs:
                self._region(cluster)
        last = body.ops[-1]
        for value in last.operands:
            self._outside(value)
        clone_op(self.builder, last, self.mapping)

    def _outside(self, value: Value) -> None:
        """Makes the ops without a kernel on which a value depends."""
        pending = [value]
        while pending:
            current = pending[-1]
            op = current.defining_op
            missing = [v for v in (op.operands if op is not None else ()) if v not in self.mapping]
            if current in self.mapping:
                pending.pop()
            elif missing:
                pending += missing
            else:
                assert op is not None
                clone_op(self.builder, op, self.mapping)
                pending.pop()

    def _region(self, cluster: Cluster) -> None:
        region = Block()
        inner: dict[Value, Value] = {}
        inside = Builder(region, self.builder.origin)
        for op in cluster.ops:
            for value in op.operands:
                self._inside(inside, inner, value, cluster)
            clone_op(inside, op, inner)
        inside.at(cluster.ops[-1]).op("yield", [inner[value] for value in cluster.outputs])
        self.builder.origin = merge_origins(*(op.origin for op in cluster.ops))
        names = [value.name for value in cluster.outputs]
        made = self.builder.op("fused", [], [region], names, region=cluster.kind)
        self.mapping.update(zip(cluster.outputs, made.results, strict=True))

    def _inside(self, builder: Builder, inner: dict[Value, Value], value: Value, cluster: Cluster) -> None:
        """Makes `value` available in a region: made there, made again there, or from outside."""
        if value in inner:
            return
        op = value.defining_op
        if op is not None and (op in cluster.again or op in self.fusion.nowhere and self._belongs(op)):
            for operand in op.operands:
                self._inside(builder, inner, operand, cluster)
            clone_op(builder, op, inner)
        else:
            self._outside(value)
            inner[value] = self.mapping[value]

    def _belongs(self, op: Op) -> bool:
        """Whether an op without a kernel is part of those that use it; reshapes are, of what is read in place."""
        return not is_alias(op) or unit(op) and access(op.result, self._through).viewed

    def _through(self, op: Op) -> bool:
        return op in self.fusion.nowhere


__all__ = ["fuse", "fused"]
