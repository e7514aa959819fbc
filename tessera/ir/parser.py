"""Reads the text of IR (`grammar.lark`) back into a module. Text is data: nothing in it is ever executed.

Two steps: lark's LALR automaton makes a light tree without recursion, then every op is made through the `Builder`, so
that the rules of the op table hold for text as they do for passes. Whatever the text is, the only exception is
SourceError with TS701 (not in the grammar), TS702 (another version, level, or a name that this version does not know)
or TS703 (not valid), at a line and column of the text.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tessera.dtypes import TYPES, DType
from tessera.errors import SourceError, TesseraError, did_you_mean
from tessera.ir.compare import hint_of
from tessera.ir.core import Block, Builder, Kernel, Module, Op, Value
from tessera.ir.dims import FUNCTIONS, Dim, Size, symbol
from tessera.ir.layout import RegisterLayout, SharedLayout
from tessera.ir.opdef import GRAPH, REQUIRED, TARGET, TERMINATOR, TILE, OpDef, table
from tessera.ir.printer import CONSTANTS, VERSION
from tessera.ir.types import (
    BufferType,
    ListType,
    RingType,
    ScalarType,
    TileType,
    TokenType,
    Type,
    ViewType,
    type_text,
)
from tessera.ir.verify import RULE_FAULTS, attribute_problem, kernel_attribute_problem
from tessera.location import Loc

if TYPE_CHECKING:
    from lark import Lark, Token

# Bounds that no printed IR meets: they keep hostile text from recursing, and from sizes that grow exponentially.
MAX_NESTING = 64
MAX_TERMS = 256
MAX_DIGITS = 20

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
    except _Fault as fault:
        token = fault.token
        loc = Loc(file, 1) if token is None else _token_loc(token, file)
        raise SourceError(fault.code, fault.message, loc) from None


class _Fault(Exception):
    """An error at a token; `parse_module` knows the file. Never leaves this module."""

    def __init__(self, code: str, message: str, token: Token | _Position | None) -> None:
        super().__init__(message)
        self.code, self.message, self.token = code, message, token


class _Position(NamedTuple):
    line: int
    column: int
    end_line: int | None = None
    end_column: int | None = None


def _token_loc(token: Token | _Position, file: str) -> Loc:
    return Loc(file, token.line or 1, token.column or 1, token.end_line, token.end_column)


def _position(text: str, offset: int) -> _Position:
    return _Position(text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))


def _read(text: str, file: str) -> Module:
    from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

    level = _check_version(text)
    _check_nesting(text)
    if not text.endswith("\n"):
        text += "\n"
    try:
        declarations = _lark().parse(text)
    except UnexpectedToken as error:
        wanted = sorted({_TERMINALS.get(name, f"'{name.lower()}'") for name in error.expected})
        expected = " or ".join(wanted) if len(wanted) <= 4 else ", ".join(wanted[:4]) + " or another of these"
        if error.token.type == "$END":
            place = _position(text, len(text.rstrip()))  # after the last word: a line that there is
            raise _Fault("TS701", f"the text ends where {expected} should follow", place) from None
        raise _Fault("TS701", f"{_shown(error.token)} stands where {expected} should be", error.token) from None
    except UnexpectedCharacters as error:
        found = text[error.pos_in_stream] if error.pos_in_stream is not None else "?"
        where = _Position(error.line, error.column)
        raise _Fault("TS701", f"the character {found!r} cannot stand here", where) from None
    except UnexpectedInput as error:
        raise _Fault("TS701", "this is not IR text", _Position(error.line or 1, error.column or 1)) from None
    return _ModuleBuilder(level, file).module(cast(list[Any], declarations))  # the transformer made them


def _shown(token: Token) -> str:
    return "the end of the line" if token.type == "_NL" else f"'{token[:40]}'"


def _check_version(text: str) -> str:
    match = _VERSION_LINE.match(text)
    assert match is not None, "every part of the pattern is optional"
    where = _position(text, match.end() if match["line"] is None else match.start("line"))
    if match["line"] is None:
        raise _Fault("TS702", f"IR text begins with a line such as 'tessera {VERSION} {TILE}'", where)
    if match["version"] != str(VERSION):
        version = match["version"][:20]
        raise _Fault("TS702", f"the text has version {version}, but this Tessera reads version {VERSION}", where)
    if match["level"] not in (GRAPH, TILE, TARGET):
        raise _Fault("TS702", f"the level '{match['level'][:40]}' is neither {GRAPH}, {TILE} nor {TARGET}", where)
    return match["level"]


def _check_nesting(text: str) -> None:
    depth = 0
    for match in _BRACKET.finditer(text):
        if match[0] in "([{":
            depth += 1
            if depth > MAX_NESTING:
                raise _Fault("TS701", f"brackets nest more than {MAX_NESTING} deep", _position(text, match.start()))
        elif match[0] in ")]}":
            depth -= 1


# The light tree -------------------------------------------------------------------------------------------------------


class _Item(NamedTuple):
    """An attribute value or a type, and a token of it for messages."""

    value: Any
    token: Any


class _ShapedText(NamedTuple):
    kind: Token
    shape: tuple[Size, ...]
    dtype: DType
    layout: Token | None


class _ListText(NamedTuple):
    element: _Item
    length: int


class _ValueText(NamedTuple):
    name: Token
    type: _Item


class _Alias(NamedTuple):
    """A layout's alias inside an attribute, resolved when the declarations are known."""

    token: Token


