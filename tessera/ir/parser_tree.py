"""The light tree of IR text: what lark's automaton makes of it, rule by rule, before any op exists.

`parser.py` makes a module of it. An error here is a `Fault` at a token.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tessera.dtypes import TYPES, DType
from tessera.errors import did_you_mean
from tessera.ir.dims import FUNCTIONS, Dim, Size, symbol
from tessera.ir.printer import CONSTANTS
from tessera.ir.types import RingType, ScalarType, TokenType

if TYPE_CHECKING:
    from lark import Lark, Token

# Bounds that no printed IR meets: they keep hostile text from sizes that grow exponentially.
MAX_TERMS = 256
MAX_DIGITS = 20


class Fault(Exception):
    """An error at a token; `parse_module` knows the file. Never leaves the parser."""

    def __init__(self, code: str, message: str, token: Token | Position | None) -> None:
        super().__init__(message)
        self.code, self.message, self.token = code, message, token


class Position(NamedTuple):
    line: int
    column: int
    end_line: int | None = None
    end_column: int | None = None


class Item(NamedTuple):
    """An attribute value or a type, and a token of it for messages."""

    value: Any
    token: Any


class ShapedText(NamedTuple):
    kind: Token
    shape: tuple[Size, ...]
    dtype: DType
    layout: Token | None


class ListText(NamedTuple):
    element: Item
    length: int


class ValueText(NamedTuple):
    name: Token
    type: Item


class Alias(NamedTuple):
    """A layout's alias inside an attribute, resolved when the declarations are known."""

    token: Token


class RegionText(NamedTuple):
    arguments: list[ValueText]
    ops: list[OpText]


class OpText(NamedTuple):
    results: list[ValueText]
    name: Token
    operands: list[Token]
    attributes: dict[str, Item]
    regions: list[RegionText]
    origin: Token | None


class KernelText(NamedTuple):
    name: Token
    parameters: list[ValueText]
    attributes: dict[str, Item]
    origin: Token | None
    ops: list[OpText]


class FileText(NamedTuple):
    number: Token
    path: str


class LayoutText(NamedTuple):
    alias: Token
    text: Token


@cache
def lark_parser() -> Lark:
    from lark import Lark, Transformer, v_args

    # lark calls these methods while it parses, so nothing recurses over the text.
    methods = {name: method for name, method in vars(TreeMethods).items() if not name.startswith("_")}
    tree = v_args(inline=True)(type("Tree", (Transformer,), methods))()
    return Lark.open("grammar.lark", rel_to=__file__, parser="lalr", transformer=tree, maybe_placeholders=True)


