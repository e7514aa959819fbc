"""C names, types and integer expressions of an emitted kernel."""

from __future__ import annotations

import math
import re
from typing import Any

from tessera.dtypes import DType
from tessera.ir.core import Value
from tessera.ir.dims import Atom, Dim, Size

_CALLS = {"floordiv": "ts_floordiv", "mod": "ts_floormod", "cdiv": "ts_cdiv", "min": "ts_imin", "max": "ts_imax"}
_KEYWORDS = frozenset(
    "auto bool break case char class const continue default delete do double else enum extern false float for "
    "goto if inline int long new operator private public register return short signed sizeof static struct "
    "switch template this true typedef union unsigned using virtual void volatile while".split()
)


def identifier(hint: str) -> str:
    """A C identifier near `hint`, never one that starts with `ts_` or `TS_` as the device header's names do."""
    text = re.sub(r"\W", "_", hint, flags=re.ASCII) or "v"
    if text[0].isdigit() or text.lower().startswith("ts_") or text in _KEYWORDS:
        text = "v_" + text
    return text


class Names:
    """Unique C names per value."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.of_value: dict[Value, str] = {}

    def fresh(self, hint: str) -> str:
        base = identifier(hint)
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name

    def value(self, value: Value) -> str:
        if value not in self.of_value:
            op = value.defining_op
            self.of_value[value] = self.fresh(value.name or (op.name if op is not None else "index"))
        return self.of_value[value]


def dim_name(symbol: str) -> str:
    """The kernel argument that carries a dim."""
    return "dim_" + re.sub(r"\W", "_", symbol, flags=re.ASCII)


def size_text(size: Size) -> str:
    """A size as an int64 expression over the dim arguments."""
    if isinstance(size, int):
        return str(size)
    terms = []
    for monomial, number in size.terms:
        factors = [_atom(atom) for atom, power in monomial for _ in range(power)]
        if number != 1 or not factors:
            factors.insert(0, str(number))
        terms.append(" * ".join(factors))
    return terms[0] if len(terms) == 1 and isinstance(size, Dim) else "(" + " + ".join(terms) + ")"


def _atom(atom: Atom) -> str:
    if not atom.function:
        return dim_name(atom.name)
    left, right = (size_text(argument) for argument in atom.arguments)
    return f"{_CALLS[atom.function]}({left}, {right})"


def literal(value: Any, dtype: DType) -> str:
    """A constant of `dtype`; floats print exactly."""
    if dtype.is_bool:
        return "true" if value else "false"
    if dtype.is_int:
        return (
            f"{int(value)}LL" if abs(int(value)) < 1 << 63 and value != -(1 << 63) else "(-9223372036854775807LL - 1)"
        )
    number = float(value)
    if math.isnan(number):
        return "ts_nan()"
    if math.isinf(number):
        return "ts_infinity()" if number > 0 else "(-ts_infinity())"
    return f"{number!r}f" if "e" in repr(number) or "." in repr(number) else f"{number!r}.0f"
