"""Which keys a block of rows can see under a mask that the function computes from indices.

A mask is `where(seen, scores, -inf)`, where `seen` compares sums of indices along the rows, along the keys, and whole
numbers: causal attention, a window around the diagonal. Of such a comparison follows the first and the last key that
any row of a block can see; what is outside adds nothing to a row, and its blocks need not be looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tessera.ir.core import Value
from tessera.ir.ops.control import constant_value
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import ScalarType, shape_of
from tessera.passes.graph_groups import is_alias

TRANSPARENT = ("broadcast", "cast", "reshape")  # ops behind which an index or a condition is what it was
FLIPPED = {"le": "ge", "lt": "gt"}


@dataclass(frozen=True)
class Line:
    """rows * row + keys * key + number."""

    rows: int = 0
    keys: int = 0
    number: int = 0

    def __add__(self, other: Line) -> Line:
        return Line(self.rows + other.rows, self.keys + other.keys, self.number + other.number)

    def __mul__(self, factor: int) -> Line:
        return Line(self.rows * factor, self.keys * factor, self.number * factor)


Bound = tuple[int, int]  # rows, number: the key rows * row + number


@dataclass(frozen=True)
class Seen:
    """A row sees keys from the largest of `first` on, up to the smallest of `last`: those where they are `exact`, no
    others where they are not.
    """

    first: tuple[Bound, ...] = ()
    last: tuple[Bound, ...] = ()
    exact: bool = True

    def both(self, other: Seen) -> Seen:
        return Seen((*self.first, *other.first), (*self.last, *other.last), self.exact and other.exact)


UNKNOWN = Seen(exact=False)


def seen_keys(scores: Value) -> Seen:
    """The keys that rows of masked scores see, as far as is known."""
    found = Seen()
    while (op := scores.defining_op) is not None and op.name == "where":
        condition, chosen, other = op.operands
        if not _is_hidden(other):
            break
        found = found.both(seen_where(condition))
        scores = chosen
    return found


def _is_hidden(value: Value) -> bool:
    """Whether a value is -inf everywhere."""
    while (op := value.defining_op) is not None and op.name in (*TRANSPARENT, "full"):
        value = op.operands[0]
    return isinstance(value.type, ScalarType) and constant_value(value) == -math.inf


def seen_where(value: Value) -> Seen:
    """The keys at which a condition holds."""
    op = value.defining_op
    while op is not None and op.name in TRANSPARENT and _keeps_axes(value):
        value, op = op.operands[0], op.operands[0].defining_op
    if op is None:
        return UNKNOWN
    if op.name == "and":
        first, second = map(seen_where, op.operands)
        return first.both(second)
    if op.name not in ("ge", "gt", "le", "lt", "eq"):
        return UNKNOWN
    lines = [_line(operand) for operand in op.operands]
    if lines[0] is None or lines[1] is None:
        return UNKNOWN
    difference = lines[0] + lines[1] * -1
    if op.name == "eq":
        return _not_negative(difference).both(_not_negative(difference * -1))
    if op.name in FLIPPED:
        difference = difference * -1
    strict = op.name in ("gt", "lt")
    return _not_negative(difference + Line(number=-1 if strict else 0))


def _not_negative(line: Line) -> Seen:
    """The keys where a line is 0 or more."""
    if line.keys == 1:
        return Seen(first=((-line.rows, -line.number),))
    if line.keys == -1:
        return Seen(last=((line.rows, line.number),))
    return UNKNOWN


def _line(value: Value) -> Line | None:
    """What an integer is at a row and a key; None where it is something else."""
    op = value.defining_op
    if op is None:
        return None
    if isinstance(value.type, ScalarType):
        number = constant_value(value)
        return Line(number=number) if type(number) is int else None
    if op.name == "iota":
        shape = shape_of(op.result.type)
        axis = negative_axis(op, len(shape))
        if shape[axis] == 1:
            return Line()
        return {-2: Line(rows=1), -1: Line(keys=1)}.get(axis)
    if op.name == "full" or op.name in TRANSPARENT and _keeps_axes(value) and _is_whole(value):
        return _line(op.operands[0])
    if op.name in ("add", "sub"):
        first, second = map(_line, op.operands)
        if first is None or second is None:
            return None
        return first + second * (1 if op.name == "add" else -1)
    return None


def _is_whole(value: Value) -> bool:
    """Whether a value has a dtype of integers that no index leaves."""
    assert not isinstance(value.type, ScalarType)
    dtype = getattr(value.type, "dtype", None)
    return dtype is not None and dtype.is_int and dtype.bits >= 32


def _keeps_axes(value: Value) -> bool:
    """Whether rows and keys are the last two axes behind an op as in front of it."""
    op = value.defining_op
    assert op is not None
    if not is_alias(op):
        return True
    return shape_of(op.result.type)[-2:] == shape_of(op.operands[0].type)[-2:]


__all__ = ["Bound", "Seen", "seen_keys", "seen_where"]
