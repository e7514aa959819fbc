"""Buffers in several stages: one logical buffer that exists `stages` times over, so that copies fly while it is read.

An allocation with `stages` above 1 is reached through the op `stage` alone, which picks one of them by a number. Which
stage a reference means is known to an analysis that walks a loop iteration by iteration: the numbers start as constants
and each iteration computes the next from the last (`Numbers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tessera.ir.core import Block, Op, Value
from tessera.ir.opdef import CONSTANT, ELEMENTWISE, LOOP
from tessera.ir.types import BufferType, RingType, ScalarType, TokenType, buffer_layout


class Stage(NamedTuple):
    """Stage `number` of what the value `buffer` allocates."""

    buffer: Value
    number: int


def allocation(buffer: Value) -> Value:
    """The value that allocated what a reference to a buffer stands for."""
    op = buffer.defining_op
    return buffer if op is None or op.name != "stage" else allocation(op.operands[0])


def stage_count(buffer: Value) -> int:
    """How many stages the allocation behind a reference has."""
    op = allocation(buffer).defining_op
    return (op.get("stages") or 1) if op is not None else 1


def allocated_bytes(op: Op) -> int:
    """Bytes of shared memory of a Target allocation, all stages together, or of the barriers of a ring."""
    if isinstance(op.result.type, RingType):
        return op.result.type.bytes * op.attributes["shares"]
    return buffer_layout(op.result.type).bytes * (op.get("stages") or 1)


class Numbers:
    """The integer scalars whose values are known at one point of a walk through a kernel."""

    def __init__(self) -> None:
        self.known: dict[Value, int] = {}

    def step(self, op: Op) -> None:
        """Takes note of what an op without regions computes."""
        for result in op.results:
            number = self._result(op)
            if number is None:
                self.known.pop(result, None)
            else:
                self.known[result] = number

    def rename(self, new: Iterable[Value], old: Iterable[Value]) -> None:
        """Gives `new` what `old` are, all at once."""
        for value, number in [(to, self.known.get(source)) for to, source in zip(new, old, strict=True)]:
            if number is None:
                self.known.pop(value, None)
            else:
                self.known[value] = number

    def forget(self, values: Iterable[Value]) -> None:
        for value in values:
            self.known.pop(value, None)

    def stages(self, reference: Value) -> frozenset[Stage]:
        """Which stages the result of a `stage` op may be: one where its number is known, else all."""
        op = reference.defining_op
        assert op is not None and op.name == "stage", reference
        number, buffer = self.known.get(op.operands[1]), allocation(reference)
        if number is not None:
            return frozenset((Stage(buffer, int(number)),))
        return every_stage(buffer)

    def _result(self, op: Op) -> int | None:
        if not computes_a_number(op):
            return None
        if op.definition.has(CONSTANT):
            value = op.attributes["value"]
            return int(value) if isinstance(value, (int, bool)) else None  # an edited text may say anything
        inputs = tuple(self.known[value] for value in op.operands if value in self.known)
        if len(inputs) != len(op.operands):
            return None
        scalars = (*op.results, *op.operands)
        dtypes = tuple(value.type.dtype for value in scalars if isinstance(value.type, ScalarType))
        key = (op.name, dtypes, inputs, tuple(op.attributes.items()))
        if key not in _evaluated:
            if len(_evaluated) >= MOST_EVALUATED:
                _evaluated.clear()
            _evaluated[key] = _evaluate(op, inputs)
        return _evaluated[key]


# Results of scalar ops, which walks through kernels ask for again and again.
_evaluated: dict[tuple[Any, ...], int | None] = {}
MOST_EVALUATED = 1 << 16


def computes_a_number(op: Op) -> bool:
    """Whether `Numbers` can ever know the result of an op without regions."""
    if len(op.results) != 1 or not isinstance(type_ := op.results[0].type, ScalarType):
        return False
    definition = op.definition
    return (type_.dtype.is_int or type_.dtype.is_bool) and (definition.has(CONSTANT) or definition.has(ELEMENTWISE))


def _evaluate(op: Op, inputs: tuple[int, ...]) -> int | None:
    evaluate = op.definition.evaluate
    if evaluate is None:
        return None
    try:
        return int(evaluate(op, *(np.array([number]) for number in inputs))[0])
    except (OverflowError, ZeroDivisionError, TypeError, ValueError):
        return None  # the run reports it at the op


def every_stage(buffer: Value) -> frozenset[Stage]:
    return frozenset(Stage(buffer, number) for number in range(stage_count(buffer)))


class References:
    """What is derived from what in a block and the regions inside: references from allocations, tokens from copies."""

    def __init__(self, body: Block) -> None:
        self._derived: dict[Value, list[Value]] = {}
        for op in body.walk():
            for value, source in _derivations(op):
                self._derived.setdefault(source, []).append(value)

    def of(self, buffer: Value) -> set[Value]:
        """An allocation with every reference to it and every token of a copy into it."""
        found, pending = {buffer}, [buffer]
        while pending:
            for value in self._derived.get(pending.pop(), ()):
                if value not in found:
                    found.add(value)
                    pending.append(value)
        return found


def landing(body: Block) -> dict[Value, set[Value]]:
    """The allocations behind each token: where its copies land."""
    references = References(body)
    found: dict[Value, set[Value]] = {}
    for op in body.walk():
        if op.results and isinstance(op.results[0].type, BufferType) and allocation(op.results[0]) is op.results[0]:
            for value in references.of(op.results[0]):
                if isinstance(value.type, TokenType):
                    found.setdefault(value, set()).add(op.results[0])
    return found


def _derivations(op: Op) -> Iterator[tuple[Value, Value]]:
    """`(value, source)` for all that an op, or the yields of its regions, derive from a reference or a token."""
    if not op.regions:
        for result in op.results:
            if isinstance(result.type, (TokenType, BufferType)):
                yield from ((result, operand) for operand in op.operands)
        return
    carried = op.operands[len(op.operands) - len(op.results) :] if op.definition.has(LOOP) else []
    sources = [carried, *(region.ops[-1].operands for region in op.regions)]
    targets = [op.results, *(region.arguments[-len(carried) :] for region in op.regions if carried)]
    for source in sources:
        for target in targets:
            yield from zip(target, source, strict=False)
