"""Regions: counted loops and conditions. The interpreters and the emitter run them; they have no `evaluate`."""

from __future__ import annotations

from tessera.errors import SourceError
from tessera.ir.core import Block, Op
from tessera.ir.opdef import BRANCH, LOOP, TERMINATOR, Lowering, define
from tessera.ir.ops.elementwise import is_index
from tessera.ir.types import ScalarType, TokenType, Type, shape_of


def _yielded(op: Op, region: Block) -> list[Type]:
    if not region.ops or region.ops[-1].name != "yield":
        raise SourceError("TS703", f"a region of {op.name} does not end in yield")
    return [value.type for value in region.ops[-1].operands]


def _for_type(op: Op) -> tuple[Type, ...]:
    for value in op.operands[:3]:
        if not is_index(value.type):
            raise SourceError("TS203", "the bounds and the step of a loop must be integers")
    (body,) = op.regions
    carried = op.operands[3:]
    if len(body.arguments) != len(carried) + 1 or len(_yielded(op, body)) != len(carried):
        raise SourceError("TS703", "a loop body takes the index and its carried values, and yields as many values")
    for initial, argument, final in zip(carried, body.arguments[1:], _yielded(op, body), strict=True):
        if not initial.type == argument.type == final:
            raise SourceError(
                "TS301",
                f"'{argument.name or '?'}' changes its type in a loop: {describe(initial.type)} "
                f"before it, {describe(final)} after an iteration",
            )
    return tuple(value.type for value in carried)


def describe(type_: Type) -> str:
    """A type as a message says it."""
    if isinstance(type_, TokenType):
        return "a pending copy"
    if isinstance(type_, ScalarType):
        return f"a scalar {type_.dtype.name}"
    return f"a tile {list(map(str, shape_of(type_)))} of {type_.dtype.name}".replace("'", "")


define(
    "for",
    "lower upper step *initial",
    _for_type,
    "runs its region with the index lower, lower + step, ... below upper; the region's yield feeds the next iteration "
    "and, at the end, the results",
    LOOP,
    regions=1,
    attributes={"unroll": 1},
    lower=Lowering(template="for"),
)


def _if_type(op: Op) -> tuple[Type, ...]:
    condition = op.operand("condition").type
    if not isinstance(condition, ScalarType) or not condition.dtype.is_bool:
        raise SourceError("TS203", "the condition of an if must be a bool scalar")
    then, otherwise = (_yielded(op, region) for region in op.regions)
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

define("yield", "*values", lambda op: (), "ends a region with its values", TERMINATOR, lower=Lowering(template="yield"))