class TreeMethods:
    """One method per rule of the grammar."""

    def start(self, version: Any, *declarations: Any) -> list[Any]:
        return list(declarations)

    def version(self, number: Token, level: Token) -> None:
        return None  # read before the grammar, which other versions may not fit

    def file(self, number: Token, path: Token) -> FileText:
        return FileText(number, string_of(path))

    def layout(self, alias: Token, text: Token) -> LayoutText:
        return LayoutText(alias, text)

    def kernel(self, name: Token, parameters: Any, attributes: Any, origin: Any, ops: list[OpText]) -> KernelText:
        return KernelText(name, parameters or [], attributes.value if attributes else {}, origin, ops)

    def values(self, *values: ValueText) -> list[ValueText]:
        return list(values)

    def value(self, name: Token, type_: Item) -> ValueText:
        return ValueText(name, type_)

    def block(self, *ops: OpText) -> list[OpText]:
        return list(ops)

    def op(self, results: Any, name: Token, operands: Any, attributes: Any, regions: Any, origin: Any) -> OpText:
        return OpText(results or [], name, operands or [], attributes.value if attributes else {}, regions, origin)

    def operands(self, *names: Token) -> list[Token]:
        return list(names)

    def regions(self, *regions: RegionText) -> list[RegionText]:
        return list(regions)

    def region(self, arguments: Any, ops: list[OpText]) -> RegionText:
        return RegionText(arguments or [], ops)

    def simple_type(self, name: Token) -> Item:
        return Item(TokenType() if name == "token" else ScalarType(_dtype(name)), name)

    def weak_type(self, weak: Token, name: Token) -> Item:
        if weak != "weak":
            raise Fault("TS701", f"'{weak[:40]} {name[:40]}' is not a type", weak)
        return Item(ScalarType(_dtype(name), weak=True), name)

    def shaped_type(self, kind: Token, shape: tuple[Size, ...], dtype: Token, layout: Token | None) -> Item:
        if kind not in ("tensor", "tile", "buffer", "view"):
            raise Fault("TS701", f"'{kind[:40]}' is not a kind of type: tensor, tile, buffer, view or list", kind)
        if kind in ("view", "tensor") and layout is not None:
            raise Fault("TS703", f"a {kind} has no layout", layout)
        return Item(ShapedText(kind, shape, _dtype(dtype), layout), kind)

    def list_type(self, kind: Token, element: Item, length: Token) -> Item:
        if kind != "list":
            raise Fault("TS701", f"'{kind[:40]}' is not a kind of type: tensor, tile, buffer, view or list", kind)
        if not isinstance(element.value, ShapedText) or element.value.kind != "view":
            raise Fault("TS703", "a list holds views", element.token)
        return Item(ListText(element, self.integer(length).value), kind)

    def ring_type(self, kind: Token, stages: Token) -> Item:
        if kind != "ring":
            raise Fault("TS701", f"'{kind[:40]}<{stages[:20]}>' is not a type: only a ring has a number alone", kind)
        return Item(RingType(self.integer(stages).value), kind)

    def shape(self, *sizes: Item | None) -> tuple[Size, ...]:
        return tuple(_size(item) for item in sizes if item is not None)

    def dictionary(self, *pairs: tuple[str, Token, Item] | None) -> Item:
        result: dict[str, Item] = {}
        for pair in pairs:
            if pair is not None:
                key, token, item = pair
                if key in result:
                    raise Fault("TS703", f"'{key[:40]}' is given twice", token)
                result[key] = item
        return Item(result, None)

    def pair(self, key: Token, item: Item) -> tuple[str, Token, Item]:
        return (string_of(key) if key.type == "STRING" else str(key)), key, item

    def string(self, token: Token) -> Item:
        return Item(string_of(token), token)

    def alias(self, token: Token) -> Item:
        return Item(Alias(token), token)

    def sequence(self, *items: Item) -> Item:
        return Item(items, items[0].token if items else None)

    def integer(self, token: Token) -> Item:
        if len(token) > MAX_DIGITS:
            raise Fault("TS701", f"the number {token[:MAX_DIGITS]}... has more than {MAX_DIGITS} digits", token)
        return Item(int(token), token)

    def real(self, token: Token) -> Item:
        return Item(float(token), token)

    def name(self, token: Token) -> Item:
        if token in CONSTANTS:
            return Item(CONSTANTS[token], token)
        return Item(TYPES[token] if token in TYPES else symbol(str(token)), token)

    def symbol(self, token: Token) -> Item:
        return Item(symbol(string_of(token)), token)

    def call(self, name: Token, left: Item, right: Item) -> Item:
        if name not in FUNCTIONS:
            raise Fault("TS703", f"'{name[:40]}' is not a function of sizes{did_you_mean(name[:40], FUNCTIONS)}", name)
        if _size(right) == 0 and name not in ("min", "max"):
            raise Fault("TS703", f"{name} by zero", name)
        return Item(FUNCTIONS[name](_size(left), _size(right)), name)

    def negative(self, item: Item) -> Item:
        return Item(-item.value if isinstance(item.value, float) else -_size(item), item.token)

    def add(self, left: Item, right: Item) -> Item:
        _limit(left, _terms(left) + _terms(right))
        return Item(_size(left) + _size(right), left.token)

    def subtract(self, left: Item, right: Item) -> Item:
        _limit(left, _terms(left) + _terms(right))
        return Item(_size(left) - _size(right), left.token)

    def multiply(self, left: Item, right: Item) -> Item:
        _limit(left, _terms(left) * _terms(right))
        _limit(left, _factors(left) + _factors(right))
        return Item(_size(left) * _size(right), left.token)


def string_of(token: Token) -> str:
    try:
        return json.loads(token[token.index('"') :])
    except ValueError:
        raise Fault("TS701", "the string is not well formed: its escapes are those of JSON", token) from None


def _dtype(token: Token) -> DType:
    if token not in TYPES:
        raise Fault("TS702", f"there is no dtype '{token[:40]}'{did_you_mean(token[:40], TYPES)}", token)
    return TYPES[token]


def _size(item: Item) -> Size:
    if isinstance(item.value, bool) or not isinstance(item.value, (int, Dim)):
        raise Fault("TS703", "a size is made of integers and symbols", item.token)
    return item.value


def _terms(item: Item) -> int:
    value = _size(item)
    return len(value.terms) if isinstance(value, Dim) else 1


def _factors(item: Item) -> int:
    value = _size(item)
    if isinstance(value, Dim):
        return max(sum(power for _, power in monomial) for monomial, _ in value.terms)
    return 1 + value.bit_length() // 64


def _limit(item: Item, count: int) -> None:
    if count > MAX_TERMS:
        raise Fault("TS703", f"a size has more than {MAX_TERMS} terms or factors", item.token)
