"""Where the values of a distributed function lie: the sharding of every value, from what its ops do with axes.

A value keeps its global shape, so placement never changes what a function computes. An op whose result cannot keep a
split of its operand, as a sum along the split axis, gives a result that is whole: its operand is gathered first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera.errors import SourceError
from tessera.ir.assignment import Scope
from tessera.ir.core import Kernel, Op, Value
from tessera.ir.opdef import ELEMENTWISE, REDUCTION, SCAN
from tessera.ir.sharding import Mesh, Sharding, all_gather, assign, replicated
from tessera.ir.types import Shape, TileType, shape_of

# Ops that say where a value lies and leave it as it is.
PLACEMENT_OPS = frozenset(("shard", "own", "all_gather", "prefetch"))

AxisMap = Mapping[int, int]  # an axis of an operand -> the axis of the result with the same split


class Placement:
    """The shardings of a function's values, op by op in program order. `scope`: the assignments that are open."""

    def __init__(self, scope: Scope, found: dict[Value, Sharding] | None = None) -> None:
        self.scope = scope
        self.found: dict[Value, Sharding] = {} if found is None else found

    @property
    def mesh(self) -> Mesh:
        return self.scope.mesh

    def of(self, value: Value) -> Sharding:
        """The sharding of a value; what nothing has placed is on every device."""
        return self.found.get(value) or replicated(self.mesh, len(shape_of(value.type)))

    def follow(self, op: Op) -> None:
        """Finds the shardings of an op's results. Raises SourceError TS309 where its operands do not lie alike."""
        if op.regions:
            for region in op.regions:
                self.found.update(
                    (result, self.of(value)) for result, value in zip(op.results, region.ops[-1].operands, strict=True)
                )
            return
        for result in op.results:
            if isinstance(result.type, TileType):
                self.found[result] = self._result(op, shape_of(result.type))

    def _result(self, op: Op, shape: Shape) -> Sharding:
        if op.name in PLACEMENT_OPS:
            return self._placed(op, self.of(op.operands[0]))
        operands = [value for value in op.operands if isinstance(value.type, TileType)]
        moved = [
            _moved(self.of(value), axes, len(shape))
            for value, axes in zip(operands, axis_maps(op, operands), strict=True)
        ]
        names = tuple(value.name or f"operand {number}" for number, value in enumerate(operands))
        if not moved:
            return self.scope.computed(replicated(self.mesh, len(shape)))
        return self.scope.computed(*moved, names=names)

    def _placed(self, op: Op, sharding: Sharding) -> Sharding:
        name = op.operands[0].name or None
        if op.name == "shard":
            return self.scope.shard(sharding, op.attributes["axis"], op.attributes["mesh_axis"], name)
        if op.name == "own":
            return assign(sharding, op.attributes["mesh_axis"], op.attributes["coordinate"], name)
        return all_gather(sharding, op.attributes["mesh_axis"]) if op.name == "all_gather" else sharding


def axis_maps(op: Op, operands: list[Value]) -> list[AxisMap]:
    """For each tensor operand of an op, which axes of the result are split where its own are."""
    if len(op.results) != 1:
        return [{} for _ in operands]
    shapes, rank = [shape_of(value.type) for value in operands], len(shape_of(op.result.type))
    result = shape_of(op.result.type)
    whole: dict[int, int] = {axis: axis for axis in range(rank)}
    if op.definition.has(ELEMENTWISE):
        return [whole for _ in operands]
    if op.definition.has(REDUCTION) or op.definition.has(SCAN) or op.name == "concatenate":
        along = op.attributes["axis"] % rank
        return [{axis: axis for axis in whole if axis != along} for _ in operands]
    if op.name in ("broadcast", "extract"):
        return [{axis: axis for axis in whole if shapes[0][axis] == result[axis]}]
    if op.name == "permute":
        return [{old: new for new, old in enumerate(op.attributes["permutation"])}]
    if op.name == "reshape":
        return [reshaped_axes(shapes[0], result)]
    if op.name == "matmul":
        rows = {axis: axis for axis in range(rank - 1)}
        columns = {len(shapes[1]) - 1: rank - 1}
        batch = {axis: axis for axis in range(rank - 2)} if len(shapes[1]) == rank > 2 else {}
        return [rows, {**batch, **columns}]
    return [{} for _ in operands]


def reshaped_axes(source: Shape, result: Shape) -> dict[int, int]:
    """The axes of a reshaped tensor that are the outer part of axes of its result, or these themselves.

    Equal parts of such an axis are equal parts of the other: as many elements come before, and it is not cut further.
    """
    found: dict[int, int] = {}
    before: Any = 1
    for axis, size in enumerate(source):
        other: Any = 1
        for place, wanted in enumerate(result):
            if other == before and size != 1 and _begins_with(source[axis:], wanted):
                found[axis] = place
                break
            other = other * wanted
        before = before * size
    return found


def _begins_with(sizes: Shape, product: Any) -> bool:
    """Whether some of the first sizes multiply to `product`."""
    total: Any = 1
    for size in sizes:
        total = total * size
        if total == product:
            return True
    return False


def _moved(sharding: Sharding, axes: AxisMap, rank: int) -> Sharding:
    """A sharding on the axes of a result; a split of an axis that has no place there is gathered."""
    split: list[str | None] = [None] * rank
    for axis, mesh_axis in enumerate(sharding.axes):
        if mesh_axis is not None and axis in axes:
            split[axes[axis]] = mesh_axis
    return Sharding(sharding.mesh, tuple(split), sharding.owners)


def shardings_of(function: Kernel, mesh: Mesh) -> dict[Value, Sharding]:
    """The shardings of the values of a traced function, from its `shard`, `own` and `all_gather` ops.

    Values that are not in it are whole on every device. Raises SourceError TS309 at an op whose operands do not fit.
    """
    placement = Placement(Scope(mesh))

    def visit(ops: list[Op]) -> None:
        for op in ops:
            for region in op.regions:
                visit(region.ops)
            try:
                placement.follow(op)
            except SourceError as error:
                raise error.at(op.loc) from None

    visit(function.body.ops)
    return placement.found


__all__ = ["PLACEMENT_OPS", "Placement", "axis_maps", "shardings_of"]
