"""The op table is complete: every op has every facet that its kind needs."""

from __future__ import annotations

import pytest

from tessera.errors import InternalError, SourceError
from tessera.ir.opdef import (
    ASYNC,
    BRANCH,
    CONSTANT,
    EVERY_LEVEL,
    LOOP,
    PURE,
    REQUIRED,
    STRUCTURAL,
    TARGET,
    TERMINATOR,
    OpDef,
    define,
    lookup,
    table,
)

OPS = sorted(table().values(), key=lambda definition: definition.name)

# What needs the state of the interpreter itself: the ids and dims of a launch, and fresh memory.
BY_INTERPRETER = {"launch", "size", "program_id", "num_programs", "alloc_shared", "shared", "print", "assert"}
# Pure ops whose result is a reference: there is no number to bound.
REFERENCES = {"window", "limit", "element", "stage"}

every_op = pytest.mark.parametrize("definition", OPS, ids=lambda definition: definition.name)


@every_op
def test_doc(definition: OpDef) -> None:
    assert len(definition.doc) >= 2 and "\n" not in definition.doc and not definition.doc.endswith(".")


@every_op
def test_evaluate(definition: OpDef) -> None:
    control = definition.regions > 0 or definition.has(TERMINATOR)
    assert (definition.evaluate is None) == (control or definition.name in BY_INTERPRETER)


@every_op
def test_bound(definition: OpDef) -> None:
    """Arithmetic needs an error rule; moving elements, constants, references and tokens do not."""
    exempt = definition.has(STRUCTURAL) or definition.has(CONSTANT) or not definition.operands
    if definition.has(PURE) and not exempt and definition.name not in REFERENCES:
        assert definition.bound is not None
    if definition.has(STRUCTURAL):
        assert definition.bound is None, "reference mode applies evaluate to a structural op"


@every_op
def test_lower(definition: OpDef) -> None:
    assert definition.lower is not None
    ways = [
        definition.lower.expression or definition.lower.integer,
        definition.lower.template,
        definition.lower.decomposed_by,
    ]
    assert sum(map(bool, ways)) == 1
    assert bool(definition.lower.decomposed_by) == (TARGET not in definition.levels)


@every_op
def test_effects(definition: OpDef) -> None:
    assert set(definition.effects) <= set(definition.operands)
    assert set(definition.effects.values()) <= {"reads", "writes", "accumulates"}
    assert not (definition.effects and definition.has(PURE))
    if definition.has(ASYNC):
        assert "writes" in definition.effects.values()


@every_op
def test_operands_levels_and_regions(definition: OpDef) -> None:
    assert definition.levels and definition.levels <= EVERY_LEVEL
    assert len(set(definition.operands)) == len(definition.operands)
    assert not any(name.startswith("*") for name in definition.operands[:-1])
    assert (definition.regions > 0) == (definition.has(LOOP) or definition.has(BRANCH))
    fixed = [name for name in definition.operands if not name.startswith("*")]
    assert definition.check_arity(len(fixed))
    assert definition.check_arity(len(fixed) + 3) == (fixed != list(definition.operands))
    assert not fixed or not definition.check_arity(len(fixed) - 1)


def test_attributes_are_completed_in_declared_order() -> None:
    definition = lookup("program_id")
    assert list(definition.complete({"scale": 4, "axis": 1}).items()) == [("axis", 1), ("scale", 4)]
    assert definition.complete({"axis": 0}) == {"axis": 0, "scale": 1}
    with pytest.raises(InternalError, match="needs the attribute 'axis'"):
        definition.complete({})
    with pytest.raises(InternalError, match="has no attribute 'speed'"):
        definition.complete({"axis": 0, "speed": 1})
    assert repr(REQUIRED) == "<required>"


def test_lookup_and_declaration() -> None:
    with pytest.raises(SourceError, match="there is no op 'nope'"):
        lookup("nope")
    with pytest.raises(InternalError, match="op add is declared twice"):
        define("add", "a b", lambda op: (), "again")
