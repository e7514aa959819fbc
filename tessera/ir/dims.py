"""Symbolic integers: the sizes, offsets and grid extents that stay unknown until a launch.

A size is a Python `int` or a `Dim`, a polynomial with integer coefficients over atoms. An atom is a symbol (`S`, `B`,
or a name that an analysis gives to a run-time value) or an opaque quotient, remainder, minimum or maximum. Every
operation returns the normal form, so equality of polynomials is equality of `Dim`s, and a `Dim` that is constant is an
`int`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Union

Size = Union[int, "Dim"]


@dataclass(frozen=True)
class Atom:
    """A symbol (`function == ""`) or an opaque application of `function` to sizes."""

    function: str
    name: str = ""
    arguments: tuple[Size, ...] = ()

    @cached_property
    def text(self) -> str:
        if not self.function:
            return self.name
        left, right = (to_text(argument) for argument in self.arguments)
        return f"{self.function}({left}, {right})"

    @cached_property
    def _hash(self) -> int:
        return hash((self.function, self.name, self.arguments))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.text


Monomial = tuple[tuple[Atom, int], ...]


@dataclass(frozen=True)
class Dim:
    """A non-constant polynomial: sorted `(monomial, coefficient)` terms. Build with `symbol` and operators."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Size) -> Size:
        return _from_terms([*self.terms, *_terms(other)])

    def __radd__(self, other: Size) -> Size:
        return self + other

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + other * -1

    def __rsub__(self, other: Size) -> Size:
        return self * -1 + other

    def __mul__(self, other: Size) -> Size:
        products = []
        for left, a in self.terms:
            for right, b in _terms(other):
                products.append((_multiply(left, right), a * b))
        return _from_terms(products)

    def __rmul__(self, other: Size) -> Size:
        return self * other

    def __floordiv__(self, other: Size) -> Size:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Size) -> Size:
        return floordiv(other, self)

    def __mod__(self, other: Size) -> Size:
        return mod(self, other)

    def __rmod__(self, other: Size) -> Size:
        return mod(other, self)

    def __str__(self) -> str:
        return to_text(self)

    def __repr__(self) -> str:
        return f"Dim({to_text(self)})"


def symbol(name: str) -> Dim:
    return Dim(((((Atom("", name), 1),), 1),))


def _terms(size: Size) -> Iterable[tuple[Monomial, int]]:
    if isinstance(size, Dim):
        return size.terms
    return (((), int(size)),) if size else ()


def _multiply(left: Monomial, right: Monomial) -> Monomial:
    powers: dict[Atom, int] = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: str(item[0])))


def _from_terms(terms: Iterable[tuple[Monomial, int]]) -> Size:
    collected: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        collected[monomial] = collected.get(monomial, 0) + coefficient
    kept = [(monomial, coefficient) for monomial, coefficient in collected.items() if coefficient]
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    # Symbols first, the constant last, so that text reads `2*S + 1`.
    return Dim(tuple(sorted(kept, key=lambda term: (term[0] == (), [(str(a), p) for a, p in term[0]]))))


def _apply(function: str, left: Size, right: Size) -> Dim:
    return Dim(((((Atom(function, "", (left, right)), 1),), 1),))


