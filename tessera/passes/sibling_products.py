"""Products of one tensor with parts of another, which could be one product: who is whose sibling, and why some are not.

What follows a product of several must read its parts in place, so of a sibling nothing is asked but parts of its rows,
behind a cast: the heads of attention are such parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.ir.core import Op, Value
from tessera.ir.types import shape_of
from tessera.passes.fusion_cost import Sizes, row_cost

Users = Mapping[Value, Sequence[Op]]


@dataclass(frozen=True)
class Sibling:
    """A product with a part of a matrix: columns [start, start + columns) of `matrix`, from `row` on. `cast`: what
    rounds it, if anything does; `heads`: the reshape that cuts its columns into heads.
    """

    product: Op
    matrix: Value
    row: int
    start: int
    columns: int
    cast: Op | None
    heads: Op

    @property
    def width(self) -> int:
        """Of a head."""
        return number_of(shape_of(self.heads.result.type)[-1])

    @property
    def ops(self) -> list[Op]:
        return [op for op in (self.product, self.cast, self.heads) if op is not None]


def sibling_products(ops: Sequence[Op], used: Users, sizes: Sizes) -> list[list[Sibling]]:
    """Siblings that become one product, by their columns."""
    alike: dict[object, list[Sibling]] = {}
    for op in ops:
        sibling = _sibling(op, used)
        if isinstance(sibling, Sibling):
            alike.setdefault(_key(sibling), []).append(sibling)
    found: list[list[Sibling]] = []
    for siblings in alike.values():
        run: list[Sibling] = []
        for sibling in sorted(siblings, key=lambda s: s.start):
            if run and run[-1].start + run[-1].columns != sibling.start:
                found.append(run)
                run = []
            run.append(sibling)
        found.append(run)
    return [run for run in found if len(run) > 1 and _pays(run, sizes)]


def _key(sibling: Sibling) -> object:
    """What siblings have in common that may become one product."""
    cast = None if sibling.cast is None else tuple(sorted(sibling.cast.attributes.items(), key=str))
    precision = sibling.product.attributes["precision"]
    return sibling.product.operands[0], sibling.matrix, sibling.row, sibling.width, precision, repr(cast)


def _sibling(op: Op, used: Users) -> Sibling | str:
    """What a product is among others of its left operand; for one that stays alone, why, as the end of a sentence."""
    if op.name != "matmul" or len(shape_of(op.operands[1].type)) != 2:
        return "multiplies a batch of matrices"
    part = op.operands[1].defining_op
    if part is None or part.name != "extract":
        return "multiplies a tensor of its own"
    numbers = (*part.attributes["starts"], *shape_of(part.result.type))
    if len(numbers) != 4 or not all(isinstance(number, int) for number in numbers):
        return "multiplies a part of a tensor whose place no number says"
    row, start, _, columns = (number_of(number) for number in numbers)
    value, cast = op.result, None
    users = used.get(value, ())
    if len(users) == 1 and users[0].name == "cast":
        cast, value = users[0], users[0].result
    heads = used.get(value, ())
    if len(heads) != 1 or heads[0].name != "reshape" or not _cuts_columns(heads[0], start, used):
        return "has a result that more is done with than to read parts of it in place"
    return Sibling(op, part.operands[0], row, start, columns, cast, heads[0])


def _cuts_columns(reshape: Op, start: int, used: Users) -> bool:
    """Whether a reshape cuts rows into heads that products read in another order of axes."""
    before, after = shape_of(reshape.operands[0].type), shape_of(reshape.result.type)
    if after[:-2] != before[:-1] or not isinstance(after[-1], int) or start % after[-1]:
        return False
    return _moved_to_products(reshape.result, used)


def _moved_to_products(value: Value, used: Users) -> bool:
    """Whether products read a value with its axes in another order, and nothing else does."""
    moves = used.get(value, ())
    return bool(moves) and all(
        move.name == "permute"
        and (all(user.name == "matmul" for user in used.get(move.result, ())) or _moved_to_products(move.result, used))
        for move in moves
    )


def _pays(run: list[Sibling], sizes: Sizes) -> bool:
    """Whether one product costs no more than several, by the model of fusion."""
    x = run[0].product.operands[0]
    results = [(sibling.cast or sibling.product).result for sibling in run]
    apart = sum(row_cost([s.product], [x], [result], sizes) for s, result in zip(run, results, strict=True))
    return row_cost([sibling.product for sibling in run], [x], results, sizes) <= apart


def number_of(size: object) -> int:
    assert isinstance(size, int)
    return size


def why_apart(product: Op, other: Op, used: Users) -> str:
    """Why two products with one left operand are not one, as a sentence about them."""
    siblings = [_sibling(each, used) for each in (product, other)]
    for each, sibling in zip((product, other), siblings, strict=True):
        if isinstance(sibling, str):
            return f"the product of line {line_of(each)} {sibling}"
    first, second = siblings
    assert isinstance(first, Sibling) and isinstance(second, Sibling)
    if _key(first) != _key(second):
        return "they multiply parts of different tensors, or are rounded or cut in different ways"
    return "the parts that they multiply do not lie side by side, or one product costs more than two"


def line_of(op: Op) -> int | str:
    return op.loc.line if op.loc is not None else "?"


__all__ = ["Sibling", "line_of", "number_of", "sibling_products", "why_apart"]
