"""Reads the text of IR (`grammar.lark`) back into a module. Text is data: nothing in it is ever executed.

Two steps: lark's LALR automaton makes a light tree without recursion, then every op is made through the `Builder`, so
that the rules of the op table hold for text as they do for passes. Whatever the text is, the only exception is
SourceError with TS701 (not in the grammar), TS702 (another version, level, or a name that this version does not know)
or TS703 (not valid), at a line and column of the text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from tessera.errors import SourceError, TesseraError, did_you_mean
from tessera.ir.compare import hint_of
from tessera.ir.core import Block, Builder, Kernel, Module, Op, Value
from tessera.ir.layout import RegisterLayout, SharedLayout
from tessera.ir.opdef import GRAPH, REQUIRED, TARGET, TERMINATOR, TILE, OpDef, table
from tessera.ir.parser_tree import (
    Alias,
    Fault,
    FileText,
    Item,
    KernelText,
    LayoutText,
    ListText,
    OpText,
    Position,
    RegionText,
    ShapedText,
    TreeMethods,
    ValueText,
    lark_parser,
    string_of,
)
from tessera.ir.printer import VERSION
from tessera.ir.types import (
    BufferType,
    ListType,
    TileType,
    Type,
    ViewType,
    type_text,
)
from tessera.ir.verify import RULE_FAULTS, attribute_problem, kernel_attribute_problem
from tessera.location import Loc

if TYPE_CHECKING:
    from lark import Token

MAX_NESTING = 64  # which no printed IR meets: it keeps hostile text from recursing

_VERSION_LINE = re.compile(r"(?:\s|//[^\n]*)*(?P<line>tessera[ \t]+(?P<version>\d+)[ \t]+(?P<level>\w+))?")
_BRACKET = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|[\[\](){}]')
_SPAN = re.compile(r"(\d+):(\d+):(\d+)(?:-(\d+|\?):(\d+|\?))?")

# How the message of a syntax error calls the terminals of the grammar.
_TERMINALS = {
    "_NL": "a new line",
    "VALUE": "a value such as %x",
    "KERNEL_NAME": "a kernel's name such as @f",
    "STRING": "a string",
    "ORIGIN": "a location such as @0:1:1",
    "LAYOUT": "a layout such as #L0",
    "LAYOUT_TEXT": "the text of a layout",
    "SYMBOL": 'a symbol such as $"f32"',
    "FLOAT": "a number",
    "INT": "a number",
    "NAME": "a name",
    "LPAR": "'('",
    "RPAR": "')'",
    "LBRACE": "'{'",
    "RBRACE": "'}'",
    "LSQB": "'['",
    "RSQB": "']'",
    "LESSTHAN": "'<'",
    "MORETHAN": "'>'",
    "EQUAL": "'='",
    "COMMA": "','",
    "COLON": "':'",
    "PLUS": "'+'",
    "MINUS": "'-'",
    "STAR": "'*'",
    "$END": "the end",
}


def parse_module(text: str, file: str = "<text>") -> Module:
    """The module that `text` describes; `file` names the text in messages and in the location of ops that give none.

    Raises SourceError TS701, TS702 or TS703, whatever the text is.
    """
    try:
        return _read(text, file)
    except Fault as fault:
        token = fault.token
        loc = Loc(file, 1) if token is None else _token_loc(token, file)
        raise SourceError(fault.code, fault.message, loc) from None


def _token_loc(token: Token | Position, file: str) -> Loc:
    return Loc(file, token.line or 1, token.column or 1, token.end_line, token.end_column)


def _position(text: str, offset: int) -> Position:
    return Position(text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))


def _read(text: str, file: str) -> Module:
    from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

    level = _check_version(text)
    _check_nesting(text)
    if not text.endswith("\n"):
        text += "\n"
    try:
        declarations = lark_parser().parse(text)
    except UnexpectedToken as error:
        wanted = sorted({_TERMINALS.get(name, f"'{name.lower()}'") for name in error.expected})
        expected = " or ".join(wanted) if len(wanted) <= 4 else ", ".join(wanted[:4]) + " or another of these"
        if error.token.type == "$END":
            place = _position(text, len(text.rstrip()))  # after the last word: a line that there is
            raise Fault("TS701", f"the text ends where {expected} should follow", place) from None
        raise Fault("TS701", f"{_shown(error.token)} stands where {expected} should be", error.token) from None
    except UnexpectedCharacters as error:
        found = text[error.pos_in_stream] if error.pos_in_stream is not None else "?"
        where = Position(error.line, error.column)
        raise Fault("TS701", f"the character {found!r} cannot stand here", where) from None
    except UnexpectedInput as error:
        raise Fault("TS701", "this is not IR text", Position(error.line or 1, error.column or 1)) from None
    return _ModuleBuilder(level, file).module(cast(list[Any], declarations))  # the transformer made them


def _shown(token: Token) -> str:
    return "the end of the line" if token.type == "_NL" else f"'{token[:40]}'"


def _check_version(text: str) -> str:
    match = _VERSION_LINE.match(text)
    assert match is not None, "every part of the pattern is optional"
    where = _position(text, match.end() if match["line"] is None else match.start("line"))
    if match["line"] is None:
        raise Fault("TS702", f"IR text begins with a line such as 'tessera {VERSION} {TILE}'", where)
    if match["version"] != str(VERSION):
        version = match["version"][:20]
        raise Fault("TS702", f"the text has version {version}, but this Tessera reads version {VERSION}", where)
    if match["level"] not in (GRAPH, TILE, TARGET):
        raise Fault("TS702", f"the level '{match['level'][:40]}' is neither {GRAPH}, {TILE} nor {TARGET}", where)
    return match["level"]


def _check_nesting(text: str) -> None:
    depth = 0
    for match in _BRACKET.finditer(text):
        if match[0] in "([{":
            depth += 1
            if depth > MAX_NESTING:
                raise Fault("TS701", f"brackets nest more than {MAX_NESTING} deep", _position(text, match.start()))
        elif match[0] in ")]}":
            depth -= 1


# From the tree to IR --------------------------------------------------------------------------------------------------


class _ModuleBuilder:
    def __init__(self, level: str, file: str) -> None:
        self.level = level
        self.file = file
        self.files: dict[int, str] = {}
        self.layouts: dict[str, RegisterLayout | SharedLayout] = {}
        self.origins: dict[str, tuple[Loc, ...]] = {}
        self.visible: dict[str, Value] = {}
        self.defined: set[str] = set()

    def module(self, declarations: list[Any]) -> Module:
        module = Module(self.level)
        for declaration in declarations:
            if isinstance(declaration, FileText):
                self._declare_file(declaration)
            elif isinstance(declaration, LayoutText):
                self._declare_layout(declaration)
            else:
                kernel = self._kernel(declaration)
                if any(kernel.name == other.name for other in module.kernels):
                    raise Fault("TS703", f"there are two kernels named '{kernel.name}'", declaration.name)
                module.kernels.append(kernel)
        return module

    def _declare_file(self, text: FileText) -> None:
        number = TreeMethods().integer(text.number).value
        if number in self.files:
            raise Fault("TS703", f"file {number} is declared twice", text.number)
        self.files[number] = text.path

    def _declare_layout(self, text: LayoutText) -> None:
        if text.alias in self.layouts:
            raise Fault("TS703", f"layout {text.alias} is declared twice", text.alias)
        if any(len(digits) > 9 for digits in re.findall(r"\d+", text.text)):
            raise Fault("TS703", f"layout {text.alias} has a number beyond any tile", text.text)
        kind = RegisterLayout if text.text.startswith("regs") else SharedLayout
        try:
            self.layouts[str(text.alias)] = kind.parse(text.text.strip())
        except (ValueError, TypeError, ZeroDivisionError, RecursionError) as error:
            raise Fault("TS703", f"layout {text.alias} cannot be read: {str(error)[:200]}", text.text) from None

    def _layout(self, alias: Token) -> RegisterLayout | SharedLayout:
        if alias not in self.layouts:
            raise Fault("TS703", f"layout {alias} is not declared above", alias)
        return self.layouts[alias]

    def _kernel(self, text: KernelText) -> Kernel:
        self.visible, self.defined = {}, set()
        name = string_of(text.name) if '"' in text.name else text.name[1:]
        kernel = Kernel(str(name), Block(), self._plain(text.attributes), self._origin(text.origin, text.name))
        problem = kernel_attribute_problem(kernel)
        if problem:
            raise Fault("TS703", f"kernel {name[:40]}: {problem}", text.name)
        self._arguments(kernel.body, text.parameters)
        self._ops(kernel.body, text.ops, inside=None)
        return kernel

    def _arguments(self, block: Block, values: list[ValueText]) -> None:
        for value in values:
            self._define(value.name, block.add_argument(self._type(value.type), _hint(value.name)))

    def _define(self, name: Token, value: Value) -> None:
        if name in self.defined:
            raise Fault("TS703", f"{name} is defined twice", name)
        self.defined.add(str(name))
        self.visible[str(name)] = value

    def _ops(self, block: Block, ops: list[OpText], inside: str | None) -> None:
        for number, text in enumerate(ops):
            definition = self._definition(text.name)
            if definition.has(TERMINATOR) and (number != len(ops) - 1 or inside is None and self.level != GRAPH):
                raise Fault("TS703", f"{text.name} can only end a region", text.name)
            self._op(block, text, definition)

    def _definition(self, name: Token) -> OpDef:
        definition = table().get(str(name))
        if definition is None:
            raise Fault("TS702", f"there is no op '{name[:40]}'{did_you_mean(name[:40], table())}", name)
        if self.level not in definition.levels:
            raise Fault("TS702", f"op {name} is not of the {self.level} level", name)
        return definition

    def _op(self, block: Block, text: OpText, definition: OpDef) -> None:
        operands = [self._use(name) for name in text.operands]
        if not definition.check_arity(len(operands)):
            takes = ", ".join(definition.operands) or "no operands"
            raise Fault("TS703", f"op {text.name} takes {takes}, not {len(operands)} operands", text.name)
        if not definition.check_regions(len(text.regions)):
            count = len(text.regions)
            raise Fault("TS703", f"op {text.name} has {definition.regions} regions, not {count}", text.name)
        attributes = self._attributes(text, definition)
        regions = [self._region(region, str(text.name)) for region in text.regions]
        builder = Builder(block, self._origin(text.origin, text.name))
        try:
            problem = attribute_problem(Op(definition.name, operands, attributes, [], regions, builder.origin))
            if problem:
                raise Fault("TS703", problem, text.name)
            op = builder.op(definition.name, operands, regions, [_hint(v.name) for v in text.results], **attributes)
        except TesseraError as error:
            raise Fault("TS703", error.message, text.name) from None
        except RULE_FAULTS as error:
            message = f"the operands and attributes of this {text.name} do not fit each other ({error})"
            raise Fault("TS703", message[:300], text.name) from None
        self._results(text, op)

    def _results(self, text: OpText, op: Op) -> None:
        if len(text.results) != len(op.results):
            raise Fault("TS703", f"this {op.name} gives {len(op.results)} results, not {len(text.results)}", text.name)
        for written, value in zip(text.results, op.results, strict=True):
            type_ = self._type(written.type)
            if type_ != value.type:
                raise Fault(
                    "TS703",
                    f"{written.name} is written as {type_text(type_)}, but this {op.name} gives "
                    f"{type_text(value.type)}",
                    written.type.token,
                )
            self._define(written.name, value)

    def _attributes(self, text: OpText, definition: OpDef) -> dict[str, Any]:
        for name in text.attributes:
            if name not in definition.attributes:
                raise Fault(
                    "TS702",
                    f"op {definition.name} has no attribute '{name[:40]}'"
                    f"{did_you_mean(name[:40], definition.attributes)}",
                    text.name,
                )
        for name, default in definition.attributes.items():
            if default is REQUIRED and name not in text.attributes:
                raise Fault("TS703", f"op {definition.name} needs the attribute '{name}'", text.name)
        return definition.complete(self._plain(text.attributes))

    def _region(self, text: RegionText, inside: str) -> Block:
        outer, block = dict(self.visible), Block()
        self._arguments(block, text.arguments)
        self._ops(block, text.ops, inside)
        self.visible = outer
        return block

    def _use(self, name: Token) -> Value:
        if name not in self.visible:
            why = "is not visible here: it is defined in a region" if name in self.defined else "is not defined above"
            raise Fault("TS703", f"{name} {why}", name)
        return self.visible[name]

    def _type(self, item: Item) -> Type:
        if isinstance(item.value, ListText):
            element = self._type(item.value.element)
            assert isinstance(element, ViewType), "the tree has checked it"
            return ListType(element, item.value.length)
        if not isinstance(item.value, ShapedText):
            return item.value
        kind, shape, dtype, alias = item.value
        if kind == "view":
            return ViewType(shape, dtype)
        if (kind == "tensor") != (self.level == GRAPH and kind in ("tensor", "tile")):
            raise Fault("TS703", f"there are no {kind}s at the {self.level} level", kind)
        layout = self._layout(alias) if alias is not None else None
        if kind in ("tile", "tensor") and (layout is None or isinstance(layout, RegisterLayout)):
            return TileType(shape, dtype, layout)
        if kind == "buffer" and (layout is None or isinstance(layout, SharedLayout)):
            return BufferType(shape, dtype, layout)
        raise Fault("TS703", f"{alias} is not a layout for a {kind}", alias)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Item):
            value = value.value
        if isinstance(value, Alias):
            return self._layout(value.token)
        if isinstance(value, tuple):
            return tuple(map(self._plain, value))
        if isinstance(value, dict):
            return {key: self._plain(item) for key, item in value.items()}
        return value

    def _origin(self, text: Token | None, fallback: Token) -> tuple[Loc, ...]:
        if text is None:
            return (_token_loc(fallback, self.file),)
        if text not in self.origins:
            self.origins[str(text)] = tuple(self._location(part, text) for part in text[1:].split(","))
        return self.origins[text]

    def _location(self, text: str, token: Token) -> Loc:
        loc: Loc | None = None
        for span in reversed(text.split("<")):
            match = _SPAN.fullmatch(span.strip())
            assert match is not None, "the grammar has checked it"
            number, line, column = int(match[1]), int(match[2]), int(match[3])
            if number not in self.files:
                raise Fault("TS703", f"file {number} of the location is not declared above", token)
            end_line, end_column = (None if end in (None, "?") else int(end) for end in (match[4], match[5]))
            loc = Loc(self.files[number], line, column, end_line, end_column, loc)
        assert loc is not None
        return loc


def _hint(name: Token) -> str:
    return "" if name[1] in "0123456789" else hint_of(name[1:])
