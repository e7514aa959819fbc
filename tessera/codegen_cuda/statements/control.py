"""Regions and the values that leave them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.statements.common import known_number, register_count
from tessera.codegen_cuda.statements.registry import statement
from tessera.ir.core import Op
from tessera.ir.ops import interleave
from tessera.ir.ops.control import carried_values
from tessera.ir.types import TokenType, dtype_of

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


@statement("for")
def _for(emitter: Emitter, op: Op) -> dict[str, Any]:
    body = op.regions[0]
    carried = _carried(emitter, op)
    lower, upper, step = (emitter.name(v) for v in op.operands[:3])
    number = known_number(op.operands[2])
    # The direction in which the index runs: 0 where only the run tells.
    least, _ = emitter.ranges.interval(op.operands[2], op)
    direction = number if number is not None else int(least is not None and least >= 0)
    return {
        "index": emitter.name(body.arguments[0]),
        "lower": lower,
        "upper": upper,
        "step": step,
        "direction": direction,
        "left": emitter.fresh("left") if not direction else "",
        "carried": carried,
        "unroll": op.attributes["unroll"],
    }


@statement("while")
def _while(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"carried": _carried(emitter, op)}


def _carried(emitter: Emitter, op: Op) -> list[dict[str, Any]]:
    """One variable per carried value: it is the body's argument and the loop's result."""
    carried = []
    for initial, argument, _, result in carried_values(op):
        if isinstance(result.type, TokenType):
            continue  # what has been started is no value
        emitter.names.of_value[argument] = emitter.names.of_value[result] = emitter.fresh(
            result.name or argument.name or "carried"
        )
        carried.append(
            {
                "name": emitter.name(result),
                "initial": emitter.name(initial),
                "ctype": dtype_of(result.type).cuda,
                "count": register_count(result) if emitter.is_tile(result) else 0,
            }
        )
    return carried


@statement("if")
def _if(emitter: Emitter, op: Op) -> dict[str, Any]:
    results = [
        {
            "name": emitter.name(r),
            "ctype": dtype_of(r.type).cuda,
            "count": register_count(r) if emitter.is_tile(r) else 0,
        }
        for r in op.results
        if not isinstance(r.type, TokenType)
    ]
    return {"condition": emitter.name(op.operands[0]), "results": results}


@statement("interleave")
def _interleave(emitter: Emitter, op: Op) -> dict[str, Any]:
    count = interleave.register_count(op.regions[0].ops[0])
    step = count // op.attributes["parts"]
    return {"spans": [(first, first + step) for first in range(0, count, step)]}


@statement("yield")
def _yield(emitter: Emitter, op: Op) -> dict[str, Any] | None:
    """Moves the values of a region to where its op's results live.

    A value that another move overwrites goes by a copy. What an interleave gives stays where it was computed.
    """
    owner = next(o for o in emitter.kernel.body.walk() if any(op in region.ops for region in o.regions))
    if owner.name == "interleave":
        names = map(emitter.name, op.operands)
        emitter.names.of_value.update(zip(owner.results, names, strict=True))
        return None
    moves = []
    pairs = [
        (result, value)
        for result, value in zip(owner.results, op.operands, strict=True)
        if not isinstance(result.type, TokenType)
    ]
    targets = [emitter.name(result) for result, _ in pairs]
    for result, value in pairs:
        name, source = emitter.name(result), emitter.name(value)
        if name == source:
            continue
        crossing = source in targets
        moves.append(
            {
                "name": name,
                "source": source,
                "ctype": dtype_of(result.type).cuda,
                "crossing": crossing,
                "count": register_count(result) if emitter.is_tile(result) else 0,
            }
        )
    return {"moves": moves}