def _split(size: Size, divisor: int) -> tuple[Size, Size]:
    """`size = quotient * divisor + rest`, where the quotient takes every term that `divisor` divides."""
    quotient = [(m, c // divisor) for m, c in _terms(size) if c % divisor == 0]
    rest = [(m, c) for m, c in _terms(size) if c % divisor]
    return _from_terms(quotient), _from_terms(rest)


def _refuse_zero(b: Size) -> None:
    if isinstance(b, int) and b == 0:
        raise ZeroDivisionError("a size is divided by zero")


def floordiv(a: Size, b: Size) -> Size:
    """Floor division as in Python. Raises ZeroDivisionError for a constant zero divisor."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if isinstance(b, int):
        if b < 0:
            return floordiv(a * -1, -b)
        quotient, rest = _split(a, b)
        if isinstance(rest, int):
            return quotient + rest // b
        return quotient + _apply("floordiv", rest, b)
    if a == b:
        return 1
    return _apply("floordiv", a, b)


def mod(a: Size, b: Size) -> Size:
    """Remainder with the sign of the divisor, as in Python. Raises ZeroDivisionError for a constant zero divisor."""
    _refuse_zero(b)
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if isinstance(b, int) and b > 0:
        _, rest = _split(a, b)
        return rest % b if isinstance(rest, int) else _apply("mod", rest, b)
    return 0 if a == b else _apply("mod", a, b)


def cdiv(a: Size, b: Size) -> Size:
    """Ceiling division, `-(-a // b)`. Raises ZeroDivisionError for a constant zero divisor."""
    _refuse_zero(b)
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    if isinstance(b, int) and b > 0:
        quotient, rest = _split(a, b)
        if isinstance(rest, int):
            return quotient + -(-rest // b)
        return quotient + _apply("cdiv", rest, b)
    return 1 if a == b else _apply("cdiv", a, b)


def minimum(a: Size, b: Size) -> Size:
    difference = a - b
    if isinstance(difference, int):
        return a if difference <= 0 else b
    return _apply("min", a, b)


def maximum(a: Size, b: Size) -> Size:
    difference = a - b
    if isinstance(difference, int):
        return a if difference >= 0 else b
    return _apply("max", a, b)


FUNCTIONS: dict[str, Callable[[Size, Size], Size]] = {
    "floordiv": floordiv,
    "mod": mod,
    "cdiv": cdiv,
    "min": minimum,
    "max": maximum,
}


def substitute(size: Size, values: Mapping[str, Size]) -> Size:
    """Replaces symbols by sizes; symbols without a value stay."""
    if isinstance(size, int):
        return size
    total: Size = 0
    for monomial, coefficient in size.terms:
        product: Size = coefficient
        for atom, power in monomial:
            value = _substitute_atom(atom, values)
            for _ in range(power):
                product = product * value
        total = total + product
    return total


def _substitute_atom(atom: Atom, values: Mapping[str, Size]) -> Size:
    if not atom.function:
        return values.get(atom.name, symbol(atom.name))
    left, right = (substitute(argument, values) for argument in atom.arguments)
    return FUNCTIONS[atom.function](left, right)


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """The number that `size` is under `values`. Raises KeyError with the first symbol that has no value."""
    result = substitute(size, values)
    if isinstance(result, int):
        return result
    raise KeyError(sorted(symbols(result))[0])


def symbols(size: Size) -> frozenset[str]:
    if isinstance(size, int):
        return frozenset()
    found: set[str] = set()
    for monomial, _ in size.terms:
        for atom, _ in monomial:
            if atom.function:
                for argument in atom.arguments:
                    found |= symbols(argument)
            else:
                found.add(atom.name)
    return frozenset(found)


def coefficient(size: Size, name: str) -> tuple[Size, Size] | None:
    """`(c, rest)` with `size == c * name + rest` and neither holding `name`; None where `size` is not affine in it."""
    if isinstance(size, int):
        return 0, size
    atom = Atom("", name)
    factor, rest = [], []
    for monomial, number in size.terms:
        powers = dict(monomial)
        power = powers.pop(atom, 0)
        if power > 1:
            return None
        (factor if power else rest).append((tuple(powers.items()), number))
    c, r = _from_terms(factor), _from_terms(rest)
    if name in symbols(c) or name in symbols(r):
        return None
    return c, r


def divisor(size: Size, known: Mapping[str, int] | None = None, limit: int = 1 << 20) -> int:
    """The largest power of two up to `limit` known to divide `size`, given divisors of symbols."""
    known = known or {}
    result = limit
    for monomial, number in _terms(size):
        power = number & -number
        for atom, exponent in monomial:
            power *= (known.get(atom.name, 1) if not atom.function else 1) ** exponent
        result = min(result, power & -power)
    return result


def to_text(size: Size) -> str:
    """Text that `parse` reads back to the same size."""
    if isinstance(size, int):
        return str(size)
    text = ""
    for monomial, number in size.terms:
        factors = [str(atom) for atom, power in monomial for _ in range(power)]
        if abs(number) != 1 or not factors:
            factors.insert(0, str(abs(number)))
        sign = ("-" if number < 0 else "") if not text else (" - " if number < 0 else " + ")
        text += sign + "*".join(factors)
    return text


# Names that no author wrote have dots: `x.0` is an undeclared dim of the parameter x, `x.stride0` a stride, and what a
# machine decides is `device.` and a word.
_DOTTED = re.compile(r"(?<![\w.])(?:[^\W\d]\w*\.(?:stride)?\d+|device\.[a-z]+)(?![\w.])")


def parse(text: str) -> Size:
    """Reads the text of a size. Raises ValueError for anything but integers, names, + - * // % and the functions."""
    dotted: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        dotted.append(match[0])
        return f"_dotted_{len(dotted) - 1}"

    try:
        read = _from_ast(ast.parse(_DOTTED.sub(stand_in, text.strip()), mode="eval").body)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise ValueError(f"'{text}' is not a size expression") from error
    return (
        substitute(read, {f"_dotted_{number}": symbol(name) for number, name in enumerate(dotted)}) if dotted else read
    )


def _from_ast(node: ast.expr) -> Size:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _from_ast(node.operand) * -1
    if isinstance(node, ast.BinOp):
        left, right = _from_ast(node.left), _from_ast(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.FloorDiv):
            return floordiv(left, right)
        if isinstance(node.op, ast.Mod):
            return mod(left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        left, right = (_from_ast(argument) for argument in node.args)
        return FUNCTIONS[node.func.id](left, right)
    raise ValueError("not a size expression")
