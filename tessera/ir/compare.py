"""Structural comparison of IR: the test of `parse(print(m)) == m`, and of passes that should change nothing."""

from __future__ import annotations

import math
import re
from typing import Any

from tessera.ir.core import Block, Kernel, Module, Op, Value

_NUMBERED = re.compile(r"(\.[0-9]+)+$")


def hint_of(name: str) -> str:
    """The part of a value's name that text keeps: without the number that made it unique, in letters that print."""
    hint = re.sub(r"\W", "_", _NUMBERED.sub("", name))
    return f"_{hint}" if hint[:1].isascii() and hint[:1].isdigit() else hint


def same_attribute(a: Any, b: Any) -> bool:
    """Equality that also tells 1 from 1.0 and True and 0.0 from -0.0, and holds NaN equal to itself."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same_attribute, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_attribute(a[key], b[key]) for key in a)
    return a == b


def difference(a: Module | Kernel, b: Module | Kernel) -> str | None:
    """The first difference as a sentence, or None. Ids of ops are not compared; names are compared as hints."""
    if isinstance(a, Kernel) and isinstance(b, Kernel):
        return _Comparison().kernels(a, b)
    if not isinstance(a, Module) or not isinstance(b, Module):
        return f"one is a {type(a).__name__.lower()}, the other a {type(b).__name__.lower()}"
    if a.level != b.level:
        return f"the levels are {a.level} and {b.level}"
    if len(a.kernels) != len(b.kernels):
        return f"the modules have {len(a.kernels)} and {len(b.kernels)} kernels"
    return next(filter(None, (_Comparison().kernels(x, y) for x, y in zip(a.kernels, b.kernels, strict=True))), None)


class _Comparison:
    """Compares in program order, so every value is matched before it is used."""

    def __init__(self) -> None:
        self.matched: dict[Value, Value] = {}

    def kernels(self, a: Kernel, b: Kernel) -> str | None:
        if a.name != b.name:
            return f"the kernels are named '{a.name}' and '{b.name}'"
        where = f"kernel '{a.name}'"
        if not same_attribute(a.attributes, b.attributes):
            return f"{where}: the attributes are {a.attributes} and {b.attributes}"
        if a.origin != b.origin:
            return f"{where}: the origins are {_places(a)} and {_places(b)}"
        return self._values(a.parameters, b.parameters, f"{where}: parameter") or self._blocks(a.body, b.body, where)

    def _blocks(self, a: Block, b: Block, where: str) -> str | None:
        for number, (x, y) in enumerate(zip(a.ops, b.ops, strict=False)):
            found = self._ops(x, y, f"{where}, op {number} ({x.name})")
            if found:
                return found
        return None if len(a.ops) == len(b.ops) else f"{where}: the blocks hold {len(a.ops)} and {len(b.ops)} ops"

    def _ops(self, a: Op, b: Op, where: str) -> str | None:
        if a.name != b.name:
            return f"{where}: the other op is {b.name}"
        if [self.matched.get(value, value) for value in a.operands] != b.operands:
            return f"{where}: the operands are {a.operands} and {b.operands}"
        if not same_attribute(a.attributes, b.attributes):
            return f"{where}: the attributes are {a.attributes} and {b.attributes}"
        if a.origin != b.origin:
            return f"{where}: the origins are {_places(a)} and {_places(b)}"
        if len(a.regions) != len(b.regions):
            return f"{where}: {len(a.regions)} and {len(b.regions)} regions"
        for number, (x, y) in enumerate(zip(a.regions, b.regions, strict=True)):
            inside = f"{where}, region {number}"
            found = self._values(x.arguments, y.arguments, f"{inside}: argument") or self._blocks(x, y, inside)
            if found:
                return found
        return self._values(a.results, b.results, f"{where}: result")

    def _values(self, a: list[Value], b: list[Value], where: str) -> str | None:
        if len(a) != len(b):
            return f"{where}s: there are {len(a)} and {len(b)}"
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            if x.type != y.type:
                return f"{where} {number}: the types are {x.type} and {y.type}"
            if hint_of(x.name) != hint_of(y.name):
                return f"{where} {number}: the names are '{x.name}' and '{y.name}'"
            self.matched[x] = y
        return None


def _places(thing: Kernel | Op) -> str:
    return "[" + ", ".join(f"{loc}{' in a call' if loc.call_site else ''}" for loc in thing.origin) + "]"
