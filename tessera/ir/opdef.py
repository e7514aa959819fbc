"""The op table: what every op is, declared once (`ir/ops/`), and the registry that answers for it.

From one `OpDef` the printer, parser, verifier, interpreter, passes, emitter and language reference take what they need.
The facets: operand names (`*name` takes the rest), attributes with defaults, effects on references, traits, type rule,
`evaluate` (NumPy, the definition; a leading axis of every array counts programs), `bound` (the error rule of reference
mode), `lower` (how CUDA says it) and `doc`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tessera.errors import InternalError, SourceError
from tessera.ir.core import DEFINITIONS, Op
from tessera.ir.types import Type

GRAPH, TILE, TARGET = "graph", "tile", "target"
EVERY_LEVEL = frozenset((GRAPH, TILE, TARGET))

# Traits. Passes ask for these, never for op names.
PURE = "pure"  # no effect: may be folded, merged, moved or dropped
ELEMENTWISE = "elementwise"  # result element i depends on element i of each tile operand; scalars spread
TERMINATOR = "terminator"  # ends a region
LOOP = "loop"  # region runs zero or more times; its last arguments and operands are the carried values
COUNTED = "counted"  # a loop over lower, upper, step, whose region takes the index first
BRANCH = "branch"  # regions run at most once
ASYNC = "async"  # completes at the wait that consumes its token
STRUCTURAL = "structural"  # moves elements without arithmetic: reference mode applies `evaluate` to value and bar
COLLECTIVE = "collective"  # every thread of the block must reach it
ALIGNED = "aligned"  # its tile operands meet element by element: they share one register layout
ORDERED = "ordered"  # an effect that is seen outside, once and in program order: programs run one by one
UNORDERED = "unordered"  # threads and programs meet in no fixed order: sums of floats are right within a bound only
REDUCTION = "reduction"  # along `axis`, which stays with size 1; other axes are untouched
SCAN = "scan"  # along `axis`: an element depends on itself and those before it; other axes are untouched
CONSTANT = "constant"


class Required:
    """Marks an attribute without default."""

    def __repr__(self) -> str:
        return "<required>"


REQUIRED = Required()


@dataclass(frozen=True)
class Lowering:
    """How Target emission says an op.

    `expression`: a CUDA expression over `{0}`, `{1}`, ... for one element whose operands are f32; `integer`: the same
    for operands that are integers or bools; `template`: the name of a file in `codegen_cuda/templates`;
    `decomposed_by`: the pass that replaces the op before emission.
    """

    expression: str = ""
    integer: str = ""
    template: str = ""
    decomposed_by: str = ""

    @property
    def floats_only(self) -> bool:
        """Whether the op is defined for f32 operands alone: an integer operand is converted first."""
        return bool(self.expression) and not self.integer


@dataclass(frozen=True)
class OpDef:
    name: str
    operands: tuple[str, ...]
    type_rule: Callable[[Op], tuple[Type, ...]]
    doc: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    effects: Mapping[str, str] = field(default_factory=dict)  # operand name -> "reads" | "writes" | "accumulates"
    traits: frozenset[str] = frozenset()
    levels: frozenset[str] = frozenset((TILE, TARGET))
    regions: int = 0
    more_regions: bool = False  # whether there may be more of them
    evaluate: Callable[..., Any] | None = None
    bound: Callable[..., Any] | None = None
    lower: Lowering | None = None
    takes: frozenset[str] = frozenset(("float", "int", "bool"))  # kinds of dtype that an elementwise op is defined for
    ulp: float = 0.5  # stated CUDA error of the f32 function, in ulp
    on_numbers: Callable[..., Any] | None = None  # the same on Python numbers, in float64

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` plus defaults, in declared order. Raises for unknown or missing attributes."""
        for name in given:
            if name not in self.attributes:
                raise InternalError("TS901", f"op {self.name} has no attribute '{name}'")
        result = {}
        for name, default in self.attributes.items():
            value = given.get(name, default)
            if value is REQUIRED:
                raise InternalError("TS901", f"op {self.name} needs the attribute '{name}'")
            result[name] = value
        return result

    def check_arity(self, count: int) -> bool:
        fixed, variadic = _arity(self.operands)
        return count >= fixed if variadic else count == fixed

    def check_regions(self, count: int) -> bool:
        return count == self.regions or self.more_regions and count > self.regions

    def effects_of(self, op: Op) -> list[tuple[str, Any]]:
        """`(effect, operand value)` of this op itself, regions not counted."""
        found: list[tuple[str, Any]] = []
        for name, effect in self.effects.items():
            if name.startswith("*"):
                found += [(effect, value) for value in op.operands[len(self.operands) - 1 :]]
            else:
                found.append((effect, op.operands[self.operands.index(name)]))
        return found

    def has(self, trait: str) -> bool:
        return trait in self.traits


@cache
def _arity(operands: tuple[str, ...]) -> tuple[int, bool]:
    """How many operands have a name each, and whether any number may follow them."""
    fixed = sum(not name.startswith("*") for name in operands)
    return fixed, fixed != len(operands)


_table = DEFINITIONS


def define(
    name: str, operands: str, type_rule: Callable[[Op], tuple[Type, ...]], doc: str, *traits: str, **facets: Any
) -> OpDef:
    """Adds an op to the table. `operands` is a space-separated list of names, the last one perhaps `*names`."""
    if name in _table:
        raise InternalError("TS901", f"op {name} is declared twice")
    definition = OpDef(name, tuple(operands.split()), type_rule, doc, traits=frozenset(traits), **facets)
    _table[name] = definition
    return definition


def table() -> Mapping[str, OpDef]:
    """All ops by name."""
    import tessera.ir.ops  # noqa: F401  declares them

    return _table


def lookup(name: str) -> OpDef:
    definition = table().get(name)
    if definition is None:
        raise SourceError("TS702", f"there is no op '{name}'")
    return definition
