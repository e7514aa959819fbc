"""The text of IR: what a person reads, diffs and edits, and what `parser.parse_module` reads back to the same module.

A value prints as its author's name where it has one (`%delta`, a second one `%delta.1`) and as a number where not
(`%3`). Attributes that have their default are left out. Layouts and source files are declared once at the top and used
by alias.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

from tessera.dtypes import TYPES, DType
from tessera.errors import InternalError
from tessera.ir.compare import hint_of, same_attribute
from tessera.ir.core import Block, Kernel, Module, Op, Value
from tessera.ir.dims import Dim, Size, substitute, symbol, symbols, to_text
from tessera.ir.layout import RegisterLayout, SharedLayout
from tessera.ir.opdef import GRAPH, table
from tessera.ir.types import BufferType, ListType, RingType, ScalarType, TileType, TokenType, Type
from tessera.location import Loc

VERSION = 1

# Words of an attribute value that are not names of sizes. A size whose symbol is one of them, or one of the dtypes, or
# no identifier, prints as $"symbol".
CONSTANTS = {"none": None, "true": True, "false": False, "inf": math.inf, "nan": math.nan}

_IDENTIFIER = re.compile(r"[^\W0-9]\w*")


def print_module(module: Module, locations: bool = True) -> str:
    """The text of a module. Without `locations` it is for display: reading it back gives the text's own locations.

    Raises InternalError TS901 for an attribute value that has no text.
    """
    aliases = _Aliases(locations, module.level)
    kernels = [_KernelPrinter(aliases).text(kernel) for kernel in module.kernels]
    head = [f"tessera {VERSION} {module.level}", *aliases.declarations()]
    return "\n\n".join(["\n".join(head), *kernels]) + "\n"


def print_kernel(kernel: Kernel, locations: bool = True, level: str = "") -> str:
    """The text of one kernel, with its layouts and files above it but without the version line."""
    aliases = _Aliases(locations, level)
    text = _KernelPrinter(aliases).text(kernel)
    return "\n".join([*aliases.declarations(), text]) + "\n"


def size_text(size: Size) -> str:
    """`dims.to_text`, with the symbols quoted that would read as something else."""
    odd = [name for name in symbols(size) if not _IDENTIFIER.fullmatch(name) or name in TYPES or name in CONSTANTS]
    return to_text(substitute(size, {name: symbol("$" + json.dumps(name)) for name in odd}))


class _Aliases:
    """The names `#L0`, `#S0` and the file numbers, given in the order of first use."""

    def __init__(self, locations: bool, level: str) -> None:
        self.locations = locations
        self.tile = "tensor" if level == GRAPH else "tile"
        self.files: dict[str, int] = {}
        self.layouts: dict[RegisterLayout | SharedLayout, str] = {}
        self.counts = {"L": 0, "S": 0}

    def declarations(self) -> list[str]:
        files = [f"file {number} {json.dumps(path)}" for path, number in self.files.items()]
        return files + [f"layout {alias} = {layout}" for layout, alias in self.layouts.items()]

    def layout(self, layout: RegisterLayout | SharedLayout) -> str:
        if layout not in self.layouts:
            letter = "L" if isinstance(layout, RegisterLayout) else "S"
            self.layouts[layout] = f"#{letter}{self.counts[letter]}"
            self.counts[letter] += 1
        return self.layouts[layout]

    def type(self, type_: Type) -> str:
        if isinstance(type_, TokenType):
            return "token"
        if isinstance(type_, RingType):
            return f"ring<{type_.stages}>"
        if isinstance(type_, ListType):
            return f"list<{self.type(type_.element)}, {type_.length}>"
        if isinstance(type_, ScalarType):
            return f"weak {type_.dtype.name}" if type_.weak else type_.dtype.name
        kind = self.tile if isinstance(type_, TileType) else "buffer" if isinstance(type_, BufferType) else "view"
        parts = [f"[{', '.join(map(size_text, type_.shape))}]", type_.dtype.name]
        layout = getattr(type_, "layout", None)
        if layout is not None:
            parts.append(self.layout(layout))
        return f"{kind}<{', '.join(parts)}>"

    def attribute(self, value: object) -> str:
        for word, constant in CONSTANTS.items():
            if value is constant:
                return word
        if isinstance(value, DType):
            return value.name
        if isinstance(value, int):
            return int.__repr__(value)
        if isinstance(value, float):
            return float.__repr__(value)
        if isinstance(value, str):
            return json.dumps(value)
        if isinstance(value, Dim):
            return size_text(value)
        if isinstance(value, tuple):
            inner = ", ".join(map(self.attribute, value))
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        if isinstance(value, dict):
            return self.attributes(value)
        if isinstance(value, (RegisterLayout, SharedLayout)):
            return self.layout(value)
        raise InternalError("TS901", f"the attribute value {value!r} of type {type(value).__name__} has no text")

    def attributes(self, values: dict[str, object]) -> str:
        pairs = [
            f"{key if _IDENTIFIER.fullmatch(key) else json.dumps(key)} = {self.attribute(value)}"
            for key, value in values.items()
        ]
        return "{" + ", ".join(pairs) + "}"

    def origin(self, origin: Iterable[Loc]) -> str:
        text = ", ".join(self._location(loc) for loc in origin) if self.locations else ""
        return f" @{text}" if text else ""

    def _location(self, loc: Loc) -> str:
        return " < ".join(self._span(link) for link in (loc, *loc.calls()))

    def _span(self, loc: Loc) -> str:
        number = self.files.setdefault(loc.file, len(self.files))
        text = f"{number}:{loc.line}:{loc.column}"
        if loc.end_line is None and loc.end_column is None:
            return text
        line, column = ("?" if end is None else end for end in (loc.end_line, loc.end_column))
        return f"{text}-{line}:{column}"


class _KernelPrinter:
    """Names are unique in a kernel, whatever the region, so a line can be moved and still mean the same value."""

    def __init__(self, aliases: _Aliases) -> None:
        self.aliases = aliases
        self.names: dict[Value, str] = {}
        self.taken: dict[str, int] = {}
        self.lines: list[str] = []

    def text(self, kernel: Kernel) -> str:
        name = f"@{kernel.name}" if _IDENTIFIER.fullmatch(kernel.name) else "@" + json.dumps(kernel.name)
        parameters = ",\n".join(f"  {self._declared(value)}" for value in kernel.parameters)
        head = f"kernel {name}(" + (f"\n{parameters}\n)" if parameters else ")")
        if kernel.attributes:
            head += " attributes " + self.aliases.attributes(kernel.attributes)
        self.lines.append(head + self.aliases.origin(kernel.origin) + " {")
        self._block(kernel.body, "  ")
        self.lines.append("}")
        return "\n".join(self.lines)

    def _block(self, block: Block, indent: str) -> None:
        for op in block.ops:
            self._op(op, indent)

    def _op(self, op: Op, indent: str) -> None:
        results = ", ".join(map(self._declared, op.results))
        text = indent + (f"{results} = " if results else "") + op.name
        if op.operands:
            text += " " + ", ".join(map(self._name, op.operands))
        attributes = _not_default(op)
        if attributes:
            text += " " + self.aliases.attributes(attributes)
        for number, region in enumerate(op.regions):
            text += " else" if number else ""
            if region.arguments:
                text += f" ({', '.join(map(self._declared, region.arguments))})"
            self.lines.append(text + " {")
            self._block(region, indent + "  ")
            text = indent + "}"
        self.lines.append(text + self.aliases.origin(op.origin))

    def _declared(self, value: Value) -> str:
        return f"{self._name(value)}: {self.aliases.type(value.type)}"

    def _name(self, value: Value) -> str:
        if value not in self.names:
            hint = hint_of(value.name)
            count = self.taken.get(hint, 0)
            self.taken[hint] = count + 1
            self.names[value] = f"%{count}" if not hint else f"%{hint}.{count}" if count else f"%{hint}"
        return self.names[value]


def _not_default(op: Op) -> dict[str, object]:
    """The attributes to print, in the order of the op table."""
    definition = table().get(op.name)
    if definition is None:
        return op.attributes
    defaults = definition.attributes
    unknown = [key for key in op.attributes if key not in defaults]
    ordered = [key for key in defaults if key in op.attributes] + unknown
    return {
        key: op.attributes[key]
        for key in ordered
        if key not in defaults or not same_attribute(op.attributes[key], defaults[key])
    }
