"""Which ops of a function share a kernel.

A *row group* computes, row by row, values whose axes but the last are the same: elementwise ops, reductions and scans
along the last axis, and at most one matrix product with what feeds it and what follows it. Every other op that moves
data has a kernel of its own; a reshape has none. Groups are in an order in which they can run: an op joins the last
group that it depends on, or starts a new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.ir.core import Block, Op, Value, uses
from tessera.ir.dims import Size
from tessera.ir.opdef import CONSTANT, ELEMENTWISE, REDUCTION, SCAN
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import ScalarType, Shape, TileType, dtype_of, shape_of

WIDEST_REDUCED_PRODUCT = 512  # columns of a product whose rows a later op of its kernel may reduce


@dataclass(eq=False)
class Group:
    """Ops of one kernel. `rows`: the axes but the last of its values; None for an op that has its own kind of kernel.

    `batched`: the second operand of its product has the leading axes, too.
    """

    ops: list[Op] = field(default_factory=list)
    rows: Shape | None = None
    batched: bool = False

    @property
    def product(self) -> Op | None:
        return next((op for op in self.ops if op.name == "matmul"), None)

    @property
    def results(self) -> set[Value]:
        return {result for op in self.ops for result in op.results}


def rows_of(shape: Shape) -> Shape:
    return shape[:-1]


def columns_of(shape: Shape) -> Size:
    return shape[-1] if shape else 1


def is_scalar_op(op: Op) -> bool:
    """Whether every kernel that needs the op's result computes it again: it has no elements."""
    return bool(op.results) and all(isinstance(result.type, ScalarType) for result in op.results)


def is_free(op: Op) -> bool:
    """Whether a row kernel makes the tensor out of nothing: a constant one, or an index along the last axis."""
    if op.name == "full":
        return True
    return op.name == "iota" and negative_axis(op, len(shape_of(op.result.type))) == -1


def is_widening(op: Op) -> bool:
    """Whether an op casts floats to wider ones: nothing is lost, and every kernel that needs the result casts again."""
    if op.name != "cast" or isinstance(op.result.type, ScalarType):
        return False
    narrow, wide = dtype_of(op.operands[0].type), op.attributes["dtype"]
    return narrow.is_float and wide.is_float and narrow.bits < wide.bits


def is_spread(op: Op) -> bool:
    """Whether an op repeats a column, or a row for all: every kernel that needs the result reads that instead."""
    return op.name == "broadcast" and _spreads_in_rows(op)


def is_copied(op: Op) -> bool:
    """Whether row kernels make the result again from its operand, which they read or make."""
    return is_widening(op) or is_spread(op)


def is_made_again(op: Op) -> bool:
    """Whether row kernels make the result themselves rather than read it."""
    return is_free(op) or is_copied(op)


def is_alias(op: Op) -> bool:
    """Whether the result is the operand's memory under another shape."""
    return op.name == "reshape"


def is_row_op(op: Op) -> bool:
    if op.definition.has(ELEMENTWISE) or op.name == "matmul" or is_free(op):
        return True
    if op.definition.has(REDUCTION) or op.definition.has(SCAN):
        return negative_axis(op, len(shape_of(op.operands[0].type))) == -1
    return is_spread(op)


def _spreads_in_rows(op: Op) -> bool:
    """Whether the operand has the result's rows, or one for all of them."""
    source, result = shape_of(op.operands[0].type), shape_of(op.result.type)
    return rows_of(source) == rows_of(result) or all(size == 1 for size in rows_of(source))


def make_groups(body: Block) -> list[Group]:
    """The groups of a function's body (no regions, no placement ops), in order."""
    return _Grouping(body).run()