class _RegionText(NamedTuple):
    arguments: list[_ValueText]
    ops: list[_OpText]


class _OpText(NamedTuple):
    results: list[_ValueText]
    name: Token
    operands: list[Token]
    attributes: dict[str, _Item]
    regions: list[_RegionText]
    origin: Token | None


class _KernelText(NamedTuple):
    name: Token
    parameters: list[_ValueText]
    attributes: dict[str, _Item]
    origin: Token | None
    ops: list[_OpText]


class _FileText(NamedTuple):
    number: Token
    path: str


class _LayoutText(NamedTuple):
    alias: Token
    text: Token


@cache
def _lark() -> Lark:
    from lark import Lark, Transformer, v_args

    # lark calls these methods while it parses, so nothing recurses over the text.
    methods = {name: method for name, method in vars(_TreeMethods).items() if not name.startswith("_")}
    tree = v_args(inline=True)(type("_Tree", (Transformer,), methods))()
    return Lark.open("grammar.lark", rel_to=__file__, parser="lalr", transformer=tree, maybe_placeholders=True)


class _TreeMethods:
    """One method per rule of the grammar."""

    def start(self, version: Any, *declarations: Any) -> list[Any]:
        return list(declarations)

    def version(self, number: Token, level: Token) -> None:
        return None  # read before the grammar, which other versions may not fit

    def file(self, number: Token, path: Token) -> _FileText:
        return _FileText(number, _string(path))

    def layout(self, alias: Token, text: Token) -> _LayoutText:
        return _LayoutText(alias, text)

    def kernel(self, name: Token, parameters: Any, attributes: Any, origin: Any, ops: list[_OpText]) -> _KernelText:
        return _KernelText(name, parameters or [], attributes.value if attributes else {}, origin, ops)

    def values(self, *values: _ValueText) -> list[_ValueText]:
        return list(values)

    def value(self, name: Token, type_: _Item) -> _ValueText:
        return _ValueText(name, type_)

    def block(self, *ops: _OpText) -> list[_OpText]:
        return list(ops)

    def op(self, results: Any, name: Token, operands: Any, attributes: Any, regions: Any, origin: Any) -> _OpText:
        return _OpText(results or [], name, operands or [], attributes.value if attributes else {}, regions, origin)

    def operands(self, *names: Token) -> list[Token]:
        return list(names)

    def regions(self, *regions: _RegionText) -> list[_RegionText]:
        return list(regions)

    def region(self, arguments: Any, ops: list[_OpText]) -> _RegionText:
        return _RegionText(arguments or [], ops)

    def simple_type(self, name: Token) -> _Item:
        return _Item(TokenType() if name == "token" else ScalarType(_dtype(name)), name)

    def weak_type(self, weak: Token, name: Token) -> _Item:
        if weak != "weak":
            raise _Fault("TS701", f"'{weak[:40]} {name[:40]}' is not a type", weak)
        return _Item(ScalarType(_dtype(name), weak=True), name)

    def shaped_type(self, kind: Token, shape: tuple[Size, ...], dtype: Token, layout: Token | None) -> _Item:
        if kind not in ("tensor", "tile", "buffer", "view"):
            raise _Fault("TS701", f"'{kind[:40]}' is not a kind of type: tensor, tile, buffer, view or list", kind)
        if kind in ("view", "tensor") and layout is not None:
            raise _Fault("TS703", f"a {kind} has no layout", layout)
        return _Item(_ShapedText(kind, shape, _dtype(dtype), layout), kind)

    def list_type(self, kind: Token, element: _Item, length: Token) -> _Item:
        if kind != "list":
            raise _Fault("TS701", f"'{kind[:40]}' is not a kind of type: tensor, tile, buffer, view or list", kind)
        if not isinstance(element.value, _ShapedText) or element.value.kind != "view":
            raise _Fault("TS703", "a list holds views", element.token)
        return _Item(_ListText(element, self.integer(length).value), kind)

    def ring_type(self, kind: Token, stages: Token) -> _Item:
        if kind != "ring":
            raise _Fault("TS701", f"'{kind[:40]}<{stages[:20]}>' is not a type: only a ring has a number alone", kind)
        return _Item(RingType(self.integer(stages).value), kind)

    def shape(self, *sizes: _Item | None) -> tuple[Size, ...]:
        return tuple(_size(item) for item in sizes if item is not None)

    def dictionary(self, *pairs: tuple[str, Token, _Item] | None) -> _Item:
        result: dict[str, _Item] = {}
        for pair in pairs:
            if pair is not None:
                key, token, item = pair
                if key in result:
                    raise _Fault("TS703", f"'{key[:40]}' is given twice", token)
                result[key] = item
        return _Item(result, None)

    def pair(self, key: Token, item: _Item) -> tuple[str, Token, _Item]:
        return (_string(key) if key.type == "STRING" else str(key)), key, item

    def string(self, token: Token) -> _Item:
        return _Item(_string(token), token)

    def alias(self, token: Token) -> _Item:
        return _Item(_Alias(token), token)

    def sequence(self, *items: _Item) -> _Item:
        return _Item(items, items[0].token if items else None)

    def integer(self, token: Token) -> _Item:
        if len(token) > MAX_DIGITS:
            raise _Fault("TS701", f"the number {token[:MAX_DIGITS]}... has more than {MAX_DIGITS} digits", token)
        return _Item(int(token), token)

    def real(self, token: Token) -> _Item:
        return _Item(float(token), token)

    def name(self, token: Token) -> _Item:
        if token in CONSTANTS:
            return _Item(CONSTANTS[token], token)
        return _Item(TYPES[token] if token in TYPES else symbol(str(token)), token)

    def symbol(self, token: Token) -> _Item:
        return _Item(symbol(_string(token)), token)

    def call(self, name: Token, left: _Item, right: _Item) -> _Item:
        if name not in FUNCTIONS:
            raise _Fault("TS703", f"'{name[:40]}' is not a function of sizes{did_you_mean(name[:40], FUNCTIONS)}", name)
        if _size(right) == 0 and name not in ("min", "max"):
            raise _Fault("TS703", f"{name} by zero", name)
        return _Item(FUNCTIONS[name](_size(left), _size(right)), name)

    def negative(self, item: _Item) -> _Item:
        return _Item(-item.value if isinstance(item.value, float) else -_size(item), item.token)

    def add(self, left: _Item, right: _Item) -> _Item:
        _limit(left, _terms(left) + _terms(right))
        return _Item(_size(left) + _size(right), left.token)

    def subtract(self, left: _Item, right: _Item) -> _Item:
        _limit(left, _terms(left) + _terms(right))
        return _Item(_size(left) - _size(right), left.token)

    def multiply(self, left: _Item, right: _Item) -> _Item:
        _limit(left, _terms(left) * _terms(right))
        _limit(left, _factors(left) + _factors(right))
        return _Item(_size(left) * _size(right), left.token)


