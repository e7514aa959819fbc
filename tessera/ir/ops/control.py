"""Regions: counted loops and conditions. The interpreters and the emitter run them; they have no `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tessera.errors import SourceError
from tessera.ir.core import Block, Op, Value
from tessera.ir.opdef import BRANCH, CONSTANT, COUNTED, EVERY_LEVEL, LOOP, TERMINATOR, Lowering, define
from tessera.ir.ops.elementwise import is_index
from tessera.ir.types import ListType, RingType, ScalarType, TokenType, Type, shape_of


def yielded_types(op: Op, region: Block) -> list[Type]:
    """The types that a region of `op` ends with. Raises SourceError TS703 where it does not end in yield."""
    if not region.ops or region.ops[-1].name != "yield":
        raise SourceError("TS703", f"a region of {op.name} does not end in yield")
    return [value.type for value in region.ops[-1].operands]


def _for_type(op: Op) -> tuple[Type, ...]:
    for value in op.operands[:3]:
        if not is_index(value.type):
            raise SourceError("TS203", "the bounds and the step of a loop must be integers")
    (body,) = op.regions
    carried = op.operands[3:]
    if len(body.arguments) != len(carried) + 1 or len(yielded_types(op, body)) != len(carried):
        raise SourceError("TS703", "a loop body takes the index and its carried values, and yields as many values")
    _check_carried(op, carried, body.arguments[1:])
    return tuple(value.type for value in carried)


def _check_carried(op: Op, carried: list[Value], arguments: list[Value]) -> None:
    for initial, argument, final in zip(carried, arguments, yielded_types(op, op.regions[0]), strict=True):
        if not initial.type == argument.type == final:
            raise SourceError(
                "TS301",
                f"'{argument.name or '?'}' changes its type in a loop: {describe(initial.type)} "
                f"before it, {describe(final)} after an iteration",
            )


def _while_type(op: Op) -> tuple[Type, ...]:
    (body,) = op.regions
    if not op.operands or not _is_condition(op.operands[0].type):
        raise SourceError("TS203", "the condition of a while must be a bool scalar")
    if not len(op.operands) == len(body.arguments) == len(yielded_types(op, body)):
        raise SourceError("TS703", "a while body takes its carried values, the condition first, and yields as many")
    _check_carried(op, op.operands, body.arguments)
    return tuple(value.type for value in op.operands)


def _is_condition(type_: Type) -> bool:
    return isinstance(type_, ScalarType) and type_.dtype.is_bool


def carried_values(op: Op) -> Iterator[tuple[Value, Value, Value, Value]]:
    """Of each value that a loop carries: before it, in the body, at the end of an iteration, and after the loop."""
    (body,) = op.regions
    count = len(op.results)
    if not count:
        return
    yield from zip(
        op.operands[-count:], body.arguments[-count:], body.ops[-1].operands[-count:], op.results, strict=True
    )


def constant_value(value: Value) -> Any:
    """What a constant scalar holds; None for any other value."""
    op = value.defining_op
    return op.attributes["value"] if op is not None and op.definition.has(CONSTANT) else None


def loop_range(bounds: Sequence[Value]) -> range | None:
    """The indices of a counted loop, given its lower bound, upper bound and step; None where they are not constants."""
    numbers = [constant_value(value) for value in bounds]
    if not all(isinstance(number, int) for number in numbers) or numbers[2] == 0:
        return None
    return range(*numbers)


def describe(type_: Type) -> str:
    """A type as a message says it."""
    if isinstance(type_, TokenType):
        return "a pending copy"
    if isinstance(type_, ScalarType):
        return f"a scalar {type_.dtype.name}"
    if isinstance(type_, ListType):
        return "a list of tensors"
    if isinstance(type_, RingType):
        return f"a ring of {type_.stages} slots"
    return f"a tile {list(map(str, shape_of(type_)))} of {type_.dtype.name}".replace("'", "")


define(
    "for",
    "lower upper step *initial",
    _for_type,
    "runs its region with the index lower, lower + step, ... up to upper, which is left out; the region's yield feeds "
    "the next iteration and, at the end, the results; `static`: the author asked for a loop that is unrolled; "
    "`parallel`: iterations store to different elements and may run in any order",
    LOOP,
    COUNTED,
    regions=1,
    attributes={"unroll": 1, "static": False, "parallel": False},
    lower=Lowering(template="for"),
)

define(
    "while",
    "*initial",
    _while_type,
    "runs its region as long as the first carried value, a bool, holds; the region's yield feeds the next iteration "
    "and, at the end, the results",
    LOOP,
    regions=1,
    lower=Lowering(template="while"),
)


def _if_type(op: Op) -> tuple[Type, ...]:
    if not _is_condition(op.operand("condition").type):
        raise SourceError("TS203", "the condition of an if must be a bool scalar")
    then, otherwise = (yielded_types(op, region) for region in op.regions)
    if then != otherwise:
        raise SourceError("TS301", "the two branches of an if give values of different types")
    return tuple(then)


define(
    "if",
    "condition",
    _if_type,
    "runs the first region where the scalar condition holds, else the second",
    BRANCH,
    regions=2,
    lower=Lowering(template="if"),
)

define(
    "yield",
    "*values",
    lambda op: (),
    "ends a region with its values",
    TERMINATOR,
    levels=EVERY_LEVEL,
    lower=Lowering(template="yield"),
)