class _Grouping:
    def __init__(self, body: Block) -> None:
        self.body = body
        self.used = uses(body)
        self.groups: list[Group] = []
        self.place: dict[Value, int] = {}  # the group that makes a value; -1: none does

    def run(self) -> list[Group]:
        for op in self.body.ops:
            if op.name == "return" or is_scalar_op(op) or op.definition.has(CONSTANT):
                continue
            if is_alias(op):
                self.place[op.result] = self._after(op)
            elif is_made_again(op) and all(self._clones(user, op) for user in self.used.get(op.result, [])):
                self.place[op.result] = self._after(op)
            elif is_row_op(op):
                self._join(op)
            else:
                self._own(op)
        groups: list[Group] = []
        for group in self.groups:
            groups += self._cut(group)
        return groups

    def _clones(self, user: Op, op: Op) -> bool:
        """Whether a user of a tensor that can be made again does so. A second operand of a product is loaded."""
        if user.name == "matmul":
            return op.result is not user.operands[1] and is_copied(op)
        return is_row_op(user) and not is_free(user)

    def _after(self, op: Op) -> int:
        return max((self.place.get(value, -1) for value in op.operands), default=-1)

    def _own(self, op: Op) -> None:
        self._add(Group(), op)

    def _add(self, group: Group, op: Op) -> None:
        if group not in self.groups:
            self.groups.append(group)
        group.ops.append(op)
        for result in op.results:
            self.place[result] = self.groups.index(group)

    def _join(self, op: Op) -> None:
        shape = shape_of(op.result.type)
        batched = op.name == "matmul" and len(shape_of(op.operands[1].type)) > 2
        last = self._after(op)
        group = self.groups[last] if last >= 0 else None
        if group is None or group.rows != rows_of(shape) or not self._fits(group, op, batched):
            group = Group(rows=rows_of(shape))
        group.batched = group.batched or batched
        self._add(group, op)

    def _fits(self, group: Group, op: Op, batched: bool) -> bool:
        made = group.results
        product = group.product
        if op.name == "matmul":
            return product is None and op.operands[1] not in made and self._reads(op.operands, group)
        if product is not None and (op.definition.has(REDUCTION) or op.definition.has(SCAN)):
            columns = columns_of(shape_of(product.result.type))
            return isinstance(columns, int) and columns <= WIDEST_REDUCED_PRODUCT
        return self._reads(op.operands, group)

    def _reads(self, values: list[Value], group: Group) -> bool:
        """Whether values are there while a group runs: what is read through a reshape of one of its own is not."""
        made, number = group.results, self.groups.index(group)
        return all(source_of(value, made) in made or self.place.get(value, -1) < number for value in values)

    def _cut(self, group: Group) -> list[Group]:
        """Parts of a group of which none computes its product more than once, as each stored tensor would: where a
        value behind the product is stored and others follow, the first part ends with the last value that alone
        leads on.
        """
        product = group.product
        if product is None:
            return [group]
        made, inside = group.results, set(group.ops)
        behind = {product.result}
        end = group.ops.index(product)
        for place, op in enumerate(group.ops):
            if op is not product and not self._takes(op, behind, made):
                continue
            behind.update(op.results)
            rest = group.ops[place + 1 :]
            follow = any(self._takes(later, behind, made) for later in rest)
            if len(self._lead_on(behind, rest, inside, made)) == 1:
                end = place
            if follow and any(leaves_group(result, inside, self.used) for result in op.results):
                first = Group(group.ops[: end + 1], group.rows, group.batched)
                return [first, Group(group.ops[end + 1 :], group.rows)]
        return [group]

    @staticmethod
    def _takes(op: Op, values: set[Value], made: set[Value]) -> bool:
        return any(source_of(value, made) in values for value in op.operands)

    def _lead_on(self, behind: set[Value], rest: list[Op], inside: set[Op], made: set[Value]) -> list[Value]:
        """Those of some values that the rest of a group, or something outside of it, needs."""
        return [
            value
            for value in behind
            if any(self._takes(op, {value}, made) for op in rest) or leaves_group(value, inside, self.used)
        ]


def outputs_of(group: Group, used: dict[Value, list[Op]]) -> list[Value]:
    """The values of a group that something else needs."""
    inside = set(group.ops)
    return [result for op in group.ops for result in op.results if leaves_group(result, inside, used)]


def leaves_group(value: Value, inside: set[Op], used: dict[Value, list[Op]]) -> bool:
    """Whether something outside of a group needs a value of it, itself or made again from it."""
    for user in used.get(value, []):
        if user in inside:
            continue
        if not is_copied(user) or leaves_group(user.result, inside, used) or not used.get(user.result):
            return True
    return False


def source_of(value: Value, made: set[Value]) -> Value:
    """The value of `made` that `value` is made again from, or `value`."""
    while value not in made and (op := value.defining_op) is not None and is_copied(op):
        value = op.operands[0]
    return value


def tensor(value: Value) -> TileType:
    assert isinstance(value.type, TileType)
    return value.type
