"""Numbers that launches of called kernels take: the host computes them, because only it passes numbers to a launch.

The compiler's own kernels compute scalars again wherever they need them; a kernel of an author's takes them as they
are.
"""

from __future__ import annotations

from tessera.errors import InternalError
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op
from tessera.ir.dims import symbols
from tessera.ir.opdef import CONSTANT
from tessera.ir.types import ScalarType
from tessera.plan import Scalar


def host_scalar(value: Value) -> Scalar:
    """What a launch passes for a scalar of a function: a parameter, a number, or a function of both and of dims."""
    op = value.defining_op
    if op is None:
        return value.name
    if op.definition.has(CONSTANT):
        return op.attributes["value"]
    body = Block()
    made: Mapping = {}
    sizes: dict[str, None] = {}
    for needed in _needed(value):
        if isinstance(needed, Value):
            made[needed] = body.add_argument(needed.type, needed.name)
        else:
            clone_op(Builder(body, needed.origin), needed, made)
            sizes |= dict.fromkeys(sorted(symbols(needed.attributes["size"])) if needed.name == "size" else ())
    Builder(body, op.origin).op("return", [made[value]])
    attributes = {"dims": tuple(sizes), "shape_dims": (), "results": ("result",)}
    return Kernel(value.name or "scalar", body, attributes, op.origin)


def _needed(value: Value) -> list[Value | Op]:
    """The parameters and the ops that a scalar depends on, each behind what it needs itself."""
    found: dict[Value | Op, None] = {}
    pending: list[Value] = [value]
    while pending:
        current = pending[-1]
        op = current.defining_op
        if not isinstance(current.type, ScalarType):
            raise InternalError("TS901", "a number that a launch takes depends on a tensor", op.loc if op else None)
        missing = [operand for operand in (op.operands if op else ()) if _key(operand) not in found]
        if missing:
            pending += missing
            continue
        found[_key(current)] = None
        pending.pop()
    return list(found)


def _key(value: Value) -> Value | Op:
    return value.defining_op or value


__all__ = ["host_scalar"]
