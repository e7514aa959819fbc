"""Drops what a traced function computes in vain, and says so: calls and variables whose values reach no result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tessera.frontend.evaluator_values import Handle
from tessera.ir.core import Block
from tessera.ir.dead_code import drop_unused, unused_notes
from tessera.location import Loc


@dataclass(frozen=True)
class CallRecord:
    """A call of another function in the body of the traced one, and what it gave."""

    callee: str
    result: Any
    place: Loc


def drop_and_explain(body: Block, calls: Iterable[CallRecord], variables: Mapping[str, Any]) -> list[str]:
    """Drops dead ops of a function's body; the notes for its author. `variables`: its own, at its end."""
    roots = drop_unused(body)
    alive = {id(op) for op in body.walk()}
    records = list(calls)
    used = {record.place for record in records if not _is_dead(record, alive)}
    dead: dict[tuple[str, str], list[CallRecord]] = {}
    for record in records:
        if record.place not in used:
            dead.setdefault((record.callee, _container(variables, record.result)), []).append(record)
    notes = [_note(callee, container, found) for (callee, container), found in dead.items()]
    explained = {record.place for found in dead.values() for record in found}
    return notes + unused_notes([op for op in roots if op.loc not in explained], body)


def _note(callee: str, container: str, records: list[CallRecord]) -> str:
    what = f"the values in '{container}' are" if container else f"what {callee} returns is"
    count = f"{len(records)} calls of {callee} are" if len(records) > 1 else f"1 call of {callee} is"
    lines = sorted({record.place.line for record in records})
    where = f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}"
    return f"{what} never used: {count} dropped ({where})"


def _handles(value: Any) -> Iterator[Handle]:
    if isinstance(value, Handle):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _handles(item)


def _is_dead(record: CallRecord, alive: set[int]) -> bool:
    """Whether a call gave values, and the op of each was dropped."""
    ops = [handle.value.defining_op for handle in _handles(record.result)]
    return bool(ops) and all(op is not None and id(op) not in alive for op in ops)


def _container(variables: Mapping[str, Any], result: Any) -> str:
    """The variable with a list that holds what a call gave; "" where there is none."""
    handles = list(_handles(result))
    for name, value in variables.items():
        if isinstance(value, list) and any(item is handle for item in value for handle in handles):
            return name
    return ""