def _string(token: Token) -> str:
    try:
        return json.loads(token[token.index('"') :])
    except ValueError:
        raise _Fault("TS701", "the string is not well formed: its escapes are those of JSON", token) from None


def _dtype(token: Token) -> DType:
    if token not in TYPES:
        raise _Fault("TS702", f"there is no dtype '{token[:40]}'{did_you_mean(token[:40], TYPES)}", token)
    return TYPES[token]


def _size(item: _Item) -> Size:
    if isinstance(item.value, bool) or not isinstance(item.value, (int, Dim)):
        raise _Fault("TS703", "a size is made of integers and symbols", item.token)
    return item.value


def _terms(item: _Item) -> int:
    value = _size(item)
    return len(value.terms) if isinstance(value, Dim) else 1


def _factors(item: _Item) -> int:
    value = _size(item)
    if isinstance(value, Dim):
        return max(sum(power for _, power in monomial) for monomial, _ in value.terms)
    return 1 + value.bit_length() // 64


def _limit(item: _Item, count: int) -> None:
    if count > MAX_TERMS:
        raise _Fault("TS703", f"a size has more than {MAX_TERMS} terms or factors", item.token)


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
            if isinstance(declaration, _FileText):
                self._declare_file(declaration)
            elif isinstance(declaration, _LayoutText):
                self._declare_layout(declaration)
            else:
                kernel = self._kernel(declaration)
                if any(kernel.name == other.name for other in module.kernels):
                    raise _Fault("TS703", f"there are two kernels named '{kernel.name}'", declaration.name)
                module.kernels.append(kernel)
        return module

    def _declare_file(self, text: _FileText) -> None:
        number = _TreeMethods().integer(text.number).value
        if number in self.files:
            raise _Fault("TS703", f"file {number} is declared twice", text.number)
        self.files[number] = text.path

    def _declare_layout(self, text: _LayoutText) -> None:
        if text.alias in self.layouts:
            raise _Fault("TS703", f"layout {text.alias} is declared twice", text.alias)
        if any(len(digits) > 9 for digits in re.findall(r"\d+", text.text)):
            raise _Fault("TS703", f"layout {text.alias} has a number beyond any tile", text.text)
        kind = RegisterLayout if text.text.startswith("regs") else SharedLayout
        try:
            self.layouts[str(text.alias)] = kind.parse(text.text.strip())
        except (ValueError, TypeError, ZeroDivisionError, RecursionError) as error:
            raise _Fault("TS703", f"layout {text.alias} cannot be read: {str(error)[:200]}", text.text) from None

    def _layout(self, alias: Token) -> RegisterLayout | SharedLayout:
        if alias not in self.layouts:
            raise _Fault("TS703", f"layout {alias} is not declared above", alias)
        return self.layouts[alias]

    def _kernel(self, text: _KernelText) -> Kernel:
        self.visible, self.defined = {}, set()
        name = _string(text.name) if '"' in text.name else text.name[1:]
        kernel = Kernel(str(name), Block(), self._plain(text.attributes), self._origin(text.origin, text.name))
        problem = kernel_attribute_problem(kernel)
        if problem:
            raise _Fault("TS703", f"kernel {name[:40]}: {problem}", text.name)
        self._arguments(kernel.body, text.parameters)
        self._ops(kernel.body, text.ops, inside=None)
        return kernel

    def _arguments(self, block: Block, values: list[_ValueText]) -> None:
        for value in values:
            self._define(value.name, block.add_argument(self._type(value.type), _hint(value.name)))

    def _define(self, name: Token, value: Value) -> None:
        if name in self.defined:
            raise _Fault("TS703", f"{name} is defined twice", name)
        self.defined.add(str(name))
        self.visible[str(name)] = value

    def _ops(self, block: Block, ops: list[_OpText], inside: str | None) -> None:
        for number, text in enumerate(ops):
            definition = self._definition(text.name)
            if definition.has(TERMINATOR) and (number != len(ops) - 1 or inside is None and self.level != GRAPH):
                raise _Fault("TS703", f"{text.name} can only end a region", text.name)
            self._op(block, text, definition)

    def _definition(self, name: Token) -> OpDef:
        definition = table().get(str(name))
        if definition is None:
            raise _Fault("TS702", f"there is no op '{name[:40]}'{did_you_mean(name[:40], table())}", name)
        if self.level not in definition.levels:
            raise _Fault("TS702", f"op {name} is not of the {self.level} level", name)
        return definition

    def _op(self, block: Block, text: _OpText, definition: OpDef) -> None:
        operands = [self._use(name) for name in text.operands]
        if not definition.check_arity(len(operands)):
            takes = ", ".join(definition.operands) or "no operands"
            raise _Fault("TS703", f"op {text.name} takes {takes}, not {len(operands)} operands", text.name)
        if len(text.regions) != definition.regions:
            count = len(text.regions)
            raise _Fault("TS703", f"op {text.name} has {definition.regions} regions, not {count}", text.name)
        attributes = self._attributes(text, definition)
        regions = [self._region(region, str(text.name)) for region in text.regions]
        builder = Builder(block, self._origin(text.origin, text.name))
        try:
            problem = attribute_problem(Op(definition.name, operands, attributes, [], regions, builder.origin))
            if problem:
                raise _Fault("TS703", problem, text.name)
            op = builder.op(definition.name, operands, regions, [_hint(v.name) for v in text.results], **attributes)
        except TesseraError as error:
            raise _Fault("TS703", error.message, text.name) from None
        except RULE_FAULTS as error:
            message = f"the operands and attributes of this {text.name} do not fit each other ({error})"
            raise _Fault("TS703", message[:300], text.name) from None
        self._results(text, op)

    def _results(self, text: _OpText, op: Op) -> None:
        if len(text.results) != len(op.results):
            raise _Fault("TS703", f"this {op.name} gives {len(op.results)} results, not {len(text.results)}", text.name)
        for written, value in zip(text.results, op.results, strict=True):
            type_ = self._type(written.type)
            if type_ != value.type:
                raise _Fault(
                    "TS703",
                    f"{written.name} is written as {type_text(type_)}, but this {op.name} gives "
                    f"{type_text(value.type)}",
                    written.type.token,
                )
            self._define(written.name, value)

    def _attributes(self, text: _OpText, definition: OpDef) -> dict[str, Any]:
        for name in text.attributes:
            if name not in definition.attributes:
                raise _Fault(
                    "TS702",
                    f"op {definition.name} has no attribute '{name[:40]}'"
                    f"{did_you_mean(name[:40], definition.attributes)}",
                    text.name,
                )
        for name, default in definition.attributes.items():
            if default is REQUIRED and name not in text.attributes:
                raise _Fault("TS703", f"op {definition.name} needs the attribute '{name}'", text.name)
        return definition.complete(self._plain(text.attributes))

    def _region(self, text: _RegionText, inside: str) -> Block:
        outer, block = dict(self.visible), Block()
        self._arguments(block, text.arguments)
        self._ops(block, text.ops, inside)
        self.visible = outer
        return block

    def _use(self, name: Token) -> Value:
        if name not in self.visible:
            why = "is not visible here: it is defined in a region" if name in self.defined else "is not defined above"
            raise _Fault("TS703", f"{name} {why}", name)
        return self.visible[name]

    def _type(self, item: _Item) -> Type:
        if isinstance(item.value, _ListText):
            element = self._type(item.value.element)
            assert isinstance(element, ViewType), "the tree has checked it"
            return ListType(element, item.value.length)
        if not isinstance(item.value, _ShapedText):
            return item.value
        kind, shape, dtype, alias = item.value
        if kind == "view":
            return ViewType(shape, dtype)
        if (kind == "tensor") != (self.level == GRAPH and kind in ("tensor", "tile")):
            raise _Fault("TS703", f"there are no {kind}s at the {self.level} level", kind)
        layout = self._layout(alias) if alias is not None else None
        if kind in ("tile", "tensor") and (layout is None or isinstance(layout, RegisterLayout)):
            return TileType(shape, dtype, layout)
        if kind == "buffer" and (layout is None or isinstance(layout, SharedLayout)):
            return BufferType(shape, dtype, layout)
        raise _Fault("TS703", f"{alias} is not a layout for a {kind}", alias)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, _Item):
            value = value.value
        if isinstance(value, _Alias):
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
                raise _Fault("TS703", f"file {number} of the location is not declared above", token)
            end_line, end_column = (None if end in (None, "?") else int(end) for end in (match[4], match[5]))
            loc = Loc(self.files[number], line, column, end_line, end_column, loc)
        assert loc is not None
        return loc


def _hint(name: Token) -> str:
    return "" if name[1] in "0123456789" else hint_of(name[1:])
