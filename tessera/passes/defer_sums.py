"""Sum the rows that a loop computes from accumulators after the loop, not across lanes in every iteration of it.

    sum = 0                                         parts = 0
    for i carrying sum:                      ->     for i carrying parts:
        sum = sum * scale + reduce_sum(x)               parts = parts * scale + sums of every 8th column of x
                                                    sum = reduce_sum(parts)

In the fragments of an accumulator a thread has two of every 8 columns, so what is left in the loop are additions of its
own registers. Not exact: the terms of a row are added in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.dtypes import f32
from tessera.ir.core import (
    Block,
    Builder,
    Kernel,
    Mapping,
    Op,
    Value,
    clone_op,
    clone_with_regions,
    is_strict,
    new_kernel_like,
)
from tessera.ir.core import uses as uses_of
from tessera.ir.opdef import COUNTED
from tessera.ir.ops.control import carried_values, constant_value
from tessera.ir.types import TileType, dtype_of, int_shape
from tessera.passes.register_operands import from_product
from tessera.target.fragments import M16N8K16_BF16

PARTS = M16N8K16_BF16.n  # columns of a block of an accumulator; those of all instructions have as many


@dataclass(frozen=True)
class RowSum:
    """A carried sum of rows. `addition` is the op that makes the next one of `argument`, the last one: it adds the sums
    of the rows of `term`, a tile [rows, columns], to the product of that and of `factors`, at most one.
    """

    argument: Value
    addition: Op
    term: Value
    factors: list[Value]


def defer_sums(kernel: Kernel) -> Kernel:
    """A strict kernel stays as it is."""
    if is_strict(kernel):
        return kernel
    used = uses_of(kernel.body)
    found = {
        op.id: sums
        for op in kernel.body.walk()
        if op.definition.has(COUNTED) and (sums := _row_sums(op, used))
    }  # fmt: skip
    if not found:
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _block(kernel.body, builder, mapping, found)
    return new


def _block(block: Block, builder: Builder, mapping: Mapping, found: dict[int, dict[int, RowSum]]) -> None:
    for op in block.ops:
        builder.at(op)
        if op.id in found:
            _loop(op, found[op.id], builder, mapping, found)
        elif op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _block(old, inner, mapping, found))
        else:
            clone_op(builder, op, mapping)


def _row_sums(loop: Op, used: dict[Value, list[Op]]) -> dict[int, RowSum]:
    """The carried values of a loop that are sums of rows, by number."""
    found = {}
    for number, (before, argument, final, _) in enumerate(carried_values(loop)):
        row_sum = _row_sum(argument, final, used) if _is_zero(before) else None
        if row_sum is not None and row_sum.addition in loop.regions[0].ops:
            found[number] = row_sum
    return found


def _row_sum(argument: Value, final: Value, used: dict[Value, list[Op]]) -> RowSum | None:
    """The sum that `final` is the next state of; None where it is none, or where more than that looks at a state."""
    addition = final.defining_op
    if addition is None or addition.name != "add" or dtype_of(final.type) != f32 or len(used[final]) != 1:
        return None
    for last, term in (addition.operands, addition.operands[::-1]):
        columns, factors = _reduced(term, used), _factors(last, argument, used)
        if columns is not None and factors is not None:
            return RowSum(argument, addition, columns, factors)
    return None


def _reduced(value: Value, used: dict[Value, list[Op]]) -> Value | None:
    """The f32 tile whose rows `value` has the sums of, if it is computed from accumulators and has several parts."""
    op = value.defining_op
    if op is not None and op.name == "reshape" and len(used[value]) == 1:
        value, op = op.operands[0], op.operands[0].defining_op
    if op is None or op.name != "reduce_sum" or len(used[value]) != 1:
        return None
    (tile,) = op.operands
    *rows, columns = int_shape(tile.type)
    last = op.attributes["axis"] in (-1, len(rows))
    whole = len(rows) == 1 and columns > PARTS and columns % PARTS == 0
    return tile if last and whole and dtype_of(tile.type) == f32 and from_product(tile) else None


def _factors(value: Value, argument: Value, used: dict[Value, list[Op]]) -> list[Value] | None:
    """What the argument is multiplied by in `value`; None where `value` is anything but a product of it, or itself."""
    if len(used.get(argument, ())) != 1:
        return None
    if value is argument:
        return []
    op = value.defining_op
    if op is None or op.name != "mul" or len(used[value]) != 1 or argument not in op.operands:
        return None
    return [operand for operand in op.operands if operand is not argument]


def _is_zero(value: Value) -> bool:
    op = value.defining_op
    return op is not None and op.name == "full" and constant_value(op.operands[0]) == 0


def _loop(
    loop: Op, sums: dict[int, RowSum], builder: Builder, mapping: Mapping, found: dict[int, dict[int, RowSum]]
) -> None:
    bounds = [mapping[value] for value in loop.operands[:3]]
    initial = [mapping[value] for value in loop.operands[3:]]
    for number, row_sum in sums.items():
        zero = builder.value("constant", value=0.0, dtype=f32)
        rows = int_shape(row_sum.term.type)[0]
        initial[number] = builder.value("full", zero, shape=(rows, PARTS), dtype=f32, hint="parts")
    body, copy = loop.regions[0], Block()
    mapping[body.arguments[0]] = copy.add_argument(body.arguments[0].type, body.arguments[0].name)
    for argument, value in zip(body.arguments[1:], initial, strict=True):
        mapping[argument] = copy.add_argument(value.type, argument.name)
    inner = builder.inner(copy)
    additions = {row_sum.addition: row_sum for row_sum in sums.values()}
    skipped = {op for row_sum in sums.values() for op in _between(row_sum)}
    for op in body.ops:
        inner.at(op)
        if op in additions:
            mapping[op.result] = _add(additions[op], inner, mapping)
        elif op not in skipped:
            _block(_only(op), inner, mapping, found)
    new = builder.at(loop).op(
        loop.name, [*bounds, *initial], [copy], [result.name for result in loop.results], **loop.attributes
    )
    for number, (old, result) in enumerate(zip(loop.results, new.results, strict=True)):
        mapping[old] = _total(result, old, builder) if number in sums else result


def _between(row_sum: RowSum) -> list[Op]:
    """The ops that the addition stands for, itself left out."""
    found: list[Op] = []
    for value in row_sum.addition.operands:
        while value is not row_sum.argument and value is not row_sum.term:
            op = value.defining_op
            assert op is not None
            found.append(op)
            value = row_sum.argument if row_sum.argument in op.operands else op.operands[0]
    return found


def _add(row_sum: RowSum, builder: Builder, mapping: Mapping) -> Value:
    """The next parts of a sum."""
    tile, parts = mapping[row_sum.term], mapping[row_sum.argument]
    rows, columns = int_shape(tile.type)
    split = builder.value("reshape", tile, shape=(rows, columns // PARTS, PARTS))
    term = builder.value("reshape", builder.value("reduce_sum", split, axis=1), shape=(rows, PARTS))
    for factor in (mapping[value] for value in row_sum.factors):
        if isinstance(factor.type, TileType):
            column = _shaped(factor, (rows, 1), builder)
            factor = builder.value("broadcast", column, shape=(rows, PARTS))
        parts = builder.value("mul", parts, factor)
    return builder.value("add", parts, term, hint=row_sum.addition.result.name)


def _total(parts: Value, old: Value, builder: Builder) -> Value:
    return _shaped(builder.value("reduce_sum", parts, axis=-1, hint=old.name), int_shape(old.type), builder)


def _shaped(value: Value, shape: tuple[int, ...], builder: Builder) -> Value:
    return value if int_shape(value.type) == shape else builder.value("reshape", value, shape=shape, hint=value.name)


def _only(op: Op) -> Block:
    block = Block()
    block.ops.append(op)
    return block
